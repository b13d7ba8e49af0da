//! Queued steps: results, retries, times that run out, cancels, tokens, order and limits, on every store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use everstep::client::{QueueLimits, StepResolution, WaitingType};
use everstep::{
    Ctx, Failure, QueuedDoubt, RetryPolicy, RunError, RunHandle, StepCtx, StepError, StepType, WorkflowError,
    join_all,
};
use everstep_core::EventBody;
use everstep_dispatch::InProcess;
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use tokio::sync::{Semaphore, mpsc};

use crate::stores;

pub(crate) struct Work;

impl StepType for Work {
    const NAME: &'static str = "work";
    type Input = u32;
    type Output = u32;
}

async fn nodes() -> anyhow::Result<Vec<(stores::TestStore, RunningNode)>> {
    let mut nodes = Vec::new();
    for store in stores::all().await? {
        let node =
            RunningNode::start(Arc::clone(&store.store), Arc::new(InProcess::new()), NodeSettings::default());
        nodes.push((store, node.await?));
    }
    Ok(nodes)
}

/// Asks for one step of the queue.
async fn one(ctx: Ctx, n: u32) -> Result<u32, WorkflowError> {
    Ok(ctx.run::<Work>(n).task_queue("steps").retry(soon(0)).await?)
}

fn soon(attempts: u32) -> RetryPolicy {
    RetryPolicy {
        initial_interval: everstep_core::Duration::from_millis(20),
        maximum_attempts: attempts,
        ..RetryPolicy::default()
    }
}

/// A worker of the queue `steps`, and of nothing else.
fn host<F, Fut>(node: &RunningNode, step: F) -> anyhow::Result<RunningWorker>
where
    F: Fn(StepCtx, u32) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<u32, StepError>> + Send + 'static,
{
    RunningWorker::start(node.worker().task_queue("steps").register_step::<Work, _, _>(step))
}

pub(crate) async fn kinds<T: serde::de::DeserializeOwned>(run: &RunHandle<T>) -> anyhow::Result<Vec<String>> {
    let mut history = run.history(0, false).await?;
    let mut kinds = Vec::new();
    while let Some(event) = history.next().await? {
        kinds.push(event.body.kind().to_owned());
    }
    Ok(kinds)
}

pub(crate) async fn until<T: serde::de::DeserializeOwned>(
    run: &RunHandle<T>,
    kind: &str,
) -> anyhow::Result<()> {
    let mut history = run.history(0, true).await?;
    while let Some(event) = history.next().await? {
        if event.body.kind() == kind {
            return Ok(());
        }
    }
    anyhow::bail!("no {kind}")
}

async fn failure(run: &RunHandle<u32>) -> Failure {
    match run.result().await {
        Err(RunError::Ended { failure, .. }) => failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_another_queue_runs_the_step_and_tries_again() -> anyhow::Result<()> {
    for (store, node) in nodes().await? {
        let _flows = RunningWorker::start(node.worker().register("one", one))?;
        let tries = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&tries);
        let _steps = host(&node, move |step, n| {
            let tries = Arc::clone(&counted);
            async move {
                assert_eq!(step.info().attempt, tries.fetch_add(1, Ordering::SeqCst) + 1);
                if step.info().attempt < 3 { Err(StepError::new("Broken", "m")) } else { Ok(2 * n) }
            }
        })?;
        let run = node.client()?.workflow::<u32>("one").start(&21).await?;
        assert_eq!(run.result().await?, 42, "{}", store.name);
        let mut kinds = kinds(&run).await?;
        kinds.retain(|kind| kind.starts_with("Step"));
        assert_eq!(kinds, ["StepScheduled", "StepFailed", "StepFailed", "StepCompleted"], "{}", store.name);
        assert!(node.client()?.queued_steps(None, 10, "").await?.steps.is_empty());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_for_a_step_is_parked_and_outlives_its_worker() -> anyhow::Result<()> {
    for (store, node) in nodes().await? {
        let flows = RunningWorker::start(node.worker().park_after(Duration::ZERO).register("one", one))?;
        let run = node.client()?.workflow::<u32>("one").start(&4).await?;
        until(&run, "WorkerDetached").await?;
        flows.stop().await?;
        let _steps = host(&node, |_, n| async move { Ok(n + 1) })?;
        until(&run, "StepCompleted").await?;
        let _flows = RunningWorker::start(node.worker().register("one", one))?;
        assert_eq!(run.result().await?, 5, "{}", store.name);
    }
    Ok(())
}

/// What goes wrong, which time runs out for it, and what the code hears.
#[tokio::test(flavor = "multi_thread")]
async fn each_of_the_four_times_runs_out() -> anyhow::Result<()> {
    let short = Duration::from_millis(300);
    for (store, node) in nodes().await? {
        let timed = move |ctx: Ctx, which: String| async move {
            let step = ctx.run::<Work>(1).task_queue("steps");
            let step = match which.as_str() {
                "schedule_to_start" => step.task_queue("nobody").schedule_to_start(short),
                "start_to_close" => step.no_retry().start_to_close(short),
                "schedule_to_close" => step.schedule_to_close(short),
                _ => step.no_retry().heartbeat(short),
            };
            Ok::<u32, WorkflowError>(step.await?)
        };
        let _flows = RunningWorker::start(node.worker().register("timed", timed))?;
        let _steps = host(&node, |_, _| std::future::pending())?;
        for which in ["schedule_to_start", "start_to_close", "schedule_to_close", "heartbeat"] {
            let began = Instant::now();
            let run = node.client()?.workflow::<u32>("timed").start(&which).await?;
            let failure = failure(&run).await;
            let seen = format!("{} {which}: {failure:?}", store.name);
            assert_eq!(failure.kind, "StepTimeout", "{seen}");
            let details: serde_json::Value = serde_json::from_slice(&failure.details.data)?;
            assert_eq!(details, serde_json::json!({ "timeout": which }), "{seen}");
            assert!(began.elapsed() >= short, "{seen}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_attempt_goes_on_where_a_lost_worker_was() -> anyhow::Result<()> {
    for (store, node) in nodes().await? {
        let _flows = RunningWorker::start(node.worker().register("one", one))?;
        let (said, mut heard) = mpsc::unbounded_channel();
        let lost = host(&node, move |step, _| {
            let said = said.clone();
            async move {
                step.heartbeat(&17);
                let _ = said.send(());
                std::future::pending().await
            }
        })?;
        let run = node.client()?.workflow::<u32>("one").start(&4).await?;
        heard.recv().await;
        // The heartbeat is durable once it shows.
        while node.client()?.queued_steps(None, 10, "").await?.steps[0].last_heartbeat_at.is_none() {
            tokio::task::yield_now().await;
        }
        drop(lost);
        let _steps = host(&node, |step, _| async move { Ok(step.last_heartbeat::<u32>().unwrap_or(0)) })?;
        assert_eq!(run.result().await?, 17, "{}", store.name);
        let mut history = run.history(0, false).await?;
        let mut lost = Vec::new();
        while let Some(event) = history.next().await? {
            if let EventBody::StepFailed { attempt, failure, .. } = event.body {
                lost.push((attempt, failure.kind));
            }
        }
        assert_eq!(lost, [(1, "WorkerLost".to_owned())], "{}", store.name);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_attempt_of_a_guarded_step_waits_for_a_person() -> anyhow::Result<()> {
    for (store, node) in nodes().await? {
        let guarded = |ctx: Ctx, n: u32| async move {
            let step = ctx.run::<Work>(n).task_queue("steps").in_doubt(QueuedDoubt::AskHuman);
            Ok::<u32, WorkflowError>(step.await?)
        };
        let _flows = RunningWorker::start(node.worker().register("guarded", guarded))?;
        let (said, mut heard) = mpsc::unbounded_channel();
        let lost = host(&node, move |_, _| {
            let _ = said.send(());
            std::future::pending()
        })?;
        let run = node.client()?.workflow::<u32>("guarded").start(&4).await?;
        heard.recv().await;
        drop(lost);
        until(&run, "StepInDoubt").await?;
        let _steps = host(&node, |step, n| async move { Ok(100 * step.info().attempt + n) })?;
        run.resolve_step(StepResolution::retry(1).attempt(1)).await?;
        assert_eq!(run.result().await?, 204, "{}", store.name);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_the_step_that_runs_and_the_one_that_waits() -> anyhow::Result<()> {
    for (store, node) in nodes().await? {
        let gives_up = |ctx: Ctx, queue: String| async move {
            let step = ctx.run::<Work>(4).task_queue(queue);
            everstep::select2(ctx.signal::<()>("stop"), step).await;
            // The step is let go of; the run goes on and hears what became of it.
            ctx.sleep(Duration::from_secs(3_600)).await;
            Ok::<u32, WorkflowError>(0)
        };
        let _flows = RunningWorker::start(node.worker().register("gives_up", gives_up))?;
        let (said, mut heard) = mpsc::unbounded_channel();
        let _steps = host(&node, move |step, _| {
            let said = said.clone();
            async move {
                let _ = said.send(());
                step.canceled().await;
                Err(step.stopped("cleaned up"))
            }
        })?;
        for (queue, message) in [("steps", "cleaned up"), ("nobody", "canceled before a worker took it")] {
            let run = node.client()?.workflow::<u32>("gives_up").start(&queue).await?;
            until(&run, "StepScheduled").await?;
            if queue == "steps" {
                heard.recv().await;
            }
            run.signal("stop", &()).await?;
            until(&run, "StepFailed").await?;
            let mut history = run.history(0, false).await?;
            let mut ends = Vec::new();
            while let Some(event) = history.next().await? {
                if let EventBody::StepFailed { failure, retry_at: None, .. } = event.body {
                    ends.push((failure.kind, failure.message));
                }
            }
            assert_eq!(ends, [("Canceled".to_owned(), message.to_owned())], "{} {queue}", store.name);
            run.terminate("done").await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_is_completed_by_its_token_from_anywhere_and_once() -> anyhow::Result<()> {
    for (store, node) in nodes().await? {
        let held = |ctx: Ctx, n: u32| async move {
            let value = one(ctx.clone(), n).await?;
            ctx.signal::<()>("end").await?;
            Ok::<u32, WorkflowError>(value)
        };
        let _flows = RunningWorker::start(node.worker().register("held", held))?;
        let (said, mut heard) = mpsc::unbounded_channel();
        let later = host(&node, move |step, _| {
            let _ = said.send(step.task_token());
            async move { Err(step.complete_later()) }
        })?;
        let client = node.client()?;
        let run = client.workflow::<u32>("held").start(&4).await?;
        let token = heard.recv().await.unwrap_or_default();
        // Nobody loses it with the worker that let go of it.
        later.stop().await?;
        assert!(!client.heartbeat_step(&token, &"half").await?);
        client.complete_step(&token, &9).await?;
        client.complete_step(&token, &9).await?;
        let again = client.complete_step(&token, &8).await;
        assert_eq!(again.unwrap_err().reason(), Some("RESULT_CONFLICT"), "{}", store.name);
        let forged = client.complete_step(&token.replace('.', "1"), &9).await;
        assert_eq!(forged.unwrap_err().reason(), Some("TASK_TOKEN_INVALID"));
        let beat = client.heartbeat_step(&token, &"more").await;
        assert_eq!(beat.unwrap_err().reason(), Some("STALE_ATTEMPT"));
        run.signal("end", &()).await?;
        assert_eq!(run.result().await?, 9, "{}", store.name);
        client.complete_step(&token, &9).await?;
        let late = client.complete_step(&token, &8).await;
        assert_eq!(late.unwrap_err().reason(), Some("RUN_CLOSED"), "{}", store.name);
    }
    Ok(())
}

/// Asks for steps of these priorities at once.
async fn many(ctx: Ctx, priorities: Vec<u8>) -> Result<u32, WorkflowError> {
    let steps = priorities.iter().map(|&p| ctx.run::<Work>(u32::from(p)).task_queue("steps").priority(p));
    let ends = join_all(steps.collect::<Vec<_>>()).await;
    Ok(ends.into_iter().filter(Result::is_ok).count() as u32)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slot_serves_by_priority() -> anyhow::Result<()> {
    for (store, node) in nodes().await? {
        let _flows = RunningWorker::start(node.worker().register("many", many))?;
        let client = node.client()?;
        let run = client.workflow::<u32>("many").start(&[5, 3, 1, 4, 2, 1]).await?;
        while client.queued_steps(None, 10, "").await?.steps.len() < 6 {
            tokio::task::yield_now().await;
        }
        let (said, mut heard) = mpsc::unbounded_channel();
        let step = move |_: StepCtx, n: u32| {
            let _ = said.send(n);
            async move { Ok(n) }
        };
        let builder = node.worker().task_queue("steps").step_slots(1).register_step::<Work, _, _>(step);
        let _steps = RunningWorker::start(builder)?;
        assert_eq!(run.result().await?, 6, "{}", store.name);
        let mut order = Vec::new();
        while let Ok(n) = heard.try_recv() {
            order.push(n);
        }
        assert_eq!(order, [1, 1, 2, 3, 4, 5], "{}", store.name);
    }
    Ok(())
}

/// Steps that stand still until they are let on, and how many do so at one time.
#[derive(Clone)]
struct Gate {
    open: Arc<Semaphore>,
    inside: Arc<AtomicU32>,
    most: Arc<AtomicU32>,
    entered: mpsc::UnboundedSender<Instant>,
}

impl Gate {
    fn new() -> (Self, mpsc::UnboundedReceiver<Instant>) {
        let (entered, heard) = mpsc::unbounded_channel();
        let gate =
            Self { open: Arc::new(Semaphore::new(0)), inside: Arc::default(), most: Arc::default(), entered };
        (gate, heard)
    }

    async fn pass(self, n: u32) -> Result<u32, StepError> {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        let _ = self.entered.send(Instant::now());
        if let Ok(permit) = self.open.acquire().await {
            permit.forget();
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
        Ok(n)
    }
}

struct Lost;

impl StepType for Lost {
    const NAME: &'static str = "lost";
    type Input = u32;
    type Output = u32;
}

/// Asks for steps that nobody has, and for one that somebody has.
async fn lost(ctx: Ctx, n: u32) -> Result<u32, WorkflowError> {
    let all = (0..n).map(|n| ctx.run::<Lost>(n).task_queue("steps")).collect::<Vec<_>>();
    ctx.run::<Work>(n).task_queue("steps").await?;
    let mut sum = 0;
    for end in join_all(all).await {
        sum += end?;
    }
    Ok(sum)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_says_who_serves_it_and_what_waits_in_vain() -> anyhow::Result<()> {
    for (store, node) in nodes().await? {
        let client = node.client()?;
        let _flows = RunningWorker::start(node.worker().register("lost", lost))?;
        let steps = node.worker().task_queue("steps").build_id("b7").identity("steps-1").step_slots(3);
        let steps = RunningWorker::start(steps.register_step::<Work, _, _>(|_, n| async move { Ok(n) }))?;
        let run = client.workflow::<u32>("lost").start(&2).await?;
        client.workflow::<u32>("gone").task_queue("steps").start(&()).await?;
        until(&run, "StepCompleted").await?;
        let waits = |name: &str, is_step, waiting| WaitingType { name: name.to_owned(), is_step, waiting };
        let in_vain = [waits("gone", false, 1), waits("lost", true, 2)];
        let mut queue = client.queue("steps").await?;
        while queue.types_without_worker != in_vain {
            tokio::task::yield_now().await;
            queue = client.queue("steps").await?;
        }
        let [worker] = &queue.workers[..] else { panic!("{}: {queue:?}", store.name) };
        assert_eq!((worker.identity.as_str(), worker.build_id.as_str()), ("steps-1", "b7"));
        assert_eq!((worker.run_slots, worker.step_slots), (0, 3));
        let other = client.queue("default").await?;
        assert_eq!((other.workers.len(), other.workers[0].step_slots), (1, 0), "{}", store.name);
        assert!(other.workers[0].run_slots > 0 && other.types_without_worker.is_empty());
        let listed = client.queues(100, "").await?.queues;
        assert!(listed.iter().all(|queue| queue.workers.is_empty()), "a list does not look for them");
        steps.stop().await?;
        while !client.queue("steps").await?.workers.is_empty() {
            tokio::task::yield_now().await;
        }
        run.cancel("").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_run_than_the_queue_allows_until_the_limit_is_lifted() -> anyhow::Result<()> {
    for (store, node) in nodes().await? {
        let client = node.client()?;
        let limits = QueueLimits { max_running: 2, ..QueueLimits::default() };
        assert_eq!(client.set_queue_limits("steps", limits).await?.max_running, 2);
        let (gate, mut entered) = Gate::new();
        let let_on = Arc::clone(&gate.open);
        let most = Arc::clone(&gate.most);
        let _flows = RunningWorker::start(node.worker().register("many", many))?;
        let _steps = host(&node, move |_, n| gate.clone().pass(n))?;
        let run = client.workflow::<u32>("many").start(&[3; 10]).await?;
        for _ in 0..4 {
            entered.recv().await;
            entered.recv().await;
            let queue = client.queue("steps").await?;
            assert_eq!((queue.steps_running, queue.limits.max_running), (2, 2), "{}", store.name);
            let_on.add_permits(2);
        }
        assert_eq!(most.load(Ordering::SeqCst), 2, "{}", store.name);
        client.set_queue_limits("steps", QueueLimits::default()).await?;
        let_on.add_permits(100);
        assert_eq!(run.result().await?, 10, "{}", store.name);
        assert_eq!(client.queue("steps").await?.steps_running, 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_begin_in_a_second_than_the_queue_or_the_worker_allows() -> anyhow::Result<()> {
    for (store, node) in nodes().await? {
        for by_worker in [false, true] {
            let client = node.client()?;
            let limits =
                QueueLimits { max_per_second: if by_worker { 0.0 } else { 10.0 }, ..QueueLimits::default() };
            client.set_queue_limits("steps", limits).await?;
            let (gate, mut entered) = Gate::new();
            gate.open.add_permits(100);
            let _flows = RunningWorker::start(node.worker().register("many", many))?;
            let step = move |_: StepCtx, n| gate.clone().pass(n);
            let rate = if by_worker { 10.0 } else { 0.0 };
            let builder = node.worker().task_queue("steps").steps_per_second(rate);
            let steps = RunningWorker::start(builder.register_step::<Work, _, _>(step))?;
            // A worker may begin as many as that at once after a quiet second.
            let count = if by_worker { 16 } else { 8 };
            let run = client.workflow::<u32>("many").start(&vec![3; count]).await?;
            assert_eq!(run.result().await?, u32::try_from(count)?, "{}", store.name);
            let mut instants = Vec::new();
            while let Ok(instant) = entered.try_recv() {
                instants.push(instant);
            }
            instants.sort_unstable();
            let took = instants[count - 1] - instants[0];
            assert!(took >= Duration::from_millis(500), "{} {by_worker}: {took:?}", store.name);
            steps.stop().await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_takes_more_and_fewer_while_it_works() -> anyhow::Result<()> {
    for (store, node) in nodes().await? {
        let (gate, mut entered) = Gate::new();
        let (let_on, most) = (Arc::clone(&gate.open), Arc::clone(&gate.most));
        let _flows = RunningWorker::start(node.worker().register("many", many))?;
        let step = move |_: StepCtx, n| gate.clone().pass(n);
        let builder = node.worker().task_queue("steps").step_slots(1).register_step::<Work, _, _>(step);
        let worker = builder.build()?;
        let limits = worker.limits();
        let working = tokio::spawn(worker.run_until(std::future::pending()));
        let run = node.client()?.workflow::<u32>("many").start(&[3; 4]).await?;
        entered.recv().await;
        let_on.add_permits(1);
        entered.recv().await;
        assert_eq!(most.load(Ordering::SeqCst), 1, "{}", store.name);
        limits.set(3, 0.0);
        entered.recv().await;
        entered.recv().await;
        assert_eq!(most.load(Ordering::SeqCst), 3, "{}", store.name);
        let_on.add_permits(100);
        assert_eq!(run.result().await?, 4);
        working.abort();
    }
    Ok(())
}

/// A worker that does not know what queued steps are is given none, and one that knows is not kept waiting by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_the_queue_without_the_step_is_given_none() -> anyhow::Result<()> {
    for (store, node) in nodes().await? {
        let _flows = RunningWorker::start(node.worker().register("one", one))?;
        let other = node.worker().task_queue("steps").register("other", |_: Ctx, (): ()| async { Ok(1) });
        let _other = RunningWorker::start(other)?;
        let client = node.client()?;
        let run = client.workflow::<u32>("one").start(&4).await?;
        until(&run, "StepScheduled").await?;
        let waiting = client.workflow::<u32>("other").task_queue("steps").start(&()).await?;
        assert_eq!(waiting.result().await?, 1);
        assert!(!kinds(&run).await?.contains(&"StepCompleted".to_owned()));
        let _steps = host(&node, |_, n| async move { Ok(n) })?;
        assert_eq!(run.result().await?, 4, "{}", store.name);
    }
    Ok(())
}
