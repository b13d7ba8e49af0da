//! Queued steps: the log says which attempt of a step there is, from when on it may be taken and how it ended.
//! Who has it is not here: that is about the present, and the store's to keep.

use everstep_fault::{Bug, planted};

use super::Run;
use super::commit::{check_failure, stop_if_too_large};
use super::decide::{Draft, check_payload, cut};
use super::ops::check_free;
use crate::digest::Digest;
use crate::queued::{digest_of_failure, digest_of_result};
use crate::{
    Actor, Doubt, DoubtPolicy, Duration, Event, EventBody, Failure, OpId, Payload, QueuedOptions, Rejection,
    RetryDecision, Seq, StepEnd, StepScheduled, StepTask, StepTimeout, Timestamp, limits, validate_name,
};

/// Failure kind of an attempt whose worker is gone.
const WORKER_LOST: &str = "WorkerLost";
/// Failure kind of a step that took too long in one way or another.
const STEP_TIMEOUT: &str = "StepTimeout";
/// Failure kind of an attempt in doubt whose code takes a doubt for the end.
const IN_DOUBT: &str = "InDoubt";
/// Failure kind of a step that stopped because it was asked to.
const CANCELED: &str = "Canceled";

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    attempt: u32,
    /// What was said about it; `None` when Everstep itself ended it, so that no worker can have said the same.
    said: Option<Digest>,
}

/// A queued step that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QueuedState {
    name: String,
    options: QueuedOptions,
    scheduled: Seq,
    scheduled_at: Timestamp,
    /// The attempt that waits, runs or is in doubt, from 1.
    attempt: u32,
    visible_at: Timestamp,
    /// Failures that count against the policy.
    failures: u32,
    canceled: bool,
    /// Since when the attempt is in doubt.
    in_doubt: Option<Timestamp>,
    /// What its worker said of the attempt before: a repeat of that is no news.
    before: Option<Ended>,
}

impl QueuedState {
    fn close_by(&self) -> Option<Timestamp> {
        Some(self.scheduled_at.after(self.options.schedule_to_close?))
    }

    /// The earliest instant at which this time of the present attempt can have run out.
    fn runs_out(&self, timeout: StepTimeout) -> Option<Timestamp> {
        let options = &self.options;
        match timeout {
            StepTimeout::ScheduleToClose => self.close_by(),
            StepTimeout::Canceled => self.canceled.then_some(Timestamp::from_micros(i64::MIN)),
            StepTimeout::ScheduleToStart => Some(self.visible_at.after(options.schedule_to_start?)),
            StepTimeout::StartToClose => Some(self.visible_at.after(options.start_to_close?)),
            StepTimeout::Heartbeat => Some(self.visible_at.after(options.heartbeat?)),
        }
    }

    fn goes_on(&mut self, visible_at: Timestamp) {
        self.attempt += 1;
        self.visible_at = visible_at;
        self.in_doubt = None;
    }
}

impl Run {
    /// True when any queued step has not ended.
    pub fn has_queued_steps(&self) -> bool {
        !self.queued.is_empty()
    }

    /// A queued step that has not ended, as its row should be.
    pub fn step_task(&self, step: OpId) -> Option<StepTask> {
        let state = self.queued.get(&step)?;
        let QueuedState { name, options, scheduled, attempt, visible_at, canceled, in_doubt, .. } = &**state;
        let held = in_doubt.is_some();
        Some(StepTask {
            step,
            name: name.clone(),
            attempt: *attempt,
            queue: crate::QueueKey {
                namespace: self.start.namespace.clone(),
                task_queue: options.task_queue.clone(),
            },
            priority: options.priority,
            scheduled: *scheduled,
            visible_at: if held { StepTask::HELD } else { *visible_at },
            start_by: state.runs_out(StepTimeout::ScheduleToStart).filter(|_| !held),
            close_by: state.close_by(),
            start_to_close: options.start_to_close,
            heartbeat: options.heartbeat,
            canceled: *canceled,
        })
    }

    /// All queued steps that have not ended.
    pub fn step_tasks(&self) -> Vec<StepTask> {
        self.queued.keys().filter_map(|step| self.step_task(*step)).collect()
    }

    /// True when this is a queued step that has ended.
    pub fn ended_as_queued(&self, step: OpId) -> bool {
        self.queued_ended.contains_key(&step)
    }

    /// True when the operation is, or was, a queued step.
    pub(crate) fn is_queued(&self, op: OpId) -> bool {
        self.queued.contains_key(&op) || self.queued_ended.contains_key(&op)
    }

    pub(super) fn queued_doubt(&self, step: OpId) -> Option<Doubt> {
        let QueuedState { name, options, attempt, in_doubt, .. } = &**self.queued.get(&step)?;
        let policy = options.in_doubt?;
        Some(Doubt { step, name: name.clone(), attempt: *attempt, policy, since: (*in_doubt)? })
    }

    /// All attempts of queued steps that are in doubt.
    pub(super) fn queued_doubts(&self) -> impl Iterator<Item = Doubt> {
        self.queued.keys().filter_map(|step| self.queued_doubt(*step))
    }

    pub(super) fn note_scheduled(&mut self, event: &Event, scheduled: &StepScheduled) {
        let StepScheduled { step, name, input: _, options } = scheduled;
        let state = QueuedState {
            name: name.clone(),
            options: options.clone(),
            scheduled: event.seq,
            scheduled_at: event.at,
            attempt: 1,
            visible_at: event.at,
            failures: 0,
            canceled: false,
            in_doubt: None,
            before: None,
        };
        let before = self.queued.insert(*step, Box::new(state));
        self.doubts -= u32::from(before.is_some_and(|s| s.in_doubt.is_some()));
    }

    pub(super) fn note_step_cancel(&mut self, step: OpId) {
        if let Some(state) = self.queued.get_mut(&step) {
            state.canceled = true;
        }
    }

    /// The attempt is in doubt: `false` when this is no queued step.
    pub(super) fn note_queued_doubt(&mut self, step: OpId, at: Timestamp) -> bool {
        let Some(state) = self.queued.get_mut(&step) else { return false };
        self.doubts += u32::from(state.in_doubt.is_none());
        state.in_doubt = Some(at);
        true
    }

    fn end_queued(&mut self, step: OpId, ended: Ended) -> bool {
        let Some(state) = self.queued.remove(&step) else { return false };
        self.doubts -= u32::from(state.in_doubt.is_some());
        self.queued_ended.insert(step, ended);
        self.steps_ended.insert(step);
        self.wake();
        true
    }

    /// An attempt of a queued step failed; `false` when this is none.
    pub(super) fn fail_queued(
        &mut self,
        event: &Event,
        failure: &Failure,
        retry_at: Option<Timestamp>,
    ) -> bool {
        let EventBody::StepFailed { step, attempt, .. } = &event.body else { return false };
        if !self.queued.contains_key(step) {
            return false;
        }
        let by_everstep = event.actor == Actor::System;
        let said = (!by_everstep).then(|| digest_of_failure(failure));
        let ended = Ended { attempt: *attempt, said };
        let Some(retry_at) = retry_at else { return self.end_queued(*step, ended) };
        let Some(state) = self.queued.get_mut(step) else { return false };
        self.doubts -= u32::from(state.in_doubt.is_some());
        // Only Everstep itself can say that a worker is lost; a step may use the same word for something else.
        state.failures += u32::from(!(by_everstep && failure.kind == WORKER_LOST));
        state.before = Some(ended);
        state.goes_on(retry_at);
        true
    }

    /// A person says that the step has failed; `false` when this is no queued step.
    pub(super) fn fail_resolved(&mut self, step: OpId, attempt: u32, failure: &Failure) -> bool {
        self.queued.contains_key(&step)
            && self.end_queued(step, Ended { attempt, said: Some(digest_of_failure(failure)) })
    }

    /// A person says that the attempt had no effect; `false` when this is no queued step.
    pub(super) fn retry_queued(&mut self, step: OpId, at: Timestamp) -> bool {
        let Some(state) = self.queued.get_mut(&step) else { return false };
        self.doubts -= u32::from(state.in_doubt.is_some());
        state.goes_on(at);
        true
    }

    /// A queued step ended with a result; `false` when this is none.
    pub(super) fn complete_queued(&mut self, step: OpId, attempt: u32, result: &Payload) -> bool {
        self.queued.contains_key(&step)
            && self.end_queued(step, Ended { attempt, said: Some(digest_of_result(result)) })
    }

    /// Whether this is how the attempt ended.
    pub(super) fn was_finished(&self, step: OpId, attempt: u32, end: &StepEnd) -> bool {
        let said = match self.queued.get(&step) {
            Some(state) => state.before,
            None => self.queued_ended.get(&step).copied(),
        };
        said.is_some_and(|said| recorded(end).is_ok_and(|end| said == ended(attempt, &end)))
    }
}

/// The workflow asks for a step. `scheduled` are the operations that the same commit has scheduled before.
pub(super) fn schedule(
    draft: &mut Draft<'_>,
    scheduled: &mut Vec<OpId>,
    wanted: &StepScheduled,
) -> Result<(), Rejection> {
    let StepScheduled { step, name, input, options } = wanted;
    let run = draft.run;
    validate_name("step name", name)?;
    check_payload("input", input)?;
    let mut options = options.clone();
    if options.task_queue.is_empty() {
        options.task_queue.clone_from(&run.start.task_queue);
    }
    check_options(&options)?;
    check_free(draft, scheduled, *step)?;
    scheduled.push(*step);
    let (step, name, input) = (*step, name.clone(), input.clone());
    draft.push(EventBody::StepScheduled(Box::new(StepScheduled { step, name, input, options })));
    Ok(())
}

fn check_options(options: &QueuedOptions) -> Result<(), Rejection> {
    let bad = |field, problem: &str| Err(Rejection::InvalidArgument { field, problem: problem.to_owned() });
    validate_name("task_queue", &options.task_queue)?;
    options.retry.validate()?;
    if !(1..=QueuedOptions::PRIORITY_LAST).contains(&options.priority) {
        return bad("priority", "must be from 1 to 5");
    }
    if options.in_doubt == Some(DoubtPolicy::Verify) {
        return bad("in_doubt", "cannot be 'verify' for a queued step: nothing can be asked");
    }
    for (field, duration) in [
        ("schedule_to_start", options.schedule_to_start),
        ("start_to_close", options.start_to_close),
        ("schedule_to_close", options.schedule_to_close),
        ("heartbeat", options.heartbeat),
    ] {
        match duration {
            Some(Duration::ZERO) => return bad(field, "must be longer than zero"),
            Some(duration) if duration > limits::DURATION_MAX => {
                return bad(field, "must not be longer than 100 years");
            }
            _ => {}
        }
    }
    Ok(())
}

/// More steps at a time than a run may have end it, as a history does that is too large.
pub(super) fn stop_if_too_many(draft: &mut Draft<'_>) {
    let mut pending = draft.run.queued.len();
    if pending + draft.events.len() <= limits::QUEUED_STEPS_MAX {
        return;
    }
    pending += draft.events.iter().filter(|e| matches!(e.body, EventBody::StepScheduled(_))).count();
    if pending <= limits::QUEUED_STEPS_MAX || draft.events.last().is_some_and(|e| e.body.is_terminal()) {
        return;
    }
    draft.events.clear();
    let message = format!(
        "the run would have had {pending} queued steps at a time; the limit is {}. Wait for some before the next",
        limits::QUEUED_STEPS_MAX
    );
    let failure = Failure::new("LimitExceeded", message).non_retryable();
    draft.push(EventBody::RunFailed { failure, unconsumed: Vec::new(), retried_by: None });
}

/// The workflow does not want a step any more. It ends all the same, and says how.
pub(super) fn cancel(draft: &mut Draft<'_>, scheduled: &[OpId], step: OpId) -> Result<(), Rejection> {
    let asked = |e: &Event| matches!(e.body, EventBody::StepCancelRequested { step: id } if id == step);
    match draft.run.queued.get(&step) {
        Some(state) if state.canceled => Ok(()),
        None if draft.run.queued_ended.contains_key(&step) => Ok(()),
        None if !scheduled.contains(&step) => invalid(format!("queued step {step} was never scheduled")),
        _ if draft.events.iter().any(asked) => Ok(()),
        _ => {
            draft.push(EventBody::StepCancelRequested { step });
            Ok(())
        }
    }
}

/// The worker of an attempt says how it ended.
pub(super) fn finish(
    draft: &mut Draft<'_>,
    (step, attempt): (OpId, u32),
    elapsed: Duration,
    end: &StepEnd,
) -> Result<(), Rejection> {
    let run = draft.run;
    let end = recorded(end)?;
    let said = ended(attempt, &end);
    let Some(state) = run.queued.get(&step) else {
        return match run.queued_ended.get(&step) {
            None => Err(Rejection::StepNotFound { step }),
            Some(known) if *known == said => Ok(()),
            Some(known) if known.attempt == attempt && known.said.is_some() => {
                Err(Rejection::ResultConflict { step, attempt })
            }
            Some(_) => Err(Rejection::StaleAttempt { step, attempt }),
        };
    };
    if state.before == Some(said) {
        return Ok(());
    }
    if state.attempt != attempt && !planted(Bug::AcceptStaleAttempt) {
        return Err(Rejection::StaleAttempt { step, attempt });
    }
    match end {
        Ok(result) => {
            draft.push(EventBody::StepCompleted { step, name: state.name.clone(), attempt, elapsed, result })
        }
        Err(failure) => fail(draft, state, step, elapsed, failure),
    }
    stop_if_too_large(draft);
    Ok(())
}

/// A time of a queued step is said to have run out.
pub(super) fn expire(
    draft: &mut Draft<'_>,
    (step, attempt): (OpId, u32),
    timeout: StepTimeout,
) -> Result<(), Rejection> {
    let Some(state) = draft.run.queued.get(&step).filter(|s| s.attempt == attempt) else { return Ok(()) };
    let Some(due) = state.runs_out(timeout) else { return Ok(()) };
    if due > draft.now {
        return Err(Rejection::NotDue);
    }
    let of_attempt = matches!(timeout, StepTimeout::StartToClose | StepTimeout::Heartbeat);
    // An attempt in doubt waits for a person; only the time of the whole step goes on.
    if state.in_doubt.is_some() && timeout != StepTimeout::ScheduleToClose {
        return Ok(());
    }
    let since = draft.now.since(state.visible_at);
    let failure = match timeout {
        StepTimeout::Canceled => Failure::new(CANCELED, "canceled before a worker took it").non_retryable(),
        _ => timed_out(timeout),
    };
    if of_attempt {
        lost_attempt(draft, state, step, since, failure);
    } else {
        end_attempt(draft, state, (step, since), failure, None);
    }
    stop_if_too_large(draft);
    Ok(())
}

/// The worker that had an attempt is gone.
pub(super) fn lose(draft: &mut Draft<'_>, (step, attempt): (OpId, u32)) {
    let run = draft.run;
    let Some(state) = run.queued.get(&step).filter(|s| s.attempt == attempt && s.in_doubt.is_none()) else {
        return;
    };
    let since = draft.now.since(state.visible_at);
    let failure = Failure::new(WORKER_LOST, "the worker that had the attempt is gone");
    lost_attempt(draft, state, step, since, failure);
    stop_if_too_large(draft);
}

/// An attempt ended without a word from its worker: it may have had its effect.
fn lost_attempt(draft: &mut Draft<'_>, state: &QueuedState, step: OpId, since: Duration, failure: Failure) {
    match state.options.in_doubt {
        Some(DoubtPolicy::AskHuman | DoubtPolicy::Verify) => {
            let (name, attempt) = (state.name.clone(), state.attempt);
            draft.push(EventBody::StepInDoubt { step, name, attempt });
        }
        Some(DoubtPolicy::Fail) => {
            let mut doubt = Failure::new(IN_DOUBT, "nobody can say whether the attempt had its effect");
            doubt.cause = Some(Box::new(failure));
            end_attempt(draft, state, (step, since), doubt.non_retryable(), None);
        }
        Some(DoubtPolicy::Retry) | None => fail(draft, state, step, since, failure),
    }
}

/// An attempt failed; the policy decides whether there is another.
fn fail(draft: &mut Draft<'_>, state: &QueuedState, step: OpId, elapsed: Duration, failure: Failure) {
    // A worker that is lost says nothing about the step, and another may take it at once.
    let lost = failure.kind == WORKER_LOST && *draft.actor == Actor::System;
    let retry_at = if lost {
        Some(draft.at)
    } else {
        let seed = draft.run.start.seed ^ (u64::from(step.0) << 32);
        match state.options.retry.after_failure(state.failures + 1, &failure, seed) {
            RetryDecision::After(delay) => Some(draft.at.after(delay)),
            RetryDecision::Final => None,
        }
    };
    let in_time = |at: &Timestamp| state.close_by().is_none_or(|close_by| *at < close_by);
    let retry_at = retry_at.filter(|at| !state.canceled && in_time(at));
    end_attempt(draft, state, (step, elapsed), failure, retry_at);
}

fn end_attempt(
    draft: &mut Draft<'_>,
    state: &QueuedState,
    (step, elapsed): (OpId, Duration),
    failure: Failure,
    retry_at: Option<Timestamp>,
) {
    let (name, attempt) = (state.name.clone(), state.attempt);
    draft.push(EventBody::StepFailed { step, name, attempt, elapsed, failure, retry_at });
}

fn timed_out(timeout: StepTimeout) -> Failure {
    let message = match timeout {
        StepTimeout::ScheduleToStart => "no worker took the attempt in time",
        StepTimeout::StartToClose => "the attempt ran for too long",
        StepTimeout::ScheduleToClose => "the step took too long in all",
        StepTimeout::Heartbeat => "the attempt was silent for too long",
        StepTimeout::Canceled => "canceled before a worker took it",
    };
    let details = Payload::json(format!(r#"{{"timeout":"{}"}}"#, timeout.as_str()));
    Failure { details, ..Failure::new(STEP_TIMEOUT, message) }
}

/// What is kept of an end.
fn recorded(end: &StepEnd) -> Result<Result<Payload, Failure>, Rejection> {
    Ok(match end {
        StepEnd::Completed(result) => {
            check_payload("result", result)?;
            Ok(result.clone())
        }
        StepEnd::Failed(failure) => Err(check_failure(failure)?),
        StepEnd::Canceled(said) => Err(Failure::new(CANCELED, cut(said)).non_retryable()),
    })
}

fn ended(attempt: u32, end: &Result<Payload, Failure>) -> Ended {
    let said = match end {
        Ok(result) => digest_of_result(result),
        Err(failure) => digest_of_failure(failure),
    };
    Ended { attempt, said: Some(said) }
}

fn invalid<T>(problem: String) -> Result<T, Rejection> {
    Err(Rejection::InvalidCommands { problem })
}
