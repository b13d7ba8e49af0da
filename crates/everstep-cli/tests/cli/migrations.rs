//! Migrations that are cut at every place, that meet each other, and that a binary does not know.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use everstep_tests::servers::{PostgresServer, require};
use futures::{TryStreamExt as _, future, stream};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::{interval, timeout};

use crate::load::PATIENCE;
use crate::shim::Shim;
use crate::support::{Ended, Running, everstep, folder, run};

const FILE: &str = "migrated.db";
const SQLITE: &str = "sqlite:migrated.db";
/// Migrations that run at the same time.
const TOGETHER: usize = 4;
/// The lock that a test holds against a migration.
const BARRIER: i64 = 7_417;
/// Statements of a migration are cut one by one; those that make partitions are all alike, so every so many.
const PARTITION_STEP: usize = 15;

fn migrate(folder: &Path, url: &str) -> Command {
    everstep(folder, &["migrate", "--database-url", url])
}

/// Everything that a migration made of a SQLite file, which has to be sound.
async fn sqlite_schema(folder: &Path) -> anyhow::Result<Vec<String>> {
    let options = SqliteConnectOptions::new().filename(folder.join(FILE)).read_only(true);
    let mut connection = options.connect().await?;
    let sound: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut connection).await?;
    ensure!(sound == "ok", "{sound}");
    let query = "SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_schema
                 UNION ALL SELECT 'migration ' || version || ' ' || hex(checksum) || ' ' || success FROM _sqlx_migrations
                 UNION ALL SELECT 'namespace ' || name FROM namespaces ORDER BY 1";
    let schema = sqlx::query_scalar(query).fetch_all(&mut connection).await?;
    connection.close().await?;
    Ok(schema)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_migration_killed_at_any_write_is_completed() -> anyhow::Result<()> {
    let fresh = folder()?;
    ensure!(run(fresh.path(), &["migrate", "--database-url", SQLITE]).await?.code == Some(0));
    let whole = sqlite_schema(fresh.path()).await?;
    for write in 1.. {
        let (shim, killed, left) = (Shim::compile().await?, folder()?, folder()?);
        let mut command = migrate(killed.path(), SQLITE);
        shim.preload(&mut command);
        let ended = command.env("DURABLE_KILL_AT_WRITE", write.to_string()).output().await?;
        if ended.status.success() {
            assert!(write > 20, "only {write} writes: nothing was cut");
            return Ok(());
        }
        assert_eq!(ended.status.signal(), Some(9), "{:?}", Ended::from(ended));
        // Once with what the system had when the process died, and once with what the disk had.
        shim.restore(killed.path(), left.path())?;
        for place in [killed.path(), left.path()] {
            let again: Ended = migrate(place, SQLITE).output().await?.into();
            assert_eq!(again.code, Some(0), "killed at write {write}: {again:?}");
            assert_eq!(sqlite_schema(place).await?, whole, "killed at write {write}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_that_open_a_new_sqlite_file_at_once_leave_one_schema() -> anyhow::Result<()> {
    let (fresh, folder) = (folder()?, folder()?);
    ensure!(run(fresh.path(), &["migrate", "--database-url", SQLITE]).await?.code == Some(0));
    let node = || Running::server(everstep(folder.path(), &["dev", "--port", "0", "--db", FILE]));
    let migrations = (0..TOGETHER).map(|_| migrate(folder.path(), SQLITE).output());
    let (first, second, migrations) = tokio::join!(node(), node(), future::join_all(migrations));
    // Whoever comes second is told so. Migrations come and go, so that both nodes may have met one.
    let mut running = Vec::new();
    for node in [first, second] {
        match node {
            Ok(node) => running.push(node),
            Err(error) => {
                assert!(error.to_string().contains("in use by another Everstep process"), "{error}")
            }
        }
    }
    assert!(running.len() < 2, "two nodes have one file");
    let mut done = running.len();
    for ended in migrations {
        let ended: Ended = ended?.into();
        match ended.code {
            Some(0) => done += 1,
            Some(3) => assert!(ended.stderr.contains("in use by another Everstep process"), "{ended:?}"),
            _ => bail!("{ended:?}"),
        }
    }
    assert!(done > 0, "nobody won");
    for node in running {
        assert_eq!(node.terminate().await?, Some(0));
    }
    assert_eq!(sqlite_schema(folder.path()).await?, sqlite_schema(fresh.path()).await?);
    Ok(())
}

/// Everything that a migration made of a Postgres database.
async fn postgres_schema(url: &str) -> anyhow::Result<Vec<String>> {
    let mut connection = PgConnection::connect(url).await?;
    let query = "
        SELECT 'relation ' || relname || ' ' || relkind::text || ' ' || relispartition FROM pg_class
         WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT 'column ' || attrelid::regclass || ' ' || attname || ' ' || atttypid::regtype || ' ' || attnotnull
          FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
         WHERE relnamespace = 'public'::regnamespace AND attnum > 0
        UNION ALL SELECT 'trigger ' || tgrelid::regclass || ' ' || tgname || ' ' || tgtype FROM pg_trigger
        UNION ALL SELECT 'function ' || proname || ' ' || md5(prosrc) FROM pg_proc
         WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT 'bound ' || relname || ' ' || pg_get_expr(relpartbound, oid) FROM pg_class WHERE relpartbound IS NOT NULL
        UNION ALL SELECT 'constraint ' || conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
         WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT 'migration ' || version || ' ' || md5(checksum) || ' ' || success FROM _sqlx_migrations
        UNION ALL SELECT 'namespace ' || name FROM namespaces ORDER BY 1";
    let schema = sqlx::query_scalar(query).fetch_all(&mut connection).await?;
    connection.close().await?;
    Ok(schema)
}

/// A migrated database to compare with.
async fn whole(server: &PostgresServer, folder: &Path) -> anyhow::Result<Vec<String>> {
    let url = server.create_database().await?;
    ensure!(migrate(folder, &url).output().await?.status.success());
    postgres_schema(&url).await
}

/// Makes the database do `what` when its statement number `at` begins that changes the schema. `at` may be one that
/// never comes. Statements are counted over aborted transactions, too.
async fn arm(url: &str, at: usize, what: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    let script = format!(
        "CREATE SCHEMA drill; CREATE SEQUENCE drill.statements;
         CREATE FUNCTION drill.act() RETURNS event_trigger LANGUAGE plpgsql AS $$
             BEGIN IF nextval('drill.statements') = {at} THEN PERFORM {what}; END IF; END $$;
         CREATE EVENT TRIGGER drill ON ddl_command_start EXECUTE FUNCTION drill.act()"
    );
    sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

/// Takes it away again, and says how many statements there were.
async fn disarm(url: &str) -> anyhow::Result<usize> {
    let mut connection = PgConnection::connect(url).await?;
    let query = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM drill.statements";
    let count: i64 = sqlx::query_scalar(query).fetch_one(&mut connection).await?;
    let script = "DROP EVENT TRIGGER drill; DROP SCHEMA drill CASCADE";
    sqlx::raw_sql(script).execute(&mut connection).await?;
    connection.close().await?;
    Ok(usize::try_from(count)?)
}

/// A migration that was cut is completed by the next.
async fn completes(folder: &Path, url: &str, whole: &[String], cut: &str) -> anyhow::Result<()> {
    let again: Ended = migrate(folder, url).output().await?.into();
    ensure!(again.code == Some(0), "{cut}: {again:?}");
    ensure!(postgres_schema(url).await? == whole, "{cut}: another schema");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_migration_cut_at_any_statement_is_completed() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let (folder, server) = (folder()?, PostgresServer::shared()?);
    let whole = whole(server, folder.path()).await?;
    let url = server.create_database().await?;
    arm(&url, 0, "1").await?;
    ensure!(migrate(folder.path(), &url).output().await?.status.success());
    let statements = disarm(&url).await?;
    let of_migrations = count_statements()?;
    assert!(of_migrations > 20 && statements > of_migrations, "{of_migrations} of {statements}");
    let cuts = (1..=of_migrations).chain((of_migrations + 1..=statements).step_by(PARTITION_STEP));
    let (folder, whole) = (folder.path(), whole.as_slice());
    stream::iter(cuts.map(anyhow::Ok))
        .try_for_each_concurrent(TOGETHER, async |at| {
            let url = server.create_database().await?;
            arm(&url, at, "pg_terminate_backend(pg_backend_pid())").await?;
            let ended: Ended = migrate(folder, &url).output().await?.into();
            ensure!(ended.code != Some(0) && !ended.stderr.contains("panicked"), "cut at {at}: {ended:?}");
            ensure!(disarm(&url).await? == at, "the cut was not at statement {at}");
            completes(folder, &url, whole, &format!("cut at statement {at}")).await
        })
        .await
}

/// How many statements of the migrations' files change the schema: those that the event trigger sees.
fn count_statements() -> anyhow::Result<usize> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations/postgres");
    let mut count = 0;
    for entry in std::fs::read_dir(folder)? {
        let text = std::fs::read_to_string(entry?.path())?;
        count += text
            .lines()
            .filter(|l| ["CREATE ", "ALTER ", "COMMENT "].iter().any(|w| l.starts_with(w)))
            .count();
    }
    Ok(count)
}

/// Passes one connection on to `server`, and cuts it right after the client's message number `last` was passed on: its
/// outcome is unknown to the client.
async fn cut_after(server: u16, last: usize) -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await?;
        let upstream = TcpStream::connect(("127.0.0.1", server)).await?;
        let ((mut from, mut to), (mut back, mut up)) = (client.into_split(), upstream.into_split());
        let answers = tokio::spawn(async move { tokio::io::copy(&mut back, &mut to).await });
        let mut bytes = vec![0; 1 << 20];
        for _ in 0..last {
            match from.read(&mut bytes).await? {
                0 => break,
                count => up.write_all(&bytes[..count]).await?,
            }
        }
        answers.abort();
        anyhow::Ok(())
    });
    Ok(port)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_migration_cut_after_any_message_is_completed() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let (folder, server) = (folder()?, PostgresServer::shared()?);
    let whole = whole(server, folder.path()).await?;
    for message in 1.. {
        let url = server.create_database().await?;
        let port = cut_after(server.port(), message).await?;
        let through = url.replace(&server.port().to_string(), &port.to_string());
        let ended: Ended = migrate(folder.path(), &through).output().await?.into();
        if ended.code == Some(0) {
            assert!(message > 5, "only {message} messages: nothing was cut");
            return Ok(());
        }
        assert!(!ended.stderr.contains("panicked"), "{ended:?}");
        completes(folder.path(), &url, &whole, &format!("cut after message {message}: {ended:?}")).await?;
    }
    Ok(())
}

/// The process id of the backend that waits for the barrier.
async fn waiting(connection: &mut PgConnection) -> anyhow::Result<u32> {
    let query =
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = $1::bigint::oid";
    let mut look = interval(Duration::from_millis(10));
    let found = async {
        loop {
            look.tick().await;
            let pid: Option<i32> =
                sqlx::query_scalar(query).bind(BARRIER).fetch_optional(&mut *connection).await?;
            if let Some(pid) = pid {
                return anyhow::Ok(u32::try_from(pid)?);
            }
        }
    };
    timeout(PATIENCE, found).await.context("the migration never came to the barrier")?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_9_of_either_side_of_a_postgres_migration_is_survived() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let (folder, server) = (folder()?, PostgresServer::start()?);
    let whole = whole(&server, folder.path()).await?;
    for (at, backend) in [(1, true), (12, true), (60, true), (2, false), (15, false), (61, false)] {
        let url = server.create_database().await?;
        arm(&url, at, &format!("pg_advisory_xact_lock({BARRIER})")).await?;
        let mut barrier = PgConnection::connect(&url).await?;
        sqlx::query("SELECT pg_advisory_lock($1)").bind(BARRIER).execute(&mut barrier).await?;
        let mut migration = migrate(folder.path(), &url).spawn()?;
        let pid = waiting(&mut barrier).await?;
        if backend {
            // Takes all of Postgres down, which recovers.
            server.kill_backend(pid)?;
            let ended: Ended = migration.wait_with_output().await?.into();
            assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
        } else {
            migration.kill().await?;
            barrier.close().await?;
        }
        completes(folder.path(), &url, &whole, &format!("killed at {at}, backend: {backend}")).await?;
        disarm(&url).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_postgres_migrations_at_once_make_one_schema() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    let (folder, server) = (folder()?, PostgresServer::shared()?);
    let whole = whole(server, folder.path()).await?;
    let url = server.create_database().await?;
    let migrations = (0..TOGETHER).map(|_| migrate(folder.path(), &url).output());
    for ended in future::try_join_all(migrations).await? {
        let ended: Ended = ended.into();
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    assert_eq!(postgres_schema(&url).await?, whole);
    let arguments = ["server", "--listen", "127.0.0.1:0", "--allow-fsync-off", "--database-url", &url];
    let nodes = (0..2).map(|_| Running::server(everstep(folder.path(), &arguments)));
    for node in future::try_join_all(nodes).await? {
        // A migration that has nothing to do does nothing to nodes that run.
        let ended: Ended = migrate(folder.path(), &url).output().await?.into();
        assert!(ended.stderr.contains("0 migrations applied, 0 partitions made"), "{ended:?}");
        assert_eq!(node.terminate().await?, Some(0));
    }
    Ok(())
}

/// Every command refuses a schema of a later version, and leaves it alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_schema_is_refused_by_every_command() -> anyhow::Result<()> {
    let (folder, mut databases) = (folder()?, vec![SQLITE.to_owned()]);
    if require("pg")? {
        databases.push(PostgresServer::shared()?.create_database().await?);
    }
    for url in &databases {
        ensure!(migrate(folder.path(), url).output().await?.status.success());
        let insert = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                      VALUES (99999999999999, 'of a later version', true, 'x', 0)";
        if url == SQLITE {
            let options = SqliteConnectOptions::new().filename(folder.path().join(FILE));
            let mut connection = options.connect().await?;
            sqlx::raw_sql(insert).execute(&mut connection).await?;
            connection.close().await?;
        } else {
            sqlx::raw_sql(insert).execute(&mut PgConnection::connect(url).await?).await?;
        }
        let schema = async || {
            if url == SQLITE { sqlite_schema(folder.path()).await } else { postgres_schema(url).await }
        };
        let before = schema().await?;
        for arguments in [
            &["server", "--allow-fsync-off", "--listen", "127.0.0.1:0"][..],
            &["migrate"],
            &["admin", "export"],
            &["admin", "rebuild", "--check"],
        ] {
            let ended: Ended =
                everstep(folder.path(), arguments).args(["--database-url", url]).output().await?.into();
            assert_eq!(ended.code, Some(1), "{arguments:?}: {ended:?}");
            assert!(ended.stdout.is_empty() && ended.stderr.contains("newer"), "{arguments:?}: {ended:?}");
        }
        assert_eq!(schema().await?, before, "{url}");
    }
    Ok(())
}
