//! Crash at every line, on both stores.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::ensure;
use everstep_chaos::enumerate::{Yard, all};
use everstep_chaos::topology::StoreKind;
use everstep_tests::servers::require;

/// Cases at one time; most of one is waiting.
const AT_ONCE: usize = 6;

async fn enumerate(store: StoreKind) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("enumerate-{}", store.as_str()));
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_everstep-chaos"));
    let yard = Arc::new(Yard::open(store, binary, folder).await?);
    let (count, complaints) = all(yard, AT_ONCE).await?;
    eprintln!("{count} cases on {}", store.as_str());
    ensure!(complaints.is_empty(), "{} of {count} cases:\n{}", complaints.len(), complaints.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failpoint_on_sqlite() -> anyhow::Result<()> {
    enumerate(StoreKind::Sqlite).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failpoint_on_postgres() -> anyhow::Result<()> {
    if !require("pg")? || !require("nats")? {
        return Ok(());
    }
    enumerate(StoreKind::Postgres).await
}
