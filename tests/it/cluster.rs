//! Two nodes on one Postgres and one NATS.

use std::sync::Arc;
use std::time::Duration;

use everstep::{Ctx, StepError, WorkflowError};
use everstep_core::EventBody;
use everstep_dispatch::InProcess;
use everstep_dispatch_nats::{NatsDispatch, NatsOptions};
use everstep_store_postgres::{PostgresStore, migrate};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use everstep_tests::servers::{NatsServer, PostgresServer, require};

use crate::stores::postgres_options;

async fn node(database: &str, nats: &NatsServer) -> anyhow::Result<RunningNode> {
    let store = PostgresStore::connect(database, postgres_options()).await?;
    let dispatch = NatsDispatch::connect(&nats.url(), NatsOptions::default()).await?;
    RunningNode::start(Arc::new(store), Arc::new(dispatch), NodeSettings::default()).await
}

async fn asks(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let n = ctx.step("first", || async { Ok::<_, StepError>(40) }).await?;
    let m: u32 = ctx.signal("go").await?;
    Ok(n + m)
}

/// A run that is started on one node, run by a worker of the other, signaled on the first, awaited on both.
async fn crosses(here: &RunningNode, there: &RunningNode) -> anyhow::Result<()> {
    let run = here.client()?.workflow::<u32>("asks").start(&()).await?;
    let mut history = run.history(0, true).await?;
    while let Some(event) = history.next().await? {
        if matches!(event.body, EventBody::StepCompleted { .. }) {
            break;
        }
    }
    run.signal("go", &2).await?;
    assert_eq!(run.result().await?, 42);
    let id = run.run_id().ok_or_else(|| anyhow::anyhow!("no run id"))?;
    assert_eq!(there.client()?.handle::<u32>(id).result().await?, 42);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_takes_any_call_and_nats_may_die() -> anyhow::Result<()> {
    if !require("pg")? || !require("nats")? {
        return Ok(());
    }
    let database = PostgresServer::shared()?.create_database().await?;
    migrate(&database).await?;
    let mut nats = NatsServer::start()?;
    let (here, there) = (node(&database, &nats).await?, node(&database, &nats).await?);
    let park_late = Duration::from_secs(60);
    let _worker = RunningWorker::start(there.worker().park_after(park_late).register("asks", asks))?;
    for nats_is_dead in [false, true] {
        if nats_is_dead {
            nats.kill_9()?;
        }
        crosses(&here, &there).await?;
    }
    Ok(())
}

/// Nothing tells the nodes of each other but the database: the sweep finds what is to do.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_nats_work_on_one_database() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let database = PostgresServer::shared()?.create_database().await?;
    migrate(&database).await?;
    let node = async || {
        let store = PostgresStore::connect(&database, postgres_options()).await?;
        RunningNode::start(Arc::new(store), Arc::new(InProcess::new()), NodeSettings::default()).await
    };
    let (here, there) = (node().await?, node().await?);
    let park_late = Duration::from_secs(60);
    let _worker = RunningWorker::start(there.worker().park_after(park_late).register("asks", asks))?;
    crosses(&here, &there).await
}
