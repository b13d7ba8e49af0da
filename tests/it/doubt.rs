//! Guarded steps whose worker is lost in the middle: what shows, what each policy does, and what a person may say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use everstep::client::StepResolution;
use everstep::{
    ClientError, Ctx, Failure, InDoubt, RunError, RunHandle, StepError, WorkflowError, step_info,
};
use everstep_core::{DoubtPolicy, EventBody, Run};
use everstep_dispatch::{Dispatch, InProcess};
use everstep_dispatch_nats::{NatsDispatch, NatsOptions};
use everstep_store::Store;
use everstep_store_postgres::{PostgresStore, migrate};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use everstep_tests::servers::{NatsServer, PostgresServer, require};
use tokio::sync::mpsc;

use crate::stores::{self, postgres_options};

/// What the world outside has seen.
#[derive(Clone)]
struct World {
    store: Arc<dyn Store>,
    effects: Arc<AtomicU32>,
    probes: Arc<AtomicU32>,
    /// Says that an attempt is in the middle of its effect.
    begun: mpsc::UnboundedSender<()>,
}

impl World {
    fn new(store: &Arc<dyn Store>) -> (Self, mpsc::UnboundedReceiver<()>) {
        let (begun, heard) = mpsc::unbounded_channel();
        let count = || Arc::new(AtomicU32::new(0));
        (Self { store: Arc::clone(store), effects: count(), probes: count(), begun }, heard)
    }

    /// The first attempt never comes back from its effect. None begins before its start is in the log.
    async fn charge(self) -> Result<u32, StepError> {
        let info = step_info().ok_or_else(|| StepError::new("Outside", "not in a step"))?;
        let log = self.store.read_events(info.run_id, 0, 1_000).await?;
        let durable = log.iter().any(|e| {
            matches!(e.body, EventBody::StepStarted { attempt, in_doubt: Some(_), .. } if attempt == info.attempt)
                && e.epoch == info.epoch
        });
        if !durable {
            return Err(StepError::new("TooEarly", "the start is not in the log").non_retryable());
        }
        let before = self.effects.fetch_add(1, Ordering::SeqCst);
        let _ = self.begun.send(());
        if before == 0 {
            std::future::pending::<()>().await;
        }
        Ok(100 + before)
    }
}

type Policy = fn(&World) -> InDoubt<u32>;

fn verify(world: &World, found: Option<u32>) -> InDoubt<u32> {
    let probes = Arc::clone(&world.probes);
    InDoubt::verify(move || {
        let probes = Arc::clone(&probes);
        async move {
            // The first look finds nothing out.
            match (probes.fetch_add(1, Ordering::SeqCst), step_info()) {
                (0, _) | (_, None) => Err(StepError::new("Down", "the bank does not answer")),
                (_, Some(info)) if info.attempt == 1 => Ok(found),
                (_, Some(info)) => Err(StepError::new("Wrong", format!("attempt {}", info.attempt))),
            }
        }
    })
}

fn workflow(
    world: &World,
    policy: Policy,
) -> impl Fn(Ctx, ()) -> std::pin::Pin<Box<dyn Future<Output = Result<u32, WorkflowError>> + Send>>
+ Send
+ Sync
+ 'static
+ use<> {
    let world = world.clone();
    move |ctx, ()| {
        let world = world.clone();
        Box::pin(async move {
            let policy = policy(&world);
            let charge = move || world.clone().charge();
            let charged = ctx.step("charge", charge).in_doubt(policy).await?;
            let done = ctx.step("ship", move || async move { Ok::<_, StepError>(charged) }).await?;
            Ok(done)
        })
    }
}

async fn until(run: &RunHandle<u32>, kind: &str) -> anyhow::Result<()> {
    let mut history = run.history(0, true).await?;
    while let Some(event) = history.next().await? {
        if event.body.kind() == kind {
            return Ok(());
        }
    }
    anyhow::bail!("no {kind}")
}

async fn kinds(run: &RunHandle<u32>) -> anyhow::Result<Vec<String>> {
    let mut history = run.history(0, false).await?;
    let mut kinds = Vec::new();
    while let Some(event) = history.next().await? {
        kinds.push(event.body.kind().to_owned());
    }
    Ok(kinds)
}

fn reason<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result {
        Err(error) => error.reason().unwrap_or_default().to_owned(),
        Ok(value) => format!("{value:?}"),
    }
}

async fn node_on(store: &Arc<dyn Store>, dispatch: Arc<dyn Dispatch>) -> anyhow::Result<RunningNode> {
    RunningNode::start(Arc::clone(store), dispatch, NodeSettings::default()).await
}

/// A run whose worker was lost in the middle of its charge.
async fn lost_in_the_middle(
    node: &RunningNode,
    world: &World,
    begun: &mut mpsc::UnboundedReceiver<()>,
    policy: Policy,
) -> anyhow::Result<RunHandle<u32>> {
    let worker = RunningWorker::start(node.worker().register("order", workflow(world, policy)))?;
    let run = node.client()?.workflow::<u32>("order").start(&()).await?;
    begun.recv().await;
    drop(worker);
    until(&run, "StepInDoubt").await?;
    Ok(run)
}

/// The tables hold what the events say.
async fn tables_agree(world: &World, run: &RunHandle<u32>) -> anyhow::Result<usize> {
    let id = run.run_id().ok_or_else(|| anyhow::anyhow!("no run id"))?;
    let events = world.store.read_events(id, 0, 1_000).await?;
    let folded = Run::fold(id, &events)?.ok_or_else(|| anyhow::anyhow!("no events"))?.projection();
    let tables = world.store.run_tables(id).await?.ok_or_else(|| anyhow::anyhow!("no tables"))?;
    assert_eq!(tables.projection.doubts, folded.doubts);
    Ok(folded.doubts.len())
}

#[tokio::test]
async fn a_lost_worker_leaves_a_doubt_and_the_policy_acts() -> anyhow::Result<()> {
    let cases: [(&str, Policy, Result<u32, &str>, u32); 4] = [
        ("retry", |_| InDoubt::Retry, Ok(101), 2),
        ("found", |world| verify(world, Some(7)), Ok(7), 1),
        ("not found", |world| verify(world, None), Ok(101), 2),
        ("fail", |_| InDoubt::Fail, Err("InDoubt"), 1),
    ];
    for store in stores::all().await? {
        let node = node_on(&store.store, Arc::new(InProcess::new())).await?;
        for (name, policy, expected, effects) in cases {
            eprintln!("on {}: {name}", store.name);
            let (world, mut begun) = World::new(&store.store);
            let run = lost_in_the_middle(&node, &world, &mut begun, policy).await?;
            let shown = run.describe().await?.in_doubt;
            assert_eq!(shown.iter().map(|s| (s.step_id, s.attempt)).collect::<Vec<_>>(), [(1, 1)]);
            assert_eq!(tables_agree(&world, &run).await?, 1);
            let _next = RunningWorker::start(node.worker().register("order", workflow(&world, policy)))?;
            match (run.result().await, expected) {
                (Ok(value), Ok(expected)) => assert_eq!(value, expected),
                (Err(RunError::Ended { failure, .. }), Err(kind)) => assert_eq!(failure.kind, kind),
                (other, _) => anyhow::bail!("{other:?}"),
            }
            assert_eq!(world.effects.load(Ordering::SeqCst), effects, "times the effect happened");
            assert_eq!(tables_agree(&world, &run).await?, 0);
            assert!(run.describe().await?.in_doubt.is_empty());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_person_says_what_became_of_it() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let node = node_on(&store.store, Arc::new(InProcess::new())).await?;
        let client = node.client()?;
        let said: [(StepResolution, Result<u32, &str>); 3] = [
            (StepResolution::completed(1, &42u32)?.note("the bank has it"), Ok(42)),
            (StepResolution::failed(1, Failure::new("Lost", "no trace of it")), Err("Lost")),
            (StepResolution::retry(1).attempt(1), Ok(101)),
        ];
        for (said, expected) in said {
            let (world, mut begun) = World::new(&store.store);
            let ask: Policy = |_| InDoubt::AskHuman;
            let run = lost_in_the_middle(&node, &world, &mut begun, ask).await?;
            let park_at_once = node.worker().park_after(Duration::from_millis(1));
            let _next = RunningWorker::start(park_at_once.register("order", workflow(&world, ask)))?;
            // The worker has nothing to do but to wait for a person, and does not wait with the run in hand.
            let mut history = run.history(0, true).await?;
            while let Some(event) = history.next().await? {
                if matches!(
                    &event.body,
                    EventBody::WorkerDetached { reason: everstep_core::DetachReason::Parked }
                ) {
                    break;
                }
            }
            let listed = client.steps_in_doubt(None, 10, "").await?.steps;
            assert_eq!(listed.len(), 1, "{listed:?}");
            assert_eq!(Some(listed[0].run_id), run.run_id());
            assert_eq!((listed[0].name.as_str(), listed[0].policy), ("charge", DoubtPolicy::AskHuman));

            let wrong = run.resolve_step(StepResolution::retry(1).attempt(2)).await;
            assert_eq!(reason(wrong), "STEP_NOT_IN_DOUBT");
            assert_eq!(reason(run.resolve_step(StepResolution::retry(2)).await), "STEP_NOT_IN_DOUBT");
            run.resolve_step(said.clone()).await?;
            run.resolve_step(said.clone()).await?;
            let other = said.clone().note("something else");
            assert_eq!(reason(run.resolve_step(other).await), "IDEMPOTENCY_MISMATCH");
            match (run.result().await, expected) {
                (Ok(value), Ok(expected)) => assert_eq!(value, expected),
                (Err(RunError::Ended { failure, .. }), Err(kind)) => assert_eq!(failure.kind, kind),
                (other, _) => anyhow::bail!("{other:?}"),
            }
            run.resolve_step(said).await?;
            let closed = run.resolve_step(StepResolution::retry(1)).await;
            assert_eq!(reason(closed), "RUN_CLOSED");
            assert_eq!(kinds(&run).await?.iter().filter(|k| *k == "StepResolved").count(), 1);
            assert!(client.steps_in_doubt(None, 10, "").await?.steps.is_empty());
        }
    }
    Ok(())
}

/// The probe has not come back when a person answers: the person's word is the one that counts.
#[tokio::test]
async fn a_person_may_be_faster_than_the_probe() -> anyhow::Result<()> {
    fn slow(world: &World) -> InDoubt<u32> {
        let world = world.clone();
        InDoubt::verify(move || {
            let world = world.clone();
            async move {
                let _ = world.begun.send(());
                world.probes.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<()>().await;
                Ok(None)
            }
        })
    }
    for store in stores::all().await? {
        for (said, expected) in [(StepResolution::completed(1, &42u32)?, 42), (StepResolution::retry(1), 101)]
        {
            let node = node_on(&store.store, Arc::new(InProcess::new())).await?;
            let (world, mut begun) = World::new(&store.store);
            let run = lost_in_the_middle(&node, &world, &mut begun, slow).await?;
            let worker = RunningWorker::start(node.worker().register("order", workflow(&world, slow)))?;
            begun.recv().await;
            run.resolve_step(said).await?;
            assert_eq!(run.result().await?, expected, "on {}", store.name);
            assert_eq!(world.probes.load(Ordering::SeqCst), 1);
            worker.stop().await?;
            node.shutdown().await?;
        }
    }
    Ok(())
}

/// A worker that is told to stop finishes the attempt: nothing is put in doubt without need.
#[tokio::test]
async fn a_drain_waits_for_a_guarded_attempt() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store.store, Arc::new(InProcess::new())).await?;
        let (begun, mut heard) = mpsc::unbounded_channel();
        let (go, wait) = tokio::sync::watch::channel(false);
        let workflow = move |ctx: Ctx, (): ()| {
            let (begun, wait) = (begun.clone(), wait.clone());
            async move {
                let step = ctx.step("charge", move || {
                    let (begun, mut wait) = (begun.clone(), wait.clone());
                    async move {
                        let _ = begun.send(());
                        wait.wait_for(|go| *go).await?;
                        Ok::<u32, StepError>(1)
                    }
                });
                Ok::<u32, WorkflowError>(step.in_doubt(InDoubt::AskHuman).await?)
            }
        };
        let worker = RunningWorker::start(node.worker().register("order", workflow))?;
        let run = node.client()?.workflow::<u32>("order").start(&()).await?;
        heard.recv().await;
        let stopping = tokio::spawn(worker.stop());
        go.send(true)?;
        assert_eq!(run.result().await?, 1);
        stopping.await??;
        assert!(!kinds(&run).await?.contains(&"StepInDoubt".to_owned()), "on {}", store.name);
    }
    Ok(())
}

/// The worker's node dies with it; the answer comes in at another one.
#[tokio::test(flavor = "multi_thread")]
async fn another_node_takes_the_run_and_the_answer() -> anyhow::Result<()> {
    if !require("pg")? || !require("nats")? {
        return Ok(());
    }
    let database = PostgresServer::shared()?.create_database().await?;
    migrate(&database).await?;
    let nats = NatsServer::start()?;
    let store = async || -> anyhow::Result<Arc<dyn Store>> {
        let store: Arc<dyn Store> = Arc::new(PostgresStore::connect(&database, postgres_options()).await?);
        Ok(store)
    };
    let dispatch = async || -> anyhow::Result<Arc<dyn Dispatch>> {
        let dispatch: Arc<dyn Dispatch> =
            Arc::new(NatsDispatch::connect(&nats.url(), NatsOptions::default()).await?);
        Ok(dispatch)
    };
    let (here, there) = (store().await?, store().await?);
    let ask: Policy = |_| InDoubt::AskHuman;
    let (world, mut begun) = World::new(&here);
    let dying = node_on(&there, dispatch().await?).await?;
    let node = node_on(&here, dispatch().await?).await?;
    let worker = RunningWorker::start(dying.worker().register("order", workflow(&world, ask)))?;
    let run = node.client()?.workflow::<u32>("order").start(&()).await?;
    begun.recv().await;
    drop((worker, dying));
    until(&run, "StepInDoubt").await?;
    // One node has the worker, another one the person.
    let other = node_on(&there, dispatch().await?).await?;
    let late = other.worker().park_after(Duration::from_secs(60));
    let _next = RunningWorker::start(late.register("order", workflow(&world, ask)))?;
    let mut history = run.history(0, true).await?;
    while let Some(event) = history.next().await? {
        if event.epoch == 2 {
            break;
        }
    }
    run.resolve_step(StepResolution::retry(1)).await?;
    assert_eq!(run.result().await?, 101);
    assert_eq!(world.effects.load(Ordering::SeqCst), 2);
    assert_eq!(tables_agree(&world, &run).await?, 0);
    Ok(())
}
