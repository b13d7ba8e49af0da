//! F25: every process has a monotonic clock of its own, days from the others'. Leases are told as durations, so no
//! process may compare another's clock with its own.

use std::process::Command;

use everstep_chaos::case::{Case, Options};
use everstep_chaos::pace;
use everstep_chaos::topology::{StoreKind, Topology};
use rustix::process::Signal;

use crate::support::{LONG, drop_case, has_servers, layout, passes, skipped};

/// Seconds by which the monotonic clock of a process is ahead of the machine's.
const AHEAD: [(&str, u64); 4] =
    [("server-1", 90_000), ("server-2", 8_000_000), ("worker-1", 3_000), ("worker-2", 400_000_000)];

fn unshare(seconds: u64) -> Vec<String> {
    let words = format!("unshare --time --monotonic {seconds} --boottime {seconds}");
    words.split(' ').map(ToOwned::to_owned).collect()
}

/// Whether this user may give a process another clock on this kernel.
fn may() -> bool {
    let words = unshare(1_000_000_000);
    let uptime = Command::new(&words[0]).args(&words[1..]).args(["cat", "/proc/uptime"]).output();
    let seconds = uptime.ok().and_then(|said| {
        let text = String::from_utf8(said.stdout).ok()?;
        text.split('.').next()?.parse::<u64>().ok()
    });
    seconds.is_some_and(|seconds| seconds >= 1_000_000_000)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn monotonic_clocks_that_differ_end_no_lease_and_keep_none() -> anyhow::Result<()> {
    if !has_servers()? {
        return Ok(());
    }
    if !may() {
        return skipped("no process may have a monotonic clock of its own here");
    }
    let mut layout = layout("f25", 125, StoreKind::Postgres);
    layout.launchers = AHEAD.map(|(name, seconds)| (name.to_owned(), unshare(seconds))).into();
    let (folder, lease) = (layout.case.clone(), layout.lease);
    let case = Case::start(Options::of_fault(layout)).await?;
    for (name, seconds) in AHEAD {
        assert!(is_ahead(case.topology(), name, seconds)?, "the clock of {name} is the machine's");
    }
    case.wait_moved(30, LONG).await?;
    // A lease that ends, and a node that takes over what another one had.
    let (worker, node) = (&case.topology().workers[0].process, &case.topology().nodes[1].process);
    worker.signal(Signal::STOP);
    pace::hold(lease * 2).await;
    worker.signal(Signal::CONT);
    case.count("stop_worker", true);
    case.wait_moved(20, LONG).await?;
    node.kill_9().await?;
    case.wait_moved(20, LONG).await?;
    node.want_up();
    case.count("kill_server", true);
    case.wait_moved(20, LONG).await?;
    passes(case).await?;
    drop_case(&folder)
}

fn is_ahead(topology: &Topology, name: &str, seconds: u64) -> anyhow::Result<bool> {
    let of_name = |process: &&everstep_chaos::process::Supervised| process.program.name == name;
    let pid = topology.processes().find(of_name).and_then(everstep_chaos::process::Supervised::pid);
    let Some(pid) = pid else { return Ok(false) };
    let offsets = std::fs::read_to_string(format!("/proc/{pid}/timens_offsets"))?;
    let line = offsets.lines().find(|line| line.starts_with("monotonic"));
    Ok(line.is_some_and(|line| line.split_whitespace().nth(1) == Some(&seconds.to_string())))
}
