//! What a request said, in eight bytes: to recognise a repeat, not to prove anything.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Failure, Payload};

/// The first eight bytes of a SHA-256 over fields with their lengths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest([u8; 8]);

impl Digest {
    /// It as a number.
    pub const fn as_u64(self) -> u64 {
        u64::from_be_bytes(self.0)
    }

    /// The one that [`as_u64`](Self::as_u64) gave.
    pub const fn from_u64(number: u64) -> Self {
        Self(number.to_be_bytes())
    }
}

/// Takes in a request, field by field.
pub(crate) struct Digester(Sha256);

impl Digester {
    /// A request of this kind.
    pub(crate) fn of(kind: &str) -> Self {
        Self(Sha256::new()).field(kind.as_bytes())
    }

    pub(crate) fn field(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }

    pub(crate) fn number(self, number: u64) -> Self {
        self.field(&number.to_be_bytes())
    }

    pub(crate) fn payload(self, payload: &Payload) -> Self {
        self.field(payload.encoding.as_bytes()).field(&payload.data)
    }

    pub(crate) fn failure(self, failure: &Failure) -> Self {
        let Failure { kind, message, non_retryable, details, cause } = failure;
        let it = self.field(kind.as_bytes()).field(message.as_bytes()).number(u64::from(*non_retryable));
        let it = it.payload(details);
        match cause {
            Some(cause) => it.failure(cause),
            None => it,
        }
    }

    pub(crate) fn finish(self) -> Digest {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0.finalize()[..8]);
        Digest(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_run_into_each_other() {
        let two = |a: &str, b: &str| Digester::of("signal").field(a.as_bytes()).field(b.as_bytes()).finish();
        assert_ne!(two("ab", "c"), two("a", "bc"));
        assert_ne!(two("a", ""), two("", "a"));
        assert_eq!(two("a", "b"), two("a", "b"));
    }
}
