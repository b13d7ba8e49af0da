//! The schedule, without processes.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

const FIELD: Field =
    Field { store: StoreKind::Postgres, nodes: 2, workers: 3, lease_ms: 2_000, clocks: true };

#[test]
fn a_seed_draws_one_schedule() {
    let draw = |seed| draw(seed, &FIELD, Duration::from_secs(60));
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn a_schedule_is_as_long_as_asked_and_holds_what_a_case_needs() {
    for (seed, store) in
        (0..200).map(|seed| (seed, [StoreKind::Postgres, StoreKind::Sqlite][seed as usize % 2]))
    {
        let nodes = if store == StoreKind::Sqlite { 1 } else { 2 };
        let field = Field { store, nodes, ..FIELD };
        let schedule = draw(seed, &field, Duration::from_secs(25));
        assert_eq!(schedule.iter().map(|period| period.length_ms).sum::<u64>(), 25_000);
        let drawn: BTreeSet<Card> = schedule.iter().flat_map(|p| &p.strikes).map(|s| s.card).collect();
        let missing: Vec<Card> = Card::musts(&field).into_iter().filter(|c| !drawn.contains(c)).collect();
        assert!(missing.is_empty(), "seed {seed}: {missing:?} of {drawn:?}");
        for strike in schedule.iter().flat_map(|period| &period.strikes) {
            assert!(strike.victim < strike.card.victims(&field).max(1), "{strike:?}");
        }
    }
}

#[test]
fn every_fault_comes_up_and_a_quarter_of_the_periods_is_quiet() {
    let schedule = draw(3, &FIELD, Duration::from_secs(3_600));
    let drawn: BTreeSet<Card> = schedule.iter().flat_map(|p| &p.strikes).map(|s| s.card).collect();
    assert_eq!(drawn, Card::all(&FIELD).into_iter().collect());
    let quiet = schedule.iter().filter(|period| period.strikes.is_empty()).count();
    let share = quiet * 100 / schedule.len();
    assert!((15..40).contains(&share), "{share} % quiet");
}

#[test]
fn faults_of_one_period_leave_each_other_alone() {
    for seed in 0..50 {
        for period in draw(seed, &FIELD, Duration::from_secs(120)) {
            let keys: Vec<Key> = period.strikes.iter().flat_map(|s| s.card.keys(s.victim, &FIELD)).collect();
            let distinct: BTreeSet<Key> = keys.iter().copied().collect();
            assert_eq!(keys.len(), distinct.len(), "{:?}", period.strikes);
        }
    }
}
