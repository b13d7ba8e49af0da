//! F04: NATS dies, and comes again with or without what it had.

use everstep_chaos::case::{Case, Options};
use everstep_chaos::topology::{StoreKind, blocking, held};

use crate::support::{LONG, drop_case, has_servers, layout, passes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_go_on_without_nats_and_after_it_lost_everything() -> anyhow::Result<()> {
    if !has_servers()? {
        return Ok(());
    }
    let layout = layout("f04", 104, StoreKind::Postgres);
    let folder = layout.case.clone();
    let case = Case::start(Options::of_fault(layout)).await?;
    let Some(backend) = case.topology().backend.clone() else { return Ok(()) };
    for wiped in [false, true] {
        let nats = backend.nats.clone();
        blocking(move || held(&nats).kill_9()).await?;
        // INV-42: the sweep does it alone, slower.
        case.wait_moved(30, LONG).await?;
        let nats = backend.nats.clone();
        blocking(move || {
            let mut nats = held(&nats);
            if wiped { nats.start_again_empty() } else { nats.start_again() }
        })
        .await?;
        case.count(if wiped { "wipe_nats" } else { "kill_nats" }, true);
        case.wait_moved(30, LONG).await?;
    }
    passes(case).await?;
    drop_case(&folder)
}
