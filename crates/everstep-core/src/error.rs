//! The two ways in which the core says no: to a caller, and to a history.

use crate::{OpId, RunId, RunStatus, Seq};

/// A request was refused. Nothing was written; the caller can do something about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// A name or id breaks the naming rule.
    #[error("{field} {problem}")]
    InvalidId {
        /// The request's field.
        field: &'static str,
        /// The rule that was broken.
        problem: &'static str,
    },
    /// A field holds a value that it may not hold.
    #[error("{field} {problem}")]
    InvalidArgument {
        /// The request's field.
        field: &'static str,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// Something is larger than it may be.
    #[error("{what} is {actual}, more than the limit of {limit}")]
    LimitExceeded {
        /// What is too large.
        what: &'static str,
        /// Its size.
        actual: u64,
        /// The limit.
        limit: u64,
    },
    /// The run has ended.
    #[error("the run is closed ({status})")]
    RunClosed {
        /// How it ended.
        status: RunStatus,
        /// The run that follows it, if one does.
        successor: Option<RunId>,
    },
    /// Another run holds the workflow id, and the policy does not allow a second.
    #[error("workflow id is taken by run {run_id} ({status}), and the {policy} policy forbids a new run")]
    AlreadyStarted {
        /// The run that holds it.
        run_id: RunId,
        /// Its status.
        status: RunStatus,
        /// Which policy forbids: `conflict` while it is open, `reuse` once it is closed.
        policy: &'static str,
    },
    /// The request id was used before with another body.
    #[error("request id was used before for run {run_id} with a different body")]
    IdempotencyMismatch {
        /// The run that the first request started or was about.
        run_id: RunId,
    },
    /// The sender no longer owns the run.
    #[error("the sender, of epoch {sent}, does not own the run, which is at epoch {current}")]
    Fenced {
        /// The run's epoch.
        current: u32,
        /// The sender's.
        sent: u32,
    },
    /// The run has a live owner already.
    #[error("the run has an owner already, under epoch {epoch}")]
    AlreadyAttached {
        /// The owner's epoch.
        epoch: u32,
    },
    /// The run does not want a worker now.
    #[error("the run needs no worker now")]
    NotRunnable,
    /// The worker asked to park a run that has events it has not seen.
    #[error("the run has events up to {tail}, the worker has seen {seen}")]
    UnseenEvents {
        /// Last event that the worker has applied.
        seen: Seq,
        /// Last event of the run.
        tail: Seq,
    },
    /// The run belongs to a build that the worker neither is nor continues.
    #[error("the run belongs to build '{wants}', which build '{has}' does not continue")]
    WrongBuild {
        /// The run's.
        wants: String,
        /// The worker's.
        has: String,
    },
    /// A timer's instant has not come.
    #[error("the timer is not due yet")]
    NotDue,
    /// No such attempt of a step is in doubt.
    #[error("step {step} of the run has no attempt in doubt{}", within(*.attempt))]
    StepNotInDoubt {
        /// The step.
        step: OpId,
        /// The attempt that was named; 0 for whichever is.
        attempt: u32,
    },
    /// The run has no such queued step.
    #[error("the run has no queued step {step}")]
    StepNotFound {
        /// The step.
        step: OpId,
    },
    /// The attempt of a queued step is over: another one is under way, or Everstep ended the step.
    #[error("attempt {attempt} of step {step} is over")]
    StaleAttempt {
        /// The step.
        step: OpId,
        /// The attempt that was named.
        attempt: u32,
    },
    /// The attempt of a queued step ended in another way before.
    #[error("attempt {attempt} of step {step} ended before, and in another way")]
    ResultConflict {
        /// The step.
        step: OpId,
        /// The attempt that was named.
        attempt: u32,
    },
    /// A worker's commit contradicts the run. Nothing of it was recorded.
    #[error("invalid commands: {problem}")]
    InvalidCommands {
        /// What contradicts what.
        problem: String,
    },
}

/// Which attempt a refusal is about, if it is about one.
fn within(attempt: u32) -> String {
    if attempt == 0 { String::new() } else { format!(" that is attempt {attempt}") }
}

/// A history that no version of Everstep writes. The run is stopped, its bytes are kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// A seq is missing or doubled.
    #[error("event {actual} follows event {last}, expected {}", last + 1)]
    Gap {
        /// Last good event.
        last: Seq,
        /// What followed.
        actual: Seq,
    },
    /// The first event is not `RunStarted`, or a later one is.
    #[error("event {seq} is {kind}, which cannot stand there")]
    Misplaced {
        /// Where.
        seq: Seq,
        /// Its kind.
        kind: String,
    },
    /// The epoch fell, or a claim did not raise it by one.
    #[error("event {seq} has epoch {actual} after epoch {last}")]
    Epoch {
        /// Where.
        seq: Seq,
        /// Epoch before.
        last: u32,
        /// Epoch of the event.
        actual: u32,
    },
    /// An event follows the last one.
    #[error("event {seq} follows the run's end")]
    AfterEnd {
        /// Where.
        seq: Seq,
    },
}
