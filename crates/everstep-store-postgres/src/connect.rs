//! Opening a database, and bringing its schema up to date.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use everstep_store::Error;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{Connection, PgConnection, Row};

use crate::appenders::Appenders;
use crate::error::before;

static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations/postgres");

/// How long a connection may take.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// How long the answer to a statement may take; the server's own limit on one is shorter.
const ANSWER: Duration = Duration::from_secs(12);
/// Connections for leases and the sweep.
const UPKEEP: u32 = 2;
/// Partitions made before and after today, in days.
const PARTITION_DAYS: (i32, i32) = (2, 14);
/// How often a store that lives looks after the partitions.
const PARTITION_LOOK: Duration = Duration::from_secs(3_600);

/// Why a connection is not used.
pub(crate) const STANDBY: &str = "the server is a standby: decisions need the primary";

/// How a store behaves. The defaults suit production.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// Accept a server with `fsync = off`: a power failure may lose what was acknowledged.
    pub allow_fsync_off: bool,
    /// Connections that append.
    pub appenders: u32,
    /// Connections for everything else.
    pub others: u32,
    /// Longest wait for the answer to a statement; an append without one has an unknown outcome. The server's own
    /// limit on a statement is 10 s; a shorter wait than that may give up on what is only slow.
    pub answer_limit: Duration,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { allow_fsync_off: false, appenders: 4, others: 8, answer_limit: ANSWER }
    }
}

impl PostgresOptions {
    /// Connections that a node has at most.
    const fn connections(&self) -> u32 {
        self.appenders + self.others + UPKEEP
    }
}

/// A store in a Postgres database. Clones share the connections.
#[derive(Clone, Debug)]
pub struct PostgresStore {
    pub(crate) appenders: Arc<Appenders>,
    /// For leases and the sweep, which must not wait behind readers: a lease that ends costs a worker its runs.
    pub(crate) upkeep: PgPool,
    pub(crate) pool: PgPool,
    pub(crate) answer_limit: Duration,
}

/// Nothing else notices a server that is silently gone before the kernel gives up, which takes a quarter of an hour
/// or longer; and the task that asked does nothing else meanwhile.
pub(crate) trait InTime<T>: Future<Output = Result<T, sqlx::Error>> + Sized + Send {
    /// The same, with an end.
    fn in_time(self, limit: Duration) -> impl Future<Output = Result<T, sqlx::Error>> + Send {
        let silent = move || {
            let text = format!("Postgres did not answer within {limit:?}");
            sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
        };
        async move { tokio::time::timeout(limit, self).await.unwrap_or_else(|_| Err(silent())) }
    }
}

impl<T, F: Future<Output = Result<T, sqlx::Error>> + Send> InTime<T> for F {}

/// Looks whether a node would start on this database; changes nothing.
///
/// # Errors
/// As [`PostgresStore::connect`].
pub async fn check(url: &str, options: &PostgresOptions) -> Result<(), Error> {
    let mut connection = open_one(url).await?;
    check_server(&mut connection, options.allow_fsync_off).await?;
    check_schema(&mut connection).await
}

/// What a migration did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrationReport {
    /// Migrations that were applied now.
    pub applied: usize,
    /// Partitions that were made now.
    pub partitions: i32,
}

impl fmt::Display for MigrationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} migrations applied, {} partitions made", self.applied, self.partitions)
    }
}

/// Brings a database to this version's schema. Safe to repeat, to interrupt, and to run twice at once.
///
/// # Errors
/// [`Error::Unavailable`]; [`Error::Schema`] when the database is newer than this binary; [`Error::Refused`].
pub async fn migrate(url: &str) -> Result<MigrationReport, Error> {
    let mut connection = open_one(url).await?;
    check_server(&mut connection, true).await?;
    // What a migration needs to do may take longer than any statement of a node should.
    sqlx::query("SET statement_timeout = 0").execute(&mut connection).await.map_err(before)?;
    let before_count = applied(&mut connection).await?.len();
    MIGRATIONS.run(&mut connection).await.map_err(|e| match e {
        sqlx::migrate::MigrateError::VersionMissing(v) => newer(v),
        sqlx::migrate::MigrateError::Execute(e) => before(e),
        other => Error::Schema(other.to_string()),
    })?;
    let after_count = applied(&mut connection).await?.len();
    let partitions = ensure_partitions(&mut connection).await?;
    Ok(MigrationReport { applied: after_count - before_count, partitions })
}

impl PostgresStore {
    /// Connects, and checks that the database can be relied on.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it cannot be reached; [`Error::Schema`] when it is older or newer than this
    /// binary; [`Error::Refused`] for a standby, `fsync = off`, or a server older than 15.
    pub async fn connect(url: &str, options: PostgresOptions) -> Result<Self, Error> {
        let mut connection = open_one(url).await?;
        check_server(&mut connection, options.allow_fsync_off).await?;
        check_schema(&mut connection).await?;
        ensure_partitions(&mut connection).await?;
        let store = Self::pools(url, &options, true)?;
        tokio::spawn(look_after_partitions(store.pool.clone()));
        Ok(store)
    }

    /// Connects to read, for export and checks: makes no partitions and writes nothing.
    ///
    /// # Errors
    /// As [`PostgresStore::connect`].
    pub async fn connect_read_only(url: &str) -> Result<Self, Error> {
        let mut connection = open_one(url).await?;
        check_schema(&mut connection).await?;
        Self::pools(url, &PostgresOptions::default(), false)
    }

    /// `primary`: no other server will do.
    fn pools(url: &str, options: &PostgresOptions, primary: bool) -> Result<Self, Error> {
        // The append's plan is good for any batch; planning it anew each time costs more than it does.
        let appending = parse(url)?.options([
            ("synchronous_commit", "on"),
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("enable_bitmapscan", "off"),
        ]);
        Ok(Self {
            appenders: Arc::new(Appenders::new(appending, options.appenders)),
            upkeep: pool(UPKEEP, parse(url)?, primary),
            pool: pool(options.others, parse(url)?, primary),
            answer_limit: options.answer_limit,
        })
    }
}

fn pool(connections: u32, options: PgConnectOptions, primary: bool) -> PgPool {
    // A connection whose statement was given up is tried before it is lent again; left to itself, the pool waits
    // for that without an end, and a server that is silently gone would keep its place for good.
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(CONNECT)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                match (primary, leads_to(connection).await) {
                    (true, Ok(Place::Standby)) => Err(sqlx::Error::Configuration(STANDBY.into())),
                    (_, Ok(_)) => Ok(()),
                    (_, Err(error)) => Err(sqlx::Error::Configuration(error.into())),
                }
            })
        })
        .after_release(|connection, _| {
            Box::pin(async move {
                match tokio::time::timeout(CONNECT, connection.ping()).await {
                    Ok(answer) => answer.map(|()| true),
                    Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
                }
            })
        })
        .connect_lazy_with(options)
}

fn parse(url: &str) -> Result<PgConnectOptions, Error> {
    // The URL may hold a password, so the error must not repeat it.
    let options = PgConnectOptions::from_str(url).map_err(|_| {
        Error::Refused("the database URL is not understood: postgres://USER@HOST:PORT/NAME".to_owned())
    })?;
    Ok(options.application_name("everstep").options([
        ("lock_timeout", "5s"),
        ("statement_timeout", "10s"),
        ("idle_in_transaction_session_timeout", "10s"),
        // A connection that appends may idle as long as its node does.
        ("idle_session_timeout", "0"),
        ("jit", "off"),
        ("everstep.arrived", "yes"),
    ]))
}

/// What an address leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Primary,
    Standby,
}

/// Looks where a new connection has led. The address may lead elsewhere than when the node started: to the standby
/// that a failover has left behind, whose answers are old, or to a pooler.
///
/// # Errors
/// [`Error::Refused`] for a pooler, and as [`before`].
pub(crate) async fn leads_to(connection: &mut PgConnection) -> Result<Place, Error> {
    // By the simple protocol: one round trip, and no prepared statement for a pooler to mix up.
    let query = sqlx::raw_sql("SELECT pg_is_in_recovery(), current_setting('everstep.arrived', true)");
    let row = query.fetch_one(connection).await.map_err(before)?;
    let (standby, arrived): (bool, Option<String>) =
        (row.try_get(0).map_err(before)?, row.try_get(1).map_err(before)?);
    if arrived.as_deref() != Some("yes") {
        return Err(pooled("the settings of a connection do not arrive at Postgres"));
    }
    Ok(if standby { Place::Standby } else { Place::Primary })
}

/// What to do about a pooler that gives a connection to many: settings and prepared statements of one node would
/// be another's.
fn pooled(what: &str) -> Error {
    Error::Refused(format!(
        "{what}: a pooler such as pgbouncer is between; give the address of Postgres itself \
         (a node has its own pool, of {} connections)",
        PostgresOptions::default().connections()
    ))
}

async fn open_one(url: &str) -> Result<PgConnection, Error> {
    let options = parse(url)?;
    let at = format!("Postgres at {}:{}", options.get_host(), options.get_port());
    let connecting = async {
        let mut connection = PgConnection::connect_with(&options).await.map_err(not_connected)?;
        leads_to(&mut connection).await?;
        Ok(connection)
    };
    match tokio::time::timeout(CONNECT, connecting).await {
        Ok(connected) => connected.map_err(|e| match e {
            Error::Unavailable(text) => Error::Unavailable(format!("{at}: {text}")),
            Error::Refused(text) => Error::Refused(format!("{at}: {text}")),
            other => other,
        }),
        Err(_) => Err(Error::Unavailable(format!("{at} did not answer within {CONNECT:?}"))),
    }
}

/// Why there is no connection.
pub(crate) fn not_connected(error: sqlx::Error) -> Error {
    let refused = error.as_database_error().filter(|e| e.code().as_deref() == Some("08P01"));
    match refused.map(|e| e.message().to_owned()) {
        // Postgres itself takes what a connection asks for.
        Some(text) if text.contains("startup parameter") => pooled(&text),
        _ => before(error),
    }
}

async fn check_server(connection: &mut PgConnection, allow_fsync_off: bool) -> Result<(), Error> {
    let row = sqlx::query(
        "SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('fsync')",
    )
    .fetch_one(connection)
    .await
    .map_err(before)?;
    let (version, standby, fsync): (i32, bool, String) =
        (row.try_get(0).map_err(before)?, row.try_get(1).map_err(before)?, row.try_get(2).map_err(before)?);
    if version < 150_000 {
        return Err(Error::Refused(format!(
            "Postgres {} is too old: 15 or newer is needed",
            version / 10_000
        )));
    }
    if standby {
        return Err(Error::Refused(STANDBY.to_owned()));
    }
    if fsync == "off" && !allow_fsync_off {
        return Err(Error::Refused(
            "the server has fsync = off and may lose what was acknowledged: turn it on, or pass --allow-fsync-off"
                .to_owned(),
        ));
    }
    Ok(())
}

async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>, Error> {
    let there: Option<String> = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations')::text")
        .fetch_one(&mut *connection)
        .await
        .map_err(before)?;
    if there.is_none() {
        return Ok(Vec::new());
    }
    sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success ORDER BY version")
        .fetch_all(connection)
        .await
        .map_err(before)
}

async fn check_schema(connection: &mut PgConnection) -> Result<(), Error> {
    let applied = applied(connection).await?;
    let known: Vec<i64> = MIGRATIONS.iter().map(|m| m.version).collect();
    if let Some(version) = applied.iter().find(|v| !known.contains(v)) {
        return Err(newer(*version));
    }
    if applied.len() < known.len() {
        let what = if applied.is_empty() { "has no Everstep schema" } else { "has an older schema" };
        return Err(Error::Schema(format!("the database {what}: run everstep migrate")));
    }
    Ok(())
}

fn newer(version: i64) -> Error {
    Error::Schema(format!(
        "the database has migration {version}, which this binary does not know: use a newer one"
    ))
}

async fn ensure_partitions(connection: &mut PgConnection) -> Result<i32, Error> {
    sqlx::query_scalar("SELECT everstep_ensure_partitions($1, $2)")
        .bind(PARTITION_DAYS.0)
        .bind(PARTITION_DAYS.1)
        .fetch_one(connection)
        .await
        .map_err(before)
}

async fn look_after_partitions(pool: PgPool) {
    loop {
        tokio::time::sleep(PARTITION_LOOK).await;
        if pool.is_closed() {
            return;
        }
        if let Ok(mut connection) = pool.acquire().await
            && let Err(error) = ensure_partitions(&mut connection).await
        {
            tracing::warn!(%error, "partitions not made: the next look tries again");
        }
    }
}
