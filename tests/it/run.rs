//! Runs, from start to end, and what may happen to them on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use everstep::{Ctx, Either, RetryPolicy, RunError, StepError, WorkflowError, select2};
use everstep_core::{ConflictPolicy, EventBody, RunStatus};
use everstep_tests::cluster::RunningWorker;

use crate::nodes::node_on;
use crate::stores;

async fn add(ctx: Ctx, (a, b): (u32, u32)) -> Result<u32, WorkflowError> {
    Ok(ctx.step("add", move || async move { Ok::<_, StepError>(a + b) }).await?)
}

async fn approve(ctx: Ctx, wait_ms: u64) -> Result<String, WorkflowError> {
    let asked = ctx.step("ask", || async { Ok::<_, StepError>("asked".to_owned()) }).await?;
    match select2(ctx.signal::<String>("decision"), ctx.sleep(Duration::from_millis(wait_ms))).await {
        Either::Left(decision) => Ok(format!("{asked}: {}", decision?)),
        Either::Right(()) => Ok(format!("{asked}: no answer")),
    }
}

async fn kinds(run: &everstep::RunHandle<impl serde::de::DeserializeOwned>) -> anyhow::Result<Vec<String>> {
    let mut history = run.history(0, false).await?;
    let mut kinds = Vec::new();
    while let Some(event) = history.next().await? {
        kinds.push(event.body.kind().to_owned());
    }
    Ok(kinds)
}

#[tokio::test]
async fn a_run_gives_its_result_and_shows_its_history() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let worker = RunningWorker::start(node.worker().register("add", add))?;
        let client = node.client()?;
        let run = client.workflow::<u32>("add").workflow_id("add/1").start(&(2, 3)).await?;
        assert_eq!(run.result().await?, 5);
        let all = kinds(&run).await?;
        assert_eq!(all.first().map(String::as_str), Some("RunStarted"));
        assert_eq!(all.last().map(String::as_str), Some("RunCompleted"));
        assert_eq!(all.iter().filter(|k| *k == "StepCompleted").count(), 1);
        assert_eq!(run.describe().await?.status, RunStatus::Completed);
        worker.stop().await?;
        node.shutdown().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_run_can_be_started_and_awaited_in_one_call() -> anyhow::Result<()> {
    async fn refuse(ctx: Ctx, late_ms: u64) -> Result<u32, WorkflowError> {
        ctx.sleep(Duration::from_millis(late_ms)).await;
        Err(WorkflowError::new("Refused", "as planned"))
    }
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let worker = RunningWorker::start(node.worker().register("add", add).register("refuse", refuse))?;
        let client = node.client()?;
        let start = || client.workflow::<u32>("add").workflow_id("add/2").request_id("once");
        assert_eq!(start().execute(&(2, 3)).await?, 5);
        // The request id names the run that has ended; how long somebody waits is not part of it.
        assert_eq!(start().execute(&(2, 3)).await?, 5);
        assert_eq!(start().start(&(2, 3)).await?.result().await?, 5);
        for late_ms in [0, 300] {
            let refused = client.workflow::<u32>("refuse").execute(&late_ms).await;
            let Err(RunError::Ended { status, failure }) = refused else {
                anyhow::bail!("a failed run gave {refused:?}")
            };
            assert_eq!((status, failure.kind.as_str()), (RunStatus::Failed, "Refused"));
        }
        assert_eq!(client.list(&Default::default(), "").await?.runs.len(), 3);
        worker.stop().await?;
        node.shutdown().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_was_started_first_finds_its_worker_later() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let run = node.client()?.workflow::<u32>("add").start(&(20, 3)).await?;
        assert!(run.poll_result(Duration::from_millis(50)).await?.is_none());
        let _worker = RunningWorker::start(node.worker().register("add", add))?;
        assert_eq!(run.result().await?, 23);
    }
    Ok(())
}

#[tokio::test]
async fn a_parked_run_is_woken_by_a_signal_or_by_its_timer() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let park_at_once = Duration::from_millis(1);
        let _worker =
            RunningWorker::start(node.worker().park_after(park_at_once).register("approve", approve))?;
        let client = node.client()?;
        let signaled = client.workflow::<String>("approve").start(&3_600_000u64).await?;
        let timed = client.workflow::<String>("approve").start(&300u64).await?;
        let mut history = signaled.history(0, true).await?;
        while let Some(event) = history.next().await? {
            if matches!(event.body, EventBody::WorkerDetached { .. }) {
                break;
            }
        }
        signaled.signal("decision", "yes").await?;
        assert_eq!(signaled.result().await?, "asked: yes");
        assert_eq!(timed.result().await?, "asked: no answer");
        assert!(kinds(&timed).await?.contains(&"TimerFired".to_owned()));
    }
    Ok(())
}

#[tokio::test]
async fn a_failing_step_is_tried_again_and_a_final_failure_ends_the_run() -> anyhow::Result<()> {
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let flaky = move |ctx: Ctx, good: bool| {
        let tries = Arc::clone(&counted);
        async move {
            let fast = RetryPolicy {
                initial_interval: everstep_core::Duration::from_millis(10),
                ..RetryPolicy::default()
            };
            let step = ctx.step("flaky", move || {
                let n = tries.fetch_add(1, Ordering::SeqCst);
                async move {
                    match (good, n) {
                        (true, 0 | 1) => Err(StepError::new("Busy", "try again")),
                        (true, _) => Ok(n),
                        (false, _) => Err(StepError::new("Broken", "for good").non_retryable()),
                    }
                }
            });
            Ok(step.retry(fast).await?)
        }
    };
    for store in stores::all().await? {
        tries.store(0, Ordering::SeqCst);
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().register("flaky", flaky.clone()))?;
        let client = node.client()?;
        let good = client.workflow::<u32>("flaky").start(&true).await?;
        assert_eq!(good.result().await?, 2);
        assert_eq!(kinds(&good).await?.iter().filter(|k| *k == "StepFailed").count(), 2);
        let bad = client.workflow::<u32>("flaky").start(&false).await?;
        match bad.result().await {
            Err(RunError::Ended { status: RunStatus::Failed, failure }) => assert_eq!(failure.kind, "Broken"),
            other => panic!("{other:?}"),
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_that_dies_leaves_its_runs_to_another() -> anyhow::Result<()> {
    async fn two_steps(ctx: Ctx, (): ()) -> Result<Vec<u32>, WorkflowError> {
        let first = ctx.step("first", || async { Ok::<_, StepError>(1) }).await?;
        let second = ctx
            .step("second", || async { Ok::<_, StepError>(everstep::step_info().map_or(0, |s| s.attempt)) });
        Ok(vec![first, second.await?])
    }
    async fn hangs(ctx: Ctx, (): ()) -> Result<Vec<u32>, WorkflowError> {
        let first = ctx.step("first", || async { Ok::<_, StepError>(1) }).await?;
        let second = ctx.step("second", std::future::pending::<Result<u32, StepError>>).await?;
        Ok(vec![first, second])
    }
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let dying = RunningWorker::start(node.worker().build_id("same").register("two", hangs))?;
        let run = node.client()?.workflow::<Vec<u32>>("two").start(&()).await?;
        let mut history = run.history(0, true).await?;
        while let Some(event) = history.next().await? {
            if matches!(&event.body, EventBody::StepStarted { name, .. } if name == "second") {
                break;
            }
        }
        drop(dying);
        let _worker = RunningWorker::start(node.worker().build_id("same").register("two", two_steps))?;
        // The second attempt of the second step, because the first was recorded as begun.
        assert_eq!(run.result().await?, vec![1, 2]);
        let all = kinds(&run).await?;
        assert_eq!(all.iter().filter(|k| *k == "WorkerAttached").count(), 2);
        assert_eq!(all.iter().filter(|k| *k == "StepCompleted").count(), 2);
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_that_stops_gives_its_run_to_another() -> anyhow::Result<()> {
    async fn tries(ctx: Ctx, ready: bool) -> Result<u32, WorkflowError> {
        let retry = everstep::RetryPolicy {
            initial_interval: Duration::from_millis(200).into(),
            ..Default::default()
        };
        ctx.step("try", move || async move {
            if ready { Ok(42) } else { Err(StepError::new("NotYet", "not on this worker")) }
        })
        .retry(retry)
        .await
        .map_err(WorkflowError::from)
    }
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let failing = node.worker().register("tries", |ctx: Ctx, (): ()| tries(ctx, false));
        let failing = RunningWorker::start(failing)?;
        let run = node.client()?.workflow::<u32>("tries").start(&()).await?;
        let mut history = run.history(0, true).await?;
        while let Some(event) = history.next().await? {
            if matches!(event.body, EventBody::StepFailed { .. }) {
                break;
            }
        }
        // While it stops it is still connected, and has room as far as it has ever said.
        failing.stop().await?;
        let _other =
            RunningWorker::start(node.worker().register("tries", |ctx: Ctx, (): ()| tries(ctx, true)))?;
        assert_eq!(run.result().await?, 42);
        let attached = kinds(&run).await?.into_iter().filter(|kind| kind == "WorkerAttached").count();
        assert_eq!(attached, 2, "{:?}", kinds(&run).await?);
    }
    Ok(())
}

#[tokio::test]
async fn changed_code_blocks_the_run_until_fitting_code_connects() -> anyhow::Result<()> {
    async fn old(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
        let n = ctx.step("old name", || async { Ok::<_, StepError>(1) }).await?;
        let m: u32 = ctx.signal("go").await?;
        Ok(n + m)
    }
    async fn changed(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
        let n = ctx.step("new name", || async { Ok::<_, StepError>(1) }).await?;
        let m: u32 = ctx.signal("go").await?;
        Ok(n + m)
    }
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let client = node.client()?;
        let first = RunningWorker::start(node.worker().build_id("1").register("w", old))?;
        let run = client.workflow::<u32>("w").start(&()).await?;
        let mut history = run.history(0, true).await?;
        while let Some(event) = history.next().await? {
            if matches!(event.body, EventBody::StepCompleted { .. }) {
                break;
            }
        }
        first.stop().await?;
        let wrong = RunningWorker::start(node.worker().build_id("2").register("w", changed))?;
        run.signal("go", &41).await?;
        while let Some(event) = history.next().await? {
            if let EventBody::RunBlocked(blocked) = &event.body {
                assert_eq!(blocked.expected, "step 'old name' #1");
                assert_eq!(blocked.produced, "step 'new name' #1");
                assert!(blocked.source.contains("it/run.rs:"), "{}", blocked.source);
                break;
            }
        }
        let described = run.describe().await?;
        assert_eq!(described.status, RunStatus::Blocked);
        assert!(described.run.blocked_reason.contains("'old name'"), "{}", described.run.blocked_reason);
        wrong.stop().await?;
        assert_eq!(node.engine.status().fenced, 0, "a worker that gave a run up says nothing more about it");
        let _fixed = RunningWorker::start(node.worker().build_id("3").register("w", old))?;
        assert_eq!(run.result().await?, 42);
    }
    Ok(())
}

#[tokio::test]
async fn cancel_is_cooperative_and_terminate_is_not() -> anyhow::Result<()> {
    async fn careful(ctx: Ctx, (): ()) -> Result<(), WorkflowError> {
        ctx.canceled().await;
        ctx.step("clean up", || async { Ok::<_, StepError>(()) }).await?;
        Err(WorkflowError::Canceled("cleaned up".to_owned()))
    }
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().register("careful", careful))?;
        let client = node.client()?;
        let run = client.workflow::<()>("careful").start(&()).await?;
        run.cancel("enough").await?;
        match run.result().await {
            Err(RunError::Ended { status: RunStatus::Canceled, failure }) => {
                assert_eq!(failure.message, "cleaned up")
            }
            other => panic!("{other:?}"),
        }
        let run = client.workflow::<()>("careful").start(&()).await?;
        run.terminate("now").await?;
        match run.result().await {
            Err(RunError::Ended { status: RunStatus::Terminated, failure }) => {
                assert_eq!(failure.message, "now")
            }
            other => panic!("{other:?}"),
        }
        let refused = run.signal("late", &1).await.err().and_then(|e| e.reason().map(str::to_owned));
        assert_eq!(refused.as_deref(), Some("RUN_CLOSED"));
    }
    Ok(())
}

#[tokio::test]
async fn a_request_to_a_run_acts_once_under_its_id() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let run = node.client()?.workflow::<()>("unattended").start(&()).await?;
        let (signal, cancel) = (run.signal("go", &1), run.cancel("enough"));
        for _ in 0..2 {
            signal.send().await?;
            cancel.send().await?;
            // As another process would repeat it.
            run.signal("go", &2).request_id("of mine").await?;
        }
        assert_eq!(kinds(&run).await?, ["RunStarted", "SignalReceived", "CancelRequested", "SignalReceived"]);
    }
    Ok(())
}

#[tokio::test]
async fn a_workflow_id_has_one_open_run_and_a_request_id_one_answer() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let client = node.client()?;
        let start = || client.workflow::<u32>("add").workflow_id("one").request_id("r1");
        let first = start().start(&(1, 1)).await?;
        assert_eq!(start().start(&(1, 1)).await?.run_id(), first.run_id());
        let reused = start().start(&(9, 9)).await.err();
        assert_eq!(reused.as_ref().and_then(|e| e.reason()), Some("IDEMPOTENCY_MISMATCH"));
        let other = || client.workflow::<u32>("add").workflow_id("one");
        let taken = other().start(&(1, 1)).await.err();
        assert_eq!(taken.as_ref().and_then(|e| e.reason()), Some("RUN_ALREADY_EXISTS"));
        let existing = other().conflict(ConflictPolicy::UseExisting).start(&(1, 1)).await?;
        assert_eq!(existing.run_id(), first.run_id());
        let second = other().conflict(ConflictPolicy::TerminateExisting).start(&(2, 2)).await?;
        assert_ne!(second.run_id(), first.run_id());
        assert_eq!(first.describe().await?.status, RunStatus::Terminated);
        let _worker = RunningWorker::start(node.worker().register("add", add))?;
        assert_eq!(second.result().await?, 4);
    }
    Ok(())
}

#[tokio::test]
async fn a_workflow_that_panics_is_blocked_as_poison_and_harms_nobody() -> anyhow::Result<()> {
    async fn poison(_: Ctx, explode: bool) -> Result<u32, WorkflowError> {
        assert!(!explode, "boom");
        Ok(1)
    }
    for store in stores::all().await? {
        let node = node_on(&store).await?;
        let _worker = RunningWorker::start(node.worker().register("poison", poison))?;
        let client = node.client()?;
        let bad = client.workflow::<u32>("poison").start(&true).await?;
        let good = client.workflow::<u32>("poison").start(&false).await?;
        assert_eq!(good.result().await?, 1);
        let mut history = bad.history(0, true).await?;
        while let Some(event) = history.next().await? {
            if let EventBody::RunBlocked(blocked) = &event.body {
                assert!(blocked.produced.contains("boom"), "{blocked:?}");
                break;
            }
        }
        assert_eq!(bad.describe().await?.status, RunStatus::Blocked);
    }
    Ok(())
}
