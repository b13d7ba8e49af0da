//! Bugs that tests plant in a node, to see that their checks can fail. Without the feature `planted-bugs` every
//! function here returns at once, and the compiler removes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration as StdDuration;

use everstep_core::{CommandBody, Rejection, RunId, Seq, TaskRow, Write};
use everstep_fault::{Bug, planted};
use everstep_store::Append;

use super::slot::{Job, Writing};
use super::{Node, Output};
use crate::{Error, Started};

/// What some of the bugs remember.
#[derive(Debug, Default)]
pub(super) struct Planted {
    greatest: Option<RunId>,
    signals: BTreeSet<(RunId, String)>,
    requests: BTreeMap<String, RunId>,
    /// Decisions that lost their race, to be appended behind what won.
    beaten: BTreeMap<RunId, Writing>,
}

impl Node {
    /// Submits an append.
    pub(super) fn submit(&mut self, ticket: u64, append: &Append, delay: StdDuration) {
        let mut append = append.clone();
        if planted(Bug::HintsAsTruth) {
            append.run.writes.retain(|w| !matches!(w, Write::TaskSet(_)));
        }
        self.out.push(Output::Append { ticket, append, delay });
    }

    /// `ReplyBeforeCommit`.
    pub(super) fn reply_early(&mut self, jobs: &mut Vec<(Job, Result<(), Rejection>)>) {
        if planted(Bug::ReplyBeforeCommit) {
            let (clients, rest) = std::mem::take(jobs)
                .into_iter()
                .partition(|(job, result)| matches!(job, Job::Client { .. }) && result.is_ok());
            *jobs = rest;
            for (job, result) in clients {
                if let Job::Client { request, .. } = job {
                    self.out.push(Output::Done { request, result: result.map_err(Error::Rejected) });
                }
            }
        }
    }

    /// `DedupeInMemory`: true when this node remembers the signal.
    pub(super) fn remembers(&mut self, run: RunId, body: &CommandBody) -> bool {
        let CommandBody::Signal { signal_id, .. } = body else { return false };
        planted(Bug::DedupeInMemory) && !self.planted.signals.insert((run, signal_id.clone()))
    }

    /// `BlindRetry` and `ReadBeforeClaim`: keeps what was decided on a state that has changed. Gives the append
    /// back when it is to be decided again, as it has to be.
    pub(super) fn keep_beaten(&mut self, run_id: RunId, writing: Writing) -> Option<Writing> {
        let bug = if writing.tries > 0 { Bug::BlindRetry } else { Bug::ReadBeforeClaim };
        if !planted(bug) {
            return Some(writing);
        }
        self.planted.beaten.insert(run_id, writing);
        if let Some(slot) = self.slots.get_mut(&run_id) {
            slot.run = None;
            slot.history = None;
        }
        self.load(run_id, 0, StdDuration::ZERO);
        None
    }

    /// The other half of [`keep_beaten`](Self::keep_beaten), once the run is loaded again.
    pub(super) fn append_beaten(&mut self, run_id: RunId) {
        if !planted(Bug::BlindRetry) && !planted(Bug::ReadBeforeClaim) {
            return;
        }
        let Some(mut writing) = self.planted.beaten.remove(&run_id) else { return };
        let ticket = self.ticket();
        let Some(slot) = self.slots.get_mut(&run_id) else { return };
        let Some(run) = &mut slot.run else { return };
        let mut events = (*writing.append.run.events).clone();
        for (event, seq) in events.iter_mut().zip(run.seq() + 1..) {
            event.seq = seq;
            let _ = run.apply(event);
        }
        writing.append.run.events = Arc::new(events);
        writing.tries = 0;
        let append = writing.append.clone();
        slot.writing = Some(writing);
        self.tickets.insert(ticket, run_id);
        self.submit(ticket, &append, StdDuration::ZERO);
    }

    /// `GreatestIdCursor`.
    pub(super) fn only_new(&mut self, tasks: &mut Vec<(RunId, TaskRow)>) {
        if planted(Bug::GreatestIdCursor) {
            let seen = self.planted.greatest;
            tasks.retain(|(run, _)| seen.is_none_or(|s| *run > s));
            self.planted.greatest = tasks.iter().map(|(run, _)| *run).max().max(seen);
        }
    }

    /// `DropWakeWhenBusy`.
    pub(super) fn drops(&self, run: RunId) -> bool {
        planted(Bug::DropWakeWhenBusy) && self.slots.get(&run).is_some_and(|s| !s.is_idle())
    }

    /// `RequestIdWithoutNamespace`: the run that the request id started, in whatever namespace.
    pub(super) fn started_anywhere(&self, request_id: &str) -> Option<Started> {
        let run_id =
            *self.planted.requests.get(request_id).filter(|_| planted(Bug::RequestIdWithoutNamespace))?;
        Some(Started { run_id, started: false })
    }

    /// Remembers it for [`started_anywhere`](Self::started_anywhere).
    pub(super) fn remember_start(&mut self, request_id: &str, run_id: RunId) {
        if planted(Bug::RequestIdWithoutNamespace) {
            self.planted.requests.insert(request_id.to_owned(), run_id);
        }
    }

    /// Deletes the wakes that a busy run is not going to see.
    pub(super) fn forget_wake(&mut self, run: RunId, seq: Seq) {
        self.out.push(Output::DeleteWakes(vec![(run, seq)]));
    }
}
