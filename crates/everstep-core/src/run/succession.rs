//! The run that follows a run: the next one of a workflow that continues as new, and the next attempt of a run that
//! failed. It is decided with the end of the run before it and started in the same append, so there is never both
//! or neither.

use std::collections::BTreeSet;

use everstep_fault::{Bug, planted};
use serde::{Deserialize, Serialize};

use super::Run;
use super::decide::{Draft, check_payload};
use crate::retry::splitmix64;
use crate::start::check_run_timeout;
use crate::{
    Actor, CommandId, Continuation, Digest, Duration, Event, EventBody, Failure, Origin, Rejection,
    RetryDecision, RunId, RunStarted, Seq, Timestamp, WorkerCommit, limits, validate_name,
};

/// The first events of a run that follows another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Successor {
    /// Its id.
    pub run_id: RunId,
    /// How it begins.
    pub start: RunStarted,
    /// What it is given again of the history before it, by seq: signals, and the request to stop.
    pub carried: Vec<Seq>,
    /// The run before it.
    previous: RunId,
    /// When that one ended.
    at: Timestamp,
}

/// A signal that a run before this one took. A repeat of it is no news.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeardSignal {
    /// The sender's id of the signal.
    pub signal_id: String,
    /// What it said.
    pub said: Digest,
    /// When it was received.
    pub at: Timestamp,
}

impl Successor {
    /// Its events, with what it carries taken from the events before it; `None` when some of that is missing there.
    pub fn events<'a>(&self, before: impl IntoIterator<Item = &'a Event>) -> Option<Vec<Event>> {
        let mut events = vec![Event {
            seq: 1,
            at: self.at,
            epoch: 0,
            command_id: CommandId::from_uuid(self.run_id.uuid()),
            actor: Actor::Run(self.previous),
            body: EventBody::RunStarted(Box::new(self.start.clone())),
        }];
        if !self.carried.is_empty() {
            let carried = before.into_iter().filter(|e| self.carried.binary_search(&e.seq).is_ok());
            events.extend(carried.zip(2..).map(|(e, seq)| Event { seq, at: self.at, epoch: 0, ..e.clone() }));
        }
        (events.len() == self.carried.len() + 1).then_some(events)
    }
}

impl Run {
    /// Which attempt of the run this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.start.origin.attempt.max(1)
    }

    /// The first run of its chain; itself when it follows none.
    pub fn first(&self) -> RunId {
        self.start.origin.first.unwrap_or(self.id)
    }

    /// The run that follows it; `None` while it is open, and when none does.
    pub fn successor(&self) -> Option<RunId> {
        self.successor
    }

    /// Whether one of the runs before it took this signal.
    pub(super) fn heard_before(&self, signal_id: &str) -> Option<Digest> {
        let heard = &self.start.origin.heard;
        let found = heard.binary_search_by(|h| h.signal_id.as_str().cmp(signal_id)).ok()?;
        heard.get(found).map(|h| h.said)
    }
}

/// The workflow goes on in a new run.
pub(super) fn continue_as_new(
    draft: &mut Draft<'_>,
    commit: &WorkerCommit,
    next: &Continuation,
) -> Result<(), Rejection> {
    let Continuation { workflow_type, task_queue, input, run_timeout, unconsumed } = next;
    check_payload("input", input)?;
    check_run_timeout(*run_timeout)?;
    for (field, name) in [("workflow_type", workflow_type), ("task_queue", task_queue)] {
        if !name.is_empty() {
            validate_name(field, name)?;
        }
    }
    let run = draft.run;
    let carried = not_taken(run, commit.seen, unconsumed)?;
    let or = |new: &String, old: &String| if new.is_empty() { old.clone() } else { new.clone() };
    let start = RunStarted {
        workflow_type: or(workflow_type, &run.start.workflow_type),
        task_queue: or(task_queue, &run.start.task_queue),
        input: input.clone(),
        run_timeout: run_timeout.or(run.start.run_timeout),
        start_at: None,
        origin: Origin { attempt: 0, ..origin(draft, &carried) },
        notes: run.notes().clone(),
        ..run.start.clone()
    };
    let successor = follow(draft, start, carried.clone());
    draft.push(EventBody::RunContinued { successor, carried });
    Ok(())
}

/// The workflow has failed: the last attempt of the run, or the next one is started.
pub(super) fn fail(draft: &mut Draft<'_>, failure: Failure, unconsumed: &[Seq]) {
    let retried_by = retry(draft, &failure);
    // The next attempt is given all signals again: none of them is left over.
    let unconsumed = if retried_by.is_some() { Vec::new() } else { unconsumed.to_vec() };
    draft.push(EventBody::RunFailed { failure, unconsumed, retried_by });
}

/// The run has outlived its run timeout.
pub(super) fn time_out(draft: &mut Draft<'_>) {
    let retried_by = retry(draft, &timed_out());
    draft.push(EventBody::RunTimedOut { retried_by });
}

/// What a run fails with that outlived its run timeout.
pub(super) fn timed_out() -> Failure {
    Failure::new("RunTimeout", "the run outlived its run timeout")
}

fn retry(draft: &mut Draft<'_>, failure: &Failure) -> Option<RunId> {
    let run = draft.run;
    let policy = run.start.retry.as_ref()?;
    if run.cancel_requested {
        return None;
    }
    let RetryDecision::After(delay) = policy.after_failure(run.attempt(), failure, run.start.seed) else {
        return None;
    };
    let carried: BTreeSet<Seq> = run.signals.values().map(|heard| heard.seq).collect();
    let carried: Vec<Seq> = carried.into_iter().collect();
    let start = RunStarted {
        start_at: (delay > Duration::ZERO).then(|| draft.at.after(delay)),
        origin: Origin { attempt: run.attempt() + 1, ..origin(draft, &carried) },
        notes: run.notes().clone(),
        ..run.start.clone()
    };
    Some(follow(draft, start, carried))
}

/// Refuses what are not signals that the workflow has seen, in order, each once.
pub(super) fn check_unconsumed(run: &Run, seen: Seq, unconsumed: &[Seq]) -> Result<(), Rejection> {
    if unconsumed.is_empty() {
        return Ok(());
    }
    let signals: BTreeSet<Seq> = run.signals.values().map(|heard| heard.seq).collect();
    let ascending = unconsumed.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending || unconsumed.iter().any(|seq| *seq > seen || !signals.contains(seq)) {
        let problem = format!("unconsumed must be signals up to event {seen}, in order, each once");
        return Err(Rejection::InvalidCommands { problem });
    }
    Ok(())
}

/// The request to stop is carried whether or not the workflow has seen it: nobody else could repeat it in time.
fn not_taken(run: &Run, seen: Seq, unconsumed: &[Seq]) -> Result<Vec<Seq>, Rejection> {
    check_unconsumed(run, seen, unconsumed)?;
    let mut carried = unconsumed.to_vec();
    if !planted(Bug::CarrySeenOnly) {
        let signals: BTreeSet<Seq> = run.signals.values().map(|heard| heard.seq).collect();
        carried.extend(signals.range(seen + 1..));
    }
    carried.extend(run.cancel.as_ref().map(|cancel| cancel.seq));
    carried.sort_unstable();
    Ok(carried)
}

/// Where the successor comes from. A signal that was taken is known there for a while, so that its sender may
/// repeat it.
fn origin(draft: &Draft<'_>, carried: &[Seq]) -> Origin {
    let run = draft.run;
    let own = run.signals.iter().filter(|(_, heard)| carried.binary_search(&heard.seq).is_err());
    let own = own.map(|(id, heard)| HeardSignal { signal_id: id.clone(), said: heard.said, at: heard.at });
    let mut heard: Vec<HeardSignal> = own.chain(run.start.origin.heard.iter().cloned()).collect();
    heard.retain(|h| h.at.after(limits::HEARD_FOR) >= draft.at);
    heard.sort_unstable_by(|a, b| b.at.cmp(&a.at).then_with(|| a.signal_id.cmp(&b.signal_id)));
    heard.truncate(limits::HEARD_MAX);
    heard.sort_unstable_by(|a, b| a.signal_id.cmp(&b.signal_id));
    Origin {
        previous: Some(run.id),
        first: Some(run.first()),
        attempt: run.attempt(),
        heard,
        ..run.start.origin.clone()
    }
}

fn follow(draft: &mut Draft<'_>, start: RunStarted, carried: Vec<Seq>) -> RunId {
    let previous = draft.run.id;
    let run_id = RunId::derived(draft.at, &[b"next", previous.as_bytes()]);
    let [.., a, b, c, d, e, f, g, h] = *run_id.as_bytes();
    let seed = splitmix64(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
    let start = RunStarted { seed, request_id: format!("after:{previous}"), ..start };
    draft.follows = Some(Box::new(Successor { run_id, start, carried, previous, at: draft.at }));
    run_id
}
