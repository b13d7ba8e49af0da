//! Latencies of one round.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::fail::Fail;

/// Up to ten minutes, in microseconds.
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(super) fn new() -> Result<Self, Fail> {
        Histogram::new_with_bounds(1, 600_000_000, 3).map(Self).map_err(|e| Fail::refused(e.to_string()))
    }

    pub(super) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    pub(super) fn ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1_000.0
    }
}
