//! User data, opaque to the engine.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Bytes of a user's and how they are encoded. The engine never looks inside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Payload {
    /// How `data` is encoded, such as `json`; empty together with empty `data` for "nothing".
    pub encoding: String,
    /// The bytes. At most [`PAYLOAD_BYTES_MAX`](crate::limits::PAYLOAD_BYTES_MAX).
    pub data: Bytes,
}

impl Payload {
    /// The name of the JSON encoding (UTF-8, RFC 8259).
    pub const JSON: &'static str = "json";

    /// A payload of JSON text.
    pub fn json(data: impl Into<Bytes>) -> Self {
        Self { encoding: Self::JSON.to_owned(), data: data.into() }
    }

    /// True when there is neither data nor encoding.
    pub fn is_none(&self) -> bool {
        self.encoding.is_empty() && self.data.is_empty()
    }
}

/// Why a step or run failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A stable word for the class of failure, chosen by the user (`CardDeclined`) or by Everstep
    /// (`StepTimeout`, `Panic`, `Canceled`). Retry policies match on it.
    pub kind: String,
    /// What happened, for a person.
    pub message: String,
    /// The failing code asked not to be retried.
    pub non_retryable: bool,
    /// Structured details, or an empty payload.
    #[serde(default)]
    pub details: Payload,
    /// What this failure came from.
    #[serde(default)]
    pub cause: Option<Box<Failure>>,
}

impl Failure {
    /// Of an update that finds a run's code at its end: it neither agrees nor refuses.
    pub const RUN_ENDS: &'static str = "RunEnds";

    /// A retryable failure.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind: kind.into(), message: message.into(), ..Self::default() }
    }

    /// The same failure, marked as not worth a retry.
    #[must_use]
    pub fn non_retryable(mut self) -> Self {
        self.non_retryable = true;
        self
    }
}
