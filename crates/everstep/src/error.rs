//! What can go wrong, by whose concern it is.

use std::collections::BTreeMap;
use std::fmt;

use everstep_core::{Failure, RunId, RunStatus};

/// A step's closure failed. Any error converts into it with `?`; that makes it retryable, of kind `Error`.
#[derive(Clone, Debug)]
pub struct StepError(pub(crate) Failure);

impl StepError {
    /// A failure of a kind of your own; retry policies match on the kind.
    ///
    /// ```
    /// let declined = everstep::StepError::new("CardDeclined", "insufficient funds").non_retryable();
    /// ```
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self(Failure::new(kind, message))
    }

    /// The same failure, not worth another attempt.
    #[must_use]
    pub fn non_retryable(mut self) -> Self {
        self.0.non_retryable = true;
        self
    }

    /// The failure as it will be recorded.
    pub fn failure(&self) -> &Failure {
        &self.0
    }
}

impl<E: std::error::Error> From<E> for StepError {
    fn from(error: E) -> Self {
        Self(chain("Error", &error))
    }
}

/// The error and what it came from, as recorded.
fn chain(kind: &str, error: &dyn std::error::Error) -> Failure {
    let mut failure = Failure::new(kind, error.to_string());
    failure.cause = error.source().map(|source| Box::new(chain(kind, source)));
    failure
}

/// A step failed for good: its attempts are used up, or its failure is final.
#[derive(Clone, Debug, thiserror::Error)]
#[error("step '{step}' failed: {}: {}", failure.kind, failure.message)]
pub struct StepFailed {
    /// The step's name.
    pub step: String,
    /// Why its last attempt failed.
    pub failure: Failure,
}

/// How a workflow ends without a result.
#[derive(Clone, Debug)]
pub enum WorkflowError {
    /// The run fails with this failure.
    Failed(Failure),
    /// The run ends as canceled; for a workflow that was asked to stop.
    Canceled(String),
    /// The run ends, and the workflow goes on in a new one.
    Continued(Box<crate::ContinueAsNew>),
}

impl WorkflowError {
    /// Fails the run.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Failed(Failure::new(kind, message))
    }
}

impl From<StepFailed> for WorkflowError {
    /// The run fails with the step's failure; the message says which step it was.
    fn from(failed: StepFailed) -> Self {
        let mut failure = failed.failure;
        failure.message = format!("step '{}' failed: {}", failed.step, failure.message);
        Self::Failed(failure)
    }
}

impl From<serde_json::Error> for WorkflowError {
    fn from(error: serde_json::Error) -> Self {
        Self::new("Payload", error.to_string())
    }
}

/// A call to the server failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is not a URL that can be dialed.
    #[error("'{address}' is not a server address: {problem}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The server cannot be reached, or went away before it answered.
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    /// The server refused the request.
    #[error("{message} ({reason})")]
    Refused {
        /// A reason word of the error list, such as `RUN_CLOSED`.
        reason: String,
        /// For a person.
        message: String,
        /// Which request fields were wrong, and how.
        violations: Vec<(String, String)>,
        /// What else the server said.
        metadata: BTreeMap<String, String>,
        /// The gRPC code.
        code: tonic::Code,
    },
    /// A value does not encode, or an answer does not decode.
    #[error("a value does not fit its type: {0}")]
    Payload(String),
    /// The server sent something that this version does not understand.
    #[error("the server's answer is not understood: {0}")]
    Protocol(String),
}

impl ClientError {
    /// The server's reason word, if it gave one.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Refused { reason, .. } => Some(reason),
            _ => None,
        }
    }
}

/// A failure as a line says it: nobody has to give a reason.
struct Text<'a>(&'a Failure);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.kind)?;
        if self.0.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.0.message) }
    }
}

/// A run did not give a result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RunError {
    /// It ended, but not as completed.
    #[error("the run is {status}: {}", Text(failure))]
    Ended {
        /// How.
        status: RunStatus,
        /// Why.
        failure: Failure,
    },
    /// Its workflow goes on in another run, which was not to be waited for.
    #[error("the run has continued as run {successor}")]
    Continued {
        /// That run.
        successor: RunId,
    },
    /// Asking for the result failed.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// A child did not give a result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChildError {
    /// It ended, but not as completed.
    #[error("child '{workflow_type}' is {status}: {}", Text(failure))]
    Ended {
        /// Which workflow it is.
        workflow_type: String,
        /// How it ended.
        status: RunStatus,
        /// Why.
        failure: Failure,
    },
    /// It never began: for example because its workflow id is taken (kind `AlreadyStarted`).
    #[error("the child did not begin: {}: {}", .0.kind, .0.message)]
    NotStarted(Failure),
    /// Its result is not of the type that was asked for.
    #[error("the child's result does not fit its type: {0}")]
    Payload(String),
}

impl From<ChildError> for WorkflowError {
    /// The run fails with kind `ChildFailed` or `ChildNotStarted`, caused by what the child says.
    fn from(error: ChildError) -> Self {
        let message = error.to_string();
        let (kind, cause) = match error {
            ChildError::Ended { failure, .. } => ("ChildFailed", Some(failure)),
            ChildError::NotStarted(failure) => ("ChildNotStarted", Some(failure)),
            ChildError::Payload(_) => ("Payload", None),
        };
        Self::Failed(Failure { cause: cause.map(Box::new), ..Failure::new(kind, message) })
    }
}

/// A request to another run was not delivered.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the request to another run failed: {}: {}", failure.kind, failure.message)]
pub struct ExternalFailed {
    /// Why; of kind `RunNotFound` or `RunClosed` when there is nobody to hear it.
    pub failure: Failure,
}

impl From<ExternalFailed> for WorkflowError {
    fn from(failed: ExternalFailed) -> Self {
        Self::Failed(failed.failure)
    }
}

/// An update did not give an answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpdateError {
    /// The run's code agreed to it, and failed to do it.
    #[error("the update failed: {}: {}", .0.kind, .0.message)]
    Failed(Failure),
    /// It was refused, or asking for it failed.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// A worker cannot be built or cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WorkerError {
    /// A setting is wrong.
    #[error("{field} {problem}")]
    Setting {
        /// Which.
        field: &'static str,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// The server refuses this worker for good: another version, or an unknown namespace.
    #[error(transparent)]
    Refused(#[from] ClientError),
}
