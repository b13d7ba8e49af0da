//! Deciding what an owner did. A commit is recorded whole or not at all.

use everstep_fault::{Bug, planted};

use super::annotate::{self, Annotated};
use super::decide::{Draft, check_payload, cut};
use super::doubt::doubt_running;
use super::ops::check_free;
use super::update;
use super::version::{self, Marked};
use super::{Run, child, external, queued, succession};
use crate::{
    Blocked, CommitCommand, DetachReason, Duration, EventBody, Failure, OpId, Payload, Rejection,
    RetryDecision, RetryPolicy, Seq, TimerKey, Timestamp, WorkerCommit, limits, validate_name,
};

/// What the commands before one in the same commit changed about one step or timer.
#[derive(Default)]
struct Overlay {
    ended: Vec<OpId>,
    timers_started: Vec<OpId>,
    /// Operations that are carried out elsewhere.
    scheduled: Vec<OpId>,
    marked: Marked,
    annotated: Annotated,
    /// Updates that ended, by the events that accepted them.
    updates: Vec<Seq>,
    /// Attempts of guarded steps.
    begun: Vec<(OpId, String, u32)>,
    detached: bool,
}

/// Appends the events of `commit` to the draft.
pub(super) fn decide(draft: &mut Draft<'_>, commit: &WorkerCommit) -> Result<(), Rejection> {
    let run = draft.run;
    // Epoch first: a claim is what makes a sender the owner, and claims only ever rise.
    if planted(Bug::SkipEpochCheck) {
        draft.epoch = commit.epoch;
    } else if commit.epoch != run.epoch {
        return Err(Rejection::Fenced { current: run.epoch, sent: commit.epoch });
    }
    if commit.number <= run.committed {
        return Ok(());
    }
    if run.owner.is_none() && !planted(Bug::SkipEpochCheck) && !planted(Bug::AcceptAfterTerminal) {
        return Err(Rejection::Fenced { current: run.epoch, sent: commit.epoch });
    }
    if commit.seen > run.seq {
        return invalid(format!("the worker has seen event {}, the run ends at {}", commit.seen, run.seq));
    }
    if commit.commands.is_empty() || commit.commands.len() > limits::COMMIT_COMMANDS_MAX {
        return invalid(format!("a commit holds 1 to {} commands", limits::COMMIT_COMMANDS_MAX));
    }
    if let Some(at) = commit.ahead {
        go_ahead(draft, commit, at)?;
    }
    let mut overlay = Overlay::default();
    for (index, command) in commit.commands.iter().enumerate() {
        if overlay.detached {
            return invalid("commands follow the one that ends the worker's turn".to_owned());
        }
        one(draft, commit, index, command, &mut overlay)?;
    }
    annotate::finish(draft, overlay.annotated);
    queued::stop_if_too_many(draft);
    child::stop_if_too_many(draft);
    stop_if_too_large(draft);
    Ok(())
}

/// The sender has applied the first command's event already: what it took for granted has to be so.
fn go_ahead(draft: &mut Draft<'_>, commit: &WorkerCommit, at: Timestamp) -> Result<(), Rejection> {
    let run = draft.run;
    if commit.seen != run.seq && !planted(Bug::AheadOfUnseen) {
        return Err(Rejection::UnseenEvents { seen: commit.seen, tail: run.seq });
    }
    if !matches!(commit.commands.first(), Some(CommitCommand::CompleteStep { .. })) {
        return invalid("only the end of a step can be applied before it is recorded".to_owned());
    }
    if at < run.at || at > draft.now.after(limits::AHEAD_MAX) {
        return invalid(format!(
            "the worker's time is {at}, the run's {} and the database's {}",
            run.at, draft.now
        ));
    }
    draft.at = at;
    Ok(())
}

fn one(
    draft: &mut Draft<'_>,
    commit: &WorkerCommit,
    index: usize,
    command: &CommitCommand,
    overlay: &mut Overlay,
) -> Result<(), Rejection> {
    match command {
        // A person was faster. The owner will hear of it, and what it did about the step counts for nothing.
        CommitCommand::StartStep { step, .. }
        | CommitCommand::CompleteStep { step, .. }
        | CommitCommand::FailStep { step, .. }
            if draft.run.resolved_since(*step, commit.seen) => {}
        CommitCommand::StartStep { step, name, attempt, in_doubt } => {
            check_step(draft.run, overlay, *step, name, *attempt)?;
            check_begin(draft.run, overlay, *step, *attempt)?;
            if in_doubt.is_some() {
                overlay.begun.push((*step, name.clone(), *attempt));
            }
            if in_doubt.is_some() || !ends_later(&commit.commands[index + 1..], *step, *attempt) {
                draft.push(EventBody::StepStarted {
                    step: *step,
                    name: name.clone(),
                    attempt: *attempt,
                    in_doubt: *in_doubt,
                });
            }
        }
        CommitCommand::CompleteStep { step, name, attempt, elapsed, result } => {
            check_step(draft.run, overlay, *step, name, *attempt)?;
            check_payload("result", result)?;
            overlay.ended.push(*step);
            draft.push(EventBody::StepCompleted {
                step: *step,
                name: name.clone(),
                attempt: *attempt,
                elapsed: *elapsed,
                result: result.clone(),
            });
        }
        CommitCommand::FailStep { step, name, attempt, elapsed, failure, policy } => {
            check_step(draft.run, overlay, *step, name, *attempt)?;
            overlay.ended.push(*step);
            fail_step(draft, (*step, name, *attempt, *elapsed), failure, policy.as_ref())?;
        }
        CommitCommand::ScheduleStep(wanted) => queued::schedule(draft, &mut overlay.scheduled, wanted)?,
        CommitCommand::CancelStep { step } => queued::cancel(draft, &overlay.scheduled, *step)?,
        CommitCommand::StartTimer { timer, delay } => start_timer(draft, overlay, *timer, *delay)?,
        CommitCommand::CancelTimer { timer } => cancel_timer(draft, overlay, *timer)?,
        CommitCommand::StartChild(wanted) => child::start(draft, &mut overlay.scheduled, wanted)?,
        CommitCommand::RequestExternal(wanted) => external::request(draft, &mut overlay.scheduled, wanted)?,
        CommitCommand::CompleteUpdate { accepted, outcome } => {
            update::complete(draft, &mut overlay.updates, *accepted, outcome)?;
        }
        CommitCommand::MarkVersion { change_id, version } => {
            version::mark(draft, &mut overlay.marked, change_id, *version)?;
        }
        CommitCommand::Upsert { op, notes } => {
            annotate::upsert(draft, &mut overlay.annotated, &mut overlay.scheduled, *op, notes)?;
        }
        end => end_turn(draft, commit, end, overlay)?,
    }
    Ok(())
}

/// The last command of a worker's turn.
fn end_turn(
    draft: &mut Draft<'_>,
    commit: &WorkerCommit,
    command: &CommitCommand,
    overlay: &mut Overlay,
) -> Result<(), Rejection> {
    match command {
        CommitCommand::CompleteRun { result, unconsumed } => {
            check_payload("result", result)?;
            succession::check_unconsumed(draft.run, commit.seen, unconsumed)?;
            draft.push(EventBody::RunCompleted { result: result.clone(), unconsumed: unconsumed.clone() });
        }
        CommitCommand::FailRun { failure, unconsumed } => {
            succession::check_unconsumed(draft.run, commit.seen, unconsumed)?;
            succession::fail(draft, check_failure(failure)?, unconsumed);
        }
        CommitCommand::ContinueAsNew(next) => {
            succession::continue_as_new(draft, commit, next)?;
        }
        CommitCommand::CancelRun { details } => {
            draft.push(EventBody::RunCanceled { details: cut(details) });
        }
        CommitCommand::Park => {
            if commit.seen != draft.run.seq {
                return Err(Rejection::UnseenEvents { seen: commit.seen, tail: draft.run.seq });
            }
            if let Some(step) = guarded_running(draft.run, overlay) {
                return invalid(format!(
                    "a run cannot be parked while an attempt of step {step} is under way"
                ));
            }
            draft.push(EventBody::WorkerDetached { reason: DetachReason::Parked });
        }
        CommitCommand::Release { reason } => {
            doubt_running(draft, &overlay.ended, &overlay.begun);
            draft.push(EventBody::WorkerDetached { reason: DetachReason::Released(cut(reason)) });
        }
        CommitCommand::Block(blocked) => {
            if blocked.build_id.len() > limits::NAME_BYTES_MAX || blocked.build_id.contains('\0') {
                return invalid("build_id must be at most 255 bytes without NUL".to_owned());
            }
            doubt_running(draft, &overlay.ended, &overlay.begun);
            draft.push(EventBody::RunBlocked(Box::new(Blocked {
                expected: cut(&blocked.expected),
                produced: cut(&blocked.produced),
                source: cut(&blocked.source),
                hint: cut(&blocked.hint),
                ..(**blocked).clone()
            })));
        }
        CommitCommand::StartStep { .. }
        | CommitCommand::CompleteStep { .. }
        | CommitCommand::FailStep { .. }
        | CommitCommand::ScheduleStep(_)
        | CommitCommand::CancelStep { .. }
        | CommitCommand::StartTimer { .. }
        | CommitCommand::CancelTimer { .. }
        | CommitCommand::StartChild(_)
        | CommitCommand::RequestExternal(_)
        | CommitCommand::CompleteUpdate { .. }
        | CommitCommand::MarkVersion { .. }
        | CommitCommand::Upsert { .. } => return Ok(()),
    }
    overlay.detached = true;
    Ok(())
}

/// A step may be recorded on when it has not ended and the attempt does not go backwards.
fn check_step(run: &Run, overlay: &Overlay, step: OpId, name: &str, attempt: u32) -> Result<(), Rejection> {
    validate_name("step name", name)?;
    if step.0 == 0 || attempt == 0 {
        return invalid("step ids and attempts count from 1".to_owned());
    }
    if run.is_queued(step) || overlay.scheduled.contains(&step) {
        return invalid(format!("{step} is a queued step: its worker says how it went"));
    }
    if run.children.contains(step) || run.externals.contains(step) {
        return invalid(format!("{step} is about another run, not a step"));
    }
    if run.upserts.contains(step) {
        return invalid(format!("{step} is an upsert, not a step"));
    }
    if run.steps_ended.contains(step) || overlay.ended.contains(&step) {
        return invalid(format!("step {step} '{name}' has ended already"));
    }
    let started = overlay.timers_started.contains(&step);
    if started || run.timer(TimerKey::timer(step)).is_some() || run.timers_ended.contains(step) {
        return invalid(format!("{step} is a timer, not a step"));
    }
    match run.step(step) {
        Some(s) if s.running && attempt < s.attempt => {
            invalid(format!("attempt {attempt} of step {step} comes after attempt {}", s.attempt))
        }
        // Nobody knows how it ended until its end is recorded.
        Some(s) if s.is_guarded_and_running() && attempt != s.attempt => {
            invalid(format!("attempt {} of step {step} has no end yet", s.attempt))
        }
        Some(s) if s.is_in_doubt() && attempt == s.attempt => Ok(()),
        Some(s) if !s.running && attempt <= s.attempt => {
            invalid(format!("attempt {attempt} of step {step} has failed already"))
        }
        _ => Ok(()),
    }
}

/// What begins anew was not begun before, and its forerunner is not left without an end.
fn check_begin(run: &Run, overlay: &Overlay, step: OpId, attempt: u32) -> Result<(), Rejection> {
    let known = run
        .step(step)
        .is_some_and(|s| s.attempt == attempt && (s.is_guarded_and_running() || s.is_in_doubt()));
    if known || overlay.begun.iter().any(|(id, ..)| *id == step) {
        return invalid(format!("attempt {attempt} of step {step} has begun already"));
    }
    Ok(())
}

/// A guarded step whose attempt is under way.
fn guarded_running(run: &Run, overlay: &Overlay) -> Option<OpId> {
    let begun = overlay.begun.iter().map(|(step, ..)| *step);
    let before = run.steps.iter().filter(|(_, s)| s.is_guarded_and_running()).map(|(step, _)| *step);
    before.chain(begun).find(|step| !overlay.ended.contains(step))
}

/// True when the same attempt ends within the same commit: both transitions fold into one event.
fn ends_later(rest: &[CommitCommand], id: OpId, number: u32) -> bool {
    rest.iter().any(|c| match c {
        CommitCommand::CompleteStep { step, attempt, .. } | CommitCommand::FailStep { step, attempt, .. } => {
            *step == id && *attempt == number
        }
        _ => false,
    })
}

fn fail_step(
    draft: &mut Draft<'_>,
    (step, name, attempt, elapsed): (OpId, &str, u32, Duration),
    failure: &Failure,
    policy: Option<&RetryPolicy>,
) -> Result<(), Rejection> {
    let policy = policy.or(draft.run.start.step_retry.as_ref()).cloned().unwrap_or_default();
    policy.validate()?;
    let failure = check_failure(failure)?;
    let failures = draft.run.step(step).map_or(0, |s| s.failures) + 1;
    let seed = draft.run.start.seed ^ (u64::from(step.0) << 32);
    let retry_at = match policy.after_failure(failures, &failure, seed) {
        RetryDecision::After(delay) => Some(draft.at.after(delay)),
        RetryDecision::Final => None,
    };
    draft.push(EventBody::StepFailed { step, name: name.to_owned(), attempt, elapsed, failure, retry_at });
    Ok(())
}

fn start_timer(
    draft: &mut Draft<'_>,
    overlay: &mut Overlay,
    timer: OpId,
    delay: Duration,
) -> Result<(), Rejection> {
    if delay > limits::DURATION_MAX {
        return invalid(format!("timer {timer} is longer than 100 years"));
    }
    let run = draft.run;
    let known = run.timer(TimerKey::timer(timer)).is_some() || run.timers_ended.contains(timer);
    if timer.0 == 0 || known || overlay.timers_started.contains(&timer) {
        return invalid(format!("timer {timer} was started already"));
    }
    check_free(draft, &overlay.scheduled, timer)?;
    overlay.timers_started.push(timer);
    draft.push(EventBody::TimerStarted { timer, fire_at: draft.at.after(delay) });
    Ok(())
}

fn cancel_timer(draft: &mut Draft<'_>, overlay: &Overlay, timer: OpId) -> Result<(), Rejection> {
    let pending = draft.run.timer(TimerKey::timer(timer)).is_some();
    if pending || overlay.timers_started.contains(&timer) {
        draft.push(EventBody::TimerCanceled { timer });
    } else if !draft.run.timers_ended.contains(timer) {
        return invalid(format!("timer {timer} was never started"));
    }
    // Fired meanwhile: the workflow will see that and has nothing to cancel.
    Ok(())
}

pub(super) fn check_failure(failure: &Failure) -> Result<Failure, Rejection> {
    let mut kept = failure.clone();
    let mut depth = 0;
    let mut at = Some(&mut kept);
    while let Some(f) = at {
        depth += 1;
        check_payload("failure.details", &f.details)?;
        f.kind = cut(&f.kind).chars().take(limits::NAME_BYTES_MAX).collect();
        f.message = cut(&f.message);
        if depth == 8 {
            f.cause = None;
        }
        at = f.cause.as_deref_mut();
    }
    Ok(kept)
}

/// A history at its limit ends the run in a way that says so, in place of what would have gone beyond.
pub(super) fn stop_if_too_large(draft: &mut Draft<'_>) {
    let run = draft.run;
    let events = run.seq + draft.events.len() as u64;
    let added: u64 = draft.events.iter().map(|e| e.body.data_bytes() as u64).sum();
    let bytes = run.bytes + added;
    let within = events <= limits::HISTORY_EVENTS_MAX && bytes <= limits::HISTORY_BYTES_MAX;
    if within || draft.events.last().is_some_and(|e| e.body.is_terminal()) {
        return;
    }
    draft.events.clear();
    let message = format!(
        "the history would have grown to {events} events and {bytes} bytes of payload; the limits are {} and {}. \
         Split the workflow into several runs",
        limits::HISTORY_EVENTS_MAX,
        limits::HISTORY_BYTES_MAX
    );
    let failure =
        Failure { details: Payload::default(), ..Failure::new("HistoryTooLarge", message).non_retryable() };
    draft.push(EventBody::RunFailed { failure, unconsumed: Vec::new(), retried_by: None });
}

fn invalid<T>(problem: String) -> Result<T, Rejection> {
    Err(Rejection::InvalidCommands { problem })
}
