//! Turning a request into facts, or refusing it.

use everstep_fault::{Bug, planted};

use super::{Owner, Run, Successor, child, commit, doubt, external, pin, queued, succession, update};
use crate::{
    Actor, Attach, BlockKind, Blocked, Command, CommandBody, CommandId, Detach, DetachReason, Epoch, Event,
    EventBody, Payload, Rejection, RunStatus, TimerKey, TimerKind, Timestamp, limits, validate_name,
};

/// What a request leads to. What the tables beside the log have to change follows from the events
/// ([`WriteBasis`](crate::WriteBasis)), and what to tell whom follows from those writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Facts to append, seqs following the run's last one. Empty when the request had happened already.
    pub events: Vec<Event>,
    /// The run to start in the same append.
    pub follows: Option<Box<Successor>>,
}

/// Builds the events of one decision.
pub(super) struct Draft<'a> {
    pub(super) run: &'a Run,
    /// Database time.
    pub(super) now: Timestamp,
    /// What the events carry: it never falls along a history, whichever node decides.
    pub(super) at: Timestamp,
    command_id: CommandId,
    pub(super) actor: &'a Actor,
    pub(super) epoch: Epoch,
    pub(super) events: Vec<Event>,
    pub(super) follows: Option<Box<Successor>>,
}

impl<'a> Draft<'a> {
    pub(super) fn push(&mut self, body: EventBody) {
        if matches!(body, EventBody::WorkerAttached { .. }) {
            self.epoch += 1;
        }
        self.events.push(Event {
            seq: self.run.seq + 1 + self.events.len() as u64,
            at: self.at,
            epoch: self.epoch,
            command_id: self.command_id,
            actor: self.actor.clone(),
            body,
        });
    }
}

/// Decides one request on a run as it stands.
///
/// Pure: the same run, command and time give the same answer. A request that has happened already (the
/// same signal id, commit number or cancel) gives no events and no rejection.
///
/// # Errors
/// [`Rejection`]; nothing of the request happens then.
pub fn decide(run: &Run, command: &Command, now: Timestamp) -> Result<Decision, Rejection> {
    let mut draft = Draft {
        run,
        now,
        at: now.max(run.at),
        command_id: command.id,
        actor: &command.actor,
        epoch: run.epoch,
        events: Vec::new(),
        follows: None,
    };
    let late = planted(Bug::AcceptAfterTerminal) && matches!(command.body, CommandBody::Commit(_));
    if run.status.is_closed() && !late {
        return closed(run, command).map(|()| Decision::default());
    }
    match &command.body {
        CommandBody::Signal { name, signal_id, input } => signal(&mut draft, name, signal_id, input)?,
        CommandBody::AcceptUpdate { update_id, name, input, seen } => {
            update::accept(&mut draft, (update_id, name), input, *seen)?;
        }
        CommandBody::Cancel { reason } => {
            // A second request to stop says nothing new.
            if !run.was_canceled_by(command.id, reason)? && !run.cancel_requested {
                draft.push(EventBody::CancelRequested { reason: cut(reason) });
                // No code of it has run, so there is nothing that it could do in its own time.
                if run.is_delayed() {
                    draft.push(EventBody::RunCanceled { details: cut(reason) });
                }
            }
        }
        CommandBody::Terminate { reason } => draft.push(EventBody::RunTerminated { reason: cut(reason) }),
        CommandBody::ResolveStep { step, attempt, resolution, note } => {
            doubt::resolve(&mut draft, command.id, (*step, *attempt), resolution, note)?;
        }
        CommandBody::FinishStep { step, attempt, elapsed, end } => {
            queued::finish(&mut draft, (*step, *attempt), *elapsed, end)?;
        }
        CommandBody::ExpireStep { step, attempt, timeout } => {
            queued::expire(&mut draft, (*step, *attempt), *timeout)?;
        }
        CommandBody::LoseStep { step, attempt } => queued::lose(&mut draft, (*step, *attempt)),
        CommandBody::ChildStarted { child, scheduled } => child::started(&mut draft, *child, *scheduled),
        CommandBody::ChildClosed(closed) => child::closed(&mut draft, closed)?,
        CommandBody::ResolveExternal { op, requested, failure } => {
            external::resolve(&mut draft, *op, *requested, failure.as_ref())?;
        }
        CommandBody::FireTimer { timer } => fire_timer(&mut draft, *timer)?,
        CommandBody::Attach(attach) => attach_worker(&mut draft, attach)?,
        CommandBody::Detach(detach) => lose_worker(&mut draft, detach),
        CommandBody::Commit(worker_commit) => commit::decide(&mut draft, worker_commit)?,
    }
    Ok(Decision { events: draft.events, follows: draft.follows })
}

/// Terminal states absorb: a repeat of what ended the run is fine, all else is refused.
fn closed(run: &Run, command: &Command) -> Result<(), Rejection> {
    let refused = Err(Rejection::RunClosed { status: run.status, successor: run.successor });
    match &command.body {
        CommandBody::Signal { name, signal_id, input } if run.has_signal(signal_id, name, input)? => Ok(()),
        CommandBody::AcceptUpdate { update_id, name, input, .. }
            if run.has_update(update_id, name, input)? =>
        {
            Ok(())
        }
        CommandBody::Cancel { reason } if run.was_canceled_by(command.id, reason)? => Ok(()),
        CommandBody::Terminate { reason } if run.was_terminated_by(command.id, reason)? => Ok(()),
        CommandBody::ResolveStep { step, attempt, resolution, note }
            if doubt::was_resolved(run, command.id, (*step, *attempt), resolution, note)? =>
        {
            Ok(())
        }
        // The owner sends its last commit again because the answer was lost.
        CommandBody::Commit(c) if c.epoch == run.epoch && c.number <= run.committed => Ok(()),
        CommandBody::FinishStep { step, attempt, end, .. } if run.was_finished(*step, *attempt, end) => {
            Ok(())
        }
        CommandBody::ExpireStep { .. } | CommandBody::LoseStep { .. } => Ok(()),
        // It does not wait for any of these now.
        CommandBody::ChildStarted { .. }
        | CommandBody::ChildClosed(_)
        | CommandBody::ResolveExternal { .. } => Ok(()),
        CommandBody::FireTimer { .. } | CommandBody::Detach(_) => Ok(()),
        _ => refused,
    }
}

fn signal(draft: &mut Draft<'_>, name: &str, signal_id: &str, input: &Payload) -> Result<(), Rejection> {
    validate_name("name", name)?;
    validate_name("request_id", signal_id)?;
    check_payload("input", input)?;
    let run = draft.run;
    if !planted(Bug::DedupeInMemory) && run.has_signal(signal_id, name, input)? {
        return Ok(());
    }
    let limit = |what, actual, limit| Err(Rejection::LimitExceeded { what, actual, limit });
    if run.signals.len() >= limits::SIGNALS_MAX {
        return limit("signals of the run", run.signals.len() as u64 + 1, limits::SIGNALS_MAX as u64);
    }
    run.check_reserve(input)?;
    draft.push(EventBody::SignalReceived {
        name: name.to_owned(),
        signal_id: signal_id.to_owned(),
        input: input.clone(),
    });
    Ok(())
}

impl Run {
    /// The workflow keeps a reserve of history to end itself with: others may not send it this payload any more.
    pub(super) fn check_reserve(&self, payload: &Payload) -> Result<(), Rejection> {
        let limit = |what, actual, limit| Err(Rejection::LimitExceeded { what, actual, limit });
        if self.seq + 1 > limits::HISTORY_EVENTS_WARN {
            return limit("history events", self.seq + 1, limits::HISTORY_EVENTS_WARN);
        }
        let bytes = self.bytes + payload.data.len() as u64;
        if bytes > limits::HISTORY_BYTES_WARN {
            return limit("history bytes", bytes, limits::HISTORY_BYTES_WARN);
        }
        Ok(())
    }
}

fn fire_timer(draft: &mut Draft<'_>, timer: TimerKey) -> Result<(), Rejection> {
    let Some(due) = draft.run.timer(timer) else { return Ok(()) };
    if due > draft.now {
        return Err(Rejection::NotDue);
    }
    match timer.kind {
        TimerKind::RunTimeout => succession::time_out(draft),
        TimerKind::Timer | TimerKind::Start => draft.push(EventBody::TimerFired { timer }),
        // An owner starts the next attempt by itself; only a run without one has to be woken. A blocked
        // run cannot do anything about it yet, and gets its attempt when it is unblocked.
        TimerKind::Retry if draft.run.owner.is_none() && draft.run.status == RunStatus::Running => {
            draft.push(EventBody::TimerFired { timer });
        }
        TimerKind::Retry => {}
    }
    Ok(())
}

fn attach_worker(draft: &mut Draft<'_>, attach: &Attach) -> Result<(), Rejection> {
    let run = draft.run;
    match &run.owner {
        Some(owner) if owner.session == attach.session => return Ok(()),
        Some(_) => return Err(Rejection::AlreadyAttached { epoch: run.epoch }),
        None => {}
    }
    pin::check(run, attach)?;
    if run.status == RunStatus::Blocked {
        // Only other code than that which met the obstacle is worth a try.
        if run.build_id == attach.worker.build_id {
            return Err(Rejection::NotRunnable);
        }
        draft.push(EventBody::RunUnblocked { build_id: attach.worker.build_id.clone() });
    } else if !run.needs_worker {
        return Err(Rejection::NotRunnable);
    } else if run.fruitless >= limits::FRUITLESS_ATTACHES_MAX {
        let produced = if run.last_release.is_empty() {
            "nothing was recorded before the worker was lost".to_owned()
        } else {
            run.last_release.clone()
        };
        draft.push(EventBody::RunBlocked(Box::new(Blocked {
            kind: BlockKind::Poison,
            at_seq: 0,
            expected: format!("progress within {} attaches", limits::FRUITLESS_ATTACHES_MAX),
            produced,
            source: String::new(),
            hint: "fix the workflow and start its worker with another build id".to_owned(),
            build_id: run.build_id.clone(),
        })));
        return Ok(());
    }
    let Attach { session, worker, pinned, compatible: _ } = attach.clone();
    draft.push(EventBody::WorkerAttached { session, worker, pinned });
    Ok(())
}

fn lose_worker(draft: &mut Draft<'_>, detach: &Detach) {
    if draft.run.owner.as_ref().is_some_and(|Owner { session, .. }| *session == detach.session) {
        doubt::doubt_running(draft, &[], &[]);
        let reason =
            detach.refused.as_deref().map_or(DetachReason::Lost, |why| DetachReason::Released(cut(why)));
        draft.push(EventBody::WorkerDetached { reason });
    }
}

/// Refuses a payload that is too large.
pub(crate) fn check_payload(field: &'static str, payload: &Payload) -> Result<(), Rejection> {
    let size = payload.data.len();
    if size > limits::PAYLOAD_BYTES_MAX {
        let limit = limits::PAYLOAD_BYTES_MAX as u64;
        return Err(Rejection::LimitExceeded { what: field, actual: size as u64, limit });
    }
    if payload.encoding.len() > limits::NAME_BYTES_MAX {
        let problem = "has an encoding name longer than 255 bytes".to_owned();
        return Err(Rejection::InvalidArgument { field, problem });
    }
    // Postgres cannot store it.
    if payload.encoding.contains('\0') {
        let problem = "has an encoding name with NUL".to_owned();
        return Err(Rejection::InvalidArgument { field, problem });
    }
    Ok(())
}

/// Text for a person, cut at the limit on a character boundary, without NUL (Postgres cannot store it).
pub(crate) fn cut(text: &str) -> String {
    let mut end = text.len().min(limits::MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', "\u{fffd}")
}
