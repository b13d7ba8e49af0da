//! F37: the collector of spans is not there, or takes connections and says nothing.

use std::net::TcpListener;

use everstep_chaos::case::{Case, Options};
use everstep_chaos::topology::StoreKind;
use everstep_tests::servers::free_port;

use crate::support::{LONG, drop_case, has_servers, layout, passes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_or_mute_stops_nothing() -> anyhow::Result<()> {
    if !has_servers()? {
        return Ok(());
    }
    let mut layout = layout("f37", 137, StoreKind::Postgres);
    let folder = layout.case.clone();
    // The kernel completes connections up to the backlog; nobody ever reads from them.
    let mute = TcpListener::bind("127.0.0.1:0")?;
    let ports = [("server-1", free_port()?), ("server-2", mute.local_addr()?.port())];
    for (server, port) in ports {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), format!("http://127.0.0.1:{port}"));
        layout.environments.insert(server.to_owned(), vec![endpoint]);
    }
    let case = Case::start(Options::of_fault(layout)).await?;
    case.wait_moved(200, LONG).await?;
    mute.set_nonblocking(true)?;
    assert!(mute.accept().is_ok(), "nobody tried to export");
    case.count("no_collector", true);
    // The end of a case asks that each server ends in order within its time.
    passes(case).await?;
    drop_case(&folder)
}
