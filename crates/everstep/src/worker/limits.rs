//! How many queued steps a worker runs, at one time and in a second: set at build, changed while it works.

use tokio::sync::watch;

/// What a worker takes at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StepLimits {
    pub(crate) slots: u32,
    pub(crate) per_second: f64,
}

/// Changes what a worker takes while it works; see [`Worker::limits`](crate::Worker::limits). Cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkerLimits {
    limits: watch::Sender<StepLimits>,
}

impl WorkerLimits {
    pub(crate) fn new(slots: u32, per_second: f64) -> Self {
        Self { limits: watch::Sender::new(StepLimits { slots, per_second }) }
    }

    /// From here on the worker runs `slots` attempts of queued steps at one time, at most 100,000, and begins
    /// `per_second` of them in a second, or any number when that is 0. Attempts that run already go on.
    pub fn set(&self, slots: u32, per_second: f64) {
        let per_second = if per_second.is_finite() { per_second.max(0.0) } else { 0.0 };
        self.limits.send_replace(StepLimits { slots: slots.min(SLOTS_MAX), per_second });
    }

    pub(crate) fn get(&self) -> StepLimits {
        *self.limits.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<StepLimits> {
        self.limits.subscribe()
    }
}

/// More attempts than this at one time are refused.
pub(super) const SLOTS_MAX: u32 = 100_000;
