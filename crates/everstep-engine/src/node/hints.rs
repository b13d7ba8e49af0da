//! Hints: which queues are pulled from, and what becomes of a hint that came.
//!
//! A pull is out for every queue whose workers here have room, and answered once. So there is something to do only for
//! queues without one, and while each has its pull an input costs nothing here.

use std::collections::BTreeSet;

use everstep_core::{QueueKey, RunId, TaskRow, TraceContext};
use everstep_dispatch::{Delivery, HintKind, HintQueue, TaskHint};

use super::sessions::Session;
use super::slot::Job;
use super::{Node, Output};

/// Nodes that may hand a hint on, one after the other, because none of their workers has what it asks for. Then the
/// sweep finds what it was about, as it finds whatever is lost.
const PASSES_MAX: u32 = 16;

/// A hint that a run waits.
pub(in crate::node) fn run_hint(run_id: RunId, task: TaskRow) -> TaskHint {
    let TaskRow { queue, workflow_type, build_id } = task;
    TaskHint { needs: workflow_type, build_id, ..TaskHint::new(run_id, HintQueue::runs(queue)) }
}

/// Queues that workers here serve.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    under_way: BTreeSet<HintQueue>,
    /// Without a pull: nobody has had room since the last one was answered.
    idle: Vec<HintQueue>,
}

impl Pulls {
    fn serve(&mut self, place: HintQueue) {
        if !self.under_way.contains(&place) && !self.idle.contains(&place) {
            self.idle.push(place);
        }
    }
}

impl Node {
    /// A worker has come, for these queues.
    pub(super) fn pull_for(&mut self, link: u64) {
        let Some(session) = self.sessions.get(&link) else { return };
        let runs = session.takes_runs().then_some(HintKind::Run);
        let steps = session.steps.as_ref().map(|_| HintKind::Step);
        for kind in runs.into_iter().chain(steps) {
            for queue in session.queues.iter().cloned() {
                self.pulls.serve(HintQueue { kind, queue });
            }
        }
    }

    /// A worker has gone: its queues may be nobody's.
    pub(super) fn pull_less(&mut self) {
        let Self { pulls, sessions, .. } = self;
        pulls.idle.retain(|place| sessions.values().any(|session| session.pulls(place)));
    }

    /// Asks dispatch for as many hints as the workers have room.
    pub(super) fn pull(&mut self) {
        if self.draining || self.pulls.idle.is_empty() {
            return;
        }
        let Self { pulls: Pulls { under_way, idle }, sessions, out, now, .. } = self;
        idle.retain(|place| {
            let rooms = sessions.values_mut().map(|session| match place.kind {
                HintKind::Run => (session.credit(), session),
                HintKind::Step => (session.steps.as_mut().map_or(0, |work| work.room(*now)), session),
            });
            let here = rooms.filter(|(room, session)| *room > 0 && session.queues.contains(&place.queue));
            let max = here.fold(0, |sum: usize, (room, _)| sum.saturating_add(room));
            if max > 0 {
                under_way.insert(place.clone());
                out.push(Output::Pull { queue: place.clone(), max });
            }
            max == 0
        });
    }

    /// The answer to a pull.
    pub(super) fn hints(&mut self, place: HintQueue, deliveries: Vec<Delivery>) {
        self.pulls.under_way.remove(&place);
        if self.sessions.values().any(|session| session.pulls(&place)) {
            self.pulls.serve(place.clone());
        }
        match place.kind {
            HintKind::Run => self.run_hints(&place.queue, deliveries),
            HintKind::Step => self.step_hints(&place.queue, deliveries),
        }
    }

    fn run_hints(&mut self, queue: &QueueKey, deliveries: Vec<Delivery>) {
        for Delivery { hint, token, .. } in deliveries {
            if !self.link_with_credit(queue) {
                // The room it was pulled for is taken: another node may have some.
                self.out.push(Output::Ack(token));
                self.out.push(Output::Publish(hint));
            } else if self.is_for_others(&hint) {
                self.out.push(Output::Ack(token));
                self.pass_on(hint);
            } else {
                self.add_job(hint.run_id, Job::Offer { token: Some(token), verified: false });
            }
        }
    }

    /// Their queue has something: hints about steps are pokes, and one does for all.
    fn step_hints(&mut self, queue: &QueueKey, deliveries: Vec<Delivery>) {
        let (mut here, mut others) = (None, Vec::<TaskHint>::new());
        for Delivery { hint, token, .. } in deliveries {
            self.out.push(Output::Ack(token));
            if !self.is_for_others(&hint) {
                here.get_or_insert(hint);
            } else if !others.iter().any(|other| other.needs == hint.needs) {
                others.push(hint);
            }
        }
        match here {
            Some(_) if self.has_room_for(queue) => self.claim_steps(queue),
            // The room it was pulled for is taken: another node may have some.
            Some(hint) => self.out.push(Output::Publish(hint)),
            None => {}
        }
        others.into_iter().for_each(|hint| self.pass_on(hint));
    }

    /// Whether no worker here has what the hint asks for, and one elsewhere may. A node that is alone would only hear
    /// of it again.
    fn is_for_others(&self, hint: &TaskHint) -> bool {
        let TaskHint { needs, build_id, queue, .. } = hint;
        if !self.config.hints_shared || (needs.is_empty() && build_id.is_empty()) {
            return false;
        }
        match hint.kind {
            HintKind::Run => {
                let (queue, workflow_type) = (queue.clone(), needs.clone());
                !self.is_served_here(&TaskRow { queue, workflow_type, build_id: build_id.clone() })
            }
            HintKind::Step => !self.sessions.values().any(|s| s.queues.contains(queue) && s.has_step(needs)),
        }
    }

    fn pass_on(&mut self, hint: TaskHint) {
        let passes = hint.passes.saturating_add(1);
        if passes <= PASSES_MAX {
            self.out.push(Output::Publish(TaskHint { passes, ..hint }));
        }
    }

    /// A worker of `queue` that is connected here can take a run.
    fn link_with_credit(&self, queue: &QueueKey) -> bool {
        !self.draining && self.sessions.values().any(|s| s.credit() > 0 && s.queues.contains(queue))
    }

    /// A worker of `queue` that is connected here can take an attempt.
    pub(super) fn has_room_for(&mut self, queue: &QueueKey) -> bool {
        let now = self.now;
        let mut here = self.sessions.values_mut().filter(|s| s.queues.contains(queue));
        !self.draining && here.any(|session| session.steps.as_mut().is_some_and(|work| work.room(now) > 0))
    }

    /// Tells whoever has room that a queue has something, for a worker that has the step if its name is known.
    pub(super) fn offer_step(
        &mut self,
        run_id: RunId,
        queue: QueueKey,
        (needs, trace): (String, TraceContext),
    ) {
        let hint = TaskHint { needs, trace, ..TaskHint::new(run_id, HintQueue::steps(queue)) };
        self.out.push(Output::Publish(hint));
    }
}

impl Session {
    /// Whether its worker is one that hints are pulled for, when it has room.
    fn pulls(&self, place: &HintQueue) -> bool {
        let kind = match place.kind {
            HintKind::Run => self.takes_runs(),
            HintKind::Step => self.steps.is_some(),
        };
        kind && self.queues.contains(&place.queue)
    }

    /// Whether its worker has the step of a name, and takes such things at all.
    fn has_step(&self, name: &str) -> bool {
        self.steps.as_ref().is_some_and(|work| work.takes(name))
    }
}
