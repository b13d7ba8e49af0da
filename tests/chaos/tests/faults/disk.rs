//! F17 to F19: the disk is full, and has space again later.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use everstep_chaos::case::{Case, Options};
use everstep_chaos::mount::SmallDisk;
use everstep_chaos::pace;
use everstep_chaos::topology::{Backend, StoreKind, blocking, held};
use sqlx::{Connection as _, PgConnection};

use crate::support::{LONG, drop_case, errors, has_servers, layout, passes, skipped};

/// How long there is no space.
const FULL: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_sqlite_loses_nothing() -> anyhow::Result<()> {
    let mut layout = layout("f19", 119, StoreKind::Sqlite);
    let folder = layout.case.clone();
    let place = tempfile::tempdir()?;
    let Some(disk) = SmallDisk::mount(place.path(), 64)? else { return skipped("may not mount a tmpfs") };
    layout.sqlite = Some(place.path().join("everstep.db"));
    let case = Case::start(Options::of_fault(layout)).await?;
    let server = &case.topology().nodes.first().context("a node")?.process;
    let pid = server.pid();
    case.wait_moved(20, LONG).await?;
    disk.fill()?;
    // The log file is written over as long as it can be moved into the tables, which takes no space for a while.
    let told = |error: &String| error.starts_with("STORE_EXHAUSTED");
    pace::wait_for("somebody is told", LONG, || Ok(errors(&folder)?.iter().any(told))).await?;
    let log = std::fs::read_to_string(server.program.log())?;
    assert!(log.contains("database or disk is full"), "it was for another reason");
    pace::hold(FULL).await;
    disk.empty()?;
    case.count("disk_full", true);
    case.wait_moved(40, LONG).await?;
    assert_eq!(server.pid(), pid, "the server ended for want of space");
    let unknown = errors(&folder)?.into_iter().find(|error| error.starts_with("OUTCOME_UNKNOWN"));
    assert_eq!(unknown, None, "what did not fit was not written");
    let log = std::fs::read_to_string(server.program.log())?;
    let said = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    let (full, room) = (said("the database has no room"), said("the database has room again"));
    assert_eq!(full, room, "it is said when it changes");
    assert!(!log.contains("reopening the database"), "there was nothing to settle");
    passes(case).await?;
    drop_case(&folder)
}

/// Stops Postgres, does something to its folder, and starts it again.
async fn refurbish(
    backend: &Backend,
    work: impl FnOnce(&Path) -> anyhow::Result<Option<SmallDisk>> + Send + 'static,
) -> anyhow::Result<Option<SmallDisk>> {
    let postgres = backend.postgres.clone();
    blocking(move || {
        let mut postgres = held(&postgres);
        postgres.stop_immediate()?;
        let disk = work(&postgres.folder().join("data"))?;
        postgres.start_again()?;
        Ok(disk)
    })
    .await
}

/// Puts a folder on a disk of its own; a link stands in its place.
fn onto_disk(folder: &Path, mib: u64) -> anyhow::Result<Option<SmallDisk>> {
    let place = folder.with_extension("disk");
    let Some(disk) = SmallDisk::mount(&place, mib)? else { return Ok(None) };
    disk.take(folder)?;
    std::fs::rename(folder, folder.with_extension("before"))?;
    std::os::unix::fs::symlink(&place, folder)?;
    Ok(Some(disk))
}

/// Postgres writes over old segments of its log as long as it has some; each call here takes one away.
async fn use_up(url: &str, what: &str) {
    let mut connection: Option<PgConnection> = None;
    loop {
        pace::hold(Duration::from_millis(50)).await;
        if what != "pg_wal" {
            continue;
        }
        let Some(open) = &mut connection else {
            connection = PgConnection::connect(url).await.ok();
            continue;
        };
        let next = sqlx::query("SELECT pg_logical_emit_message(true, '', 'x'), pg_switch_wal()");
        if next.execute(open).await.is_err() {
            connection = None;
        }
    }
}

async fn survives(test: &str, seed: u64, what: &'static str, mib: u64) -> anyhow::Result<()> {
    if !has_servers()? {
        return Ok(());
    }
    let layout = layout(test, seed, StoreKind::Postgres);
    let folder = layout.case.clone();
    let case = Case::start(Options::of_fault(layout)).await?;
    let backend = case.topology().backend.clone().context("Postgres")?;
    let Some(disk) = refurbish(&backend, move |data| onto_disk(&data.join(what), mib)).await? else {
        return skipped("may not mount a tmpfs");
    };
    case.wait_moved(20, LONG).await?;
    disk.fill()?;
    let full = || Ok(held(&backend.postgres).log_tail().contains("No space left on device"));
    let using_up = use_up(&case.topology().source.url, what);
    tokio::select! {
        met = pace::wait_for("Postgres has no space", LONG, full) => met?,
        () = using_up => {}
    }
    pace::hold(FULL).await;
    disk.empty()?;
    let said = held(&backend.postgres).log_tail();
    case.count("disk_full", said.contains("No space left on device"));
    if what == "pg_wal" {
        // Postgres gives up for good when it cannot even recover.
        refurbish(&backend, |_| Ok(None)).await?;
    }
    case.wait_moved(40, LONG).await?;
    passes(case).await?;
    drop_case(&folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_tables_of_postgres_loses_nothing() -> anyhow::Result<()> {
    survives("f17", 117, "base", 128).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_wal_of_postgres_loses_nothing() -> anyhow::Result<()> {
    survives("f18", 118, "pg_wal", 192).await
}
