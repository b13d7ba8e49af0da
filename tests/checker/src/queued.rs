//! Queued steps: attempts follow each other without a gap, within their policy, and the step ends once; each attempt
//! ran once, and what it was told of the one before is what that one had said.
//!
//! Who has an attempt is a row, and not in the log. That two workers never had one is seen in the journal: an attempt
//! is begun once, also by a worker that was lost, since the next one then has the next number.

use std::collections::BTreeMap;

use everstep_core::{Actor, EventBody, OpId, Payload, Resolution, RunId, StepScheduled};

use crate::Totals;
use crate::case::{Case, Tables};
use crate::format::{JournalEntry, Phase};
use crate::journal::sha256;
use crate::verdict::Check;

/// The failure of an attempt whose worker is gone; it does not count.
const WORKER_LOST: &str = "WorkerLost";

/// A queued step, as far as its run's log has been read.
struct Step<'a> {
    scheduled: &'a StepScheduled,
    /// The attempt that waits or runs.
    attempt: u32,
    /// Failures that the policy counts.
    failures: u32,
    doubt: bool,
    /// The event that ended it, and a worker's result, with the attempt that gave it.
    ended: Option<(u64, Option<&'a Payload>)>,
}

/// The log by itself.
pub(crate) fn in_log(case: &Case) -> Check {
    let mut check = Check::new("queued steps", &["INV-17", "INV-18"]);
    for (id, tables) in &case.runs {
        let steps = read(*id, tables, &mut check);
        let completed =
            tables.events.last().is_some_and(|e| matches!(e.body, EventBody::RunCompleted { .. }));
        for (step, state) in steps.iter().filter(|(_, state)| state.ended.is_none() && !completed) {
            // An open run has its row, which is judged with the tables.
            let waits = tables.steps.iter().any(|task| task.step == *step && task.attempt == state.attempt);
            if !tables.is_closed() && !waits {
                check.problem(format!(
                    "run {id}: step {step} waits for attempt {}, without a row",
                    state.attempt
                ));
            }
        }
    }
    check
}

fn read<'a>(id: RunId, tables: &'a Tables, check: &mut Check) -> BTreeMap<OpId, Step<'a>> {
    let mut steps: BTreeMap<OpId, Step<'a>> = BTreeMap::new();
    for event in &tables.events {
        if let EventBody::StepScheduled(scheduled) = &event.body {
            check.looked();
            let new = Step { scheduled, attempt: 1, failures: 0, doubt: false, ended: None };
            if steps.insert(scheduled.step, new).is_some() {
                check.problem(format!("run {id}: step {} was scheduled twice", scheduled.step));
            }
            continue;
        }
        let Some(step) = event.body.op().and_then(|op| steps.get_mut(&op)) else { continue };
        if let Err(problem) = step.heard(event.seq, &event.body, &event.actor) {
            let kind = event.body.kind();
            check.problem(format!(
                "run {id}: step {}, {kind} at {}: {problem}",
                step.scheduled.step, event.seq
            ));
        }
    }
    steps
}

impl<'a> Step<'a> {
    fn heard(&mut self, seq: u64, body: &'a EventBody, actor: &Actor) -> Result<(), String> {
        let attempt = match body {
            EventBody::StepCompleted { attempt, .. }
            | EventBody::StepFailed { attempt, .. }
            | EventBody::StepInDoubt { attempt, .. } => *attempt,
            EventBody::StepResolved(resolved) => resolved.attempt,
            _ => return Ok(()),
        };
        if let Some((end, _)) = self.ended {
            return Err(format!("the step had ended at {end}"));
        }
        let expected = std::mem::replace(&mut self.attempt, attempt);
        match body {
            EventBody::StepCompleted { result, .. } => self.ended = Some((seq, Some(result))),
            EventBody::StepInDoubt { .. } => self.doubt = true,
            EventBody::StepResolved(resolved) => {
                if !std::mem::take(&mut self.doubt) {
                    return Err("nothing was in doubt".to_owned());
                }
                match &resolved.resolution {
                    Resolution::Retry => self.attempt += 1,
                    Resolution::Completed(_) | Resolution::Failed(_) => self.ended = Some((seq, None)),
                }
            }
            EventBody::StepFailed { failure, retry_at, .. } => {
                self.doubt = false;
                let lost = failure.kind == WORKER_LOST && *actor == Actor::System;
                self.failures += u32::from(!lost);
                let max = self.scheduled.options.retry.maximum_attempts;
                if retry_at.is_none() {
                    self.ended = Some((seq, None));
                } else {
                    self.attempt += 1;
                }
                if max > 0 && !lost && (self.failures > max || retry_at.is_some() && self.failures == max) {
                    return Err(format!("failure {}, and its policy allows {max} attempts", self.failures));
                }
            }
            _ => {}
        }
        if attempt == expected { Ok(()) } else { Err(format!("is of attempt {attempt}, due was {expected}")) }
    }
}

/// The journal against the log.
pub(crate) fn executed(case: &Case, totals: &mut Totals) -> Check {
    let mut check = Check::new("attempts of queued steps", &["INV-17", "INV-18", "INV-20"]);
    let Some(journal) = &case.journal else {
        check.note("no journal");
        return check;
    };
    let mut by_step: BTreeMap<(Option<RunId>, OpId), Vec<&JournalEntry>> = BTreeMap::new();
    for entry in journal.iter().filter(|entry| entry.queued.is_some()) {
        by_step.entry((entry.run_id.parse().ok(), OpId(entry.step))).or_default().push(entry);
    }
    let mut resumed = 0u64;
    let mut steps = BTreeMap::new();
    for (id, tables) in &case.runs {
        for (op, step) in read(*id, tables, &mut Check::default()) {
            steps.insert((Some(*id), op), step);
        }
    }
    for (key, entries) in &by_step {
        let what = format!("run {}: step {}", key.0.map_or_else(String::new, |id| id.to_string()), key.1);
        let Some(step) = steps.get(key) else {
            check.problem(format!("{what} ran, and no event scheduled it"));
            continue;
        };
        resumed += attempts(&what, step, entries, &mut check);
    }
    for (key, step) in &steps {
        let entries = by_step.get(key).map_or(&[][..], Vec::as_slice);
        returned(*key, step, entries, &mut check);
    }
    totals.insert("queued_steps".to_owned(), steps.len() as u64);
    totals.insert("queued_attempts_resumed".to_owned(), resumed);
    check
}

/// Each attempt was begun once, was due by then, and knew no more than the ones before it had said. The answer is how
/// many went on where another had stopped.
fn attempts(what: &str, step: &Step<'_>, entries: &[&JournalEntry], check: &mut Check) -> u64 {
    let (mut begun, mut resumed): (BTreeMap<u32, &JournalEntry>, u64) = (BTreeMap::new(), 0);
    for entry in entries.iter().filter(|entry| entry.phase == Phase::Begin) {
        check.looked();
        let attempt = entry.attempt;
        if let Some(first) = begun.insert(attempt, entry) {
            let (one, other) = (&first.worker, &entry.worker);
            check.problem(format!("{what}: attempt {attempt} ran twice, at {one} and at {other}"));
        }
        // The log has the failure of each attempt before the next one is given out.
        if attempt > step.attempt {
            check.problem(format!("{what}: attempt {attempt} ran, the log comes to {}", step.attempt));
        }
        let Some(seen) = entry.queued.as_ref().and_then(|known| known.details) else { continue };
        resumed += 1;
        let said = |e: &&&JournalEntry| {
            e.phase == Phase::Beat
                && e.attempt < attempt
                && e.queued.as_ref().and_then(|q| q.details) == Some(seen)
        };
        if !entries.iter().any(|e| said(&e)) {
            check.problem(format!(
                "{what}: attempt {attempt} was told '{seen}', which no attempt before it said"
            ));
        }
    }
    resumed
}

/// A worker's result is one that its attempt came to, and the same.
fn returned((run, op): (Option<RunId>, OpId), step: &Step<'_>, entries: &[&JournalEntry], check: &mut Check) {
    let Some((seq, Some(result))) = step.ended else { return };
    let what = format!("run {}: step {op}", run.map_or_else(String::new, |id| id.to_string()));
    // Only steps of programs tell the sink of their effects.
    if entries.is_empty() && step.scheduled.name != crate::format::TELLS {
        return;
    }
    check.looked();
    let end = entries.iter().find(|e| e.phase == Phase::End && e.attempt == step.attempt);
    match end {
        None => check.problem(format!(
            "{what}: PHANTOM: event {seq} records attempt {}, which never came to its end",
            step.attempt
        )),
        Some(end) if end.result_sha256.as_deref().is_some_and(|sha| sha != sha256(&result.data)) => {
            check.problem(format!(
                "{what}: event {seq} is not the result that attempt {} returned",
                end.attempt
            ));
        }
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use everstep_core::{DoubtPolicy, StepResolved};

    use super::*;
    use crate::fixture::features::{QUEUED, QUEUED_DONE, QUEUED_FAILED, case};
    use crate::fixture::{broken_in, run_id};

    fn run(case: &mut Case) -> &mut Tables {
        case.runs.entry(run_id(QUEUED)).or_default()
    }

    fn logged(part: &str, change: impl FnOnce(&mut Case)) {
        broken_in(case, in_log, part, change);
    }

    fn ran(part: &str, change: impl FnOnce(&mut Case)) {
        broken_in(case, |c: &Case| executed(c, &mut Totals::new()), part, change);
    }

    fn entries(case: &mut Case) -> impl Iterator<Item = &mut JournalEntry> {
        case.journal().iter_mut().filter(|e| e.queued.is_some())
    }

    #[test]
    fn a_step_that_was_resumed_from_its_heartbeat_passes() {
        let mut totals = Totals::new();
        for check in [in_log(&case()), executed(&case(), &mut totals)] {
            assert!(check.ok && check.checked > 0, "{check:?}");
        }
        assert_eq!((totals["queued_steps"], totals["queued_attempts_resumed"]), (1, 1));
    }

    #[test]
    fn a_step_that_ended_twice_is_found() {
        logged("the step had ended", |c| {
            let again = run(c).events[QUEUED_DONE].clone();
            run(c).events.insert(QUEUED_DONE, again);
        });
    }

    #[test]
    fn a_gap_between_attempts_is_found() {
        logged("is of attempt 2, due was 1", |c| drop(run(c).events.remove(QUEUED_FAILED)));
    }

    #[test]
    fn attempts_past_the_policy_are_found() {
        let policy = |counts: bool| {
            move |c: &mut Case| {
                for event in &mut run(c).events {
                    match &mut event.body {
                        EventBody::StepScheduled(scheduled) => scheduled.options.retry.maximum_attempts = 1,
                        EventBody::StepFailed { failure, .. } if counts => failure.kind = "Flaky".to_owned(),
                        _ => {}
                    }
                }
            }
        };
        logged("its policy allows 1 attempts", policy(true));
        let mut lost = case();
        policy(false)(&mut lost);
        assert!(in_log(&lost).ok, "the loss of a worker does not count");
    }

    #[test]
    fn a_resolution_of_what_is_not_in_doubt_is_found() {
        logged("nothing was in doubt", |c| {
            if let EventBody::StepScheduled(scheduled) = &mut run(c).events[QUEUED_FAILED - 1].body {
                scheduled.options.in_doubt = Some(DoubtPolicy::AskHuman);
            }
            run(c).events[QUEUED_FAILED].body = EventBody::StepResolved(Box::new(StepResolved {
                step: OpId(1),
                name: "queued".to_owned(),
                attempt: 1,
                resolution: Resolution::Retry,
                note: String::new(),
            }));
        });
    }

    #[test]
    fn an_attempt_that_ran_twice_or_before_its_time_is_found() {
        ran("ran twice, at w and at other", |c| {
            let again = entries(c).next().cloned();
            c.journal().extend(again.map(|e| JournalEntry { worker: "other".to_owned(), ..e }));
        });
        ran("attempt 3 ran, the log comes to 2", |c| {
            let first = entries(c).next().cloned();
            c.journal().extend(first.map(|e| JournalEntry { attempt: 3, ..e }));
        });
        ran("no event scheduled it", |c| entries(c).for_each(|e| e.step = 9));
    }

    #[test]
    fn details_that_nobody_had_said_are_found() {
        ran("was told '7', which no attempt before it said", |c| {
            c.journal().retain(|e| e.phase != Phase::Beat);
        });
        ran("which no attempt before it said", |c| {
            entries(c).filter(|e| e.phase == Phase::Beat).for_each(|e| e.attempt = 2);
        });
    }

    #[test]
    fn a_result_that_no_attempt_returned_is_found() {
        ran("PHANTOM", |c| c.journal().retain(|e| e.queued.is_none() || e.phase != Phase::End));
        ran("is not the result", |c| {
            entries(c).for_each(|e| e.result_sha256 = Some("0".to_owned()));
        });
    }
}
