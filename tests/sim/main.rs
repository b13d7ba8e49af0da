//! Deterministic simulation: many nodes over one simulated store and a lossy bus, one virtual clock, one
//! seed. `cargo xtask sim` is the way in; its variables are read here.
//!
//! A failing seed is written to a file that `cargo xtask sim --replay` repeats exactly. Seeds that found bugs
//! stay in `corpus/` for ever. What is real here: the core, the nodes, the store's semantics. What is
//! modelled: the worker's side of the stream, the bus, the network, time.
//!
//! # Clocks
//! Nodes are told the time by the store, workers count from the moment of what they hear: neither ever
//! reads its host's wall clock, so there is none here to jump, and `nobody_reads_a_wall_clock` holds the sources
//! to it. The database's clock is the one that decides, and it is set forward and back by seconds.

mod check;
mod children;
mod client;
mod faults;
mod full;
mod hands;
mod model;
mod nodes;
mod planted;
mod queued;
mod replay;
mod steps;
mod store;
mod updates;
mod verdict;
mod worker;
mod workers;
mod world;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail, ensure};
use everstep_tests::program::Profile;

use replay::{Failed, Replay};
use verdict::Totals;
use world::Trace;

/// Seeds that a plain test run plays.
const SEEDS: u64 = 2_000;

fn number(name: &str) -> anyhow::Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{name}={text}: not a number"))?)),
        Err(_) => Ok(None),
    }
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

#[test]
fn every_run_ends_as_predicted_whatever_is_lost() -> anyhow::Result<()> {
    if let Some(file) = std::env::var_os("EVERSTEP_SIM_REPLAY") {
        let replay = Replay::read(Path::new(&file))?;
        eprintln!("{}", replay.describe());
        let totals = replay.play(Trace::Loud).map_err(|problem| anyhow::anyhow!(problem))?;
        eprintln!("seed {} passes now: {totals:?}", replay.seed);
        return Ok(());
    }
    let count = number("EVERSTEP_SIM_SEEDS")?.unwrap_or(SEEDS);
    let from = number("EVERSTEP_SIM_FROM")?.unwrap_or(1);
    let began = std::time::Instant::now();
    let (totals, failed) = play(from, count)?;
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    eprintln!("{count} seeds from {from}, {:.0} a minute: {totals:?}", count as f64 / minutes);
    for failure in &failed {
        eprintln!("{}", failure.keep(&here())?);
    }
    ensure!(failed.is_empty(), "{} of {count} seeds failed", failed.len());
    // A simulation in which nothing went wrong proves nothing.
    if count >= SEEDS {
        for (what, n) in totals.shown() {
            ensure!(n > 0, "no seed showed {what}");
        }
    }
    Ok(())
}

/// Plays seeds on all cores; the result does not depend on how many there are.
fn play(from: u64, count: u64) -> anyhow::Result<(Totals, Vec<Failed>)> {
    let next = AtomicU64::new(from);
    let found = Mutex::new((Totals::default(), Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    let played = Replay::of(seed).play(Trace::Off);
                    let Ok(mut found) = found.lock() else { return };
                    match played {
                        Ok(totals) => found.0.add(&totals),
                        Err(problem) => found.1.push(Failed { replay: Replay::of(seed), problem }),
                    }
                }
            });
        }
    });
    let Ok((totals, mut failed)) = found.into_inner() else { bail!("a thread of the simulation panicked") };
    failed.sort_by_key(|f: &Failed| f.replay.seed);
    Ok((totals, failed))
}

/// One file a seed that found a bug once: its first line is `seed N`, the next one says what it found.
#[test]
fn seeds_that_found_bugs_pass_for_ever() -> anyhow::Result<()> {
    for entry in std::fs::read_dir(here().join("sim/corpus"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|e| e != "txt") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let mut lines = text.lines();
        let seed = lines.next().and_then(|l| l.strip_prefix("seed ")?.trim().parse().ok());
        let seed: u64 = seed.with_context(|| format!("{}: does not begin with `seed N`", path.display()))?;
        let found = lines.next().filter(|l| !l.is_empty());
        ensure!(found.is_some(), "{}: does not say what it found", path.display());
        if let Err(problem) = Replay::of(seed).play(Trace::Off) {
            bail!("{} fails again: {problem}", path.display());
        }
    }
    Ok(())
}

#[test]
fn one_seed_gives_one_history() {
    for seed in 1..20 {
        let (a, b) = (Replay::of(seed).play(Trace::Off), Replay::of(seed).play(Trace::Off));
        assert_eq!(a, b);
    }
    assert_eq!(Replay::of(1).profile, Profile::Sim);
}

/// The end of a span, which decides nothing.
const TELEMETRY: &str = "everstep/src/trace.rs";

/// Whoever reads a host's wall clock can be fooled by it, and no simulation could show that.
#[test]
fn nobody_reads_a_wall_clock() -> anyhow::Result<()> {
    let mut folders: Vec<PathBuf> = [
        "everstep-core",
        "everstep-engine",
        "everstep-store",
        "everstep-store-postgres",
        "everstep-dispatch",
        "everstep",
    ]
    .iter()
    .map(|name| here().join("../crates").join(name).join("src"))
    .collect();
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            let text = std::fs::read_to_string(&path)?;
            if path.ends_with(TELEMETRY) {
                continue;
            }
            for call in ["SystemTime::now", "Utc::now", "Local::now"] {
                ensure!(!text.contains(call), "{} calls {call}", path.display());
            }
        }
    }
    ensure!(files > 50, "only {files} files were looked at");
    Ok(())
}
