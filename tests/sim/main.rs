//! Deterministic simulation: many nodes over one in-memory store and a lossy bus, one virtual clock, one
//! seed.
//!
//! `EVERSTEP_SIM_SEEDS=N` runs N seeds instead of the default; `EVERSTEP_SIM_SEED=S` runs one and prints
//! its trace. A failing seed is printed and repeats exactly. What is real here: the core, the nodes, the
//! store's semantics. What is modelled: the worker's side of the stream, the bus, the network, time.

mod check;
mod client;
mod faults;
mod program;
mod verdict;
mod worker;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::World;

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

/// Seeds that failed once; they stay here for ever.
const REGRESSIONS: &str = include_str!("regressions.txt");

#[test]
fn every_run_ends_as_predicted_whatever_is_lost() {
    if let Some(seed) = env("EVERSTEP_SIM_SEED") {
        World::new(seed, true).play();
        return;
    }
    let old = REGRESSIONS.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.trim().parse().ok());
    let seeds = old.chain(1..=env("EVERSTEP_SIM_SEEDS").unwrap_or(2_000));
    let (mut totals, mut count) = (verdict::Totals::default(), 0);
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| World::new(seed, false).play())) {
            Ok(t) => totals.add(&t),
            Err(panic) => {
                eprintln!("simulation failed: repeat it with EVERSTEP_SIM_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
        count += 1;
    }
    eprintln!("{count} seeds: {totals:?}");
    // A simulation in which nothing went wrong proves nothing.
    for (what, n) in totals.faults() {
        assert!(n > 0, "no seed showed {what}");
    }
}

#[test]
fn one_seed_gives_one_history() {
    let (a, b) = (World::new(7, false).play(), World::new(7, false).play());
    assert_eq!(a, b);
}
