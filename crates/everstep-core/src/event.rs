//! Facts. A history is these, in `seq` order, and nothing else.

use serde::{Deserialize, Serialize};

use crate::{
    ChildClosed, ChildScheduled, CommandId, Duration, Epoch, ExternalAction, ExternalRequested, Failure,
    HeardSignal, Notes, NotesChange, OpId, Payload, RetryPolicy, RunId, Seq, SessionId, StepScheduled,
    Timestamp,
};

/// One immutable fact of one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Position in the history, from 1.
    pub seq: Seq,
    /// Database time of the decision. Never decides anything; it feeds `ctx.now` and people.
    pub at: Timestamp,
    /// The run's epoch when this was appended. Never falls along a history.
    pub epoch: Epoch,
    /// The request that caused this event.
    pub command_id: CommandId,
    /// Who caused it.
    pub actor: Actor,
    /// What happened.
    pub body: EventBody,
}

/// Who caused an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Actor {
    /// A caller of the API, by the identity that it gave.
    Client(String),
    /// The worker that owned the run, by its identity.
    Worker(String),
    /// Everstep itself: a timer, a sweep, a limit.
    System,
    /// Another run, by what its workflow asked for or by its end.
    Run(RunId),
}

/// What happened. Names are noun + past participle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventBody {
    /// The first event of every run.
    RunStarted(Box<RunStarted>),
    /// A worker took the run: the claim. Its epoch is the event's.
    WorkerAttached {
        /// The claiming session.
        session: SessionId,
        /// Which worker that is.
        worker: WorkerInfo,
        /// The run stays with its build.
        pinned: bool,
    },
    /// The run has no worker any more.
    WorkerDetached {
        /// Why.
        reason: DetachReason,
    },
    /// An attempt of a step began, and took long enough (or was important enough) to be recorded.
    StepStarted {
        /// The step.
        step: OpId,
        /// Its name in the workflow's code.
        name: String,
        /// Attempt number, from 1.
        attempt: u32,
        /// Set for a guarded step: this was durable before the effect began, and an attempt whose end is not
        /// recorded is in doubt.
        in_doubt: Option<DoubtPolicy>,
    },
    /// The owner of the run is gone, and nobody can say whether this attempt of a guarded step had its effect.
    StepInDoubt {
        /// The step.
        step: OpId,
        /// Its name.
        name: String,
        /// The attempt.
        attempt: u32,
    },
    /// A person said what became of an attempt in doubt.
    StepResolved(Box<StepResolved>),
    /// The workflow asked for a step that a worker of a task queue runs.
    StepScheduled(Box<StepScheduled>),
    /// The workflow does not want a queued step any more. The step ends all the same, and says how.
    StepCancelRequested {
        /// The step.
        step: OpId,
    },
    /// A step ended well. Its start may be folded into this event (see `attempt` and `elapsed`).
    StepCompleted {
        /// The step.
        step: OpId,
        /// Its name.
        name: String,
        /// The attempt that succeeded.
        attempt: u32,
        /// How long that attempt ran.
        elapsed: Duration,
        /// What it returned.
        result: Payload,
    },
    /// An attempt of a step failed.
    StepFailed {
        /// The step.
        step: OpId,
        /// Its name.
        name: String,
        /// The attempt that failed.
        attempt: u32,
        /// How long that attempt ran.
        elapsed: Duration,
        /// Why.
        failure: Failure,
        /// When the next attempt is due; `None` when this was the last.
        retry_at: Option<Timestamp>,
    },
    /// The workflow asked to be woken.
    TimerStarted {
        /// The timer.
        timer: OpId,
        /// When.
        fire_at: Timestamp,
    },
    /// A timer's instant has come. Of kind [`TimerKind::Retry`] only when the run had no worker.
    TimerFired {
        /// Which.
        timer: TimerKey,
    },
    /// The workflow no longer waits for a timer.
    TimerCanceled {
        /// The timer.
        timer: OpId,
    },
    /// Somebody sent the run a message.
    SignalReceived {
        /// Name that the workflow waits for.
        name: String,
        /// Sender's id of this signal; unique within the run.
        signal_id: String,
        /// The message.
        input: Payload,
    },
    /// The run's code has agreed to do what somebody asks for, as it stood after the event before.
    UpdateAccepted {
        /// The caller's id of the request; unique within the run.
        update_id: String,
        /// Name of the handler.
        name: String,
        /// What it gets.
        input: Payload,
    },
    /// The run's code has answered an update.
    UpdateCompleted {
        /// The event that accepted it.
        accepted: Seq,
        /// The caller's id of the request.
        update_id: String,
        /// What came of it.
        outcome: UpdateOutcome,
    },
    /// Somebody asked the workflow to stop in its own time.
    CancelRequested {
        /// Why, for a person; may be empty.
        reason: String,
    },
    /// The workflow came to a place where its code has changed, and goes on as this version.
    VersionMarked {
        /// The change, as the code calls it.
        change_id: String,
        /// The version that was chosen, for as long as the run lives.
        version: u32,
    },
    /// The workflow started a child. Its run begins a moment later.
    ChildScheduled(Box<ChildScheduled>),
    /// A child has begun. Only when the code asked to be told.
    ChildStarted {
        /// The operation of the code.
        child: OpId,
        /// The event that scheduled it.
        scheduled: Seq,
    },
    /// A child has ended, or could not begin.
    ChildClosed(Box<ChildClosed>),
    /// The workflow wants something of another run.
    ExternalRequested(Box<ExternalRequested>),
    /// What became of such a request.
    ExternalResolved {
        /// The operation of the code.
        op: OpId,
        /// The event that made the request.
        requested: Seq,
        /// Why it was not delivered; `None` when it was.
        failure: Option<Failure>,
    },
    /// The workflow said something about itself, for lists and people.
    AttributesUpserted {
        /// The operation of the code.
        op: OpId,
        /// What changed.
        notes: Box<NotesChange>,
    },
    /// The run cannot go on until a worker with other code connects.
    RunBlocked(Box<Blocked>),
    /// A worker with other code connected.
    RunUnblocked {
        /// The build that will try.
        build_id: String,
    },
    /// The workflow returned a result. Last event.
    RunCompleted {
        /// What it returned.
        result: Payload,
        /// Signals that it never consumed, by seq.
        unconsumed: Vec<Seq>,
    },
    /// The workflow returned an error, or a limit stopped it. Last event.
    RunFailed {
        /// Why.
        failure: Failure,
        /// Signals that it never consumed, by seq; none when another attempt is given them again.
        unconsumed: Vec<Seq>,
        /// The run that is the next attempt. It was started in the same append.
        retried_by: Option<RunId>,
    },
    /// The workflow goes on in a new run, which was started in the same append. Last event.
    RunContinued {
        /// The new run.
        successor: RunId,
        /// What that run is given again, by seq: signals that this one never consumed, and the request to stop.
        carried: Vec<Seq>,
    },
    /// The workflow ended after a cancel request. Last event.
    RunCanceled {
        /// What the workflow said about it; may be empty.
        details: String,
    },
    /// Somebody stopped the run by force. Last event.
    RunTerminated {
        /// Why, for a person; may be empty.
        reason: String,
    },
    /// The run outlived its run timeout. Last event.
    RunTimedOut {
        /// The run that is the next attempt. It was started in the same append.
        retried_by: Option<RunId>,
    },
    /// An event of a newer version that readers may skip. Never written by this version.
    Ignored {
        /// Its kind, as stored.
        kind: String,
    },
}

/// How a run began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStarted {
    /// Isolation boundary.
    pub namespace: String,
    /// The caller's business key.
    pub workflow_id: String,
    /// Which workflow.
    pub workflow_type: String,
    /// Queue whose workers run it.
    pub task_queue: String,
    /// Argument of the workflow.
    pub input: Payload,
    /// The caller's id of the request.
    pub request_id: String,
    /// Longest life of the run.
    pub run_timeout: Option<Duration>,
    /// Seed of `ctx.random` and `ctx.uuid`.
    pub seed: u64,
    /// W3C trace context of the request that started the run.
    pub trace: TraceContext,
    /// Before this instant it has no worker.
    pub start_at: Option<Timestamp>,
    /// Whether and when a new run tries again after this one has failed.
    pub retry: Option<RetryPolicy>,
    /// Which runs it comes from.
    pub origin: Origin,
    /// The policy of steps whose code sets none.
    pub step_retry: Option<RetryPolicy>,
    /// What it says about itself as it begins.
    pub notes: Notes,
}

/// Which runs a run comes from; all empty for one that a caller asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Origin {
    /// The run whose workflow started this one.
    pub parent: Option<ParentLink>,
    /// The run that this one follows.
    pub previous: Option<RunId>,
    /// The first run of the chain that this one is in.
    pub first: Option<RunId>,
    /// Which attempt this is of those that follow failures, from 1; 0 reads as 1.
    pub attempt: u32,
    /// Signals that the runs before it took a moment ago, by id.
    pub heard: Vec<HeardSignal>,
}

/// The place in another run's history that a run comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentLink {
    /// The run that started it.
    pub run_id: RunId,
    /// The operation of that run's code.
    pub child: OpId,
    /// The event that scheduled it.
    pub scheduled: Seq,
    /// The code asked to be told of the start.
    pub report_start: bool,
    /// Generations above that run: 0 when it is nobody's child.
    #[serde(default)]
    pub above: u32,
}

/// W3C trace context; both empty when there was none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    /// The `traceparent` header.
    pub traceparent: String,
    /// The `tracestate` header.
    pub tracestate: String,
}

/// What a worker says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// For people: host, process, whatever tells it apart.
    pub identity: String,
    /// Which code it runs.
    pub build_id: String,
}

/// What the code of a guarded step does about an attempt in doubt. Recorded for people: the code that meets the
/// doubt decides, so that fixed code can change its mind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DoubtPolicy {
    /// Runs the next attempt: the effect may happen twice.
    Retry,
    /// Asks a probe whether the effect happened.
    Verify,
    /// Waits for a person.
    AskHuman,
    /// Ends the step as failed with kind `InDoubt`.
    Fail,
}

impl DoubtPolicy {
    /// Every policy.
    pub const ALL: [Self; 4] = [Self::Retry, Self::Verify, Self::AskHuman, Self::Fail];

    /// The stable word used in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Verify => "verify",
            Self::AskHuman => "ask_human",
            Self::Fail => "fail",
        }
    }

    /// The policy whose word is `text`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.as_str() == text)
    }
}

/// What a person said about an attempt in doubt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResolved {
    /// The step.
    pub step: OpId,
    /// Its name.
    pub name: String,
    /// The attempt.
    pub attempt: u32,
    /// What became of it.
    pub resolution: Resolution,
    /// Why, for a person; may be empty.
    pub note: String,
}

/// What became of an attempt in doubt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resolution {
    /// It had its effect, with this result. The step has ended.
    Completed(Payload),
    /// The step has ended with this failure.
    Failed(Failure),
    /// It had no effect, or another one does no harm: the next attempt is due.
    Retry,
}

/// What a run's code answers to an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateOutcome {
    /// It is done, with this result.
    Completed(Payload),
    /// It was accepted, and failed all the same.
    Failed(Failure),
}

/// Why a worker let go of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DetachReason {
    /// The workflow only waits; the worker had seen every event before this one.
    Parked,
    /// The worker gave the run back unfinished (it drains, or its code panicked with this message).
    Released(String),
    /// The worker's session was closed: it died, or was cut off for longer than its lease.
    Lost,
}

/// What a run waits for on the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TimerKey {
    /// Which kind.
    pub kind: TimerKind,
    /// The timer's or step's id; 0 for the run timeout and the start.
    pub id: u32,
}

/// The kinds of instants a run waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TimerKind {
    /// `ctx.sleep`.
    Timer,
    /// The next attempt of a failed step.
    Retry,
    /// The run's longest life.
    RunTimeout,
    /// The instant before which the run has no worker.
    Start,
}

impl TimerKey {
    /// The run timeout.
    pub const RUN_TIMEOUT: Self = Self { kind: TimerKind::RunTimeout, id: 0 };
    /// The start of a run that was delayed.
    pub const START: Self = Self { kind: TimerKind::Start, id: 0 };

    /// A timer of the workflow's.
    pub const fn timer(id: OpId) -> Self {
        Self { kind: TimerKind::Timer, id: id.0 }
    }

    /// The retry of a step.
    pub const fn retry(step: OpId) -> Self {
        Self { kind: TimerKind::Retry, id: step.0 }
    }
}

/// Why a run is blocked, with both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// Which kind of obstacle.
    pub kind: BlockKind,
    /// The event that the code disagreed with; 0 when none.
    pub at_seq: Seq,
    /// What the history says.
    pub expected: String,
    /// What the code did.
    pub produced: String,
    /// `file:line` of the workflow call concerned; may be empty.
    pub source: String,
    /// What to do, for a person.
    pub hint: String,
    /// The build that met the obstacle.
    pub build_id: String,
}

/// Kinds of obstacles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockKind {
    /// The code does something other than the history says.
    Nondeterminism,
    /// The code waits for something that is not in the history (a tokio timer, a channel, a thread).
    ForeignWake,
    /// Worker after worker recorded nothing.
    Poison,
}

impl EventBody {
    /// The event's stable name, in CamelCase: used in SQL, on the wire and by people.
    pub fn kind(&self) -> &str {
        match self {
            Self::RunStarted(_) => "RunStarted",
            Self::WorkerAttached { .. } => "WorkerAttached",
            Self::WorkerDetached { .. } => "WorkerDetached",
            Self::StepStarted { .. } => "StepStarted",
            Self::StepInDoubt { .. } => "StepInDoubt",
            Self::StepResolved(_) => "StepResolved",
            Self::StepScheduled(_) => "StepScheduled",
            Self::StepCancelRequested { .. } => "StepCancelRequested",
            Self::StepCompleted { .. } => "StepCompleted",
            Self::StepFailed { .. } => "StepFailed",
            Self::TimerStarted { .. } => "TimerStarted",
            Self::TimerFired { .. } => "TimerFired",
            Self::TimerCanceled { .. } => "TimerCanceled",
            Self::SignalReceived { .. } => "SignalReceived",
            Self::UpdateAccepted { .. } => "UpdateAccepted",
            Self::UpdateCompleted { .. } => "UpdateCompleted",
            Self::CancelRequested { .. } => "CancelRequested",
            Self::VersionMarked { .. } => "VersionMarked",
            Self::AttributesUpserted { .. } => "AttributesUpserted",
            Self::ChildScheduled(_) => "ChildScheduled",
            Self::ChildStarted { .. } => "ChildStarted",
            Self::ChildClosed(_) => "ChildClosed",
            Self::ExternalRequested(_) => "ExternalRequested",
            Self::ExternalResolved { .. } => "ExternalResolved",
            Self::RunBlocked(_) => "RunBlocked",
            Self::RunUnblocked { .. } => "RunUnblocked",
            Self::RunCompleted { .. } => "RunCompleted",
            Self::RunFailed { .. } => "RunFailed",
            Self::RunCanceled { .. } => "RunCanceled",
            Self::RunTerminated { .. } => "RunTerminated",
            Self::RunContinued { .. } => "RunContinued",
            Self::RunTimedOut { .. } => "RunTimedOut",
            Self::Ignored { kind } => kind,
        }
    }

    /// True for the last event of a run.
    pub fn is_terminal(&self) -> bool {
        matches!(
            self,
            Self::RunCompleted { .. }
                | Self::RunFailed { .. }
                | Self::RunCanceled { .. }
                | Self::RunTerminated { .. }
                | Self::RunContinued { .. }
                | Self::RunTimedOut { .. }
        )
    }

    /// True for what can come to a run without its owner: the owner has to be told. Ends of steps are among them, as
    /// others run queued steps; what the owner itself committed is told apart by its command.
    pub fn is_news_from_outside(&self) -> bool {
        match self {
            Self::SignalReceived { .. }
            | Self::CancelRequested { .. }
            | Self::TimerFired { .. }
            | Self::StepInDoubt { .. }
            | Self::StepResolved(_)
            | Self::StepCompleted { .. }
            | Self::StepFailed { .. }
            | Self::UpdateAccepted { .. }
            | Self::ChildStarted { .. }
            | Self::ChildClosed(_)
            | Self::ExternalResolved { .. } => true,
            Self::RunStarted(_)
            | Self::WorkerAttached { .. }
            | Self::WorkerDetached { .. }
            | Self::StepStarted { .. }
            | Self::StepScheduled(_)
            | Self::StepCancelRequested { .. }
            | Self::TimerStarted { .. }
            | Self::TimerCanceled { .. }
            | Self::UpdateCompleted { .. }
            | Self::VersionMarked { .. }
            | Self::AttributesUpserted { .. }
            | Self::ChildScheduled(_)
            | Self::ExternalRequested(_)
            | Self::RunBlocked(_)
            | Self::RunUnblocked { .. }
            | Self::RunCompleted { .. }
            | Self::RunFailed { .. }
            | Self::RunCanceled { .. }
            | Self::RunTerminated { .. }
            | Self::RunContinued { .. }
            | Self::RunTimedOut { .. }
            | Self::Ignored { .. } => false,
        }
    }

    /// The run that follows the one that this event ends, if one does.
    pub fn successor(&self) -> Option<RunId> {
        match self {
            Self::RunContinued { successor, .. } => Some(*successor),
            Self::RunFailed { retried_by, .. } | Self::RunTimedOut { retried_by } => *retried_by,
            _ => None,
        }
    }

    /// The operation of the workflow's code that this event is about, if it is about one.
    pub fn op(&self) -> Option<OpId> {
        match self {
            Self::StepResolved(resolved) => Some(resolved.step),
            Self::StepScheduled(scheduled) => Some(scheduled.step),
            Self::ChildScheduled(scheduled) => Some(scheduled.child),
            Self::ChildClosed(closed) => Some(closed.child),
            Self::ExternalRequested(requested) => Some(requested.op),
            Self::ChildStarted { child: op, .. } | Self::ExternalResolved { op, .. } => Some(*op),
            Self::StepStarted { step: op, .. }
            | Self::StepInDoubt { step: op, .. }
            | Self::StepCancelRequested { step: op }
            | Self::AttributesUpserted { op, .. }
            | Self::StepCompleted { step: op, .. }
            | Self::StepFailed { step: op, .. }
            | Self::TimerStarted { timer: op, .. }
            | Self::TimerCanceled { timer: op } => Some(*op),
            Self::TimerFired { timer: TimerKey { kind: TimerKind::Timer | TimerKind::Retry, id } } => {
                Some(OpId(*id))
            }
            _ => None,
        }
    }

    /// Bytes of the user's that are kept with this event: its payload, and notes.
    pub fn data_bytes(&self) -> usize {
        let notes = match self {
            Self::RunStarted(started) => started.notes.bytes(),
            Self::AttributesUpserted { notes, .. } => notes.bytes(),
            Self::ChildScheduled(scheduled) => scheduled.notes.bytes(),
            _ => 0,
        };
        self.payload().map_or(0, |payload| payload.data.len()) + notes
    }

    /// The user's bytes that this event carries, if its kind carries any.
    pub fn payload(&self) -> Option<&Payload> {
        match self {
            Self::RunStarted(s) => Some(&s.input),
            Self::StepScheduled(scheduled) => Some(&scheduled.input),
            Self::ChildScheduled(scheduled) => Some(&scheduled.input),
            Self::ChildClosed(closed) => Some(closed.outcome.payload()),
            Self::ExternalRequested(requested) => match &requested.action {
                ExternalAction::Signal { input, .. } => Some(input),
                ExternalAction::Cancel { .. } => None,
            },
            Self::ExternalResolved { failure, .. } => failure.as_ref().map(|failure| &failure.details),
            Self::StepCompleted { result, .. } | Self::RunCompleted { result, .. } => Some(result),
            Self::SignalReceived { input, .. } | Self::UpdateAccepted { input, .. } => Some(input),
            Self::UpdateCompleted { outcome, .. } => match outcome {
                UpdateOutcome::Completed(result) => Some(result),
                UpdateOutcome::Failed(failure) => Some(&failure.details),
            },
            Self::StepFailed { failure, .. } | Self::RunFailed { failure, .. } => Some(&failure.details),
            Self::StepResolved(resolved) => match &resolved.resolution {
                Resolution::Completed(result) => Some(result),
                Resolution::Failed(failure) => Some(&failure.details),
                Resolution::Retry => None,
            },
            _ => None,
        }
    }
}
