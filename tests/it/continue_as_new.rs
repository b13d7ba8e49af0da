//! Workflows that go on in new runs: what they keep, what they are sent on the way, and who dies in between.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use everstep::{ContinueAsNew, Ctx, Either, RunError, RunHandle, RunId, StepError, WorkflowError, select2};
use everstep_core::{Event, EventBody, ReusePolicy, Run, RunStatus};
use everstep_dispatch::{Dispatch, InProcess};
use everstep_engine::Observer;
use everstep_store::Store;
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use tokio::sync::mpsc;

use crate::nodes::node_on;
use crate::stores;

async fn events_of(store: &Arc<dyn Store>, run: RunId) -> anyhow::Result<Vec<Event>> {
    Ok(store.read_events(run, 0, 10_000).await?)
}

/// A run and those that follow it.
async fn chain(store: &Arc<dyn Store>, first: RunId) -> anyhow::Result<Vec<(RunId, Vec<Event>)>> {
    let (mut runs, mut next) = (Vec::new(), Some(first));
    while let Some(run) = next {
        let events = events_of(store, run).await?;
        next = events.last().and_then(|e| e.body.successor());
        runs.push((run, events));
    }
    Ok(runs)
}

/// Every run of the chain is as the tables say, and each one holds the next.
async fn check(store: &Arc<dyn Store>, runs: &[(RunId, Vec<Event>)]) -> anyhow::Result<()> {
    for (n, (run, events)) in runs.iter().enumerate() {
        let folded = Run::fold(*run, events)?.context("it has not begun")?;
        let tables = store.run_tables(*run).await?.context("it has no row")?;
        assert_eq!(tables.projection, folded.projection());
        let origin = &folded.start().origin;
        assert_eq!(origin.previous, n.checked_sub(1).map(|before| runs[before].0));
        assert_eq!(folded.first(), runs[0].0);
    }
    Ok(())
}

fn kinds(events: &[Event]) -> Vec<&str> {
    events.iter().map(|e| e.body.kind()).collect()
}

/// One reminder a day, a new run each week.
async fn remind(ctx: Ctx, (sent, days): (u32, u32)) -> Result<u32, WorkflowError> {
    let mut sent = sent;
    for _ in 0..7 {
        if sent == days {
            return Ok(sent);
        }
        ctx.sleep(Duration::from_millis(5)).await;
        sent = ctx.step("remind", move || async move { Ok::<_, StepError>(sent + 1) }).await?;
    }
    Err(ctx.continue_as_new(&(sent, days)))
}

#[tokio::test]
async fn a_month_of_reminders_is_a_chain_of_short_runs() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().register("remind", remind))?;
        let client = node.client()?;
        let run = client.workflow::<u32>("remind").workflow_id("remind/ada").start(&(0, 30)).await?;
        assert_eq!(run.result().await?, 30);
        let first = run.run_id().expect("a started run has an id");
        let runs = chain(&store.store, first).await?;
        assert_eq!(runs.len(), 5, "four weeks and two days");
        check(&store.store, &runs).await?;
        assert!(runs.iter().all(|(_, events)| events.len() < 40));

        let Err(RunError::Continued { successor }) = run.result_of_this_run().await else {
            anyhow::bail!("the first run has gone on")
        };
        assert_eq!(successor, runs[1].0);
        assert_eq!(client.latest::<u32>("remind/ada").result().await?, 30);
        let shown = client.handle::<u32>(successor).describe().await?;
        assert_eq!(shown.status, RunStatus::Continued);
        assert_eq!(shown.run.previous_run_id, first.to_string());
        assert_eq!(shown.run.first_run_id, first.to_string());
        assert_eq!(shown.run.successor_run_id, runs[2].0.to_string());
        let filter =
            everstep::client::RunListFilter { statuses: vec![RunStatus::Continued], ..Default::default() };
        assert_eq!(client.list(&filter, "").await?.runs.len(), 4);
    }
    Ok(())
}

#[tokio::test]
async fn another_workflow_on_another_queue_can_go_on() -> anyhow::Result<()> {
    async fn begin(ctx: Ctx, n: u32) -> Result<u32, WorkflowError> {
        let n = ctx.step("begin", move || async move { Ok::<_, StepError>(n + 1) }).await?;
        let next = ContinueAsNew::new(&n).workflow_type("end").task_queue("slow");
        Err(next.run_timeout(Duration::from_secs(3_600)).into())
    }
    async fn end(ctx: Ctx, n: u32) -> Result<String, WorkflowError> {
        Ok(format!("{n} on {}", ctx.run_info().task_queue))
    }
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let _one = RunningWorker::start(node.worker().register("begin", begin))?;
        let _other = RunningWorker::start(node.worker().task_queue("slow").register("end", end))?;
        let client = node.client()?;
        let executed = client.workflow::<String>("begin").execute(&1).await?;
        assert_eq!(executed, "2 on slow");
        // What the server would refuse fails the run, and says why.
        let _bad = RunningWorker::start(node.worker().task_queue("bad").register("bad", bad))?;
        let refused = client.workflow::<()>("bad").task_queue("bad").execute(&()).await;
        let Err(RunError::Ended { status: RunStatus::Failed, failure }) = refused else {
            anyhow::bail!("it cannot go on: {refused:?}")
        };
        assert_eq!(failure.kind, "InvalidContinuation");
    }
    Ok(())
}

async fn bad(_ctx: Ctx, (): ()) -> Result<(), WorkflowError> {
    Err(ContinueAsNew::new(&()).workflow_type("no\0such").into())
}

/// Takes a signal, goes on in a new run, and so on; until one says so.
async fn collect(ctx: Ctx, mut taken: Vec<u32>) -> Result<Vec<u32>, WorkflowError> {
    let n: u32 = ctx.signal("n").await?;
    if n == 0 {
        return Ok(taken);
    }
    taken.push(n);
    Err(ctx.continue_as_new(&taken))
}

#[tokio::test]
async fn signals_that_come_during_the_switch_are_each_taken_once_and_in_order() -> anyhow::Result<()> {
    const SIGNALS: u32 = 40;
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let quick = node.worker().park_after(Duration::from_millis(1));
        let _worker = RunningWorker::start(quick.register("collect", collect))?;
        let client = node.client()?;
        let run = client.workflow::<Vec<u32>>("collect").workflow_id("c").start(&Vec::<u32>::new()).await?;
        let by_name = client.latest::<Vec<u32>>("c");
        for n in 1..=SIGNALS {
            // By the workflow id, and by the id of a run that has long gone on.
            let to = if n % 2 == 0 { &by_name } else { &run };
            to.signal("n", &n).request_id(format!("s{n}")).await?;
            // Its sender did not hear of it and says it again.
            by_name.signal("n", &n).request_id(format!("s{n}")).await?;
        }
        run.signal("n", &0).await?;
        assert_eq!(run.result().await?, (1..=SIGNALS).collect::<Vec<_>>());
        let runs = chain(&store.store, run.run_id().expect("it has an id")).await?;
        check(&store.store, &runs).await?;
        assert_eq!(runs.len() as u32, SIGNALS + 1);
    }
    Ok(())
}

#[tokio::test]
async fn many_signals_before_the_first_worker_go_from_run_to_run() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let client = node.client()?;
        let run = client.workflow::<Vec<u32>>("collect").start(&Vec::<u32>::new()).await?;
        for n in [3, 1, 2, 0] {
            run.signal("n", &n).await?;
        }
        let _worker = RunningWorker::start(node.worker().register("collect", collect))?;
        assert_eq!(run.result().await?, [3, 1, 2]);
        let runs = chain(&store.store, run.run_id().expect("it has an id")).await?;
        let received = |events: &[Event]| kinds(events).iter().filter(|k| **k == "SignalReceived").count();
        assert_eq!(runs.iter().map(|(_, e)| received(e)).collect::<Vec<_>>(), [4, 3, 2, 1]);
        check(&store.store, &runs).await?;
    }
    Ok(())
}

/// Goes on again and again until it is asked to stop.
async fn spin(ctx: Ctx, n: u32) -> Result<(), WorkflowError> {
    match select2(ctx.canceled(), ctx.sleep(Duration::from_millis(2))).await {
        Either::Left(()) => Err(WorkflowError::Canceled(format!("after {n}"))),
        Either::Right(()) => Err(ctx.continue_as_new(&(n + 1))),
    }
}

#[tokio::test]
async fn a_request_to_stop_reaches_the_run_that_goes_on() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().register("spin", spin))?;
        let client = node.client()?;
        for n in 0..6 {
            let id = format!("spin/{n}");
            let run = client.workflow::<()>("spin").workflow_id(&id).start(&0).await?;
            // Wherever it is on its way from one run to the next.
            gone_on(&store.store, run.run_id().expect("it has an id")).await?;
            let status = if n % 2 == 0 {
                client.latest::<()>(&id).cancel("enough").await?;
                RunStatus::Canceled
            } else {
                client.latest::<()>(&id).terminate("enough").await?;
                RunStatus::Terminated
            };
            let Err(RunError::Ended { status: ended, .. }) = run.result().await else {
                anyhow::bail!("it was stopped")
            };
            assert_eq!(ended, status);
        }
    }
    Ok(())
}

/// Waits until the run has a successor.
async fn gone_on(store: &Arc<dyn Store>, run: RunId) -> anyhow::Result<RunId> {
    let mut looks = tokio::time::interval(Duration::from_millis(5));
    loop {
        looks.tick().await;
        if let Some(next) = events_of(store, run).await?.last().and_then(|e| e.body.successor()) {
            return Ok(next);
        }
    }
}

#[tokio::test]
async fn the_workflow_id_is_the_chains_until_its_last_run_has_ended() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().register("collect", collect))?;
        let client = node.client()?;
        let start = |request: &str| {
            client.workflow::<Vec<u32>>("collect").workflow_id("held").request_id(request.to_owned())
        };
        let none: Vec<u32> = Vec::new();
        let run = start("one").start(&none).await?;
        run.signal("n", &7).await?;
        gone_on(&store.store, run.run_id().expect("it has an id")).await?;
        let taken = start("two").start(&none).await.expect_err("an open run has the workflow id");
        assert_eq!(taken.reason(), Some("RUN_ALREADY_EXISTS"));
        let again = start("one").start(&none).await?;
        assert_eq!(again.run_id(), run.run_id(), "the same request is the run that it started");
        client.latest::<()>("held").signal("n", &0).await?;
        assert_eq!(run.result().await?, [7]);
        let completed = start("three").reuse(ReusePolicy::AllowIfNotCompleted).start(&none).await;
        assert_eq!(completed.expect_err("the chain completed").reason(), Some("RUN_ALREADY_EXISTS"));
        let fresh = start("four").start(&none).await?;
        assert_ne!(fresh.run_id(), run.run_id());
    }
    Ok(())
}

/// Ends its node the moment it hears of a run that has gone on.
#[derive(Debug)]
struct Killer(Mutex<Option<mpsc::UnboundedSender<RunId>>>);

impl Observer for Killer {
    fn run_closed(&self, run: &Run) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            let _ = sender.send(run.id());
            panic!("the node dies after the commit, before anybody is told");
        }
    }
}

/// The node dies between the commit and what it would have told its worker: another one on the same store goes on.
#[tokio::test]
async fn a_node_that_dies_after_the_switch_leaves_a_chain_that_goes_on() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let (killed, mut heard) = mpsc::unbounded_channel();
        let observer: Arc<dyn Observer> = Arc::new(Killer(Mutex::new(Some(killed))));
        let dispatch: Arc<dyn Dispatch> = Arc::new(InProcess::new());
        let settings = NodeSettings { observer: Some(observer), ..NodeSettings::default() };
        let dying = RunningNode::start(Arc::clone(&store.store), dispatch, settings).await?;
        let lost = RunningWorker::start(dying.worker().register("collect", collect))?;
        let run = dying.client()?.workflow::<Vec<u32>>("collect").start(&Vec::<u32>::new()).await?;
        // The node may die before it answers.
        let first = run.signal("n", &1).request_id("s1");
        let sending = tokio::spawn(async move { first.send().await });
        let old = heard.recv().await.expect("the node says so before it dies");
        dying.engine.shutdown(Duration::ZERO).await;
        sending.abort();
        drop((dying, lost));
        let new = events_of(&store.store, old).await?.last().and_then(|e| e.body.successor());
        assert!(new.is_some(), "both or neither");

        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().register("collect", collect))?;
        let run: RunHandle<Vec<u32>> = node.client()?.handle(run.run_id().expect("it has an id"));
        // Whoever did not hear of the first node's answer says it again, here and where it belongs.
        run.signal("n", &1).request_id("s1").await?;
        node.client()?.handle::<()>(new.unwrap_or(old)).signal("n", &1).request_id("s1").await?;
        run.signal("n", &2).request_id("s2").await?;
        run.signal("n", &0).await?;
        assert_eq!(run.result().await?, [1, 2]);
        let runs = chain(&store.store, old).await?;
        check(&store.store, &runs).await?;
        let ends = |(_, events): &(RunId, Vec<Event>)| events.iter().filter(|e| e.body.is_terminal()).count();
        assert!(runs.iter().all(|run| ends(run) == 1));
    }
    Ok(())
}

/// The node and its worker die while the last step before the switch runs: nothing is committed, and what follows
/// is done again under another owner.
#[tokio::test]
async fn a_node_that_dies_before_the_switch_leaves_the_old_run_open() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let (begun, mut heard) = mpsc::unbounded_channel::<RunId>();
        let workflow = move |ctx: Ctx, n: u32| {
            let begun = begun.clone();
            async move {
                if n == 1 {
                    return Ok(n);
                }
                let (run, first) = (ctx.run_info().run_id, begun.clone());
                let step = ctx.step("last", move || {
                    let first = first.clone();
                    async move {
                        let attempt = everstep::step_info().map_or(0, |info| info.epoch);
                        let _ = first.send(run);
                        if attempt == 1 {
                            std::future::pending::<()>().await;
                        }
                        Ok::<_, StepError>(1u32)
                    }
                });
                let n = step.await?;
                Err::<u32, _>(ctx.continue_as_new(&n))
            }
        };
        let dying = node_on(&store).await?;
        let lost = RunningWorker::start(dying.worker().register("once", workflow.clone()))?;
        let run = dying.client()?.workflow::<u32>("once").start(&0).await?;
        heard.recv().await;
        dying.engine.shutdown(Duration::ZERO).await;
        drop((dying, lost));
        let old = run.run_id().expect("it has an id");
        assert!(!events_of(&store.store, old).await?.iter().any(|e| e.body.is_terminal()));
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().register("once", workflow))?;
        assert_eq!(node.client()?.handle::<u32>(old).result().await?, 1);
        let runs = chain(&store.store, old).await?;
        assert_eq!(runs.len(), 2);
        assert!(matches!(runs[0].1.last().map(|e| &e.body), Some(EventBody::RunContinued { .. })));
        check(&store.store, &runs).await?;
    }
    Ok(())
}
