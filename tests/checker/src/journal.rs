//! The effect journal held against the log: what ran, and what is recorded of it.
//!
//! Event times are database time and the journal's are monotonic, so none is compared with the other. Order
//! follows from what is sound without clocks:
//!
//! * An owner of epoch `e` has replayed every event of earlier epochs before it runs anything. A step whose
//!   end was recorded under an earlier epoch must not run under `e`.
//! * Within an epoch the next attempt begins only after the failure of the one before was recorded. An
//!   attempt beyond the one that ended the step began after that end.
//! * A client that has seen the run closed has seen all its events committed. The reply and the journal share
//!   one clock, so an execution that begins later began after the end of its step.
//!
//! An execution of an *earlier* epoch than the one that recorded the end is legal whenever it happens: its
//! worker may not know yet that it has lost the run, which is what fencing is for. It is counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use everstep_core::{Epoch, Event, EventBody, OpId, Payload, RunId};
use sha2::{Digest, Sha256};

use crate::Totals;
use crate::case::{Case, Op, Outcome, Tables};
use crate::format::{JournalEntry, OpKind, Phase};
use crate::verdict::Check;

/// An attempt of a step under one epoch.
type Key = (OpId, u32, Epoch);

/// What the journal says about one run.
#[derive(Debug, Default)]
pub(crate) struct Executions<'a> {
    pub(crate) begins: BTreeMap<Key, Vec<&'a JournalEntry>>,
    ends: BTreeMap<Key, &'a JournalEntry>,
    /// Attempts of queued steps, which have no epoch. Judged by themselves.
    pub(crate) queued: Vec<&'a JournalEntry>,
    /// Attempts of each step under each epoch, in the journal's order.
    order: BTreeMap<OpId, BTreeMap<Epoch, Vec<u32>>>,
}

/// The recorded end of a step.
#[derive(Clone, Copy, Debug)]
struct End<'a> {
    seq: u64,
    epoch: Epoch,
    attempt: u32,
    name: &'a str,
    /// `None` for a failure that was the last.
    result: Option<&'a Payload>,
    /// It was found out afterwards, by another owner than the one that ran the attempt.
    probed: bool,
}

/// The journal, by run. Runs that are no UUIDs come under `None`.
pub(crate) fn by_run(journal: &[JournalEntry]) -> BTreeMap<Option<RunId>, Executions<'_>> {
    let mut runs: BTreeMap<Option<RunId>, Executions<'_>> = BTreeMap::new();
    for entry in journal {
        let of = runs.entry(entry.run_id.parse().ok()).or_default();
        if entry.queued.is_some() {
            of.queued.push(entry);
            continue;
        }
        let step = OpId(entry.step);
        let key = (step, entry.attempt, entry.epoch);
        match entry.phase {
            Phase::Begin => {
                of.begins.entry(key).or_default().push(entry);
                of.order.entry(step).or_default().entry(entry.epoch).or_default().push(entry.attempt);
            }
            Phase::End => drop(of.ends.insert(key, entry)),
            Phase::Beat | Phase::Denied => {}
        }
    }
    runs
}

/// The ends of the steps that the run's own workers ran. A queued step's worker has no epoch of the run's.
fn ends<'a>(id: RunId, tables: &'a Tables, check: &mut Check) -> BTreeMap<OpId, End<'a>> {
    let mut ends: BTreeMap<OpId, End<'a>> = BTreeMap::new();
    let queued: BTreeSet<OpId> = tables
        .events
        .iter()
        .filter(|event| matches!(event.body, EventBody::StepScheduled(_)))
        .filter_map(|event| event.body.op())
        .collect();
    for event in tables.events.iter().filter(|event| event.body.op().is_none_or(|op| !queued.contains(&op))) {
        let (step, name, attempt, result) = match &event.body {
            EventBody::StepCompleted { step, name, attempt, result, .. } => {
                (*step, name, *attempt, Some(result))
            }
            EventBody::StepFailed { step, name, attempt, retry_at: None, .. } => {
                (*step, name, *attempt, None)
            }
            _ => continue,
        };
        check.looked();
        // The probe of a step in doubt tells what the attempt of an earlier owner came to.
        let doubted = doubted(tables, step, attempt, event.seq);
        let (epoch, probed) = (doubted.unwrap_or(event.epoch), doubted.is_some());
        let end = End { seq: event.seq, epoch, attempt, name, result, probed };
        if let Some(first) = ends.get(&step) {
            check.problem(format!("run {id}: step {step} ended at event {} and at {}", first.seq, end.seq));
        } else {
            ends.insert(step, end);
        }
    }
    ends
}

/// The epoch under which an attempt began that was in doubt before event `before`.
fn doubted(tables: &Tables, step: OpId, attempt: u32, before: u64) -> Option<Epoch> {
    let earlier = || tables.events.iter().filter(|e| e.seq < before);
    let is_it = |s: &OpId, a: &u32| (*s, *a) == (step, attempt);
    earlier()
        .find(|e| matches!(&e.body, EventBody::StepInDoubt { step, attempt, .. } if is_it(step, attempt)))?;
    let started =
        |e: &&Event| matches!(&e.body, EventBody::StepStarted { step, attempt, .. } if is_it(step, attempt));
    earlier().find(started).map(|e| e.epoch)
}

/// INV-17: one end for each step, and no execution after it.
pub(crate) fn after_end(case: &Case, totals: &mut Totals) -> Check {
    let mut check = Check::new("one end per step", &["INV-17"]);
    let mut journal = case.journal.as_deref().map(by_run).unwrap_or_default();
    if case.journal.is_none() {
        check.note("no journal: whether something ran after its end is not known");
    }
    let closed = closed_at(case);
    let mut stale = 0;
    for (id, tables) in &case.runs {
        let ends = ends(*id, tables, &mut check);
        let Some(executions) = journal.remove(&Some(*id)) else { continue };
        for ((step, attempt, epoch), begins) in &executions.begins {
            let Some(end) = ends.get(step) else { continue };
            check.looked();
            let what = format!("run {id}: step {step} attempt {attempt} of epoch {epoch}");
            let ended =
                format!("event {} ended it with attempt {} of epoch {}", end.seq, end.attempt, end.epoch);
            let later = *epoch > end.epoch || *epoch == end.epoch && *attempt > end.attempt;
            if later {
                check.problem(format!("{what} ran, though {ended}"));
            }
            let late = begins.iter().filter(|b| closed.get(id).is_some_and(|t| b.mono_ns > *t)).count();
            if late > 0 && *epoch >= end.epoch {
                check.problem(format!("{what} began after a client saw the run closed, and {ended}"));
            } else {
                stale += late as u64;
            }
        }
    }
    totals.insert("stale_executions_after_close".to_owned(), stale);
    check
}

/// When a client first knew that a run is closed.
fn closed_at(case: &Case) -> HashMap<RunId, u64> {
    let mut closed: HashMap<RunId, u64> = HashMap::new();
    for op in case.ops.iter().flatten() {
        let (Some(replied), Some(id)) = (op.replied, op.run_id.as_ref().and_then(|id| id.parse().ok()))
        else {
            continue;
        };
        if says_closed(op) {
            let at = closed.entry(id).or_insert(replied);
            *at = replied.min(*at);
        }
    }
    closed
}

fn says_closed(op: &Op) -> bool {
    match (op.kind, op.outcome) {
        (OpKind::Result | OpKind::Terminate, Outcome::Ok) => true,
        (_, Outcome::Fail) => op.code() == "RUN_CLOSED",
        _ => false,
    }
}

/// INV-18: an attempt runs once under an epoch, and numbers rise.
pub(crate) fn attempts(case: &Case, totals: &mut Totals) -> Check {
    let mut check = Check::new("attempts", &["INV-18"]);
    let Some(journal) = &case.journal else {
        check.note("no journal");
        return check;
    };
    let mut executions = 0u64;
    for (id, of) in by_run(journal) {
        let run = id.map_or_else(|| "of no id".to_owned(), |id| id.to_string());
        for ((step, attempt, epoch), begins) in &of.begins {
            check.looked();
            executions += begins.len() as u64;
            if begins.len() > 1 {
                let times = begins.len();
                check.problem(format!(
                    "run {run}: step {step} attempt {attempt} ran {times} times under epoch {epoch}"
                ));
            }
        }
        for (step, epochs) in &of.order {
            rising(&run, *step, epochs, &mut check);
        }
        for (step, attempt, epoch) in of.ends.keys().filter(|key| !of.begins.contains_key(key)) {
            check.problem(format!(
                "run {run}: step {step} attempt {attempt} of epoch {epoch} ended, never begun"
            ));
        }
    }
    totals.insert("executions".to_owned(), executions);
    check
}

/// Within an epoch numbers rise by the journal's order; a later epoch never falls behind an earlier one.
fn rising(run: &str, step: OpId, epochs: &BTreeMap<Epoch, Vec<u32>>, check: &mut Check) {
    let mut before = (0, 0);
    for (epoch, attempts) in epochs {
        if let Some(pair) = attempts.windows(2).find(|pair| pair[1] < pair[0]) {
            let text = format!("attempt {} ran after attempt {}", pair[1], pair[0]);
            check.problem(format!("run {run}: step {step}, epoch {epoch}: {text}"));
        }
        let least = attempts.iter().min().copied().unwrap_or(u32::MAX);
        if least < before.1 {
            let text = format!("attempt {least} under epoch {epoch}, {} under {}", before.1, before.0);
            check.problem(format!("run {run}: step {step}: {text}"));
        }
        before = (*epoch, attempts.iter().max().copied().unwrap_or(0).max(before.1));
    }
}

/// INV-07 and INV-20: what is recorded was executed, by the owner of that epoch, and its result is the one
/// that the execution reported. And what was executed belongs to a run, step and claim of the log.
pub(crate) fn recorded(case: &Case, totals: &mut Totals) -> Check {
    let mut check = Check::new("recorded results", &["INV-07", "INV-20"]);
    let Some(journal) = &case.journal else {
        check.note("no journal");
        return check;
    };
    let nonces: BTreeSet<&str> = journal.iter().map(|e| e.nonce.as_str()).collect();
    let tells_ends = journal.iter().any(|e| e.phase == Phase::End);
    let mut runs = by_run(journal);
    let (mut unrecorded, mut again, mut compared) = (0u64, 0u64, 0u64);
    for (id, tables) in &case.runs {
        let executions = runs.remove(&Some(*id)).unwrap_or_default();
        let mut quiet = Check::default();
        let ends = ends(*id, tables, &mut quiet);
        for (step, end) in &ends {
            check.looked();
            if tells_ends && end.result.is_some() && !end.probed && never_returned(&executions, *step, end) {
                let (seq, attempt) = (end.seq, end.attempt);
                check.problem(format!(
                    "run {id}: event {seq}, step {step} attempt {attempt} is recorded and never returned"
                ));
            }
            compared += u64::from(phantom(*id, *step, end, (&executions, &nonces), &mut check));
        }
        known_to_log(*id, tables, &executions, &mut check);
        let recorded: BTreeSet<Key> = tables.events.iter().filter_map(attempt_end).collect();
        for key in executions.begins.keys().filter(|key| !recorded.contains(key)) {
            unrecorded += 1;
            again += u64::from(ran_later(&executions, *key));
        }
    }
    for (id, executions) in runs {
        let name = executions.begins.values().flatten().next().map_or("", |e| e.workflow_id.as_str());
        let run = id.map_or_else(|| "of no id".to_owned(), |id| id.to_string());
        check
            .problem(format!("run {run} ({name}): steps ran, and the log does not have it: LOST or PHANTOM"));
    }
    totals.insert("executions_unrecorded".to_owned(), unrecorded);
    totals.insert("re_executions".to_owned(), again);
    totals.insert("results_compared".to_owned(), compared);
    check
}

/// The step ran once more, as a later attempt or for a later owner.
fn ran_later(executions: &Executions<'_>, (step, attempt, epoch): Key) -> bool {
    let of_step = executions.begins.range((step, 0, 0)..=(step, u32::MAX, Epoch::MAX));
    of_step.into_iter().any(|((_, a, e), _)| (*e, *a) > (epoch, attempt))
}

fn attempt_end(event: &everstep_core::Event) -> Option<Key> {
    match &event.body {
        EventBody::StepCompleted { step, attempt, .. } | EventBody::StepFailed { step, attempt, .. } => {
            Some((*step, *attempt, event.epoch))
        }
        _ => None,
    }
}

/// The execution of a recorded result began and did not end. A sink that is told of ends is told of each
/// before the step returns.
fn never_returned(executions: &Executions<'_>, step: OpId, end: &End<'_>) -> bool {
    let key = (step, end.attempt, end.epoch);
    executions.begins.contains_key(&key) && !executions.ends.contains_key(&key)
}

/// True when the result could be compared with what the journal has.
fn phantom(
    id: RunId,
    step: OpId,
    end: &End<'_>,
    (executions, nonces): (&Executions<'_>, &BTreeSet<&str>),
    check: &mut Check,
) -> bool {
    // An attempt can fail without having reached the sink.
    let Some(result) = end.result else { return false };
    let what = format!("run {id}: event {}, step {step} attempt {}", end.seq, end.attempt);
    let key = (step, end.attempt, end.epoch);
    let Some(begin) = executions.begins.get(&key).and_then(|b| b.first()) else {
        let others: Vec<String> = executions
            .begins
            .keys()
            .filter(|k| k.0 == step)
            .map(|k| format!("attempt {} of epoch {}", k.1, k.2))
            .collect();
        let epoch = end.epoch;
        check.problem(format!("{what} of epoch {epoch} never ran: PHANTOM (the journal has: {others:?})"));
        return false;
    };
    if begin.name != end.name {
        check.problem(format!("{what} is recorded as '{}' and ran as '{}'", end.name, begin.name));
    }
    if let Some(reported) = executions.ends.get(&key).and_then(|e| e.result_sha256.as_ref()) {
        let found = sha256(&result.data);
        if !found.eq_ignore_ascii_case(reported) {
            check.problem(format!("{what}: the recorded result is not the one that the execution returned"));
        }
        return true;
    }
    foreign_nonce(&what, result, (begin.nonce.as_str(), nonces), check)
}

/// Without a hash: a result that holds nonces of other executions and not its own is a stranger's.
fn foreign_nonce(
    what: &str,
    result: &Payload,
    (own, nonces): (&str, &BTreeSet<&str>),
    check: &mut Check,
) -> bool {
    let Ok(value) = serde_json::from_slice(&result.data) else { return false };
    let mut found = Vec::new();
    strings(&value, &mut |text| {
        if nonces.contains(text) {
            found.push(text.to_owned());
        }
    });
    if let Some(other) = found.first()
        && !found.iter().any(|text| text == own)
    {
        check.problem(format!("{what}: the recorded result carries {other}, the execution reported {own}"));
    }
    !found.is_empty()
}

/// Calls `each` for every string inside a JSON value.
pub(crate) fn strings(value: &serde_json::Value, each: &mut impl FnMut(&str)) {
    match value {
        serde_json::Value::String(text) => each(text),
        serde_json::Value::Array(items) => items.iter().for_each(|item| strings(item, each)),
        serde_json::Value::Object(fields) => fields.values().for_each(|field| strings(field, each)),
        _ => {}
    }
}

/// A worker runs steps only under a claim that is in the log.
fn known_to_log(id: RunId, tables: &Tables, executions: &Executions<'_>, check: &mut Check) {
    let claims: BTreeSet<Epoch> = tables
        .events
        .iter()
        .filter(|e| matches!(e.body, EventBody::WorkerAttached { .. }))
        .map(|e| e.epoch)
        .collect();
    let epochs: BTreeSet<Epoch> = executions.begins.keys().map(|key| key.2).collect();
    for epoch in epochs.difference(&claims) {
        check.problem(format!("run {id}: steps ran under epoch {epoch}, which no claim in the log has"));
    }
}

/// SHA-256 in hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{DONE_A, DONE_B, broken, good, mono, run_id};

    fn ended(case: &Case) -> Check {
        after_end(case, &mut Totals::new())
    }

    fn counted(case: &Case) -> Check {
        attempts(case, &mut Totals::new())
    }

    fn compared(case: &Case) -> Check {
        recorded(case, &mut Totals::new())
    }

    /// The execution of step 2, attempt 2 under epoch 2: both its lines.
    fn last(case: &mut Case) -> &mut [JournalEntry] {
        let len = case.journal().len();
        &mut case.journal()[len - 2..]
    }

    #[test]
    fn a_re_execution_is_legal_and_counted() {
        let mut totals = Totals::new();
        for check in
            [after_end(&good(), &mut totals), attempts(&good(), &mut totals), recorded(&good(), &mut totals)]
        {
            assert!(check.ok && check.checked > 0, "{check:?}");
        }
        assert_eq!(totals["executions"], 4);
        assert_eq!(totals["re_executions"], 1);
        assert_eq!(totals["executions_unrecorded"], 1);
        assert_eq!(totals["results_compared"], 2);
    }

    #[test]
    fn two_ends_of_a_step_are_found() {
        broken(ended, "ended at event 3 and at 14", |c| {
            let again = c.first().events[DONE_A].body.clone();
            c.first().events[crate::fixture::END].body = again;
        });
    }

    #[test]
    fn an_execution_under_a_later_epoch_is_found() {
        broken(ended, "of epoch 3 ran, though", |c| last(c).iter_mut().for_each(|e| e.epoch = 3));
    }

    #[test]
    fn an_attempt_beyond_the_last_is_found() {
        broken(ended, "attempt 3 of epoch 2 ran, though", |c| {
            let mut more = last(c)[0].clone();
            more.attempt = 3;
            c.journal().push(more);
        });
    }

    #[test]
    fn an_execution_after_the_run_was_seen_closed_is_found() {
        broken(ended, "after a client saw the run closed", |c| last(c)[0].mono_ns = mono(60_000));
    }

    #[test]
    fn a_stale_owner_is_counted_and_no_problem() {
        let mut case = good();
        case.journal().iter_mut().filter(|e| e.epoch == 1 && e.attempt == 2).for_each(|e| {
            e.mono_ns = mono(60_000);
        });
        let mut totals = Totals::new();
        assert!(after_end(&case, &mut totals).ok);
        assert_eq!(totals["stale_executions_after_close"], 1);
    }

    #[test]
    fn an_attempt_that_ran_twice_under_one_epoch_is_found() {
        broken(counted, "ran 2 times under epoch 2", |c| {
            let again = last(c)[0].clone();
            c.journal().push(again);
        });
    }

    #[test]
    fn attempts_that_fall_are_found() {
        broken(counted, "attempt 1 ran after attempt 2", |c| c.journal().swap(2, 4));
        broken(counted, "attempt 1 under epoch 2, 2 under 1", |c| {
            last(c).iter_mut().for_each(|e| e.attempt = 1);
        });
        broken(counted, "never begun", |c| drop(c.journal().remove(0)));
    }

    #[test]
    fn a_result_that_nothing_executed_is_found() {
        broken(compared, "PHANTOM", |c| drop(c.journal().drain(..2)));
        broken(compared, "PHANTOM (the journal has: [\"attempt 1 of epoch 1\"])", |c| {
            if let EventBody::StepCompleted { attempt, .. } = &mut c.first().events[DONE_A].body {
                *attempt = 2;
            }
        });
    }

    #[test]
    fn another_result_than_the_reported_one_is_found() {
        let other = |c: &mut Case| {
            if let EventBody::StepCompleted { result, .. } = &mut c.first().events[DONE_B].body {
                *result = Payload::json("\"n-a\"");
            }
        };
        broken(compared, "not the one that the execution returned", other);
        let without_hash = |c: &mut Case| {
            other(c);
            c.journal().iter_mut().for_each(|e| e.result_sha256 = None);
        };
        broken(compared, "carries n-a, the execution reported n-b", without_hash);
    }

    #[test]
    fn a_result_whose_execution_never_returned_is_found() {
        broken(compared, "is recorded and never returned", |c| drop(c.journal().pop()));
    }

    #[test]
    fn a_step_that_ran_under_another_name_is_found() {
        broken(compared, "is recorded as 'a' and ran as 'z'", |c| c.journal()[0].name = "z".to_owned());
    }

    #[test]
    fn executions_that_the_log_cannot_explain_are_found() {
        broken(compared, "LOST or PHANTOM", |c| {
            last(c)[0].run_id = run_id(9).to_string();
        });
        broken(compared, "which no claim in the log has", |c| {
            let mut more = last(c)[0].clone();
            more.epoch = 8;
            c.journal().push(more);
        });
    }

    #[test]
    fn what_a_probe_found_is_what_an_earlier_owner_had_done() {
        use crate::fixture::features::{DOUBT, GUARDED_AGAIN, GUARDED_DONE, case};
        use crate::fixture::{broken_in, run_id as id};
        let probed = || {
            let mut case = case();
            let run = case.runs.entry(id(DOUBT)).or_default();
            run.events.remove(GUARDED_AGAIN);
            if let EventBody::StepCompleted { attempt, .. } = &mut run.events[GUARDED_DONE - 1].body {
                *attempt = 1;
            }
            case.journal().retain(|e| e.run_id != id(DOUBT).to_string() || e.attempt == 1);
            case
        };
        let executed = |c: &mut Case| c.journal().retain(|e| e.run_id != id(DOUBT).to_string());
        assert!(compared(&probed()).ok, "{:?}", compared(&probed()));
        broken_in(probed, compared, "PHANTOM", executed);
    }

    #[test]
    fn without_a_journal_a_note_says_so() {
        let mut case = good();
        case.journal = None;
        for check in [ended(&case), counted(&case), compared(&case)] {
            assert!(check.ok && !check.notes.is_empty(), "{check:?}");
        }
    }
}
