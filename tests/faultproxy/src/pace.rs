//! Waiting, which is what a proxy that delays is for.

use std::time::Duration;

use tokio::time::Instant;

/// Waits until then.
pub(crate) async fn until(at: Instant) {
    tokio::time::sleep_until(at).await;
}

/// Waits that long.
pub(crate) async fn for_ms(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// Waits as long as so many bytes take at this rate.
pub(crate) async fn for_bytes(bytes: usize, bytes_per_s: u64) {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    let micros = bytes.saturating_mul(1_000_000) / bytes_per_s.max(1);
    tokio::time::sleep(Duration::from_micros(micros)).await;
}
