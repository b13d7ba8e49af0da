//! What stands in the column `attrs` about the run before and the run after. The rules of `attrs.rs` hold here too.

use std::borrow::Cow;

use everstep_core::{Digest, Duration, HeardSignal, RetryPolicy, RunId, Seq, Timestamp};
use serde::{Deserialize, Serialize};

use super::attrs::Text;

/// The end of a run that goes on in another one.
#[derive(Serialize, Deserialize)]
pub(super) struct Continued<'a> {
    pub(super) successor: RunId,
    #[serde(default, skip_serializing_if = "<[Seq]>::is_empty")]
    pub(super) carried: Cow<'a, [Seq]>,
}

/// The end of a run that another one may try again.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Retried {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) retried_by: Option<RunId>,
}

/// When and how often something is tried again.
#[derive(Serialize, Deserialize)]
pub(super) struct RetryAttrs<'a> {
    initial_us: Duration,
    coefficient: f64,
    maximum_us: Duration,
    #[serde(default, skip_serializing_if = "is_zero")]
    attempts: u32,
    #[serde(default, skip_serializing_if = "<[String]>::is_empty")]
    final_kinds: Cow<'a, [String]>,
}

/// A signal that a run before took.
#[derive(Serialize, Deserialize)]
pub(super) struct HeardAttrs<'a> {
    id: Text<'a>,
    /// The digest, in hexadecimal: SQL and JSON know no 64 bits without a sign.
    said: Text<'a>,
    at_us: Timestamp,
}

pub(super) fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl<'a> From<&'a RetryPolicy> for RetryAttrs<'a> {
    fn from(policy: &'a RetryPolicy) -> Self {
        let RetryPolicy {
            initial_interval,
            backoff_coefficient,
            maximum_interval,
            maximum_attempts,
            non_retryable_kinds,
        } = policy;
        Self {
            initial_us: *initial_interval,
            coefficient: *backoff_coefficient,
            maximum_us: *maximum_interval,
            attempts: *maximum_attempts,
            final_kinds: non_retryable_kinds.as_slice().into(),
        }
    }
}

impl From<RetryAttrs<'_>> for RetryPolicy {
    fn from(attrs: RetryAttrs<'_>) -> Self {
        let RetryAttrs { initial_us, coefficient, maximum_us, attempts, final_kinds } = attrs;
        Self {
            initial_interval: initial_us,
            backoff_coefficient: coefficient,
            maximum_interval: maximum_us,
            maximum_attempts: attempts,
            non_retryable_kinds: final_kinds.into_owned(),
        }
    }
}

impl<'a> From<&'a HeardSignal> for HeardAttrs<'a> {
    fn from(heard: &'a HeardSignal) -> Self {
        let HeardSignal { signal_id, said, at } = heard;
        Self { id: signal_id.into(), said: format!("{:016x}", said.as_u64()).into(), at_us: *at }
    }
}

impl HeardAttrs<'_> {
    /// A digest that cannot be read is one that nothing matches.
    pub(super) fn heard(self) -> HeardSignal {
        let said = Digest::from_u64(u64::from_str_radix(&self.said, 16).unwrap_or_default());
        HeardSignal { signal_id: self.id.into_owned(), said, at: self.at_us }
    }
}
