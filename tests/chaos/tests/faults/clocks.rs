//! F24: a server's wall clock is an hour ahead, then an hour back.

use std::time::Duration;

use everstep_chaos::case::{Case, Options};
use everstep_chaos::nemesis::clock_library;
use everstep_chaos::pace;
use everstep_chaos::topology::StoreKind;

use crate::support::{LONG, drop_case, has_servers, layout, passes, skipped};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wall_clock_that_is_set_moves_no_timer() -> anyhow::Result<()> {
    if !has_servers()? {
        return Ok(());
    }
    if clock_library().is_none() {
        return skipped("libfaketime is not installed");
    }
    let mut layout = layout("f24", 124, StoreKind::Postgres);
    layout.clocks = true;
    let folder = layout.case.clone();
    let case = Case::start(Options::of_fault(layout)).await?;
    for (node, offset) in [(0, "+3600s"), (1, "-3600s"), (0, "-3600s")] {
        case.topology().clock(node)?.set(offset)?;
        // The library looks once a second.
        pace::hold(Duration::from_millis(1_500)).await;
        case.wait_moved(15, LONG).await?;
        // A line of the log, whose time is the wall clock's.
        if let Some(link) = case.topology().nodes.get(node).and_then(|node| node.to_nats.as_ref()) {
            link.rules().reset();
        }
        case.wait_moved(15, LONG).await?;
        case.topology().clock(node)?.set("+0")?;
        case.count("set_clock", true);
    }
    passes(case).await?;
    for server in ["server-1", "server-2"] {
        let log = std::fs::read_to_string(folder.join(format!("{server}.log")))?;
        let hours = hours(&log);
        assert!(hours.len() > 1, "the clock of {server} was never off: {hours:?}");
    }
    drop_case(&folder)
}

/// The hours of the day that a log has: `2026-11-21T10:43:07.123456Z ...`.
fn hours(log: &str) -> std::collections::BTreeSet<&str> {
    log.lines()
        .filter_map(|line| line.split_once('T')?.1.split(':').next())
        .filter(|h| h.len() == 2)
        .collect()
}
