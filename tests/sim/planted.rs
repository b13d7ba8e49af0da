//! Planted bugs: each that a simulation can show is found within few seeds, or the simulation is not to be
//! trusted.

use std::fmt::Write as _;

use anyhow::ensure;
use everstep_fault::Bug;

use crate::replay::Replay;
use crate::world::Trace;

/// Seeds within which a bug has to be found.
const SEEDS_MAX: u64 = 50;

/// Bugs that few worlds come to: what has to coincide for them is rare.
const RARE: [(Bug, u64); 2] = [(Bug::CarrySeenOnly, 400), (Bug::DeliverAndForget, 200)];

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
        let seeds_max = RARE.iter().find(|(rare, _)| *rare == bug).map_or(SEEDS_MAX, |(_, seeds)| *seeds);
        let mut failures = (1..=seeds_max)
            .filter_map(|seed| Some((seed, Replay::with_bug(seed, bug).play(Trace::Off).err()?)));
        match failures.next() {
            Some((seed, problem)) => writeln!(table, "{:<28} {seed:<5} {}", bug.name(), short(&problem))?,
            None => {
                writeln!(table, "{:<28} NOT FOUND in {seeds_max} seeds", bug.name())?;
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

fn short(problem: &str) -> String {
    problem.lines().next().unwrap_or_default().chars().take(150).collect()
}
