//! F14: Postgres fails over to its synchronous standby. What is left behind is old and takes no writes, and whoever
//! is led there must neither believe it nor stay.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use everstep_chaos::case::{Case, Options};
use everstep_chaos::topology::{Backend, Node, StoreKind, blocking, held};
use everstep_tests::servers::PostgresServer;
use sqlx::{Connection as _, PgConnection};

use crate::support::{LONG, drop_case, has_servers, layout, not_ready, passes};

/// How soon a node has to say that its database is none any more.
const UNREADY: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_loses_nothing_and_what_it_leaves_behind_is_not_believed() -> anyhow::Result<()> {
    if !has_servers()? {
        return Ok(());
    }
    let layout = layout("f14", 114, StoreKind::Postgres);
    let folder = layout.case.clone();
    let case = Case::start(Options::of_fault(layout)).await?;
    let backend = case.topology().backend.clone().context("Postgres")?;
    let standby = Arc::new(follow(&backend).await?);
    case.wait_moved(20, LONG).await?;

    let old = backend.postgres.clone();
    blocking(move || held(&old).kill_9()).await?;
    standby.promote().await?;
    for node in &case.topology().nodes {
        lead(node, standby.port())?;
    }
    case.topology().to_source.as_ref().context("a way to Postgres")?.rules().point_at(at(standby.port()));
    case.count("fail_over", true);
    case.wait_moved(40, LONG).await?;

    left_behind(&case, &backend, standby.port()).await?;
    read_only(&case, &standby).await?;
    passes(case).await?;
    drop_case(&folder)
}

/// One node is led to what the old primary has become, while the other works on.
async fn left_behind(case: &Case, backend: &Backend, present: u16) -> anyhow::Result<()> {
    let old: Arc<Mutex<PostgresServer>> = backend.postgres.clone();
    blocking(move || held(&old).start_again_stale()).await?;
    let astray = case.topology().nodes.first().context("a node")?;
    lead(astray, held(&backend.postgres).port())?;
    let unready = not_ready(astray.port, UNREADY).await?;
    ensure!(unready.contains("the store"), "{unready}");
    // The clients of the other node get somewhere, and those of this one hear nothing that is old: the checker looks.
    case.wait_moved(40, LONG).await?;
    not_ready(astray.port, UNREADY).await?;
    let log = std::fs::read_to_string(astray.process.program.log())?;
    ensure!(log.contains("the server is a standby"), "the log does not say why");
    lead(astray, present)?;
    is_ready(astray).await?;
    case.count("stale_standby", true);
    case.wait_moved(20, LONG).await
}

/// 25006 on connections that are open: the database itself takes no writes for a while.
async fn read_only(case: &Case, postgres: &PostgresServer) -> anyhow::Result<()> {
    set(postgres, "ALTER SYSTEM SET default_transaction_read_only = on").await?;
    for node in &case.topology().nodes {
        not_ready(node.port, UNREADY).await?;
    }
    set(postgres, "ALTER SYSTEM RESET default_transaction_read_only").await?;
    for node in &case.topology().nodes {
        is_ready(node).await?;
    }
    case.count("read_only", true);
    case.wait_moved(40, LONG).await
}

/// A standby without which the primary acknowledges nothing.
async fn follow(backend: &Backend) -> anyhow::Result<PostgresServer> {
    let primary = backend.postgres.clone();
    let standby = blocking(move || held(&primary).start_standby()).await?;
    let url = held(&backend.postgres).url("postgres");
    execute(&url, "ALTER SYSTEM SET synchronous_standby_names = '*'").await?;
    let mut connection = PgConnection::connect(&url).await?;
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let synchronous = async {
        loop {
            let asked =
                sqlx::query_scalar("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'");
            let count: i64 = asked.fetch_one(&mut connection).await?;
            if count > 0 {
                return anyhow::Ok(());
            }
            tick.tick().await;
        }
    };
    tokio::time::timeout(LONG, synchronous).await.context("the standby does not follow")??;
    Ok(standby)
}

async fn set(postgres: &PostgresServer, sql: &'static str) -> anyhow::Result<()> {
    execute(&postgres.url("postgres"), sql).await
}

async fn execute(url: &str, sql: &'static str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::query("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE").execute(&mut connection).await?;
    sqlx::query(sql).execute(&mut connection).await?;
    sqlx::query("SELECT pg_reload_conf()").execute(&mut connection).await?;
    Ok(connection.close().await?)
}

fn at(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// The address that a node knows leads to another server from now on, and the connections to the last one end.
fn lead(node: &Node, port: u16) -> anyhow::Result<()> {
    let rules = node.to_postgres.as_ref().context("a link to Postgres")?.rules();
    rules.point_at(at(port));
    rules.reset();
    Ok(())
}

async fn is_ready(node: &Node) -> anyhow::Result<()> {
    crate::support::readiness(node.port, LONG, true).await.map(drop)
}
