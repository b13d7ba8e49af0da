//! Stable JSON of runs and events. Fields are added, never renamed.

mod between;
mod line;
pub(crate) mod notes;
mod steps;
#[cfg(test)]
mod tests;

use chrono::{DateTime, SecondsFormat, Utc};
use everstep::client::{
    QueueDescription, QueueLimits, QueueWorker, QueuedStep, RunDescription, StepInDoubt, WaitingType,
};
use everstep_core::{
    Actor, Doubt, Duration, Event, EventBody, Failure, Origin, Payload, RunId, RunRow, RunStarted, Timestamp,
    UpdateOutcome,
};
use serde_json::{Value, json};

pub(crate) use line::event_line;

/// RFC 3339 in UTC with microseconds.
pub(crate) fn time(at: Timestamp) -> String {
    let at: DateTime<Utc> = DateTime::from_timestamp_micros(at.as_micros()).unwrap_or_default();
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A payload: its value when it is JSON, else its bytes in hex.
pub(crate) fn payload(payload: &Payload) -> Value {
    if payload.is_none() {
        return Value::Null;
    }
    if payload.encoding == Payload::JSON
        && let Ok(value) = serde_json::from_slice(&payload.data)
    {
        return value;
    }
    let hex: String = payload.data.iter().map(|b| format!("{b:02x}")).collect();
    json!({"encoding": payload.encoding, "hex": hex})
}

/// A failure and what it came from.
pub(crate) fn failure(f: &Failure) -> Value {
    let mut value = json!({"kind": f.kind, "message": f.message, "non_retryable": f.non_retryable});
    if !f.details.is_none() {
        value["details"] = payload(&f.details);
    }
    if let Some(cause) = &f.cause {
        value["cause"] = failure(cause);
    }
    value
}

fn millis(d: Duration) -> Value {
    json!(d.as_micros() as f64 / 1_000.0)
}

/// The text on one line: what would move the cursor is written as an escape.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// A run as the server describes it.
pub(crate) fn run(description: &RunDescription) -> Value {
    let r = &description.run;
    let stamp = |t: &Option<prost_types::Timestamp>| {
        let micros = |t: &prost_types::Timestamp| {
            t.seconds.saturating_mul(1_000_000).saturating_add(i64::from(t.nanos) / 1_000)
        };
        t.as_ref().map(|t| time(Timestamp::from_micros(micros(t))))
    };
    json!({
        "run_id": r.run_id, "namespace": r.namespace, "workflow_id": r.workflow_id,
        "workflow_type": r.workflow_type, "task_queue": r.task_queue, "status": description.status.as_str(),
        "started_at": stamp(&r.started_at), "closed_at": stamp(&r.closed_at), "attached": r.attached,
        "epoch": r.epoch, "build_id": r.build_id, "blocked_reason": r.blocked_reason,
        "cancel_requested": r.cancel_requested, "history_events": r.history_events,
        "history_warning": r.history_warning, "waits_for_build": r.waits_for_build, "parent_run_id": r.parent_run_id,
        "previous_run_id": r.previous_run_id, "first_run_id": r.first_run_id,
        "successor_run_id": r.successor_run_id, "attempt": (r.attempt > 0).then_some(r.attempt),
        "in_doubt_steps": description.in_doubt.iter().map(step_in_doubt).collect::<Vec<_>>(),
        "search_attributes": notes::values(&description.search_attributes),
        "memo": notes::memo(&description.memo),
    })
}

/// A step of which nobody knows whether it had its effect.
pub(crate) fn step_in_doubt(s: &StepInDoubt) -> Value {
    json!({
        "run_id": s.run_id.to_string(), "workflow_id": s.workflow_id, "task_queue": s.task_queue,
        "step_id": s.step_id, "step": s.name, "attempt": s.attempt, "policy": s.policy.as_str(),
        "since": time(s.since),
    })
}

/// A queued step that waits or runs.
pub(crate) fn queued_step(s: &QueuedStep) -> Value {
    json!({
        "run_id": s.run_id.to_string(), "workflow_id": s.workflow_id, "task_queue": s.task_queue,
        "step_id": s.step_id, "step": s.name, "attempt": s.attempt,
        "state": if s.running { "running" } else { "queued" }, "priority": s.priority, "since": s.since.map(time),
        "session": s.session.map(|session| session.to_string()),
        "last_heartbeat_at": s.last_heartbeat_at.map(time), "cancel_requested": s.cancel_requested,
    })
}

/// A task queue.
pub(crate) fn queue(q: &QueueDescription) -> Value {
    let QueueLimits { max_running, max_per_second, burst } = q.limits;
    json!({
        "task_queue": q.task_queue, "runs_waiting": q.runs_waiting, "steps_waiting": q.steps_waiting,
        "steps_running": q.steps_running, "steps_later": q.steps_later,
        "max_running": (max_running > 0).then_some(max_running),
        "max_per_second": (max_per_second > 0.0).then_some(max_per_second), "burst": burst,
        "oldest_waiting": q.oldest_waiting.map(time),
    })
}

/// A task queue, with who serves it and what it lacks a worker for.
pub(crate) fn queue_and_workers(q: &QueueDescription) -> Value {
    let mut value = queue(q);
    let worker = |w: &QueueWorker| {
        json!({
            "session": w.session.to_string(), "identity": w.identity, "build_id": w.build_id,
            "run_slots": w.run_slots, "step_slots": w.step_slots,
        })
    };
    let waits = |w: &WaitingType| {
        let kind = if w.is_step { "step" } else { "workflow_type" };
        json!({ kind: w.name, "waiting": w.waiting })
    };
    value["workers"] = q.workers.iter().map(worker).collect();
    value["types_without_worker"] = q.types_without_worker.iter().map(waits).collect();
    value
}

/// A run's row in the database.
pub(crate) fn row(r: &RunRow) -> Value {
    json!({
        "run_id": r.run_id.to_string(), "namespace": r.namespace, "workflow_id": r.workflow_id,
        "workflow_type": r.workflow_type, "task_queue": r.task_queue, "status": r.status.as_str(),
        "owner": r.owner.map(|o| o.to_string()), "epoch": r.epoch, "build_id": r.build_id, "blocked": r.blocked,
        "cancel_requested": r.cancel_requested, "started_at": time(r.started_at),
        "closed_at": r.closed_at.map(time), "last_seq": r.last_seq,
    })
}

/// An event.
pub(crate) fn event(e: &Event) -> Value {
    let actor = match &e.actor {
        Actor::Client(who) => format!("client:{who}"),
        Actor::Worker(who) => format!("worker:{who}"),
        Actor::System => "system".to_owned(),
        Actor::Run(run) => format!("run:{run}"),
    };
    let mut value = json!({
        "seq": e.seq, "at": time(e.at), "epoch": e.epoch, "kind": e.body.kind(), "actor": actor,
        "command_id": e.command_id.to_string(),
    });
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), attributes(&e.body)) {
        value.extend(more);
    }
    value
}

/// An attempt in doubt.
pub(crate) fn doubt(d: &Doubt) -> Value {
    json!({
        "step_id": d.step.0, "step": d.name, "attempt": d.attempt, "policy": d.policy.as_str(), "since": time(d.since),
    })
}

/// How a run began; what most runs do not have is left out.
fn started(s: &RunStarted) -> Value {
    let mut value = json!({
        "workflow_id": s.workflow_id, "workflow_type": s.workflow_type, "namespace": s.namespace,
        "task_queue": s.task_queue, "input": payload(&s.input), "request_id": s.request_id,
        "run_timeout_ms": s.run_timeout.map(millis), "traceparent": s.trace.traceparent,
        // Text: a number of JSON does not hold 64 bits in every reader.
        "seed": s.seed.to_string(),
    });
    if let Some(at) = s.start_at {
        value["start_at"] = time(at).into();
    }
    if let Some(policy) = &s.retry {
        value["retry"] = json!(policy);
    }
    if s.origin != Origin::default() {
        value["origin"] = json!(s.origin);
    }
    if let Some(policy) = &s.step_retry {
        value["step_retry"] = json!(policy);
    }
    notes::add(&mut value, &s.notes);
    value
}

fn link(value: &mut Value, name: &str, run: Option<RunId>) {
    if let Some(run) = run {
        value[name] = run.to_string().into();
    }
}

/// Of an event about an update.
fn update(body: &EventBody) -> Value {
    match body {
        EventBody::UpdateAccepted { update_id, name, input } => {
            json!({"update": name, "update_id": update_id, "input": payload(input)})
        }
        EventBody::UpdateCompleted { accepted, update_id, outcome } => {
            let (field, value) = match outcome {
                UpdateOutcome::Completed(result) => ("result", payload(result)),
                UpdateOutcome::Failed(f) => ("failure", failure(f)),
            };
            json!({"accepted_seq": accepted, "update_id": update_id, field: value})
        }
        _ => json!({}),
    }
}

fn attributes(body: &EventBody) -> Value {
    match body {
        EventBody::RunStarted(s) => started(s),
        EventBody::WorkerAttached { session, worker, pinned } => {
            let mut value = json!({
                "session_id": session.to_string(), "worker": worker.identity, "build_id": worker.build_id,
            });
            if *pinned {
                value["pinned"] = true.into();
            }
            value
        }
        EventBody::WorkerDetached { reason } => {
            use everstep_core::DetachReason::{Lost, Parked, Released};
            match reason {
                Parked => json!({"reason": "parked"}),
                Released(message) => json!({"reason": "released", "message": message}),
                Lost => json!({"reason": "lost"}),
            }
        }
        EventBody::StepStarted { .. }
        | EventBody::StepInDoubt { .. }
        | EventBody::StepResolved(_)
        | EventBody::StepScheduled(_)
        | EventBody::StepCancelRequested { .. }
        | EventBody::StepCompleted { .. }
        | EventBody::StepFailed { .. }
        | EventBody::TimerStarted { .. }
        | EventBody::TimerFired { .. }
        | EventBody::TimerCanceled { .. } => steps::attributes(body),
        EventBody::SignalReceived { name, signal_id, input } => {
            json!({"signal": name, "signal_id": signal_id, "input": payload(input)})
        }
        EventBody::CancelRequested { reason } | EventBody::RunTerminated { reason } => {
            json!({"reason": reason})
        }
        EventBody::UpdateAccepted { .. } | EventBody::UpdateCompleted { .. } => update(body),
        EventBody::AttributesUpserted { op, notes } => notes::upserted(op.0, notes),
        EventBody::VersionMarked { change_id, version } => {
            json!({"change_id": change_id, "version": version})
        }
        EventBody::ChildScheduled(_)
        | EventBody::ChildStarted { .. }
        | EventBody::ChildClosed(_)
        | EventBody::ExternalRequested(_)
        | EventBody::ExternalResolved { .. } => between::attributes(body),
        EventBody::RunBlocked(b) => json!({
            "block": format!("{:?}", b.kind), "at_seq": b.at_seq, "expected": b.expected, "produced": b.produced,
            "source": b.source, "hint": b.hint, "build_id": b.build_id,
        }),
        EventBody::RunUnblocked { build_id } => json!({"build_id": build_id}),
        EventBody::RunCompleted { result, unconsumed } => {
            json!({"result": payload(result), "unconsumed": unconsumed})
        }
        EventBody::RunFailed { failure: f, unconsumed, retried_by } => {
            let mut value = json!({"failure": failure(f), "unconsumed": unconsumed});
            link(&mut value, "retried_by_run_id", *retried_by);
            value
        }
        EventBody::RunContinued { successor, carried } => {
            json!({"successor_run_id": successor.to_string(), "carried": carried})
        }
        EventBody::RunCanceled { details } => json!({"details": details}),
        EventBody::RunTimedOut { retried_by } => {
            let mut value = json!({});
            link(&mut value, "retried_by_run_id", *retried_by);
            value
        }
        EventBody::Ignored { .. } => json!({}),
    }
}
