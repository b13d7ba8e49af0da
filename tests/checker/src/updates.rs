//! Updates: accepted once in a run, answered once, the same to whoever asks, and not there at all when the code
//! refused.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{EventBody, RunId, UpdateOutcome};
use serde_json::{Value, json};

use crate::Totals;
use crate::case::{Case, Op, Outcome, Tables};
use crate::verdict::Check;

/// The refusal of the run's code.
const REJECTED: &str = "UPDATE_REJECTED";

/// Workflow id and update id.
type Element = (String, String);

/// What the log says about one update of a workflow, run by run.
#[derive(Debug, Default)]
struct Recorded {
    /// What came of it, where that is known.
    answers: BTreeMap<RunId, Option<Value>>,
}

/// The log by itself, and what clients were answered against it.
pub(crate) fn check(case: &Case, totals: &mut Totals) -> Check {
    let mut check = Check::new("updates", &["INV-06", "INV-07", "INV-37"]);
    let mut recorded: BTreeMap<Element, Recorded> = BTreeMap::new();
    for (id, tables) in &case.runs {
        run(*id, tables, &mut recorded, &mut check);
    }
    totals.insert("updates".to_owned(), recorded.len() as u64);
    let Some(ops) = &case.ops else {
        check.note("no client history");
        return check;
    };
    let mut asked: BTreeMap<Element, Vec<&Op>> = BTreeMap::new();
    for op in ops.iter().filter(|op| op.kind.updates()) {
        asked.entry((op.workflow_id.clone(), op.update_id().to_owned())).or_default().push(op);
    }
    for element in recorded.keys().filter(|element| !asked.contains_key(*element)) {
        let (workflow, update) = element;
        check.problem(format!("PHANTOM: update {workflow} {update} is in the log, and nobody asked for it"));
    }
    let mut rejected = 0u64;
    for ((workflow, update), ops) in &asked {
        check.looked();
        let what = format!("update {workflow} {update}");
        let element = (workflow.clone(), update.clone());
        rejected += u64::from(answers(&what, recorded.get(&element), ops, &mut check));
    }
    totals.insert("updates_rejected".to_owned(), rejected);
    check
}

fn run(id: RunId, tables: &Tables, recorded: &mut BTreeMap<Element, Recorded>, check: &mut Check) {
    let workflow = tables.workflow_id();
    let mut open: BTreeMap<u64, &str> = BTreeMap::new();
    for event in &tables.events {
        match &event.body {
            EventBody::UpdateAccepted { update_id, .. } => {
                check.looked();
                open.insert(event.seq, update_id);
                let of = recorded.entry((workflow.to_owned(), update_id.clone())).or_default();
                if of.answers.insert(id, None).is_some() {
                    check.problem(format!("DUPLICATE: run {id}: update {update_id} was accepted twice"));
                }
            }
            EventBody::UpdateCompleted { accepted, update_id, outcome } => {
                if open.remove(accepted) != Some(update_id) {
                    let seq = event.seq;
                    check.problem(format!(
                        "run {id}: event {seq} answers update {update_id} of event {accepted}, which waits for no answer"
                    ));
                }
                let of = recorded.entry((workflow.to_owned(), update_id.clone())).or_default();
                of.answers.insert(id, Some(answer(outcome)));
            }
            _ => {}
        }
    }
}

/// As clients write it down.
fn answer(outcome: &UpdateOutcome) -> Value {
    match outcome {
        UpdateOutcome::Completed(result) => {
            json!({"result": serde_json::from_slice::<Value>(&result.data).unwrap_or_default()})
        }
        UpdateOutcome::Failed(failure) => json!({"failure": failure.kind}),
    }
}

/// What the clients of one update heard. The answer is whether the code refused it.
fn answers(what: &str, recorded: Option<&Recorded>, ops: &[&Op], check: &mut Check) -> bool {
    let mut heard: BTreeSet<String> = BTreeSet::new();
    for op in ops.iter().filter(|op| op.outcome == Outcome::Ok) {
        let said = op.value.as_ref().and_then(|value| value.get("update"));
        let Some(said) = said.filter(|said| !said.is_null()) else {
            // Accepted, and no more was waited for.
            if recorded.is_none() {
                check.problem(format!("LOST: {what} was accepted and is not in the log"));
            }
            continue;
        };
        heard.insert(said.to_string());
        let matches = |answer: &Option<Value>| answer.as_ref() == Some(said);
        match recorded {
            None => check.problem(format!("LOST: {what} was answered and is not in the log")),
            Some(recorded) if !recorded.answers.values().any(matches) => {
                let log: Vec<_> = recorded.answers.values().flatten().map(Value::to_string).collect();
                check.problem(format!("{what} was answered with {said}, the log has {log:?}"));
            }
            Some(_) => {}
        }
    }
    if heard.len() > 1 && recorded.is_none_or(|recorded| recorded.answers.len() < 2) {
        check.problem(format!("{what} was answered in several ways: {heard:?}"));
    }
    let rejected = ops.iter().any(|op| op.outcome == Outcome::Fail && op.code() == REJECTED);
    if rejected && recorded.is_some() {
        check.problem(format!("PHANTOM: {what} was refused by the code, and is in the log"));
    }
    rejected
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::features::{ACCEPTED, ANSWERED, UPDATED, case};
    use crate::fixture::{broken_in, run_id};
    use crate::format::OpKind;

    fn judge(case: &Case) -> Check {
        check(case, &mut Totals::new())
    }

    fn found(part: &str, change: impl FnOnce(&mut Case)) {
        broken_in(case, judge, part, change);
    }

    fn run(case: &mut Case) -> &mut Tables {
        case.runs.entry(run_id(UPDATED)).or_default()
    }

    fn updates(case: &mut Case) -> impl Iterator<Item = &mut Op> {
        case.ops().iter_mut().filter(|op| op.kind == OpKind::Update)
    }

    #[test]
    fn updates_that_were_answered_and_refused_pass() {
        let mut totals = Totals::new();
        let judged = check(&case(), &mut totals);
        assert!(judged.ok && judged.checked > 1, "{judged:?}");
        assert_eq!((totals["updates"], totals["updates_rejected"]), (1, 1));
    }

    #[test]
    fn an_update_that_was_lost_is_found() {
        found("LOST: update wf-16 u1 was answered", |c| {
            run(c).events.drain(ACCEPTED..=ANSWERED);
        });
        found("LOST: update wf-16 u1 was accepted", |c| {
            updates(c).filter(|op| op.outcome == Outcome::Ok).for_each(|op| op.value = None);
            run(c).events.drain(ACCEPTED..=ANSWERED);
        });
    }

    #[test]
    fn an_update_that_was_done_twice_is_found() {
        found("was accepted twice", |c| {
            let again = run(c).events[ACCEPTED].clone();
            run(c).events.insert(ACCEPTED, again);
        });
        found("which waits for no answer", |c| {
            let again = run(c).events[ANSWERED].clone();
            run(c).events.insert(ANSWERED, again);
        });
    }

    #[test]
    fn answers_that_differ_are_found() {
        let other = |op: &mut Op| op.value = Some(json!({"update": {"result": 8}}));
        found("the log has", |c| updates(c).filter(|op| op.outcome == Outcome::Ok).for_each(other));
        found("was answered in several ways", |c| {
            updates(c).filter(|op| op.outcome == Outcome::Ok).take(1).for_each(other);
        });
    }

    #[test]
    fn an_update_that_nobody_asked_for_or_the_code_refused_is_found() {
        found("nobody asked for it", |c| c.ops().retain(|op| op.kind != OpKind::Update));
        found("was refused by the code, and is in the log", |c| {
            updates(c).for_each(|op| op.request_id = Some("u1".to_owned()));
        });
    }
}
