//! W4: many durable timers. How late the result of a run is that slept until an instant; never early.

use chrono::{DateTime, TimeDelta, Utc};
use everstep::{Client, RunHandle};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::Args;
use super::figures::{Figures, Goal};
use super::latency::Latencies;
use super::place::Place;
use super::system::System;
use super::workloads::SLEEPS;
use crate::fail::Fail;

/// Starts under way at one time.
const STARTERS: usize = 64;
/// Connections that the waiting clients share: one stream each on one of these.
const CONNECTIONS: usize = 64;
/// Results waited for at one time, of those that are due next: a node takes 10,000 calls.
const WAITING_MAX: usize = 8_000;
/// How far ahead the first timer is due: all runs are parked by then.
const AHEAD: TimeDelta = TimeDelta::seconds(25);

const AT_ONCE_MS: Goal = Goal::AtMost(120.0);
const SPREAD_MS: Goal = Goal::AtMost(250.0);
const NEVER: Goal = Goal::AtMost(0.0);

pub(super) async fn run(args: &Args, figures: &mut Figures) -> Result<(), Fail> {
    one(args, ("w4 2,000 at once", 2_000, TimeDelta::zero(), AT_ONCE_MS), figures).await?;
    one(args, ("w4 20,000 over 5 s", 20_000, TimeDelta::seconds(5), SPREAD_MS), figures).await
}

async fn one(
    args: &Args,
    (name, timers, over, goal): (&str, i32, TimeDelta, Goal),
    figures: &mut Figures,
) -> Result<(), Fail> {
    let place = Place::make(args.database_url.as_ref()).await?;
    let system = System::start(&place, args.nats_url.as_deref())?;
    let measured = lateness(&system, timers, over).await;
    system.stop().await;
    place.remove().await?;
    let Lateness { late, early } = measured?;
    figures.add(format!("{name}: late p50 ms"), late.ms(0.5));
    figures.add_with_goal(format!("{name}: late p99 ms"), late.ms(0.99), goal);
    figures.add_with_goal(format!("{name}: early"), early, NEVER);
    Ok(())
}

struct Lateness {
    late: Latencies,
    early: f64,
}

async fn lateness(system: &System, timers: i32, over: TimeDelta) -> Result<Lateness, Fail> {
    let clients: Vec<Client> =
        (0..CONNECTIONS).map(|_| Client::connect(&system.address)).collect::<Result<_, _>>()?;
    // The first run waits for the server and the worker to be there.
    clients[0].workflow::<()>(SLEEPS).start(&0_i64).await?.result().await?;
    let first = Utc::now() + AHEAD;
    let start = |number: i32| {
        let client = &clients[number.unsigned_abs() as usize % clients.len()];
        async move {
            let due = first + over * number / timers;
            let run = client.workflow::<()>(SLEEPS).start(&due.timestamp_micros()).await?;
            Ok::<_, Fail>((run, due))
        }
    };
    let mut runs: Vec<(RunHandle<()>, DateTime<Utc>)> =
        stream::iter(0..timers).map(start).buffer_unordered(STARTERS).try_collect().await?;
    if Utc::now() + TimeDelta::seconds(5) > first {
        return Err(Fail::refused(format!(
            "{timers} runs were not started within {}",
            AHEAD - TimeDelta::seconds(5)
        )));
    }
    runs.sort_by_key(|(_, due)| *due);
    let wait = |(run, due): (RunHandle<()>, DateTime<Utc>)| async move {
        run.result().await?;
        Ok::<_, Fail>(Utc::now() - due)
    };
    let mut waiting = stream::iter(runs).map(wait).buffer_unordered(WAITING_MAX);
    let (mut late, mut early) = (Latencies::new()?, 0.0);
    while let Some(lateness) = waiting.try_next().await? {
        match lateness.to_std() {
            Ok(lateness) => late.record(lateness),
            Err(_) => early += 1.0,
        }
    }
    Ok(Lateness { late, early })
}
