//! Queued steps: which worker gets which attempt, and what becomes of it.
//!
//! Who has an attempt is a row in the store; what is kept here is what the workers of this node were given. Only the
//! log says whether an end still counts, so an end is decided like anything else on its run, and a worker hears of it
//! when that is durable. Whatever goes missing on the way is found again: a claim whose answer was lost is returned, a
//! worker that holds what is no longer its own is told, and rows whose instant has come are looked at by the clock.

mod claims;
mod io;
mod look;
mod work;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use everstep_core::{
    CommandBody, Duration, EventBody, Failure, OpId, Payload, QueueKey, Rejection, Run, RunId, StepEnd,
    StepTask, StepTimeout, Timestamp, TraceContext,
};
use everstep_store::{self as store, AttemptKey, Beat, BeatAnswer, ClaimKey, Due, StepClaim};

use super::slot::Job;
use super::{Node, Output};
use crate::{GivenStep, StepKey, StepSaid, WorkerOut};
use claims::Line;
pub use io::{StepsIn, StepsOut};
pub(super) use work::Work;
use work::{Held, Place};

/// A row that was claimed for a worker here, and that nobody here knows of, is given back after this long: the answer
/// to its claim was lost.
const UNKNOWN_CLAIM: Duration = Duration::from_secs(5);
/// How long a store that did not answer a claim is left alone.
const CLAIM_PAUSE: Duration = Duration::from_secs(1);

/// What a node keeps about queues of steps.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// Queues that were held back by their limits, and when to look again.
    limited: BTreeMap<QueueKey, Timestamp>,
    /// Claims from each queue, under way or to come.
    lines: BTreeMap<QueueKey, Line>,
    /// Ends that could not be decided, by their worker's stream, and when the worker is asked again.
    undecided: BTreeMap<(u64, StepKey), Timestamp>,
}

/// Whether the log has to be looked at before a client hears that its attempt is over: another node may know of a
/// later one.
pub(super) fn looks_first(body: &CommandBody, result: &Result<(), Rejection>) -> bool {
    let unknown = matches!(result, Err(Rejection::StaleAttempt { .. } | Rejection::StepNotFound { .. }));
    matches!(body, CommandBody::FinishStep { .. }) && unknown
}

/// What is decided on a run.
#[derive(Clone, Debug)]
pub(super) enum StepJob {
    /// Its worker says how an attempt ended.
    Finish(Box<Finish>),
    /// A time of an attempt may have run out.
    Expire { step: OpId, attempt: u32, timeout: StepTimeout },
    /// The worker of an attempt is gone.
    Lose { step: OpId, attempt: u32 },
}

impl StepJob {
    pub(super) fn not_found(&self) -> Rejection {
        match self {
            Self::Finish(finish) => Rejection::StepNotFound { step: finish.key.step },
            Self::Expire { step, .. } | Self::Lose { step, .. } => Rejection::StepNotFound { step: *step },
        }
    }
}

/// A worker says how an attempt ended.
#[derive(Clone, Debug)]
pub(super) struct Finish {
    link: u64,
    key: StepKey,
    /// Where the worker works: runs of other namespaces are none of its business.
    namespace: String,
    pub(super) identity: String,
    elapsed: Duration,
    end: StepEnd,
}

impl Finish {
    /// What it asks of the run.
    pub(super) fn body(&self, run: &Run) -> Result<CommandBody, Rejection> {
        let StepKey { step, attempt, .. } = self.key;
        if run.start().namespace != self.namespace {
            return Err(Rejection::StepNotFound { step });
        }
        Ok(CommandBody::FinishStep { step, attempt, elapsed: self.elapsed, end: self.end.clone() })
    }
}

impl Node {
    pub(super) fn steps_in(&mut self, input: StepsIn) {
        match input {
            StepsIn::Claimed { link, queue, max, claims } => self.steps_claimed(link, queue, max, claims),
            StepsIn::Lost(lost) => {
                for AttemptKey { run, step, attempt } in lost {
                    self.status.healed += 1;
                    self.add_job(run, Job::of_step(StepJob::Lose { step, attempt }));
                }
            }
            StepsIn::Due(due) => due.into_iter().for_each(|(attempt, due)| self.step_due(attempt, due)),
            StepsIn::Beaten { link, key, last, answer } => self.beaten(link, key, last, &answer),
            StepsIn::LetGo { link, key, deferred, done } => self.step_let_go(link, key, deferred, &done),
            StepsIn::Found { sessions, since, rows } => self.step_claims_found(&sessions, since, rows),
            StepsIn::Waiting(queue) => {
                self.wait_over(&queue);
                self.claim_steps(&queue);
            }
            StepsIn::Look => {
                self.look_at_steps();
                self.claim_what_others_left();
            }
        }
    }

    /// An instant that a queue was to be looked at has come. The clock that said so may be a little ahead of the one that
    /// the instant was reckoned by: then it has to say so again, because nothing else would.
    fn wait_over(&mut self, queue: &QueueKey) {
        match self.steps.limited.get(queue).copied() {
            Some(at) if at > self.now => self.say(StepsOut::WaitingAt { queue: queue.clone(), at }),
            _ => drop(self.steps.limited.remove(queue)),
        }
        for work in self.sessions.values_mut().filter_map(|session| session.steps.as_mut()) {
            work.wait_over(queue);
        }
    }

    fn work_of(&mut self, link: u64) -> Option<&mut Work> {
        self.sessions.get_mut(&link)?.steps.as_mut()
    }

    fn say(&mut self, output: StepsOut) {
        self.out.push(Output::Steps(output));
    }

    /// A worker has come: whatever waits for it may be claimed. One that takes its session up again says what it
    /// holds, and gets nothing new until that is compared with what it was given.
    pub(super) fn steps_begin(&mut self, link: u64) {
        let now = self.now;
        let Some(session) = self.sessions.get(&link) else { return };
        let (id, queues) = (session.id, session.queues.clone());
        match self.work_of(link) {
            Some(work) if work.is_resuming() => {
                self.say(StepsOut::Find { sessions: vec![id], since: now });
            }
            Some(_) => queues.iter().for_each(|queue| self.claim_steps(queue)),
            None => {}
        }
    }

    fn give_step(&mut self, link: u64, claim: StepClaim) {
        let now = self.now;
        let StepClaim { run, claim, task, details, event, start } = claim;
        let key = StepKey { run_id: run, step: task.step, attempt: task.attempt, claim };
        let Some(work) = self.work_of(link) else {
            // Its worker has gone meanwhile, and was told nothing.
            return self.say(StepsOut::LetGo { link, key, deferred: false });
        };
        work.hold((run, task.step), Held::new(key, task.queue.clone(), now));
        let due = [task.start_to_close, task.heartbeat].into_iter().flatten().min();
        if let Some(due) = due {
            self.say(StepsOut::DueAt(now.after(due)));
        }
        let input = match event.body {
            EventBody::StepScheduled(scheduled) => scheduled.input,
            _ => Payload::default(),
        };
        let given = GivenStep {
            key,
            name: task.name,
            input,
            details,
            start_to_close: task.start_to_close,
            heartbeat: task.heartbeat,
            trace: start.trace.of_run(run),
            workflow_type: start.workflow_type,
            workflow_id: start.workflow_id,
            task_queue: task.queue.task_queue,
            scheduled_at: event.at,
        };
        self.out.push(Output::ToWorker { link, message: WorkerOut::StepTask(Box::new(given)) });
    }

    /// A worker lets go of an attempt. What it said last about how far it was is kept before anything follows from
    /// the end: the next attempt begins there.
    pub(super) fn step_said(&mut self, link: u64, key: StepKey, said: StepSaid, details: Option<Payload>) {
        let Some(work) = self.work_of(link) else { return };
        if work.keep_early(key, &said, details.as_ref()) {
            return;
        }
        let place = (key.run_id, key.step);
        let Some(held) = work.get(place).filter(|held| held.key == key) else {
            return self.step_over(link, key, said);
        };
        if held.ending.is_some() {
            return;
        }
        held.ending = Some(said.clone());
        match details {
            Some(details) if !matches!(said, StepSaid::Ended(StepEnd::Completed(_), _)) => {
                self.say(StepsOut::Beat { link, key, details: Some(details), last: true });
            }
            _ => self.step_over(link, key, said),
        }
    }

    /// Acts on what a worker said last about an attempt.
    fn step_over(&mut self, link: u64, key: StepKey, said: StepSaid) {
        let Some(session) = self.sessions.get(&link) else { return };
        match said {
            StepSaid::Ended(end, elapsed) => {
                let namespace = session.queues.first().map(|q| q.namespace.clone()).unwrap_or_default();
                let identity = session.worker.identity.clone();
                let finish = Finish { link, key, namespace, identity, elapsed, end };
                self.add_job(key.run_id, Job::of_step(StepJob::Finish(Box::new(finish))));
            }
            StepSaid::Deferred => self.say(StepsOut::LetGo { link, key, deferred: true }),
            StepSaid::Returned => self.say(StepsOut::LetGo { link, key, deferred: false }),
        }
    }

    /// An end is durable, or refused: the worker may forget it.
    pub(super) fn step_decided(&mut self, job: &StepJob, result: Result<(), Rejection>) {
        let StepJob::Finish(finish) = job else { return };
        let kind = match &result {
            Err(Rejection::LimitExceeded { .. }) => "PayloadTooLarge",
            Err(Rejection::InvalidArgument { .. }) => "InvalidPayload",
            _ => return self.settled(finish.link, finish.key, Some(result)),
        };
        // Its worker has no other end of it. Without one the same attempt would be given out again and again.
        let problem = result.err().map(|rejection| rejection.to_string()).unwrap_or_default();
        let end = StepEnd::Failed(Failure::new(kind, problem).non_retryable());
        let finish = Finish { end, ..(**finish).clone() };
        self.add_job(finish.key.run_id, Job::of_step(StepJob::Finish(Box::new(finish))));
    }

    /// The worker is rid of the attempt, and has room for another.
    fn settled(&mut self, link: u64, key: StepKey, verdict: Option<Result<(), Rejection>>) {
        let Some(work) = self.work_of(link) else { return };
        let held = work.release(key);
        if let Some(result) = verdict {
            self.out.push(Output::ToWorker { link, message: WorkerOut::StepAck { key, result } });
        }
        if let Some(held) = held {
            self.steps_room(link, &held.queue);
        }
    }

    /// A worker has room, and one attempt fewer of the queue runs.
    fn steps_room(&mut self, link: u64, queue: &QueueKey) {
        if self.steps.limited.contains_key(queue) {
            self.claim_steps(queue);
        }
        let Some(session) = self.sessions.get(&link) else { return };
        let Some(work) = &session.steps else { return };
        let wet: Vec<QueueKey> = session.queues.iter().filter(|q| !work.is_dry(q)).cloned().collect();
        wet.iter().for_each(|queue| self.claim_for(link, queue));
    }

    fn step_let_go(&mut self, link: u64, key: StepKey, deferred: bool, done: &Result<bool, store::Error>) {
        let (step, attempt) = (key.step, key.attempt);
        match done {
            // It was tried for long enough. The worker holds a deferral until its next stream; a return is made up for
            // by the look at claims.
            Err(error) => {
                tracing::warn!(%error, run_id = %key.run_id, "an attempt was not let go");
                let until = self.now.after(UNKNOWN_CLAIM).after(UNKNOWN_CLAIM);
                if let (false, Some(work)) = (deferred, self.work_of(link)) {
                    work.release(key);
                    work.doubt_claims(until);
                }
            }
            Ok(done) if deferred => {
                let result = if *done { Ok(()) } else { Err(Rejection::StaleAttempt { step, attempt }) };
                self.settled(link, key, Some(result));
            }
            Ok(done) => {
                let queue = self.work_of(link).and_then(|work| work.get((key.run_id, step)));
                let queue = queue.map(|held| held.queue.clone());
                self.settled(link, key, None);
                if let (true, Some(queue)) = (*done, queue) {
                    self.offer_step(key.run_id, queue, (String::new(), TraceContext::default()));
                }
            }
        }
    }

    /// A worker says that an attempt lives.
    pub(super) fn step_beat(&mut self, link: u64, key: StepKey, details: Option<Payload>) {
        let Some(work) = self.work_of(link) else { return };
        if work.get((key.run_id, key.step)).is_some_and(|held| held.key == key) {
            self.say(StepsOut::Beat { link, key, details, last: false });
        } else if !work.is_resuming() {
            self.tell_gone(link, key);
        }
    }

    fn beaten(&mut self, link: u64, key: StepKey, last: bool, answer: &Result<BeatAnswer, store::Error>) {
        let Some(work) = self.work_of(link) else { return };
        let Some(held) = work.get((key.run_id, key.step)).filter(|held| held.key == key) else { return };
        if let Some(said) = held.ending.clone() {
            // The log decides whether the end counts; what the row says is the present only.
            if last {
                self.step_over(link, key, said);
            }
            return;
        }
        match answer {
            Ok(BeatAnswer::Going) | Err(_) => {}
            Ok(BeatAnswer::Canceled) => self.cancel_held(link, key),
            Ok(BeatAnswer::Gone) => self.gone(link, key),
        }
    }

    fn cancel_held(&mut self, link: u64, key: StepKey) {
        let Some(work) = self.work_of(link) else { return };
        let Some(held) = work.get((key.run_id, key.step)).filter(|held| held.key == key) else { return };
        if !std::mem::replace(&mut held.told_cancel, true) {
            let StepKey { run_id, step, attempt, .. } = key;
            let message = WorkerOut::StepCancel { run_id, step, attempt, gone: false };
            self.out.push(Output::ToWorker { link, message });
        }
    }

    /// The attempt is over without its worker.
    fn gone(&mut self, link: u64, key: StepKey) {
        let Some(held) = self.work_of(link).and_then(|work| work.release(key)) else { return };
        self.tell_gone(link, key);
        self.steps_room(link, &held.queue);
    }

    fn tell_gone(&mut self, link: u64, key: StepKey) {
        let StepKey { run_id, step, attempt, .. } = key;
        let message = WorkerOut::StepCancel { run_id, step, attempt, gone: true };
        self.out.push(Output::ToWorker { link, message });
    }

    /// The instant of a queued step has come.
    fn step_due(&mut self, AttemptKey { run, step, attempt }: AttemptKey, due: Due) {
        match due {
            Due::Timeout(timeout) => {
                self.add_job(run, Job::of_step(StepJob::Expire { step, attempt, timeout }));
            }
            Due::Visible(queue) => {
                if self.has_room_for(&queue) {
                    self.claim_steps(&queue);
                } else if self.config.hints_shared {
                    self.offer_step(run, queue, (String::new(), TraceContext::default()));
                }
            }
        }
    }

    /// An append changed a queued step.
    pub(super) fn step_task_set(&mut self, run_id: RunId, task: &StepTask, trace: TraceContext) {
        let now = self.now;
        let place = (run_id, task.step);
        let times = [task.start_by, task.close_by];
        if let Some(due) = times.into_iter().flatten().min() {
            self.say(StepsOut::DueAt(due));
        }
        if let Some((link, key, ends)) = self.holder_of(place) {
            if key.attempt == task.attempt && task.visible_at != StepTask::HELD {
                if task.canceled {
                    self.cancel_held(link, key);
                }
                return;
            }
            if !ends {
                self.gone(link, key);
            }
        }
        if task.canceled {
            // Without a worker it ends now; one that is connected elsewhere is told there.
            self.say(StepsOut::DueAt(now));
        } else if task.visible_at > now {
            if task.visible_at != StepTask::HELD {
                self.say(StepsOut::DueAt(task.visible_at));
            }
        } else if self.config.hints_shared || !self.config.shared || self.has_room_for(&task.queue) {
            self.offer_step(run_id, task.queue.clone(), (task.name.clone(), trace));
        }
    }

    /// A queued step, or all of a run's, ended.
    pub(super) fn step_tasks_gone(&mut self, run_id: RunId, step: Option<OpId>) {
        let mut gone = Vec::new();
        for (&link, session) in &self.sessions {
            let Some(work) = &session.steps else { continue };
            let held = work.of_run(run_id).filter(|held| step.is_none_or(|step| held.key.step == step));
            gone.extend(held.filter(|held| held.ending.is_none()).map(|held| (link, held.key)));
        }
        gone.into_iter().for_each(|(link, key)| self.gone(link, key));
    }

    /// The worker here that has an attempt of a step, and whether it has said how that ended.
    fn holder_of(&self, place: Place) -> Option<(u64, StepKey, bool)> {
        self.sessions.iter().find_map(|(&link, session)| {
            let held = session.steps.as_ref()?.peek(place)?;
            Some((link, held.key, held.ending.is_some()))
        })
    }

    /// A worker takes more or less from here on.
    pub(super) fn step_limits(&mut self, link: u64, slots: u32, per_second: f64) {
        let now = self.now;
        let Some(session) = self.sessions.get(&link) else { return };
        let queues = session.queues.clone();
        let Some(work) = self.work_of(link) else { return };
        work.limit(slots, per_second, now);
        queues.iter().for_each(|queue| self.claim_steps(queue));
    }
}

fn claim_of(key: &StepKey) -> ClaimKey {
    ClaimKey { run: key.run_id, step: key.step, claim: key.claim }
}

/// A sign of life as the store takes it.
pub(crate) fn beat(key: &StepKey, details: Option<Payload>) -> Beat {
    Beat { key: claim_of(key), details }
}
