//! Whether hints go through. A connection that is up proves little: the server may refuse every message on it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use everstep_dispatch::Error;
use tokio::time::Instant;

#[cfg(test)]
mod tests;

/// How long a failure counts that no success and no other failure has followed: whoever has nothing to send learns
/// nothing, and must not be taken for ill for ever.
const STANDS: Duration = Duration::from_secs(15);

/// A way that hints take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Out,
    In,
}

/// What became of the last hints, each way.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<[Option<Failure>; 2]>);

#[derive(Debug)]
struct Failure {
    at: Instant,
    /// Said in the log already.
    reason: String,
}

impl Health {
    /// What became of a hint, or of a pull.
    pub(crate) fn saw<T>(&self, way: Way, outcome: &Result<T, Error>) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = &mut last[way as usize];
        match outcome {
            Ok(_) => {
                if place.take().is_some() {
                    tracing::info!(?way, "hints go through NATS again");
                }
            }
            Err(error) => {
                let reason = error.to_string();
                if place.as_ref().is_none_or(|failure| failure.reason != reason) {
                    tracing::warn!(?way, %reason, "hints do not go through NATS; the sweep does their work");
                }
                *place = Some(Failure { at: Instant::now(), reason });
            }
        }
    }

    /// Nothing has failed lately.
    pub(crate) fn is_good(&self) -> bool {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.iter().flatten().all(|failure| failure.at.elapsed() >= STANDS)
    }
}
