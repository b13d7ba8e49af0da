//! Successors: runs that are started in the append that ends the run before them.
//!
//! What the new run is given again comes from the history of the old one. It is seldom anything, so the history is
//! read only then, and the end is decided once more when it is there.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use everstep_core::{Event, Run, RunId, Successor, WriteBasis};
use everstep_store::{Append, RunAppend, StartClaim};

use super::Node;
use super::slot::Job;

/// A run that an append starts besides what it does to the run before it.
#[derive(Debug)]
pub(super) struct Succession {
    run: Run,
    /// The stream of the worker that it is started for.
    claimed: Option<u64>,
}

impl Node {
    /// The run that follows, as the append of the old run's end has to hold it. `None` when the history of the old
    /// run is needed for that and not in memory.
    pub(super) fn succeed(
        &mut self,
        old: RunId,
        next: &Successor,
        history: &[&[Event]],
    ) -> Option<(Succession, RunAppend)> {
        let mut events = next.events(history.iter().copied().flatten())?;
        let mut run = Run::fold(next.run_id, &events).ok().flatten()?;
        let claimed =
            if run.needs_worker() { self.claim_successor(old, &mut run, &mut events) } else { None };
        let writes = WriteBasis::NEW.writes(&run, &events);
        let start = Some(StartClaim {
            namespace: run.start().namespace.clone(),
            workflow_id: run.start().workflow_id.clone(),
            expected: Some(old),
            request_id: run.start().request_id.clone(),
            // Nobody can send this request: it is no body's repeat.
            body_hash: [0; 32],
        });
        self.successors.insert(next.run_id, false);
        let append = RunAppend { run_id: next.run_id, start, events: Arc::new(events), writes };
        Some((Succession { run, claimed }, append))
    }

    /// Claims the new run for a worker that is connected here. The room of the old one is free by then.
    fn claim_successor(&mut self, old: RunId, run: &mut Run, events: &mut Vec<Event>) -> Option<u64> {
        let mut held = Vec::new();
        for (&link, session) in &mut self.sessions {
            if session.runs.remove(&old) {
                held.push(link);
            }
        }
        let claimed = self.attach_at_start(run, events);
        for link in held {
            if let Some(session) = self.sessions.get_mut(&link) {
                session.runs.insert(old);
            }
        }
        claimed
    }

    /// The append that started it is committed.
    pub(super) fn succeeded(&mut self, next: Succession, append: RunAppend) {
        let Succession { run, claimed } = next;
        // Its worker may have had it from the log meanwhile, and let go of it again.
        let overtaken = self.successors.remove(&run.id()).unwrap_or_default();
        self.adopt_started(run, Append::of(append), claimed, overtaken);
    }

    /// The append that was to start it was given up. If nobody knows what became of an earlier try, the run may be
    /// there, and owned by a worker that is connected here.
    pub(super) fn not_succeeded(&mut self, next: &Succession, doubtful: bool) {
        let run_id = next.run.id();
        self.successors.remove(&run_id);
        for session in self.sessions.values_mut() {
            session.runs.remove(&run_id);
        }
        if doubtful {
            self.add_job(run_id, Job::Look);
        }
    }
}
