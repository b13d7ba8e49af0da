//! Every run ended as its program and its clients' wishes predict: outcome, output, steps and timers.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{EventBody, OpId, Payload, Resolution, RunId};

use crate::Totals;
use crate::case::{Case, Outcome, Tables};
use crate::format::{Expected, ExpectedOutcome};
use crate::journal::{Executions, by_run, sha256, strings};
use crate::verdict::Check;

/// Compares each run with what was predicted for its workflow id.
pub(crate) fn check(case: &Case, totals: &mut Totals) -> Check {
    let mut check = Check::new("outcome", &["INV-06", "INV-21", "INV-24"]);
    let Some(expected) = &case.expected else {
        check.note("no predictions");
        return check;
    };
    let runs = case.by_workflow();
    let journal = case.journal.as_deref().map(by_run).unwrap_or_default();
    let mut not_started = 0u64;
    for expected in expected {
        check.looked();
        match runs.get(expected.workflow_id.as_str()) {
            Some(runs) => {
                for (id, tables) in runs {
                    run(*id, tables, expected, journal.get(&Some(*id)), &mut check);
                }
            }
            None if may_be_missing(case, &expected.workflow_id) => not_started += 1,
            None => check.problem(format!("{}: was never started", expected.workflow_id)),
        }
    }
    totals.insert("workflows_not_started".to_owned(), not_started);
    check
}

/// A start that no client knows to have succeeded need not have happened.
fn may_be_missing(case: &Case, workflow: &str) -> bool {
    let Some(ops) = &case.ops else { return false };
    !ops.iter().any(|op| op.kind.starts() && op.workflow_id == workflow && op.outcome == Outcome::Ok)
}

fn run(id: RunId, tables: &Tables, expected: &Expected, journal: Option<&Executions<'_>>, check: &mut Check) {
    let workflow = &expected.workflow_id;
    let last = tables.events.last().map(|e| &e.body);
    let Some(end) = last.filter(|body| body.is_terminal()) else {
        let last = last.map_or("nothing", EventBody::kind);
        check.problem(format!("run {id} ({workflow}): never ended; its last event is {last}"));
        return;
    };
    // What was predicted is how the chain ends.
    if end.successor().is_some() {
        return;
    }
    if let Err(wanted) = fits(end, &expected.outcome) {
        let found = describe(end);
        check.problem(format!("run {id} ({workflow}): ended with {found}, expected {wanted}"));
        return;
    }
    if matches!(end, EventBody::RunCompleted { .. }) {
        steps(&format!("run {id} ({workflow})"), tables, expected, journal, check);
        timers(&format!("run {id} ({workflow})"), tables, expected, check);
    }
}

/// Whether a run may end so; else what was expected.
fn fits(end: &EventBody, expected: &ExpectedOutcome) -> Result<(), String> {
    match (expected, end) {
        (ExpectedOutcome::Completed { output_sha256 }, EventBody::RunCompleted { result, .. }) => {
            if output_sha256.eq_ignore_ascii_case(&sha256(&result.data)) {
                Ok(())
            } else {
                Err(format!("an output with the hash {output_sha256}"))
            }
        }
        (ExpectedOutcome::Completed { .. }, _) => Err("a result".to_owned()),
        (ExpectedOutcome::Failed { failure_kind }, EventBody::RunFailed { failure, .. })
            if failure.kind == *failure_kind =>
        {
            Ok(())
        }
        (ExpectedOutcome::Failed { failure_kind }, _) => Err(format!("a failure of kind {failure_kind}")),
        (ExpectedOutcome::Canceled, EventBody::RunCanceled { .. })
        | (ExpectedOutcome::Terminated, EventBody::RunTerminated { .. }) => Ok(()),
        (ExpectedOutcome::Canceled, _) => Err("a cancellation".to_owned()),
        (ExpectedOutcome::Terminated, _) => Err("a termination".to_owned()),
        (ExpectedOutcome::Any { of }, _) => {
            let mut wanted = Vec::new();
            for one in of {
                match fits(end, one) {
                    Ok(()) => return Ok(()),
                    Err(text) => wanted.push(text),
                }
            }
            Err(wanted.join(" or "))
        }
    }
}

fn describe(end: &EventBody) -> String {
    match end {
        EventBody::RunCompleted { result, .. } => {
            format!(
                "RunCompleted, an output of {} bytes with the hash {}",
                result.data.len(),
                sha256(&result.data)
            )
        }
        EventBody::RunFailed { failure, .. } => format!("RunFailed {}: {}", failure.kind, failure.message),
        other => other.kind().to_owned(),
    }
}

/// Each predicted step has a recorded end, after as many attempts as it needs. A step carries its nonce in
/// its name, its result or its lines in the journal.
fn steps(
    run: &str,
    tables: &Tables,
    expected: &Expected,
    journal: Option<&Executions<'_>>,
    check: &mut Check,
) {
    let mut attempts: BTreeMap<&str, u32> = BTreeMap::new();
    let mut nonces: BTreeMap<OpId, BTreeSet<&str>> = BTreeMap::new();
    for ((step, _, _), entries) in journal.iter().flat_map(|j| &j.begins) {
        nonces.entry(*step).or_default().extend(entries.iter().map(|e| e.nonce.as_str()));
    }
    for entry in journal.iter().flat_map(|j| &j.queued) {
        nonces.entry(OpId(entry.step)).or_default().insert(&entry.nonce);
    }
    for (step, name, attempt, texts) in tables.events.iter().filter_map(|event| end_of(&event.body)) {
        for wanted in &expected.steps {
            let nonce = wanted.nonce.as_str();
            let known = nonces.get(&step).is_some_and(|n| n.contains(nonce));
            if known || name == nonce || texts.iter().any(|text| text.starts_with(nonce)) {
                attempts.insert(nonce, attempt);
            }
        }
    }
    for wanted in &expected.steps {
        let (nonce, least) = (&wanted.nonce, wanted.attempts_min);
        match attempts.get(nonce.as_str()) {
            None => check.problem(format!("{run}: LOST: completed without an end of step {nonce}")),
            Some(attempt) if *attempt < least => {
                check.problem(format!("{run}: step {nonce} ended with attempt {attempt}, it needs {least}"));
            }
            Some(_) => {}
        }
    }
}

/// The last attempt of a step: which, its name, its number, and the texts that its end carries.
fn end_of(body: &EventBody) -> Option<(OpId, &str, u32, Vec<String>)> {
    let texts = |result: &Payload| {
        let mut held = Vec::new();
        if let Ok(value) = serde_json::from_slice(&result.data) {
            strings(&value, &mut |text| held.push(text.to_owned()));
        }
        held
    };
    Some(match body {
        EventBody::StepCompleted { step, name, attempt, result, .. } => {
            (*step, name, *attempt, texts(result))
        }
        EventBody::StepFailed { step, name, attempt, retry_at: None, .. } => {
            (*step, name, *attempt, Vec::new())
        }
        // A person ended it.
        EventBody::StepResolved(resolved) => {
            let texts = match &resolved.resolution {
                Resolution::Completed(result) => texts(result),
                Resolution::Failed(failure) => vec![failure.message.clone()],
                Resolution::Retry => return None,
            };
            (resolved.step, &resolved.name, resolved.attempt, texts)
        }
        _ => return None,
    })
}

/// Each predicted timer was started, with its delay.
fn timers(run: &str, tables: &Tables, expected: &Expected, check: &mut Check) {
    let mut delays: Vec<u64> = tables
        .events
        .iter()
        .filter_map(|event| match &event.body {
            EventBody::TimerStarted { fire_at, .. } => Some(fire_at.since(event.at).as_micros()),
            _ => None,
        })
        .collect();
    for wanted in &expected.timers {
        match delays.iter().position(|delay| *delay == wanted.delay_us) {
            Some(index) => drop(delays.swap_remove(index)),
            None => {
                let (nonce, delay) = (&wanted.nonce, wanted.delay_us);
                check.problem(format!("{run}: completed without timer {nonce} of {delay} us"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use everstep_core::{Failure, Timestamp};

    use super::*;
    use crate::fixture::{BASE_US, DONE_A, END, TIMER, broken, good};

    fn judge(case: &Case) -> Check {
        check(case, &mut Totals::new())
    }

    fn end(case: &mut Case, body: EventBody) {
        case.first().events[END].body = body;
    }

    #[test]
    fn predicted_ends_pass() {
        let check = judge(&good());
        assert!(check.ok && check.checked == 2, "{check:?}");
    }

    #[test]
    fn another_output_is_found() {
        broken(judge, "expected an output with the hash", |c| {
            end(c, EventBody::RunCompleted { result: Payload::json("\"other\""), unconsumed: Vec::new() });
        });
    }

    #[test]
    fn another_end_is_found() {
        broken(judge, "ended with RunTimedOut, expected a result", |c| {
            end(c, EventBody::RunTimedOut { retried_by: None })
        });
        let failure = |kind: &str| EventBody::RunFailed {
            failure: Failure::new(kind, "m"),
            unconsumed: Vec::new(),
            retried_by: None,
        };
        let wants_failure = |c: &mut Case| {
            let outcome = ExpectedOutcome::Failed { failure_kind: "Wanted".to_owned() };
            c.expected.iter_mut().flatten().take(1).for_each(|e| e.outcome = outcome.clone());
        };
        broken(judge, "RunFailed Other: m, expected a failure of kind Wanted", |c| {
            wants_failure(c);
            end(c, failure("Other"));
        });
        broken(judge, "expected a cancellation or a termination", |c| {
            let of = vec![ExpectedOutcome::Canceled, ExpectedOutcome::Terminated];
            let any = ExpectedOutcome::Any { of };
            c.expected.iter_mut().flatten().take(1).for_each(|e| e.outcome = any.clone());
        });
        let mut case = good();
        wants_failure(&mut case);
        end(&mut case, failure("Wanted"));
        assert!(judge(&case).ok);
    }

    #[test]
    fn a_run_that_never_ended_is_found() {
        broken(judge, "never ended; its last event is SignalReceived", |c| drop(c.first().events.pop()));
    }

    #[test]
    fn a_run_that_was_never_started_is_found() {
        let lose = |c: &mut Case| drop(c.runs.remove(&crate::fixture::run_id(1)));
        broken(judge, "wf-1: was never started", lose);
        let mut unknown = good();
        lose(&mut unknown);
        unknown.ops().retain(|op| op.workflow_id != "wf-1");
        assert!(judge(&unknown).ok);
    }

    #[test]
    fn a_missing_step_and_a_missing_attempt_are_found() {
        broken(judge, "LOST: completed without an end of step n-a", |c| {
            drop(c.first().events.remove(DONE_A));
        });
        broken(judge, "step n-b ended with attempt 2, it needs 3", |c| {
            c.expected.iter_mut().flatten().flat_map(|e| &mut e.steps).for_each(|s| {
                s.attempts_min = if s.nonce == "n-b" { 3 } else { 1 };
            });
        });
    }

    #[test]
    fn a_step_that_a_person_ended_has_ended() {
        let resolved = |nonce: &str| {
            EventBody::StepResolved(Box::new(everstep_core::StepResolved {
                step: OpId(1),
                name: "a".to_owned(),
                attempt: 1,
                resolution: Resolution::Completed(Payload::json(format!("\"{nonce}\""))),
                note: String::new(),
            }))
        };
        // It was cut off before it could tell the sink.
        let cut = |c: &mut Case, nonce: &str| {
            c.journal().retain(|entry| entry.step != 1);
            c.first().events[DONE_A].body = resolved(nonce);
        };
        let mut case = good();
        cut(&mut case, "n-a");
        assert!(judge(&case).ok, "{:?}", judge(&case));
        broken(judge, "LOST: completed without an end of step n-a", |c| cut(c, "n-z"));
    }

    #[test]
    fn a_missing_timer_is_found() {
        broken(judge, "without timer t of 1500 us", |c| {
            if let EventBody::TimerStarted { fire_at, .. } = &mut c.first().events[TIMER].body {
                *fire_at = Timestamp::from_micros(BASE_US);
            }
        });
    }
}
