//! How many attempts the limits of a queue leave room for: a bucket of tokens, and a count of what runs.

use everstep_core::{Duration, Timestamp};

use crate::QueueLimits;

/// When it is worth to ask again, while as many run as may.
const AGAIN: Duration = Duration::from_secs(1);

/// Room in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueRoom {
    /// Attempts that may begin.
    pub free: usize,
    /// When more may.
    pub again: Option<Timestamp>,
}

impl QueueRoom {
    /// Of a queue without limits.
    pub const ENDLESS: Self = Self { free: usize::MAX, again: None };

    /// What the rate leaves, with so many tokens in the bucket now.
    pub fn by_rate(limits: &QueueLimits, tokens: f64, now: Timestamp) -> Self {
        let Some(rate) = limits.max_per_second else { return Self::ENDLESS };
        let whole = tokens.floor();
        let missing = Duration::from_micros(((whole + 1.0 - tokens) / rate * 1e6).ceil() as u64);
        Self { free: whole as usize, again: Some(now.after(missing)) }
    }

    /// What is left of it when so many may run at one time, and so many do.
    #[must_use]
    pub fn by_count(self, max: u32, running: usize, now: Timestamp) -> Self {
        let free = (max as usize).saturating_sub(running);
        if free < self.free { Self { free, again: Some(now.after(AGAIN)) } } else { self }
    }

    /// When to ask again after `limit` were asked for and `claimed` given: only when it was the room that stopped it.
    pub fn again_after(self, limit: usize, claimed: usize) -> Option<Timestamp> {
        self.again.filter(|_| self.free < limit && claimed == self.free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    fn limits(rate: f64) -> QueueLimits {
        QueueLimits { max_per_second: Some(rate), burst: 10, ..QueueLimits::default() }
    }

    #[test]
    fn the_rate_leaves_whole_tokens_and_says_when_the_next_is_whole() {
        let room = QueueRoom::by_rate(&limits(2.0), 1.5, at(0));
        assert_eq!(room, QueueRoom { free: 1, again: Some(at(250_000)) });
        assert_eq!(QueueRoom::by_rate(&limits(2.0), 0.0, at(0)).free, 0);
        assert_eq!(QueueRoom::by_rate(&QueueLimits::default(), 0.0, at(0)), QueueRoom::ENDLESS);
        // Next to never is no overflow.
        let never = QueueRoom::by_rate(&limits(f64::from_bits(1)), 0.5, at(0));
        assert_eq!(never, QueueRoom { free: 0, again: Some(Timestamp::MAX) });
    }

    #[test]
    fn what_runs_takes_room_and_the_narrower_limit_says_when() {
        let full = QueueRoom::ENDLESS.by_count(3, 3, at(0));
        assert_eq!(full, QueueRoom { free: 0, again: Some(at(1_000_000)) });
        assert_eq!(QueueRoom::ENDLESS.by_count(3, 5, at(0)).free, 0, "more than may: the limit was lowered");
        let by_rate = QueueRoom::by_rate(&limits(2.0), 1.5, at(0));
        assert_eq!(by_rate.by_count(3, 1, at(0)), by_rate);
        assert_eq!(full.again_after(5, 0), full.again);
        assert_eq!(by_rate.again_after(1, 1), None, "all that was asked for");
        assert_eq!(by_rate.again_after(5, 0), None, "there was nothing to claim");
    }
}
