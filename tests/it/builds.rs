//! Runs wait for the code that they need: visibly, and until somebody with that code is there or allowed.

use std::sync::Arc;
use std::time::Duration;

use everstep::client::{Builds, RunListFilter};
use everstep::{Client, Ctx, RunHandle, RunId, StepError, WorkflowError};
use everstep_core::{DetachReason, EventBody, RunStatus};
use everstep_dispatch::{Dispatch, InProcess};
use everstep_dispatch_nats::{NatsDispatch, NatsOptions};
use everstep_proto::api::WaitingRuns;
use everstep_store_postgres::{PostgresStore, migrate};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use everstep_tests::servers::{NatsServer, PostgresServer, require};

use crate::nodes::{node_on, until};
use crate::stores;

async fn number(ctx: &Ctx, name: &str, value: u32) -> Result<u32, WorkflowError> {
    Ok(ctx.step(name.to_owned(), move || async move { Ok::<_, StepError>(value) }).await?)
}

/// Opens, waits to be told to go on, and closes.
async fn order(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let open = number(&ctx, "open", 1).await?;
    ctx.signal::<()>("go").await?;
    Ok(open + number(&ctx, "close", 10).await?)
}

/// Not the same: it does not fit a run that has opened.
async fn other_order(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let open = number(&ctx, "begin", 1).await?;
    ctx.signal::<()>("go").await?;
    Ok(open + number(&ctx, "close", 10).await?)
}

async fn ping(_: Ctx, (): ()) -> Result<u32, WorkflowError> {
    Ok(1)
}

fn is_parked(body: &EventBody) -> bool {
    matches!(body, EventBody::WorkerDetached { reason: DetachReason::Parked })
}

async fn kinds(run: &RunHandle<u32>) -> anyhow::Result<Vec<String>> {
    let mut history = run.history(0, false).await?;
    let mut kinds = Vec::new();
    while let Some(event) = history.next().await? {
        kinds.push(event.body.kind().to_owned());
    }
    Ok(kinds)
}

/// Asks until something waits for longer than a hint takes, or nothing does.
async fn listed(client: &Client, waits: bool) -> anyhow::Result<Builds> {
    loop {
        let listed = client.list_builds().await?;
        if listed.waiting.is_empty() != waits {
            return Ok(listed);
        }
        tokio::task::yield_now().await;
    }
}

/// Runs that are listed as waiting for a build.
async fn pinned_down(client: &Client, build: &str) -> anyhow::Result<Vec<Option<RunId>>> {
    let filter = RunListFilter { waits_for_build: Some(build.to_owned()), ..RunListFilter::default() };
    Ok(client.list(&filter, "").await?.runs.iter().map(|run| Some(run.run_id)).collect())
}

fn told(waiting: &WaitingRuns) -> (&str, &str, &str, u64) {
    (&waiting.task_queue, &waiting.workflow_type, &waiting.build_id, waiting.runs)
}

#[tokio::test]
async fn a_run_of_a_type_that_nobody_serves_waits_and_is_seen() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let node = node_on(&store).await?;
        let client = node.client()?;
        let _pings = RunningWorker::start(node.worker().build_id("1").register("ping", ping))?;
        let run = client.workflow::<u32>("order").start(&()).await?;
        let pinged = client.workflow::<u32>("ping").start(&()).await?;
        assert_eq!(pinged.result().await?, 1, "the others go on");
        let seen = listed(&client, true).await?;
        assert_eq!(seen.waiting.iter().map(told).collect::<Vec<_>>(), [("default", "order", "", 1)]);
        assert_eq!(seen.builds.iter().map(|b| b.build_id.as_str()).collect::<Vec<_>>(), ["1"]);
        assert_eq!(seen.builds[0].workflow_types, ["ping"]);
        assert_eq!(run.describe().await?.run.waits_for_build, "*");
        assert_eq!(pinned_down(&client, "*").await?, [run.run_id()]);
        assert_eq!(pinned_down(&client, "1").await?, []);
        assert_eq!(kinds(&run).await?, ["RunStarted"], "nobody was given it, so it is not blocked");

        let _orders = RunningWorker::start(node.worker().build_id("1").register("order", order))?;
        run.signal("go", &()).await?;
        assert_eq!(run.result().await?, 11);
        listed(&client, false).await?;
        node.shutdown().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_pinned_run_waits_for_its_build_and_moves_when_another_is_allowed() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let node = node_on(&store).await?;
        let client = node.client()?;
        let at_once = Duration::from_millis(1);
        let old = node.worker().build_id("1").park_after(at_once).register_pinned("order", order);
        let old = RunningWorker::start(old)?;
        let (run, other) = (
            client.workflow::<u32>("order").start(&()).await?,
            client.workflow::<u32>("order").start(&()).await?,
        );
        until(&run, is_parked).await?;
        until(&other, is_parked).await?;
        old.stop().await?;

        let new = node.worker().build_id("2").park_after(at_once).register_pinned("order", order);
        let new = RunningWorker::start(new)?;
        run.signal("go", &()).await?;
        let seen = listed(&client, true).await?;
        assert_eq!(seen.waiting.iter().map(told).collect::<Vec<_>>(), [("default", "order", "1", 1)]);
        assert_eq!(run.describe().await?.run.waits_for_build, "1");
        assert_eq!(other.describe().await?.run.waits_for_build, "", "it waits for its signal");
        for (build, waits) in [("*", vec![run.run_id()]), ("1", vec![run.run_id()]), ("2", vec![])] {
            assert_eq!(pinned_down(&client, build).await?, waits, "for {build}");
        }
        let attached = |kinds: Vec<String>| kinds.iter().filter(|k| *k == "WorkerAttached").count();
        assert_eq!(attached(kinds(&run).await?), 1, "the new build was not given it");
        let fresh = client.workflow::<u32>("order").start(&()).await?;
        fresh.signal("go", &()).await?;
        assert_eq!(fresh.result().await?, 11, "new runs are the new build's");
        node.shutdown().await?;

        // Who waits is in the database, not in a node.
        drop(new);
        let node = node_on(&store).await?;
        let client = node.client()?;
        let new = node.worker().build_id("2").park_after(at_once).register_pinned("order", order);
        let _new = RunningWorker::start(new)?;
        let seen = listed(&client, true).await?;
        assert_eq!(seen.waiting.iter().map(told).collect::<Vec<_>>(), [("default", "order", "1", 1)]);

        client.allow_build("default", "2", "1").await?;
        client.allow_build("default", "2", "1").await?;
        let run = client.handle::<u32>(run.run_id().expect("it was started here"));
        assert_eq!(run.result().await?, 11);
        let seen = listed(&client, false).await?;
        assert_eq!(seen.builds[0].continues, ["1"]);

        // What was allowed is still known after a restart.
        node.shutdown().await?;
        let node = node_on(&store).await?;
        let third = node.worker().build_id("2").register("order", order);
        let _third = RunningWorker::start(third)?;
        let other = node.client()?.handle::<u32>(other.run_id().expect("it was started here"));
        other.signal("go", &()).await?;
        assert_eq!(other.result().await?, 11);
        node.shutdown().await?;
    }
    Ok(())
}

#[tokio::test]
async fn code_can_say_itself_that_it_continues_a_build() -> anyhow::Result<()> {
    let node = RunningNode::in_memory().await?;
    let client = node.client()?;
    let at_once = Duration::from_millis(1);
    let old = RunningWorker::start(
        node.worker().build_id("1").park_after(at_once).register_pinned("order", order),
    )?;
    let run = client.workflow::<u32>("order").start(&()).await?;
    until(&run, is_parked).await?;
    old.stop().await?;
    let next = node.worker().build_id("2").continues("1").park_after(at_once);
    let next = RunningWorker::start(next.register_pinned("order", other_order))?;
    run.signal("go", &()).await?;
    until(&run, |body| matches!(body, EventBody::RunBlocked(_))).await?;
    next.stop().await?;

    // It belonged to build 2 when it was blocked. Its matcher guards it all the same.
    let stranger = RunningWorker::start(node.worker().build_id("3").register("order", order))?;
    assert_eq!(run.describe().await?.status, RunStatus::Blocked);
    let _able = RunningWorker::start(node.worker().build_id("4").continues("2").register("order", order))?;
    assert_eq!(run.result().await?, 11, "it was freed by a build that continues the one it belonged to");
    stranger.stop().await?;
    Ok(())
}

/// Without a pin, code of any build is tried; what does not fit is blocked, and freed by code that does.
#[tokio::test]
async fn a_run_that_is_not_pinned_is_tried_by_any_build() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let client = node.client()?;
        let at_once = Duration::from_millis(1);
        let old =
            RunningWorker::start(node.worker().build_id("1").park_after(at_once).register("order", order))?;
        let run = client.workflow::<u32>("order").start(&()).await?;
        until(&run, is_parked).await?;
        old.stop().await?;
        let wrong = RunningWorker::start(node.worker().build_id("2").register("order", other_order))?;
        run.signal("go", &()).await?;
        until(&run, |body| matches!(body, EventBody::RunBlocked(_))).await?;
        let _right = RunningWorker::start(node.worker().build_id("3").register("order", order))?;
        assert_eq!(run.result().await?, 11, "on {}", store.name);
        wrong.stop().await?;
        node.shutdown().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_allowed_is_checked() -> anyhow::Result<()> {
    let node = RunningNode::in_memory().await?;
    let client = node.client()?;
    for (queue, build, continues) in
        [("default", "", "1"), ("default", "1", ""), ("default", "1", "1"), ("a..b", "2", "1")]
    {
        let refused = client.allow_build(queue, build, continues).await;
        let reason = refused.err().and_then(|e| e.reason().map(str::to_owned)).unwrap_or_default();
        assert!(reason.starts_with("INVALID_"), "'{queue}' '{build}' '{continues}': {reason}");
    }
    let nowhere = client.clone().namespace("nowhere").list_builds().await;
    assert_eq!(
        nowhere.err().and_then(|e| e.reason().map(str::to_owned)).as_deref(),
        Some("NAMESPACE_NOT_FOUND")
    );
    Ok(())
}

/// Two nodes on one database and queue, each with a worker of its own type: whichever node hears of a run, it comes to
/// the worker that has its code. A node that is asked to allow a build tells the other one by the database.
async fn each_has_its_own(here: &RunningNode, there: &RunningNode) -> anyhow::Result<()> {
    let at_once = Duration::from_millis(1);
    let orders = there.worker().build_id("1").park_after(at_once).register_pinned("order", order);
    let orders = RunningWorker::start(orders)?;
    let _pings = RunningWorker::start(here.worker().build_id("1").register("ping", ping))?;
    let (near, far) = (here.client()?, there.client()?);
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.push(near.workflow::<u32>("order").start(&()).await?);
        assert_eq!(far.workflow::<u32>("ping").start(&()).await?.result().await?, 1);
    }
    let last = near.workflow::<u32>("order").start(&()).await?;
    for run in &runs {
        run.signal("go", &()).await?;
        assert_eq!(run.result().await?, 11);
        assert!(!kinds(run).await?.iter().any(|kind| kind == "RunBlocked"));
    }
    until(&last, is_parked).await?;
    orders.stop().await?;
    let _new = RunningWorker::start(there.worker().build_id("2").register("order", order))?;
    last.signal("go", &()).await?;
    listed(&near, true).await?;
    near.allow_build("default", "2", "1").await?;
    assert_eq!(last.result().await?, 11);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_different_types_share_a_queue_over_nodes() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let database = PostgresServer::shared()?.create_database().await?;
    migrate(&database).await?;
    let node = async |dispatch: Arc<dyn Dispatch>| {
        let store = PostgresStore::connect(&database, stores::postgres_options()).await?;
        RunningNode::start(Arc::new(store), dispatch, NodeSettings::default()).await
    };
    let (here, there) = (node(Arc::new(InProcess::new())).await?, node(Arc::new(InProcess::new())).await?);
    each_has_its_own(&here, &there).await
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_different_types_share_a_queue_over_nodes_with_nats() -> anyhow::Result<()> {
    if !require("pg")? || !require("nats")? {
        return Ok(());
    }
    let database = PostgresServer::shared()?.create_database().await?;
    migrate(&database).await?;
    let nats = NatsServer::start()?;
    let node = async || {
        let dispatch = NatsDispatch::connect(&nats.url(), NatsOptions::default()).await?;
        let store = PostgresStore::connect(&database, stores::postgres_options()).await?;
        RunningNode::start(Arc::new(store), Arc::new(dispatch), NodeSettings::default()).await
    };
    let (here, there) = (node().await?, node().await?);
    each_has_its_own(&here, &there).await
}
