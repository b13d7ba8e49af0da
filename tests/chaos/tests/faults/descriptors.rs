//! F31: a server has no file descriptors left.

use anyhow::Context as _;
use everstep_chaos::case::{Case, Options};
use everstep_chaos::pace;
use everstep_chaos::topology::StoreKind;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::net::TcpStream;

use crate::support::{LONG, drop_case, layout, passes};

const LIMIT: u64 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_accept_loop_survives_that_there_are_no_descriptors() -> anyhow::Result<()> {
    let layout = layout("f31", 131, StoreKind::Sqlite);
    let folder = layout.case.clone();
    let case = Case::start(Options::of_fault(layout)).await?;
    let node = case.topology().nodes.first().context("a node")?;
    let pid = node.process.pid().context("it runs")?;
    // The hard limit stays: only the system's owner could raise it again.
    let limit = Rlimit { current: Some(LIMIT), maximum: getrlimit(Resource::Nofile).maximum };
    let before = prlimit(Pid::from_raw(pid), Resource::Nofile, limit)?;
    // The kernel takes connections that the server cannot: it accepts as long as it may, and then not.
    let mut held = Vec::new();
    for _ in 0..2 * LIMIT {
        held.push(TcpStream::connect(("127.0.0.1", node.port)).await?);
    }
    let open = || anyhow::Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64);
    pace::wait_for("no descriptor is left", LONG, || Ok(open()? >= LIMIT - 1)).await?;
    // A few may have had higher numbers already.
    let open = open()?;
    assert!(open < LIMIT + 16, "{open} descriptors: not limited");
    // Clients that are connected are served on.
    case.wait_moved(10, LONG).await?;
    drop(held);
    prlimit(Pid::from_raw(pid), Resource::Nofile, before)?;
    // And new ones are taken again.
    let body = tokio::time::timeout(LONG, everstep_chaos::scrape::get(node.port, "/healthz")).await??;
    assert!(body.contains("alive"), "{body}");
    assert_eq!(node.process.pid(), Some(pid), "the server ended");
    case.count("no_descriptors", true);
    passes(case).await?;
    drop_case(&folder)
}
