//! Planted bugs: each that a simulation can show is found within few seeds, or the simulation is not to be
//! trusted.

use std::fmt::Write as _;

use anyhow::ensure;
use everstep_fault::Bug;

use crate::replay::Replay;
use crate::world::Trace;

/// Seeds within which a bug has to be found.
const SEEDS_MAX: u64 = 50;

/// Bugs that no simulation in memory can show, and what shows them.
const ELSEWHERE: [(Bug, &str); 1] =
    [(Bug::SqliteNoSync, "the power cuts of everstep-cli's tests: it takes a disk that forgets")];

#[test]
fn planted_bugs_are_found_within_fifty_seeds() -> anyhow::Result<()> {
    let mut table = String::from("planted bug                  seed  found by\n");
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        if let Some((_, where_)) = ELSEWHERE.iter().find(|(other, _)| *other == bug) {
            writeln!(table, "{:<28} -     {where_}", bug.name())?;
            continue;
        }
        let mut failures = (1..=SEEDS_MAX).filter_map(|seed| Some((seed, fails_with(seed, bug)?)));
        match failures.next() {
            Some((seed, problem)) => writeln!(table, "{:<28} {seed:<5} {}", bug.name(), short(&problem))?,
            None => {
                writeln!(table, "{:<28} NOT FOUND in {SEEDS_MAX} seeds", bug.name())?;
                missed.push(bug.name());
            }
        }
    }
    eprintln!("{table}");
    ensure!(missed.is_empty(), "not found: {missed:?}");
    // Without a bug the same seeds pass, so it is the bugs that were found.
    for seed in 1..=SEEDS_MAX {
        let played = Replay::of(seed).play(Trace::Off);
        ensure!(played.is_ok(), "seed {seed} fails without a planted bug: {played:?}");
    }
    Ok(())
}

/// What is wrong with the world of the seed when the bug is planted.
fn fails_with(seed: u64, bug: Bug) -> Option<String> {
    Replay::with_bug(seed, bug).play(Trace::Off).err()
}

fn short(problem: &str) -> String {
    problem.lines().next().unwrap_or_default().chars().take(150).collect()
}
