//! Waiting, which is what a fault that lasts is made of, and a look that is taken again and again.

use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

/// Lets a fault last, or a client think.
pub async fn hold(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Waits until then.
pub async fn until(at: Instant) {
    tokio::time::sleep_until(at).await;
}

/// Waits until `holds`, asked every few milliseconds.
///
/// # Errors
/// What the question says, and when the answer is no for `limit`.
pub async fn wait_for(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_millis(3));
    let over = Instant::now() + limit;
    while !holds()? {
        if Instant::now() >= over {
            bail!("not within {limit:?}: {what}");
        }
        tick.tick().await;
    }
    Ok(())
}
