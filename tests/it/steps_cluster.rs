//! Queued steps between two nodes: the workflow's worker is connected to one, the step's to the other.

use std::sync::Arc;
use std::time::Duration;

use everstep::{Ctx, RunHandle, StepError, StepType, WorkflowError, join_all};
use everstep_dispatch::{Dispatch, InProcess};
use everstep_dispatch_nats::{NatsDispatch, NatsOptions};
use everstep_faultproxy::Proxy;
use everstep_store_postgres::{PostgresStore, migrate};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use everstep_tests::servers::{NatsServer, PostgresServer, require};
use tokio::sync::mpsc;

use crate::steps::{Work, kinds, until};
use crate::stores::postgres_options;

async fn node(database: &str, dispatch: Arc<dyn Dispatch>) -> anyhow::Result<RunningNode> {
    let store = PostgresStore::connect(database, postgres_options()).await?;
    RunningNode::start(Arc::new(store), dispatch, NodeSettings::default()).await
}

async fn with_nats(database: &str, nats: &NatsServer) -> anyhow::Result<RunningNode> {
    node(database, Arc::new(NatsDispatch::connect(&nats.url(), NatsOptions::default()).await?)).await
}

async fn database() -> anyhow::Result<String> {
    let database = PostgresServer::shared()?.create_database().await?;
    migrate(&database).await?;
    Ok(database)
}

async fn ten(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let steps = (0..10).map(|n| ctx.run::<Work>(n).task_queue("steps")).collect::<Vec<_>>();
    let mut sum = 0;
    for end in join_all(steps).await {
        sum += end?;
    }
    Ok(sum)
}

struct Other;

impl StepType for Other {
    const NAME: &'static str = "other";
    type Input = u32;
    type Output = u32;
}

/// As `ten`, with the other step.
async fn twenty(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let steps = (0..10).map(|n| ctx.run::<Other>(n).task_queue("steps")).collect::<Vec<_>>();
    let mut sum = 0;
    for end in join_all(steps).await {
        sum += end?;
    }
    Ok(sum)
}

async fn sums(run: &RunHandle<u32>) -> anyhow::Result<()> {
    assert_eq!(run.result().await?, 45);
    let completed = kinds(run).await?.iter().filter(|kind| *kind == "StepCompleted").count();
    assert_eq!(completed, 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_cross_from_node_to_node_and_nats_may_die() -> anyhow::Result<()> {
    if !require("pg")? || !require("nats")? {
        return Ok(());
    }
    let database = database().await?;
    let mut nats = NatsServer::start()?;
    let (here, there) = (with_nats(&database, &nats).await?, with_nats(&database, &nats).await?);
    let _flows = RunningWorker::start(here.worker().register("ten", ten))?;
    let steps = there.worker().task_queue("steps");
    let _steps = RunningWorker::start(steps.register_step::<Work, _, _>(|_, n| async move { Ok(n) }))?;
    for nats_is_dead in [false, true] {
        if nats_is_dead {
            nats.kill_9()?;
        }
        let run = here.client()?.workflow::<u32>("ten").start(&()).await?;
        sums(&run).await?;
    }
    Ok(())
}

/// Two nodes share a queue, and each has code that the other has not. A hint comes to either of them; one that cannot
/// follow it hands it on, and nobody has to wait for a look of a clock. The sweeps are slow here, so that they would show.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_different_code_hand_on_what_is_not_theirs() -> anyhow::Result<()> {
    if !require("pg")? || !require("nats")? {
        return Ok(());
    }
    let database = database().await?;
    let nats = NatsServer::start()?;
    let slow = async || {
        let store = Arc::new(PostgresStore::connect(&database, postgres_options()).await?);
        let dispatch = Arc::new(NatsDispatch::connect(&nats.url(), NatsOptions::default()).await?);
        let settings = NodeSettings { sweep: Some(Duration::from_secs(600)), ..NodeSettings::default() };
        RunningNode::start(store, dispatch, settings).await
    };
    let (here, there) = (slow().await?, slow().await?);
    let host = |node: &RunningNode| node.worker().task_queue("default").task_queue("steps");
    let _here = RunningWorker::start(
        host(&here).register("ten", ten).register_step::<Other, _, _>(|_, n| async move { Ok(n) }),
    )?;
    let _there = RunningWorker::start(
        host(&there).register("twenty", twenty).register_step::<Work, _, _>(|_, n| async move { Ok(n) }),
    )?;
    let client = here.client()?;
    while client.queue("default").await?.workers.len() < 2 {
        tokio::task::yield_now().await;
    }
    let runs = async {
        for _ in 0..10 {
            sums(&client.workflow::<u32>("ten").start(&()).await?).await?;
            sums(&client.workflow::<u32>("twenty").start(&()).await?).await?;
        }
        anyhow::Ok(())
    };
    // A hint that is dropped costs ten minutes.
    tokio::time::timeout(Duration::from_secs(60), runs).await?
}

/// Nothing tells the nodes of each other but the database: the clock finds what waits.
#[tokio::test(flavor = "multi_thread")]
async fn steps_cross_without_nats() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let database = database().await?;
    let here = node(&database, Arc::new(InProcess::new())).await?;
    let there = node(&database, Arc::new(InProcess::new())).await?;
    let _flows = RunningWorker::start(here.worker().register("ten", ten))?;
    let steps = there.worker().task_queue("steps");
    let _steps = RunningWorker::start(steps.register_step::<Work, _, _>(|_, n| async move { Ok(n) }))?;
    let run = here.client()?.workflow::<u32>("ten").start(&()).await?;
    sums(&run).await
}

/// The node dies under a worker in the middle of an attempt: the attempt goes on, and its end is said to the next node.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_outlives_the_node_that_gave_it_out() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let database = database().await?;
    let first = node(&database, Arc::new(InProcess::new())).await?;
    let second = node(&database, Arc::new(InProcess::new())).await?;
    let (proxy, url) = Proxy::before(&first.address, 7).await?;
    let (said, mut heard) = mpsc::unbounded_channel();
    let (go_on, gone_on) = tokio::sync::watch::channel(false);
    let builder = everstep::Worker::builder(url).task_queue("steps");
    let _steps = RunningWorker::start(builder.register_step::<Work, _, _>(move |step, n| {
        let (said, mut gone_on) = (said.clone(), gone_on.clone());
        async move {
            let _ = said.send(step.info().attempt);
            gone_on.wait_for(|go_on| *go_on).await.map_err(|e| StepError::new("Test", e.to_string()))?;
            Ok(n + step.info().attempt)
        }
    }))?;
    let one = |ctx: Ctx, n: u32| async move {
        Ok::<u32, WorkflowError>(ctx.run::<Work>(n).task_queue("steps").await?)
    };
    let _flows = RunningWorker::start(second.worker().park_after(Duration::ZERO).register("one", one))?;
    let run = second.client()?.workflow::<u32>("one").start(&4).await?;
    until(&run, "StepScheduled").await?;
    heard.recv().await;
    proxy.handle().point_at(second.address.trim_start_matches("http://"));
    drop(first);
    proxy.handle().reset();
    go_on.send_replace(true);
    assert_eq!(run.result().await?, 5, "the first attempt, and no other");
    assert!(heard.try_recv().is_err());
    Ok(())
}
