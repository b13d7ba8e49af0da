//! Workers: their streams, sessions, credit, and the tasks that find them.

use std::collections::BTreeSet;

use everstep_core::{QueueKey, RunId, Seq, SessionId, TaskRow, Timestamp, WorkerInfo};
use everstep_dispatch::Notice;
use everstep_store::{self as store, AskWant, SessionRow};

use super::builds::{Code, serves};
use super::hints::run_hint;
use super::slot::Job;
use super::steps::Work;
use super::{Node, Output};
use crate::api::queues_of;
use crate::{HeldRun, Hello, WorkerIn, WorkerOut};

/// An open session whose worker is connected here.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) queues: Vec<QueueKey>,
    pub(super) worker: WorkerInfo,
    pub(super) workflow_types: BTreeSet<String>,
    /// It answers questions.
    pub(super) asks: bool,
    /// It holds histories against its code.
    checks: bool,
    /// It does nothing else.
    pub(super) check_only: bool,
    /// What of runs its code may have.
    pub(super) code: Code,
    slots: u32,
    /// The queued steps that its worker runs.
    pub(super) steps: Option<Work>,
    /// Runs that it owns or is about to own.
    pub(super) runs: BTreeSet<RunId>,
    held: Vec<HeldRun>,
    /// What it owns is being looked up.
    pub(super) resuming: bool,
    /// It was connected elsewhere before, where a claim for it may still be on its way to the log.
    moved: bool,
}

impl Session {
    /// Runs that it can still take.
    pub(super) fn credit(&self) -> usize {
        if self.resuming {
            return 0;
        }
        (self.slots as usize).saturating_sub(self.runs.len())
    }

    /// Whether it can speak for runs that it does not hold: one that is leaving only speaks for its own.
    pub(super) fn speaks_for(&self, queue: &QueueKey, workflow_type: &str) -> bool {
        let stays = self.asks && self.slots > 0;
        stays && self.queues.contains(queue) && self.workflow_types.contains(workflow_type)
    }

    /// Whether it takes runs at all: one that is leaving does not.
    pub(super) fn takes_runs(&self) -> bool {
        self.slots > 0
    }

    /// Whether histories can be held against its code, for somebody who named this build, or none.
    pub(super) fn checks_for(&self, namespace: &str, build_id: &str) -> bool {
        let named = if build_id.is_empty() { self.check_only } else { self.worker.build_id == build_id };
        let stays = self.check_only || self.slots > 0;
        let here = self.queues.first().is_some_and(|queue| queue.namespace == namespace);
        self.checks && named && stays && here
    }

    /// Whose questions it can answer without holding their runs; `None` for no one's.
    pub(super) fn ask_want(&self) -> Option<AskWant> {
        let namespace = self.queues.first()?.namespace.clone();
        let task_queues = self.queues.iter().map(|q| q.task_queue.clone()).collect();
        let workflow_types = self.workflow_types.iter().cloned().collect();
        (self.asks && self.slots > 0).then_some(AskWant { namespace, task_queues, workflow_types })
    }
}

impl Node {
    /// A worker introduces itself: open its session, or take it up again.
    pub(super) fn connect(&mut self, link: u64, mut hello: Hello) {
        let session_id = match hello.resume {
            Some(session) => session,
            None => {
                let session = self.ids.session_id();
                hello.held.clear();
                session
            }
        };
        let row = SessionRow {
            session_id,
            node_id: self.config.node_id,
            namespace: hello.namespace.clone(),
            identity: hello.worker.identity.clone(),
            build_id: hello.worker.build_id.clone(),
            serves: serves(&hello),
            lease: self.config.lease,
        };
        // A session that is not resumed is named by the row alone; remember which it is.
        let resumed = hello.resume.is_some();
        hello.resume = Some(session_id);
        if !resumed {
            hello.held.clear();
        }
        self.opening.insert(link, hello);
        self.resuming(link, resumed);
        self.out.push(Output::OpenSession { link, session: row });
    }

    fn resuming(&mut self, link: u64, resumed: bool) {
        if resumed {
            self.resumed.insert(link);
        } else {
            self.resumed.remove(&link);
        }
    }

    /// The store's answer to a session's opening.
    pub(super) fn session_opened(&mut self, link: u64, until: Result<Option<Timestamp>, store::Error>) {
        let Some(hello) = self.opening.remove(&link) else { return };
        let resumed = self.resumed.remove(&link);
        match until {
            Err(error) => {
                tracing::warn!(%error, "session not opened");
                self.out.push(Output::CloseLink { link });
            }
            // The session that it wants to take up again is over: it gets a new one.
            Ok(None) => self.connect(link, Hello { resume: None, ..hello }),
            Ok(Some(_)) => self.begin_session(link, hello, resumed),
        }
    }

    fn begin_session(&mut self, link: u64, hello: Hello, resumed: bool) {
        let Some(id) = hello.resume else { return };
        if let Some(old) = self.links.insert(id, link) {
            self.sessions.remove(&old);
            self.out.push(Output::CloseLink { link: old });
            self.untell(old);
            self.asks_lost(old);
            self.checks_lost(old);
        }
        let queues = queues_of(&hello);
        let message = WorkerOut::Welcome { session_id: id, lease: self.config.lease, resumed };
        self.out.push(Output::ToWorker { link, message });
        for queue in queues.iter().filter(|_| !hello.check_only) {
            let build_id = hello.worker.build_id.clone();
            self.out.push(Output::FindBlocked { queue: queue.clone(), build_id });
        }
        if resumed {
            self.out.push(Output::FindOwned { link, session: id });
        }
        let now = self.now;
        let code = Code::of(&hello);
        let session = Session {
            id,
            queues,
            worker: hello.worker,
            workflow_types: hello.workflow_types.into_iter().collect(),
            asks: hello.asks,
            checks: hello.checks,
            check_only: hello.check_only,
            code,
            slots: hello.run_slots,
            steps: hello.steps.map(|offer| Work::new(offer, resumed, now)),
            runs: BTreeSet::new(),
            held: hello.held,
            resuming: resumed,
            moved: resumed,
        };
        self.sessions.insert(link, session);
        self.pull_for(link);
        self.steps_begin(link);
        if self.draining {
            self.out.push(Output::ToWorker { link, message: WorkerOut::Drain });
        }
        self.ask_again();
    }

    /// What a resumed session owns: tell the worker what it has missed, and take back what it holds
    /// without owning it.
    pub(super) fn owned(&mut self, link: u64, runs: Result<Vec<RunId>, store::Error>) {
        let Some(session) = self.sessions.get_mut(&link) else { return };
        let runs = match runs {
            Ok(runs) => runs,
            Err(error) if session.resuming => {
                // The worker holds runs that this node knows nothing of: it has to ask again.
                tracing::warn!(%error, "owned runs not found");
                return self.disconnected(link);
            }
            Err(_) => return,
        };
        if !session.resuming {
            return self.claims_found(runs);
        }
        let held = std::mem::take(&mut session.held);
        session.resuming = false;
        for &run in &runs {
            session.runs.insert(run);
        }
        for held in held {
            if runs.contains(&held.run_id) {
                let slot = self.slots.entry(held.run_id).or_default();
                slot.told = Some((link, held.epoch));
                slot.sent = held.seen;
            } else {
                let (run_id, epoch) = (held.run_id, held.epoch);
                let message = WorkerOut::Evict { run_id, epoch, reason: "it is no longer the session's" };
                self.out.push(Output::ToWorker { link, message });
            }
        }
        for run in runs {
            if let Some(slot) = self.slots.get_mut(&run) {
                slot.came_back();
            }
            self.add_job(run, Job::Look);
        }
    }

    /// What a session owns, looked at once more: a claim that another node had made for it may have come to the
    /// log after the worker had come here, and then nobody was told.
    fn claims_found(&mut self, runs: Vec<RunId>) {
        for run in runs {
            let starting = self.starts.values().any(|job| job.is_for(run));
            let busy = self.slots.get(&run).is_some_and(|slot| !slot.is_idle() || slot.told.is_some());
            if starting || busy {
                continue;
            }
            if let Some(slot) = self.slots.get_mut(&run) {
                slot.run = None;
                slot.history = None;
            }
            self.add_job(run, Job::Look);
        }
    }

    /// A worker says something.
    pub(super) fn worker_says(&mut self, link: u64, message: WorkerIn) {
        let Some(session) = self.sessions.get(&link) else { return };
        let id = session.id;
        match message {
            WorkerIn::Heartbeat { number } => {
                let lease = self.config.lease;
                self.out.push(Output::RenewSession { link, session: id, number, lease });
            }
            WorkerIn::Commit { run_id, commit } => self.add_commit(link, run_id, commit),
            WorkerIn::NeedHistory { run_id, epoch } => {
                if let Some(slot) = self.slots.get_mut(&run_id)
                    && slot.told == Some((link, epoch))
                {
                    slot.told = None;
                }
                self.add_job(run_id, Job::Look);
            }
            WorkerIn::Draining => {
                if let Some(session) = self.sessions.get_mut(&link) {
                    session.slots = 0;
                    session.steps.iter_mut().for_each(Work::close);
                }
            }
            WorkerIn::Answer { ask, seq, said } => self.said(link, ask, seq, said),
            WorkerIn::StepSaid { key, said, details } => self.step_said(link, key, said, details),
            WorkerIn::StepBeat { key, details } => self.step_beat(link, key, details),
            WorkerIn::Limits { slots, per_second } => self.step_limits(link, slots, per_second),
            WorkerIn::Goodbye => {
                self.out.push(Output::CloseSession { session: id });
                self.end_link(link);
            }
        }
    }

    /// The store's answer to a heartbeat.
    pub(super) fn session_renewed(
        &mut self,
        link: u64,
        number: u64,
        until: Result<Option<Timestamp>, store::Error>,
    ) {
        if until.is_ok() && self.renewals.ends() {
            tracing::info!("leases are renewed again");
        }
        if !self.sessions.contains_key(&link) {
            return;
        }
        match until {
            Ok(Some(_)) => {
                self.out.push(Output::ToWorker { link, message: WorkerOut::HeartbeatAck { number } });
                if let Some(session) = self.sessions.get(&link).filter(|s| s.moved && !s.resuming) {
                    self.out.push(Output::FindOwned { link, session: session.id });
                }
            }
            Ok(None) => self.close_link(link, "its lease had ended"),
            // Without an answer the worker stops by itself when its lease ends.
            Err(error) if self.renewals.begins() => tracing::warn!(%error, "leases are not renewed"),
            Err(_) => {}
        }
    }

    /// A worker's stream is gone. The session stays in the store; whoever the worker reconnects to reads
    /// its runs again.
    pub(super) fn disconnected(&mut self, link: u64) {
        self.opening.remove(&link);
        self.resumed.remove(&link);
        self.end_link(link);
    }

    /// Sessions that the sweep closed.
    pub(super) fn sessions_closed(&mut self, closed: &[SessionId]) {
        for session in closed {
            if let Some(&link) = self.links.get(session) {
                self.close_link(link, "its lease ended");
            }
        }
    }

    fn close_link(&mut self, link: u64, reason: &'static str) {
        self.out.push(Output::ToWorker { link, message: WorkerOut::SessionClosed { reason } });
        self.end_link(link);
    }

    fn end_link(&mut self, link: u64) {
        self.out.push(Output::CloseLink { link });
        if let Some(session) = self.sessions.remove(&link)
            && self.links.get(&session.id) == Some(&link)
        {
            self.links.remove(&session.id);
        }
        self.pull_less();
        self.untell(link);
        self.asks_lost(link);
        self.checks_lost(link);
    }

    /// Forgets what a stream was told, and with it every run that nobody here owns.
    fn untell(&mut self, link: u64) {
        let mut told: Vec<RunId> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.told.is_some_and(|(l, _)| l == link))
            .map(|(&run, _)| run)
            .collect();
        told.sort_unstable();
        for run in told {
            if let Some(slot) = self.slots.get_mut(&run) {
                slot.told = None;
            }
            self.work(run);
        }
    }

    /// Tasks that have waited for longer than a hint takes.
    pub(super) fn tasks_found(&mut self, mut tasks: Vec<(RunId, TaskRow)>) {
        self.only_new(&mut tasks);
        for (run_id, task) in tasks {
            if self.link_for(&task).is_some() {
                self.status.healed += 1;
                self.add_job(run_id, Job::offer());
            } else if self.config.hints_shared {
                self.out.push(Output::Publish(run_hint(run_id, task)));
            }
        }
    }

    /// Another node has news of a run.
    pub(super) fn noticed(&mut self, notice: Notice) {
        if notice.node == self.config.node_id {
            return;
        }
        self.out.push(if notice.closed {
            Output::ClosedElsewhere(notice.run_id, notice.tail)
        } else {
            Output::Tail(notice.run_id, notice.tail)
        });
        let behind = |slot: &super::Slot| slot.run.as_ref().is_none_or(|run| run.seq() < notice.tail);
        if self.slots.get(&notice.run_id).is_some_and(behind) {
            self.add_job(notice.run_id, Job::Look);
        }
        if notice.asked {
            self.find_asks();
        }
    }

    /// Wakes that nobody has acted on for a while.
    pub(super) fn wakes_stale(&mut self, wakes: Vec<(RunId, Seq)>) {
        let mut seen = Vec::new();
        for (run, seq) in wakes {
            if self.drops(run) {
                self.forget_wake(run, seq);
                continue;
            }
            match self.slots.get(&run) {
                Some(slot) if slot.told.is_some() && slot.sent >= seq => seen.push((run, seq)),
                _ => {
                    self.status.healed += 1;
                    self.add_job(run, Job::Look);
                }
            }
        }
        if !seen.is_empty() {
            self.out.push(Output::DeleteWakes(seen));
        }
    }
}
