//! Closed-loop clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use everstep::Client;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::latency::Latencies;
use super::workloads::Plan;
use crate::fail::Fail;

const WARM_UP: Duration = Duration::from_secs(2);

/// What the clients saw inside the window.
pub(super) struct Load {
    pub(super) runs: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// Clients at work: each starts its next run when the result of the one before has come.
pub(super) struct Clients {
    tasks: JoinSet<Result<Vec<u64>, Fail>>,
    measuring: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Clients {
    /// Lets them work until everything is warm.
    pub(super) async fn warm_up(address: &str, plan: &Plan) -> Result<Self, Fail> {
        let client = Client::connect(address)?;
        let (workflow, steps) = (plan.workflow, plan.steps);
        // The first run also waits for the server and the worker to be there.
        client.workflow::<u32>(workflow).start(&steps).await?.result().await?;
        let (measuring, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        for _ in 0..plan.clients {
            let (client, measuring, over) = (client.clone(), Arc::clone(&measuring), Arc::clone(&over));
            tasks.spawn(async move {
                let mut micros = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    client.workflow::<u32>(workflow).start(&steps).await?.result().await?;
                    if measuring.load(Ordering::Relaxed) && !over.load(Ordering::Relaxed) {
                        micros.push(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
                    }
                }
                Ok::<_, Fail>(micros)
            });
        }
        tokio::time::sleep(WARM_UP).await;
        Ok(Self { tasks, measuring, over })
    }

    /// Begins the window: runs that end from here on count.
    pub(super) fn measure(&self) {
        self.measuring.store(true, Ordering::Relaxed);
    }

    /// Ends the window.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// What they saw, once the last of them has its result.
    pub(super) async fn finish(mut self) -> Result<Load, Fail> {
        let mut latencies = Latencies::new()?;
        while let Some(done) = self.tasks.join_next().await {
            for micros in done.map_err(|e| Fail::refused(e.to_string()))?? {
                latencies.record(Duration::from_micros(micros));
            }
        }
        Ok(Load { runs: latencies.count(), p50_ms: latencies.ms(0.5), p99_ms: latencies.ms(0.99) })
    }
}
