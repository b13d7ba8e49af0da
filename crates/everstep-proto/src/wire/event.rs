//! Events, both ways.

use everstep_core::{
    Actor, BlockKind, Blocked, DetachReason, Event, EventBody, Failure, OpId, RunStarted, TimerKey,
    TimerKind, TraceContext,
};

use super::doubt::{decode_in_doubt, decode_resolved, encode_in_doubt, encode_resolved};
use super::value::encode_failure_bare;
use super::{
    InvalidKind, InvalidMessage, decode_doubt_policy, decode_duration, decode_failure, decode_payload,
    decode_timestamp, decode_worker_info, encode_doubt_policy, encode_duration, encode_failure,
    encode_payload, encode_timestamp, encode_worker_info, parse_id,
};
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
        None if text == "system" => Ok(Actor::System),
        _ => {
            let problem = "must be 'client:IDENTITY', 'worker:IDENTITY' or 'system'";
            Err(InvalidMessage::new(InvalidKind::Value, "actor", problem))
        }
    }
}

/// `None` for an ignored event: what it held is not known here.
fn encode_body(body: &EventBody, omit: bool) -> Option<Attributes> {
    let payload = |p| (!omit).then(|| encode_payload(p));
    Some(match body {
        EventBody::RunStarted(started) => Attributes::RunStarted(encode_started(started, omit)),
        EventBody::WorkerAttached { session, worker } => {
            Attributes::WorkerAttached(history::WorkerAttached {
                session_id: session.to_string(),
                worker: Some(encode_worker_info(worker)),
            })
        }
        EventBody::WorkerDetached { reason } => Attributes::WorkerDetached(encode_detached(reason)),
        EventBody::StepStarted { .. } | EventBody::StepCompleted { .. } | EventBody::StepFailed { .. } => {
            return encode_step(body, omit);
        }
        EventBody::StepInDoubt { step, name, attempt } => encode_in_doubt(*step, name, *attempt),
        EventBody::StepResolved(resolved) => encode_resolved(resolved, omit),
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
        EventBody::VersionMarked { change_id, version } => {
            Attributes::VersionMarked(history::VersionMarked {
                change_id: change_id.clone(),
                version: *version,
            })
        }
        EventBody::RunBlocked(blocked) => Attributes::RunBlocked(encode_blocked(blocked)),
        EventBody::RunUnblocked { build_id } => {
            Attributes::RunUnblocked(history::RunUnblocked { build_id: build_id.clone() })
        }
        EventBody::RunCompleted { result, unconsumed } => Attributes::RunCompleted(history::RunCompleted {
            result: payload(result),
            unconsumed: unconsumed.clone(),
        }),
        EventBody::RunFailed { failure: why, unconsumed } => Attributes::RunFailed(history::RunFailed {
            failure: encode_why(why, omit),
            unconsumed: unconsumed.clone(),
        }),
        EventBody::RunCanceled { details } => {
            Attributes::RunCanceled(history::RunCanceled { details: details.clone() })
        }
        EventBody::RunTerminated { reason } => {
            Attributes::RunTerminated(history::RunTerminated { reason: reason.clone() })
        }
        EventBody::RunTimedOut => Attributes::RunTimedOut(history::RunTimedOut {}),
        EventBody::Ignored { kind: _ } => return None,
    })
}

/// The kinds that are about a step; `None` for any other.
fn encode_step(body: &EventBody, omit: bool) -> Option<Attributes> {
    Some(match body {
        EventBody::StepStarted { step, name, attempt, in_doubt } => {
            Attributes::StepStarted(history::StepStarted {
                in_doubt: encode_doubt_policy(*in_doubt).into(),
                step_id: step.0,
                name: name.clone(),
                attempt: *attempt,
            })
        }
        EventBody::StepCompleted { step, name, attempt, elapsed, result } => {
            Attributes::StepCompleted(history::StepCompleted {
                step_id: step.0,
                name: name.clone(),
                attempt: *attempt,
                elapsed: Some(encode_duration(*elapsed)),
                result: (!omit).then(|| encode_payload(result)),
            })
        }
        EventBody::StepFailed { step, name, attempt, elapsed, failure, retry_at } => {
            Attributes::StepFailed(history::StepFailed {
                step_id: step.0,
                name: name.clone(),
                attempt: *attempt,
                elapsed: Some(encode_duration(*elapsed)),
                failure: encode_why(failure, omit),
                retry_at: retry_at.map(encode_timestamp),
            })
        }
        _ => return None,
    })
}

fn encode_why(failure: &Failure, omit: bool) -> Option<history::Failure> {
    Some(if omit { encode_failure_bare(failure) } else { encode_failure(failure) })
}

fn decode_body(wire: Attributes) -> Result<EventBody, InvalidMessage> {
    Ok(match wire {
        Attributes::RunStarted(started) => {
            EventBody::RunStarted(Box::new(decode_started(started).map_err(|e| e.within("run_started"))?))
        }
        Attributes::WorkerAttached(history::WorkerAttached { session_id, worker }) => {
            EventBody::WorkerAttached {
                session: parse_id("worker_attached.session_id", &session_id)?,
                worker: decode_worker_info(worker),
            }
        }
        Attributes::WorkerDetached(detached) => {
            EventBody::WorkerDetached { reason: decode_detached(detached)? }
        }
        Attributes::StepStarted(history::StepStarted { step_id, name, attempt, in_doubt }) => {
            let in_doubt = decode_doubt_policy("step_started.in_doubt", in_doubt)?;
            EventBody::StepStarted { step: OpId(step_id), name, attempt, in_doubt }
        }
        Attributes::StepInDoubt(in_doubt) => decode_in_doubt(in_doubt),
        Attributes::StepResolved(resolved) => decode_resolved(resolved)?,
        Attributes::StepCompleted(history::StepCompleted { step_id, name, attempt, elapsed, result }) => {
            EventBody::StepCompleted {
                step: OpId(step_id),
                name,
                attempt,
                elapsed: decode_duration("step_completed.elapsed", elapsed.unwrap_or_default())?,
                result: decode_payload(result),
            }
        }
        Attributes::StepFailed(failed) => decode_step_failed(failed).map_err(|e| e.within("step_failed"))?,
        Attributes::TimerStarted(history::TimerStarted { timer_id, fire_at }) => {
            let fire_at = fire_at.ok_or_else(|| InvalidMessage::missing("timer_started.fire_at"))?;
            EventBody::TimerStarted {
                timer: OpId(timer_id),
                fire_at: decode_timestamp("timer_started.fire_at", fire_at)?,
            }
        }
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
        Attributes::VersionMarked(history::VersionMarked { change_id, version }) => {
            EventBody::VersionMarked { change_id, version }
        }
        Attributes::RunBlocked(blocked) => {
            EventBody::RunBlocked(Box::new(decode_blocked(blocked).map_err(|e| e.within("run_blocked"))?))
        }
        Attributes::RunUnblocked(history::RunUnblocked { build_id }) => EventBody::RunUnblocked { build_id },
        Attributes::RunCompleted(history::RunCompleted { result, unconsumed }) => {
            EventBody::RunCompleted { result: decode_payload(result), unconsumed }
        }
        Attributes::RunFailed(history::RunFailed { failure, unconsumed }) => {
            EventBody::RunFailed { failure: decode_failure("run_failed.failure", failure)?, unconsumed }
        }
        Attributes::RunCanceled(history::RunCanceled { details }) => EventBody::RunCanceled { details },
        Attributes::RunTerminated(history::RunTerminated { reason }) => EventBody::RunTerminated { reason },
        Attributes::RunTimedOut(history::RunTimedOut {}) => EventBody::RunTimedOut,
    })
}

fn decode_step_failed(wire: history::StepFailed) -> Result<EventBody, InvalidMessage> {
    let history::StepFailed { step_id, name, attempt, elapsed, failure, retry_at } = wire;
    Ok(EventBody::StepFailed {
        step: OpId(step_id),
        name,
        attempt,
        elapsed: decode_duration("elapsed", elapsed.unwrap_or_default())?,
        failure: decode_failure("failure", failure)?,
        retry_at: retry_at.map(|at| decode_timestamp("retry_at", at)).transpose()?,
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
    } = started;
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
    }
}

fn decode_timer_kind(wire: i32) -> Result<TimerKind, InvalidMessage> {
    match history::TimerKind::try_from(wire) {
        Ok(history::TimerKind::Timer) => Ok(TimerKind::Timer),
        Ok(history::TimerKind::Retry) => Ok(TimerKind::Retry),
        Ok(history::TimerKind::RunTimeout) => Ok(TimerKind::RunTimeout),
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
