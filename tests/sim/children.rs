//! Children of the world's runs: there because another run's history says so, once, and ended as that says.

use std::collections::BTreeSet;

use everstep_core::{ChildOutcome, Event, EventBody, ParentClose, RunId, RunStatus};
use everstep_tests::program::Outcome;

use crate::world::World;

impl World {
    /// Every child that a history speaks of, added to the runs that somebody accounts for.
    pub(crate) fn check_children(&mut self, runs: &mut BTreeSet<RunId>) {
        let mut children = Vec::new();
        for parent in self.watched.keys() {
            let history = self.store.truth().read_events_sync(*parent, 0, usize::MAX);
            for event in &history {
                if let EventBody::ChildScheduled(scheduled) = &event.body {
                    let closed = history.iter().find_map(|e| match &e.body {
                        EventBody::ChildClosed(closed) if closed.child == scheduled.child => {
                            Some(closed.outcome.clone())
                        }
                        _ => None,
                    });
                    children.push((*parent, scheduled.clone(), closed));
                }
            }
        }
        for (parent, scheduled, closed) in children {
            let mine = |run: &RunId| {
                let origin = self.watched.get(run).map(|w| &w.run.start().origin);
                let link = origin.and_then(|origin| origin.parent.as_ref());
                link.is_some_and(|link| link.run_id == parent && link.child == scheduled.child)
            };
            let began: Vec<RunId> = self.watched.keys().copied().filter(mine).collect();
            if began != [scheduled.run_id] {
                self.fail(&format!("child {} of {parent} began as {began:?}", scheduled.child));
            }
            let stopped = scheduled.on_parent_close == ParentClose::Terminate && closed.is_none();
            self.check_child(scheduled.run_id, closed.as_ref(), stopped);
            self.check_told_child(parent, scheduled.run_id);
            if !runs.insert(scheduled.run_id) {
                self.fail(&format!("run {} is the child of two", scheduled.run_id));
            }
            self.totals.children += 1;
        }
    }

    /// What a parent tells its child arrives in the order in which it was asked for, and nobody else tells it anything.
    fn check_told_child(&self, parent: RunId, child: RunId) {
        let history = self.store.truth().read_events_sync(child, 0, usize::MAX);
        let told = history.iter().filter_map(|event| match &event.body {
            EventBody::SignalReceived { signal_id, .. } => Some(signal_id),
            _ => None,
        });
        let prefix = format!("{parent}/");
        let ops: Option<Vec<u32>> = told.map(|id| id.strip_prefix(&prefix)?.parse().ok()).collect();
        if !ops.as_ref().is_some_and(|ops| ops.is_sorted_by(|a, b| a < b)) {
            self.fail(&format!("child {child} was told {ops:?} by {parent}"));
        }
    }

    fn check_child(&mut self, run: RunId, told: Option<&ChildOutcome>, may_be_stopped: bool) {
        let history = self.store.truth().read_events_sync(run, 0, usize::MAX);
        let Some(watched) = self.watched.get(&run) else { self.fail(&format!("child {run} is nowhere")) };
        let Some(ended) = &watched.outcome else { self.fail(&format!("child {run} is still open")) };
        let terminated = *ended == Outcome::Terminated;
        let predicted = watched.predicted();
        let stopped = terminated && may_be_stopped;
        if !(stopped || predicted.admits(ended)) {
            self.fail(&format!("child {run} ended as {ended:?}, predicted was {predicted:?}"));
        }
        if let Some(told) = told
            && !is_so(told, watched.run.status(), &history)
        {
            self.fail(&format!("the parent of {run} was told {told:?}"));
        }
        self.totals.children_stopped += u64::from(terminated);
    }
}

/// What a parent was told is what the child's last event says.
fn is_so(told: &ChildOutcome, status: RunStatus, history: &[Event]) -> bool {
    match (told, history.last().map(|e| &e.body)) {
        (ChildOutcome::Completed(told), Some(EventBody::RunCompleted { result, .. })) => told == result,
        (ChildOutcome::Ended { status: told, failure }, Some(EventBody::RunFailed { failure: said, .. })) => {
            *told == status && failure == said
        }
        (ChildOutcome::Ended { status: told, .. }, Some(_)) => *told == status,
        _ => false,
    }
}
