//! Compensation that survives the loss of workers, also in the middle of an undo.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use everstep::{Ctx, InDoubt, RunError, StepError, WorkflowError, saga, step_info};
use everstep_core::RunStatus;
use everstep_dispatch::InProcess;
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use tokio::sync::mpsc;

use crate::stores;

/// A bank that takes each idempotency key once.
#[derive(Clone)]
struct Bank {
    seen: Arc<Mutex<BTreeMap<String, u32>>>,
    calls: mpsc::UnboundedSender<String>,
    /// The call in the middle of which its caller is lost, the first time.
    deadly: &'static str,
}

impl Bank {
    async fn call(&self, name: &'static str) -> Result<u32, StepError> {
        let key = step_info().ok_or_else(|| StepError::new("Outside", "not in a step"))?.idempotency_key;
        let times = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let times = seen.entry(format!("{name} {key}")).or_default();
            *times += 1;
            *times
        };
        let _ = self.calls.send(name.to_owned());
        if name == self.deadly && times == 1 {
            std::future::pending::<()>().await;
        }
        if name == "ship" {
            return Err(StepError::new("NoRoom", "the ship is full").non_retryable());
        }
        Ok(times)
    }

    /// Distinct keys by name: how often something happened at a receiver that knows repeats.
    fn happened(&self, name: &str) -> usize {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.keys().filter(|key| key.starts_with(&format!("{name} "))).count()
    }
}

async fn order(ctx: Ctx, bank: Bank, guarded: bool) -> Result<u32, WorkflowError> {
    let code = ctx.clone();
    let done = saga(&ctx, |saga| async move {
        let ctx = code;
        let step = |name: &'static str| {
            let (ctx, bank) = (ctx.clone(), bank.clone());
            move || {
                ctx.step(name, move || {
                    let bank = bank.clone();
                    async move { bank.call(name).await }
                })
            }
        };
        let undo = |name| {
            let step = step(name);
            move |_: Option<&u32>| step()
        };
        let charge = step("charge")();
        let charge = if guarded { charge.in_doubt(InDoubt::Fail) } else { charge };
        saga.run(charge, undo("refund")).await?;
        saga.run(step("reserve")(), undo("release")).await?;
        step("ship")().await?;
        Ok(1)
    });
    Ok(done.await?)
}

#[tokio::test]
async fn a_lost_worker_does_not_keep_anything_from_being_undone() -> anyhow::Result<()> {
    for store in stores::all().await? {
        for (deadly, guarded) in [
            ("charge", false),
            ("charge", true),
            ("reserve", false),
            ("ship", false),
            ("release", false),
            ("refund", false),
        ] {
            eprintln!("on {}: lost in the middle of {deadly}, guarded: {guarded}", store.name);
            let node = RunningNode::start(
                Arc::clone(&store.store),
                Arc::new(InProcess::new()),
                NodeSettings::default(),
            )
            .await?;
            let (calls, mut heard) = mpsc::unbounded_channel();
            let bank = Bank { seen: Arc::default(), calls, deadly };
            let code = bank.clone();
            let workflow = move |ctx: Ctx, (): ()| order(ctx, code.clone(), guarded);
            let worker = RunningWorker::start(node.worker().register("order", workflow.clone()))?;
            let run = node.client()?.workflow::<u32>("order").start(&()).await?;
            while heard.recv().await.is_some_and(|name| name != deadly) {}
            drop(worker);
            let _next = RunningWorker::start(node.worker().register("order", workflow))?;
            let Err(RunError::Ended { status, failure }) = run.result().await else {
                anyhow::bail!("the saga came to its end")
            };
            let in_doubt = deadly == "charge" && guarded;
            let kind = if in_doubt { "InDoubt" } else { "NoRoom" };
            assert_eq!((status, failure.kind.as_str()), (RunStatus::Failed, kind), "{failure:?}");
            let expected = if in_doubt { [1, 1, 0, 0] } else { [1, 1, 1, 1] };
            assert_eq!(["charge", "refund", "reserve", "release"].map(|name| bank.happened(name)), expected);
            node.shutdown().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_canceled_run_undoes_what_it_has_done() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let node =
            RunningNode::start(Arc::clone(&store.store), Arc::new(InProcess::new()), NodeSettings::default())
                .await?;
        let (calls, mut heard) = mpsc::unbounded_channel();
        let bank = Bank { seen: Arc::default(), calls, deadly: "reserve" };
        let code = bank.clone();
        let workflow = move |ctx: Ctx, (): ()| order(ctx, code.clone(), false);
        let worker = RunningWorker::start(node.worker().register("order", workflow.clone()))?;
        let run = node.client()?.workflow::<u32>("order").start(&()).await?;
        while heard.recv().await.is_some_and(|name| name != "reserve") {}
        run.cancel("changed my mind").await?;
        drop(worker);
        let _next = RunningWorker::start(node.worker().register("order", workflow))?;
        let Err(RunError::Ended { status, .. }) = run.result().await else { anyhow::bail!("not canceled") };
        assert_eq!(status, RunStatus::Canceled, "on {}", store.name);
        assert_eq!(["refund", "release", "ship"].map(|name| bank.happened(name)), [1, 1, 0]);
    }
    Ok(())
}
