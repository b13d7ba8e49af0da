//! F01: SIGKILL to a server at random instants.

use std::time::Duration;

use everstep_chaos::case::{Case, Options};
use everstep_chaos::dice::{Dice, Stream};
use everstep_chaos::pace;
use everstep_chaos::topology::{Layout, StoreKind};

use crate::support::{LONG, drop_case, has_servers, layout, passes};

const KILLS: u64 = 6;

async fn survives(layout: Layout) -> anyhow::Result<()> {
    let folder = layout.case.clone();
    let mut dice = Dice::new(layout.seed, Stream::Victims, 0);
    let case = Case::start(Options::of_fault(layout)).await?;
    for _ in 0..KILLS {
        // Somewhere within the work that clients have going, and not on the clock's grid.
        case.wait_moved(dice.between(1, 20), LONG).await?;
        pace::hold(Duration::from_micros(dice.below(30_000))).await;
        let nodes = &case.topology().nodes;
        let victim = usize::try_from(dice.below(nodes.len() as u64))?;
        let Some(node) = nodes.get(victim) else { continue };
        let alive = node.process.pid().is_some();
        node.process.kill_9().await?;
        node.process.want_up();
        case.count("kill_server", alive);
    }
    let kills: usize = case.topology().nodes.iter().map(|node| node.process.lives().len()).sum();
    assert!(kills as u64 >= KILLS, "{kills} lives ended");
    let verdict = passes(case).await?;
    assert!(verdict.totals["runs_closed"] > 20, "{:?}", verdict.totals);
    drop_case(&folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_on_sqlite() -> anyhow::Result<()> {
    survives(layout("f01-sqlite", 101, StoreKind::Sqlite)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_on_postgres() -> anyhow::Result<()> {
    if !has_servers()? {
        return Ok(());
    }
    survives(layout("f01-postgres", 102, StoreKind::Postgres)).await
}
