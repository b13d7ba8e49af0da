//! F07: a worker is stopped in the middle of a step, past its lease, and goes on when the step has gone to another.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use everstep_chaos::case::{Case, Options};
use everstep_chaos::journal::under_way;
use everstep_chaos::pace;
use everstep_chaos::process::Supervised;
use everstep_chaos::topology::StoreKind;
use everstep_checker::format::{Demand, JournalEntry};
use rustix::process::Signal;

use crate::support::{LONG, drop_case, events, journal, layout, passes};

/// How soon the step of a worker that is stopped runs elsewhere, if it does: after the lease, and some sweeps.
const AGAIN_WITHIN: Duration = Duration::from_secs(10);
/// Steps that are tried.
const TRIES: u32 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_completion_of_a_worker_that_lost_the_run_is_refused() -> anyhow::Result<()> {
    let mut layout = layout("f07", 107, StoreKind::Sqlite);
    layout.lease = Duration::from_secs(1);
    let folder = layout.case.clone();
    let mut options = Options::of_fault(layout);
    options.demands = vec![Demand::Redelivered];
    let case = Case::start(options).await?;
    let worker = &case.topology().workers.first().context("no worker")?.process;
    let mut first = None;
    // A step of an arm that has lost meanwhile never runs again; then another one is looked for.
    for _ in 0..TRIES {
        first = stopped_within_a_step(&folder, worker).await?;
        if first.is_some() {
            break;
        }
        worker.signal(Signal::CONT);
        case.wait_moved(10, LONG).await?;
    }
    let first = first.context("no step that another worker took up")?;
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

/// Stops a worker within a step, for so long that the step runs again elsewhere; `None` when no such step does.
async fn stopped_within_a_step(folder: &Path, worker: &Supervised) -> anyhow::Result<Option<JournalEntry>> {
    let name = &worker.program.name;
    // Looked at again once nothing of the worker moves.
    let mut stale = Vec::new();
    pace::wait_for("the worker is stopped within a step", LONG, || {
        if under_way(folder, name)?.is_empty() {
            return Ok(false);
        }
        worker.signal(Signal::STOP);
        stale = under_way(folder, name)?;
        if stale.is_empty() {
            worker.signal(Signal::CONT);
        }
        Ok(!stale.is_empty())
    })
    .await?;
    let mut first = None;
    let again = pace::wait_for("a step runs again elsewhere", AGAIN_WITHIN, || {
        let entries = journal(folder)?;
        first = stale.iter().find(|step| entries.iter().any(|entry| is_later(entry, step))).cloned();
        Ok(first.is_some())
    });
    // What is wrong with the journal itself, the next look says as well.
    let _ = again.await;
    Ok(first)
}

fn is_later(entry: &JournalEntry, first: &JournalEntry) -> bool {
    (&entry.run_id, entry.step) == (&first.run_id, first.step) && entry.epoch > first.epoch
}
