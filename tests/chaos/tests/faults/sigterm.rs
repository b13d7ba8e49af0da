//! F05: SIGTERM under load. The first is an orderly end, the second an end at once.

use std::time::Duration;

use everstep_chaos::case::{Case, Options};
use everstep_chaos::pace;
use everstep_chaos::topology::{DRAIN_MAX, StoreKind};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::support::{LONG, drop_case, layout, passes};

/// What a second SIGTERM exits with.
const INTERRUPTED: i32 = 130;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_ends_in_order_under_load_and_at_once_when_asked_twice() -> anyhow::Result<()> {
    let mut layout = layout("f05", 105, StoreKind::Sqlite);
    // The second SIGTERM of this test ends it with a code that is not 0.
    layout.may_end.insert("server-1".to_owned());
    let folder = layout.case.clone();
    let case = Case::start(Options::of_fault(layout)).await?;
    let Some(server) = case.topology().nodes.first().map(|node| &node.process) else { return Ok(()) };

    server.keep_down();
    assert!(server.signal(Signal::TERM));
    server.wait_down(DRAIN_MAX).await?;
    let ended = server.lives().pop().map(|life| life.status.code());
    assert_eq!(ended, Some(Some(0)), "an orderly end");
    server.want_up();
    server.wait_started(1, LONG).await?;
    case.wait_moved(20, LONG).await?;

    // A worker that holds runs and says nothing keeps the server waiting for what it has in flight.
    for worker in &case.topology().workers {
        assert!(worker.process.signal(Signal::STOP));
    }
    server.keep_down();
    let began = Instant::now();
    assert!(server.signal(Signal::TERM));
    // The second one must not overtake the first, whose handler makes the difference.
    pace::hold(Duration::from_millis(300)).await;
    let waited = server.signal(Signal::TERM);
    server.wait_down(Duration::from_secs(10)).await?;
    let ended = server.lives().pop().map(|life| life.status.code());
    let expected = if waited { INTERRUPTED } else { 0 };
    assert_eq!(ended, Some(Some(expected)), "after {:?}", began.elapsed());
    case.count("sigterm", true);
    passes(case).await?;
    drop_case(&folder)
}
