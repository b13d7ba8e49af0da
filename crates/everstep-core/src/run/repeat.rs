//! Telling a request that is repeated from another one under the same id.

use super::Run;
use super::decide::cut;
use crate::digest::{Digest, Digester};
use crate::{CommandId, Payload, Rejection, Seq, Timestamp};

/// What a signal says.
pub(super) fn of_signal(name: &str, input: &Payload) -> Digest {
    Digester::of("signal").field(name.as_bytes()).payload(input).finish()
}

/// What a reason says, as far as it is kept.
pub(super) fn of_reason(reason: &str) -> Digest {
    Digester::of("reason").field(cut(reason).as_bytes()).finish()
}

/// A signal that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) said: Digest,
    pub(super) seq: Seq,
    pub(super) at: Timestamp,
}

/// The first request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CancelAsked {
    pub(super) id: CommandId,
    pub(super) said: Digest,
    pub(super) seq: Seq,
}

impl Run {
    /// Whether this signal was received before, by this run or by one before it in its chain.
    ///
    /// # Errors
    /// [`Rejection::IdempotencyMismatch`] when it said something else then.
    pub(super) fn has_signal(&self, id: &str, name: &str, input: &Payload) -> Result<bool, Rejection> {
        match self.signals.get(id).map(|heard| heard.said).or_else(|| self.heard_before(id)) {
            Some(said) => self.same(said, of_signal(name, input)),
            None => Ok(false),
        }
    }

    /// Whether a signal of this id was received, by this run or by one that it follows.
    pub fn knows_signal(&self, id: &str) -> bool {
        self.signals.contains_key(id) || self.heard_before(id).is_some()
    }

    /// Whether this is the request that asked the run to stop.
    ///
    /// # Errors
    /// [`Rejection::IdempotencyMismatch`] when it said something else then.
    pub(super) fn was_canceled_by(&self, id: CommandId, reason: &str) -> Result<bool, Rejection> {
        match self.cancel {
            Some(first) if first.id == id => self.same(first.said, of_reason(reason)),
            _ => Ok(false),
        }
    }

    /// Whether this is the request that ended the run.
    ///
    /// # Errors
    /// [`Rejection::IdempotencyMismatch`] when it said something else then.
    pub(super) fn was_terminated_by(&self, id: CommandId, reason: &str) -> Result<bool, Rejection> {
        match self.termination {
            Some(said) if self.last_command == id => self.same(said, of_reason(reason)),
            _ => Ok(false),
        }
    }

    fn same(&self, said: Digest, says: Digest) -> Result<bool, Rejection> {
        if said == says { Ok(true) } else { Err(Rejection::IdempotencyMismatch { run_id: self.id }) }
    }
}
