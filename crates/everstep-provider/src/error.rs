//! Why a provider did not answer.

use std::time::Duration;

/// One attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The provider cannot be reached, or the connection broke.
    #[error("cannot be reached: {0}")]
    Connect(String),
    /// Too many requests.
    #[error("too many requests")]
    RateLimited {
        /// When it wants to be asked again, if it said.
        retry_after: Option<Duration>,
    },
    /// The provider has a problem of its own (HTTP 5xx).
    #[error("the provider failed with status {status}")]
    Overloaded {
        /// The HTTP status.
        status: u16,
        /// When it wants to be asked again, if it said.
        retry_after: Option<Duration>,
    },
    /// The key is missing, wrong, or not allowed to do this.
    #[error("the key was refused (status {0})")]
    Auth(u16),
    /// The account is out of funds.
    #[error("the account has no funds left")]
    Billing,
    /// The request is wrong for this provider or model.
    #[error("the request was refused (status {status}): {message}")]
    BadRequest {
        /// The HTTP status.
        status: u16,
        /// What it said, cut short.
        message: String,
    },
    /// It answered with something that is no answer.
    #[error("the answer is not understood: {0}")]
    InvalidResponse(String),
    /// The answer is larger than is read.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// There is no text to work on.
    #[error("there is nothing to summarize: {0}")]
    NothingToSummarize(&'static str),
}

impl ProviderError {
    /// The same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Timeout(_)
                | Self::Connect(_)
                | Self::RateLimited { .. }
                | Self::Overloaded { .. }
                | Self::InvalidResponse(_)
        )
    }

    /// When the provider wants to be asked again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } | Self::Overloaded { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// A stable word for spans and records.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::Connect(_) => "connect",
            Self::RateLimited { .. } => "rate_limited",
            Self::Overloaded { .. } => "overloaded",
            Self::Auth(_) => "auth",
            Self::Billing => "billing",
            Self::BadRequest { .. } => "bad_request",
            Self::InvalidResponse(_) => "invalid_response",
            Self::TooLarge(_) => "too_large",
            Self::NothingToSummarize(_) => "nothing_to_summarize",
        }
    }
}
