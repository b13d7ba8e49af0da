//! F30: the system takes a server's memory, and with it its life.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use everstep_chaos::case::{Case, Options};
use everstep_chaos::topology::StoreKind;

use crate::support::{LONG, drop_case, layout, passes, skipped};

/// A group of processes with a limit; removed with this value.
struct Group(PathBuf);

impl Group {
    /// Version 1 or 2 of control groups. `None` where this user has neither.
    fn make(name: &str) -> Option<Self> {
        let roots = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(Path::new);
        let root = roots.into_iter().find(|root| root.join("cgroup.procs").exists())?;
        let group = Self(root.join(format!("everstep-{name}-{}", std::process::id())));
        fs::create_dir(&group.0).ok()?;
        let limited = ["memory.limit_in_bytes", "memory.max"]
            .iter()
            .any(|file| group.0.join(file).exists() && fs::write(group.0.join(file), "8388608").is_ok());
        limited.then_some(group)
    }

    fn add(&self, pid: i32) -> anyhow::Result<()> {
        // What it has already is charged with it where the kernel does that; what it takes from now on is anyway.
        let _ = fs::write(self.0.join("memory.move_charge_at_immigrate"), "1");
        Ok(fs::write(self.0.join("cgroup.procs"), pid.to_string())?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_for_its_memory_loses_nothing() -> anyhow::Result<()> {
    let Some(group) = Group::make("f30") else { return skipped("no memory control group") };
    let mut layout = layout("f30", 130, StoreKind::Sqlite);
    layout.may_end.insert("server-1".to_owned());
    let folder = layout.case.clone();
    let case = Case::start(Options::of_fault(layout)).await?;
    let server = &case.topology().nodes.first().context("a node")?.process;
    group.add(server.pid().context("it runs")?)?;
    server.wait_started(1, LONG).await?;
    let life = server.lives().pop().context("a life")?;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&life.status), Some(9), "{life:?}");
    case.count("out_of_memory", true);
    case.wait_moved(20, LONG.max(Duration::from_secs(30))).await?;
    passes(case).await?;
    drop_case(&folder)
}
