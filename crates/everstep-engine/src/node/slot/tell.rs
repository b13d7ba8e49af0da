//! What the owner of a run, its clients and other nodes are told.

use std::sync::Arc;
use std::time::Duration as StdDuration;

use everstep_core::{Epoch, Event, Rejection, Run, RunId, WorkerCommit, Write};
use everstep_dispatch::{Notice, TaskHint};

use super::give_back::evicts;
use super::{Job, Told};
use crate::WorkerOut;
use crate::node::deliveries::Heard;
use crate::node::hints::run_hint;
use crate::node::{Node, Output};

/// Room for so many runs is kept.
const SLOTS_KEPT: usize = 1_024;

impl Node {
    /// Sends events to the stream that holds the run.
    pub(super) fn tell_owner(&mut self, run_id: RunId, events: &Arc<Vec<Event>>) {
        let Some(slot) = self.slots.get_mut(&run_id) else { return };
        let (Some(run), Some((link, epoch))) = (&slot.run, slot.told) else { return };
        let from = slot.sent + 1;
        if events.last().is_none_or(|e| e.seq < from) {
            return;
        }
        if events.first().is_some_and(|e| e.seq > from) {
            // A worker that came back with less than this node has in memory: read what lies between.
            slot.behind = true;
            return;
        }
        slot.sent = run.seq();
        let committed = if run.epoch() == epoch { run.committed() } else { u32::MAX };
        let message = WorkerOut::Events { run_id, epoch, events: Arc::clone(events), from, committed };
        self.out.push(Output::ToWorker { link, message });
    }

    /// Tells everyone else what an append changed.
    pub(super) fn announce(&mut self, run_id: RunId, writes: &[Write]) {
        let Some(run) = self.slots.get(&run_id).and_then(|s| s.run.as_ref()) else { return };
        let closed = run.status().is_closed();
        self.out.push(Output::Tail(run_id, run.seq()));
        for write in writes {
            match write {
                // A hint that only this node sees is for its own workers; the others' find the task by the sweep.
                Write::TaskSet(task)
                    if self.config.hints_shared || !self.config.shared || self.link_for(task).is_some() =>
                {
                    let trace = run.start().trace.of_run(run_id);
                    self.out.push(Output::Publish(TaskHint { trace, ..run_hint(run_id, task.clone()) }));
                }
                Write::TimerSet(timer) => self.out.push(Output::TimersAt(timer.fire_at)),
                _ => {}
            }
        }
        let owned_here = run.owner().is_some_and(|o| self.links.contains_key(&o.session));
        if self.config.shared && (closed || !owned_here) {
            let node = self.config.node_id;
            self.out.push(Output::Notify(Notice { run_id, tail: run.seq(), closed, node, asked: false }));
        }
        if closed {
            self.status.runs_closed += 1;
            self.out.push(Output::RunClosed(run.clone()));
        }
        self.announce_steps(run_id, writes);
    }

    /// Answers whoever asked for the jobs of a batch.
    pub(super) fn answer(&mut self, run_id: RunId, jobs: Vec<(Job, Result<(), Rejection>)>) {
        for (job, result) in jobs {
            match job {
                Job::Client { request, command, .. } => {
                    self.answer_client(run_id, request, &command.body, result);
                }
                Job::Commit { link, commit, .. } => self.answer_commit(run_id, link, &commit, result),
                Job::Offer { token: Some(token), .. } => self.out.push(Output::Ack(token)),
                Job::Step { job, .. } => self.step_decided(&job, result),
                Job::Deliver { flight, told, .. } => {
                    let heard = match (told, result) {
                        (Told::Stranger, _) => Heard::Nobody,
                        (_, Err(rejection)) => Heard::Refused(rejection),
                        (told, Ok(())) => Heard::Taken { wrote: told == Told::Events },
                    };
                    self.heard(flight, heard);
                }
                Job::Offer { token: None, .. } | Job::Fire { .. } | Job::Lose { .. } | Job::Look => {}
            }
        }
    }

    pub(super) fn answer_commit(
        &mut self,
        run_id: RunId,
        link: u64,
        commit: &WorkerCommit,
        result: Result<(), Rejection>,
    ) {
        let epoch = commit.epoch;
        match result {
            Err(rejection) => {
                if matches!(rejection, Rejection::Fenced { .. }) {
                    self.status.fenced += 1;
                }
                let evicted = evicts(&rejection);
                let message = WorkerOut::Rejected { run_id, epoch, number: commit.number, rejection };
                self.out.push(Output::ToWorker { link, message });
                if evicted {
                    self.forget_told(run_id, (link, epoch));
                }
            }
            Ok(()) => {
                // A commit that was recorded before is acknowledged again.
                let Some(slot) = self.slots.get(&run_id) else { return };
                let committed = slot.run.as_ref().map_or(0, |run| run.committed());
                if slot.told == Some((link, epoch)) && committed >= commit.number {
                    let events = Arc::new(Vec::new());
                    let from = slot.sent + 1;
                    let message = WorkerOut::Events { run_id, epoch, events, from, committed };
                    self.out.push(Output::ToWorker { link, message });
                }
            }
        }
    }

    /// The stream does not hold the run any more under that epoch; it may under a newer one.
    pub(super) fn forget_told(&mut self, run_id: RunId, told: (u64, Epoch)) {
        if let Some(slot) = self.slots.get_mut(&run_id)
            && slot.told == Some(told)
        {
            slot.told = None;
            if let Some(session) = self.sessions.get_mut(&told.0) {
                session.runs.remove(&run_id);
            }
        }
    }

    /// Brings what the worker was told in line with who owns the run. `whole` is the run's history when
    /// the caller has all of it at hand.
    pub(super) fn reconcile(&mut self, run_id: RunId, whole: Option<Arc<Vec<Event>>>) {
        let Some(slot) = self.slots.get_mut(&run_id) else { return };
        let Some(run) = &slot.run else { return };
        let owner = run.owner().map(|o| o.session);
        let link = owner.and_then(|s| self.links.get(&s).copied());
        // A worker that takes its session up again says what it holds; until that is compared with what it
        // owns, nothing is sent.
        let link = link.filter(|l| self.sessions.get(l).is_some_and(|s| !s.resuming));
        let epoch = run.epoch();
        for (&l, session) in &mut self.sessions {
            if Some(l) != link {
                session.runs.remove(&run_id);
            }
        }
        if slot.told.is_some() && slot.told != link.map(|l| (l, epoch)) {
            // The last thing the old owner was sent says why: parked, closed, or lost.
            if let Some((old, old_epoch)) = slot.told.take()
                && owner.is_some()
            {
                let message = WorkerOut::Evict { run_id, epoch: old_epoch, reason: "another worker owns it" };
                self.out.push(Output::ToWorker { link: old, message });
            }
        }
        let Some(link) = link else { return };
        if slot.told.is_some() {
            return;
        }
        let Some(events) = whole.or_else(|| slot.history.take().map(Arc::new)) else {
            // The claim is committed; the history that goes with it has to be read first.
            slot.run = None;
            return self.load(run_id, 0, StdDuration::ZERO);
        };
        slot.told = Some((link, epoch));
        slot.sent = run.seq();
        slot.next_number = None;
        if let Some(session) = self.sessions.get_mut(&link) {
            session.runs.insert(run_id);
        }
        self.out.push(Output::Opened(run_id));
        let message = WorkerOut::Activate { run_id, epoch, events, base: None };
        self.out.push(Output::ToWorker { link, message });
    }

    /// A run that is not owned here and has nothing in flight costs no memory.
    pub(super) fn let_go_if_idle(&mut self, run_id: RunId) {
        let Some(slot) = self.slots.get_mut(&run_id) else { return };
        slot.history = None;
        let told = slot.told.is_some();
        if told || !slot.is_idle() {
            return;
        }
        let owned_here =
            slot.run.as_deref().and_then(Run::owner).is_some_and(|o| self.links.contains_key(&o.session));
        if !owned_here {
            self.slots.remove(&run_id);
            // What a burst of runs took is given back, and not for a lull: the next would have to take it again.
            let (len, room) = (self.slots.len(), self.slots.capacity());
            if room > SLOTS_KEPT && len < room / 8 {
                self.slots.shrink_to(room / 4);
            }
            self.out.push(Output::Dropped(run_id));
        }
    }
}
