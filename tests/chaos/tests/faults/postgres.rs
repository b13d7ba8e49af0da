//! F08: Postgres, or one of its processes, stands still.

use std::time::Duration;

use everstep_chaos::case::{Case, Options};
use everstep_chaos::pace;
use everstep_chaos::topology::{StoreKind, held};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{LONG, drop_case, has_servers, layout, passes};

fn signal(pids: &[u32], signal: Signal) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?)) {
        // One of them may have ended meanwhile.
        let _ = kill_process(pid, signal);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_stood_still_is_taken_up_again() -> anyhow::Result<()> {
    if !has_servers()? {
        return Ok(());
    }
    let layout = layout("f08", 108, StoreKind::Postgres);
    let folder = layout.case.clone();
    let case = Case::start(Options::of_fault(layout)).await?;
    let Some(backend) = case.topology().backend.clone() else { return Ok(()) };

    // One connection's process, which may well hold the locks of an append.
    let backends = case.topology().backends().await?;
    for one in backends.chunks(1).take(3) {
        signal(one, Signal::STOP);
        pace::hold(Duration::from_secs(2)).await;
        signal(one, Signal::CONT);
        case.count("stop_backend", true);
    }
    case.wait_moved(20, LONG).await?;

    // All of it, longer than any lease.
    let mut all = case.topology().backends().await?;
    all.push(held(&backend.postgres).pid());
    signal(&all, Signal::STOP);
    pace::hold(Duration::from_secs(8)).await;
    signal(&all, Signal::CONT);
    case.count("stop_postgres", true);
    // The pools of both nodes have connections again that work.
    case.wait_moved(40, LONG).await?;
    let idle = idle_in_transaction(&case).await?;
    assert_eq!(idle, 0, "sessions are left in a transaction");
    passes(case).await?;
    drop_case(&folder)
}

/// INV-46.
async fn idle_in_transaction(case: &Case) -> anyhow::Result<i64> {
    use sqlx::Connection as _;
    let mut connection = sqlx::PgConnection::connect(&case.topology().source.url).await?;
    let count = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' \
         AND state_change < clock_timestamp() - interval '5 s'",
    )
    .fetch_one(&mut connection)
    .await?;
    connection.close().await?;
    Ok(count)
}
