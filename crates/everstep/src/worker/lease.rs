//! The worker's side of its session's lease.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Counted from when the acknowledged heartbeat was *sent*, so that it never outlives the server's count.
#[derive(Debug)]
pub(super) struct Lease {
    origin: Instant,
    /// Microseconds after `origin`.
    until: AtomicU64,
    length: AtomicU64,
}

impl Lease {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), until: AtomicU64::new(0), length: AtomicU64::new(0) }
    }

    pub(super) fn renew(&self, sent: Instant, length: Duration) {
        let until = sent.duration_since(self.origin) + length;
        self.until.fetch_max(micros(until), Ordering::AcqRel);
        self.length.store(micros(length), Ordering::Release);
    }

    pub(super) fn end(&self) {
        self.until.store(0, Ordering::Release);
    }

    pub(super) fn length(&self) -> Duration {
        Duration::from_micros(self.length.load(Ordering::Acquire))
    }

    pub(super) fn is_over(&self) -> bool {
        micros(self.origin.elapsed()) >= self.until.load(Ordering::Acquire)
    }

    /// Waits until the lease is over, however often it is renewed meanwhile.
    pub(super) async fn over(&self) {
        while !self.is_over() {
            let left = self.until.load(Ordering::Acquire).saturating_sub(micros(self.origin.elapsed()));
            tokio::time::sleep(Duration::from_micros(left)).await;
        }
    }

    /// Nothing is started in the last tenth: its first effect could come after the end.
    pub(super) fn may_start(&self) -> bool {
        let margin = self.length.load(Ordering::Acquire) / 10;
        micros(self.origin.elapsed()) + margin < self.until.load(Ordering::Acquire)
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
