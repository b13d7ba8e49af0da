//! Nothing moves any more: notices it, and writes down what there is to see.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use everstep_checker::format::JOURNAL;
use serde_json::Value;
use sqlx::Connection as _;
use tokio::time::Instant;

use crate::history::History;
use crate::process::tail;
use crate::topology::Topology;

/// How often progress is looked for.
const LOOK: Duration = Duration::from_millis(500);
/// Lines of each log in a dump.
const TAIL: usize = 60;

/// Ready when no client got an answer that counts, no effect happened and no event was appended for `limit`.
pub async fn stands_still(topology: &Topology, history: &History, limit: Duration) {
    let (mut last, mut since) = (None, Instant::now());
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tick.tick().await;
        topology.ask_figures().await;
        let journal = topology.layout.case.join(JOURNAL);
        let effects = std::fs::metadata(journal).map_or(0, |file| file.len());
        let events = topology.figures.sum("everstep_events_appended_total");
        let now = Some((history.moved(), effects, events));
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() >= limit {
            return;
        }
    }
}

/// Writes everything that may tell why to a folder of the case, and says where.
///
/// # Errors
/// When the folder cannot be written.
pub async fn dump(topology: &Topology) -> anyhow::Result<PathBuf> {
    let folder = topology.layout.case.join("stuck");
    std::fs::create_dir_all(&folder)?;
    let export = folder.join("export.ndjson");
    let open = match topology.source.write(&export).await {
        Ok(()) => open_runs(&std::fs::read_to_string(&export)?),
        Err(error) => format!("no export: {error:#}\n"),
    };
    std::fs::write(folder.join("open-runs.ndjson"), open)?;
    std::fs::write(folder.join("postgres.txt"), postgres(topology).await)?;
    let mut proxies = String::new();
    for link in topology.links() {
        let rules = link.rules();
        let open = rules.open_connections();
        writeln!(proxies, "{}: {open} connections, rules {:?}", link.name(), rules.counts())?;
    }
    std::fs::write(folder.join("proxies.txt"), proxies)?;
    let mut logs = String::new();
    for process in topology.processes() {
        let (name, pid) = (&process.program.name, process.pid());
        writeln!(logs, "== {name}, pid {pid:?}, state {}", state(pid))?;
        writeln!(logs, "{}\n", tail(&process.program.log(), TAIL))?;
    }
    std::fs::write(folder.join("logs.txt"), logs)?;
    metrics(topology, &folder).await?;
    Ok(folder)
}

/// What the system says of a process: `S (sleeping)`, `T (stopped)`.
fn state(pid: Option<i32>) -> String {
    let status = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok());
    let line = status.as_deref().and_then(|status| status.lines().find(|line| line.starts_with("State:")));
    line.unwrap_or("gone").to_owned()
}

/// The lines of an export that belong to runs which have not ended.
fn open_runs(export: &str) -> String {
    let mut open = std::collections::BTreeSet::new();
    let mut kept = String::new();
    for line in export.lines() {
        let Ok(parsed) = serde_json::from_str::<Value>(line) else { continue };
        let row = &parsed["row"];
        let of_open = match parsed["table"].as_str() {
            Some("runs") if row["closed_at"].is_null() => {
                open.insert(row["run_id"].as_str().unwrap_or_default().to_owned());
                true
            }
            Some("runs") => false,
            _ => parsed["run_id"].as_str().is_some_and(|run| open.contains(run)),
        };
        if of_open {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

async fn postgres(topology: &Topology) -> String {
    const TABLES: [(&str, &str); 3] = [
        ("pg_stat_activity", "SELECT coalesce(json_agg(t), '[]')::text FROM pg_stat_activity t"),
        ("pg_locks", "SELECT coalesce(json_agg(t), '[]')::text FROM pg_locks t"),
        ("sessions", "SELECT coalesce(json_agg(t), '[]')::text FROM sessions t"),
    ];
    if topology.backend.is_none() {
        return "the store is SQLite\n".to_owned();
    }
    let asked = async {
        let mut connection = sqlx::PgConnection::connect(&topology.source.url).await?;
        let mut text = String::new();
        for (name, query) in TABLES {
            let rows: String = sqlx::query_scalar(query).fetch_one(&mut connection).await?;
            text.push_str(&format!("== {name}\n{rows}\n"));
        }
        anyhow::Ok(text)
    };
    match tokio::time::timeout(Duration::from_secs(10), asked).await {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => format!("Postgres does not answer: {error:#}\n"),
        Err(_) => "Postgres does not answer within 10 s\n".to_owned(),
    }
}

async fn metrics(topology: &Topology, folder: &Path) -> anyhow::Result<()> {
    for node in &topology.nodes {
        let asked = crate::scrape::get(node.port, "/metrics");
        let text = match tokio::time::timeout(Duration::from_secs(5), asked).await {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => format!("{error:#}\n"),
            Err(_) => "no answer within 5 s\n".to_owned(),
        };
        std::fs::write(folder.join(format!("{}.metrics", node.process.program.name)), text)?;
    }
    Ok(())
}
