//! One run in a node's memory: its mailbox, its state, and the one append it may have in flight.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use everstep_core::{
    Actor, Command, CommandBody, CommandId, Epoch, Event, Rejection, Run, RunId, Seq, SessionId, Successor,
    TimerKey, WorkerCommit, WriteBasis, decide,
};
use everstep_dispatch::TaskHint;
use everstep_fault::{Bug, planted};
use everstep_store::{self as store, Append};

use super::deliveries::Heard;
use super::hints::run_hint;
use super::steps::{StepJob, looks_first};
use super::successors::Succession;
use super::{Node, Output};
use crate::{Error, WorkerOut};

mod append;
mod give_back;
mod steps;
mod tell;

/// Jobs decided together at most.
const JOBS_MAX: usize = 128;
/// Races that a client's command may lose before it is told so.
const RACES_MAX: u32 = 8;
/// Tries of an append, after which waiting clients are told that the store does not answer.
const TRIES_BEFORE_REPLY: u32 = 8;

/// Something to decide on a run.
#[derive(Clone, Debug)]
pub(super) enum Job {
    /// A client's command.
    Client { request: u64, command: Command, verified: bool },
    /// An owner's commit.
    Commit { link: u64, commit: WorkerCommit, verified: bool },
    /// The run may need a worker.
    Offer { token: Option<u64>, verified: bool },
    /// An instant may have come.
    Fire { timer: TimerKey, verified: bool },
    /// Its owner's session is closed, or its owner did what it must not.
    Lose { session: SessionId, refused: Option<String>, verified: bool },
    /// Something became of an attempt of a queued step.
    Step { job: StepJob, verified: bool },
    /// Another run wants something of it, or what became of something that it wanted of another is known.
    Deliver { flight: u64, command: Box<Command>, verified: bool, told: Told },
    /// Others may have appended: read the tail and tell the owner.
    Look,
}

/// What came of a [`Job::Deliver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// No event.
    Nothing,
    /// Events.
    Events,
    /// The run is of another namespace, so it is not there for the sender.
    Stranger,
}

impl Job {
    pub(super) fn offer() -> Self {
        Self::Offer { token: None, verified: false }
    }

    pub(super) fn delivery(flight: u64, command: Command) -> Self {
        Self::Deliver { flight, command: Box::new(command), verified: false, told: Told::Nothing }
    }

    pub(super) fn of_client(request: u64, command: Command) -> Self {
        Self::Client { request, command, verified: false }
    }

    pub(super) fn of_step(job: StepJob) -> Self {
        Self::Step { job, verified: false }
    }
}

/// A run in memory.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// State up to the last decided event; `None` until it is loaded.
    pub(super) run: Option<Box<Run>>,
    /// The whole history, while an activation may need it.
    pub(super) history: Option<Vec<Event>>,
    pub(super) loading: bool,
    pub(super) writing: Option<Writing>,
    pub(super) inbox: VecDeque<Job>,
    /// The stream that was told of this run, and under which epoch.
    pub(super) told: Option<(u64, Epoch)>,
    /// Last event that it was sent.
    pub(super) sent: Seq,
    /// The commit that the stream sends next, once it has sent one.
    next_number: Option<(u64, u32)>,
    /// The stream lacks events that were not at hand when there was something to send.
    behind: bool,
    /// Somebody else may have left a wake for an owner of this run.
    woken: bool,
    races: u32,
    /// Nothing is decided while the code is asked about this update, so that what it says holds.
    pub(super) held: Option<u64>,
}

/// An append in flight.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) append: Append,
    jobs: Vec<(Job, Result<(), Rejection>)>,
    started: bool,
    /// The stream of the worker that it claims the run for.
    claimed: Option<u64>,
    pub(super) tries: u32,
    /// Nobody knows what became of one of its tries.
    doubtful: bool,
    /// The run that it starts besides.
    next: Option<Box<Succession>>,
}

impl Slot {
    pub(super) fn is_idle(&self) -> bool {
        !self.loading && self.writing.is_none() && self.inbox.is_empty()
    }

    /// Its owner has come here with what it holds.
    pub(super) fn came_back(&mut self) {
        if self.is_idle() {
            // Whatever is in memory may be older than what another node appended meanwhile.
            self.run = None;
            self.history = None;
        } else {
            // What is under way goes on with what is in memory, and that may be more than the owner has.
            self.behind = self.run.as_ref().is_some_and(|run| run.seq() > self.sent);
        }
    }
}

impl Node {
    /// An owner's commit. One that leaves out numbers would lose what was in them: the history knows only
    /// the greatest.
    pub(super) fn add_commit(&mut self, link: u64, run_id: RunId, commit: WorkerCommit) {
        let slot = self.slots.entry(run_id).or_default();
        let expected = slot.next_number.filter(|(l, _)| *l == link).map(|(_, number)| number);
        if expected.is_some_and(|n| commit.number > n) {
            let problem =
                format!("commit {} does not follow commit {}", commit.number, expected.unwrap_or(1) - 1);
            let rejection = Rejection::InvalidCommands { problem };
            let lose = self.lose_refused(run_id, (link, commit.epoch), &rejection);
            self.answer_commit(run_id, link, &commit, Err(rejection));
            self.slots.entry(run_id).or_default().inbox.extend(lose);
            return self.work(run_id);
        }
        slot.next_number = Some((link, expected.unwrap_or(0).max(commit.number.saturating_add(1))));
        if commit.ahead.is_some() {
            self.break_hold(run_id);
        }
        self.add_job(run_id, Job::Commit { link, commit, verified: false });
    }

    /// Puts a job into a run's mailbox and works it off if the run is free.
    pub(super) fn add_job(&mut self, run: RunId, job: Job) {
        self.slots.entry(run).or_default().inbox.push_back(job);
        self.work(run);
    }

    /// Decides what waits in a run's mailbox, unless a read or write is in flight.
    pub(super) fn work(&mut self, run_id: RunId) {
        let Some(slot) = self.slots.get_mut(&run_id) else { return };
        if slot.loading || slot.writing.is_some() || slot.held.is_some() {
            return;
        }
        if slot.inbox.is_empty() {
            return self.let_go_if_idle(run_id);
        }
        if slot.run.is_none() {
            return self.load(run_id, 0, StdDuration::ZERO);
        }
        self.decide_batch(run_id);
    }

    pub(super) fn load(&mut self, run: RunId, after: Seq, delay: StdDuration) {
        if let Some(slot) = self.slots.get_mut(&run) {
            slot.loading = true;
            self.out.push(Output::Load { run, after, delay });
        }
    }

    fn decide_batch(&mut self, run_id: RunId) {
        let Some(slot) = self.slots.get_mut(&run_id) else { return };
        let Some(mut run) = slot.run.take() else { return };
        let basis = WriteBasis::of(&run);
        let mut inbox = std::mem::take(&mut slot.inbox);
        let mut batch = Batch { events: Vec::new(), jobs: Vec::new(), look: false, follows: None };
        while let Some(job) = inbox.pop_front() {
            if batch.jobs.len() >= JOBS_MAX {
                inbox.push_front(job);
                break;
            }
            if let Some(again) = self.decide_job(&mut run, job, &mut batch) {
                // Nothing follows from it as far as is known here; the log may know more.
                inbox.push_front(again);
                batch.look = true;
                break;
            }
        }
        self.attach_if_needed(&mut run, &mut batch);
        let look = batch.look;
        let after = run.seq();
        let wrote = !batch.events.is_empty();
        if let Some(slot) = self.slots.get_mut(&run_id) {
            slot.inbox = inbox;
            slot.run = Some(run);
        }
        if wrote {
            self.write_with(run_id, basis, batch);
        } else {
            self.answer(run_id, batch.jobs);
            if look {
                self.load(run_id, after, StdDuration::ZERO);
            } else {
                self.work(run_id);
            }
        }
    }

    /// Decides one job and applies what follows. Gives the job back when it has to be decided again after
    /// a look at the log.
    fn decide_job(&mut self, run: &mut Run, job: Job, batch: &mut Batch) -> Option<Job> {
        let before = batch.events.len();
        let (result, again) = match &job {
            Job::Client { command, .. } if self.remembers(run.id(), &command.body) => (Ok(()), None),
            Job::Client { request, command, verified } => {
                let result = apply_decision(run, command, self.now, batch);
                let looks = !verified && looks_first(&command.body, &result);
                let again = || Job::Client { request: *request, command: command.clone(), verified: true };
                (result, looks.then(again))
            }
            Job::Commit { link, commit, verified } => {
                let session = self.sessions.get(link)?;
                // The sender has seen more than is known here: the log decides whether it is the owner.
                let ahead = commit.epoch > run.epoch() || commit.seen > run.seq();
                if ahead && !verified && !run.status().is_closed() {
                    return Some(Job::Commit { link: *link, commit: commit.clone(), verified: true });
                }
                let command = Command {
                    id: CommandId::of_worker(run.id(), commit.epoch, commit.number),
                    actor: Actor::Worker(session.worker.identity.clone()),
                    body: CommandBody::Commit(commit.clone()),
                };
                let result = apply_decision(run, &command, self.now, batch);
                if let Err(refused) = &result {
                    self.give_back(run, (*link, commit), refused, batch);
                }
                (result, None)
            }
            Job::Offer { token, verified } => {
                let result = self.offer(run, batch);
                if *verified && result.is_err() {
                    self.offer_again(run);
                }
                (result, (!verified).then_some(Job::Offer { token: *token, verified: true }))
            }
            Job::Fire { timer, verified } => {
                let body = CommandBody::FireTimer { timer: *timer };
                let command = Command { id: self.ids.command_id(), actor: Actor::System, body };
                let result = apply_decision(run, &command, self.now, batch);
                (result, (!verified).then_some(Job::Fire { timer: *timer, verified: true }))
            }
            Job::Lose { session, refused, verified } => {
                let result = self.detach(run, *session, refused.clone(), batch);
                let again = || Job::Lose { session: *session, refused: refused.clone(), verified: true };
                (result, (!verified).then(again))
            }
            Job::Step { job, verified } => {
                let result = self.decide_step(run, job, batch);
                (result, (!verified).then(|| Job::Step { job: job.clone(), verified: true }))
            }
            Job::Deliver { flight, command, verified, .. } => {
                return self.decide_delivery(run, (*flight, command, *verified), batch);
            }
            Job::Look => {
                batch.look = true;
                (Ok(()), None)
            }
        };
        if let (true, Some(again)) = (batch.events.len() == before && !run.status().is_closed(), again) {
            return Some(again);
        }
        batch.jobs.push((job, result));
        None
    }

    /// As [`decide_job`](Self::decide_job), for what another run says.
    fn decide_delivery(
        &self,
        run: &mut Run,
        (flight, command, verified): (u64, &Command, bool),
        batch: &mut Batch,
    ) -> Option<Job> {
        let job =
            |verified, told| Job::Deliver { flight, command: Box::new(command.clone()), verified, told };
        if !self.may_hear(flight, run) {
            batch.jobs.push((job(true, Told::Stranger), Ok(())));
            return None;
        }
        let before = batch.events.len();
        let result = apply_decision(run, command, self.now, batch);
        let told = if batch.events.len() > before { Told::Events } else { Told::Nothing };
        if told == Told::Nothing && !verified && !run.status().is_closed() {
            return Some(job(true, told));
        }
        batch.jobs.push((job(verified, told), result));
        None
    }

    /// Offers the run to a worker that is connected here and has room.
    fn offer(&mut self, run: &mut Run, batch: &mut Batch) -> Result<(), Rejection> {
        let blocked = run.status() == everstep_core::RunStatus::Blocked;
        if self.draining || (!run.needs_worker() && !blocked) {
            return Err(Rejection::NotRunnable);
        }
        let Some(link) = self.link_for_run(run) else { return Err(Rejection::NotRunnable) };
        let Some(attach) = self.attach_of(link, run) else { return Err(Rejection::NotRunnable) };
        let Some(session) = self.sessions.get_mut(&link) else { return Err(Rejection::NotRunnable) };
        let actor = Actor::Worker(session.worker.identity.clone());
        let command = Command { id: self.ids.command_id(), actor, body: CommandBody::Attach(attach) };
        apply_decision(run, &command, self.now, batch)?;
        if run.owner().is_some() {
            session.runs.insert(run.id());
        }
        Ok(())
    }

    /// The room that the run was meant for is taken meanwhile: whoever has some next gets the hint. Without it
    /// the run would wait for the next look at its task, and each one that comes to nothing doubles the wait. Where
    /// nobody has the code, the hint would come back at once, and again and again.
    fn offer_again(&mut self, run: &Run) {
        let there = run.needs_worker() && self.is_served_here(&run.task());
        if there && (self.config.hints_shared || !self.config.shared) {
            let trace = run.start().trace.of_run(run.id());
            self.out.push(Output::Publish(TaskHint { trace, ..run_hint(run.id(), run.task()) }));
        }
    }

    /// Eager attach: the claim goes into the same append as what made it necessary.
    fn attach_if_needed(&mut self, run: &mut Run, batch: &mut Batch) {
        if run.needs_worker() && !batch.events.is_empty() {
            // Without a worker here, the task row and a hint to the other nodes follow from the events.
            let _ = self.offer(run, batch);
        }
    }

    /// Reads the whole history again for a stream that lacks some of it.
    fn catch_up(&mut self, run_id: RunId) {
        if let Some(slot) = self.slots.get_mut(&run_id)
            && !slot.loading
            && std::mem::take(&mut slot.behind)
        {
            slot.run = None;
            slot.history = None;
            slot.inbox.push_back(Job::Look);
        }
    }

    /// Events that were asked for with `load`.
    pub(super) fn loaded(&mut self, run_id: RunId, after: Seq, events: Result<Vec<Event>, store::Error>) {
        let Some(slot) = self.slots.get_mut(&run_id) else { return };
        slot.loading = false;
        let events = match events {
            Ok(events) => events,
            Err(error) if error.is_retryable() => return self.load_failed(run_id, after, &error),
            Err(error) => return self.abandon(run_id, &error),
        };
        let folded = if after == 0 {
            Run::fold(run_id, &events).map(|run| {
                slot.run = run.map(Box::new);
                slot.history = Some(events.clone());
            })
        } else {
            slot.run.as_mut().map_or(Ok(()), |run| events.iter().try_for_each(|e| run.apply(e))).map(|()| {
                if let Some(history) = &mut slot.history {
                    history.extend(events.iter().cloned());
                }
            })
        };
        if let Err(error) = folded {
            return self.abandon(run_id, &store::Error::Corrupt(format!("run {run_id}: {error}")));
        }
        if slot.run.is_none() {
            return self.not_found(run_id);
        }
        slot.woken |= events.iter().any(|e| may_wake(run_id, e));
        self.overtake_start(run_id);
        self.append_beaten(run_id);
        self.out.push(Output::Opened(run_id));
        let events = Arc::new(events);
        self.tell_owner(run_id, &events);
        self.reconcile(run_id, None);
        // A look is done once the tail is read; what else waits is decided on what it found.
        if let Some(slot) = self.slots.get_mut(&run_id) {
            slot.inbox.retain(|job| !matches!(job, Job::Look));
        }
        self.catch_up(run_id);
        self.work(run_id);
    }

    fn load_failed(&mut self, run_id: RunId, after: Seq, error: &store::Error) {
        self.refuse_clients(run_id, error);
        self.load(run_id, after, backoff(4));
    }

    /// Clients whose requests have not been decided hear what the store says.
    fn refuse_clients(&mut self, run_id: RunId, error: &store::Error) {
        let Some(slot) = self.slots.get_mut(&run_id) else { return };
        let mut clients = Vec::new();
        slot.inbox.retain(|job| match job {
            Job::Client { request, .. } => {
                clients.push(*request);
                false
            }
            _ => true,
        });
        for request in clients {
            self.out.push(Output::Done { request, result: Err(error.clone().into()) });
        }
    }

    fn not_found(&mut self, run_id: RunId) {
        let Some(slot) = self.slots.remove(&run_id) else { return };
        for job in slot.inbox {
            match job {
                Job::Client { request, .. } => {
                    let result = Err(Error::RunNotFound(run_id.to_string()));
                    self.out.push(Output::Done { request, result });
                }
                Job::Commit { link, commit, .. } => {
                    let rejection = Rejection::Fenced { current: 0, sent: commit.epoch };
                    let (epoch, number) = (commit.epoch, commit.number);
                    let message = WorkerOut::Rejected { run_id, epoch, number, rejection };
                    self.out.push(Output::ToWorker { link, message });
                }
                Job::Offer { token: Some(token), .. } => self.out.push(Output::Ack(token)),
                Job::Deliver { flight, .. } => self.heard(flight, Heard::Nobody),
                Job::Step { job, .. } => self.step_decided(&job, Err(job.not_found())),
                _ => {}
            }
        }
    }
}

/// What one append will hold.
struct Batch {
    events: Vec<Event>,
    jobs: Vec<(Job, Result<(), Rejection>)>,
    look: bool,
    /// The run to start in the same append.
    follows: Option<Box<Successor>>,
}

fn apply_decision(
    run: &mut Run,
    command: &Command,
    now: everstep_core::Timestamp,
    batch: &mut Batch,
) -> Result<(), Rejection> {
    let decision = decide(run, command, now)?;
    if decision.follows.is_some() {
        batch.follows = decision.follows;
    }
    for event in decision.events {
        // The core decides only what it can apply; a breach is a bug that must not reach the log.
        if let Err(problem) = run.apply(&event)
            && !planted(Bug::AcceptAfterTerminal)
        {
            return Err(Rejection::InvalidCommands { problem: problem.to_string() });
        }
        batch.events.push(event);
    }
    Ok(())
}

/// Whether the event may have come from a node that was not the owner's, which then left a wake.
fn may_wake(run: RunId, event: &Event) -> bool {
    let told = event.body.is_news_from_outside();
    told && event.epoch > 0 && event.command_id.worker_commit(run).is_none()
}

/// 10 ms, doubling, at most about a second.
pub(super) fn backoff(tries: u32) -> StdDuration {
    StdDuration::from_millis(10 << tries.min(7))
}
