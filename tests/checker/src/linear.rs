//! Each workflow id as one object: absent → running → closed. Is there an order of its clients' ops that
//! explains every reply? (INV-06, INV-08, INV-31.)
//!
//! A run that its workflow ends closes by itself, at any time. The log says only whether that ever happened
//! and how it ended; everything else is what clients saw.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{EventBody, RunId};

use crate::Totals;
use crate::case::{Case, Op, Outcome, Tables};
use crate::format::OpKind;
use crate::search::{Call, Found, Model, STEPS_MAX, search};
use crate::verdict::Check;

/// Ops that a problem shows on each side.
const SHOWN_MAX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Absent,
    Running,
    Closed,
}

/// One workflow id. The masks hold the request ids that have taken effect, by number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    phase: Phase,
    starts: u64,
    /// Signals and the cancel of the present run, and the terminate that ended it.
    accepted: u64,
}

/// What an op says about the object, with its reply.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Takes effect: the request's number.
    Start(u64),
    Deliver(u64),
    Terminate(u64),
    /// Tells the phase, or one of two.
    Saw(Vec<Phase>),
}

struct Workflow {
    /// A run of it closed by itself.
    closes_itself: bool,
    /// How the log leaves it.
    end: Phase,
}

impl Model for Workflow {
    type State = State;
    type Op = Step;

    fn initial(&self) -> State {
        State { phase: Phase::Absent, starts: 0, accepted: 0 }
    }

    fn drift(&self, state: &State) -> Vec<State> {
        if self.closes_itself && state.phase == Phase::Running {
            vec![State { phase: Phase::Closed, ..state.clone() }]
        } else {
            Vec::new()
        }
    }

    fn apply(&self, state: &State, step: &Step) -> Option<State> {
        match step {
            // A repeated request gets the first one's answer, whatever has become of the run.
            Step::Start(id) if state.starts & id != 0 => Some(state.clone()),
            Step::Start(_) if state.phase == Phase::Running => None,
            Step::Start(id) => Some(State { phase: Phase::Running, starts: state.starts | id, accepted: 0 }),
            Step::Deliver(id) | Step::Terminate(id) if state.accepted & id != 0 => Some(state.clone()),
            Step::Deliver(id) if state.phase == Phase::Running => {
                Some(State { accepted: state.accepted | id, ..state.clone() })
            }
            Step::Terminate(id) if state.phase == Phase::Running => {
                Some(State { phase: Phase::Closed, accepted: state.accepted | id, ..state.clone() })
            }
            Step::Deliver(_) | Step::Terminate(_) => None,
            Step::Saw(phases) => phases.contains(&state.phase).then(|| state.clone()),
        }
    }

    fn is_end(&self, state: &State) -> bool {
        state.phase == self.end
    }
}

/// One search for each workflow id.
pub(crate) fn check(case: &Case, totals: &mut Totals) -> Check {
    let mut check = Check::new("linearizability", &["INV-06", "INV-08", "INV-31"]);
    let Some(ops) = &case.ops else {
        check.note("no client history");
        return check;
    };
    let runs = case.by_workflow();
    let mut by_key: BTreeMap<&str, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        by_key.entry(&op.workflow_id).or_default().push(op);
    }
    let mut undecided = 0u64;
    for (workflow, ops) in by_key {
        check.looked();
        let model = of_log(runs.get(workflow).map_or(&[], Vec::as_slice));
        let calls = calls(&ops);
        let found = calls.as_ref().map_or(Found::Undecided, |calls| search(&model, calls, STEPS_MAX));
        match found {
            Found::Order => {}
            Found::Nothing(deepest) => {
                check.problem(explain(workflow, calls.as_deref().unwrap_or_default(), &deepest));
            }
            Found::Undecided => {
                undecided += 1;
                check.note(format!("undecided: {workflow}, with {} ops", ops.len()));
            }
        }
    }
    same_results(ops, &mut check);
    totals.insert("keys_undecided".to_owned(), undecided);
    check
}

fn of_log(runs: &[(RunId, &Tables)]) -> Workflow {
    let ends_itself = |tables: &Tables| {
        let last = tables.events.last().map(|e| &e.body);
        // A run that goes on in another one, or is tried again, leaves its workflow id open.
        last.is_some_and(|b| {
            b.is_terminal() && !matches!(b, EventBody::RunTerminated { .. }) && b.successor().is_none()
        })
    };
    let end = match runs.last() {
        None => Phase::Absent,
        Some((_, tables)) if tables.is_closed() => Phase::Closed,
        Some(_) => Phase::Running,
    };
    Workflow { closes_itself: runs.iter().any(|(_, tables)| ends_itself(tables)), end }
}

/// What the ops of one key say, without those that say nothing. Requests are numbered as they come; `None`
/// when there are more than there are bits.
fn calls<'a>(ops: &[&'a Op]) -> Option<Vec<Call<Step>>> {
    let mut numbers: BTreeMap<(OpKind, &'a str), u64> = BTreeMap::new();
    let mut calls = Vec::new();
    for op in ops {
        let effect = !op.kind.reads() && (op.outcome != Outcome::Fail || leaves_a_run(op));
        let bit = match op.request_id.as_deref() {
            Some(id) if effect => {
                let next = 1u64.checked_shl(u32::try_from(numbers.len()).ok()?);
                *numbers.entry((op.kind, id)).or_insert(next?)
            }
            _ => 0,
        };
        let Some(step) = step(op, bit) else { continue };
        let replied = op.replied.filter(|_| op.outcome != Outcome::Unknown && !leaves_a_run(op));
        calls.push(Call { invoked: op.invoked, replied, op: step });
    }
    Some(calls)
}

/// An update that was refused, and perhaps the run that was started for it was not.
fn leaves_a_run(op: &Op) -> bool {
    op.kind == OpKind::UpdateWithStart && op.outcome == Outcome::Fail
}

fn step(op: &Op, bit: u64) -> Option<Step> {
    if op.outcome == Outcome::Fail && !leaves_a_run(op) {
        return refused(op);
    }
    let known = op.outcome == Outcome::Ok;
    match op.kind {
        OpKind::Start | OpKind::SignalWithStart | OpKind::UpdateWithStart => Some(Step::Start(bit)),
        OpKind::Signal | OpKind::Cancel | OpKind::Update => Some(Step::Deliver(bit)),
        OpKind::Terminate => Some(Step::Terminate(bit)),
        OpKind::Result if known => Some(Step::Saw(vec![Phase::Closed])),
        OpKind::Describe if known => status(op).map(|phase| Step::Saw(vec![phase])),
        OpKind::Result | OpKind::Describe | OpKind::Resolve => None,
    }
}

/// What a refusal says. One that says only that something is in the way says nothing here.
fn refused(op: &Op) -> Option<Step> {
    let phases = match op.code() {
        // It names a run, and another may have followed that.
        _ if op.kind == OpKind::Resolve => return None,
        "RUN_CLOSED" => vec![Phase::Closed],
        "RUN_NOT_FOUND" => vec![Phase::Absent],
        "RUN_ALREADY_EXISTS" => vec![Phase::Running, Phase::Closed],
        // A wait for the result that was over before the run.
        "OPEN" => vec![Phase::Running],
        _ => return None,
    };
    Some(Step::Saw(phases))
}

fn status(op: &Op) -> Option<Phase> {
    let value = op.value.as_ref()?;
    let word = value.as_str().or_else(|| value.get("status")?.as_str())?.to_ascii_lowercase();
    match word.as_str() {
        "running" | "blocked" => Some(Phase::Running),
        "completed" | "failed" | "canceled" | "terminated" | "timed_out" => Some(Phase::Closed),
        _ => None,
    }
}

/// Both sides of where it fails, a screen of each.
fn explain(workflow: &str, calls: &[Call<Step>], deepest: &[usize]) -> String {
    let text = |index: &usize| format!("{:?}", calls[*index].op);
    let order: Vec<String> = deepest.iter().skip(deepest.len().saturating_sub(SHOWN_MAX)).map(text).collect();
    let placed: BTreeSet<usize> = deepest.iter().copied().collect();
    let left = (0..calls.len()).filter(|index| !placed.contains(index));
    let left: Vec<String> = left.take(SHOWN_MAX).map(|index| text(&index)).collect();
    let (all, ops) = (deepest.len(), calls.len());
    format!(
        "{workflow}: no order explains the replies; the longest has {all} of {ops} ops and ends with {order:?}, \
         which leaves {left:?}"
    )
}

/// Two replies about the end of one run are the same.
fn same_results(ops: &[Op], check: &mut Check) {
    let mut results: BTreeMap<&str, &serde_json::Value> = BTreeMap::new();
    for op in ops.iter().filter(|op| op.kind == OpKind::Result && op.outcome == Outcome::Ok) {
        let (Some(run), Some(value)) = (&op.run_id, &op.value) else { continue };
        let first = results.entry(run).or_insert(value);
        if *first != value {
            check.problem(format!("run {run}: one client got the result {first}, another {value}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{broken, good, op};

    fn linear(case: &Case) -> Check {
        check(case, &mut Totals::new())
    }

    fn saw(workflow: u128, status: &str, us: u64) -> Op {
        Op { value: Some(serde_json::json!({"status": status})), ..op(7, OpKind::Describe, workflow, "", us) }
    }

    fn refusal(code: &str, op: Op) -> Op {
        Op { outcome: Outcome::Fail, error: format!("{code}: no"), ..op }
    }

    #[test]
    fn a_good_case_has_an_order() {
        let check = linear(&good());
        assert!(check.ok && check.checked == 3 && check.notes.is_empty(), "{check:?}");
    }

    #[test]
    fn a_closed_run_that_runs_again_is_found() {
        broken(linear, "wf-1: no order", |c| c.ops().push(saw(1, "running", 20_000)));
    }

    #[test]
    fn a_run_that_is_seen_before_it_was_started_is_found() {
        broken(linear, "wf-2: no order", |c| {
            c.ops().iter_mut().filter(|op| op.process == 2 && op.kind == OpKind::Start).for_each(|op| {
                (op.invoked, op.replied) = (op.invoked + 6_000_000, op.replied.map(|t| t + 6_000_000));
            });
        });
    }

    #[test]
    fn a_started_run_that_is_not_found_is_found() {
        broken(linear, "wf-2: no order", |c| {
            c.ops().push(refusal("RUN_NOT_FOUND", op(7, OpKind::Signal, 2, "s", 8_000)));
        });
    }

    #[test]
    fn a_closed_run_that_is_said_to_be_open_is_found() {
        broken(linear, "wf-1: no order", |c| {
            c.ops().push(refusal("OPEN", op(7, OpKind::Result, 1, "", 20_000)));
        });
    }

    #[test]
    fn a_signal_that_a_closed_run_takes_is_found() {
        broken(linear, "wf-3: no order", |c| c.ops().push(op(7, OpKind::Signal, 3, "late", 9_000)));
    }

    #[test]
    fn a_signal_refused_by_a_run_that_never_closed_is_found() {
        broken(linear, "wf-2: no order", |c| {
            c.ops().push(refusal("RUN_CLOSED", op(7, OpKind::Signal, 2, "s", 9_000)));
        });
    }

    #[test]
    fn an_acknowledged_terminate_that_closed_nothing_is_found() {
        broken(linear, "wf-2: no order", |c| c.ops().push(op(7, OpKind::Terminate, 2, "t", 9_000)));
    }

    #[test]
    fn a_second_start_beside_a_running_one_is_found() {
        broken(linear, "wf-2: no order", |c| c.ops().push(op(7, OpKind::Start, 2, "other", 9_000)));
    }

    #[test]
    fn repeats_get_the_first_answer() {
        let mut case = good();
        case.ops().push(op(7, OpKind::Start, 1, "start-wf-1", 20_000));
        case.ops().push(op(7, OpKind::Signal, 1, "s1", 21_000));
        case.ops().push(op(7, OpKind::Terminate, 3, "t3", 22_000));
        let check = linear(&case);
        assert!(check.ok, "{check:?}");
    }

    #[test]
    fn an_update_that_a_closed_run_takes_is_found() {
        broken(linear, "wf-3: no order", |c| c.ops().push(op(7, OpKind::Update, 3, "late", 9_000)));
    }

    #[test]
    fn starts_that_bring_something_along_are_starts() {
        for kind in [OpKind::SignalWithStart, OpKind::UpdateWithStart] {
            let mut case = good();
            case.ops().iter_mut().filter(|op| op.kind == OpKind::Start).for_each(|op| op.kind = kind);
            assert!(linear(&case).ok, "{:?}", linear(&case));
            broken(linear, "wf-2: no order", |c| c.ops().push(op(7, kind, 2, "other", 9_000)));
        }
        // A refused update leaves its run, or never came to it.
        let mut case = good();
        let start = case.ops().iter_mut().find(|op| op.kind == OpKind::Start);
        start.into_iter().for_each(|op| {
            op.kind = OpKind::UpdateWithStart;
            (op.outcome, op.error) = (Outcome::Fail, "UPDATE_REJECTED: no".to_owned());
        });
        assert!(linear(&case).ok, "{:?}", linear(&case));
    }

    #[test]
    fn unknown_ops_may_take_effect_or_not() {
        let mut case = good();
        let unknown = |op: Op| Op { outcome: Outcome::Unknown, replied: None, ..op };
        case.ops().push(unknown(op(7, OpKind::Terminate, 2, "t", 4_500)));
        case.ops().push(unknown(op(8, OpKind::Signal, 3, "s", 500)));
        case.ops().push(unknown(op(9, OpKind::Result, 2, "", 500)));
        case.ops().iter_mut().filter(|op| op.kind == OpKind::Start).for_each(|op| {
            (op.outcome, op.replied) = (Outcome::Unknown, None);
        });
        let check = linear(&case);
        assert!(check.ok, "{check:?}");
    }

    #[test]
    fn two_results_of_one_run_are_found() {
        let result = |value: &str, us| Op {
            value: Some(serde_json::json!(value)),
            ..op(7, OpKind::Result, 1, "", us)
        };
        broken(linear, "another \"b\"", |c| c.ops().extend([result("a", 20_000), result("b", 21_000)]));
    }

    #[test]
    fn too_many_ops_are_undecided_and_not_passed_over() {
        let mut case = good();
        case.ops().extend((0..2_001).map(|n| saw(2, "running", 8_000 + n)));
        let mut totals = Totals::new();
        let check = check(&case, &mut totals);
        assert_eq!(totals["keys_undecided"], 1);
        assert!(check.notes.iter().any(|n| n.contains("undecided: wf-2")), "{check:?}");
        let mut case = good();
        case.ops().extend((0..70).map(|n| op(7, OpKind::Signal, 2, &format!("s{n}"), 8_000 + n)));
        let check = super::check(&case, &mut totals);
        assert_eq!(totals["keys_undecided"], 1, "{check:?}");
    }
}
