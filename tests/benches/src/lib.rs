//! What the instruction counts are taken of: a run of many steps, as the core itself writes it.
//!
//! What is *not* here: anything about time. How fast the product is on a machine is what `everstep bench`
//! measures; these counts are the same on each machine, so that a change which makes a path dearer is seen.

use anyhow::{Context as _, bail};
use everstep::{Ctx, Known, Machine, StepError, WorkflowError};
use everstep_core::{
    Actor, Attach, Command, CommandBody, CommandId, CommitCommand, ConflictPolicy, Duration, Event,
    EventBody, OpId, Payload, ReusePolicy, Run, RunId, SessionId, StartDecision, StartRun, Timestamp,
    TraceContext, WorkerCommit, WorkerInfo, decide, decide_start,
};
use everstep_proto::row::EventRow;
use uuid::Uuid;

/// Steps of the run.
pub const STEPS: u32 = 1_000;

const RUN: RunId = RunId::from_uuid(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001));
const SESSION: SessionId = SessionId::from_uuid(Uuid::from_u128(2));
const CLAIM: CommandId = CommandId::from_uuid(Uuid::from_u128(3));
const STARTED_MICROS: i64 = 1_700_000_000_000_000;

/// A run after the claim, and what its worker commits from there on: one step at a time.
#[derive(Debug)]
pub struct Script {
    /// The run, owned by a worker.
    pub run: Run,
    /// Its history so far.
    pub history: Vec<Event>,
    /// The commits to come.
    pub commits: Vec<Command>,
}

/// The run before its first step.
///
/// # Errors
/// When the core refuses it.
pub fn script() -> anyhow::Result<Script> {
    let now = Timestamp::from_micros(STARTED_MICROS);
    let StartDecision::Start { event, .. } = decide_start(&start(), (RUN, 5), None, None, now)? else {
        bail!("a start without a predecessor did not start");
    };
    let mut run = Run::begin(RUN, &event)?;
    let attach = Attach::by(SESSION, worker());
    let claim = Command { id: CLAIM, actor: actor(), body: CommandBody::Attach(attach) };
    let mut history = vec![*event];
    for event in decide(&run, &claim, now)?.events {
        run.apply(&event)?;
        history.push(event);
    }
    let commits = (1..=STEPS).map(|number| commit(&run, number)).collect();
    Ok(Script { run, history, commits })
}

fn start() -> StartRun {
    StartRun {
        namespace: "default".into(),
        workflow_id: "order/1".into(),
        workflow_type: "order".into(),
        task_queue: "default".into(),
        input: Payload::json(STEPS.to_string()),
        request_id: "request-1".into(),
        run_timeout: None,
        reuse: ReusePolicy::Allow,
        conflict: ConflictPolicy::Fail,
        trace: TraceContext::default(),
        identity: "client-1".into(),
        ..StartRun::default()
    }
}

fn worker() -> WorkerInfo {
    WorkerInfo { identity: "worker-1".into(), build_id: "build-1".into() }
}

fn actor() -> Actor {
    Actor::Worker("worker-1".into())
}

fn commit(run: &Run, number: u32) -> Command {
    let step = CommitCommand::CompleteStep {
        step: OpId(number),
        name: "step".into(),
        attempt: 1,
        elapsed: Duration::from_micros(1_500),
        result: Payload::json(format!("\"{number:0>98}\"")),
    };
    let commit =
        WorkerCommit { epoch: run.epoch(), number, seen: run.seq(), commands: vec![step], ahead: None };
    let id = CommandId::of_worker(run.id(), run.epoch(), number);
    Command { id, actor: actor(), body: CommandBody::Commit(commit) }
}

/// Decides and applies every commit; what the engine does for each, without its IO.
///
/// # Errors
/// When the core refuses one.
pub fn decide_all(mut script: Script) -> anyhow::Result<Script> {
    let now = Timestamp::from_micros(STARTED_MICROS + 1);
    for command in &script.commits {
        for event in decide(&script.run, command, now)?.events {
            script.run.apply(&event)?;
            script.history.push(event);
        }
    }
    Ok(script)
}

/// The whole history.
///
/// # Errors
/// As [`decide_all`].
pub fn history() -> anyhow::Result<Vec<Event>> {
    Ok(decide_all(script()?)?.history)
}

/// Folds a history into the run.
///
/// # Errors
/// When it is none.
pub fn fold(history: &[Event]) -> anyhow::Result<Run> {
    Run::fold(RUN, history)?.context("the history is empty")
}

/// A history as rows of the log.
pub fn encode(history: &[Event]) -> Vec<EventRow> {
    history.iter().map(|event| EventRow::encode(RUN, event)).collect()
}

/// Rows of the log as a history.
///
/// # Errors
/// When a row is none.
pub fn decode(rows: Vec<EventRow>) -> anyhow::Result<Vec<Event>> {
    Ok(rows.into_iter().map(EventRow::decode).collect::<Result<_, _>>()?)
}

/// Holds the workflow's code against a history, event by event, and gives the last event it has seen.
///
/// # Errors
/// When they do not fit.
pub fn replay(history: &[Event]) -> anyhow::Result<u64> {
    let Some(Event { at, body: EventBody::RunStarted(started), .. }) = history.first() else {
        bail!("the history does not begin with RunStarted");
    };
    let factory = everstep::worker::workflow_factory(workflow);
    let mut machine = Machine::new(RUN, started, *at, &factory, Known::of(history));
    for event in history {
        if let Err(obstacle) = machine.apply(event) {
            bail!("event {}: {obstacle:?}", event.seq);
        }
    }
    Ok(machine.seen())
}

async fn workflow(ctx: Ctx, steps: u32) -> Result<u32, WorkflowError> {
    for _ in 0..steps {
        let _: String = ctx.step("step", || async { Ok::<_, StepError>(String::new()) }).await?;
    }
    Ok(steps)
}

#[cfg(test)]
mod tests;
