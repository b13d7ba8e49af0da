//! What can go wrong in a store, by what the engine must do about it.

/// A store call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was written; the database cannot be reached, or asked to be left alone for a while.
    /// Try again after a pause.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The database went away while a commit was on its way: it may or may not be durable. Settle it by
    /// submitting the same append again: `Conflict` then means "look at the log".
    #[error("the outcome of the commit is unknown: {0}")]
    OutcomeUnknown(String),
    /// Nothing was written: two transactions were in each other's way. Try again at once, a few times.
    #[error("contention in the store: {0}")]
    Contention(String),
    /// Nothing was written: disk, memory or connections of the database are used up.
    #[error("the store is out of resources: {0}")]
    Exhausted(String),
    /// The stored data contradict themselves. The run is stopped, its bytes are kept.
    #[error("stored data are corrupt: {0}")]
    Corrupt(String),
    /// The database's schema is missing, older or newer than this binary's.
    #[error("{0}")]
    Schema(String),
    /// The database refused the statement as such: a bug of ours, never to be tried again.
    #[error("the store refused the request: {0}")]
    Refused(String),
}

impl Error {
    /// True when the same call may succeed later without a change.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Contention(_) | Self::Exhausted(_))
    }
}
