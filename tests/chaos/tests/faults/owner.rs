//! F06: an owner is stopped past its lease, and goes on when another has taken over.

use std::time::Duration;

use anyhow::Context as _;
use everstep_chaos::case::{Case, FIGURES, Options};
use everstep_chaos::journal::under_way;
use everstep_chaos::pace;
use everstep_chaos::topology::StoreKind;
use everstep_checker::format::Demand;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{LONG, drop_case, events, has_servers, journal, layout, passes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_slept_past_its_lease_is_fenced() -> anyhow::Result<()> {
    if !has_servers()? {
        return Ok(());
    }
    let mut layout = layout("f06", 106, StoreKind::Postgres);
    layout.lease = Duration::from_secs(1);
    let (folder, lease) = (layout.case.clone(), layout.lease);
    let mut options = Options::of_fault(layout);
    options.clients = 8;
    options.demands = vec![Demand::Redelivered];
    let case = Case::start(options).await?;
    let workers = &case.topology().workers;
    let worker = workers.first().context("no worker")?;
    let (name, server) = (worker.process.program.name.clone(), &case.topology().nodes[worker.node].process);
    // With a step under way, whose report the server will find when it goes on.
    pace::wait_for("a step of the worker is under way", LONG, || Ok(!under_way(&folder, &name)?.is_empty()))
        .await?;
    assert!(server.signal(Signal::STOP));
    pace::hold(Duration::from_millis(400)).await;
    assert!(worker.process.signal(Signal::STOP));
    let held_under = journal(&folder)?.iter().map(|entry| entry.mono_ns).max().unwrap_or(0);
    // The other node closes the session once its lease is over, and its workers take the runs.
    pace::hold(lease).await;
    pace::wait_for("the other node works on", LONG, || {
        Ok(journal(&folder)?.iter().any(|entry| entry.mono_ns > held_under && entry.epoch > 1))
    })
    .await?;
    assert!(server.signal(Signal::CONT));
    pace::hold(Duration::from_millis(500)).await;
    assert!(worker.process.signal(Signal::CONT));
    case.count("stop_owner", true);
    case.wait_moved(20, LONG).await?;
    passes(case).await?;
    let lost = events(&folder)?.iter().filter(|(_, event)| event["reason"] == "lost").count();
    assert!(lost > 0, "no run was taken away");
    // Whether by a lost race or by an epoch: the late writes of the first owner were refused.
    let figures: Value = serde_json::from_slice(&std::fs::read(folder.join(FIGURES))?)?;
    let sum = |name: &str| -> u64 {
        figures.as_object().into_iter().flatten().filter_map(|(_, life)| life[name].as_u64()).sum()
    };
    let refused = sum("everstep_commits_fenced_total") + sum("everstep_append_conflicts_total");
    assert!(refused > 0, "nothing was refused: {figures}");
    drop_case(&folder)
}
