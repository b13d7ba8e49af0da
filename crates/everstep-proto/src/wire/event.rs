//! Events, both ways.

use everstep_core::{
    Actor, BlockKind, Blocked, DetachReason, Event, EventBody, Failure, OpId, Origin, RunId, RunStarted,
    TimerKey, TimerKind, TraceContext,
};

use super::child::{decode_parent, encode_parent};
use super::doubt::{decode_in_doubt, decode_resolved};
use super::succession::{
    decode_continued, decode_heard, decode_link, decode_recorded_policy, encode_continued, encode_heard,
    encode_link, encode_recorded_policy,
};
use super::value::encode_failure_bare;
use super::{
    InvalidKind, InvalidMessage, decode_duration, decode_failure, decode_notes, decode_payload,
    decode_timestamp, decode_worker_info, encode_duration, encode_failure, encode_notes, encode_payload,
    encode_timestamp, encode_worker_info, parse_id,
};
use super::{child, notes, queued, steps, update};
use crate::history::{self, event::Attributes};

/// What an [`EventBody::Ignored`] is called when the wire does not tell: its kind is unknown here.
const UNKNOWN_KIND: &str = "Unknown";

/// An event as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedEvent {
    /// The event; its payload is empty when it was left out.
    pub event: Event,
    /// The sender left the payload out, because the receiver has it.
    pub payload_omitted: bool,
}

/// An event as the wire has it. With `omit_payload` the user's bytes stay behind, if its kind has any.
pub fn encode_event(event: &Event, omit_payload: bool) -> history::Event {
    let Event { seq, at, epoch, command_id, actor, body } = event;
    let omit = omit_payload && body.payload().is_some();
    history::Event {
        seq: *seq,
        at: Some(encode_timestamp(*at)),
        epoch: *epoch,
        command_id: command_id.to_string(),
        actor: match actor {
            Actor::Client(identity) => format!("client:{identity}"),
            Actor::Worker(identity) => format!("worker:{identity}"),
            Actor::System => "system".to_owned(),
            Actor::Run(run) => format!("run:{run}"),
        },
        may_ignore: matches!(body, EventBody::Ignored { .. }),
        payload_omitted: omit,
        attributes: encode_body(body, omit),
    }
}

/// Reads an event.
///
/// # Errors
/// [`InvalidMessage`]; also for an event of an unknown kind that is not marked as one to ignore, because
/// this reader is then too old for this history.
pub fn decode_event(wire: history::Event) -> Result<DecodedEvent, InvalidMessage> {
    let history::Event { seq, at, epoch, command_id, actor, may_ignore, payload_omitted, attributes } = wire;
    let at = at.ok_or_else(|| InvalidMessage::missing("at"))?;
    let body = match attributes {
        Some(attributes) => decode_body(attributes)?,
        None if may_ignore => EventBody::Ignored { kind: UNKNOWN_KIND.to_owned() },
        None => {
            let problem = format!("of event {seq} are of a kind that this version does not know: upgrade it");
            return Err(InvalidMessage::new(InvalidKind::Value, "attributes", problem));
        }
    };
    let event = Event {
        seq,
        at: decode_timestamp("at", at)?,
        epoch,
        command_id: parse_id("command_id", &command_id)?,
        actor: decode_actor(&actor)?,
        body,
    };
    Ok(DecodedEvent { event, payload_omitted })
}

fn decode_actor(text: &str) -> Result<Actor, InvalidMessage> {
    match text.split_once(':') {
        Some(("client", identity)) => Ok(Actor::Client(identity.to_owned())),
        Some(("worker", identity)) => Ok(Actor::Worker(identity.to_owned())),
        Some(("run", id)) => Ok(Actor::Run(parse_id("actor", id)?)),
        None if text == "system" => Ok(Actor::System),
        _ => {
            let problem = "must be 'client:IDENTITY', 'worker:IDENTITY', 'run:RUN_ID' or 'system'";
            Err(InvalidMessage::new(InvalidKind::Value, "actor", problem))
        }
    }
}

/// `None` for an ignored event: what it held is not known here.
fn encode_body(body: &EventBody, omit: bool) -> Option<Attributes> {
    let payload = |p| (!omit).then(|| encode_payload(p));
    Some(match body {
        EventBody::RunStarted(started) => Attributes::RunStarted(encode_started(started, omit)),
        EventBody::WorkerAttached { session, worker, pinned } => {
            Attributes::WorkerAttached(history::WorkerAttached {
                session_id: session.to_string(),
                worker: Some(encode_worker_info(worker)),
                pinned: *pinned,
            })
        }
        EventBody::WorkerDetached { reason } => Attributes::WorkerDetached(encode_detached(reason)),
        EventBody::StepStarted { .. }
        | EventBody::StepScheduled(_)
        | EventBody::StepCancelRequested { .. }
        | EventBody::StepInDoubt { .. }
        | EventBody::StepResolved(_)
        | EventBody::StepCompleted { .. }
        | EventBody::StepFailed { .. } => return steps::encode(body, omit),
        EventBody::TimerStarted { .. } | EventBody::TimerFired { .. } | EventBody::TimerCanceled { .. } => {
            return encode_timer(body);
        }
        EventBody::SignalReceived { name, signal_id, input } => {
            Attributes::SignalReceived(history::SignalReceived {
                name: name.clone(),
                signal_id: signal_id.clone(),
                input: payload(input),
            })
        }
        EventBody::CancelRequested { reason } => {
            Attributes::CancelRequested(history::CancelRequested { reason: reason.clone() })
        }
        EventBody::UpdateAccepted { .. } | EventBody::UpdateCompleted { .. } => {
            return update::encode(body, omit);
        }
        EventBody::AttributesUpserted { op, notes } => notes::encode_upserted(*op, notes),
        EventBody::VersionMarked { change_id, version } => {
            let change_id = change_id.clone();
            Attributes::VersionMarked(history::VersionMarked { change_id, version: *version })
        }
        EventBody::ChildScheduled(_)
        | EventBody::ChildStarted { .. }
        | EventBody::ChildClosed(_)
        | EventBody::ExternalRequested(_)
        | EventBody::ExternalResolved { .. } => return child::encode_between(body, omit),
        EventBody::RunBlocked(blocked) => Attributes::RunBlocked(encode_blocked(blocked)),
        EventBody::RunUnblocked { build_id } => {
            Attributes::RunUnblocked(history::RunUnblocked { build_id: build_id.clone() })
        }
        EventBody::RunCompleted { result, unconsumed } => Attributes::RunCompleted(history::RunCompleted {
            result: payload(result),
            unconsumed: unconsumed.clone(),
        }),
        EventBody::RunFailed { failure, unconsumed, retried_by } => {
            encode_run_failed((failure, omit), unconsumed, *retried_by)
        }
        EventBody::RunContinued { successor, carried } => {
            Attributes::RunContinued(encode_continued(*successor, carried))
        }
        EventBody::RunCanceled { details } => {
            Attributes::RunCanceled(history::RunCanceled { details: details.clone() })
        }
        EventBody::RunTerminated { reason } => {
            Attributes::RunTerminated(history::RunTerminated { reason: reason.clone() })
        }
        EventBody::RunTimedOut { retried_by } => {
            Attributes::RunTimedOut(history::RunTimedOut { retried_by_run_id: encode_link(*retried_by) })
        }
        EventBody::Ignored { kind: _ } => return None,
    })
}

/// The kinds that are about a timer; `None` for any other.
fn encode_timer(body: &EventBody) -> Option<Attributes> {
    Some(match body {
        EventBody::TimerStarted { timer, fire_at } => Attributes::TimerStarted(history::TimerStarted {
            timer_id: timer.0,
            fire_at: Some(encode_timestamp(*fire_at)),
        }),
        EventBody::TimerFired { timer: TimerKey { kind, id } } => {
            Attributes::TimerFired(history::TimerFired { kind: encode_timer_kind(*kind).into(), id: *id })
        }
        EventBody::TimerCanceled { timer } => {
            Attributes::TimerCanceled(history::TimerCanceled { timer_id: timer.0 })
        }
        _ => return None,
    })
}

fn encode_run_failed(
    (failure, omit): (&Failure, bool),
    unconsumed: &[u64],
    retried_by: Option<RunId>,
) -> Attributes {
    Attributes::RunFailed(history::RunFailed {
        failure: encode_why(failure, omit),
        unconsumed: unconsumed.to_vec(),
        retried_by_run_id: encode_link(retried_by),
    })
}

pub(super) fn encode_why(failure: &Failure, omit: bool) -> Option<history::Failure> {
    Some(if omit { encode_failure_bare(failure) } else { encode_failure(failure) })
}

fn decode_body(wire: Attributes) -> Result<EventBody, InvalidMessage> {
    Ok(match wire {
        Attributes::RunStarted(started) => {
            EventBody::RunStarted(Box::new(decode_started(started).map_err(|e| e.within("run_started"))?))
        }
        Attributes::WorkerAttached(attached) => decode_attached(attached)?,
        Attributes::WorkerDetached(detached) => {
            EventBody::WorkerDetached { reason: decode_detached(detached)? }
        }
        Attributes::StepStarted(started) => steps::decode_started(started)?,
        Attributes::StepScheduled(scheduled) => queued::decode_scheduled(scheduled)?,
        Attributes::StepCancelRequested(asked) => {
            EventBody::StepCancelRequested { step: OpId(asked.step_id) }
        }
        Attributes::StepInDoubt(in_doubt) => decode_in_doubt(in_doubt),
        Attributes::StepResolved(resolved) => decode_resolved(resolved)?,
        Attributes::StepCompleted(completed) => steps::decode_completed(completed)?,
        Attributes::StepFailed(failed) => {
            steps::decode_failed(failed).map_err(|e| e.within("step_failed"))?
        }
        Attributes::TimerStarted(started) => decode_timer_started(started)?,
        Attributes::TimerFired(history::TimerFired { kind, id }) => {
            EventBody::TimerFired { timer: TimerKey { kind: decode_timer_kind(kind)?, id } }
        }
        Attributes::TimerCanceled(history::TimerCanceled { timer_id }) => {
            EventBody::TimerCanceled { timer: OpId(timer_id) }
        }
        Attributes::SignalReceived(history::SignalReceived { name, signal_id, input }) => {
            EventBody::SignalReceived { name, signal_id, input: decode_payload(input) }
        }
        Attributes::CancelRequested(history::CancelRequested { reason }) => {
            EventBody::CancelRequested { reason }
        }
        Attributes::UpdateAccepted(accepted) => update::decode_accepted(accepted),
        Attributes::UpdateCompleted(completed) => update::decode_completed(completed)?,
        Attributes::AttributesUpserted(upserted) => {
            notes::decode_upserted(upserted).map_err(|e| e.within("attributes_upserted"))?
        }
        Attributes::VersionMarked(history::VersionMarked { change_id, version }) => {
            EventBody::VersionMarked { change_id, version }
        }
        Attributes::ChildScheduled(scheduled) => EventBody::ChildScheduled(Box::new(
            child::decode_child(scheduled).map_err(|e| e.within("child_scheduled"))?,
        )),
        Attributes::ChildStarted(started) => child::decode_started(started),
        Attributes::ChildClosed(closed) => EventBody::ChildClosed(Box::new(
            child::decode_closed(closed).map_err(|e| e.within("child_closed"))?,
        )),
        Attributes::ExternalRequested(requested) => EventBody::ExternalRequested(Box::new(
            child::decode_external(requested).map_err(|e| e.within("external_requested"))?,
        )),
        Attributes::ExternalResolved(resolved) => child::decode_resolved(resolved)?,
        Attributes::RunBlocked(blocked) => {
            EventBody::RunBlocked(Box::new(decode_blocked(blocked).map_err(|e| e.within("run_blocked"))?))
        }
        Attributes::RunUnblocked(history::RunUnblocked { build_id }) => EventBody::RunUnblocked { build_id },
        Attributes::RunCompleted(history::RunCompleted { result, unconsumed }) => {
            EventBody::RunCompleted { result: decode_payload(result), unconsumed }
        }
        Attributes::RunFailed(failed) => decode_run_failed(failed)?,
        Attributes::RunContinued(continued) => {
            decode_continued(continued).map_err(|e| e.within("run_continued"))?
        }
        Attributes::RunCanceled(history::RunCanceled { details }) => EventBody::RunCanceled { details },
        Attributes::RunTerminated(history::RunTerminated { reason }) => EventBody::RunTerminated { reason },
        Attributes::RunTimedOut(history::RunTimedOut { retried_by_run_id }) => EventBody::RunTimedOut {
            retried_by: decode_link("run_timed_out.retried_by_run_id", &retried_by_run_id)?,
        },
    })
}

fn decode_attached(wire: history::WorkerAttached) -> Result<EventBody, InvalidMessage> {
    let history::WorkerAttached { session_id, worker, pinned } = wire;
    let session = parse_id("worker_attached.session_id", &session_id)?;
    Ok(EventBody::WorkerAttached { session, worker: decode_worker_info(worker), pinned })
}

fn decode_timer_started(wire: history::TimerStarted) -> Result<EventBody, InvalidMessage> {
    let history::TimerStarted { timer_id, fire_at } = wire;
    let fire_at = fire_at.ok_or_else(|| InvalidMessage::missing("timer_started.fire_at"))?;
    let fire_at = decode_timestamp("timer_started.fire_at", fire_at)?;
    Ok(EventBody::TimerStarted { timer: OpId(timer_id), fire_at })
}

fn decode_run_failed(wire: history::RunFailed) -> Result<EventBody, InvalidMessage> {
    let history::RunFailed { failure, unconsumed, retried_by_run_id } = wire;
    Ok(EventBody::RunFailed {
        failure: decode_failure("run_failed.failure", failure)?,
        unconsumed,
        retried_by: decode_link("run_failed.retried_by_run_id", &retried_by_run_id)?,
    })
}

fn encode_started(started: &RunStarted, omit: bool) -> history::RunStarted {
    let RunStarted {
        namespace,
        workflow_id,
        workflow_type,
        task_queue,
        input,
        request_id,
        run_timeout,
        seed,
        trace: TraceContext { traceparent, tracestate },
        start_at,
        retry,
        origin: Origin { parent, previous, first, attempt, heard },
        step_retry,
        notes,
    } = started;
    let (search_attributes, memo) = encode_notes(notes);
    history::RunStarted {
        namespace: namespace.clone(),
        workflow_id: workflow_id.clone(),
        workflow_type: workflow_type.clone(),
        task_queue: task_queue.clone(),
        input: (!omit).then(|| encode_payload(input)),
        request_id: request_id.clone(),
        run_timeout: run_timeout.map(encode_duration),
        seed: *seed,
        trace: Some(history::TraceContext {
            traceparent: traceparent.clone(),
            tracestate: tracestate.clone(),
        }),
        start_at: start_at.map(encode_timestamp),
        retry_policy: retry.as_ref().map(encode_recorded_policy),
        parent: parent.as_ref().map(encode_parent),
        previous_run_id: encode_link(*previous),
        first_run_id: encode_link(*first),
        attempt: *attempt,
        heard_signals: heard.iter().map(encode_heard).collect(),
        step_retry_policy: step_retry.as_ref().map(encode_recorded_policy),
        search_attributes,
        memo,
    }
}

fn decode_started(wire: history::RunStarted) -> Result<RunStarted, InvalidMessage> {
    let history::RunStarted {
        namespace,
        workflow_id,
        workflow_type,
        task_queue,
        input,
        request_id,
        run_timeout,
        seed,
        trace,
        start_at,
        retry_policy,
        parent,
        previous_run_id,
        first_run_id,
        attempt,
        heard_signals,
        step_retry_policy,
        search_attributes,
        memo,
    } = wire;
    let history::TraceContext { traceparent, tracestate } = trace.unwrap_or_default();
    Ok(RunStarted {
        namespace,
        workflow_id,
        workflow_type,
        task_queue,
        input: decode_payload(input),
        request_id,
        run_timeout: run_timeout.map(|d| decode_duration("run_timeout", d)).transpose()?,
        seed,
        trace: TraceContext { traceparent, tracestate },
        start_at: start_at.map(|at| decode_timestamp("start_at", at)).transpose()?,
        retry: retry_policy.map(|p| decode_recorded_policy("retry_policy", p)).transpose()?,
        origin: Origin {
            parent: parent.map(decode_parent).transpose()?,
            previous: decode_link("previous_run_id", &previous_run_id)?,
            first: decode_link("first_run_id", &first_run_id)?,
            attempt,
            heard: heard_signals.into_iter().map(decode_heard).collect::<Result<_, _>>()?,
        },
        step_retry: step_retry_policy.map(|p| decode_recorded_policy("step_retry_policy", p)).transpose()?,
        notes: decode_notes((search_attributes, memo))?,
    })
}

fn encode_detached(reason: &DetachReason) -> history::WorkerDetached {
    let (reason, message) = match reason {
        DetachReason::Parked => (history::DetachReason::Parked, String::new()),
        DetachReason::Released(message) => (history::DetachReason::Released, message.clone()),
        DetachReason::Lost => (history::DetachReason::Lost, String::new()),
    };
    history::WorkerDetached { reason: reason.into(), message }
}

fn decode_detached(wire: history::WorkerDetached) -> Result<DetachReason, InvalidMessage> {
    let history::WorkerDetached { reason, message } = wire;
    match history::DetachReason::try_from(reason) {
        Ok(history::DetachReason::Parked) => Ok(DetachReason::Parked),
        Ok(history::DetachReason::Released) => Ok(DetachReason::Released(message)),
        Ok(history::DetachReason::Lost) => Ok(DetachReason::Lost),
        Ok(history::DetachReason::Unspecified) | Err(_) => Err(unknown("worker_detached.reason", reason)),
    }
}

fn encode_timer_kind(kind: TimerKind) -> history::TimerKind {
    match kind {
        TimerKind::Timer => history::TimerKind::Timer,
        TimerKind::Retry => history::TimerKind::Retry,
        TimerKind::RunTimeout => history::TimerKind::RunTimeout,
        TimerKind::Start => history::TimerKind::Start,
    }
}

fn decode_timer_kind(wire: i32) -> Result<TimerKind, InvalidMessage> {
    match history::TimerKind::try_from(wire) {
        Ok(history::TimerKind::Timer) => Ok(TimerKind::Timer),
        Ok(history::TimerKind::Retry) => Ok(TimerKind::Retry),
        Ok(history::TimerKind::RunTimeout) => Ok(TimerKind::RunTimeout),
        Ok(history::TimerKind::Start) => Ok(TimerKind::Start),
        Ok(history::TimerKind::Unspecified) | Err(_) => Err(unknown("timer_fired.kind", wire)),
    }
}

/// An obstacle as the wire has it.
pub fn encode_blocked(blocked: &Blocked) -> history::RunBlocked {
    let Blocked { kind, at_seq, expected, produced, source, hint, build_id } = blocked;
    history::RunBlocked {
        kind: match kind {
            BlockKind::Nondeterminism => history::BlockKind::Nondeterminism,
            BlockKind::ForeignWake => history::BlockKind::ForeignWake,
            BlockKind::Poison => history::BlockKind::Poison,
        }
        .into(),
        at_seq: *at_seq,
        expected: expected.clone(),
        produced: produced.clone(),
        source: source.clone(),
        hint: hint.clone(),
        build_id: build_id.clone(),
    }
}

/// Reads an obstacle.
///
/// # Errors
/// [`InvalidKind::UnknownEnum`] for its kind.
pub fn decode_blocked(wire: history::RunBlocked) -> Result<Blocked, InvalidMessage> {
    let history::RunBlocked { kind, at_seq, expected, produced, source, hint, build_id } = wire;
    let kind = match history::BlockKind::try_from(kind) {
        Ok(history::BlockKind::Nondeterminism) => BlockKind::Nondeterminism,
        Ok(history::BlockKind::ForeignWake) => BlockKind::ForeignWake,
        Ok(history::BlockKind::Poison) => BlockKind::Poison,
        Ok(history::BlockKind::Unspecified) | Err(_) => return Err(unknown("kind", kind)),
    };
    Ok(Blocked { kind, at_seq, expected, produced, source, hint, build_id })
}

fn unknown(field: &str, wire: i32) -> InvalidMessage {
    InvalidMessage::new(InvalidKind::UnknownEnum, field, format!("has the unknown value {wire}"))
}
