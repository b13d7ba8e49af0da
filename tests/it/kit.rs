//! What real servers and workers write, the test kit replays, by its stricter rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use everstep::testing::{History, ReplayError, Replayer};
use everstep::{Ctx, Either, InDoubt, RetryPolicy, StepError, WorkflowError, join_all, select2};
use everstep_core::RunStatus;
use everstep_dispatch::InProcess;
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};

use crate::stores;

/// Steps side by side and one after the other, one that fails first, a guarded one, a marker, timers, a signal.
async fn everything(ctx: Ctx, fails: u32) -> Result<u64, WorkflowError> {
    let quick =
        RetryPolicy { initial_interval: everstep_core::Duration::from_millis(5), ..RetryPolicy::default() };
    let number = |name: String, n: u64| ctx.step(name, move || async move { Ok::<_, StepError>(n) });
    let parts = join_all((0..3).map(|n| number(format!("part {n}"), n))).await;
    let mut total = 0;
    for part in parts {
        total += part?;
    }
    let failures = Arc::new(AtomicU32::new(fails));
    let flaky = move || {
        let failures = Arc::clone(&failures);
        async move {
            match failures.load(Ordering::SeqCst) {
                0 => Ok(10),
                left => {
                    failures.store(left - 1, Ordering::SeqCst);
                    Err(StepError::new("Flaky", "as planned"))
                }
            }
        }
    };
    total += ctx.step("flaky", flaky).retry(quick).await?;
    total += number("guarded".to_owned(), 100).in_doubt(InDoubt::Fail).await?;
    if ctx.version("bonus", 0..=1) == 1 {
        total += ctx.random() % 2;
    }
    ctx.sleep(Duration::from_millis(5)).await;
    match select2(ctx.signal::<u64>("add"), ctx.sleep(Duration::from_secs(3_600))).await {
        Either::Left(more) => Ok(total + more?),
        Either::Right(()) => Ok(total),
    }
}

#[tokio::test]
async fn histories_of_real_runs_replay_in_the_kit() -> anyhow::Result<()> {
    for store in stores::all().await? {
        eprintln!("on {}", store.name);
        let (shared, hints) = (Arc::clone(&store.store), Arc::new(InProcess::new()));
        let node = RunningNode::start(shared, hints, NodeSettings::default()).await?;
        let worker = RunningWorker::start(node.worker().register("everything", everything))?;
        let client = node.client()?;
        let run = client.workflow::<u64>("everything").start(&2).await?;
        run.signal("add", &1_000).await?;
        assert!((1_113..=1_114).contains(&run.result().await?));
        assert_eq!(run.describe().await?.status, RunStatus::Completed);

        let mut events = Vec::new();
        let mut stream = run.history(0, false).await?;
        while let Some(event) = stream.next().await? {
            events.push(event);
        }
        let history = History::from_events(run.describe().await?.run.run_id.parse()?, events)?;
        let history = History::from_bytes(&history.to_bytes())?;
        Replayer::new().register("everything", everything).check(&history)?;
        let changed = |ctx: Ctx, fails: u32| async move { Ok(everything(ctx, fails).await? + 1) };
        let differs = Replayer::new().register("everything", changed).check(&history);
        let Err(ReplayError::Differs(differs)) = differs else { anyhow::bail!("not found: {differs:?}") };
        assert_eq!(differs.kind, "RunCompleted");
        worker.stop().await?;
        node.shutdown().await?;
    }
    Ok(())
}
