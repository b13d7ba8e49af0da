//! Signals and updates that bring a run along: one run, each signal once, and a repeat starts nothing new.

use std::sync::Arc;
use std::time::Duration;

use everstep::client::Client;
use everstep::{ClientError, Ctx, Refused, UpdateError, WorkflowError};
use everstep_core::{ConflictPolicy, EventBody, RunId};
use everstep_dispatch::InProcess;
use everstep_store_postgres::{PostgresStore, migrate};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use everstep_tests::servers::{PostgresServer, require};

use crate::stores;

const CALLERS: u32 = 50;

/// Gathers what it is sent until it has as many as it was told to.
async fn gather(ctx: Ctx, many: u32) -> Result<Vec<u32>, WorkflowError> {
    let mut all = Vec::new();
    while (all.len() as u32) < many {
        all.push(ctx.signal::<u32>("add").await?);
    }
    Ok(all)
}

/// Adds up until it has enough.
async fn cart(ctx: Ctx, enough: u32) -> Result<u32, WorkflowError> {
    let total = ctx.state(0u32);
    let agrees = |n: &u32| if *n > 0 { Ok(()) } else { Err(Refused::new("must be positive")) };
    ctx.on_update("add", agrees, {
        let total = total.clone();
        move |_: Ctx, n: u32| {
            let sum = total.update(|total| {
                *total += n;
                *total
            });
            async move { Ok(sum) }
        }
    });
    ctx.wait(|| total.get() >= enough).await;
    Ok(total.get())
}

async fn node_on(store: &stores::TestStore) -> anyhow::Result<RunningNode> {
    eprintln!("on {}", store.name);
    RunningNode::start(Arc::clone(&store.store), Arc::new(InProcess::new()), NodeSettings::default()).await
}

async fn bodies(client: &Client, run: RunId) -> anyhow::Result<Vec<EventBody>> {
    let mut history = client.handle::<u32>(run).history(0, false).await?;
    let mut bodies = Vec::new();
    while let Some(event) = history.next().await? {
        bodies.push(event.body);
    }
    Ok(bodies)
}

/// Many callers at a time, at any of the nodes, each of which says the same thing twice.
async fn all_at_once(nodes: &[&RunningNode], workflow_id: &str) -> anyhow::Result<()> {
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..CALLERS {
        let client = nodes[n as usize % nodes.len()].client()?;
        let again = nodes[(n as usize + 1) % nodes.len()].client()?;
        let workflow_id = workflow_id.to_owned();
        callers.spawn(async move {
            let send = |client: Client| {
                let start = client.workflow::<Vec<u32>>("gather").workflow_id(workflow_id.clone());
                async move { start.request_id(format!("r{n}")).signal_with_start("add", &n, &CALLERS).await }
            };
            let first = send(client).await?;
            let second = send(again).await?;
            assert_eq!(first.run_id(), second.run_id(), "one run");
            Ok::<_, ClientError>(first)
        });
    }
    let mut runs = Vec::new();
    while let Some(run) = callers.join_next().await {
        runs.push(run??);
    }
    let ids: std::collections::BTreeSet<_> = runs.iter().filter_map(|run| run.run_id()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let mut all = runs[0].result().await?;
    all.sort_unstable();
    assert_eq!(all, (0..CALLERS).collect::<Vec<_>>(), "every signal once");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_callers_start_one_run_and_each_signal_is_there_once() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().register("gather", gather))?;
        all_at_once(&[&node], "g").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_callers_at_two_nodes_start_one_run() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let database = PostgresServer::shared()?.create_database().await?;
    migrate(&database).await?;
    let node = async || {
        let store = PostgresStore::connect(&database, stores::postgres_options()).await?;
        RunningNode::start(Arc::new(store), Arc::new(InProcess::new()), NodeSettings::default()).await
    };
    let (here, there) = (node().await?, node().await?);
    let _worker = RunningWorker::start(there.worker().register("gather", gather))?;
    all_at_once(&[&here, &there], "g").await
}

/// The start and its signal are one append: no moment shows the one without the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_run_begins_with_its_signal() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let client = node.client()?;
        let start = || client.workflow::<Vec<u32>>("gather").workflow_id("g");
        let run = start().signal_with_start("add", &7, &1).await?;
        let run_id = run.run_id().ok_or_else(|| anyhow::anyhow!("no id"))?;
        let begun = bodies(&client, run_id).await?;
        let [EventBody::RunStarted(_), EventBody::SignalReceived { name, .. }] = &begun[..] else {
            anyhow::bail!("{begun:?}")
        };
        assert_eq!(name, "add");
        let other =
            start().request_id("x").conflict(ConflictPolicy::Fail).signal_with_start("add", &7, &1).await;
        assert!(other.is_err(), "{other:?}");
        let _worker = RunningWorker::start(node.worker().register("gather", gather))?;
        assert_eq!(run.result().await?, [7]);
    }
    Ok(())
}

/// The first call found an open run, which has ended since: its repeat finds that run and starts none.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_after_the_end_starts_nothing_new() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let client = node.client()?;
        let _worker = RunningWorker::start(node.worker().register("gather", gather).register("cart", cart))?;
        let start = |id: &str| client.workflow::<Vec<u32>>("gather").workflow_id("g").request_id(id);
        let first = start("a").signal_with_start("add", &1, &2).await?;
        let second = start("b").signal_with_start("add", &2, &2).await?;
        assert_eq!(first.run_id(), second.run_id());
        assert_eq!(first.result().await?, [1, 2]);
        for (id, value) in [("a", 1), ("b", 2)] {
            let again = start(id).signal_with_start("add", &value, &2).await?;
            assert_eq!(again.run_id(), first.run_id(), "{id}");
        }
        let other = start("b").signal_with_start("add", &3, &2).await;
        assert!(matches!(&other, Err(e) if e.reason() == Some("IDEMPOTENCY_MISMATCH")), "{other:?}");
        let new = start("c").signal_with_start("add", &3, &1).await?;
        assert_ne!(new.run_id(), first.run_id(), "another call is another run");
        assert_eq!(new.result().await?, [3]);

        let update = |id: &str| client.workflow::<u32>("cart").workflow_id("c").request_id(id);
        let ten_seconds = Duration::from_secs(10);
        let added = update("a").start_with_update::<u32, _>("add", &1, &3, ten_seconds).await?;
        assert_eq!((added.id(), added.result().await?), ("a", 1));
        assert_eq!(update("a").update_with_start::<u32, _>("add", &1, &3).await?, 1);
        let run = client.latest::<u32>("c");
        assert_eq!(update("b").update_with_start::<u32, _>("add", &2, &3).await?, 3);
        assert_eq!(run.result().await?, 3);
        assert_eq!(update("b").update_with_start::<u32, _>("add", &2, &3).await?, 3);
        assert_eq!(update("a").update_with_start::<u32, _>("add", &1, &3).await?, 1);
        let run_id = run.describe().await?.run_id;
        let accepted = |b: &&EventBody| matches!(b, EventBody::UpdateAccepted { .. });
        assert_eq!(bodies(&client, run_id).await?.iter().filter(accepted).count(), 2);
        let refused = update("d").update_with_start::<u32, _>("add", &0, &3).await;
        assert!(
            matches!(&refused, Err(UpdateError::Client(e)) if e.reason() == Some("UPDATE_REJECTED")),
            "{refused:?}"
        );
        let left = client.latest::<u32>("c").describe().await?;
        assert_ne!(left.run_id, run_id, "a refused update leaves the run that was started");
    }
    Ok(())
}

/// Takes two numbers in each of its runs, until there are three.
async fn relay(ctx: Ctx, so_far: Vec<u32>) -> Result<Vec<u32>, WorkflowError> {
    let mut all = so_far;
    for _ in 0..2 {
        all.push(ctx.signal::<u32>("add").await?);
        if all.len() == 3 {
            return Ok(all);
        }
    }
    Err(ctx.continue_as_new(&all))
}

/// The run that took the signals has gone on as another one: a repeat finds the chain, and no number is there twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_after_the_run_went_on_is_heard_once() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let client = node.client()?;
        let _worker = RunningWorker::start(node.worker().register("relay", relay))?;
        let send = async |id: &str, value: u32| {
            let start = client.workflow::<Vec<u32>>("relay").workflow_id("r").request_id(id);
            start.signal_with_start("add", &value, &Vec::<u32>::new()).await
        };
        let first = send("a", 1).await?;
        send("b", 2).await?;
        let mut history = first.history(0, true).await?;
        while let Some(event) = history.next().await? {
            if event.body.successor().is_some() {
                break;
            }
        }
        let next = client.latest::<Vec<u32>>("r").describe().await?.run_id;
        assert_ne!(Some(next), first.run_id(), "the run has gone on");
        for (id, value) in [("a", 1), ("b", 2), ("a", 1)] {
            send(id, value).await?;
        }
        send("c", 3).await?;
        assert_eq!(first.result().await?, [1, 2, 3]);
        let signals = bodies(&client, next).await?;
        let signals = signals.iter().filter(|body| matches!(body, EventBody::SignalReceived { .. }));
        assert_eq!(signals.count(), 1, "only what is new");
    }
    Ok(())
}

/// The node dies once the start is durable: who repeats the call finds the run, and no second signal.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_at_the_next_node_finds_the_run() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let send = |client: Client| {
            let start = client.workflow::<Vec<u32>>("gather").workflow_id("g").request_id("a");
            async move { start.signal_with_start("add", &1, &1).await }
        };
        let first = send(node.client()?).await?;
        node.engine.shutdown(Duration::ZERO).await;
        drop(node);
        let node = node_on(&store).await?;
        let second = send(node.client()?).await?;
        assert_eq!(first.run_id(), second.run_id());
        let _worker = RunningWorker::start(node.worker().register("gather", gather))?;
        assert_eq!(second.result().await?, [1]);
    }
    Ok(())
}
