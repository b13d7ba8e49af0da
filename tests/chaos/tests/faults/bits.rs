//! F23: bits that flip on disk, under SQLite and under NATS.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use everstep_chaos::case::{Case, Options};
use everstep_chaos::dice::{Dice, Stream};
use everstep_chaos::pace;
use everstep_chaos::topology::{StoreKind, blocking, held};
use everstep_checker::format::EXPORT;
use everstep_tests::servers::free_port;
use tokio::process::Command;

use crate::support::{LONG, drop_case, has_servers, layout, passes};

fn flip(path: &Path, byte: usize, bit: u32) -> anyhow::Result<()> {
    let mut bytes = std::fs::read(path)?;
    *bytes.get_mut(byte).with_context(|| format!("{} has no byte {byte}", path.display()))? ^= 1 << (bit % 8);
    Ok(std::fs::write(path, bytes)?)
}

/// The end of this binary's command on a database file, and what it said.
async fn said(arguments: &[&str], database: &Path) -> anyhow::Result<(bool, Vec<u8>, String)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everstep-chaos"));
    command.args(arguments).args(["--database-url", &format!("sqlite:{}", database.display())]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LONG, command.output()).await.context("it does not end")??;
    Ok((output.status.success(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Bytes of a user's payload beyond which the store keeps their hash beside them, with room for the rest of a line.
const HASHED: usize = 34 << 10;
/// Flips in one database.
const FLIPS: u32 = 60;

/// What the pages of SQLite say has no checksum; what large payloads say has one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_payload_with_a_flipped_bit_is_refused() -> anyhow::Result<()> {
    let layout = layout("f23-pages", 123, StoreKind::Sqlite);
    let (folder, seed) = (layout.case.clone(), layout.seed);
    let case = Case::start(Options::of_fault(layout)).await?;
    case.wait_moved(40, LONG).await?;
    passes(case).await?;
    let (truth, place) = (std::fs::read_to_string(folder.join(EXPORT))?, tempfile::tempdir()?);
    let truth: BTreeSet<&str> = truth.lines().collect();
    let (database, bent) = (folder.join("everstep.db"), place.path().join("bent.db"));
    let size = std::fs::metadata(&database)?.len();
    let mut dice = Dice::new(seed, Stream::Nemesis, 0);
    let (mut refused, mut by_hash) = (0, 0);
    for _ in 0..FLIPS {
        std::fs::copy(&database, &bent)?;
        let at = usize::try_from(dice.below(size))?;
        flip(&bent, at, u32::try_from(dice.below(8))?)?;
        let (ok, export, error) = said(&["admin", "export"], &bent).await?;
        ensure!(ok || error.contains("everstep:"), "byte {at}: {error}");
        refused += u32::from(!ok);
        by_hash += u32::from(error.contains("is missing or damaged"));
        let export = String::from_utf8_lossy(&export);
        let wrong = export.lines().find(|line| line.len() > HASHED && !truth.contains(line));
        ensure!(wrong.is_none() || !ok, "byte {at}: a payload is another now");
    }
    ensure!(by_hash > FLIPS / 4, "{refused} of {FLIPS} were refused, {by_hash} for a payload");
    drop_case(&folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_ahead_log_with_a_flipped_bit_is_refused() -> anyhow::Result<()> {
    let layout = layout("f23-wal", 124, StoreKind::Sqlite);
    let folder = layout.case.clone();
    let case = Case::start(Options::of_fault(layout)).await?;
    case.wait_moved(20, LONG).await?;
    let server = &case.topology().nodes.first().context("a node")?.process;
    let (database, log) = (folder.join("everstep.db"), folder.join("everstep.db-wal"));
    // Not just after it began anew.
    pace::wait_for("commits in the log", LONG, || Ok(frames(&log)? > 50)).await?;
    server.kill_9().await?;
    let listen = format!("127.0.0.1:{}", free_port()?);
    // In the header, in a frame's header, in a page: each takes what was acknowledged behind it along.
    for byte in [9, 40, 2_000] {
        flip(&log, byte, 3)?;
        let (ok, _, error) = said(&["server", "--listen", &listen], &database).await?;
        ensure!(!ok && error.contains("-wal is damaged at byte"), "byte {byte}: {error}");
        flip(&log, byte, 3)?;
    }
    server.want_up();
    case.count("flip_wal", true);
    // Nothing was lost by the tries.
    case.wait_moved(20, LONG).await?;
    passes(case).await?;
    drop_case(&folder)
}

/// Frames since the log began anew: those with the salts of its header.
fn frames(log: &Path) -> anyhow::Result<usize> {
    let bytes = std::fs::read(log)?;
    let (Some(salts), Some(size)) = (bytes.get(16..24), bytes.get(8..12)) else { return Ok(0) };
    let page = usize::try_from(u32::from_be_bytes(size.try_into()?))?;
    let own = |frame: &&[u8]| frame.get(8..16) == Some(salts);
    Ok(bytes[32..].chunks(page + 24).take_while(own).count())
}

fn files_below(folder: &Path, ending: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(files_below(&path, ending)?),
            false => found.extend(path.to_string_lossy().ends_with(ending).then_some(path)),
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bits_under_nats_cost_nothing_but_time() -> anyhow::Result<()> {
    if !has_servers()? {
        return Ok(());
    }
    let layout = layout("f23-nats", 125, StoreKind::Postgres);
    let (folder, seed) = (layout.case.clone(), layout.seed);
    let case = Case::start(Options::of_fault(layout)).await?;
    let mut dice = Dice::new(seed, Stream::Nemesis, 0);
    for _ in 0..3 {
        case.wait_moved(20, LONG).await?;
        let nats = case.topology().backend.clone().context("NATS")?.nats;
        let luck = dice.number();
        let flipped = blocking(move || {
            let mut nats = held(&nats);
            nats.kill_9()?;
            let blocks = files_below(nats.folder(), ".blk")?;
            let mut flipped = 0;
            for block in &blocks {
                let size = usize::try_from(std::fs::metadata(block)?.len())?;
                for n in 0..size.min(8) {
                    flip(block, (usize::try_from(luck >> 8)? + n * size / 8) % size, n as u32)?;
                    flipped += 1;
                }
            }
            nats.start_again()?;
            Ok(flipped)
        })
        .await?;
        case.count("flip_nats", flipped > 0);
        case.wait_moved(30, LONG).await?;
    }
    passes(case).await?;
    drop_case(&folder)
}
