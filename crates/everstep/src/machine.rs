//! One run's workflow as a value: events in, work out. No IO, no runtime, no clock.

mod commands;
pub(crate) mod handlers;
#[cfg(test)]
mod tests;
mod updates;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use chrono::DateTime;
use everstep_core::replay::Mismatch;
use everstep_core::{
    BlockKind, Blocked, CommitCommand, DoubtPolicy, Event, EventBody, Failure, OpId, Payload, Resolution,
    RetryPolicy, RunId, RunStarted, Seq, TimerKind, Timestamp,
};

use crate::ctx::{CtxState, Guard, Known, OpState, Shared, Unsupported};
use crate::{Ctx, ProbeFn, RunInfo, WorkflowError};

/// Polls that one event may take: code that keeps waking itself does not come to rest.
const POLLS_MAX: u32 = 1_000;

/// A workflow's future.
pub(crate) type WorkflowFuture = Pin<Box<dyn Future<Output = Result<Payload, WorkflowError>> + Send>>;

/// Makes a workflow's future for one run.
pub(crate) type WorkflowFactory = Arc<dyn Fn(Ctx, Payload) -> WorkflowFuture + Send + Sync>;

/// What a step runs for each attempt.
pub type AttemptFn = Arc<dyn Fn() -> AttemptFuture + Send + Sync>;

/// A running attempt.
pub type AttemptFuture = Pin<Box<dyn Future<Output = Result<Payload, Failure>> + Send>>;

/// One run of a workflow, between two events.
pub struct Machine {
    pub(crate) shared: Arc<Shared>,
    future: Option<WorkflowFuture>,
    outcome: Option<Result<Payload, WorkflowError>>,
    finish_taken: bool,
    /// Updates whose answer is not recorded, in the order in which they were accepted.
    updates: Vec<updates::Update>,
    seen: Seq,
    detector: Arc<Detector>,
    waker: Waker,
    obstacle: Option<Obstacle>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("seen", &self.seen)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

/// Why a workflow cannot go on in this process.
#[derive(Clone, Debug)]
pub enum Obstacle {
    /// Code and history do not fit; record it and wait for other code.
    Blocked(Box<Blocked>),
    /// The code panicked with this message.
    Panicked(String),
}

/// Something that a workflow wants done.
pub enum Work {
    /// Run an attempt of a step, not before `not_before`.
    Attempt {
        /// The step.
        id: OpId,
        /// Its name.
        name: String,
        /// The attempt, from 1.
        attempt: u32,
        /// Its retry policy.
        policy: RetryPolicy,
        /// Longest time for one attempt.
        timeout: Option<Duration>,
        /// When it is due; database time.
        not_before: Option<Timestamp>,
        /// Set for a guarded step: begin it only when its start is recorded.
        guard: Option<DoubtPolicy>,
        /// What to run.
        run: AttemptFn,
    },
    /// Find out whether an attempt in doubt had its effect.
    Probe {
        /// The step.
        id: OpId,
        /// Its name.
        name: String,
        /// The attempt in doubt.
        attempt: u32,
        /// Longest time for one look.
        timeout: Option<Duration>,
        /// What to run.
        run: ProbeFn,
    },
    /// End a step whose attempt is in doubt as failed for good.
    GiveUp {
        /// The step.
        id: OpId,
        /// Its name.
        name: String,
        /// The attempt in doubt.
        attempt: u32,
        /// Why.
        failure: Failure,
    },
    /// Start a timer.
    StartTimer {
        /// The timer.
        id: OpId,
        /// How long from when it is recorded.
        delay: Duration,
    },
    /// Record this.
    Command(Box<CommitCommand>),
    /// Cancel a timer.
    CancelTimer {
        /// The timer.
        id: OpId,
    },
    /// Record which version of a change the code goes on with; before anything that follows from it.
    MarkVersion {
        /// The change.
        change_id: String,
        /// The version.
        version: u32,
    },
    /// The workflow has ended.
    Finish {
        /// With a result or an error.
        outcome: Result<Payload, WorkflowError>,
        /// Signals that it never took, by seq.
        unconsumed: Vec<Seq>,
    },
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attempt { id, name, attempt, .. } => write!(f, "Attempt({id} {name} {attempt})"),
            Self::Probe { id, name, attempt, .. } => write!(f, "Probe({id} {name} {attempt})"),
            Self::GiveUp { id, name, attempt, .. } => write!(f, "GiveUp({id} {name} {attempt})"),
            Self::Command(command) => write!(f, "Command({command:?})"),
            Self::StartTimer { id, delay } => write!(f, "StartTimer({id} {delay:?})"),
            Self::CancelTimer { id } => write!(f, "CancelTimer({id})"),
            Self::MarkVersion { change_id, version } => write!(f, "MarkVersion({change_id} {version})"),
            Self::Finish { outcome, unconsumed } => write!(f, "Finish({outcome:?} {unconsumed:?})"),
        }
    }
}

/// Counts wakes; clones of its waker show in its reference count.
#[derive(Debug, Default)]
struct Detector {
    wakes: AtomicU32,
}

impl Wake for Detector {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }
}

impl Machine {
    /// A run whose history begins with this `RunStarted` event, and says this in all. Apply that event first.
    #[doc(hidden)]
    pub fn new(
        run: RunId,
        start: &RunStarted,
        at: Timestamp,
        workflow: &WorkflowFactory,
        known: Known,
    ) -> Self {
        let info = RunInfo {
            run_id: run,
            workflow_id: start.workflow_id.clone(),
            workflow_type: start.workflow_type.clone(),
            namespace: start.namespace.clone(),
            task_queue: start.task_queue.clone(),
            started_at: DateTime::from_timestamp_micros(at.as_micros()).unwrap_or_default(),
            attempt: start.origin.attempt.max(1),
            parent: start.origin.parent.as_ref().map(|parent| parent.run_id),
            previous: start.origin.previous,
        };
        // A delayed run's code is not run before its start, so that is what it takes for now.
        let now = start.start_at.map_or(at, |start| start.max(at));
        let step_retry = start.step_retry.clone().unwrap_or_default();
        let shared = Arc::new(Shared::new(info, step_retry, start.seed, now, known));
        let future = {
            let _polled = shared.enter();
            workflow(Ctx::new(Arc::clone(&shared)), start.input.clone())
        };
        let detector = Arc::new(Detector::default());
        let waker = Waker::from(Arc::clone(&detector));
        Self {
            shared,
            future: Some(future),
            outcome: None,
            finish_taken: false,
            updates: Vec::new(),
            seen: 0,
            detector,
            waker,
            obstacle: None,
        }
    }

    /// Last event applied.
    pub fn seen(&self) -> Seq {
        self.seen
    }

    /// From here on, events are news: logging speaks.
    pub fn end_replay(&mut self) {
        self.shared.lock().replaying = false;
    }

    /// Applies one event, then polls the workflow until it rests. One event, one activation.
    ///
    /// # Errors
    /// [`Obstacle`]; and the same one again for every later event.
    pub fn apply(&mut self, event: &Event) -> Result<(), Obstacle> {
        if let Some(obstacle) = &self.obstacle {
            return Err(obstacle.clone());
        }
        let result = self.apply_checked(event);
        if let Err(obstacle) = &result {
            self.obstacle = Some(obstacle.clone());
        }
        result
    }

    fn apply_checked(&mut self, event: &Event) -> Result<(), Obstacle> {
        {
            let mut state = self.shared.lock();
            state
                .replay
                .check(event)
                .map_err(|mismatch| Obstacle::Blocked(Box::new(nondeterminism(&mismatch))))?;
            state.activation += 1;
            state.history_bytes += event.body.payload().map_or(0, |p| p.data.len() as u64);
            state.at = state.at.max(event.at);
        }
        self.check_update(event)?;
        self.seen = event.seq;
        self.note(event);
        self.note_update(event);
        self.poll()
    }

    fn note(&mut self, event: &Event) {
        let mut state = self.shared.lock();
        note_step(&mut state, event);
        commands::note(&mut state, event);
        match &event.body {
            EventBody::TimerStarted { timer, .. } => {
                if let Some(op) = state.timer(*timer) {
                    op.started = true;
                }
            }
            EventBody::TimerFired { timer } if timer.kind == TimerKind::Timer => {
                if let Some(op) = state.timer(OpId(timer.id)) {
                    op.fired = true;
                }
            }
            EventBody::TimerFired { timer } if timer.kind == TimerKind::Retry => {
                // Its row is gone: nothing but this process starts the attempt now.
                if let Some(op) = state.step(OpId(timer.id)) {
                    op.retry_at = None;
                }
            }
            EventBody::TimerCanceled { timer } => {
                if let Some(op) = state.timer(*timer) {
                    op.cancel_emitted = true;
                }
            }
            EventBody::SignalReceived { name, input, .. } => {
                state.signals.entry(name.clone()).or_default().push_back((event.seq, input.clone()));
            }
            EventBody::CancelRequested { .. } => state.cancel_requested = true,
            EventBody::VersionMarked { change_id, version } => state.versions.mark(change_id, *version),
            _ => {}
        }
    }

    fn poll(&mut self) -> Result<(), Obstacle> {
        for _ in 0..POLLS_MAX {
            let Some(future) = &mut self.future else { return Ok(()) };
            let before = updates::progress(&self.shared, &self.updates);
            let wakes = self.detector.wakes.load(Ordering::Relaxed);
            let mut cx = Context::from_waker(&self.waker);
            let polled = {
                let _polled = self.shared.enter();
                catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut cx)))
            };
            match polled {
                Err(panic) => {
                    self.future = None;
                    return Err(self.stopped(&*panic));
                }
                Ok(Poll::Ready(outcome)) => {
                    self.outcome = Some(outcome);
                    // Whatever the code still holds is dropped now, as it was in the original.
                    self.future = None;
                    self.drop_updates();
                    return Ok(());
                }
                Ok(Poll::Pending) => {}
            }
            self.poll_updates()?;
            // One count is ours, one the waker's; a third is a future that waits for something else.
            if Arc::strong_count(&self.detector) > 2 {
                return Err(Obstacle::Blocked(Box::new(self.foreign_wake("kept the waker"))));
            }
            // What one part of the code changes, another may wait for.
            let moved = updates::progress(&self.shared, &self.updates).is_some_and(|now| before != Some(now));
            if !moved && self.detector.wakes.load(Ordering::Relaxed) == wakes {
                return Ok(());
            }
        }
        Err(Obstacle::Blocked(Box::new(self.foreign_wake("woke itself again and again"))))
    }

    /// What stopped the code in the middle of a poll.
    fn stopped(&self, panic: &(dyn std::any::Any + Send)) -> Obstacle {
        let Some(Unsupported { change, code, source }) = panic.downcast_ref() else {
            return Obstacle::Panicked(panic_message(panic));
        };
        Obstacle::Blocked(Box::new(nondeterminism(&Mismatch {
            seq: self.seen,
            expected: change.clone(),
            produced: code.clone(),
            source: Some(source),
        })))
    }

    fn foreign_wake(&self, what: &str) -> Blocked {
        let source = self.shared.lock().replay.last_source().map(ToString::to_string).unwrap_or_default();
        Blocked {
            kind: BlockKind::ForeignWake,
            at_seq: self.seen,
            expected: "a workflow that waits only for its ctx".to_owned(),
            produced: format!("a future that {what}: a tokio timer, a channel or a task handle"),
            source,
            hint: "move it into ctx.step, or use ctx.sleep, ctx.signal, everstep::join! or everstep::select!; the \
                   source is the last ctx call before it"
                .to_owned(),
            build_id: String::new(),
        }
    }

    /// What the workflow wants done and nobody does yet, in the order in which it asked. Call it only
    /// when all known events are applied.
    pub fn take_work(&mut self) -> Vec<Work> {
        let mut state = self.shared.lock();
        let mut fresh = std::mem::take(&mut state.fresh);
        fresh.sort_unstable();
        fresh.dedup();
        let marks = state.versions.take().into_iter();
        let mut work: Vec<Work> =
            marks.map(|(change_id, version)| Work::MarkVersion { change_id, version }).collect();
        for id in fresh {
            let Some(wanted) = state.ops.get_mut(id.0 as usize - 1).and_then(|op| work_of(id, op)) else {
                continue;
            };
            // What the code only says has no end to wait for.
            if matches!(&wanted, Work::Command(command) if !matches!(**command, CommitCommand::Upsert { .. }))
            {
                state.awaited.insert(id);
            }
            work.push(wanted);
        }
        updates::take_answers(&mut self.updates, &mut work);
        if let Some(outcome) = &self.outcome
            && !self.finish_taken
        {
            self.finish_taken = true;
            let mut unconsumed: Vec<Seq> = state.signals.values().flatten().map(|(seq, _)| *seq).collect();
            unconsumed.sort_unstable();
            work.push(Work::Finish { outcome: outcome.clone(), unconsumed });
        }
        work
    }

    /// The attempt of a step that is in doubt, if one is.
    pub fn doubt(&self, id: OpId) -> Option<u32> {
        self.shared.lock().step(id)?.doubt
    }

    /// A probe has found that the attempt in doubt had no effect and will have none: the next one may begin.
    pub fn disprove(&mut self, id: OpId, attempt: u32) {
        let mut state = self.shared.lock();
        if let Some(op) = state.step(id)
            && op.doubt == Some(attempt)
        {
            op.doubt = None;
            op.in_flight = false;
            state.fresh.push(id);
        }
    }

    /// True when a guarded attempt is recorded as begun and not as ended or in doubt. Whoever has not begun it
    /// himself cannot know how it stands.
    pub fn has_begun(&self) -> bool {
        let state = self.shared.lock();
        state.ops.iter().any(|op| matches!(op, OpState::Step(step) if step.begun))
    }

    /// The workflow waits for something that only a later event brings.
    pub fn is_waiting(&self) -> bool {
        self.future.is_some() && self.obstacle.is_none()
    }

    /// Others carry something out for the code, and its end comes from them: whenever they like.
    pub fn awaits_others(&self) -> bool {
        self.works_on_updates() || !self.shared.lock().awaited.is_empty()
    }

    /// Where the code last called its ctx.
    pub fn run_info(&self) -> &RunInfo {
        &self.shared.info
    }
}

/// What an event says of a step.
fn note_step(state: &mut CtxState, event: &Event) {
    match &event.body {
        EventBody::StepStarted { step, attempt, in_doubt, .. } => {
            if let Some(op) = state.step(*step) {
                op.recorded = op.recorded.max(*attempt);
                op.begun = in_doubt.is_some();
                op.doubt = None;
                // It was due, so what follows it need not wait for that again: no timer would wake the run for it.
                op.retry_at = None;
            }
        }
        EventBody::StepInDoubt { step, attempt, .. } => {
            let id = *step;
            if let Some(op) = state.step(id) {
                op.recorded = op.recorded.max(*attempt);
                op.begun = false;
                op.doubt = Some(*attempt);
                op.in_flight = false;
            }
            state.fresh.push(id);
        }
        EventBody::StepResolved(resolved) => {
            if let Some(op) = state.step(resolved.step) {
                op.doubt = None;
                op.in_flight = false;
                op.outcome = match &resolved.resolution {
                    Resolution::Completed(result) => Some(Ok(result.clone())),
                    Resolution::Failed(failure) => Some(Err(failure.clone())),
                    Resolution::Retry => None,
                };
            }
            state.fresh.push(resolved.step);
        }
        EventBody::StepCompleted { step, attempt, result, .. } => {
            if let Some(op) = state.step(*step) {
                op.recorded = op.recorded.max(*attempt);
                op.begun = false;
                op.doubt = None;
                op.outcome = Some(Ok(result.clone()));
            }
        }
        EventBody::StepFailed { step, attempt, failure, retry_at, .. } => {
            let id = *step;
            if let Some(op) = state.step(id) {
                op.recorded = op.recorded.max(*attempt);
                op.begun = false;
                op.doubt = None;
                op.in_flight = false;
                op.retry_at = *retry_at;
                if retry_at.is_none() {
                    op.outcome = Some(Err(failure.clone()));
                }
            }
            state.fresh.push(id);
        }
        _ => {}
    }
}

fn work_of(id: OpId, op: &mut OpState) -> Option<Work> {
    match op {
        OpState::Step(step) => {
            if !step.requested || step.in_flight || step.outcome.is_some() || step.dropped {
                return None;
            }
            let (name, timeout) = (step.name.clone(), step.timeout);
            let work = match (step.doubt, &step.guard) {
                (Some(_), Some(Guard::AskHuman)) => return None,
                (Some(attempt), Some(Guard::Verify(run))) => {
                    Work::Probe { id, name, attempt, timeout, run: Arc::clone(run) }
                }
                (Some(attempt), Some(Guard::Fail)) => {
                    Work::GiveUp { id, name, attempt, failure: in_doubt(attempt) }
                }
                (None, _) | (Some(_), Some(Guard::Retry) | None) => Work::Attempt {
                    id,
                    name,
                    attempt: step.recorded + 1,
                    policy: step.policy.clone(),
                    timeout,
                    not_before: step.retry_at,
                    guard: step.guard.as_ref().map(Guard::policy),
                    run: Arc::clone(&step.attempt),
                },
            };
            step.in_flight = true;
            Some(work)
        }
        OpState::Command(op) => op.next().map(|command| Work::Command(Box::new(command))),
        OpState::Timer(timer) => {
            timer.requested?;
            if timer.canceled {
                let known = timer.started || timer.emitted;
                if !known || timer.fired || timer.cancel_emitted {
                    return None;
                }
                timer.cancel_emitted = true;
                return Some(Work::CancelTimer { id });
            }
            if timer.started || timer.emitted || timer.fired {
                return None;
            }
            timer.emitted = true;
            Some(Work::StartTimer { id, delay: timer.delay })
        }
    }
}

fn in_doubt(attempt: u32) -> Failure {
    let message =
        format!("the worker was lost during attempt {attempt}, and nobody knows whether it had its effect");
    Failure::new("InDoubt", message).non_retryable()
}

fn nondeterminism(mismatch: &Mismatch) -> Blocked {
    Blocked {
        kind: BlockKind::Nondeterminism,
        at_seq: mismatch.seq,
        expected: mismatch.expected.clone(),
        produced: mismatch.produced.clone(),
        source: mismatch.source.map(ToString::to_string).unwrap_or_default(),
        hint: "the workflow's code has changed under an open run: start a worker with the former code, or with code \
               that fits, under another build id"
            .to_owned(),
        build_id: String::new(),
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "no message".to_owned()))
}
