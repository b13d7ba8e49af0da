//! What the database does by itself: durable single-row inserts of an event-sized row.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::fail::Fail;
use crate::node::Database;

use super::place::Place;

const CLIENTS: usize = 16;
const TABLE: &str = "CREATE TABLE baseline (run_id TEXT NOT NULL, seq BIGINT NOT NULL, data TEXT NOT NULL, \
                     PRIMARY KEY (run_id, seq))";

fn bad(error: sqlx::Error) -> Fail {
    Fail::refused(format!("baseline: {error}"))
}

/// b, in inserts per second, and i, in milliseconds.
pub(super) async fn measure(database: Option<&Database>, window: Duration) -> Result<(f64, f64), Fail> {
    match database {
        Some(Database::Postgres(url)) => {
            let place = Place::empty(url).await?;
            let figures = postgres(&place.url(), window).await;
            place.remove().await?;
            figures
        }
        _ => sqlite(window).await,
    }
}

async fn postgres(url: &str, window: Duration) -> Result<(f64, f64), Fail> {
    let options = PgConnectOptions::from_str(url).map_err(bad)?;
    let mut first = options.connect().await.map_err(bad)?;
    sqlx::query(TABLE).execute(&mut first).await.map_err(bad)?;
    let mut alone = insert_postgres(first, window).await?;
    let mut tasks = JoinSet::new();
    for _ in 0..CLIENTS {
        let options = options.clone();
        tasks.spawn(async move { insert_postgres(options.connect().await.map_err(bad)?, window).await });
    }
    let mut total = 0;
    while let Some(done) = tasks.join_next().await {
        total += done.map_err(|e| Fail::refused(e.to_string()))??.len();
    }
    Ok((total as f64 / window.as_secs_f64(), median_ms(&mut alone)))
}

async fn insert_postgres(mut connection: PgConnection, window: Duration) -> Result<Vec<Duration>, Fail> {
    let (run, data, began) = (Uuid::new_v4().to_string(), "x".repeat(150), Instant::now());
    let (mut times, mut seq) = (Vec::new(), 0i64);
    while began.elapsed() < window {
        seq += 1;
        let at = Instant::now();
        sqlx::query("INSERT INTO baseline VALUES ($1, $2, $3)")
            .bind(&run)
            .bind(seq)
            .bind(&data)
            .execute(&mut connection)
            .await
            .map_err(bad)?;
        times.push(at.elapsed());
    }
    Ok(times)
}

/// SQLite has one writer, so both figures are of one client.
async fn sqlite(window: Duration) -> Result<(f64, f64), Fail> {
    let file = std::env::temp_dir().join(format!("everstep-baseline-{}.db", Uuid::new_v4()));
    let options = SqliteConnectOptions::new()
        .filename(&file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut connection: SqliteConnection = options.connect().await.map_err(bad)?;
    sqlx::query(TABLE).execute(&mut connection).await.map_err(bad)?;
    let (run, data, began) = (Uuid::new_v4().to_string(), "x".repeat(150), Instant::now());
    let (mut times, mut seq) = (Vec::new(), 0i64);
    while began.elapsed() < window {
        seq += 1;
        let at = Instant::now();
        sqlx::query("INSERT INTO baseline VALUES ($1, $2, $3)")
            .bind(&run)
            .bind(seq)
            .bind(&data)
            .execute(&mut connection)
            .await
            .map_err(bad)?;
        times.push(at.elapsed());
    }
    connection.close().await.map_err(bad)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut path = file.clone().into_os_string();
        path.push(suffix);
        let _ = std::fs::remove_file(path);
    }
    Ok((times.len() as f64 / window.as_secs_f64(), median_ms(&mut times)))
}

fn median_ms(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |t| t.as_secs_f64() * 1_000.0)
}
