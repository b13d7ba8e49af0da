//! Facts. A history is these, in `seq` order, and nothing else.

use serde::{Deserialize, Serialize};

use crate::{CommandId, Duration, Epoch, Failure, OpId, Payload, Seq, SessionId, Timestamp};

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
        /// Signals that it never consumed, by seq.
        unconsumed: Vec<Seq>,
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
    RunTimedOut,
    /// An event of a newer version that readers may skip. Never written by this version.
    Ignored {
        /// Its kind, as stored.
        kind: String,
    },
}

/// How a run began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The timer's or step's id; 0 for the run timeout.
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
}

impl TimerKey {
    /// The run timeout.
    pub const RUN_TIMEOUT: Self = Self { kind: TimerKind::RunTimeout, id: 0 };

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
            Self::StepCompleted { .. } => "StepCompleted",
            Self::StepFailed { .. } => "StepFailed",
            Self::TimerStarted { .. } => "TimerStarted",
            Self::TimerFired { .. } => "TimerFired",
            Self::TimerCanceled { .. } => "TimerCanceled",
            Self::SignalReceived { .. } => "SignalReceived",
            Self::CancelRequested { .. } => "CancelRequested",
            Self::VersionMarked { .. } => "VersionMarked",
            Self::RunBlocked(_) => "RunBlocked",
            Self::RunUnblocked { .. } => "RunUnblocked",
            Self::RunCompleted { .. } => "RunCompleted",
            Self::RunFailed { .. } => "RunFailed",
            Self::RunCanceled { .. } => "RunCanceled",
            Self::RunTerminated { .. } => "RunTerminated",
            Self::RunTimedOut => "RunTimedOut",
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
                | Self::RunTimedOut
        )
    }

    /// The operation of the workflow's code that this event is about, if it is about one.
    pub fn op(&self) -> Option<OpId> {
        match self {
            Self::StepResolved(resolved) => Some(resolved.step),
            Self::StepStarted { step: op, .. }
            | Self::StepInDoubt { step: op, .. }
            | Self::StepCompleted { step: op, .. }
            | Self::StepFailed { step: op, .. }
            | Self::TimerStarted { timer: op, .. }
            | Self::TimerCanceled { timer: op } => Some(*op),
            Self::TimerFired { timer } if timer.kind != TimerKind::RunTimeout => Some(OpId(timer.id)),
            _ => None,
        }
    }

    /// The user's bytes that this event carries, if its kind carries any.
    pub fn payload(&self) -> Option<&Payload> {
        match self {
            Self::RunStarted(s) => Some(&s.input),
            Self::StepCompleted { result, .. } | Self::RunCompleted { result, .. } => Some(result),
            Self::SignalReceived { input, .. } => Some(input),
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
