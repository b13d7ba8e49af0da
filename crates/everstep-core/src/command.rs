//! Requests that may be rejected. Names are verb + noun.

use crate::{
    Actor, Blocked, ChildClosed, ChildScheduled, CommandId, ConflictPolicy, DoubtPolicy, Duration, Epoch,
    ExternalRequested, Failure, FirstMessage, Notes, NotesChange, OpId, Origin, Payload, Resolution,
    RetryPolicy, ReusePolicy, Seq, SessionId, StartDefaults, StepEnd, StepScheduled, StepTimeout, TimerKey,
    Timestamp, TraceContext, UpdateOutcome, WorkerInfo,
};

/// A request to one existing run.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// The request's id; becomes the `command_id` of its events.
    pub id: CommandId,
    /// Who asks.
    pub actor: Actor,
    /// What for.
    pub body: CommandBody,
}

/// What is asked of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum CommandBody {
    /// Send it a message.
    Signal {
        /// Name that the workflow waits for.
        name: String,
        /// The sender's id of the signal; a second one with the same id is the same signal.
        signal_id: String,
        /// The message.
        input: Payload,
    },
    /// Record that its code has agreed to an update.
    AcceptUpdate {
        /// The caller's id of the update; a second one with the same id is the same update.
        update_id: String,
        /// Name of the handler.
        name: String,
        /// What it gets.
        input: Payload,
        /// Last event that the code had applied when it agreed. Refused when there are later ones
        /// ([`Rejection::UnseenEvents`](crate::Rejection::UnseenEvents)).
        seen: Seq,
    },
    /// Ask it to stop in its own time.
    Cancel {
        /// For a person.
        reason: String,
    },
    /// Stop it now.
    Terminate {
        /// For a person.
        reason: String,
    },
    /// Say what became of an attempt in doubt.
    ResolveStep {
        /// The step.
        step: OpId,
        /// The attempt in doubt.
        attempt: u32,
        /// What became of it.
        resolution: Resolution,
        /// For a person.
        note: String,
    },
    /// Say how an attempt of a queued step ended.
    FinishStep {
        /// The step.
        step: OpId,
        /// The attempt.
        attempt: u32,
        /// How long it ran.
        elapsed: Duration,
        /// How it ended.
        end: StepEnd,
    },
    /// Tell it that a time of a queued step has run out.
    ExpireStep {
        /// The step.
        step: OpId,
        /// The attempt.
        attempt: u32,
        /// Which time.
        timeout: StepTimeout,
    },
    /// Tell it that the worker that had an attempt of a queued step is gone.
    LoseStep {
        /// The step.
        step: OpId,
        /// The attempt.
        attempt: u32,
    },
    /// Tell it that a child has begun.
    ChildStarted {
        /// The operation of its code.
        child: OpId,
        /// The event that scheduled it.
        scheduled: Seq,
    },
    /// Tell it that a child has ended, or could not begin.
    ChildClosed(Box<ChildClosed>),
    /// Tell it what became of a request to another run.
    ResolveExternal {
        /// The operation of its code.
        op: OpId,
        /// The event that made the request.
        requested: Seq,
        /// Why it was not delivered; `None` when it was.
        failure: Option<Failure>,
    },
    /// Tell it that an instant has come.
    FireTimer {
        /// Which.
        timer: TimerKey,
    },
    /// Claim it for a worker.
    Attach(Attach),
    /// Take it away from a session that is closed.
    Detach(Detach),
    /// Record what its owner did.
    Commit(WorkerCommit),
}

/// A claim.
#[derive(Clone, Debug, PartialEq)]
pub struct Attach {
    /// The claiming session.
    pub session: SessionId,
    /// Which worker.
    pub worker: WorkerInfo,
    /// It keeps runs of this type to its build.
    pub pinned: bool,
    /// Builds whose runs its code continues.
    pub compatible: Vec<String>,
}

impl Attach {
    /// A claim of a worker that pins nothing.
    pub fn by(session: SessionId, worker: WorkerInfo) -> Self {
        Self { session, worker, pinned: false, compatible: Vec::new() }
    }
}

/// The end of a claim whose session is closed, or whose owner did what it must not.
#[derive(Clone, Debug, PartialEq)]
pub struct Detach {
    /// The owner's session. If the run is owned by another one by now, nothing happens.
    pub session: SessionId,
    /// Why what the owner did was refused; `None` when its session is closed.
    pub refused: Option<String>,
}

/// What the owner of a run did since its last commit. Recorded whole or not at all.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerCommit {
    /// Epoch of the sender's claim.
    pub epoch: Epoch,
    /// Number of this commit under that epoch: 1, 2, 3 … A resent commit keeps its number.
    pub number: u32,
    /// Last event that the worker has applied.
    pub seen: Seq,
    /// What it did, in order.
    pub commands: Vec<CommitCommand>,
    /// Set when the worker has gone on before the record: it has applied the end of a step, the first of the
    /// commands, as event `seen + 1` of this instant. It is recorded at that place and with that time, or the
    /// commit is refused ([`Rejection::UnseenEvents`](crate::Rejection::UnseenEvents)).
    pub ahead: Option<Timestamp>,
}

/// One thing that a workflow did.
#[derive(Clone, Debug, PartialEq)]
pub enum CommitCommand {
    /// An attempt began. Folded into its end when both come in one commit.
    StartStep {
        /// The step.
        step: OpId,
        /// Its name.
        name: String,
        /// The attempt, from 1.
        attempt: u32,
        /// Set for a guarded step, whose effect begins only when this is durable. Never folded.
        in_doubt: Option<DoubtPolicy>,
    },
    /// An attempt ended well.
    CompleteStep {
        /// The step.
        step: OpId,
        /// Its name.
        name: String,
        /// The attempt.
        attempt: u32,
        /// How long it ran.
        elapsed: Duration,
        /// What it returned.
        result: Payload,
    },
    /// An attempt failed; the policy decides whether there is another.
    FailStep {
        /// The step.
        step: OpId,
        /// Its name.
        name: String,
        /// The attempt.
        attempt: u32,
        /// How long it ran.
        elapsed: Duration,
        /// Why.
        failure: Failure,
        /// The step's policy; without one, the run's.
        policy: Option<RetryPolicy>,
    },
    /// Let a worker of a task queue run a step. Its queue may be empty: the run's.
    ScheduleStep(Box<StepScheduled>),
    /// The workflow does not want a queued step any more.
    CancelStep {
        /// The step.
        step: OpId,
    },
    /// Wake the run after `delay`, counted from when this is decided.
    StartTimer {
        /// The timer.
        timer: OpId,
        /// How long from now.
        delay: Duration,
    },
    /// The workflow no longer waits for the timer.
    CancelTimer {
        /// The timer.
        timer: OpId,
    },
    /// The workflow has answered an update.
    CompleteUpdate {
        /// The event that accepted it.
        accepted: Seq,
        /// What came of it.
        outcome: UpdateOutcome,
    },
    /// Start a child. Its run id follows from the decision; an empty queue is the parent's, an empty workflow id
    /// is made of the parent's run id and the operation.
    StartChild(Box<ChildScheduled>),
    /// Ask something of another run.
    RequestExternal(Box<ExternalRequested>),
    /// The workflow chose a version of a change in its code.
    MarkVersion {
        /// The change.
        change_id: String,
        /// The version.
        version: u32,
    },
    /// The workflow says something about itself, for lists and people.
    Upsert {
        /// The operation of the code.
        op: OpId,
        /// What changes.
        notes: Box<NotesChange>,
    },
    /// The workflow returned a result.
    CompleteRun {
        /// What it returned.
        result: Payload,
        /// Signals that it never consumed, by seq.
        unconsumed: Vec<Seq>,
    },
    /// The workflow returned an error.
    FailRun {
        /// Why.
        failure: Failure,
        /// Signals that it never consumed, by seq.
        unconsumed: Vec<Seq>,
    },
    /// The workflow goes on in a new run, with the same workflow id.
    ContinueAsNew(Box<Continuation>),
    /// The workflow ended after a cancel request.
    CancelRun {
        /// What it said about it.
        details: String,
    },
    /// The workflow only waits: let go of the run. Refused when there are events beyond `seen`.
    Park,
    /// Give the run back unfinished.
    Release {
        /// Why: empty for a drain, else what went wrong.
        reason: String,
    },
    /// The worker's code and the history do not fit.
    Block(Box<Blocked>),
}

/// How a workflow goes on in a new run. What is left empty is as it was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Continuation {
    /// Which workflow.
    pub workflow_type: String,
    /// Queue whose workers run it.
    pub task_queue: String,
    /// Argument of the workflow.
    pub input: Payload,
    /// Longest life of the new run.
    pub run_timeout: Option<Duration>,
    /// Signals that the workflow never consumed, by seq: the new run is given them again.
    pub unconsumed: Vec<Seq>,
}

/// A request for a new run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StartRun {
    /// Isolation boundary; must exist.
    pub namespace: String,
    /// The caller's business key.
    pub workflow_id: String,
    /// Which workflow.
    pub workflow_type: String,
    /// Queue whose workers run it.
    pub task_queue: String,
    /// Argument of the workflow.
    pub input: Payload,
    /// The caller's id of this request: the same id gets the same answer.
    pub request_id: String,
    /// Longest life of the run.
    pub run_timeout: Option<Duration>,
    /// How long it has no worker yet.
    pub start_delay: Option<Duration>,
    /// Whether and when a new run tries again after this one has failed.
    pub retry: Option<RetryPolicy>,
    /// What to do when a closed run holds the workflow id.
    pub reuse: ReusePolicy,
    /// What to do when an open run holds the workflow id.
    pub conflict: ConflictPolicy,
    /// W3C trace context of the request.
    pub trace: TraceContext,
    /// Who asks, for the history.
    pub identity: String,
    /// Which runs it comes from; never from a client.
    pub origin: Origin,
    /// What the run says about itself as it begins.
    pub notes: Notes,
    /// What the run gets with it, whether it starts or is there.
    pub first: Option<FirstMessage>,
    /// What the namespace sets where the request is silent. No part of what makes it the same request.
    pub defaults: StartDefaults,
}
