//! What the tests have in common.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use everstep_chaos::case::Case;
use everstep_chaos::judge::summary;
use everstep_chaos::scrape::get;
use everstep_chaos::topology::{Layout, StoreKind};
use everstep_checker::format::{EXPORT, HISTORY, HistoryEntry, JOURNAL, JournalEntry, read_all};
use everstep_checker::{Verdict, Word};
use everstep_tests::servers::require;
use serde_json::Value;

/// The longest that anything here is waited for.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A layout whose case is in a folder named after the test.
pub(crate) fn layout(test: &str, seed: u64, store: StoreKind) -> Layout {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fault-{test}"));
    Layout::new(seed, store, PathBuf::from(env!("CARGO_BIN_EXE_everstep-chaos")), folder)
}

/// Whether Postgres and NATS are there.
pub(crate) fn has_servers() -> anyhow::Result<bool> {
    Ok(require("pg")? && require("nats")?)
}

/// Says past libtest's capture that a test could not be carried out here, and why.
pub(crate) fn skipped(why: &str) -> anyhow::Result<()> {
    let thread = std::thread::current();
    writeln!(std::io::stderr(), "SKIPPED {}: {why}", thread.name().unwrap_or("a test"))?;
    Ok(())
}

/// The end of a case that has to be a good one. Its folder stays when it is not.
pub(crate) async fn passes(case: Case) -> anyhow::Result<Verdict> {
    let folder = case.folder().to_path_buf();
    let verdict = case.finish().await?;
    ensure!(verdict.verdict == Word::Pass, "{}\n{}", folder.display(), summary(&verdict));
    Ok(verdict)
}

/// As [`passes`], for a test that looks at the case afterwards and gives it to [`drop_case`] then.
pub(crate) fn drop_case(folder: &Path) -> anyhow::Result<()> {
    Ok(std::fs::remove_dir_all(folder)?)
}

/// The effect journal so far.
pub(crate) fn journal(folder: &Path) -> anyhow::Result<Vec<JournalEntry>> {
    Ok(read_all(&folder.join(JOURNAL))?.unwrap_or_default())
}

/// What clients were told when something did not work.
pub(crate) fn errors(folder: &Path) -> anyhow::Result<Vec<String>> {
    let history: Vec<HistoryEntry> = read_all(&folder.join(HISTORY))?.unwrap_or_default();
    Ok(history.into_iter().filter_map(|entry| entry.error).collect())
}

/// The events of the export, as (run id, row).
pub(crate) fn events(folder: &Path) -> anyhow::Result<Vec<(String, Value)>> {
    let lines: Vec<Value> = read_all(&folder.join(EXPORT))?.unwrap_or_default();
    let of = |mut line: Value| {
        (line["table"] == "events")
            .then(|| (line["run_id"].as_str().unwrap_or_default().to_owned(), line["row"].take()))
    };
    Ok(lines.into_iter().filter_map(of).collect())
}

/// Waits until a node says whether it is ready as it should be, and gives its words.
pub(crate) async fn readiness(port: u16, limit: Duration, ready: bool) -> anyhow::Result<String> {
    let said = format!("\"ready\":{ready}");
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let asking = async {
        loop {
            if let Ok(body) = get(port, "/readyz").await
                && body.contains(&said)
            {
                return body;
            }
            tick.tick().await;
        }
    };
    let asked = tokio::time::timeout(limit, asking).await;
    asked.with_context(|| format!("the node on port {port} never said {said} within {limit:?}"))
}

/// Waits until a node says that it is not ready, and gives its reasons.
pub(crate) async fn not_ready(port: u16, limit: Duration) -> anyhow::Result<String> {
    readiness(port, limit, false).await
}
