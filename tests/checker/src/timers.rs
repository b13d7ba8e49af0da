//! Timers: never early, once, and not too late once everything is healed.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{Event, EventBody, RunId, TimerKey, TimerKind, Timestamp};

use crate::Totals;
use crate::case::{Case, Tables};
use crate::clock;
use crate::format::{DEFAULT_LATE_BOUND_MS, Meta};
use crate::verdict::Check;

/// A timer that fired: when it was due, and when its event was written.
#[derive(Clone, Copy, Debug)]
struct Fired {
    run: RunId,
    key: TimerKey,
    due: Timestamp,
    at: Timestamp,
}

/// INV-32 and INV-34: no event before its timer is due, one for each timer, none after it was canceled. All
/// of these are database times.
pub(crate) fn early(case: &Case) -> Check {
    let mut check = Check::new("timers", &["INV-32", "INV-34"]);
    for (id, tables) in &case.runs {
        fired(*id, tables, &mut check);
    }
    check
}

/// INV-33: after the heal no timer is later than the bound; over the whole case the 99th percentile is
/// within its bound, if one is set. Lateness up to the heal counts as the fault's.
pub(crate) fn late(case: &Case, totals: &mut Totals) -> Check {
    let mut check = Check::new("lateness", &["INV-33"]);
    let mut quiet = Check::default();
    let all: Vec<Fired> = case.runs.iter().flat_map(|(id, t)| fired(*id, t, &mut quiet)).collect();
    let mut lateness: Vec<u64> = all.iter().map(|f| f.at.since(f.due).as_micros()).collect();
    lateness.sort_unstable();
    totals.insert("timers_fired".to_owned(), lateness.len() as u64);
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        if let Some(value) = at_quantile(&lateness, quantile) {
            totals.insert(format!("timer_late_us_{name}"), value);
        }
    }
    let meta = case.meta.clone().unwrap_or_default();
    if let (Some(bound), Some(p99)) = (meta.late_p99_bound_ms, at_quantile(&lateness, 0.99))
        && p99 > bound * 1_000
    {
        check.problem(format!("the 99th percentile is {} ms late, the bound is {bound} ms", p99 / 1_000));
    }
    let Some(healed) = healed_at(case, &meta) else {
        check.note("no heal, or no way to tell its database time: lateness after it is not judged");
        return check;
    };
    let bound = meta.late_bound_ms.unwrap_or(DEFAULT_LATE_BOUND_MS);
    for timer in all.iter().filter(|f| f.at >= healed) {
        check.looked();
        let late = timer.at.since(timer.due.max(healed)).as_micros() / 1_000;
        if late > bound {
            let (kind, id) = (timer.key.kind.as_str(), timer.key.id);
            check.problem(format!(
                "run {}: {kind} {id} fired {late} ms after it was due and healed",
                timer.run
            ));
        }
    }
    check
}

/// When the last fault was healed, by the database's clock: as the harness says, or the latest that the
/// clocks allow.
fn healed_at(case: &Case, meta: &Meta) -> Option<Timestamp> {
    let at = match meta.healed_at_us {
        Some(at) => at,
        None => clock::offset(case)?.latest_us(meta.healed_mono_ns?),
    };
    Some(Timestamp::from_micros(at))
}

/// The smallest value that at least this share of the sorted `values` does not exceed.
fn at_quantile(values: &[u64], quantile: f64) -> Option<u64> {
    let rank = (quantile * values.len() as f64).ceil() as usize;
    values.get(rank.max(1) - 1).copied()
}

fn fired(id: RunId, tables: &Tables, check: &mut Check) -> Vec<Fired> {
    let mut pending: BTreeMap<TimerKey, Timestamp> = BTreeMap::new();
    let mut over: BTreeSet<TimerKey> = BTreeSet::new();
    let mut all = Vec::new();
    for event in &tables.events {
        match &event.body {
            EventBody::RunStarted(start) => {
                if let Some(timeout) = start.run_timeout {
                    pending.insert(TimerKey::RUN_TIMEOUT, event.at.after(timeout));
                }
            }
            EventBody::TimerStarted { timer, fire_at } => {
                pending.extend([(TimerKey::timer(*timer), *fire_at)]);
            }
            EventBody::TimerCanceled { timer } => {
                pending.remove(&TimerKey::timer(*timer));
                over.insert(TimerKey::timer(*timer));
            }
            EventBody::StepFailed { step, retry_at: Some(at), .. } => {
                pending.insert(TimerKey::retry(*step), *at);
            }
            EventBody::StepStarted { step, .. }
            | EventBody::StepCompleted { step, .. }
            | EventBody::StepFailed { step, retry_at: None, .. } => {
                pending.remove(&TimerKey::retry(*step));
            }
            EventBody::TimerFired { timer } => {
                all.extend(fire(id, event, *timer, (&mut pending, &mut over), check))
            }
            EventBody::RunTimedOut { .. } => {
                all.extend(fire(id, event, TimerKey::RUN_TIMEOUT, (&mut pending, &mut over), check));
            }
            _ => {}
        }
    }
    all
}

fn fire(
    run: RunId,
    event: &Event,
    key: TimerKey,
    (pending, over): (&mut BTreeMap<TimerKey, Timestamp>, &mut BTreeSet<TimerKey>),
    check: &mut Check,
) -> Option<Fired> {
    check.looked();
    let what = format!("run {run}: event {}, {} {}", event.seq, key.kind.as_str(), key.id);
    let Some(due) = pending.remove(&key) else {
        let why = if over.contains(&key) { "has fired or was canceled before" } else { "is not pending" };
        check.problem(format!("{what} fired, and {why}"));
        return None;
    };
    // A step may have another retry; a timer is over.
    if key.kind != TimerKind::Retry {
        over.insert(key);
    }
    if event.at < due {
        check.problem(format!("{what} fired {} us early", due.since(event.at).as_micros()));
    }
    Some(Fired { run, key, due, at: event.at })
}

#[cfg(test)]
mod tests {
    use everstep_core::OpId;

    use super::*;
    use crate::fixture::{BASE_US, END, FIRED, SIGNAL_1, TIMER, broken, good, mono};

    fn lateness(case: &Case) -> Check {
        late(case, &mut Totals::new())
    }

    fn fire_at(case: &mut Case, us: i64) {
        if let EventBody::TimerStarted { fire_at, .. } = &mut case.first().events[TIMER].body {
            *fire_at = Timestamp::from_micros(BASE_US + us);
        }
    }

    #[test]
    fn lateness_is_told() {
        let mut totals = Totals::new();
        assert!(early(&good()).ok && late(&good(), &mut totals).ok);
        assert_eq!((totals["timers_fired"], totals["timer_late_us_p99"]), (1, 500));
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let values: Vec<u64> = (1..=200).collect();
        assert_eq!(at_quantile(&values, 0.5), Some(100));
        assert_eq!(at_quantile(&values, 0.99), Some(198));
        assert_eq!(at_quantile(&values, 1.0), Some(200));
        assert_eq!(at_quantile(&[], 0.5), None);
    }

    #[test]
    fn an_early_timer_is_found() {
        broken(early, "fired 1 us early", |c| fire_at(c, 9_001));
    }

    #[test]
    fn a_timer_that_fires_twice_is_found() {
        broken(early, "has fired or was canceled before", |c| {
            c.first().events[SIGNAL_1].body = EventBody::TimerFired { timer: TimerKey::timer(OpId(3)) };
        });
    }

    #[test]
    fn a_canceled_timer_that_fires_is_found() {
        broken(early, "has fired or was canceled before", |c| {
            c.first().events[FIRED - 1].body = EventBody::TimerCanceled { timer: OpId(3) };
        });
    }

    #[test]
    fn a_timer_that_nobody_started_is_found() {
        broken(early, "is not pending", |c| {
            c.first().events[FIRED].body = EventBody::TimerFired { timer: TimerKey::retry(OpId(2)) };
        });
        broken(early, "run_timeout 0 fired, and is not pending", |c| {
            c.first().events[END].body = EventBody::RunTimedOut { retried_by: None };
        });
    }

    #[test]
    fn a_late_timer_after_the_heal_is_found() {
        let late_by = |us: i64| {
            move |c: &mut Case| {
                c.meta().healed_mono_ns = Some(mono(0));
                for event in &mut c.first().events[FIRED..] {
                    event.at = Timestamp::from_micros(BASE_US + us);
                }
            }
        };
        broken(lateness, "after it was due and healed", late_by(31_000_000));
        let mut within = good();
        late_by(29_000_000)(&mut within);
        let check = lateness(&within);
        assert!(check.ok && check.checked == 1, "{check:?}");
    }

    #[test]
    fn what_was_late_because_of_the_fault_is_no_problem() {
        let mut case = good();
        case.meta().healed_at_us = Some(BASE_US + 60_000_000);
        for event in &mut case.first().events[FIRED..] {
            event.at = Timestamp::from_micros(BASE_US + 61_000_000);
        }
        assert!(lateness(&case).ok);
        broken(lateness, "the 99th percentile", |c| {
            c.meta().late_p99_bound_ms = Some(1);
            fire_at(c, 7_000);
        });
    }
}
