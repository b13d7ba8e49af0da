//! W3: many runs parked on one signal. What they cost the server's memory, and how soon one that is sent its signal has
//! ended.

use std::time::Duration;

use everstep::{Client, RunHandle};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

use super::figures::{Figures, Goal};
use super::latency::Latencies;
use super::place::Place;
use super::system::System;
use super::workloads::{GO, WAITS};
use super::{Args, baseline, processes};
use crate::fail::Fail;

const RUNS: u64 = 20_000;
/// Starts under way at one time.
const STARTERS: usize = 64;
/// Runs that are sent their signal, one after the other.
const WOKEN: usize = 1_000;
/// From when all are parked until memory is looked at.
const SETTLE: Duration = Duration::from_secs(6);
const PARKED_MAX: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(200);

const MEMORY_MIB: Goal = Goal::AtMost(10.0);
const WAKE: Goal = Goal::AtMost(7.0);

pub(super) async fn run(args: &Args, figures: &mut Figures) -> Result<(), Fail> {
    let (_, i) = baseline::measure(args.database_url.as_ref(), Duration::from_secs(3)).await?;
    let place = Place::make(args.database_url.as_ref()).await?;
    let system = System::start(&place, args.nats_url.as_deref())?;
    let measured = parked(&system, i, figures).await;
    system.stop().await;
    place.remove().await?;
    measured
}

async fn parked(system: &System, i: f64, figures: &mut Figures) -> Result<(), Fail> {
    let client = Client::connect(&system.address)?;
    // What is allocated at the first use of anything is not the runs'.
    let warm: Vec<RunHandle<u32>> = start(&client, 1_000).await?;
    for run in &warm {
        run.signal(GO, &1).await?;
        run.result().await?;
    }
    tokio::time::sleep(SETTLE).await;
    let before = processes::resident_mib(system.server_pid());
    let runs = start(&client, RUNS).await?;
    nobody_holds_any(system).await?;
    tokio::time::sleep(SETTLE).await;
    let more = processes::resident_mib(system.server_pid()) - before;
    figures.add_with_goal(format!("w3 server MiB more, {RUNS} parked"), more, MEMORY_MIB);
    let mut latencies = Latencies::new()?;
    for run in runs.iter().step_by(runs.len() / WOKEN) {
        let began = Instant::now();
        run.signal(GO, &1).await?;
        run.result().await?;
        latencies.record(began.elapsed());
    }
    figures.add("w3 i p50 ms".to_owned(), i);
    figures.add("w3 signal to result p50 ms".to_owned(), latencies.ms(0.5));
    figures.add("w3 signal to result p99 ms".to_owned(), latencies.ms(0.99));
    figures.add_with_goal("w3 signal to result p50 / i".to_owned(), latencies.ms(0.5) / i, WAKE);
    Ok(())
}

async fn start(client: &Client, runs: u64) -> Result<Vec<RunHandle<u32>>, Fail> {
    let start = |_| async { Ok::<_, Fail>(client.workflow::<u32>(WAITS).start(&()).await?) };
    stream::iter(0..runs).map(start).buffer_unordered(STARTERS).try_collect().await
}

async fn nobody_holds_any(system: &System) -> Result<(), Fail> {
    let began = Instant::now();
    while system.metric("everstep_runs_loaded").await? > 0.0 {
        if began.elapsed() > PARKED_MAX {
            return Err(Fail::refused(format!("runs were not parked within {PARKED_MAX:?}")));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
