//! Runs that follow runs: each end that names a successor has one, which begins with what it is given again; and a
//! signal is taken once along the whole chain.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{Event, EventBody, RunId, RunStarted, Seq};

use crate::case::{Case, Tables};
use crate::verdict::Check;

/// Both sides of every link between a run and the one that follows it.
pub(crate) fn check(case: &Case) -> Check {
    let mut check = Check::new("runs that follow runs", &["INV-06", "INV-29", "INV-31"]);
    let mut followed: BTreeMap<RunId, RunId> = BTreeMap::new();
    for (id, tables) in &case.runs {
        let Some(successor) = tables.events.last().and_then(|e| e.body.successor()) else { continue };
        check.looked();
        if let Some(other) = followed.insert(successor, *id) {
            check.problem(format!("run {successor} follows two runs: {other} and {id}"));
        }
        match case.runs.get(&successor) {
            None => {
                check.problem(format!("run {id}: LOST: {successor}, which should follow it, never began"))
            }
            Some(next) => follows((*id, tables), (successor, next), &mut check),
        }
    }
    for (id, tables) in &case.runs {
        let Some(previous) = started(tables).and_then(|start| start.origin.previous) else { continue };
        if followed.get(id) != Some(&previous) {
            check.problem(format!("PHANTOM: run {id} follows {previous}, whose end does not name it"));
        }
    }
    for id in case.runs.keys().filter(|id| !followed.contains_key(id)) {
        signals(case, *id, &mut check);
    }
    check
}

fn started(tables: &Tables) -> Option<&RunStarted> {
    match tables.events.first().map(|e| &e.body) {
        Some(EventBody::RunStarted(start)) => Some(start),
        _ => None,
    }
}

/// The last run of the chain that `id` is in.
pub(crate) fn last_of(case: &Case, id: RunId) -> Option<(RunId, &Tables)> {
    chain(case, id).last().copied()
}

/// A run and those that follow it, as far as they are there.
fn chain(case: &Case, first: RunId) -> Vec<(RunId, &Tables)> {
    let (mut runs, mut seen, mut next) = (Vec::new(), BTreeSet::new(), Some(first));
    while let Some(id) = next.take_if(|id| seen.insert(*id)) {
        let Some(tables) = case.runs.get(&id) else { break };
        runs.push((id, tables));
        next = tables.events.last().and_then(|e| e.body.successor());
    }
    runs
}

/// The successor is of the same workflow and chain, and begins with copies of what was carried, in order.
fn follows((id, old): (RunId, &Tables), (successor, new): (RunId, &Tables), check: &mut Check) {
    let what = format!("run {successor}, after {id}");
    let (Some(before), Some(start)) = (started(old), started(new)) else { return };
    let first = before.origin.first.unwrap_or(id);
    if start.workflow_id != before.workflow_id {
        check.problem(format!(
            "{what}: has the workflow id {}, not {}",
            start.workflow_id, before.workflow_id
        ));
    }
    if start.origin.previous != Some(id) || start.origin.first != Some(first) {
        let (previous, of) = (start.origin.previous, start.origin.first);
        check.problem(format!("{what}: says that it follows {previous:?} in the chain of {of:?}"));
    }
    let given: Vec<&Event> = carried(old);
    for (n, seq) in named(old).into_iter().enumerate() {
        let Some(original) = given.get(n).filter(|e| e.seq == seq) else {
            return check
                .problem(format!("{what}: is given event {seq}, which is nothing to be given again"));
        };
        let copy = new.events.get(n + 1).map(|e| &e.body);
        if copy != Some(&original.body) {
            let kind = copy.map_or("nothing", EventBody::kind);
            check.problem(format!("{what}: LOST: event {seq} was to be given again, there is {kind}"));
        }
    }
}

/// What the end of a run says is given again.
fn named(tables: &Tables) -> Vec<Seq> {
    match tables.events.last().map(|e| &e.body) {
        Some(EventBody::RunContinued { carried, .. }) => carried.clone(),
        // Another attempt starts over, with every signal.
        Some(body) if body.successor().is_some() => {
            let signals = tables.events.iter().filter(|e| matches!(e.body, EventBody::SignalReceived { .. }));
            signals.map(|e| e.seq).collect()
        }
        _ => Vec::new(),
    }
}

/// The events of a run that its successor is given again.
fn carried(tables: &Tables) -> Vec<&Event> {
    let named: BTreeSet<Seq> = named(tables).into_iter().collect();
    let may = |e: &&Event| {
        matches!(e.body, EventBody::SignalReceived { .. } | EventBody::CancelRequested { .. })
            && named.contains(&e.seq)
    };
    tables.events.iter().filter(may).collect()
}

/// Along a chain a signal is received once; what is more are the copies that a run was given.
fn signals(case: &Case, first: RunId, check: &mut Check) {
    let mut received: BTreeMap<&str, RunId> = BTreeMap::new();
    let mut given = 0;
    for (id, tables) in chain(case, first) {
        for event in tables.events.iter().skip(1 + given) {
            let EventBody::SignalReceived { signal_id, .. } = &event.body else { continue };
            check.looked();
            if let Some(before) = received.insert(signal_id, id).filter(|before| *before != id) {
                check.problem(format!(
                    "DUPLICATE: run {id} took signal {signal_id}, which {before} had taken"
                ));
            }
        }
        given = named(tables).len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::features::{CARRIED, GOES_ON, NEXT, case};
    use crate::fixture::{broken_in, run_id};

    fn found(part: &str, change: impl FnOnce(&mut Case)) {
        broken_in(case, check, part, change);
    }

    fn next(case: &mut Case) -> &mut Tables {
        case.runs.entry(run_id(NEXT)).or_default()
    }

    fn start(case: &mut Case, change: impl FnOnce(&mut RunStarted)) {
        if let EventBody::RunStarted(start) = &mut next(case).events[0].body {
            change(start);
        }
    }

    #[test]
    fn a_chain_passes() {
        let check = check(&case());
        assert!(check.ok && check.checked > 2, "{check:?}");
    }

    #[test]
    fn a_successor_that_is_not_there_or_not_named_is_found() {
        found("LOST", |c| drop(c.runs.remove(&run_id(NEXT))));
        found("PHANTOM", |c| drop(c.runs.remove(&run_id(GOES_ON))));
        found("says that it follows", |c| start(c, |s| s.origin.first = Some(run_id(99))));
        found("has the workflow id", |c| start(c, |s| s.workflow_id = "other".to_owned()));
        found("follows two runs", |c| {
            let events = c.runs[&run_id(GOES_ON)].events.clone();
            c.runs.entry(run_id(98)).or_default().events = events;
        });
    }

    #[test]
    fn a_signal_that_was_not_given_again_is_found() {
        found("LOST: event", |c| drop(next(c).events.remove(CARRIED)));
        found("LOST: event", |c| {
            if let EventBody::SignalReceived { signal_id, .. } = &mut next(c).events[CARRIED].body {
                signal_id.push('x');
            }
        });
        found("nothing to be given again", |c| {
            let events = &mut c.runs.entry(run_id(GOES_ON)).or_default().events;
            if let Some(EventBody::RunContinued { carried, .. }) = events.last_mut().map(|e| &mut e.body) {
                carried.push(1);
            }
        });
    }

    #[test]
    fn a_signal_that_was_taken_twice_along_the_chain_is_found() {
        found("DUPLICATE", |c| {
            let taken = c.runs[&run_id(GOES_ON)].events.iter().find_map(|e| match &e.body {
                body @ EventBody::SignalReceived { signal_id, .. } if signal_id == "taken" => {
                    Some(body.clone())
                }
                _ => None,
            });
            let at = next(c).events.len() - 1;
            let mut again = next(c).events[at].clone();
            again.body = taken.unwrap_or(again.body);
            next(c).events.insert(at, again);
        });
    }
}
