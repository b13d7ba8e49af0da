//! Postgres dies under a run: a backend, or the whole server, at each step of it.

use std::sync::{Arc, Mutex, PoisonError};

use everstep::{Ctx, StepError, WorkflowError};
use everstep_core::EventBody;
use everstep_dispatch::InProcess;
use everstep_store_postgres::{PostgresStore, migrate};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use everstep_tests::servers::{PostgresServer, require};

use crate::stores::postgres_options;

const STEPS: u32 = 6;

type Harm = Arc<dyn Fn() -> anyhow::Result<()> + Send + Sync>;

/// Each step does the harm before it returns, so that its result meets a database that is not as it was.
async fn harmed(ctx: Ctx, harm: Harm) -> Result<u32, WorkflowError> {
    let mut sum = 0;
    for number in 1..=STEPS {
        let harm = Arc::clone(&harm);
        sum += ctx
            .step("harm", move || {
                let harm = Arc::clone(&harm);
                async move {
                    let done = tokio::task::spawn_blocking(move || harm()).await?;
                    done.map_err(|e| StepError::new("Harm", e.to_string()).non_retryable())?;
                    Ok::<_, StepError>(number)
                }
            })
            .await?;
    }
    Ok(sum)
}

/// Runs the workflow on the database, and checks that every step has one result.
async fn survives(database: &str, harm: Harm) -> anyhow::Result<()> {
    migrate(database).await?;
    let store = Arc::new(PostgresStore::connect(database, postgres_options()).await?);
    let node = RunningNode::start(store, Arc::new(InProcess::new()), NodeSettings::default()).await?;
    let workflow = move |ctx: Ctx, (): ()| harmed(ctx, Arc::clone(&harm));
    let _worker = RunningWorker::start(node.worker().register("harmed", workflow))?;
    let run = node.client()?.workflow::<u32>("harmed").start(&()).await?;
    assert_eq!(run.result().await?, (1..=STEPS).sum::<u32>());
    let mut history = run.history(0, false).await?;
    let (mut steps, mut seq) = (Vec::new(), 0);
    while let Some(event) = history.next().await? {
        seq += 1;
        assert_eq!(event.seq, seq);
        if let EventBody::StepCompleted { step, .. } = event.body {
            steps.push(step.0);
        }
    }
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>());
    Ok(())
}

fn with_server(
    server: &Arc<Mutex<PostgresServer>>,
    harm: impl Fn(&mut PostgresServer) -> anyhow::Result<()> + Send + Sync + 'static,
) -> Harm {
    let server = Arc::clone(server);
    Arc::new(move || harm(&mut server.lock().unwrap_or_else(PoisonError::into_inner)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_postgres_loses_nothing() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let server = PostgresServer::start()?;
    let database = server.create_database().await?;
    let server = Arc::new(Mutex::new(server));
    let harm = with_server(&server, |server| {
        server.kill_9()?;
        server.start_again()
    });
    survives(&database, harm).await
}

/// Postgres ends all backends when one is killed, and recovers by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backend_loses_nothing() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let server = PostgresServer::start()?;
    let database = server.create_database().await?;
    let server = Arc::new(Mutex::new(server));
    let runtime = tokio::runtime::Handle::current();
    let harm = with_server(&server, move |server| {
        let backends = runtime.block_on(server.backend_pids())?;
        backends.first().map_or(Ok(()), |&pid| server.kill_backend(pid))
    });
    survives(&database, harm).await
}

/// Backends that are asked to go, as by an operator or a failover: each connection learns it by itself.
#[tokio::test(flavor = "multi_thread")]
async fn terminated_backends_lose_nothing() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let server = PostgresServer::start()?;
    let database = server.create_database().await?;
    let (runtime, url) = (tokio::runtime::Handle::current(), database.clone());
    let harm: Harm = Arc::new(move || {
        runtime.block_on(async {
            let pool = sqlx::PgPool::connect(&url).await?;
            let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE application_name = 'everstep' AND pid <> pg_backend_pid()";
            sqlx::query(all).execute(&pool).await?;
            Ok(())
        })
    });
    survives(&database, harm).await
}
