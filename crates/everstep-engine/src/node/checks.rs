//! Histories that workers hold against their code. A check is a question whose history the caller brings along, so
//! it needs no slot, no claim and no credit, and any worker of the build will do.

use std::collections::BTreeMap;
use std::sync::Arc;

use everstep_core::{AskId, Duration, Event, RunId};

use super::sessions::Session;
use super::{Node, Output};
use crate::{Candidate, CheckTarget, Checked, Error, Said, WorkerOut};

/// The checks that wait for their worker, and whose they are.
#[derive(Debug, Default)]
pub(super) struct Checks {
    open: BTreeMap<AskId, u64>,
}

impl Checks {
    fn of(&self, link: u64) -> usize {
        self.open.values().filter(|&&l| l == link).count()
    }
}

impl Node {
    /// What the workers of a build have that are connected here; `None` when there is no such worker.
    pub fn candidate(&self, namespace: &str, build_id: &str) -> Option<Candidate> {
        let mut found = None;
        for session in self.sessions.values().filter(|s| s.checks_for(namespace, build_id)) {
            let all: &mut Candidate = found.get_or_insert_default();
            all.task_queues.extend(session.queues.iter().map(|q| q.task_queue.clone()));
            all.workflow_types.extend(session.workflow_types.iter().cloned());
        }
        found
    }

    /// A caller wants a history checked.
    pub(super) fn check(
        &mut self,
        check: AskId,
        target: CheckTarget,
        (run_id, events): (RunId, Arc<Vec<Event>>),
        wait: Duration,
    ) {
        if self.draining {
            return self.out.push(Output::Checked { check, result: Err(Error::Stopping) });
        }
        let fits = |s: &Session| {
            s.checks_for(&target.namespace, &target.build_id)
                && s.workflow_types.contains(&target.workflow_type)
        };
        // One that only checks has nothing else to do.
        let link = self
            .sessions
            .iter()
            .filter(|(_, s)| fits(s))
            .min_by_key(|(link, s)| (!s.check_only, self.checks.of(**link), **link))
            .map(|(&link, _)| link);
        let Some(link) = link else {
            let CheckTarget { namespace, build_id, .. } = target;
            let result = Err(Error::NoCandidate { namespace, build_id });
            return self.out.push(Output::Checked { check, result });
        };
        self.checks.open.insert(check, link);
        let message = WorkerOut::Check { check, run_id, events, wait };
        self.out.push(Output::ToWorker { link, message });
    }

    /// What a worker says to a check; false when the answer belongs to something else.
    pub(super) fn check_said(&mut self, link: u64, check: AskId, said: &Said) -> bool {
        if self.checks.open.get(&check) != Some(&link) {
            return false;
        }
        self.checks.open.remove(&check);
        let checked = match said {
            Said::Passed => Checked::Passed,
            Said::Mismatch(blocked) => Checked::Mismatch(blocked.clone()),
            Said::Gone(why) => Checked::Skipped(why.clone()),
            Said::Value(_) | Said::Refused { .. } => {
                Checked::Skipped("the worker answered something else".into())
            }
        };
        self.out.push(Output::Checked { check, result: Ok(checked) });
        true
    }

    /// Nobody waits for a check any longer.
    pub(super) fn check_over(&mut self, check: AskId) {
        if self.checks.open.remove(&check).is_some() {
            self.out.push(Output::Checked { check, result: Err(Error::NoAnswer) });
        }
    }

    /// A stream is gone, and with it what it was to check: it may have been the history that it died of.
    pub(super) fn checks_lost(&mut self, link: u64) {
        let lost: Vec<AskId> =
            self.checks.open.iter().filter(|(_, l)| **l == link).map(|(&check, _)| check).collect();
        for check in lost {
            self.checks.open.remove(&check);
            self.out.push(Output::Checked { check, result: Err(Error::CheckerLost) });
        }
    }
}

#[cfg(test)]
mod tests;
