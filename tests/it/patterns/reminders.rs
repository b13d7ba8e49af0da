//! A month of reminders, with a short day, over workers that are lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use everstep::{Ctx, StepError, WorkerBuilder};
use everstep_core::RunStatus;
use everstep_dispatch::InProcess;
use everstep_example_patterns::reminders::{Mail, Plan, WORKFLOW, remind};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use tokio::sync::mpsc;

use crate::stores;

const DAYS: u32 = 30;

/// A post office that delivers each key once.
struct Office {
    delivered: Mutex<BTreeMap<String, u32>>,
    asked: mpsc::UnboundedSender<u32>,
}

impl Mail for Office {
    async fn send(&self, key: String, _to: String, number: u32) -> Result<(), StepError> {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner).insert(key, number);
        let _ = self.asked.send(number);
        Ok(())
    }
}

fn hosting(node: &RunningNode, office: &Arc<Office>) -> WorkerBuilder {
    let office = Arc::clone(office);
    node.worker().register(WORKFLOW, move |ctx: Ctx, plan| remind(ctx, Arc::clone(&office), plan))
}

#[tokio::test]
async fn a_month_of_reminders_goes_through_runs_and_workers() -> anyhow::Result<()> {
    for store in stores::all().await? {
        let hints = Arc::new(InProcess::new());
        let node = RunningNode::start(Arc::clone(&store.store), hints, NodeSettings::default()).await?;
        let (asked, mut sent) = mpsc::unbounded_channel();
        let office = Arc::new(Office { delivered: Mutex::default(), asked });
        let mut worker = RunningWorker::start(hosting(&node, &office))?;
        let plan = Plan::new("ada", DAYS, Duration::from_millis(20));
        let client = node.client()?;
        let run = client.workflow::<u32>(WORKFLOW).workflow_id("reminders/ada").start(&plan).await?;
        for last in [7, 18] {
            while sent.recv().await.is_some_and(|number| number != last) {}
            drop(worker);
            worker = RunningWorker::start(hosting(&node, &office))?;
        }
        assert_eq!(run.result().await?, DAYS, "on {}", store.name);
        assert_eq!(run.describe().await?.status, RunStatus::Continued);
        assert_eq!(client.latest::<u32>("reminders/ada").describe().await?.status, RunStatus::Completed);
        let delivered = office.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        let mut numbers: Vec<u32> = delivered.values().copied().collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=DAYS).collect::<Vec<_>>(), "on {}", store.name);
        drop(worker);
    }
    Ok(())
}
