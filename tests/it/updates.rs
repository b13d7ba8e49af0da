//! Updates: what a run's code agrees to is recorded once and answered, whoever dies meanwhile; what it refuses leaves
//! no trace.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use everstep::{ClientError, Ctx, Refused, RunHandle, StepError, UpdateError, WorkflowError};
use everstep_core::{DetachReason, EventBody};
use everstep_tests::cluster::{RunningNode, RunningWorker};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::nodes::{Pair, node_on, pair, until};
use crate::stores;

const LONG: Duration = Duration::from_secs(60);
const AT_ONCE: Duration = Duration::from_millis(1);

/// Holds a total until it is told to stop. "add" books in a step, "hold" waits for a signal first.
async fn cart(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let total = ctx.state(0u32);
    ctx.on_query("total", {
        let total = total.clone();
        move |(): ()| Ok(total.get())
    });
    let agrees =
        |n: &u32| if *n > 0 { Ok(()) } else { Err(Refused::of_kind("NotPositive", "must be positive")) };
    let add = |wait: bool| {
        let total = total.clone();
        move |ctx: Ctx, n: u32| {
            let total = total.clone();
            async move {
                if wait {
                    ctx.signal::<()>("release").await?;
                }
                ctx.step("book", move || async move { Ok::<_, StepError>(n) }).await?;
                Ok(total.update(|total| {
                    *total += n;
                    *total
                }))
            }
        }
    };
    ctx.on_update("add", agrees, add(false));
    ctx.on_update("hold", agrees, add(true));
    ctx.on_update("fail", agrees, |_: Ctx, _: u32| async {
        Err::<(), _>(WorkflowError::new("CardDeclined", "no"))
    });
    ctx.step("open", || async { Ok::<_, StepError>(()) }).await?;
    ctx.signal::<()>("stop").await?;
    Ok(total.get())
}

async fn bodies(run: &RunHandle<u32>) -> anyhow::Result<Vec<EventBody>> {
    let mut history = run.history(0, false).await?;
    let mut bodies = Vec::new();
    while let Some(event) = history.next().await? {
        bodies.push(event.body);
    }
    Ok(bodies)
}

/// How often each update was accepted and answered.
async fn counted(run: &RunHandle<u32>, id: &str) -> anyhow::Result<(usize, usize)> {
    let bodies = bodies(run).await?;
    let accepted =
        bodies.iter().filter(|b| matches!(b, EventBody::UpdateAccepted { update_id, .. } if update_id == id));
    let completed = bodies
        .iter()
        .filter(|b| matches!(b, EventBody::UpdateCompleted { update_id, .. } if update_id == id));
    Ok((accepted.count(), completed.count()))
}

fn reason_of<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result {
        Err(error) => error.reason().unwrap_or("none").to_owned(),
        Ok(value) => format!("{value:?}"),
    }
}

fn reason<T: std::fmt::Debug>(result: Result<T, UpdateError>) -> String {
    match result {
        Err(UpdateError::Client(error)) => error.reason().unwrap_or("none").to_owned(),
        Err(UpdateError::Failed(failure)) => failure.kind,
        Ok(value) => format!("{value:?}"),
    }
}

fn is_parked(body: &EventBody) -> bool {
    matches!(body, EventBody::WorkerDetached { reason: DetachReason::Parked })
}

fn has_opened(body: &EventBody) -> bool {
    matches!(body, EventBody::StepCompleted { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_accepted_and_answered_and_a_rejected_one_leaves_no_trace() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let client = node.client()?;
        let _worker = RunningWorker::start(node.worker().park_after(LONG).register("cart", cart))?;
        let run = client.workflow::<u32>("cart").start(&()).await?;
        assert_eq!(run.update::<u32>("add", &5).await?, 5);
        assert_eq!(run.update::<u32>("add", &2).await?, 7);
        assert_eq!(run.query::<u32>("total", &()).await?, 7, "answered is applied");
        let held = run.update::<u32>("hold", &3).request_id("h").start().await?;
        assert_eq!(held.id(), "h");
        assert!(held.poll_result(Duration::from_millis(50)).await?.is_none(), "accepted, and not answered");
        until(&run, has_opened).await?;
        let before = bodies(&run).await?;
        let refused = run.update::<u32>("add", &0).await;
        let Err(UpdateError::Client(ClientError::Refused { reason: word, message, metadata, .. })) = &refused
        else {
            anyhow::bail!("{refused:?}")
        };
        assert_eq!((word.as_str(), message.as_str()), ("UPDATE_REJECTED", "NotPositive: must be positive"));
        assert_eq!(metadata.get("kind").map(String::as_str), Some("NotPositive"));
        let unknown = run.update::<u32>("remove", &1).await;
        assert!(format!("{unknown:?}").contains("this run has: add, fail, hold"), "{unknown:?}");
        assert_eq!(reason(unknown), "UPDATE_REJECTED");
        assert_eq!(reason(run.update::<u32>("no\0name", &1).await), "INVALID_ID");
        assert_eq!(bodies(&run).await?, before, "not an event for what was refused");
        assert_eq!(reason(run.update::<()>("fail", &1).await), "CardDeclined");
        assert_eq!(reason(run.update_handle::<u32>("unknown").result().await), "UPDATE_NOT_FOUND");
        run.signal("release", &()).await?;
        assert_eq!(held.result().await?, 10);
        run.signal("stop", &()).await?;
        assert_eq!(run.result().await?, 10);
        assert_eq!(reason(run.update::<u32>("add", &1).await), "RUN_CLOSED");
        assert_eq!(held.result().await?, 10, "also after the end");
        assert_eq!(
            reason_of(client.latest::<u32>("nobody").update::<u32>("add", &1).start().await),
            "RUN_NOT_FOUND"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_update_from_two_callers_is_one() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().park_after(LONG).register("cart", cart))?;
        let run = node.client()?.workflow::<u32>("cart").workflow_id("c").start(&()).await?;
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let run = node.client()?.latest::<u32>("c");
            callers.spawn(async move { run.update::<u32>("add", &4).request_id("same").await });
        }
        while let Some(answer) = callers.join_next().await {
            assert_eq!(answer??, 4);
        }
        assert_eq!(counted(&run, "same").await?, (1, 1));
        let other = run.update::<u32>("add", &5).request_id("same").await;
        assert_eq!(reason(other), "IDEMPOTENCY_MISMATCH");
        run.signal("stop", &()).await?;
        assert_eq!(run.result().await?, 4);
        assert_eq!(run.update::<u32>("add", &4).request_id("same").await?, 4, "a repeat after the end");
        assert_eq!(counted(&run, "same").await?, (1, 1));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_wakes_a_parked_run_and_one_without_an_answer_is_abandoned() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().park_after(AT_ONCE).register("cart", cart))?;
        let run = node.client()?.workflow::<u32>("cart").start(&()).await?;
        until(&run, is_parked).await?;
        assert_eq!(run.update::<u32>("add", &3).await?, 3);
        let held = run.update::<u32>("hold", &3).request_id("h").start().await?;
        let waits = tokio::spawn({
            let held = held.clone();
            async move { held.result().await }
        });
        run.signal("stop", &()).await?;
        assert_eq!(run.result().await?, 3);
        let abandoned = waits.await?;
        assert!(format!("{abandoned:?}").contains("completed"), "{abandoned:?}");
        assert_eq!(reason(abandoned), "UPDATE_ABANDONED");
        assert_eq!(reason(held.result().await), "UPDATE_ABANDONED");
        assert_eq!(reason(run.update::<u32>("hold", &3).request_id("h").await), "UPDATE_ABANDONED");
        assert_eq!(counted(&run, "h").await?, (1, 0));
    }
    Ok(())
}

/// A workflow whose code gets stuck, in a validator or in an update's step, for as long as the test wants.
#[derive(Clone)]
struct Stuck {
    entered: UnboundedSender<&'static str>,
    /// Ends when the test drops its end.
    leave: Arc<Mutex<mpsc::Receiver<()>>>,
    /// How many of the first validations get stuck.
    validations: Arc<AtomicU32>,
    /// How many of the first attempts get stuck.
    attempts: Arc<AtomicU32>,
    let_go: Arc<Notify>,
}

fn counts_down(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

impl Stuck {
    fn new(validations: u32, attempts: u32) -> (Self, UnboundedReceiver<&'static str>, mpsc::Sender<()>) {
        let ((entered, seen), (end, leave)) = (unbounded_channel(), mpsc::channel());
        let count = |n| Arc::new(AtomicU32::new(n));
        let stuck = Self {
            entered,
            leave: Arc::new(Mutex::new(leave)),
            validations: count(validations),
            attempts: count(attempts),
            let_go: Arc::default(),
        };
        (stuck, seen, end)
    }

    fn validate(&self) {
        if counts_down(&self.validations) {
            let _ = self.entered.send("validation");
            let _ = self.leave.lock().unwrap_or_else(PoisonError::into_inner).recv();
        }
    }

    async fn attempt(&self) {
        if counts_down(&self.attempts) {
            let _ = self.entered.send("attempt");
            self.let_go.notified().await;
        }
    }

    fn workflow(
        &self,
    ) -> impl Fn(Ctx, ()) -> futures::future::BoxFuture<'static, Result<u32, WorkflowError>> + use<> {
        let stuck = self.clone();
        move |ctx, ()| {
            let (validates, works) = (stuck.clone(), stuck.clone());
            Box::pin(async move {
                let total = ctx.state(0u32);
                let validator = move |_: &u32| {
                    validates.validate();
                    Ok(())
                };
                ctx.on_update("add", validator, {
                    let total = total.clone();
                    move |ctx: Ctx, n: u32| {
                        let (total, works) = (total.clone(), works.clone());
                        async move {
                            let works = works.clone();
                            let booked = ctx.step("book", move || {
                                let works = works.clone();
                                async move {
                                    works.attempt().await;
                                    Ok::<_, StepError>(n)
                                }
                            });
                            let n = booked.await?;
                            Ok(total.update(|total| {
                                *total += n;
                                *total
                            }))
                        }
                    }
                });
                ctx.signal::<()>("stop").await?;
                Ok(total.get())
            })
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_in_a_handler_or_a_validator_costs_nobody_an_answer() -> anyhow::Result<()> {
    for store in stores::all().await? {
        for (validations, attempts) in [(0, 1), (1, 0)] {
            let node = node_on(&store).await?;
            let (stuck, mut entered, end) = Stuck::new(validations, attempts);
            let worker = || node.worker().park_after(LONG).register("stuck", stuck.workflow());
            let first = RunningWorker::start(worker())?;
            let run = node.client()?.workflow::<u32>("stuck").start(&()).await?;
            let asking = tokio::spawn({
                let run = run.clone();
                async move { run.update::<u32>("add", &6).request_id("u").await }
            });
            entered.recv().await;
            let _second = RunningWorker::start(worker())?;
            drop(first);
            assert_eq!(asking.await??, 6);
            assert_eq!(counted(&run, "u").await?, (1, 1));
            run.signal("stop", &()).await?;
            assert_eq!(run.result().await?, 6);
            drop(end);
            node.shutdown().await?;
        }
    }
    Ok(())
}

/// The node goes away with the question, or with the accepted update; the caller repeats its request at another.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_leaves_one_acceptance_at_most() -> anyhow::Result<()> {
    for store in stores::all().await? {
        for (validations, attempts) in [(1, 0), (0, 1)] {
            let node = node_on(&store).await?;
            let (stuck, mut entered, end) = Stuck::new(validations, attempts);
            let first =
                RunningWorker::start(node.worker().park_after(LONG).register("stuck", stuck.workflow()))?;
            let run = node.client()?.workflow::<u32>("stuck").start(&()).await?;
            let asking = tokio::spawn({
                let run = run.clone();
                async move { run.update::<u32>("add", &6).request_id("u").await }
            });
            entered.recv().await;
            node.engine.shutdown(Duration::ZERO).await;
            drop(node);
            asking.abort();
            drop(first);
            let node = node_on(&store).await?;
            let _second =
                RunningWorker::start(node.worker().park_after(LONG).register("stuck", stuck.workflow()))?;
            let run_id = run.run_id().ok_or_else(|| anyhow::anyhow!("no id"))?;
            let run = node.client()?.handle::<u32>(run_id);
            assert_eq!(run.update::<u32>("add", &6).request_id("u").await?, 6);
            assert_eq!(counted(&run, "u").await?, (1, 1));
            run.signal("stop", &()).await?;
            assert_eq!(run.result().await?, 6);
            drop(end);
            node.shutdown().await?;
        }
    }
    Ok(())
}

/// A run to which something happens all the time agrees all the same, at the place where it is recorded.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_run_takes_updates() -> anyhow::Result<()> {
    async fn busy(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
        let total = ctx.state(0u32);
        ctx.on_update("add", |_: &u32| Ok(()), {
            let total = total.clone();
            move |_: Ctx, n: u32| {
                let sum = total.update(|total| {
                    *total += n;
                    *total
                });
                async move { Ok(sum) }
            }
        });
        while total.get() < 20 {
            ctx.step("work", || async { Ok::<_, StepError>(()) }).await?;
        }
        Ok(total.get())
    }
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().park_after(LONG).register("busy", busy))?;
        let run = node.client()?.workflow::<u32>("busy").start(&()).await?;
        for n in 1..=20 {
            assert_eq!(run.update::<u32>("add", &1).await?, n);
        }
        assert_eq!(run.result().await?, 20);
    }
    Ok(())
}

/// Updates at one node for runs whose worker is at the other: held and parked.
async fn updates_across(here: &RunningNode, there: &RunningNode) -> anyhow::Result<()> {
    for idle in [LONG, AT_ONCE] {
        let worker = RunningWorker::start(there.worker().park_after(idle).register("cart", cart))?;
        let run = here.client()?.workflow::<u32>("cart").start(&()).await?;
        until(&run, if idle == LONG { has_opened } else { is_parked }).await?;
        for n in 1..=5 {
            assert_eq!(run.update::<u32>("add", &1).await?, n);
        }
        let before = bodies(&run).await?.iter().filter(|b| b.kind().starts_with("Update")).count();
        assert_eq!(reason(run.update::<u32>("add", &0).await), "UPDATE_REJECTED");
        assert_eq!(bodies(&run).await?.iter().filter(|b| b.kind().starts_with("Update")).count(), before);
        run.signal("stop", &()).await?;
        assert_eq!(run.result().await?, 5);
        worker.stop().await?;
    }
    let run = here.client()?.workflow::<u32>("cart").start(&()).await?;
    let none = run.update::<u32>("add", &1).deadline(Duration::from_millis(500)).await;
    assert_eq!(reason(none), "NO_WORKER");
    run.terminate("done").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_takes_any_update_and_nats_may_die() -> anyhow::Result<()> {
    let Some(Pair { here, there, mut nats }) = pair().await? else { return Ok(()) };
    updates_across(&here, &there).await?;
    nats.kill_9()?;
    updates_across(&here, &there).await
}

/// Two runs: the first is over when it hears so, the second when it is told to stop.
async fn turns(ctx: Ctx, turn: u32) -> Result<u32, WorkflowError> {
    let add = move |_: Ctx, n: u32| async move { Ok::<_, WorkflowError>(turn + n) };
    ctx.on_update("add", |_: &u32| Ok(()), add);
    if turn > 0 {
        ctx.signal::<()>("stop").await?;
        return Ok(turn);
    }
    ctx.signal::<()>("over").await?;
    Err(ctx.continue_as_new(&(turn + 1)))
}

/// The request has found the first run, and waits for a worker that makes an end of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_a_workflow_follows_it_into_its_next_run() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let worker = || RunningWorker::start(node.worker().park_after(AT_ONCE).register("turns", turns));
        let first = worker()?;
        let client = node.client()?;
        let run = client.workflow::<u32>("turns").workflow_id("t").start(&0).await?;
        until(&run, is_parked).await?;
        first.stop().await?;
        run.signal("over", &()).await?;
        let updated = tokio::spawn({
            let latest = client.latest::<u32>("t");
            async move { latest.update::<u32>("add", &40).await }
        });
        let _second = worker()?;
        assert_eq!(updated.await??, 41);
        client.latest::<u32>("t").signal("stop", &()).await?;
        assert_eq!(client.latest::<u32>("t").result().await?, 1);
    }
    Ok(())
}
