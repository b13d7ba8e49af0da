//! Runs that follow runs, between two nodes on one database: the node that appended the end and the next start dies
//! before anybody is told, and the other one goes on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use everstep::{Ctx, RetryPolicy, RunHandle, RunId, StepError, WorkflowError};
use everstep_core::{Event, EventBody, Run};
use everstep_dispatch::InProcess;
use everstep_engine::Observer;
use everstep_store::Store;
use everstep_store_postgres::{PostgresStore, migrate};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use everstep_tests::servers::{PostgresServer, require};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::stores::postgres_options;

/// Ends its node in the moment in which the end of a run is durable, and nothing else has happened yet.
#[derive(Debug)]
struct Killer(Mutex<Option<UnboundedSender<RunId>>>);

impl Observer for Killer {
    fn run_closed(&self, run: &Run) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            let _ = sender.send(run.id());
            panic!("the node dies after the commit, before anybody is told");
        }
    }
}

/// A node that dies at the first end of a run, and one that does not.
struct Two {
    store: Arc<dyn Store>,
    dying: RunningNode,
    dies: UnboundedReceiver<RunId>,
    other: RunningNode,
}

/// Nothing tells the nodes of each other but the database. `None` without a Postgres.
async fn two() -> anyhow::Result<Option<Two>> {
    if !require("pg")? {
        return Ok(None);
    }
    let database = PostgresServer::shared()?.create_database().await?;
    migrate(&database).await?;
    let store = async || PostgresStore::connect(&database, postgres_options()).await.map(Arc::new);
    let (killed, dies) = unbounded_channel();
    let observer: Arc<dyn Observer> = Arc::new(Killer(Mutex::new(Some(killed))));
    let settings = NodeSettings { observer: Some(observer), ..NodeSettings::default() };
    let dying = RunningNode::start(store().await?, Arc::new(InProcess::new()), settings).await?;
    let settings = NodeSettings::default();
    let other = RunningNode::start(store().await?, Arc::new(InProcess::new()), settings).await?;
    Ok(Some(Two { store: store().await?, dying, dies, other }))
}

/// The node is gone, and its worker with it. The answer is the run that has ended.
async fn death(
    dying: RunningNode,
    lost: RunningWorker,
    mut dies: UnboundedReceiver<RunId>,
) -> anyhow::Result<RunId> {
    let old = dies.recv().await.context("the node says so before it dies")?;
    dying.engine.shutdown(Duration::ZERO).await;
    drop((dying, lost));
    Ok(old)
}

/// A run and those that follow it: each one began once, with the one before it, and is as the tables say.
async fn chain(store: &Arc<dyn Store>, first: RunId) -> anyhow::Result<Vec<Vec<Event>>> {
    let (mut runs, mut next, mut previous) = (Vec::new(), Some(first), None);
    while let Some(id) = next {
        let events = store.read_events(id, 0, 10_000).await?;
        let run = Run::fold(id, &events)?.context("it has not begun")?;
        let tables = store.run_tables(id).await?.context("it has no row")?;
        assert_eq!(tables.projection, run.projection());
        assert_eq!(run.start().origin.previous, previous);
        (previous, next) = (Some(id), run.successor());
        runs.push(events);
    }
    Ok(runs)
}

/// Workers whose claims there were.
fn owners(events: &[Event]) -> Vec<&'static str> {
    let owner = |event: &'_ Event| match &event.body {
        EventBody::WorkerAttached { worker, .. } => Some(worker.identity.clone()),
        _ => None,
    };
    let names = events.iter().filter_map(owner);
    names.map(|name| if name == "survivor" { "survivor" } else { "lost" }).collect()
}

/// Takes a signal, and goes on in a new run; until one says so.
async fn collect(ctx: Ctx, mut taken: Vec<u32>) -> Result<Vec<u32>, WorkflowError> {
    let n: u32 = ctx.signal("n").await?;
    if n == 0 {
        return Ok(taken);
    }
    taken.push(n);
    Err(ctx.continue_as_new(&taken))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_goes_on_with_the_run_that_follows() -> anyhow::Result<()> {
    let Some(Two { store, dying, dies, other }) = two().await? else { return Ok(()) };
    let run = dying.client()?.workflow::<Vec<u32>>("collect").start(&Vec::<u32>::new()).await?;
    let first = run.run_id().context("a started run has an id")?;
    for n in [1u32, 2] {
        run.signal("n", &n).request_id(format!("s{n}")).await?;
    }
    // It takes the first signal, and the second one is carried.
    let lost = RunningWorker::start(dying.worker().identity("lost").register("collect", collect))?;
    assert_eq!(death(dying, lost, dies).await?, first);
    let _survivor = RunningWorker::start(other.worker().identity("survivor").register("collect", collect))?;
    let run: RunHandle<Vec<u32>> = other.client()?.handle(first);
    for n in [1u32, 2, 0] {
        run.signal("n", &n).request_id(format!("s{n}")).await?;
    }
    assert_eq!(run.result().await?, [1, 2], "nothing is lost, and nothing taken twice");
    let runs = chain(&store, first).await?;
    assert_eq!(runs.len(), 3);
    assert_eq!(owners(&runs[0]), ["lost"]);
    let last = |events: &[Event]| owners(events).last().copied();
    assert_eq!((last(&runs[1]), last(&runs[2])), (Some("survivor"), Some("survivor")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_goes_on_with_the_next_attempt_of_a_run() -> anyhow::Result<()> {
    async fn flaky(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
        let attempt = ctx.run_info().attempt;
        ctx.step("try", move || async move { Ok::<_, StepError>(attempt) }).await?;
        if attempt < 3 { Err(WorkflowError::new("Flaky", format!("attempt {attempt}"))) } else { Ok(attempt) }
    }
    let Some(Two { store, dying, dies, other }) = two().await? else { return Ok(()) };
    let soon = RetryPolicy { initial_interval: Duration::from_millis(50).into(), ..RetryPolicy::default() };
    let run = dying.client()?.workflow::<u32>("flaky").retry(soon).start(&()).await?;
    let first = run.run_id().context("a started run has an id")?;
    let lost = RunningWorker::start(dying.worker().identity("lost").register("flaky", flaky))?;
    assert_eq!(death(dying, lost, dies).await?, first);
    let _survivor = RunningWorker::start(other.worker().identity("survivor").register("flaky", flaky))?;
    assert_eq!(other.client()?.handle::<u32>(first).result().await?, 3);
    let runs = chain(&store, first).await?;
    let ends: Vec<&str> = runs.iter().filter_map(|events| Some(events.last()?.body.kind())).collect();
    assert_eq!(ends, ["RunFailed", "RunFailed", "RunCompleted"]);
    assert_eq!(owners(&runs[1]).last(), Some(&"survivor"));
    Ok(())
}
