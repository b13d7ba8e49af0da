//! Guarded steps: nothing is done before its start is recorded, an attempt that was cut off is in doubt, and what then
//! becomes of it is what the policy says.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{DoubtPolicy, Epoch, Event, EventBody, OpId, Resolution, RunId};

use crate::Totals;
use crate::case::{Case, Tables};
use crate::format::{JournalEntry, Phase};
use crate::journal::by_run;
use crate::verdict::Check;

/// The failure of a step whose code gives up what is in doubt.
const IN_DOUBT: &str = "InDoubt";

/// The last attempt of a guarded step.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Attempt {
    number: u32,
    epoch: Epoch,
    policy: DoubtPolicy,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Runs,
    InDoubt,
    /// A person wants the next attempt.
    Again,
    Over,
}

/// Judges every guarded step.
pub(crate) fn check(case: &Case, totals: &mut Totals) -> Check {
    let mut check = Check::new("steps in doubt", &["INV-17", "INV-18"]);
    let journal = case.journal.as_deref().map(by_run).unwrap_or_default();
    let mut doubts = 0u64;
    for (id, tables) in &case.runs {
        let mut steps: BTreeMap<OpId, Attempt> = BTreeMap::new();
        for event in &tables.events {
            if let Err(problem) = read(&mut steps, event, &mut check) {
                check.problem(format!("run {id}: {} at {}: {problem}", event.body.kind(), event.seq));
            }
            doubts += u64::from(matches!(event.body, EventBody::StepInDoubt { .. }));
        }
        if let Some(executions) = journal.get(&Some(*id)) {
            let begins = executions.begins.values().flatten().copied();
            executed(*id, tables, &steps, begins, &mut check);
        }
    }
    totals.insert("steps_in_doubt".to_owned(), doubts);
    check
}

fn read(steps: &mut BTreeMap<OpId, Attempt>, event: &Event, check: &mut Check) -> Result<(), String> {
    match &event.body {
        EventBody::StepStarted { step, attempt, in_doubt: Some(policy), .. } => {
            check.looked();
            let new = Attempt { number: *attempt, epoch: event.epoch, policy: *policy, state: State::Runs };
            steps.insert(*step, new).map_or(Ok(()), |before| may_follow(*step, before, *attempt))
        }
        EventBody::StepInDoubt { step, attempt, .. } => match steps.get_mut(step) {
            Some(a) if a.state == State::Runs && a.number == *attempt => {
                a.state = State::InDoubt;
                Ok(())
            }
            // A queued step's doubt is of its own kind.
            None => Ok(()),
            Some(a) => Err(format!("step {step} attempt {attempt} does not run: {a:?}")),
        },
        EventBody::StepResolved(resolved) => {
            let Some(a) = steps.get_mut(&resolved.step) else { return Ok(()) };
            let was = std::mem::replace(
                &mut a.state,
                match resolved.resolution {
                    Resolution::Retry => State::Again,
                    Resolution::Completed(_) | Resolution::Failed(_) => State::Over,
                },
            );
            if was == State::InDoubt && a.number == resolved.attempt {
                return Ok(());
            }
            Err(format!("step {} attempt {} is not in doubt", resolved.step, resolved.attempt))
        }
        EventBody::StepCompleted { step, attempt, .. } => ended(steps, *step, *attempt, None),
        EventBody::StepFailed { step, attempt, failure, retry_at, .. } => {
            let kind = failure.kind.as_str();
            ended(steps, *step, *attempt, Some((kind, retry_at.is_some())))
        }
        // The end of a claim, or the beginning of the next one.
        EventBody::WorkerDetached { .. } | EventBody::WorkerAttached { .. } | EventBody::RunBlocked(_) => {
            let mut running = steps.iter_mut().filter(|(_, a)| a.state == State::Runs);
            let Some((step, a)) = running.next() else { return Ok(()) };
            a.state = State::InDoubt;
            Err(format!("step {step} attempt {} was under way, and is not said to be in doubt", a.number))
        }
        _ => Ok(()),
    }
}

/// Whether an attempt may begin after the one before.
fn may_follow(step: OpId, before: Attempt, next: u32) -> Result<(), String> {
    let Attempt { number, policy, state, .. } = before;
    if next <= number {
        return Err(format!("step {step}: attempt {next} after attempt {number}"));
    }
    match (state, policy) {
        (State::Runs, _) => Err(format!("step {step}: attempt {number} has no end, and the next one begins")),
        (State::InDoubt, DoubtPolicy::AskHuman) => Err(format!(
            "step {step}: attempt {number} is in doubt, nobody was asked, and the next one begins"
        )),
        (State::InDoubt, DoubtPolicy::Fail) => {
            Err(format!("step {step}: attempt {number} is in doubt, should fail, and the next one begins"))
        }
        (State::InDoubt, DoubtPolicy::Retry | DoubtPolicy::Verify) | (State::Again | State::Over, _) => {
            Ok(())
        }
    }
}

/// An end: of an attempt that runs, or of one in doubt, as its policy allows. A failure has a kind, and maybe another
/// attempt after it.
fn ended(
    steps: &mut BTreeMap<OpId, Attempt>,
    step: OpId,
    attempt: u32,
    failure: Option<(&str, bool)>,
) -> Result<(), String> {
    let Some(a) = steps.get_mut(&step) else { return Ok(()) };
    let was = std::mem::replace(&mut a.state, State::Over);
    let given_up = failure.is_some_and(|(kind, again)| kind == IN_DOUBT && !again);
    match (was, a.policy) {
        _ if a.number != attempt => {
            Err(format!("step {step}: attempt {attempt} ended, and {} ran", a.number))
        }
        (State::Runs, _) => Ok(()),
        (State::InDoubt, DoubtPolicy::Verify) if failure.is_none() => Ok(()),
        (State::InDoubt, DoubtPolicy::Fail) if given_up => Ok(()),
        (State::InDoubt, policy) => {
            Err(format!("step {step}: attempt {attempt} is in doubt, with the policy {}", policy.as_str()))
        }
        (State::Again | State::Over, _) => Err(format!("step {step}: attempt {attempt} was over")),
    }
}

/// No effect without its recorded start, none twice under one number; and what a probe had repeated had not happened.
fn executed<'a>(
    id: RunId,
    tables: &Tables,
    steps: &BTreeMap<OpId, Attempt>,
    begins: impl Iterator<Item = &'a JournalEntry>,
    check: &mut Check,
) {
    let mut started: BTreeMap<(OpId, u32), Epoch> = BTreeMap::new();
    let mut doubted: BTreeSet<(OpId, u32)> = BTreeSet::new();
    for event in &tables.events {
        match &event.body {
            EventBody::StepStarted { step, attempt, in_doubt: Some(_), .. } => {
                started.insert((*step, *attempt), event.epoch);
            }
            EventBody::StepInDoubt { step, attempt, .. } => drop(doubted.insert((*step, *attempt))),
            _ => {}
        }
    }
    let mut begun: BTreeSet<(OpId, u32)> = BTreeSet::new();
    for entry in begins.filter(|entry| entry.phase == Phase::Begin) {
        let key = (OpId(entry.step), entry.attempt);
        let Some(last) = steps.get(&key.0) else { continue };
        check.looked();
        let what = format!("run {id}: step {} attempt {}", key.0, key.1);
        if started.get(&key) != Some(&entry.epoch) {
            check
                .problem(format!("{what} ran under epoch {}, which had not recorded its start", entry.epoch));
        }
        if !begun.insert(key) {
            check.problem(format!("{what} ran twice"));
        }
        if last.policy == DoubtPolicy::Verify && last.number > key.1 && doubted.contains(&key) {
            check.problem(format!("{what} had its effect, the probe denied it, and it was repeated"));
        }
    }
}

#[cfg(test)]
mod tests {
    use everstep_core::{Failure, StepResolved};

    use super::*;
    use crate::fixture::features::{DOUBT, DOUBTED, GUARDED, GUARDED_AGAIN, GUARDED_DONE, case};
    use crate::fixture::{broken_in, run_id};

    fn judge(case: &Case) -> Check {
        check(case, &mut Totals::new())
    }

    fn run(case: &mut Case) -> &mut Tables {
        case.runs.entry(run_id(DOUBT)).or_default()
    }

    fn found(part: &str, change: impl FnOnce(&mut Case)) {
        broken_in(case, judge, part, change);
    }

    fn policy(case: &mut Case, wanted: DoubtPolicy) {
        for event in &mut run(case).events {
            if let EventBody::StepStarted { in_doubt, .. } = &mut event.body {
                *in_doubt = Some(wanted);
            }
        }
    }

    fn resolved(resolution: Resolution) -> EventBody {
        let (step, name, note) = (OpId(1), "guarded".to_owned(), String::new());
        EventBody::StepResolved(Box::new(StepResolved { step, name, attempt: 1, resolution, note }))
    }

    #[test]
    fn a_doubt_that_was_retried_passes() {
        let mut totals = Totals::new();
        let judged = check(&case(), &mut totals);
        assert!(judged.ok && judged.checked > 2, "{judged:?}");
        assert_eq!(totals["steps_in_doubt"], 1);
    }

    #[test]
    fn an_attempt_that_was_cut_off_without_a_doubt_is_found() {
        found("is not said to be in doubt", |c| drop(run(c).events.remove(DOUBTED)));
        found("has no end, and the next one begins", |c| {
            run(c).events.drain(DOUBTED..GUARDED_AGAIN);
        });
    }

    #[test]
    fn what_the_policy_forbids_is_found() {
        found("nobody was asked", |c| policy(c, DoubtPolicy::AskHuman));
        found("should fail, and the next one begins", |c| policy(c, DoubtPolicy::Fail));
        for wanted in [DoubtPolicy::Retry, DoubtPolicy::AskHuman, DoubtPolicy::Fail] {
            found(&format!("is in doubt, with the policy {}", wanted.as_str()), |c| {
                policy(c, wanted);
                run(c).events.remove(GUARDED_AGAIN);
                if let EventBody::StepCompleted { attempt, .. } = &mut run(c).events[GUARDED_DONE - 1].body {
                    *attempt = 1;
                }
            });
        }
        found("is not in doubt", |c| {
            let mut event = run(c).events[GUARDED].clone();
            event.body = resolved(Resolution::Retry);
            run(c).events.insert(GUARDED + 1, event);
        });
    }

    #[test]
    fn what_the_policy_allows_passes() {
        let mut asked = case();
        policy(&mut asked, DoubtPolicy::AskHuman);
        let mut event = run(&mut asked).events[DOUBTED].clone();
        event.body = resolved(Resolution::Retry);
        run(&mut asked).events.insert(DOUBTED + 1, event);
        assert!(judge(&asked).ok, "{:?}", judge(&asked));
        let mut failed = case();
        policy(&mut failed, DoubtPolicy::Fail);
        run(&mut failed).events.remove(GUARDED_AGAIN);
        failed.journal().retain(|e| e.run_id != run_id(DOUBT).to_string() || e.attempt == 1);
        run(&mut failed).events[GUARDED_DONE - 1].body = EventBody::StepFailed {
            step: OpId(1),
            name: "guarded".to_owned(),
            attempt: 1,
            elapsed: everstep_core::Duration::ZERO,
            failure: Failure::new(IN_DOUBT, "m"),
            retry_at: None,
        };
        assert!(judge(&failed).ok, "{:?}", judge(&failed));
    }

    #[test]
    fn an_effect_before_its_record_and_one_that_came_twice_are_found() {
        found("which had not recorded its start", |c| {
            c.journal()
                .iter_mut()
                .filter(|e| e.run_id == run_id(DOUBT).to_string())
                .for_each(|e| e.epoch = 9);
        });
        found("ran twice", |c| {
            let again = c.journal().iter().find(|e| e.run_id == run_id(DOUBT).to_string()).cloned();
            c.journal().extend(again);
        });
        found("the probe denied it", |c| policy(c, DoubtPolicy::Verify));
    }
}
