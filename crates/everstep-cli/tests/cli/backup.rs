//! The drill of `docs/operations.md`: a backup is taken while runs are under way, everything dies, and the restored
//! place has what was acknowledged before the backup, and sees every run through.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use everstep_tests::servers::{PostgresServer, require};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tokio::process::Command;

use crate::load::{self, Account, Clients, Told};
use crate::support::{Running, everstep, folder};

/// Answers before the backup begins, and after it is done: it is taken under load.
const BEFORE: usize = 80;
const AFTER: usize = 40;

async fn server(folder: &Path, database: &str) -> anyhow::Result<Running> {
    let arguments = ["server", "--lease", "2s", "--listen", "127.0.0.1:0", "--allow-fsync-off"];
    Running::server({
        let mut command = everstep(folder, &arguments);
        command.env("EVERSTEP_DATABASE_URL", database);
        command
    })
    .await
}

/// Loads a node on `database`, calls `back_up` in the middle, and kills all. Gives what clients had been told before
/// the backup began.
async fn loaded(
    folder: &Path,
    database: &str,
    back_up: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Told> {
    let (node, account) = (server(folder, database).await?, Account::default());
    let worker = load::worker(&node.address, &account)?;
    let clients = Clients::start(&node.address, "backup", &account)?;
    account.answers(BEFORE).await?;
    let told = account.so_far();
    back_up().await?;
    account.answers(account.so_far().answers() + AFTER).await?;
    clients.stop().await.context("the backup disturbed a client")?;
    node.kill_9().await?;
    drop(worker);
    Ok(told)
}

/// What is restored as `database` has what clients had been told, and goes on.
async fn goes_on(folder: &Path, database: &str, told: &Told) -> anyhow::Result<()> {
    let runs = load::rebuild_check(folder, database).await?;
    ensure!(runs >= told.started.len(), "{runs} runs in the backup of {}", told.started.len());
    let (node, account) = (server(folder, database).await?, Account::default());
    let losses = load::losses(&node.address, told).await?;
    ensure!(losses.is_empty(), "{losses:#?}");
    let worker = load::worker(&node.address, &account)?;
    load::finish(&node.address).await?;
    ensure!(!account.so_far().effects.is_empty(), "no run was open in the backup");
    drop(worker);
    ensure!(node.terminate().await? == Some(0), "no orderly end");
    ensure!(load::rebuild_check(folder, database).await? == runs, "runs came or went");
    Ok(())
}

/// A backup by SQLite's own `VACUUM INTO`, over a connection that cannot write to the original.
async fn vacuum_into(database: &Path, copy: &Path) -> anyhow::Result<()> {
    let options = SqliteConnectOptions::new().filename(database).read_only(true);
    let mut connection = options.connect().await?;
    let statement = format!("VACUUM INTO '{}'", copy.display());
    sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

/// The same by the programs that the documentation names, where they are there.
async fn by_other_programs(database: &Path, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let copy = |name: &str| folder.join(name);
    let dot_backup = format!(".backup {}", copy("dot.db").display());
    let vacuum = format!("VACUUM INTO '{}'", copy("vacuum.db").display());
    let python = format!(
        "import sqlite3; sqlite3.connect('file:{}?mode=ro', uri=True).execute(\"VACUUM INTO '{}'\")",
        database.display(),
        copy("python.db").display()
    );
    let database = database.display().to_string();
    let mut copies = Vec::new();
    for (program, arguments, name) in [
        ("sqlite3", vec!["-readonly", &database, &dot_backup], "dot.db"),
        ("sqlite3", vec!["-readonly", &database, &vacuum], "vacuum.db"),
        ("python3", vec!["-c", &python], "python.db"),
    ] {
        match Command::new(program).args(&arguments).stdin(Stdio::null()).output().await {
            Ok(done) => {
                ensure!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
                copies.push(copy(name));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(copies)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_backup_taken_under_load_goes_on() -> anyhow::Result<()> {
    let (here, copies) = (folder()?, folder()?);
    let (database, copy) = (here.path().join("everstep.db"), copies.path().join("copy.db"));
    let mut taken = vec![copy.clone()];
    let told = loaded(here.path(), "sqlite:everstep.db", async || {
        vacuum_into(&database, &copy).await?;
        taken.extend(by_other_programs(&database, copies.path()).await?);
        Ok(())
    })
    .await?;
    for copy in taken {
        let there = folder()?;
        std::fs::copy(&copy, there.path().join("restored.db"))?;
        goes_on(there.path(), "sqlite:restored.db", &told).await.with_context(|| format!("{copy:?}"))?;
    }
    Ok(())
}

/// The other way of the documentation: both files of a node that was killed.
#[tokio::test(flavor = "multi_thread")]
async fn the_two_files_of_a_killed_node_go_on() -> anyhow::Result<()> {
    let (here, there) = (folder()?, folder()?);
    let told = loaded(here.path(), "sqlite:everstep.db", async || Ok(())).await?;
    for name in ["everstep.db", "everstep.db-wal"] {
        std::fs::copy(here.path().join(name), there.path().join(name))?;
    }
    goes_on(there.path(), "sqlite:everstep.db", &told).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_backup_taken_under_load_goes_on() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let (here, mut old) = (folder()?, PostgresServer::start()?);
    let database = old.create_database().await?;
    everstep_store_postgres::migrate(&database).await?;
    let dump = here.path().join("everstep.dump");
    let told = loaded(here.path(), &database, async || {
        // The dump comes over the pipe: the server's user need not be able to write here.
        let mut pg_dump = Command::from(old.command("pg_dump"));
        let done = pg_dump.args(["-Fc", &database]).output().await.context("pg_dump")?;
        ensure!(done.status.success(), "pg_dump: {}", String::from_utf8_lossy(&done.stderr));
        Ok(std::fs::write(&dump, done.stdout)?)
    })
    .await?;
    old.kill_9()?;
    drop(old);

    let (there, new) = (folder()?, PostgresServer::start()?);
    let database = new.create_database().await?;
    let mut pg_restore = Command::from(new.command("pg_restore"));
    pg_restore.args(["--exit-on-error", "-d", &database]).stdin(std::fs::File::open(&dump)?);
    let done = pg_restore.output().await.context("pg_restore")?;
    ensure!(done.status.success(), "pg_restore: {}", String::from_utf8_lossy(&done.stderr));
    goes_on(there.path(), &database, &told).await
}
