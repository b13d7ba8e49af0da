//! Database time between two looks at the database.

use std::sync::Mutex;
use std::time::{Duration as StdDuration, Instant};

use everstep_core::{Duration, Timestamp};

/// How long it still is until an instant that the database named in an answer, so long after that answer. `now` is the
/// database's own time of it: after its clock was set back, what this process reckons is ahead of it for a while, and
/// by that the instant would have come, again and again.
pub(crate) fn until(next: Option<Timestamp>, now: Timestamp, elapsed: StdDuration) -> StdDuration {
    next.map_or(StdDuration::MAX, |next| next.since(now).to_std().saturating_sub(elapsed))
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_instant_of_a_clock_that_was_set_back_is_waited_for() {
        let second = |n: i64| Timestamp::from_micros(n * 1_000_000);
        let clock = DbClock::new(second(10));
        clock.learn(second(5));
        assert!(clock.now() >= second(10), "what is reckoned does not step back");
        let next = second(7);
        assert!(next.since(clock.now()) == Duration::ZERO, "and by that, the instant has come");
        let wait = |millis| until(Some(next), second(5), StdDuration::from_millis(millis));
        assert_eq!(wait(0), StdDuration::from_secs(2));
        assert_eq!(wait(500), StdDuration::from_millis(1_500));
        assert_eq!(wait(3_000), StdDuration::ZERO);
        assert_eq!(until(None, second(5), StdDuration::ZERO), StdDuration::MAX);
    }
}
