//! The one error of decoding.

/// A message that no correct peer sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct InvalidMessage {
    /// Path of the field from the message's root, such as `commands[2].fail_step.failure`.
    pub field: String,
    /// What is wrong with it, and what is allowed; reads on after the field's name.
    pub problem: String,
    /// Which rule it breaks.
    pub kind: InvalidKind,
}

/// The rules that a message can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InvalidKind {
    /// It is not set, and has no default.
    Missing,
    /// An id that is not a UUID.
    Id,
    /// An enum value that this version does not know.
    UnknownEnum,
    /// A length of time out of range.
    Duration,
    /// An instant out of range.
    Timestamp,
    /// More, or deeper, than is allowed.
    Limit,
    /// Anything else.
    Value,
}

impl InvalidMessage {
    /// An error about `field`.
    pub fn new(kind: InvalidKind, field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into(), kind }
    }

    /// `field` is not set and has no default.
    pub fn missing(field: impl Into<String>) -> Self {
        Self::new(InvalidKind::Missing, field, "must be set")
    }

    /// The same error, seen from the message that holds this one in its field `outer`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = if self.field.is_empty() { outer.to_owned() } else { format!("{outer}.{}", self.field) };
        self
    }
}
