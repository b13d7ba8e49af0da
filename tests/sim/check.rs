//! What must hold, told from the store's tables alone.

use std::collections::BTreeSet;

use everstep_core::{Event, EventBody, OpId, Run, RunId, RunStatus, Timestamp};
use everstep_store::RunTables;

use crate::client::Client;
use crate::program::{self, Op};

/// True when a terminal event of the step is recorded.
pub(crate) fn step_ended(history: &[Event], step: OpId) -> bool {
    history.iter().any(|e| match &e.body {
        EventBody::StepCompleted { step: s, .. } => *s == step,
        EventBody::StepFailed { step: s, retry_at, .. } => *s == step && retry_at.is_none(),
        _ => false,
    })
}

/// A history and the tables beside it.
pub(crate) fn history(
    run: RunId,
    history: &[Event],
    tables: Option<&RunTables>,
    now: Timestamp,
) -> Result<(), String> {
    // Gap-free, one start, epochs rise by claims, the end is last: the fold refuses all else.
    let folded = Run::fold(run, history).map_err(|e| e.to_string())?.ok_or("no events")?;
    let tables = tables.ok_or("events without a row")?;
    if folded.projection() != tables.projection {
        return Err(format!(
            "projection differs: fold {:?}, tables {:?}",
            folded.projection(),
            tables.projection
        ));
    }
    let mut ended = BTreeSet::new();
    let mut signals = BTreeSet::new();
    let mut timers = Vec::new();
    for event in history {
        if event.at > now {
            return Err(format!("event {} is from the future", event.seq));
        }
        match &event.body {
            EventBody::StepCompleted { step, .. } if !ended.insert(*step) => {
                return Err(format!("step {step} ended twice"));
            }
            EventBody::SignalReceived { signal_id, .. } if !signals.insert(signal_id.clone()) => {
                return Err(format!("signal {signal_id} was recorded twice"));
            }
            EventBody::TimerStarted { timer, fire_at } => timers.push((*timer, *fire_at)),
            EventBody::TimerFired { timer } => {
                let due = timers.iter().find(|(id, _)| id.0 == timer.id).map(|t| t.1);
                if due.is_some_and(|due| event.at < due) {
                    return Err(format!("timer {} fired early", timer.id));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The run that a client asked for ended as its program and its wishes predict.
pub(crate) fn outcome(client: &Client, history: &[Event]) -> Result<(), String> {
    let starts = history.iter().filter(|e| matches!(e.body, EventBody::RunStarted(_))).count();
    let signals = history.iter().filter(|e| matches!(e.body, EventBody::SignalReceived { .. })).count();
    if starts != 1 || signals < client.acked {
        return Err(format!("{starts} starts, {signals} signals, {} were acknowledged", client.acked));
    }
    let last = history.last().ok_or("no events")?;
    match &last.body {
        EventBody::RunCompleted { .. } => {
            let program = program::generate(client.program);
            let steps = program.iter().map(|op| match op {
                Op::Step { .. } => 1,
                Op::Parallel(branches) => branches.len(),
                Op::Sleep { .. } | Op::Signal => 0,
            });
            let completed =
                history.iter().filter(|e| matches!(e.body, EventBody::StepCompleted { .. })).count();
            let expected: usize = steps.sum();
            if completed != expected {
                return Err(format!("{completed} steps are recorded, the program has {expected}"));
            }
            Ok(())
        }
        EventBody::RunTerminated { .. } if client.terminate => Ok(()),
        other => Err(format!("ended as {} ({})", other.kind(), RunStatus::Failed)),
    }
}
