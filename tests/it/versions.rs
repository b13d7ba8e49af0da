//! Code that changes under open runs, with a version marker.

use std::sync::Arc;
use std::time::Duration;

use everstep::{Ctx, RunHandle, StepError, WorkflowError};
use everstep_core::{EventBody, RunStatus};
use everstep_dispatch::InProcess;
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};

use crate::stores;

async fn number(ctx: &Ctx, name: &str, value: u32) -> Result<u32, WorkflowError> {
    Ok(ctx.step(name.to_owned(), move || async move { Ok::<_, StepError>(value) }).await?)
}

/// Waits to be told to go on, charges, waits again.
async fn before(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let mut sum = number(&ctx, "open", 1).await?;
    ctx.signal::<()>("charge").await?;
    sum += number(&ctx, "charge", 10).await?;
    ctx.signal::<()>("close").await?;
    Ok(sum)
}

/// The same with a fee, for runs that have not charged yet.
async fn after(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let mut sum = number(&ctx, "open", 1).await?;
    ctx.signal::<()>("charge").await?;
    if ctx.version("fee", 0..=1) == 1 {
        sum += number(&ctx, "fee", 100).await?;
    }
    sum += number(&ctx, "charge", 10).await?;
    ctx.signal::<()>("close").await?;
    Ok(sum)
}

/// Nobody is left without a fee, somebody thought.
async fn later(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let mut sum = number(&ctx, "open", 1).await?;
    ctx.signal::<()>("charge").await?;
    ctx.version("fee", 1..=1);
    sum += number(&ctx, "fee", 100).await?;
    sum += number(&ctx, "charge", 10).await?;
    ctx.signal::<()>("close").await?;
    Ok(sum)
}

async fn until(run: &RunHandle<u32>, wanted: impl Fn(&EventBody) -> bool) -> anyhow::Result<()> {
    let mut history = run.history(0, true).await?;
    while let Some(event) = history.next().await? {
        if wanted(&event.body) {
            return Ok(());
        }
    }
    anyhow::bail!("the run ended before")
}

fn charged(body: &EventBody) -> bool {
    matches!(body, EventBody::StepCompleted { name, .. } if name == "charge")
}

fn opened(body: &EventBody) -> bool {
    matches!(body, EventBody::StepCompleted { name, .. } if name == "open")
}

#[tokio::test]
async fn a_run_keeps_the_version_that_it_has_come_to() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let node =
            RunningNode::start(Arc::clone(&store.store), Arc::new(InProcess::new()), NodeSettings::default())
                .await?;
        let client = node.client()?;
        let worker =
            |build: &str| node.worker().build_id(build.to_owned()).park_after(Duration::from_millis(1));

        let old = RunningWorker::start(worker("1").register("order", before))?;
        let passed = client.workflow::<u32>("order").start(&()).await?;
        passed.signal("charge", &()).await?;
        until(&passed, charged).await?;
        let waiting = client.workflow::<u32>("order").start(&()).await?;
        until(&waiting, opened).await?;
        old.stop().await?;

        let new = RunningWorker::start(worker("2").register("order", after))?;
        let fresh = client.workflow::<u32>("order").start(&()).await?;
        for run in [&waiting, &fresh] {
            run.signal("charge", &()).await?;
            until(run, |body| {
                matches!(body, EventBody::VersionMarked { change_id, version: 1 } if change_id == "fee")
            })
            .await?;
            until(run, charged).await?;
        }
        new.stop().await?;

        let last = RunningWorker::start(worker("3").register("order", later))?;
        for run in [&waiting, &fresh] {
            run.signal("close", &()).await?;
            assert_eq!(run.result().await?, 111, "the marked version is replayed");
        }
        passed.signal("close", &()).await?;
        until(&passed, |body| matches!(body, EventBody::RunBlocked(_))).await?;
        let shown = passed.describe().await?;
        assert_eq!(shown.status, RunStatus::Blocked);
        let why = shown.run.blocked_reason;
        assert!(why.contains("change 'fee' at version 0") && why.contains("supports 1 to 1"), "{why}");
        last.stop().await?;

        let _able = RunningWorker::start(worker("4").register("order", after))?;
        assert_eq!(passed.result().await?, 11, "code without the call made it: it is before the change");
    }
    Ok(())
}

/// The worker that chose is lost before anything that follows from the choice; the next one is bound by the marker.
#[tokio::test]
async fn a_marker_survives_the_worker_that_set_it() -> anyhow::Result<()> {
    async fn stuck(ctx: Ctx, first: bool) -> Result<u32, WorkflowError> {
        let range = if first { 0..=1 } else { 0..=2 };
        let version = ctx.version("fee", range);
        ctx.signal::<()>("go").await?;
        Ok(version)
    }
    for store in stores::all().await? {
        let node =
            RunningNode::start(Arc::clone(&store.store), Arc::new(InProcess::new()), NodeSettings::default())
                .await?;
        let first = |ctx: Ctx, (): ()| stuck(ctx, true);
        let second = |ctx: Ctx, (): ()| stuck(ctx, false);
        let worker = RunningWorker::start(node.worker().register("stuck", first))?;
        let run = node.client()?.workflow::<u32>("stuck").start(&()).await?;
        until(&run, |body| matches!(body, EventBody::VersionMarked { .. })).await?;
        drop(worker);
        let _next = RunningWorker::start(node.worker().build_id("next").register("stuck", second))?;
        run.signal("go", &()).await?;
        assert_eq!(run.result().await?, 1, "on {}", store.name);
    }
    Ok(())
}
