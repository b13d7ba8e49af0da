//! What passes between runs: children that a workflow starts, and signals and cancels that it sends.

use serde::{Deserialize, Serialize};

use crate::{Duration, Failure, Notes, OpId, Payload, RetryPolicy, ReusePolicy, RunId, RunStatus, Seq};

/// The workflow started a child. Its run begins a moment later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildScheduled {
    /// The operation of the parent's code.
    pub child: OpId,
    /// The run that the child begins as. In a command it is nil: it follows from the decision.
    pub run_id: RunId,
    /// Which workflow.
    pub workflow_type: String,
    /// Its business key. In a command it may be empty, for one made of the parent's run id and the operation.
    pub workflow_id: String,
    /// Queue whose workers run it. In a command it may be empty, for the parent's.
    pub task_queue: String,
    /// Argument of the workflow.
    pub input: Payload,
    /// Longest life of each of its runs.
    pub run_timeout: Option<Duration>,
    /// Whether and when a new run tries again after one has failed.
    pub retry: Option<RetryPolicy>,
    /// What to do when a closed run holds the workflow id.
    pub reuse: ReusePolicy,
    /// What becomes of the child when the parent ends first.
    pub on_parent_close: ParentClose,
    /// The code asked to be told of the start.
    pub report_start: bool,
    /// What the child says about itself from its start.
    #[serde(default)]
    pub notes: Notes,
}

/// What becomes of a child whose parent ends first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParentClose {
    /// It is stopped by force.
    #[default]
    Terminate,
    /// It is asked to stop.
    RequestCancel,
    /// It goes on.
    Abandon,
}

impl ParentClose {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Terminate, Self::RequestCancel, Self::Abandon];

    /// The stable word used in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Terminate => "terminate",
            Self::RequestCancel => "request_cancel",
            Self::Abandon => "abandon",
        }
    }

    /// The policy whose word is `text`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.as_str() == text)
    }
}

/// A child has ended, or could not begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildClosed {
    /// The operation of the parent's code.
    pub child: OpId,
    /// The event that scheduled it.
    pub scheduled: Seq,
    /// The run that ended: the last one of the child.
    pub run_id: RunId,
    /// How it ended.
    pub outcome: ChildOutcome,
}

/// How a child ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChildOutcome {
    /// With a result.
    Completed(Payload),
    /// In another way.
    Ended {
        /// Which.
        status: RunStatus,
        /// Why.
        failure: Failure,
    },
    /// It never began.
    NotStarted(Failure),
}

impl ChildOutcome {
    /// The word for a child that never began, beside those of [`RunStatus`].
    pub const NOT_STARTED: &str = "not_started";

    /// The stable word used in SQL and JSON.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Completed(_) => RunStatus::Completed.as_str(),
            Self::Ended { status, .. } => status.as_str(),
            Self::NotStarted(_) => Self::NOT_STARTED,
        }
    }

    /// Why it gave no result.
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Completed(_) => None,
            Self::Ended { failure, .. } | Self::NotStarted(failure) => Some(failure),
        }
    }

    /// The user's bytes in it.
    pub const fn payload(&self) -> &Payload {
        match self {
            Self::Completed(result) => result,
            Self::Ended { failure, .. } | Self::NotStarted(failure) => &failure.details,
        }
    }
}

/// The workflow wants something of another run of its namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalRequested {
    /// The operation of the code.
    pub op: OpId,
    /// Which run.
    pub target: ExternalTarget,
    /// What.
    pub action: ExternalAction,
}

/// Another run of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExternalTarget {
    /// That run.
    Run(RunId),
    /// Whichever run holds the workflow id when the request arrives.
    Workflow(String),
}

/// What a workflow wants of another run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExternalAction {
    /// Send it a message.
    Signal {
        /// Name that it waits for.
        name: String,
        /// The message.
        input: Payload,
    },
    /// Ask it to stop.
    Cancel {
        /// For a person.
        reason: String,
    },
}
