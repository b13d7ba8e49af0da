//! Retry arithmetic: a pure function of policy, failures so far and a seed.

use serde::{Deserialize, Serialize};

use crate::{Duration, Failure, Rejection, limits};

/// When and how often a failed step is tried again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Delay before the second attempt.
    pub initial_interval: Duration,
    /// Each later delay is the one before times this. At least 1.
    pub backoff_coefficient: f64,
    /// No delay is longer than this.
    pub maximum_interval: Duration,
    /// Attempts in all, the first included; 0 for no limit. An attempt that was cut off by a crash does
    /// not count: it has no recorded failure.
    pub maximum_attempts: u32,
    /// Failure kinds that are final at once.
    pub non_retryable_kinds: Vec<String>,
}

impl PartialEq for RetryPolicy {
    /// By the bits of the coefficient, so that every policy is equal to itself.
    fn eq(&self, other: &Self) -> bool {
        let Self {
            initial_interval,
            backoff_coefficient,
            maximum_interval,
            maximum_attempts,
            non_retryable_kinds,
        } = self;
        *initial_interval == other.initial_interval
            && backoff_coefficient.to_bits() == other.backoff_coefficient.to_bits()
            && *maximum_interval == other.maximum_interval
            && *maximum_attempts == other.maximum_attempts
            && *non_retryable_kinds == other.non_retryable_kinds
    }
}

impl Eq for RetryPolicy {}

impl Default for RetryPolicy {
    /// 1 s, doubling, at most 60 s between attempts, no limit on attempts.
    fn default() -> Self {
        Self {
            initial_interval: Duration::from_secs(1),
            backoff_coefficient: 2.0,
            maximum_interval: Duration::from_secs(60),
            maximum_attempts: 0,
            non_retryable_kinds: Vec::new(),
        }
    }
}

/// What follows a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryDecision {
    /// Try again after this long.
    After(Duration),
    /// That was the last attempt.
    Final,
}

impl RetryPolicy {
    /// One attempt, no retry.
    pub fn none() -> Self {
        Self { maximum_attempts: 1, ..Self::default() }
    }

    /// What follows the failure of attempt number `failures` (counting recorded failures, from 1).
    ///
    /// The delay is shortened by up to a tenth, by `seed`, so that runs which failed together do not come
    /// back together. The same arguments give the same answer for ever.
    pub fn after_failure(&self, failures: u32, failure: &Failure, seed: u64) -> RetryDecision {
        let spent = self.maximum_attempts != 0 && failures >= self.maximum_attempts;
        if spent || failure.non_retryable || self.non_retryable_kinds.contains(&failure.kind) {
            return RetryDecision::Final;
        }
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial_interval.as_micros() as f64 * self.backoff_coefficient.powi(exponent);
        let capped = grown.min(self.maximum_interval.as_micros() as f64).max(0.0);
        let jitter = splitmix64(seed ^ u64::from(failures)) as f64 / u64::MAX as f64;
        RetryDecision::After(Duration::from_micros((capped * (1.0 - 0.1 * jitter)) as u64))
    }

    /// Checks a policy that came from outside.
    ///
    /// # Errors
    /// [`Rejection::InvalidArgument`] naming the first field that is wrong.
    pub fn validate(&self) -> Result<(), Rejection> {
        let bad =
            |field, problem: &str| Err(Rejection::InvalidArgument { field, problem: problem.to_owned() });
        if !self.backoff_coefficient.is_finite() || self.backoff_coefficient < 1.0 {
            return bad("retry.backoff_coefficient", "must be a finite number of at least 1");
        }
        if self.maximum_interval < self.initial_interval {
            return bad("retry.maximum_interval", "must not be shorter than initial_interval");
        }
        if self.maximum_interval > limits::DURATION_MAX {
            return bad("retry.maximum_interval", "must not be longer than 100 years");
        }
        let (kinds, limit) = (&self.non_retryable_kinds, limits::RETRY_KINDS_MAX);
        if kinds.len() > limit {
            let (actual, limit) = (kinds.len() as u64, limit as u64);
            return Err(Rejection::LimitExceeded { what: "retry.non_retryable_kinds", actual, limit });
        }
        // A kind that no failure can have would silently never match.
        let fits = |kind: &String| kind.len() <= limits::NAME_BYTES_MAX && !kind.contains('\0');
        if !kinds.iter().all(fits) {
            return bad("retry.non_retryable_kinds", "must be of at most 255 bytes each, without NUL");
        }
        Ok(())
    }
}

/// The finaliser of splitmix64: spreads nearby seeds over all 64 bits.
pub(crate) fn splitmix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
