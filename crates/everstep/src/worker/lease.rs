//! The worker's side of its session's lease.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What `until` is once somebody has acted on the end.
const ENDED: u64 = 0;

/// Counted from when the acknowledged heartbeat was *sent*, so that it never outlives the server's count.
///
/// An end that somebody has acted on is final: a run that was given up is held by nobody, and an acknowledgement
/// that comes a moment later must not make the session look as if it still held it.
#[derive(Debug)]
pub(super) struct Lease {
    origin: Instant,
    /// Microseconds after `origin`.
    until: AtomicU64,
    length: AtomicU64,
}

impl Lease {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), until: AtomicU64::new(ENDED), length: AtomicU64::new(0) }
    }

    /// The lease of a new session.
    pub(super) fn begin(&self, sent: Instant, length: Duration) {
        self.length.store(micros(length), Ordering::Release);
        self.until.store(micros(sent.duration_since(self.origin) + length), Ordering::Release);
    }

    /// False when the lease has ended before, and somebody has acted on it.
    #[must_use]
    pub(super) fn renew(&self, sent: Instant, length: Duration) -> bool {
        let until = micros(sent.duration_since(self.origin) + length);
        let later = |old: u64| (old != ENDED).then(|| old.max(until));
        let renewed = self.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, later).is_ok();
        if renewed {
            self.length.store(micros(length), Ordering::Release);
        }
        renewed
    }

    pub(super) fn end(&self) {
        self.until.store(ENDED, Ordering::Release);
    }

    pub(super) fn length(&self) -> Duration {
        Duration::from_micros(self.length.load(Ordering::Acquire))
    }

    pub(super) fn is_over(&self) -> bool {
        micros(self.origin.elapsed()) >= self.until.load(Ordering::Acquire)
    }

    /// Waits until the lease is over, however often it is renewed meanwhile. After that it is not renewed.
    pub(super) async fn over(&self) {
        loop {
            let until = self.until.load(Ordering::Acquire);
            let left = until.saturating_sub(micros(self.origin.elapsed()));
            if left > 0 {
                tokio::time::sleep(Duration::from_micros(left)).await;
            } else if self.until.compare_exchange(until, ENDED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return;
            }
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
