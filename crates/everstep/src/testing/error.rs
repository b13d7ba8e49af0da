//! Why a test environment cannot do what a test asked.

use std::fmt;

use everstep_core::{Failure, HistoryError, Rejection, RunId, RunStatus};

use super::Difference;

/// A test environment could not do what was asked, or the run did not give a result.
///
/// Its `Debug` is its text, so that a test that returns it shows something readable.
#[derive(Clone, thiserror::Error)]
pub enum Error {
    /// The workflow is not registered.
    #[error("no workflow '{name}' is registered; there are: {known}")]
    UnknownWorkflow {
        /// As asked.
        name: String,
        /// Those that are.
        known: String,
    },
    /// There are no workers of the build.
    #[error("no build '{id}' was deployed; there are: {known}")]
    UnknownBuild {
        /// As asked.
        id: String,
        /// Those that were.
        known: String,
    },
    /// The run was not started here.
    #[error("run {0} was not started in this environment")]
    UnknownRun(RunId),
    /// A value does not encode, or a result is not of the type that was asked for.
    #[error("a value does not fit its type: {0}")]
    Payload(String),
    /// The rules of the product refuse the request, as a server would.
    #[error(transparent)]
    Refused(#[from] Rejection),
    /// The run ended without a result.
    #[error("the run is {status}: {}: {}", failure.kind, failure.message)]
    Ended {
        /// How.
        status: RunStatus,
        /// Why.
        failure: Box<Failure>,
    },
    /// The run's code refuses a query. Nothing was written.
    #[error("the query failed: {}: {}", .0.kind, .0.message)]
    QueryFailed(Box<Failure>),
    /// The run's code does not agree to an update. Nothing was written.
    #[error("the update is rejected: {}: {}", .0.kind, .0.message)]
    UpdateRejected(Box<Failure>),
    /// The run's code agreed to an update, and failed to do it.
    #[error("the update failed: {}: {}", .0.kind, .0.message)]
    UpdateFailed(Box<Failure>),
    /// The run cannot go on with this code.
    #[error("the run is blocked: {0}")]
    Blocked(String),
    /// Nothing will ever happen again, and the run is open.
    #[error("the run waits, and no step, timer or message is left that could wake it: {hint}")]
    Stuck {
        /// What a test can do about it.
        hint: String,
    },
    /// The run went well, but its own history does not bring the same code to the same end.
    #[error(transparent)]
    Differs(#[from] Box<Difference>),
    /// A bug of Everstep: it wrote a history that it does not read.
    #[error(transparent)]
    History(#[from] HistoryError),
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// Why the run ended, or the update or query came to nothing, if that is what this says.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Ended { failure, .. }
            | Self::UpdateRejected(failure)
            | Self::UpdateFailed(failure)
            | Self::QueryFailed(failure) => Some(failure),
            _ => None,
        }
    }
}
