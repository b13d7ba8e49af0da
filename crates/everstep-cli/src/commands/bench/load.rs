//! Closed-loop clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use everstep::Client;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::fail::Fail;

pub(super) const WARM_UP: Duration = Duration::from_secs(2);

/// What the clients saw inside the window.
pub(super) struct Load {
    pub(super) runs: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// Each client starts its next run when the result of the one before has come.
pub(super) async fn drive(address: &str, steps: u32, clients: usize, window: Duration) -> Result<Load, Fail> {
    let client = Client::connect(address)?;
    // The first run also waits for the server and the worker to be there.
    client.workflow::<u32>(super::WORKFLOW).start(&steps).await?.result().await?;
    let (measuring, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (client, measuring, over) = (client.clone(), Arc::clone(&measuring), Arc::clone(&over));
        tasks.spawn(async move {
            let mut micros = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                client.workflow::<u32>(super::WORKFLOW).start(&steps).await?.result().await?;
                if measuring.load(Ordering::Relaxed) && !over.load(Ordering::Relaxed) {
                    micros.push(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
                }
            }
            Ok::<_, Fail>(micros)
        });
    }
    tokio::time::sleep(WARM_UP).await;
    measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(window).await;
    over.store(true, Ordering::Relaxed);
    let mut latencies =
        Histogram::<u64>::new_with_bounds(1, 600_000_000, 3).map_err(|e| Fail::refused(e.to_string()))?;
    while let Some(done) = tasks.join_next().await {
        for micros in done.map_err(|e| Fail::refused(e.to_string()))?? {
            latencies.saturating_record(micros);
        }
    }
    let ms = |q: f64| latencies.value_at_quantile(q) as f64 / 1_000.0;
    Ok(Load { runs: latencies.len(), p50_ms: ms(0.5), p99_ms: ms(0.99) })
}
