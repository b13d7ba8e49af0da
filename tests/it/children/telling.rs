//! One node tells others of all that a run has for them: no other node has to, however long it takes.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use everstep::{Ctx, WorkflowError};
use everstep_dispatch::InProcess;
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};

use super::{all_types, quiet};
use crate::stores;

/// Starts so many children at once.
async fn burst(ctx: Ctx, count: u32) -> Result<u32, WorkflowError> {
    let children = (0..count).map(|n| ctx.child::<u32>("double", n).into_future());
    let mut done = everstep::buffered(children, count as usize);
    let mut sum = 0;
    while let Some(doubled) = done.next().await {
        sum += doubled?;
    }
    Ok(sum)
}

/// A thousand children take longer to begin than the second in which nobody else looks at the parent's news, and two
/// other nodes look five times a second. They leave it to the one that is at it; on a machine that is busy with other
/// things a look may still find one of these, but the sweeps do not do its work.
#[tokio::test(flavor = "multi_thread")]
async fn a_fan_out_is_told_by_one_node() -> anyhow::Result<()> {
    for stores::TestStore { name, store, .. } in &stores::all().await? {
        // A worker that is slow under load is not given up.
        let settings = || NodeSettings { lease: Some(Duration::from_secs(30)), ..NodeSettings::default() };
        let node =
            async || RunningNode::start(Arc::clone(store), Arc::new(InProcess::new()), settings()).await;
        let nodes = [node().await?, node().await?, node().await?];
        let worker = all_types(nodes[0].worker()).register("burst", burst).run_slots(2_000);
        let _worker = RunningWorker::start(worker)?;
        // Else the parent is found by the sweep once it is.
        while nodes[0].engine.status().workers == 0 {
            tokio::task::yield_now().await;
        }
        let count = 1_000;
        let run = nodes[0].client()?.workflow::<u32>("burst").start(&count).await?;
        assert_eq!(run.result().await?, count * (count - 1), "{name}");
        quiet(store).await?;
        let healed = nodes.each_ref().map(|node| node.engine.status().healed);
        assert!(healed.iter().sum::<u64>() < 20, "{name}: the sweeps found {healed:?}");
    }
    Ok(())
}
