//! The power fails, and the disk is slow: a server on SQLite goes on from what it had synced, and from that only.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::load::{self, Account, Clients};
use crate::shim::Shim;
use crate::support::{Running, everstep, folder};

const DATABASE: &str = "sqlite:power.db";
/// Answers after which the power fails, from among the first to well behind a checkpoint of SQLite's.
const CUTS: [usize; 5] = [2, 9, 40, 120, 400];
/// A planted bug is found within so many tries, or the test that should find it is worth nothing.
const TRIES: usize = 50;
const SLOW_SYNC: Duration = Duration::from_millis(200);

/// A server whose syncs are watched.
async fn server(folder: &Path, shim: &Shim, more: &[(&str, &str)]) -> anyhow::Result<Running> {
    let arguments = ["server", "--lease", "5s", "--listen", "127.0.0.1:0", "--database-url", DATABASE];
    let mut command = everstep(folder, &arguments);
    shim.preload(&mut command);
    command.envs(more.iter().copied());
    Running::server(command).await
}

/// Cuts the power after each of the `cuts`, each time on what the last cut left. Says what was acknowledged and is
/// lost then; the first loss ends it.
async fn cut_power(cuts: &[usize], bug: Option<&str>) -> anyhow::Result<Vec<String>> {
    let (shim, account) = (Shim::compile().await?, Account::default());
    let planted: Vec<(&str, &str)> = bug.iter().map(|bug| ("EVERSTEP_PLANTED_BUG", *bug)).collect();
    let mut data = folder()?;
    // An orderly start and end without the bug: whatever is lost later was written later.
    ensure!(server(data.path(), &shim, &[]).await?.terminate().await? == Some(0), "no orderly end");
    for cut in cuts {
        let node = server(data.path(), &shim, &planted).await?;
        let worker = load::worker(&node.address, &account)?;
        let clients = Clients::start(&node.address, &format!("cut-{cut}"), &account)?;
        account.answers(account.so_far().answers() + cut).await?;
        node.kill_9().await?;
        clients.stop().await.ok();
        drop(worker);
        let told = account.so_far();

        let left = folder()?;
        let files = shim.restore(data.path(), left.path())?;
        ensure!(files.iter().any(|name| name == "power.db"), "nothing was ever synced: {files:?}");
        // What does not even open is as lost as what is not there.
        let Ok(node) = server(left.path(), &shim, &[]).await else {
            return Ok(vec![format!("no server starts on {files:?}")]);
        };
        let losses = load::losses(&node.address, &told).await?;
        if !losses.is_empty() {
            return Ok(losses);
        }
        let worker = load::worker(&node.address, &account)?;
        load::finish(&node.address).await?;
        drop(worker);
        ensure!(node.terminate().await? == Some(0), "no orderly end");
        let runs = load::rebuild_check(left.path(), DATABASE).await?;
        ensure!(runs >= told.started.len(), "{runs} runs of {}", told.started.len());
        data = left;
    }
    Ok(Vec::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_power_cut() -> anyhow::Result<()> {
    let losses = cut_power(&CUTS, None).await?;
    assert!(losses.is_empty(), "{losses:#?}");
    Ok(())
}

/// The same procedure finds a SQLite that does not wait for the disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_finds_a_database_that_does_not_sync() -> anyhow::Result<()> {
    for try_number in 1..=TRIES {
        let losses = cut_power(&[try_number + 1], Some("sqlite-no-sync")).await?;
        if let Some(loss) = losses.first() {
            assert!(loss.contains("acknowledged") || loss.contains("no server starts"), "{loss}");
            return Ok(());
        }
    }
    anyhow::bail!("{TRIES} power cuts, and nothing was lost: the shim or the planted bug does nothing")
}

/// Each sync takes a fifth of a second. Work is slow, and nothing else: no lease is lost, so no step runs twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_costs_time_and_nothing_else() -> anyhow::Result<()> {
    let (shim, account, folder) = (Shim::compile().await?, Account::default(), folder()?);
    let delay = SLOW_SYNC.as_micros().to_string();
    let node = server(folder.path(), &shim, &[("DURABLE_DELAY_US", &delay)]).await?;
    let begun = Instant::now();
    let worker = load::worker(&node.address, &account)?;
    let clients = Clients::start(&node.address, "slow", &account)?;
    account.answers(1).await?;
    assert!(begun.elapsed() >= SLOW_SYNC, "an answer came before any sync could end");
    account.answers(60).await?;
    clients.stop().await.context("a client was failed")?;
    let lost = load::finish(&node.address).await?;
    assert_eq!(lost, 0, "leases are kept");
    let twice: Vec<_> = account.so_far().effects.into_iter().filter(|(_, times)| *times != 1).collect();
    assert!(twice.is_empty(), "steps ran again: {twice:?}");
    drop(worker);
    assert_eq!(node.terminate().await?, Some(0));
    load::rebuild_check(folder.path(), DATABASE).await?;
    Ok(())
}
