//! Fixed seeds of chaos, one after the other: each loads two cores by itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use everstep_chaos::case::Options;
use everstep_chaos::judge::summary;
use everstep_chaos::run::run;
use everstep_chaos::topology::{Layout, StoreKind};
use everstep_checker::Word;
use everstep_tests::servers::require;

const LENGTH: Duration = Duration::from_secs(25);

async fn passes(seed: u64, store: StoreKind) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}-{seed}", store.as_str()));
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_everstep-chaos"));
    let layout = Layout::new(seed, store, binary, folder.clone());
    let verdict = run(Options::of_chaos(layout), LENGTH).await?;
    // INVALID is no PASS: a seed that is here meets what a case has to meet.
    assert_eq!(verdict.verdict, Word::Pass, "{}\n{}", folder.display(), summary(&verdict));
    // A case is large, and this one has nothing to tell.
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_seeds_pass() -> anyhow::Result<()> {
    passes(1, StoreKind::Sqlite).await?;
    if require("pg")? && require("nats")? {
        passes(2, StoreKind::Postgres).await?;
        passes(3, StoreKind::Postgres).await?;
    }
    Ok(())
}
