//! What a run leaves behind that has ended: nothing that anybody would look at again (INV-25).

use std::time::Duration;

use anyhow::Context as _;
use everstep_tests::servers::require;

use super::world::{Plan, World, within};

const RUNS: u32 = 5;
/// Fifty sweeps.
const SWEPT: Duration = Duration::from_secs(10);

/// A signal on one node wakes the run on the other, which ends before a sweep has deleted the wake.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_soon_leaves_no_wake() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    within("runs that end behind a signal from another node", async {
        let world = World::new(Plan { nodes: 2, ..Plan::default() }).await?;
        let _worker = world.worker(1)?;
        world.open_gate();
        let runs = world.start(&world.client()?, 0..RUNS).await?;
        world.slept(RUNS).await?;
        world.signal(&runs).await?;
        world.finish(&runs).await?;
        let none_left = world.truth.wait("SELECT (count(*) = 0)::int::bigint FROM wakes", 1);
        let swept = tokio::time::timeout(SWEPT, none_left).await;
        swept.context("wakes of runs that have ended are never deleted (INV-25)")?
    })
    .await
}
