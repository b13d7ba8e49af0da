//! A link so slow that a worker's lease ends before the answer to its heartbeat comes: what it has given up by then
//! must go to somebody, although the answer says that the session lives.

use std::time::Duration;

use anyhow::Context as _;
use everstep_chaos::case::{Case, Options};
use everstep_chaos::pace;
use everstep_chaos::topology::StoreKind;
use everstep_faultproxy::{Direction, Fault, Rule};

use crate::support::{LONG, drop_case, layout, passes};

const LEASE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_given_up_before_a_late_answer_are_not_forgotten() -> anyhow::Result<()> {
    let mut layout = layout("late-answer", 150, StoreKind::Sqlite);
    (layout.lease, layout.workers) = (LEASE, 1);
    let folder = layout.case.clone();
    let mut options = Options::of_fault(layout);
    options.clients = 8;
    let case = Case::start(options).await?;
    let rules = case.topology().workers.first().context("a worker")?.to_server.rules();
    for late in [LEASE * 11 / 20, LEASE * 12 / 20, LEASE * 13 / 20] {
        // The lease is counted from the hello, whose answer comes late: little of it is left.
        let mute = rules.add(Rule::from(Fault::HalfOpen).direction(Direction::Down))?;
        rules.reset();
        pace::hold(late).await;
        // The first heartbeat, after a third of a lease, is within the rest; its answer is not.
        let slow =
            rules.add(Rule::from(Fault::Delay { ms: 500, jitter_ms: 0 }).direction(Direction::Down))?;
        rules.remove(mute)?;
        pace::hold(LEASE).await;
        rules.remove(slow)?;
        case.count("late_answer", rules.fired(slow) > 0);
        case.wait_moved(20, LONG).await?;
    }
    passes(case).await?;
    drop_case(&folder)
}
