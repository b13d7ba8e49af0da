//! Runs that fail and are tried again, and runs that begin later.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use everstep::{Ctx, RetryPolicy, RunError, RunHandle, RunId, StepError, WorkflowError};
use everstep_core::{Event, EventBody, Run, RunStatus, TimerKey};
use everstep_store::Store;
use everstep_tests::cluster::{RunningNode, RunningWorker};

use crate::nodes::node_on;
use crate::stores;

fn soon(maximum_attempts: u32) -> RetryPolicy {
    RetryPolicy {
        initial_interval: Duration::from_millis(100).into(),
        maximum_attempts,
        non_retryable_kinds: vec!["Final".to_owned()],
        ..RetryPolicy::default()
    }
}

/// The runs of a chain, in order.
async fn attempts(store: &Arc<dyn Store>, first: RunId) -> anyhow::Result<Vec<(Run, Vec<Event>)>> {
    let (mut runs, mut next) = (Vec::new(), Some(first));
    while let Some(id) = next {
        let events = store.read_events(id, 0, 10_000).await?;
        let run = Run::fold(id, &events)?.context("it has not begun")?;
        let tables = store.run_tables(id).await?.context("it has no row")?;
        assert_eq!(tables.projection, run.projection());
        next = run.successor();
        runs.push((run, events));
    }
    Ok(runs)
}

fn first_of<R: serde::de::DeserializeOwned>(run: &RunHandle<R>) -> anyhow::Result<RunId> {
    run.run_id().context("a started run has an id")
}

#[tokio::test]
async fn the_third_attempt_gives_the_result_and_none_begins_before_its_backoff() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let tries = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&tries);
        let workflow = move |ctx: Ctx, (): ()| {
            let tries = Arc::clone(&counted);
            async move {
                let word: String = ctx.signal("word").await?;
                let tried = ctx
                    .step("try", move || {
                        let tries = Arc::clone(&tries);
                        async move { Ok::<_, StepError>(tries.fetch_add(1, Ordering::SeqCst)) }
                    })
                    .await?;
                if tried < 2 {
                    return Err(WorkflowError::new("Flaky", format!("try {tried}")));
                }
                Ok(format!("{word} after {tried}"))
            }
        };
        let _worker = RunningWorker::start(node.worker().register("flaky", workflow))?;
        let client = node.client()?;
        let start = client.workflow::<String>("flaky").workflow_id("flaky/1").retry(soon(3));
        let run = start.start(&()).await?;
        run.signal("word", "yes").await?;
        assert_eq!(run.result().await?, "yes after 2", "each attempt is given the signal");
        let runs = attempts(&store.store, first_of(&run)?).await?;
        assert_eq!(runs.iter().map(|(r, _)| r.attempt()).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(
            runs.iter().map(|(r, _)| r.status()).collect::<Vec<_>>(),
            [RunStatus::Failed, RunStatus::Failed, RunStatus::Completed]
        );
        for (run, events) in &runs[1..] {
            let due = run.start().start_at.expect("it waits");
            let first = events.iter().find(|e| matches!(e.body, EventBody::WorkerAttached { .. }));
            assert!(first.is_some_and(|e| e.at >= due), "never early");
            let fired =
                |e: &Event| matches!(e.body, EventBody::TimerFired { timer } if timer == TimerKey::START);
            assert_eq!(events.iter().filter(|e| fired(e)).count(), 1);
        }
        let waited = |n: usize| runs[n].0.start().start_at.map(|at| at.since(runs[n].1[0].at).as_micros());
        assert!(waited(1).is_some_and(|us| (90_000..=100_000).contains(&us)), "{:?}", waited(1));
        assert!(waited(2).is_some_and(|us| (180_000..=200_000).contains(&us)), "{:?}", waited(2));
        let Err(RunError::Ended { status: RunStatus::Failed, failure }) = run.result_of_this_run().await
        else {
            anyhow::bail!("the first attempt failed")
        };
        assert_eq!(failure.message, "try 0");
        let shown = client.latest::<String>("flaky/1").describe().await?;
        assert_eq!((shown.run.attempt, shown.run.successor_run_id.as_str()), (3, ""));
    }
    Ok(())
}

#[tokio::test]
async fn a_final_failure_a_cancel_and_the_last_attempt_end_the_chain() -> anyhow::Result<()> {
    async fn fail(ctx: Ctx, kind: String) -> Result<(), WorkflowError> {
        if kind == "Cancel" {
            ctx.canceled().await;
        }
        Err(WorkflowError::new(kind, "as planned"))
    }
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().register("fail", fail))?;
        let client = node.client()?;
        for (kind, expected) in [("Final", 1), ("Oops", 2), ("Cancel", 1)] {
            let run = client.workflow::<()>("fail").retry(soon(2)).start(kind).await?;
            if kind == "Cancel" {
                run.cancel("enough").await?;
            }
            let Err(RunError::Ended { failure, .. }) = run.result().await else { anyhow::bail!("it fails") };
            assert_eq!(failure.kind, kind);
            assert_eq!(attempts(&store.store, first_of(&run)?).await?.len(), expected, "{kind}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_times_out_is_tried_again() -> anyhow::Result<()> {
    async fn stuck(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
        ctx.sleep(Duration::from_secs(3_600)).await;
        Ok(1)
    }
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().register("stuck", stuck))?;
        let start = node.client()?.workflow::<u32>("stuck").retry(soon(2));
        let run = start.run_timeout(Duration::from_millis(200)).start(&()).await?;
        let Err(RunError::Ended { status: RunStatus::TimedOut, .. }) = run.result().await else {
            anyhow::bail!("it times out")
        };
        let runs = attempts(&store.store, first_of(&run)?).await?;
        assert_eq!(runs.len(), 2);
        let (second, events) = &runs[1];
        let lived = events.last().map(|e| e.at.since(second.start().start_at.unwrap_or_default()));
        assert!(lived.is_some_and(|d| d >= Duration::from_millis(200).into()), "it lives from its start on");
    }
    Ok(())
}

/// The node dies while the next attempt waits: its timer is the database's.
#[tokio::test]
async fn an_attempt_that_waits_outlives_its_node() -> anyhow::Result<()> {
    let tries = Arc::new(AtomicU32::new(0));
    for store in stores::all().await? {
        let counted = Arc::clone(&tries);
        tries.store(0, Ordering::SeqCst);
        let workflow = move |ctx: Ctx, (): ()| {
            let tries = Arc::clone(&counted);
            async move {
                let step = ctx.step("try", move || {
                    let tries = Arc::clone(&tries);
                    async move { Ok::<_, StepError>(tries.fetch_add(1, Ordering::SeqCst)) }
                });
                match step.await? {
                    0 => Err(WorkflowError::new("Flaky", "the first time")),
                    tried => Ok(tried),
                }
            }
        };
        let dying = node_on(&store).await?;
        let lost = RunningWorker::start(dying.worker().register("flaky", workflow.clone()))?;
        let run = dying.client()?.workflow::<u32>("flaky").retry(soon(0)).start(&()).await?;
        assert!(matches!(run.result_of_this_run().await, Err(RunError::Ended { .. })));
        dying.engine.shutdown(Duration::ZERO).await;
        drop((dying, lost));
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().register("flaky", workflow))?;
        assert_eq!(node.client()?.handle::<u32>(first_of(&run)?).result().await?, 1);
        assert_eq!(attempts(&store.store, first_of(&run)?).await?.len(), 2);
    }
    Ok(())
}

#[tokio::test]
async fn a_delayed_run_begins_at_its_instant_with_the_signals_that_came_before() -> anyhow::Result<()> {
    async fn late(ctx: Ctx, (): ()) -> Result<(u32, i64), WorkflowError> {
        let first: u32 = ctx.signal("n").await?;
        Ok((first, ctx.now().timestamp_micros()))
    }
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().register("late", late))?;
        let client = node.client()?;
        let start = || client.workflow::<(u32, i64)>("late").start_delay(Duration::from_millis(300));
        let run = start().workflow_id("late/1").start(&()).await?;
        run.signal("n", &7).await?;
        let (first, now) = run.result().await?;
        let runs = attempts(&store.store, first_of(&run)?).await?;
        let (delayed, events) = &runs[0];
        let due = delayed.start().start_at.expect("it is delayed");
        assert_eq!(due.since(events[0].at), Duration::from_millis(300).into());
        let kinds: Vec<&str> = events.iter().map(|e| e.body.kind()).collect();
        assert_eq!(kinds[..4], ["RunStarted", "SignalReceived", "TimerFired", "WorkerAttached"]);
        assert!(first == 7 && now >= due.as_micros());
        assert!(events[2].at >= due && events[3].at >= due);

        let stopped = start().start_delay(Duration::from_secs(3_600)).start(&()).await?;
        stopped.cancel("no need").await?;
        let Err(RunError::Ended { status: RunStatus::Canceled, .. }) = stopped.result().await else {
            anyhow::bail!("it never began")
        };
        let other = start().workflow_id("late/2").request_id("r").start(&()).await?;
        let mismatch = client.workflow::<()>("late").workflow_id("late/2").request_id("r").start(&()).await;
        assert_eq!(mismatch.expect_err("the delay is missing").reason(), Some("IDEMPOTENCY_MISMATCH"));
        other.terminate("enough").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_policy_that_makes_no_sense_is_refused() -> anyhow::Result<()> {
    let node = RunningNode::in_memory().await?;
    let client = node.client()?;
    for wrong in [
        RetryPolicy { backoff_coefficient: f64::NAN, ..RetryPolicy::default() },
        RetryPolicy { backoff_coefficient: 0.5, ..RetryPolicy::default() },
        RetryPolicy { maximum_interval: Duration::ZERO.into(), ..RetryPolicy::default() },
    ] {
        let refused = client.workflow::<()>("any").retry(wrong).start(&()).await.expect_err("it is refused");
        assert_eq!(refused.reason(), Some("INVALID_ARGUMENT"), "{refused}");
    }
    let century = Duration::from_secs(101 * 366 * 24 * 3_600);
    let refused = client.workflow::<()>("any").start_delay(century).start(&()).await.expect_err("too late");
    assert!(matches!(refused.reason(), Some("INVALID_ARGUMENT" | "INVALID_DURATION")), "{refused}");
    Ok(())
}
