//! The drill of `docs/operations.md`: a backup is taken while runs are under way, everything dies, and the restored
//! place has what was acknowledged before the backup, and sees every run through.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use everstep_tests::servers::{PostgresServer, require};
use tokio::process::Command;

use crate::load::{self, Account, Clients, Told};
use crate::support::{Ended, Running, everstep, folder, run};

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

/// `admin backup`, which says what it has done.
async fn back_up(folder: &Path, database: &str, copy: &Path) -> anyhow::Result<Ended> {
    let copy = copy.display().to_string();
    run(folder, &["admin", "backup", &copy, "--database-url", database]).await
}

/// What a folder holds, without the locks.
fn files(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| !name.ends_with(".lock"));
    names.sort();
    Ok(names)
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
        let ended = back_up(here.path(), "sqlite:everstep.db", &copy).await?;
        ensure!(ended.code == Some(0) && ended.stderr.contains("checked"), "{ended:?}");
        ensure!(files(copies.path())? == ["copy.db"], "{:?}", files(copies.path()));
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

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_cannot_be_made_leaves_nothing_behind() -> anyhow::Result<()> {
    let (here, copies) = (folder()?, folder()?);
    let told = loaded(here.path(), "sqlite:everstep.db", async || Ok(())).await?;
    ensure!(told.answers() > 0);
    // In order, so that all is in one file.
    let node = server(here.path(), "sqlite:everstep.db").await?;
    ensure!(node.terminate().await? == Some(0), "no orderly end");
    let copy = copies.path().join("copy.db");
    let refused = async |database: &str, copy: &Path, code: i32, why: &str| {
        let ended = back_up(here.path(), database, copy).await?;
        ensure!(ended.code == Some(code) && ended.stderr.contains(why), "{why}: {ended:?}");
        anyhow::Ok(())
    };
    refused("postgres://127.0.0.1:1/x", &copy, 2, "pg_dump").await?;
    refused("sqlite:missing.db", &copy, 1, "there is no database").await?;
    std::fs::write(here.path().join("empty.db"), "")?;
    refused("sqlite:empty.db", &copy, 1, "no Everstep database").await?;
    std::fs::write(
        here.path().join("text.db"),
        "not a database, but long enough to be taken for one. ".repeat(99),
    )?;
    refused("sqlite:text.db", &copy, 1, "not a SQLite database").await?;
    refused("sqlite:everstep.db", &copies.path().join("no/such/folder.db"), 3, "folder").await?;
    // A page in the middle is damaged.
    let (file, torn) = (here.path().join("everstep.db"), here.path().join("torn.db"));
    let mut bytes = std::fs::read(&file)?;
    let from = bytes.len() / 2 / 4_096 * 4_096;
    bytes[from..from + 4_096].fill(0xff);
    std::fs::write(&torn, bytes)?;
    let ended = back_up(here.path(), "sqlite:torn.db", &copy).await?;
    ensure!(ended.code == Some(1), "{ended:?}");
    ensure!(files(copies.path())?.is_empty(), "{:?}", files(copies.path()));
    // What is there stays as it is, also under the name for what is not finished.
    let part = copies.path().join("copy.db.part");
    std::fs::write(&part, "somebody's")?;
    refused("sqlite:everstep.db", &copy, 1, "copy.db.part exists").await?;
    std::fs::rename(&part, &copy)?;
    refused("sqlite:everstep.db", &copy, 1, "copy.db exists").await?;
    ensure!(std::fs::read_to_string(&copy)? == "somebody's" && files(copies.path())? == ["copy.db"]);
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
