//! What a node's upkeep has found, for metrics.

use std::time::Duration as StdDuration;

use everstep_core::Duration;
use everstep_store::WaitingGroup;

/// Buckets of a [`Lateness`], with one for everything beyond.
const BUCKETS: usize = LATENESS_MILLIS.len() + 1;

/// Upper bounds of the buckets of a [`Lateness`], in milliseconds.
pub const LATENESS_MILLIS: [u64; 11] = [10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000, 30_000, 120_000];

/// What the sweep and the looks beside it have found. No figure is older than the interval of its look, unless the
/// store did not answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Runs that no open session has the code for, in groups.
    pub waiting_for_build: Vec<WaitingGroup>,
    /// Blocked runs, counted up to a limit.
    pub blocked_runs: u64,
    /// How long the oldest task has waited for a worker; zero when none waits.
    pub oldest_task: Duration,
    /// Events that other runs have perhaps not heard of, counted up to a limit.
    pub untold: u64,
    /// How long the oldest of them has waited; zero when there is none.
    pub oldest_untold: Duration,
    /// Since the last pass of the sweep that came to its end; before the first, since the start.
    pub sweep_lag: StdDuration,
    /// Runs that this node took from a worker whose session had ended, since start.
    pub runs_lost: u64,
    /// Runs whose wake rows cannot be right, as of the last look.
    pub wake_violations: u64,
    /// How late timers were claimed, since start.
    pub timer_lateness: Lateness,
}

/// A histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lateness {
    /// How many were as late as [`LATENESS_MILLIS`] at the same place, and later than at the place before.
    pub counts: [u64; BUCKETS],
    /// All of them together.
    pub sum: Duration,
}

impl Lateness {
    /// Counts one.
    pub(crate) fn note(&mut self, late: Duration) {
        let bucket = LATENESS_MILLIS.iter().position(|bound| late <= Duration::from_millis(*bound));
        self.counts[bucket.unwrap_or(LATENESS_MILLIS.len())] += 1;
        self.sum = Duration::from_micros(self.sum.as_micros().saturating_add(late.as_micros()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lateness_falls_into_its_bucket() {
        let mut lateness = Lateness::default();
        for millis in [0, 10, 11, 1_000, 120_000, 120_001] {
            lateness.note(Duration::from_millis(millis));
        }
        assert_eq!(lateness.counts, [2, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1]);
        assert_eq!(lateness.sum, Duration::from_millis(241_022));
    }
}
