//! Opening and closing a database file.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use everstep_fault::{Bug, planted};
use everstep_store::Error;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, SqliteConnection};

use crate::clock::Clock;
use crate::error::before_commit;
use crate::lock::FileLock;
use crate::wal;
use crate::writer::Writer;

static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations/sqlite");

/// Older versions can corrupt a WAL database when a checkpoint and a commit meet.
const VERSION_MIN: (u32, u32, u32) = (3, 51, 3);
/// Only a program that is not Everstep can hold the file for longer than a moment.
const BUSY_TIMEOUT: StdDuration = StdDuration::from_secs(1);
/// Statements kept prepared per connection: every text of [`crate::sql`] that occurs.
const STATEMENTS_MAX: usize = 512;
/// Connections that read.
const READERS_MAX: u32 = 4;

/// An Everstep store in one SQLite file.
///
/// Clones share the connections. The file stays locked until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    /// `None` when the store was opened to be read only.
    pub(crate) writer: Option<Arc<Writer>>,
    pub(crate) readers: SqlitePool,
    pub(crate) clock: Clock,
}

impl SqliteStore {
    /// Opens the database at `path`, or makes it, and brings its schema up to date. The folder must exist.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when another process has it open or the file cannot be opened or written,
    /// [`Error::Schema`] when it is newer than this binary or belongs to another program,
    /// [`Error::Corrupt`] when it is no SQLite database, or its write-ahead log is damaged.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        let path = resolve(path)?;
        let lock = FileLock::take(&path)?;
        refuse_damaged_wal(&path).await?;
        let options = options(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(if planted(Bug::SqliteNoSync) {
                SqliteSynchronous::Off
            } else {
                SqliteSynchronous::Full
            })
            // Gives the space of a WAL back that one burst made large.
            .pragma("journal_size_limit", "67108864")
            .pragma("cache_size", "-32768");
        let mut connection = options.connect().await.map_err(|e| cannot_open(&path, &e))?;
        check_version(&path, &mut connection).await?;
        check_wal(&path, &mut connection).await?;
        refuse_foreign(&path, &mut connection).await?;
        MIGRATIONS.run(&mut connection).await.map_err(|e| migration_error(&path, &e))?;
        Ok(Self {
            inner: Arc::new(Inner {
                writer: Some(Arc::new(Writer::new(options, connection, lock))),
                readers: readers(&path),
                clock: Clock::default(),
            }),
        })
    }

    /// Opens the database at `path` to be read only: for export, also while no server has it open. Every
    /// write is refused.
    ///
    /// # Errors
    /// [`Error::Schema`] when there is no Everstep database or its schema is not this binary's,
    /// [`Error::Unavailable`] when it cannot be opened, [`Error::Corrupt`] when it is no SQLite database.
    pub async fn open_existing_read_only(path: &Path) -> Result<Self, Error> {
        if !path.is_file() {
            return Err(Error::Schema(format!("there is no database at {}", path.display())));
        }
        let path = resolve(path)?;
        let mut connection =
            options(&path).read_only(true).connect().await.map_err(|e| cannot_open(&path, &e))?;
        check_version(&path, &mut connection).await?;
        check_migrated(&path, &mut connection).await?;
        let inner = Inner { writer: None, readers: readers(&path), clock: Clock::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Closes the connections, after the write that is under way. What is called later opens them again
    /// (writes) or fails (reads); dropping the store does the same in the background. The writer is the last,
    /// so that it takes the write-ahead log into the file.
    pub(crate) async fn close_connections(&self) {
        self.inner.readers.close().await;
        if let Some(writer) = &self.inner.writer {
            writer.close().await;
        }
    }

    pub(crate) fn writer(&self) -> Result<&Arc<Writer>, Error> {
        let read_only = || Error::Refused("the database was opened to be read only".to_owned());
        self.inner.writer.as_ref().ok_or_else(read_only)
    }

    pub(crate) fn readers(&self) -> &SqlitePool {
        &self.inner.readers
    }
}

/// What every connection has in common.
pub(crate) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .foreign_keys(false)
        .busy_timeout(BUSY_TIMEOUT)
        .statement_cache_capacity(STATEMENTS_MAX)
        // Rows that wait for their reader: each may hold a payload of megabytes.
        .row_buffer_size(16)
        .disable_statement_logging()
}

fn readers(path: &Path) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(READERS_MAX)
        .test_before_acquire(false)
        .connect_lazy_with(options(path).read_only(true))
}

/// The file's own path, so that two names of one file meet at one lock.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, Error> {
    let failed = |e: std::io::Error| Error::Unavailable(format!("cannot open {}: {e}", path.display()));
    if path.exists() {
        return path.canonicalize().map_err(failed);
    }
    let Some(name) = path.file_name() else {
        return Err(Error::Unavailable(format!("{} is not the name of a file", path.display())));
    };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(folder.canonicalize().map_err(failed)?.join(name))
}

pub(crate) fn cannot_open(path: &Path, e: &sqlx::Error) -> Error {
    match before_commit(e) {
        Error::Corrupt(text) => {
            Error::Corrupt(format!("{} is not a SQLite database, or damaged: {text}", path.display()))
        }
        Error::Exhausted(text) => Error::Exhausted(format!("cannot open {}: {text}", path.display())),
        other => Error::Unavailable(format!("cannot open {}: {other}", path.display())),
    }
}

/// SQLite would drop what stands behind the damage, and say nothing.
pub(crate) async fn refuse_damaged_wal(path: &Path) -> Result<(), Error> {
    let wal = wal::path_of(path);
    let looked = wal.clone();
    let found = tokio::task::spawn_blocking(move || wal::damaged_at(&looked)).await;
    let read = found.map_err(std::io::Error::other).and_then(|found| found);
    match read {
        Ok(None) => Ok(()),
        Ok(Some(byte)) => Err(Error::Corrupt(format!(
            "{} is damaged at byte {byte}, and commits stand behind that: keep a copy and restore a backup, or give \
             them up by `sqlite3 {} 'PRAGMA wal_checkpoint(TRUNCATE)'`",
            wal.display(),
            path.display()
        ))),
        Err(error) => Err(Error::Unavailable(format!("cannot read {}: {error}", wal.display()))),
    }
}

pub(crate) async fn check_version(path: &Path, connection: &mut SqliteConnection) -> Result<(), Error> {
    let version: String = sqlx::query_scalar("SELECT sqlite_version()")
        .fetch_one(connection)
        .await
        .map_err(|e| cannot_open(path, &e))?;
    if is_sound(&version) {
        return Ok(());
    }
    let (major, minor, patch) = VERSION_MIN;
    Err(Error::Schema(format!(
        "SQLite {version} can corrupt a database in WAL mode; Everstep needs {major}.{minor}.{patch} or later"
    )))
}

/// True for a version without the known way to corrupt a WAL database.
pub(crate) fn is_sound(version: &str) -> bool {
    let mut parts = version.split('.').map(u32::from_str);
    let mut part = || parts.next().and_then(Result::ok);
    match (part(), part(), part()) {
        (Some(major), Some(minor), patch) => (major, minor, patch.unwrap_or(0)) >= VERSION_MIN,
        _ => false,
    }
}

/// Some file systems cannot share memory between connections, and SQLite then stays as it was.
async fn check_wal(path: &Path, connection: &mut SqliteConnection) -> Result<(), Error> {
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(connection)
        .await
        .map_err(|e| cannot_open(path, &e))?;
    if mode == "wal" {
        return Ok(());
    }
    let text = format!("{} cannot use a write-ahead log ({mode}); put it on a local disk", path.display());
    Err(Error::Unavailable(text))
}

/// Another program's database is left alone.
pub(crate) async fn refuse_foreign(path: &Path, connection: &mut SqliteConnection) -> Result<(), Error> {
    let (tables, ours): (i64, i64) = sqlx::query_as(
        "SELECT count(*), count(*) FILTER (WHERE name = '_sqlx_migrations')
           FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
    )
    .fetch_one(connection)
    .await
    .map_err(|e| cannot_open(path, &e))?;
    if tables > 0 && ours == 0 { Err(not_ours(path)) } else { Ok(()) }
}

fn not_ours(path: &Path) -> Error {
    Error::Schema(format!("{} is a SQLite database of another program", path.display()))
}

fn migration_error(path: &Path, e: &MigrateError) -> Error {
    let path = path.display();
    match e {
        MigrateError::VersionMissing(version) => newer(&path, *version),
        MigrateError::VersionMismatch(version) => Error::Schema(format!(
            "migration {version} of {path} is not this binary's: another build made it"
        )),
        MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) => match before_commit(e) {
            Error::Refused(text) => Error::Schema(format!("cannot bring {path} up to date: {text}")),
            other => other,
        },
        other => Error::Schema(format!("cannot bring {path} up to date: {other}")),
    }
}

fn newer(path: &dyn std::fmt::Display, version: i64) -> Error {
    Error::Schema(format!(
        "the schema of {path} ({version}) is newer than this binary's; use a newer Everstep"
    ))
}

/// A store that cannot migrate needs the schema that this binary knows.
async fn check_migrated(path: &Path, connection: &mut SqliteConnection) -> Result<(), Error> {
    let known = MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0);
    let query = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success");
    let found: Option<i64> = match query.fetch_one(connection).await {
        Ok(found) => found,
        Err(e) => match before_commit(&e) {
            Error::Refused(_) => return Err(not_ours(path)),
            _ => return Err(cannot_open(path, &e)),
        },
    };
    match found {
        Some(found) if found == known => Ok(()),
        Some(found) if found > known => Err(newer(&path.display(), found)),
        _ => Err(Error::Schema(format!(
            "the schema of {} is older than this binary's; start the server on it once",
            path.display()
        ))),
    }
}
