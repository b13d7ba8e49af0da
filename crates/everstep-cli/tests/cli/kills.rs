//! `kill -9` of a server or a worker at named points of a run: right after the event that the point is named for.

use std::path::Path;

use anyhow::Context as _;
use everstep::{Client, RunHandle};
use everstep_core::{Event, EventBody};
use futures::future::try_join_all;

use crate::support::{Running, everstep, folder};

const STEPS: u32 = 12;

type Point = (&'static str, fn(&EventBody) -> bool);

/// Events after which something is killed.
const POINTS: [Point; 5] = [
    ("started", |body| matches!(body, EventBody::RunStarted(_))),
    ("attached", |body| matches!(body, EventBody::WorkerAttached { .. })),
    ("first step", |body| matches!(body, EventBody::StepCompleted { step, .. } if step.0 == 1)),
    (
        "last but one step",
        |body| matches!(body, EventBody::StepCompleted { step, .. } if step.0 == STEPS - 1),
    ),
    ("completed", |body| matches!(body, EventBody::RunCompleted { .. })),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Server,
    Worker,
}

async fn server(folder: &Path, listen: &str) -> anyhow::Result<Running> {
    let arguments = ["server", "--lease", "1s", "--listen", listen, "--database-url", "sqlite:kills.db"];
    Running::server(everstep(folder, &arguments)).await
}

fn worker(folder: &Path, address: &str) -> anyhow::Result<Running> {
    let path = folder.display().to_string();
    let arguments = ["demo", "crash-worker", "--address", address, "--folder", &path];
    Running::worker(everstep(folder, &arguments), address)
}

/// Kills the victim at the point, starts it again, and sees the run through.
async fn survives(victim: Victim, name: &str, point: fn(&EventBody) -> bool) -> anyhow::Result<()> {
    let folder = folder()?;
    std::fs::create_dir_all(folder.path().join("sink"))?;
    let mut node = server(folder.path(), "127.0.0.1:0").await?;
    let address = node.address.clone();
    let listen = address.trim_start_matches("http://").to_owned();
    let run: RunHandle<Vec<String>> = Client::connect(&address)?.workflow("crash-demo").start(&STEPS).await?;
    let mut working = None;
    if name != "started" {
        working = Some(worker(folder.path(), &address)?);
    }
    // The reader goes on behind the kill where it was.
    let mut history = run.history(0, true).await?;
    let mut events: Vec<Event> = Vec::new();
    while !events.last().is_some_and(|event| point(&event.body)) {
        events.push(history.next().await?.context("the run ended before the point was reached")?);
    }
    match (victim, working.take()) {
        (Victim::Server, kept) => {
            node.kill_9().await?;
            node = server(folder.path(), &listen).await?;
            working = kept;
        }
        (Victim::Worker, Some(killed)) => killed.kill_9().await?,
        (Victim::Worker, None) => {}
    }
    let working = match working {
        Some(working) => working,
        None => worker(folder.path(), &address)?,
    };
    assert_eq!(run.result().await?.len(), STEPS as usize, "{victim:?} after {name}");
    while let Some(event) = history.next().await? {
        events.push(event);
    }
    let steps = |events: &[Event]| -> Vec<u32> {
        let step = |e: &Event| match &e.body {
            EventBody::StepCompleted { step, .. } => Some(step.0),
            _ => None,
        };
        events.iter().filter_map(step).collect()
    };
    assert_eq!(steps(&events), (1..=STEPS).collect::<Vec<_>>(), "{victim:?} after {name}: each step once");
    assert!(events.iter().zip(1..).all(|(event, seq)| event.seq == seq), "{victim:?} after {name}: no gaps");
    assert_eq!(std::fs::read_dir(folder.path().join("sink"))?.count(), STEPS as usize);
    working.kill_9().await?;
    assert_eq!(node.terminate().await?, Some(0));
    let files: Vec<_> =
        std::fs::read_dir(folder.path())?.filter_map(|f| f.ok()?.file_name().into_string().ok()).collect();
    assert!(
        !files.contains(&"kills.db-wal".to_owned()),
        "after an orderly end the file is complete: {files:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_survives_its_server() -> anyhow::Result<()> {
    try_join_all(POINTS.map(|(name, point)| survives(Victim::Server, name, point))).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_survives_its_worker() -> anyhow::Result<()> {
    try_join_all(POINTS.map(|(name, point)| survives(Victim::Worker, name, point))).await.map(drop)
}
