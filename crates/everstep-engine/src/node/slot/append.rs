//! From decided events to the log: an append, its verdict, and what follows from it.

use std::sync::Arc;
use std::time::Duration as StdDuration;

use everstep_core::{Event, EventBody, Run, RunId, Write, WriteBasis};
use everstep_store::{self as store, Append, RunAppend, Verdict};

use super::{Batch, Job, RACES_MAX, Slot, TRIES_BEFORE_REPLY, Writing, backoff};
use crate::node::deliveries::Heard;
use crate::node::successors::Succession;
use crate::node::{Node, Output};
use crate::{Error, WorkerOut};

impl Node {
    /// Writes what was decided, with the run that follows.
    pub(super) fn write_with(&mut self, run_id: RunId, basis: WriteBasis, mut batch: Batch) {
        let Some(next) = batch.follows.take() else { return self.write(run_id, basis, batch, None) };
        let history = self.slots.get_mut(&run_id).and_then(|slot| slot.history.take());
        let before: [&[Event]; 2] = [history.as_deref().unwrap_or_default(), &batch.events];
        let next = self.succeed(run_id, &next, &before);
        let whole = history.is_some();
        let Some(slot) = self.slots.get_mut(&run_id) else { return };
        slot.history = history;
        if next.is_some() {
            return self.write(run_id, basis, batch, next);
        }
        for (job, _) in batch.jobs.into_iter().rev() {
            slot.inbox.push_front(job);
        }
        if whole {
            let problem = format!("run {run_id}: what its successor is given is not in its history");
            return self.abandon(run_id, &store::Error::Corrupt(problem));
        }
        // What was decided is applied in memory and not written.
        slot.run = None;
        self.load(run_id, 0, StdDuration::ZERO);
    }

    fn write(
        &mut self,
        run_id: RunId,
        basis: WriteBasis,
        mut batch: Batch,
        next: Option<(Succession, RunAppend)>,
    ) {
        self.reply_early(&mut batch.jobs);
        let Some(slot) = self.slots.get(&run_id) else { return };
        let Some(run) = &slot.run else { return };
        let mut writes = basis.writes(run, &batch.events);
        let foreign = batch.events.iter().any(|e| e.command_id.worker_commit(run_id).is_none());
        let owner_elsewhere = run.owner().is_some_and(|o| !self.links.contains_key(&o.session));
        let wakes = self.config.shared && foreign && owner_elsewhere;
        if wakes {
            writes.push(Write::WakeSet { seq: run.seq() });
        }
        if slot.woken && run.owner().is_none() {
            // A wake is for an owner, and the sweep finds it by its owner.
            writes.push(Write::WakesDeleted { up_to: run.seq() });
        }
        let claims = batch.events.iter().any(|e| matches!(e.body, EventBody::WorkerAttached { .. }));
        let claimed = run.owner().filter(|_| claims).and_then(|o| self.links.get(&o.session).copied());
        let events = Arc::new(batch.events);
        let (next, with) =
            next.map_or((None, None), |(next, with)| (Some(Box::new(next)), Some(Box::new(with))));
        let append = Append { run: RunAppend { run_id, start: None, events, writes }, with };
        let ticket = self.ticket();
        self.tickets.insert(ticket, run_id);
        self.submit(ticket, &append, StdDuration::ZERO);
        if let Some(slot) = self.slots.get_mut(&run_id) {
            slot.woken |= wakes;
            let (jobs, started) = (batch.jobs, false);
            slot.writing = Some(Writing { append, jobs, started, claimed, tries: 0, doubtful: false, next });
        }
    }

    /// Puts a run that was just started into memory, its first append being committed. `claimed` is the stream
    /// whose worker it was started for.
    pub(in crate::node) fn adopt_started(
        &mut self,
        run: Run,
        append: Append,
        claimed: Option<u64>,
        overtaken: bool,
    ) {
        let run_id = run.id();
        self.status.runs_started += 1;
        self.out.push(Output::RunStarted(Box::new(run.clone())));
        if overtaken || self.slots.contains_key(&run_id) {
            // Its worker was told of it before the answer of the store came, and has gone on.
            return self.add_job(run_id, Job::Look);
        }
        let jobs = Vec::new();
        let (tries, doubtful, next) = (0, false, None);
        let writing = Writing { append, jobs, started: true, claimed, tries, doubtful, next };
        self.slots.insert(run_id, Slot { run: Some(Box::new(run)), ..Slot::default() });
        self.committed(run_id, writing);
    }

    /// The verdict on an append.
    pub(in crate::node) fn appended(&mut self, ticket: u64, verdict: Verdict) {
        if self.starts.contains_key(&ticket) {
            return self.start_appended(ticket, verdict);
        }
        let Some(run_id) = self.tickets.remove(&ticket) else { return };
        let Some(mut writing) = self.slots.get_mut(&run_id).and_then(|s| s.writing.take()) else { return };
        match verdict {
            Verdict::Committed => {
                let next = writing.next.take().zip(writing.append.with.take());
                self.committed(run_id, writing);
                if let Some((next, with)) = next {
                    self.succeeded(*next, *with);
                }
            }
            Verdict::Conflict => self.lost_race(run_id, writing),
            Verdict::Failed(error) => self.append_failed(run_id, ticket, writing, error),
        }
    }

    pub(super) fn committed(&mut self, run_id: RunId, mut writing: Writing) {
        self.answer_refused(run_id, &mut writing.jobs);
        let events = &writing.append.run.events;
        self.status.events_appended += events.len() as u64;
        self.tell_owner(run_id, events);
        self.announce(run_id, &writing.append.run.writes);
        self.deliver(run_id, &writing.append.run);
        if let Some(slot) = self.slots.get_mut(&run_id) {
            slot.races = 0;
            if let Some(history) = &mut slot.history {
                history.extend(events.iter().cloned());
            }
        }
        self.answer(run_id, writing.jobs);
        if self.is_overtaken(run_id, writing.claimed)
            && let Some(slot) = self.slots.get_mut(&run_id)
        {
            slot.run = None;
            slot.history = None;
            slot.inbox.push_back(Job::Look);
            return self.work(run_id);
        }
        self.reconcile(run_id, writing.started.then(|| Arc::clone(events)));
        self.catch_up(run_id);
        self.work(run_id);
    }

    /// Whether the log may have gone on without this node while it waited for an answer: a worker has come here
    /// with a later claim than is known, or has come back after it had the run elsewhere. What is in memory
    /// must not decide then what it is told.
    pub(super) fn is_overtaken(&self, run_id: RunId, claimed: Option<u64>) -> bool {
        let Some(slot) = self.slots.get(&run_id) else { return false };
        let Some(run) = &slot.run else { return false };
        match slot.told {
            Some((_, epoch)) => epoch > run.epoch(),
            None => {
                let link = run.owner().and_then(|owner| self.links.get(&owner.session));
                link.is_some_and(|link| claimed != Some(*link))
            }
        }
    }

    /// Somebody else appended first: read the log and decide again.
    pub(super) fn lost_race(&mut self, run_id: RunId, writing: Writing) {
        self.status.conflicts += 1;
        let Some(mut writing) = self.keep_beaten(run_id, writing) else { return };
        self.drop_successor(&mut writing);
        let Some(slot) = self.slots.get_mut(&run_id) else { return };
        slot.races += 1;
        let give_up = slot.races > RACES_MAX;
        let attempts = slot.races;
        let mut requeued: Vec<Job> = Vec::with_capacity(writing.jobs.len());
        for (job, _) in writing.jobs {
            match job {
                Job::Client { request, .. } if give_up => {
                    self.out.push(Output::Done { request, result: Err(Error::Contention { attempts }) });
                }
                job => requeued.push(job),
            }
        }
        for job in requeued.into_iter().rev() {
            slot.inbox.push_front(job);
        }
        if slot.inbox.is_empty() {
            // An attach of our own came to nothing; the state has to be read again all the same.
            slot.inbox.push_back(Job::Look);
        }
        slot.run = None;
        slot.history = None;
        self.load(run_id, 0, StdDuration::ZERO);
    }

    /// The store failed. Submitting the same append again is safe whatever became of it: the primary key
    /// admits one of the two, and a conflict leads to the log.
    pub(super) fn append_failed(
        &mut self,
        run_id: RunId,
        ticket: u64,
        mut writing: Writing,
        error: store::Error,
    ) {
        let unknown = matches!(error, store::Error::OutcomeUnknown(_));
        if unknown {
            self.status.unknown_settled += 1;
            writing.doubtful = true;
        }
        if !unknown && !error.is_retryable() {
            return self.give_up(run_id, writing, &error);
        }
        writing.tries += 1;
        let overdue = writing.tries >= TRIES_BEFORE_REPLY;
        if overdue && !writing.doubtful && matches!(error, store::Error::Exhausted(_)) {
            if writing.jobs.iter().any(|(job, _)| matches!(job, Job::Client { .. })) {
                return self.withdraw(run_id, writing, &error);
            }
            self.refuse_clients(run_id, &error);
        } else if overdue {
            let reply = store::Error::OutcomeUnknown(error.to_string());
            writing.jobs.retain(|(job, _)| match job {
                Job::Client { request, .. } => {
                    self.out.push(Output::Done { request: *request, result: Err(reply.clone().into()) });
                    false
                }
                _ => true,
            });
        }
        let delay = backoff(writing.tries);
        self.tickets.insert(ticket, run_id);
        self.submit(ticket, &writing.append, delay);
        if let Some(slot) = self.slots.get_mut(&run_id) {
            slot.writing = Some(writing);
        }
    }

    /// The store has no room, and has written nothing. Clients are told so, which is true only if what they asked for
    /// is not tried again: whatever else there is to do is decided anew.
    pub(super) fn withdraw(&mut self, run_id: RunId, mut writing: Writing, error: &store::Error) {
        self.drop_successor(&mut writing);
        let Some(slot) = self.slots.get_mut(&run_id) else { return };
        for (job, _) in writing.jobs.into_iter().rev() {
            slot.inbox.push_front(job);
        }
        // As after a lost race.
        slot.inbox.push_back(Job::Look);
        slot.run = None;
        slot.history = None;
        self.refuse_clients(run_id, error);
        self.load(run_id, 0, backoff(TRIES_BEFORE_REPLY));
    }

    /// The append is not going to start the run that follows.
    fn drop_successor(&mut self, writing: &mut Writing) {
        if let Some(next) = writing.next.take() {
            self.not_succeeded(&next, writing.doubtful);
        }
    }

    /// The store will never take this append.
    pub(super) fn give_up(&mut self, run_id: RunId, mut writing: Writing, error: &store::Error) {
        self.drop_successor(&mut writing);
        for (job, _) in writing.jobs {
            match job {
                Job::Client { request, .. } => {
                    self.out.push(Output::Done { request, result: Err(error.clone().into()) });
                }
                Job::Deliver { flight, .. } => self.heard(flight, Heard::Unknown),
                Job::Step { job, .. } => self.step_undecided(&job),
                _ => {}
            }
        }
        self.abandon(run_id, error);
    }

    /// Drops a run whose history or append is refused; what is stored stays as it is.
    pub(super) fn abandon(&mut self, run_id: RunId, error: &store::Error) {
        tracing::error!(run_id = %run_id, %error, "run abandoned on this node");
        let Some(slot) = self.slots.remove(&run_id) else { return };
        for job in slot.inbox {
            match job {
                Job::Client { request, .. } => {
                    self.out.push(Output::Done { request, result: Err(error.clone().into()) });
                }
                Job::Offer { token: Some(token), .. } => self.out.push(Output::Ack(token)),
                Job::Deliver { flight, .. } => self.heard(flight, Heard::Unknown),
                Job::Step { job, .. } => self.step_undecided(&job),
                _ => {}
            }
        }
        if let Some((link, epoch)) = slot.told {
            let message = WorkerOut::Evict { run_id, epoch, reason: "its history cannot be read" };
            self.out.push(Output::ToWorker { link, message });
        }
        for session in self.sessions.values_mut() {
            session.runs.remove(&run_id);
        }
        self.out.push(Output::Dropped(run_id));
    }
}
