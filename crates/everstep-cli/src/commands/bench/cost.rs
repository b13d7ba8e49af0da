//! What a workload costs beside time: commits, log bytes, and processor time of everybody who takes part.

use std::fs;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Row};

use super::figures::Figures;
use super::place::Place;
use super::processes;
use super::system::System;
use crate::fail::Fail;
use crate::node::Database;

/// How the name of a processor's time ends.
const CPU: &str = " CPU µs";
const NOT_LOCAL: &str = "not local";
const NOT_TOLD: &str = "not told";

/// Statements since the server of the database began, of this database and of all of them. Flushes are told by
/// some versions only.
const POSTGRES: &str = "SELECT d.xact_commit, (pg_current_wal_lsn() - '0/0')::int8,
                               (SELECT (to_jsonb(w) ->> 'wal_sync')::int8 FROM pg_stat_wal w)
                          FROM pg_stat_database d WHERE d.datname = current_database()";

/// Where the figures of a running system are read.
pub(super) struct Meter {
    server: u32,
    worker: u32,
    store: Store,
    /// The process of NATS; `None` when there is none.
    nats: Option<Option<u32>>,
}

enum Store {
    Postgres { connection: PgConnection, head: Option<u32> },
    Sqlite { files: [std::path::PathBuf; 2] },
}

/// Counts that only grow: what they are of, and how far they are, or why nobody knows.
pub(super) type Reading = Vec<(&'static str, Result<f64, &'static str>)>;

fn bad(error: sqlx::Error) -> Fail {
    Fail::refused(format!("figures of the database: {error}"))
}

impl Meter {
    pub(super) async fn new(place: &Place, system: &System, nats_url: Option<&str>) -> Result<Self, Fail> {
        let store = match &place.database {
            Database::Postgres(url) => {
                let options = PgConnectOptions::from_str(url).map_err(bad)?;
                let mut connection = options.connect().await.map_err(bad)?;
                let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
                    .fetch_one(&mut connection)
                    .await
                    .map_err(bad)?;
                let local = options.get_socket().is_some() || processes::is_local(options.get_host());
                let pid = u32::try_from(pid).ok().filter(|_| local);
                let head = pid.and_then(|pid| processes::head_of_family(pid, "postgres"));
                Store::Postgres { connection, head }
            }
            Database::Sqlite(path) => {
                let mut wal = path.clone().into_os_string();
                wal.push("-wal");
                Store::Sqlite { files: [path.clone(), wal.into()] }
            }
        };
        let nats = nats_url.map(|url| local_port(url).and_then(processes::listener));
        Ok(Self { server: system.server_pid(), worker: system.worker_pid(), store, nats })
    }

    pub(super) async fn read(&mut self) -> Result<Reading, Fail> {
        let mut reading = Reading::new();
        let told = |count: Option<i64>| count.map(|count| count as f64).ok_or(NOT_TOLD);
        let time = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1e6).ok_or(NOT_LOCAL);
        match &mut self.store {
            Store::Postgres { connection, head } => {
                let row = sqlx::query(POSTGRES).fetch_one(connection).await.map_err(bad)?;
                for (at, what) in ["commits", "WAL bytes", "flushes"].into_iter().enumerate() {
                    reading.push((what, told(row.try_get(at).map_err(bad)?)));
                }
                reading.push(("Postgres CPU µs", time(head.and_then(processes::family_time))));
            }
            Store::Sqlite { files } => {
                let sizes = files.iter().filter_map(|file| fs::metadata(file).ok()).map(|m| m.len());
                reading.push(("file bytes", Ok(sizes.sum::<u64>() as f64)));
                // Nobody but the server writes, and it writes nothing else.
                let written = processes::written_bytes(self.server);
                reading.push(("written bytes", written.map(|bytes| bytes as f64).ok_or(NOT_TOLD)));
            }
        }
        reading.push(("server CPU µs", time(processes::processor_time(self.server))));
        reading.push(("worker CPU µs", time(processes::processor_time(self.worker))));
        if let Some(nats) = self.nats {
            reading.push(("NATS CPU µs", time(nats.and_then(processes::processor_time))));
        }
        Ok(reading)
    }
}

/// The port in a URL of this machine: `nats://NAME:PASSWORD@HOST:PORT`.
fn local_port(url: &str) -> Option<u16> {
    let place = url.split_once("://").map_or(url, |(_, rest)| rest);
    let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
    let (host, port) = place.trim_end_matches('/').rsplit_once(':')?;
    processes::is_local(host).then(|| port.parse().ok()).flatten()
}

/// Adds what each step cost between two readings.
pub(super) fn add_per_step(
    figures: &mut Figures,
    at: &str,
    (before, after): (&Reading, &Reading),
    steps: f64,
) {
    for ((what, before), (_, after)) in before.iter().zip(after) {
        let name = format!("{at} {what} / step");
        match (before, after) {
            (Ok(before), Ok(after)) => figures.add(name, (after - before) / steps),
            (Err(why), _) | (_, Err(why)) => figures.add_absent(name, why),
        }
    }
}

/// How much of one processor each has used between two readings; those that nobody knows are left out.
pub(super) fn processor_percents(
    (before, after): (&Reading, &Reading),
    window: Duration,
) -> Vec<(&'static str, f64)> {
    let pairs = before.iter().zip(after);
    pairs
        .filter_map(|((what, before), (_, after))| {
            let name = what.strip_suffix(CPU)?;
            let micros = (*after).ok()? - (*before).ok()?;
            Some((name, micros / window.as_secs_f64() / 1e6 * 100.0))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_step_costs_is_the_growth_over_the_steps() {
        let before: Reading =
            vec![("commits", Ok(10.0)), ("server CPU µs", Ok(0.0)), ("x CPU µs", Err(NOT_LOCAL))];
        let after: Reading =
            vec![("commits", Ok(40.0)), ("server CPU µs", Ok(5e5)), ("x CPU µs", Err(NOT_LOCAL))];
        let mut figures = Figures::default();
        add_per_step(&mut figures, "w1@1", (&before, &after), 60.0);
        assert_eq!(figures.median("w1@1 commits / step"), Some(0.5));
        assert_eq!(figures.median("w1@1 x CPU µs / step"), None);
        let percents = processor_percents((&before, &after), Duration::from_secs(10));
        assert_eq!(percents, [("server", 5.0)]);
    }

    #[test]
    fn the_port_of_a_local_url_is_found() {
        assert_eq!(local_port("nats://127.0.0.1:4222"), Some(4_222));
        assert_eq!(local_port("nats://me:secret@localhost:4222/"), Some(4_222));
        assert_eq!(local_port("nats://broker.example:4222"), None);
        assert_eq!(local_port("nats://127.0.0.1"), None);
    }
}
