//! F07: a worker is stopped in the middle of a step, past its lease, and goes on when the step has gone to another.

use std::time::Duration;

use anyhow::Context as _;
use everstep_chaos::case::{Case, Options};
use everstep_chaos::journal::under_way;
use everstep_chaos::pace;
use everstep_chaos::topology::StoreKind;
use everstep_checker::format::Demand;
use rustix::process::Signal;

use crate::support::{LONG, drop_case, events, journal, layout, passes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_completion_of_a_worker_that_lost_the_run_is_refused() -> anyhow::Result<()> {
    let mut layout = layout("f07", 107, StoreKind::Sqlite);
    layout.lease = Duration::from_secs(1);
    let folder = layout.case.clone();
    let mut options = Options::of_fault(layout);
    options.demands = vec![Demand::Redelivered];
    let case = Case::start(options).await?;
    let worker = &case.topology().workers.first().context("no worker")?.process;
    let name = worker.program.name.clone();
    // Stopped within a step: looked at again once nothing of the worker moves.
    let mut stale = Vec::new();
    pace::wait_for("the worker is stopped within a step", LONG, || {
        if under_way(&folder, &name)?.is_empty() {
            return Ok(false);
        }
        worker.signal(Signal::STOP);
        stale = under_way(&folder, &name)?;
        if stale.is_empty() {
            worker.signal(Signal::CONT);
        }
        Ok(!stale.is_empty())
    })
    .await?;
    let first = stale.first().cloned().context("a step")?;
    pace::wait_for("the step runs again elsewhere", LONG, || {
        let again = |e: &&_| is_later(e, &first);
        Ok(journal(&folder)?.iter().find(again).is_some())
    })
    .await?;
    assert!(worker.signal(Signal::CONT));
    case.count("stop_worker", true);
    case.wait_moved(20, LONG).await?;
    passes(case).await?;
    let ends: Vec<u64> = events(&folder)?
        .iter()
        .filter(|(run, event)| *run == first.run_id && event["step_id"] == first.step)
        .filter(|(_, event)| event["kind"] == "StepCompleted" || event["kind"] == "StepFailed")
        // Earlier attempts may have failed under the same epoch.
        .filter(|(_, event)| event["attempt"].as_u64() >= Some(u64::from(first.attempt)))
        .filter_map(|(_, event)| event["epoch"].as_u64())
        .collect();
    assert!(!ends.is_empty(), "the step has no end");
    assert!(ends.iter().all(|epoch| *epoch > u64::from(first.epoch)), "{first:?} was recorded: {ends:?}");
    drop_case(&folder)
}

fn is_later(
    entry: &everstep_checker::format::JournalEntry,
    first: &everstep_checker::format::JournalEntry,
) -> bool {
    (&entry.run_id, entry.step) == (&first.run_id, first.step) && entry.epoch > first.epoch
}
