//! W5: a run of many recorded steps whose worker is gone. How soon another has passed them, and how fast the SDK holds
//! code against a history.

use std::time::Duration;

use everstep::worker::workflow_factory;
use everstep::{Client, Known, Machine};
use everstep_core::{Event, EventBody, RunId};
use tokio::time::Instant;
use uuid::Uuid;

use super::Args;
use super::figures::{Figures, Goal};
use super::place::Place;
use super::system::System;
use super::workloads::{GO, REPLAYS, replays};
use crate::fail::Fail;

const STEPS: u32 = 10_000;
const PARKED_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

const STEPS_PER_S: Goal = Goal::AtLeast(150_000.0);
const EVENTS_PER_S: Goal = Goal::AtLeast(1_000_000.0);

pub(super) async fn run(args: &Args, figures: &mut Figures) -> Result<(), Fail> {
    let place = Place::make(args.database_url.as_ref()).await?;
    let mut system = System::start(&place, args.nats_url.as_deref())?;
    let measured = passed(&mut system, figures).await;
    system.stop().await;
    place.remove().await?;
    measured
}

async fn passed(system: &mut System, figures: &mut Figures) -> Result<(), Fail> {
    let client = Client::connect(&system.address)?;
    let run = client.workflow::<u32>(REPLAYS).start(&STEPS).await?;
    parked(system).await?;
    // Whatever its worker knew of it is gone.
    system.restart_worker().await?;
    client.workflow::<u32>(REPLAYS).start(&0).await?.signal(GO, &1).await?;
    parked(system).await?;
    let began = Instant::now();
    run.signal(GO, &1).await?;
    run.result().await?;
    let took = began.elapsed();
    figures.add("w5 signal to result ms".to_owned(), took.as_secs_f64() * 1_000.0);
    figures.add_with_goal("w5 steps/s".to_owned(), f64::from(STEPS) / took.as_secs_f64(), STEPS_PER_S);
    let mut history = Vec::new();
    let mut events = run.history(0, false).await?;
    while let Some(event) = events.next().await? {
        history.push(event);
    }
    let began = Instant::now();
    hold_against(&history)?;
    let per_s = history.len() as f64 / began.elapsed().as_secs_f64();
    figures.add_with_goal("w5 matcher events/s".to_owned(), per_s, EVENTS_PER_S);
    Ok(())
}

/// The code against the history, as a worker does it, without anything around it.
fn hold_against(history: &[Event]) -> Result<(), Fail> {
    let Some(Event { at, body: EventBody::RunStarted(started), .. }) = history.first() else {
        return Err(Fail::refused("the history does not begin with RunStarted".to_owned()));
    };
    let factory = workflow_factory(replays);
    let mut machine = Machine::new(RunId::from_uuid(Uuid::nil()), started, *at, &factory, Known::of(history));
    for event in history {
        machine.apply(event).map_err(|e| Fail::refused(format!("event {}: {e:?}", event.seq)))?;
    }
    Ok(())
}

async fn parked(system: &System) -> Result<(), Fail> {
    let began = Instant::now();
    // Until it is started, nothing is loaded either.
    tokio::time::sleep(LOOK).await;
    while system.metric("everstep_runs_loaded").await? > 0.0 {
        if began.elapsed() > PARKED_MAX {
            return Err(Fail::refused(format!("the run was not parked within {PARKED_MAX:?}")));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
