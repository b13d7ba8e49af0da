//! Database time between two looks at the database.

use std::sync::Mutex;
use std::time::Instant;

use everstep_core::{Duration, Timestamp};

/// Extrapolates the database's clock by this process's monotonic one. Never steps back, so a host whose
/// wall clock jumps changes nothing.
#[derive(Debug)]
pub(crate) struct DbClock {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    base: Timestamp,
    at: Instant,
    last: Timestamp,
}

impl DbClock {
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { state: Mutex::new(State { base: now, at: Instant::now(), last: now }) }
    }

    /// The present database time, as far as this process can tell.
    pub(crate) fn now(&self) -> Timestamp {
        let mut s = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = s.base.after(Duration::from(s.at.elapsed()));
        s.last = s.last.max(now);
        s.last
    }

    /// The database said what time it is: just after it did something for us.
    pub(crate) fn learn(&self, now: Timestamp) {
        let mut s = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        s.base = now;
        s.at = Instant::now();
        s.last = s.last.max(now);
    }
}
