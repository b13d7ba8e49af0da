//! set-full, as Jepsen calls it: what was acknowledged is in the log, once, and nothing else is.
//!
//! For each kind of element a client's op is acknowledged, refused or unknown. In the log and
//! acknowledged: fine. Acknowledged and not in the log: LOST. Twice: DUPLICATE. In the log and never
//! attempted, or only ever refused: PHANTOM. Unknown and in the log: RECOVERED, which is legal.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{Actor, EventBody};

use crate::Totals;
use crate::case::{Case, Op, Outcome};
use crate::format::OpKind;
use crate::verdict::Check;

/// A kind of element.
struct Kind {
    name: &'static str,
    inv: &'static [&'static str],
    op: OpKind,
    /// Whether an op is one of that kind.
    is: fn(OpKind) -> bool,
}

const KINDS: [Kind; 4] = [
    Kind { name: "starts", inv: &["INV-06", "INV-07", "INV-37"], op: OpKind::Start, is: OpKind::starts },
    Kind { name: "signals", inv: &["INV-06", "INV-07", "INV-29"], op: OpKind::Signal, is: OpKind::signals },
    Kind { name: "cancels", inv: &["INV-06", "INV-07"], op: OpKind::Cancel, is: |op| op == OpKind::Cancel },
    Kind {
        name: "terminates",
        inv: &["INV-06", "INV-07"],
        op: OpKind::Terminate,
        is: |op| op == OpKind::Terminate,
    },
];

/// Workflow id, and the request id of starts and signals. A run has one cancel request and one end,
/// whoever asked for it first: for those the workflow id says all that the log knows.
type Element = (String, String);

/// What clients know about an element.
#[derive(Debug, Default)]
struct Attempts {
    acked_at: Option<u64>,
    unknown: bool,
}

/// One check for each kind.
pub(crate) fn checks(case: &Case, totals: &mut Totals) -> Vec<Check> {
    KINDS.iter().map(|kind| one(case, kind, totals)).collect()
}

fn one(case: &Case, kind: &Kind, totals: &mut Totals) -> Check {
    let mut check = Check::new(kind.name, kind.inv);
    let Some(ops) = &case.ops else {
        check.note("no client history");
        return check;
    };
    let attempts = attempts(ops, kind);
    let present = present(case, kind.op);
    let mut recovered = 0u64;
    for ((workflow, request), times) in &present {
        check.looked();
        let what = format!("{} {workflow} {request}", kind.op.as_str());
        if *times > 1 {
            check.problem(format!("DUPLICATE: {what} is in the log {times} times"));
        }
        match attempts.get(&(workflow.clone(), request.clone())) {
            None => check.problem(format!("PHANTOM: {what} is in the log, and nobody asked for it")),
            Some(Attempts { acked_at: Some(_), .. }) => {}
            Some(Attempts { unknown: true, .. }) => recovered += 1,
            Some(_) => check.problem(format!("PHANTOM: {what} is in the log, and was refused")),
        }
    }
    lost(kind, &attempts, &present, &mut check);
    if kind.op == OpKind::Start {
        same_run(ops, &mut check);
        own_run(case, ops, &mut check);
    }
    totals.insert(format!("{}_recovered", kind.name), recovered);
    check
}

fn element(op: &Op) -> Element {
    let request = match op.kind {
        kind if kind.starts() || kind.signals() => op.request_id.clone().unwrap_or_default(),
        _ => String::new(),
    };
    (op.workflow_id.clone(), request)
}

fn attempts(ops: &[Op], kind: &Kind) -> BTreeMap<Element, Attempts> {
    let mut attempts: BTreeMap<Element, Attempts> = BTreeMap::new();
    for op in ops.iter().filter(|op| (kind.is)(op.kind)) {
        let of = attempts.entry(element(op)).or_default();
        match op.outcome {
            Outcome::Ok => of.acked_at = of.acked_at.into_iter().chain(op.replied).min(),
            Outcome::Unknown => of.unknown = true,
            // An update that is refused leaves the run that was started for it.
            Outcome::Fail => of.unknown |= op.kind == OpKind::UpdateWithStart,
        }
    }
    attempts
}

/// How often the log has each element. A signal counts within a run; a cancel and an end as well.
fn present(case: &Case, kind: OpKind) -> BTreeMap<Element, u64> {
    let mut present: BTreeMap<Element, u64> = BTreeMap::new();
    for tables in case.runs.values() {
        let mut in_run: BTreeMap<Element, u64> = BTreeMap::new();
        for event in &tables.events {
            // What another run asked for, or follows from it, nobody else did.
            if matches!(event.actor, Actor::Run(_)) {
                continue;
            }
            let request = match (&event.body, kind) {
                (EventBody::RunStarted(start), OpKind::Start) => start.request_id.clone(),
                (EventBody::SignalReceived { signal_id, .. }, OpKind::Signal) => signal_id.clone(),
                (EventBody::CancelRequested { .. }, OpKind::Cancel)
                | (EventBody::RunTerminated { .. }, OpKind::Terminate) => String::new(),
                _ => continue,
            };
            *in_run.entry((tables.workflow_id().to_owned(), request)).or_default() += 1;
        }
        for (element, times) in in_run {
            let all = present.entry(element).or_default();
            // A request starts one run, ever; the rest is counted by run.
            *all = if kind == OpKind::Start { *all + times } else { times.max(*all) };
        }
    }
    present
}

/// Where a lost element stood among the acknowledged ones tells the likely cause: a prefix was cut off,
/// the last ones never became durable, or one was skipped in between.
fn lost(
    kind: &Kind,
    attempts: &BTreeMap<Element, Attempts>,
    present: &BTreeMap<Element, u64>,
    check: &mut Check,
) {
    let mut acked: Vec<(u64, &Element)> =
        attempts.iter().filter_map(|(element, a)| Some((a.acked_at?, element))).collect();
    acked.sort_unstable();
    let here = |(_, element): &(u64, &Element)| present.contains_key(*element);
    let (first, last) = (acked.iter().position(here), acked.iter().rposition(here));
    for (index, (_, element)) in acked.iter().enumerate() {
        check.looked();
        if present.contains_key(*element) {
            continue;
        }
        let place = match (first, last) {
            (Some(first), _) if index < first => "prefix",
            (_, Some(last)) if index < last => "middle",
            _ => "postfix",
        };
        let (workflow, request) = element;
        let op = kind.op.as_str();
        check.problem(format!(
            "LOST ({place}): {op} {workflow} {request} was acknowledged and is not in the log"
        ));
    }
}

/// INV-37: one request, one run.
fn same_run(ops: &[Op], check: &mut Check) {
    let mut runs: BTreeMap<Element, BTreeSet<&str>> = BTreeMap::new();
    for op in ops.iter().filter(|op| op.kind.starts() && op.outcome == Outcome::Ok) {
        runs.entry(element(op)).or_default().extend(op.run_id.as_deref());
    }
    for ((workflow, request), runs) in runs.into_iter().filter(|(_, runs)| runs.len() > 1) {
        check.problem(format!("start {workflow} {request} was answered with the runs {runs:?}"));
    }
}

/// A start is answered with the run that its own request started.
fn own_run(case: &Case, ops: &[Op], check: &mut Check) {
    for op in ops.iter().filter(|op| op.kind.starts() && op.outcome == Outcome::Ok) {
        let Some(run) = &op.run_id else { continue };
        let tables = run.parse().ok().and_then(|id| case.runs.get(&id));
        let Some(EventBody::RunStarted(start)) = tables.and_then(|t| t.events.first()).map(|e| &e.body)
        else {
            continue;
        };
        let (workflow, request) = element(op);
        if start.workflow_id != workflow || start.request_id != request {
            let (other, by) = (&start.workflow_id, &start.request_id);
            check.problem(format!(
                "start {workflow} {request} was answered with run {run}, which is {other}, started by {by}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{SIGNAL_1, SIGNAL_2, broken, good, op};

    fn of(op: OpKind) -> impl Fn(&Case) -> Check {
        move |case| {
            let found = KINDS.iter().find(|kind| kind.op == op).map(|k| one(case, k, &mut Totals::new()));
            found.unwrap_or_default()
        }
    }

    fn forget(kind: OpKind, request: &'static str) -> impl Fn(&mut Case) {
        move |c| c.ops().retain(|op| op.kind != kind || op.request_id.as_deref() != Some(request))
    }

    fn signal_id(case: &mut Case, at: usize, id: &str) {
        if let EventBody::SignalReceived { signal_id, .. } = &mut case.first().events[at].body {
            id.clone_into(signal_id);
        }
    }

    #[test]
    fn a_good_case_passes() {
        for check in checks(&good(), &mut Totals::new()) {
            assert!(check.ok && check.checked > 0, "{check:?}");
        }
    }

    #[test]
    fn lost_elements_are_found_with_their_place() {
        let signals = of(OpKind::Signal);
        let lose = |at: usize| move |c: &mut Case| drop(c.first().events.remove(at));
        broken(&signals, "LOST (prefix): signal wf-1 s1", lose(SIGNAL_1));
        broken(&signals, "LOST (postfix): signal wf-1 s2", lose(SIGNAL_2));
        broken(&signals, "LOST (middle): signal wf-1 between", |c| {
            c.ops().push(op(4, OpKind::Signal, 1, "between", 10_500));
        });
        broken(of(OpKind::Start), "LOST", |c| drop(c.runs.remove(&crate::fixture::run_id(2))));
        broken(of(OpKind::Terminate), "LOST", |c| {
            c.ops().push(op(4, OpKind::Terminate, 1, "t", 12_000));
        });
        broken(of(OpKind::Cancel), "LOST", |c| c.ops().push(op(4, OpKind::Cancel, 1, "c", 12_000)));
    }

    #[test]
    fn duplicates_are_found() {
        broken(of(OpKind::Signal), "DUPLICATE: signal wf-1 s1", |c| signal_id(c, SIGNAL_2, "s1"));
        broken(of(OpKind::Start), "DUPLICATE: start wf-2 start-wf-2", |c| {
            let events = c.second().events.clone();
            c.runs.entry(crate::fixture::run_id(8)).or_default().events = events;
        });
    }

    #[test]
    fn phantoms_are_found() {
        broken(of(OpKind::Signal), "PHANTOM: signal wf-1 s2", forget(OpKind::Signal, "s2"));
        broken(of(OpKind::Start), "PHANTOM: start wf-2", forget(OpKind::Start, "start-wf-2"));
        broken(of(OpKind::Cancel), "PHANTOM: cancel wf-3", forget(OpKind::Cancel, "c3"));
        broken(of(OpKind::Terminate), "PHANTOM: terminate wf-3", forget(OpKind::Terminate, "t3"));
        broken(of(OpKind::Signal), "and was refused", |c| {
            c.ops().iter_mut().filter(|op| op.kind == OpKind::Signal).for_each(|op| {
                op.outcome = Outcome::Fail;
            });
        });
    }

    #[test]
    fn a_start_that_brings_a_signal_along_is_both() {
        let both = |c: &mut Case| {
            c.ops().retain(|op| op.request_id.as_deref() != Some("s1"));
            c.ops().iter_mut().filter(|op| op.workflow_id == "wf-1" && op.kind == OpKind::Start).for_each(
                |op| {
                    op.kind = OpKind::SignalWithStart;
                },
            );
            signal_id(c, SIGNAL_1, "start-wf-1");
        };
        let mut case = good();
        both(&mut case);
        for kind in [OpKind::Start, OpKind::Signal] {
            assert!(of(kind)(&case).ok, "{:?}", of(kind)(&case));
        }
        broken(of(OpKind::Signal), "LOST (prefix): signal wf-1 start-wf-1", |c| {
            both(c);
            c.first().events.remove(SIGNAL_1);
        });
    }

    #[test]
    fn a_run_whose_first_update_was_refused_may_be_there_or_not() {
        let mut case = good();
        case.ops().iter_mut().filter(|op| op.workflow_id == "wf-2" && op.kind == OpKind::Start).for_each(
            |op| {
                (op.kind, op.outcome) = (OpKind::UpdateWithStart, Outcome::Fail);
            },
        );
        assert!(of(OpKind::Start)(&case).ok);
        case.runs.remove(&crate::fixture::run_id(2));
        assert!(of(OpKind::Start)(&case).ok);
    }

    #[test]
    fn what_was_unknown_and_is_there_is_recovered() {
        let mut case = good();
        case.ops().iter_mut().filter(|op| op.kind == OpKind::Signal).for_each(|op| {
            (op.outcome, op.replied) = (Outcome::Unknown, None);
        });
        let mut totals = Totals::new();
        assert!(checks(&case, &mut totals).iter().all(|c| c.ok));
        assert_eq!(totals["signals_recovered"], 2);
    }

    #[test]
    fn a_start_that_is_answered_with_a_strangers_run_is_found() {
        broken(of(OpKind::Start), "which is wf-2, started by start-wf-2", |c| {
            c.ops()[0].run_id = Some(crate::fixture::run_id(2).to_string());
        });
    }

    #[test]
    fn two_runs_for_one_request_are_found() {
        broken(of(OpKind::Start), "was answered with the runs", |c| {
            let mut again = op(4, OpKind::Start, 1, "start-wf-1", 20_000);
            again.run_id = Some("another".to_owned());
            c.ops().push(again);
        });
    }
}
