//! Queries: what they show, who answers them, and that nothing is written for them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use everstep::{ClientError, Ctx, QueryError, RunHandle, StepError, WorkflowError};
use everstep_core::{DetachReason, EventBody};
use everstep_dispatch::InProcess;
use everstep_store_postgres::migrate;
use everstep_tests::cluster::{RunningNode, RunningWorker};
use everstep_tests::servers::{PostgresServer, require};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::nodes::{Pair, node_at, node_on, pair, until};
use crate::stores;

const LONG: Duration = Duration::from_secs(60);

/// Adds up what it is sent until it is sent 0, and shows the sum so far.
async fn adds(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let sum = ctx.state(0);
    ctx.on_query("sum", {
        let sum = sum.clone();
        move |times: u32| Ok(sum.get() * times)
    });
    ctx.on_query("refuses", |(): ()| Err::<(), _>(QueryError::new("Busy", "not now")));
    ctx.on_query("panics", |(): ()| -> Result<(), QueryError> { panic!("as planned") });
    ctx.on_query("draws", {
        let ctx = ctx.clone();
        move |(): ()| Ok(ctx.random())
    });
    ctx.on_query("sets", {
        let sum = sum.clone();
        move |(): ()| {
            sum.set(1_000);
            Ok(())
        }
    });
    ctx.on_query("takes", {
        let ctx = ctx.clone();
        move |(): ()| Ok(futures::FutureExt::now_or_never(ctx.signal::<u32>("add")).is_some())
    });
    ctx.step("begin", || async { Ok::<_, StepError>(()) }).await?;
    loop {
        match ctx.signal::<u32>("add").await? {
            0 => return Ok(sum.get()),
            n => sum.update(|sum| *sum += n),
        }
    }
}

async fn kinds(run: &RunHandle<u32>) -> anyhow::Result<Vec<String>> {
    let mut history = run.history(0, false).await?;
    let mut kinds = Vec::new();
    while let Some(event) = history.next().await? {
        kinds.push(event.body.kind().to_owned());
    }
    Ok(kinds)
}

/// The failure of a query that the run's code refuses.
async fn refused(run: &RunHandle<u32>, name: &str) -> (String, String) {
    match run.query::<u64>(name, &()).await {
        Err(ClientError::Refused { reason, message, metadata, .. }) if reason == "QUERY_FAILED" => {
            (metadata.get("kind").cloned().unwrap_or_default(), message)
        }
        other => panic!("{name}: {other:?}"),
    }
}

fn reason<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result {
        Err(error) => error.reason().unwrap_or("none").to_owned(),
        Ok(value) => format!("{value:?}"),
    }
}

/// From then on it stays as it is until somebody tells it something.
fn is_parked(body: &EventBody) -> bool {
    matches!(body, EventBody::WorkerDetached { reason: DetachReason::Parked })
}

/// From then on the workflow takes signals as they come.
fn has_begun(body: &EventBody) -> bool {
    matches!(body, EventBody::StepCompleted { .. })
}

/// Holding the run or not, parked or closed: the same answers, and not an event for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_answers_whether_it_is_held_parked_or_closed() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let client = node.client()?;
        let held = RunningWorker::start(node.worker().park_after(LONG).register("adds", adds))?;
        let run = client.workflow::<u32>("adds").start(&()).await?;
        until(&run, has_begun).await?;
        for n in 1..=20 {
            run.signal("add", &n).await?;
            // The signal was acknowledged: whoever asks now has to hear of it.
            assert_eq!(run.query::<u32>("sum", &2).await?, n * (n + 1));
        }
        let before = kinds(&run).await?;
        assert_eq!(run.query::<u32>("sum", &1).await?, 210);
        assert_eq!(kinds(&run).await?, before, "held");
        held.stop().await?;

        let park_at_once = Duration::from_millis(1);
        let worker = RunningWorker::start(node.worker().park_after(park_at_once).register("adds", adds))?;
        let parked = client.workflow::<u32>("adds").start(&()).await?;
        until(&parked, is_parked).await?;
        let before = kinds(&parked).await?;
        assert_eq!(parked.query::<u32>("sum", &3).await?, 0);
        assert_eq!(kinds(&parked).await?, before, "parked");

        parked.signal("add", &7).await?;
        assert_eq!(parked.query::<u32>("sum", &3).await?, 21, "woken or not");
        parked.signal("add", &0).await?;
        assert_eq!(parked.result().await?, 7);
        let before = kinds(&parked).await?;
        assert_eq!(parked.query::<u32>("sum", &1).await?, 7);
        assert_eq!(kinds(&parked).await?, before, "closed");
        worker.stop().await?;
        node.shutdown().await?;
    }
    Ok(())
}

/// Whatever a handler does, the query fails and the run goes on as if nobody had asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_can_only_look() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().park_after(LONG).register("adds", adds))?;
        let run = node.client()?.workflow::<u32>("adds").start(&()).await?;
        until(&run, has_begun).await?;
        run.signal("add", &5).await?;
        let before = |kinds: Vec<String>| kinds.iter().filter(|k| *k != "StepStarted").count();
        assert_eq!(run.query::<u32>("sum", &1).await?, 5);
        let events = before(kinds(&run).await?);
        assert_eq!(refused(&run, "refuses").await, ("Busy".to_owned(), "Busy: not now".to_owned()));
        let (kind, message) = refused(&run, "panics").await;
        assert!(kind == "Panic" && message.contains("as planned"), "{kind} {message}");
        for misuse in ["draws", "sets", "takes"] {
            let (kind, message) = refused(&run, misuse).await;
            assert!(kind == "CtxMisuse" && message.contains("queries.rs"), "{misuse}: {kind} {message}");
        }
        let (kind, message) = refused(&run, "total").await;
        assert!(kind == "UnknownQuery" && message.contains("panics, refuses, sets, sum"), "{message}");
        let bad = run.query::<u32>("sum", &"text").await;
        assert!(
            matches!(&bad, Err(ClientError::Refused { message, .. }) if message.contains("Payload")),
            "{bad:?}"
        );
        assert_eq!(reason(run.query::<u32>("no\0name", &1).await), "INVALID_ID");
        let waits: serde_json::Value = run.query("everstep.waits", &()).await?;
        assert_eq!((&waits[0]["kind"], &waits[0]["name"]), (&"signal".into(), &"add".into()), "{waits}");
        assert!(waits[0]["source"].as_str().is_some_and(|s| s.contains("queries.rs")), "{waits}");
        assert_eq!(before(kinds(&run).await?), events);
        run.signal("add", &1).await?;
        run.signal("add", &0).await?;
        assert_eq!(run.result().await?, 6);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_waits_for_a_worker_and_says_when_none_came() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let client = node.client()?;
        let run = client.workflow::<u32>("adds").task_queue("mine").start(&()).await?;
        let other = node.worker().task_queue("mine").register("other", |_: Ctx, (): ()| async { Ok(0) });
        let _other = RunningWorker::start(other)?;
        let began = Instant::now();
        let none = run.query_with_deadline::<u32>("sum", &1, Duration::from_millis(500)).await;
        let Err(ClientError::Refused { reason: word, message, .. }) = &none else {
            anyhow::bail!("{none:?}")
        };
        assert!(word == "NO_WORKER" && message.contains("'mine'") && message.contains("'adds'"), "{none:?}");
        assert!(began.elapsed() < Duration::from_secs(3), "said in time: {:?}", began.elapsed());
        let asking = tokio::spawn({
            let run = run.clone();
            async move { run.query::<u32>("sum", &1).await }
        });
        let _worker = RunningWorker::start(node.worker().task_queue("mine").register("adds", adds))?;
        assert_eq!(asking.await??, 0);
        let absent = client.latest::<u32>("nobody").query::<u32>("sum", &1).await;
        assert_eq!(reason(absent), "RUN_NOT_FOUND");
    }
    Ok(())
}

/// A workflow whose query does not end before the test says so.
#[derive(Clone)]
struct Stuck {
    entered: UnboundedSender<()>,
    /// Ends when the test drops its end.
    leave: Arc<Mutex<mpsc::Receiver<()>>>,
    /// How many of the first calls get stuck.
    calls: Arc<AtomicU32>,
}

impl Stuck {
    fn new(calls: u32) -> (Self, UnboundedReceiver<()>, mpsc::Sender<()>) {
        let ((entered, seen), (let_go, leave)) = (unbounded_channel(), mpsc::channel());
        let leave = Arc::new(Mutex::new(leave));
        (Self { entered, leave, calls: Arc::new(AtomicU32::new(calls)) }, seen, let_go)
    }

    fn workflow(
        &self,
    ) -> impl Fn(Ctx, ()) -> futures::future::BoxFuture<'static, Result<u32, WorkflowError>> + use<> {
        let stuck = self.clone();
        move |ctx, ()| {
            let stuck = stuck.clone();
            Box::pin(async move {
                let shown = ctx.state(1);
                let seen = shown.clone();
                ctx.on_query("shown", move |(): ()| {
                    let left =
                        stuck.calls.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
                    if left.is_ok() {
                        let _ = stuck.entered.send(());
                        let _ = stuck.leave.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    }
                    Ok(seen.get())
                });
                shown.set(ctx.signal("go").await?);
                Ok(shown.get())
            })
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_survives_the_worker_that_was_answering_it() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let (stuck, mut entered, let_go) = Stuck::new(1);
        let worker = || node.worker().park_after(LONG).register("stuck", stuck.workflow());
        let first = RunningWorker::start(worker())?;
        let run = node.client()?.workflow::<u32>("stuck").start(&()).await?;
        let asking = tokio::spawn({
            let run = run.clone();
            async move { run.query::<u32>("shown", &()).await }
        });
        entered.recv().await;
        let _second = RunningWorker::start(worker())?;
        drop(first);
        assert_eq!(asking.await??, 1);
        run.signal("go", &2).await?;
        assert_eq!(run.result().await?, 2);
        drop(let_go);
    }
    Ok(())
}

/// A handler that does not end costs its asker an answer, and nobody else anything: neither the other runs of its
/// worker nor its lease, which is shorter than the wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_takes_too_long_harms_nobody() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let (stuck, mut entered, let_go) = Stuck::new(1);
        let builder =
            node.worker().park_after(LONG).register("stuck", stuck.workflow()).register("adds", adds);
        let _worker = RunningWorker::start(builder)?;
        let client = node.client()?;
        let run = client.workflow::<u32>("stuck").start(&()).await?;
        let asking = tokio::spawn({
            let run = run.clone();
            async move { run.query_with_deadline::<u32>("shown", &(), Duration::from_millis(1_500)).await }
        });
        entered.recv().await;
        let other = client.workflow::<u32>("adds").start(&()).await?;
        until(&other, has_begun).await?;
        other.signal("add", &4).await?;
        assert_eq!(other.query::<u32>("sum", &1).await?, 4);
        assert_eq!(reason(asking.await?), "DEADLINE_EXCEEDED");
        // The handler still runs, and what it reads does not keep the workflow from setting it.
        assert_eq!(run.query::<u32>("shown", &()).await?, 1);
        run.signal("go", &3).await?;
        assert_eq!(run.result().await?, 3);
        assert_eq!(kinds(&run).await?.iter().filter(|k| *k == "WorkerAttached").count(), 1, "never lost");
        drop(let_go);
    }
    Ok(())
}

/// Other code cannot speak for a run; it is asked nevertheless, and says so, unless there is code that can.
#[tokio::test(flavor = "multi_thread")]
async fn code_that_does_not_fit_does_not_answer() -> anyhow::Result<()> {
    async fn changed(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
        ctx.on_query("sum", |_: u32| Ok(99));
        ctx.step("start", || async { Ok::<_, StepError>(()) }).await?;
        Ok(ctx.signal("add").await?)
    }
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let client = node.client()?;
        let worker = |build: &str| node.worker().park_after(Duration::from_millis(1)).build_id(build);
        let old = RunningWorker::start(worker("old").register("adds", adds))?;
        let run = client.workflow::<u32>("adds").start(&()).await?;
        until(&run, is_parked).await?;
        let _new = RunningWorker::start(worker("new").register("adds", changed))?;
        assert_eq!(run.query::<u32>("sum", &1).await?, 0, "the build that had it is asked first");
        old.stop().await?;
        let (kind, message) = refused(&run, "sum").await;
        assert_eq!(kind, "Nondeterminism");
        assert!(message.contains("'new'") && message.contains("'begin'"), "{message}");
        assert_eq!(run.describe().await?.status, everstep::RunStatus::Running, "nobody recorded that");
        let fits = worker("older").task_queue("default").task_queue("only here").register("adds", adds);
        let _old = RunningWorker::start(fits)?;
        let another = client.workflow::<u32>("adds").task_queue("only here").start(&()).await?;
        until(&another, has_begun).await?;
        assert_eq!(run.query::<u32>("sum", &1).await?, 0, "one build fits");
    }
    Ok(())
}

/// A thousand queries while runs come and go: each is answered, and no history tells of any.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_queries_under_load_write_nothing() -> anyhow::Result<()> {
    const RUNS: u32 = 100;
    async fn three(ctx: Ctx, n: u32) -> Result<u32, WorkflowError> {
        let done = ctx.state(0u32);
        ctx.on_query("done", {
            let done = done.clone();
            move |(): ()| Ok(done.get())
        });
        for _ in 0..3 {
            ctx.step("work", || async { Ok::<_, StepError>(()) }).await?;
            done.update(|d| *d += 1);
        }
        Ok(n)
    }
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let client = node.client()?;
        let _worker = RunningWorker::start(node.worker().park_after(LONG).register("three", three))?;
        let mut tasks = tokio::task::JoinSet::new();
        let mut runs = Vec::new();
        for n in 0..RUNS {
            let run = client.workflow::<u32>("three").start(&n).await?;
            for _ in 0..10 {
                let run = run.clone();
                tasks.spawn(async move { run.query_with_deadline::<u32>("done", &(), LONG).await });
            }
            runs.push(run);
        }
        while let Some(answer) = tasks.join_next().await {
            let done = answer??;
            assert!(done <= 3, "{done}");
        }
        for (run, n) in runs.iter().zip(0..) {
            assert_eq!(run.result().await?, n);
            let mut told = kinds(run).await?;
            told.retain(|kind| kind != "StepStarted");
            let plain = ["RunStarted", "WorkerAttached", "StepCompleted", "StepCompleted", "StepCompleted"];
            assert_eq!(told, [&plain[..], &["RunCompleted"]].concat());
            assert_eq!(run.query::<u32>("done", &()).await?, 3);
        }
    }
    Ok(())
}

/// Questions at one node about runs whose worker is at the other: held, parked, closed.
async fn asks_across(here: &RunningNode, there: &RunningNode) -> anyhow::Result<()> {
    let worker = |idle| there.worker().park_after(idle).register("adds", adds);
    let held = RunningWorker::start(worker(LONG))?;
    let run = here.client()?.workflow::<u32>("adds").start(&()).await?;
    until(&run, has_begun).await?;
    for n in 1..=5 {
        run.signal("add", &n).await?;
        assert_eq!(run.query::<u32>("sum", &2).await?, n * (n + 1));
    }
    let (kind, message) = refused(&run, "refuses").await;
    assert_eq!((kind.as_str(), message.as_str()), ("Busy", "Busy: not now"));
    held.stop().await?;
    let began = Instant::now();
    let none = run.query_with_deadline::<u32>("sum", &1, Duration::from_millis(500)).await;
    assert_eq!(reason(none), "NO_WORKER");
    assert!(began.elapsed() < Duration::from_secs(3));
    let _worker = RunningWorker::start(worker(Duration::from_millis(1)))?;
    let parked = here.client()?.workflow::<u32>("adds").start(&()).await?;
    until(&parked, is_parked).await?;
    let before = kinds(&parked).await?;
    assert_eq!(parked.query::<u32>("sum", &1).await?, 0);
    assert_eq!(kinds(&parked).await?, before);
    run.signal("add", &0).await?;
    assert_eq!(run.result().await?, 15);
    assert_eq!(run.query::<u32>("sum", &1).await?, 15);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_takes_any_query_and_nats_may_die() -> anyhow::Result<()> {
    let Some(Pair { here, there, mut nats }) = pair().await? else { return Ok(()) };
    asks_across(&here, &there).await?;
    nats.kill_9()?;
    asks_across(&here, &there).await
}

/// The node that took a question dies with it: another one with a worker takes it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_survives_the_node_that_was_answering_it() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let database = PostgresServer::shared()?.create_database().await?;
    migrate(&database).await?;
    let node = || node_at(&database, Arc::new(InProcess::new()));
    let (here, first, second) = (node().await?, node().await?, node().await?);
    let (stuck, mut entered, let_go) = Stuck::new(1);
    let worker = |node: &RunningNode| {
        let at_once = Duration::from_millis(1);
        RunningWorker::start(node.worker().park_after(at_once).register("stuck", stuck.workflow()))
    };
    let _one = worker(&first)?;
    let run = here.client()?.workflow::<u32>("stuck").start(&()).await?;
    until(&run, is_parked).await?;
    let asking = tokio::spawn({
        let run = run.clone();
        async move { run.query::<u32>("shown", &()).await }
    });
    entered.recv().await;
    let _two = worker(&second)?;
    first.engine.shutdown(Duration::ZERO).await;
    drop(first);
    assert_eq!(asking.await??, 1);
    drop(let_go);
    Ok(())
}
