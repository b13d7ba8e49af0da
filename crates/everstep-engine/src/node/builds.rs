//! Which worker may have a run: it has to have the code, and be of the build that the run belongs to, or continue it.

use std::collections::BTreeSet;

use everstep_core::{Attach, QueueKey, Run, RunStatus, TaskRow};
use everstep_fault::{Bug, planted};
use everstep_store::{AllowedBuild, RunWant, Serves, ServesSteps};

use super::sessions::Session;
use super::{Node, Output};
use crate::Hello;

/// What a Hello says of the code, and what that means for runs.
#[derive(Debug)]
pub(super) struct Code {
    /// Types whose runs stay with the worker's build.
    pinned: BTreeSet<String>,
    /// Builds whose runs it goes on with.
    continues: Vec<String>,
    /// Tasks may have been looked at before it came, and their next look may be far.
    impatient: bool,
}

impl Code {
    pub(super) fn of(hello: &Hello) -> Self {
        let (pinned, continues) = (hello.pinned_types.iter().cloned().collect(), hello.continues.clone());
        Self { pinned, continues, impatient: true }
    }
}

/// What a session is there for, as the store keeps it.
pub(super) fn serves(hello: &Hello) -> Serves {
    let offer = hello.steps.as_ref().filter(|offer| !hello.check_only && !offer.types.is_empty());
    let steps = offer.map(|offer| ServesSteps {
        task_queues: hello.task_queues.clone(),
        names: offer.types.clone(),
        slots: offer.slots,
    });
    if hello.run_slots == 0 {
        return Serves { steps, ..Serves::default() };
    }
    Serves {
        task_queues: hello.task_queues.clone(),
        workflow_types: hello.workflow_types.clone(),
        continues: hello.continues.clone(),
        run_slots: hello.run_slots,
        steps,
    }
}

impl Session {
    /// Builds other than its own whose runs of a queue it may go on with.
    fn compatible(&self, queue: &QueueKey, allowed: &BTreeSet<AllowedBuild>) -> Vec<String> {
        let allowed = allowed.iter().filter(|a| a.queue == *queue && a.build_id == self.worker.build_id);
        self.code.continues.iter().chain(allowed.map(|a| &a.continues)).cloned().collect()
    }

    /// Whether it may have a run, as far as its code goes.
    fn suits(&self, task: &TaskRow, allowed: &BTreeSet<AllowedBuild>) -> bool {
        let types = &self.workflow_types;
        let has_it = types.is_empty() || task.workflow_type.is_empty() || types.contains(&task.workflow_type);
        let fits = || {
            task.build_id.is_empty()
                || task.build_id == self.worker.build_id
                || self.compatible(&task.queue, allowed).contains(&task.build_id)
        };
        self.queues.contains(&task.queue) && has_it && fits()
    }
}

impl Node {
    /// The stream of the worker with the most room among those that may have a run, if any has some.
    pub(super) fn link_for(&self, task: &TaskRow) -> Option<u64> {
        self.link_among(task, |_| true)
    }

    /// As [`link_for`](Self::link_for): the code that a blocked run could not go on with is not worth a try.
    pub(super) fn link_for_run(&self, run: &Run) -> Option<u64> {
        let blocked = run.status() == RunStatus::Blocked;
        self.link_among(&run.task(), |s| !blocked || s.worker.build_id != run.build_id())
    }

    fn link_among(&self, task: &TaskRow, wanted: impl Fn(&Session) -> bool) -> Option<u64> {
        if self.draining {
            return None;
        }
        self.sessions
            .iter()
            .filter(|(_, s)| s.credit() > 0 && wanted(s) && s.suits(task, &self.allowed))
            .max_by_key(|(link, s)| (s.credit(), std::cmp::Reverse(**link)))
            .map(|(&link, _)| link)
    }

    /// Whether a worker is connected here that may have a run, whatever it has to do now.
    pub(super) fn is_served_here(&self, task: &TaskRow) -> bool {
        self.sessions.values().any(|s| s.takes_runs() && s.suits(task, &self.allowed))
    }

    /// The claim of a worker that is connected here.
    pub(super) fn attach_of(&self, link: u64, run: &Run) -> Option<Attach> {
        let session = self.sessions.get(&link)?;
        Some(Attach {
            session: session.id,
            worker: session.worker.clone(),
            pinned: session.code.pinned.contains(&run.start().workflow_type),
            compatible: run.pin().map_or_else(Vec::new, |_| session.compatible(&run.queue(), &self.allowed)),
        })
    }

    /// What the workers connected here can take that have room: for a look at the tasks. A worker that has come since
    /// the last one is impatient.
    pub fn run_wants(&mut self) -> Vec<RunWant> {
        let mut wants = BTreeSet::new();
        let allowed = &self.allowed;
        for session in self.sessions.values_mut().filter(|s| s.credit() > 0) {
            // A sweep that goes by ids has no second look either.
            let impatient = std::mem::take(&mut session.code.impatient) && !planted(Bug::GreatestIdCursor);
            for queue in &session.queues {
                let mut builds = session.compatible(queue, allowed);
                builds.push(session.worker.build_id.clone());
                let workflow_types = session.workflow_types.iter().cloned().collect();
                wants.insert(RunWant { queue: queue.clone(), workflow_types, builds, impatient });
            }
        }
        wants.into_iter().collect()
    }

    /// What operators allow. Runs that waited for it are looked for.
    pub(super) fn allowed_builds(&mut self, allowed: Vec<AllowedBuild>) {
        let allowed = allowed.into_iter().collect();
        if self.allowed == allowed {
            return;
        }
        self.allowed = allowed;
        for session in self.sessions.values_mut().filter(|s| s.takes_runs()) {
            session.code.impatient = true;
            for queue in &session.queues {
                let (queue, build_id) = (queue.clone(), session.worker.build_id.clone());
                self.out.push(Output::FindBlocked { queue, build_id });
            }
        }
    }
}

#[cfg(test)]
mod tests;
