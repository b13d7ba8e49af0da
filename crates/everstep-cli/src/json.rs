//! Stable JSON of runs and events. Fields are added, never renamed.

#[cfg(test)]
mod tests;

use chrono::{DateTime, SecondsFormat, Utc};
use everstep::client::{RunDescription, StepInDoubt};
use everstep_core::{
    Actor, Doubt, Duration, Event, EventBody, Failure, Payload, Resolution, RunRow, StepResolved, Timestamp,
};
use serde_json::{Value, json};

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
        "history_warning": r.history_warning,
        "in_doubt_steps": description.in_doubt.iter().map(step_in_doubt).collect::<Vec<_>>(),
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

fn resolved(r: &StepResolved) -> Value {
    let mut value = json!({"step_id": r.step.0, "step": r.name, "attempt": r.attempt, "note": r.note, "resolution": "retry"});
    match &r.resolution {
        Resolution::Completed(result) => {
            value["resolution"] = "completed".into();
            value["result"] = payload(result);
        }
        Resolution::Failed(f) => {
            value["resolution"] = "failed".into();
            value["failure"] = failure(f);
        }
        Resolution::Retry => {}
    }
    value
}

fn attributes(body: &EventBody) -> Value {
    match body {
        EventBody::RunStarted(s) => json!({
            "workflow_id": s.workflow_id, "workflow_type": s.workflow_type, "namespace": s.namespace,
            "task_queue": s.task_queue, "input": payload(&s.input), "request_id": s.request_id,
            "run_timeout_ms": s.run_timeout.map(millis), "traceparent": s.trace.traceparent,
            // Text: a number of JSON does not hold 64 bits in every reader.
            "seed": s.seed.to_string(),
        }),
        EventBody::WorkerAttached { session, worker } => json!({
            "session_id": session.to_string(), "worker": worker.identity, "build_id": worker.build_id,
        }),
        EventBody::WorkerDetached { reason } => {
            use everstep_core::DetachReason::{Lost, Parked, Released};
            match reason {
                Parked => json!({"reason": "parked"}),
                Released(message) => json!({"reason": "released", "message": message}),
                Lost => json!({"reason": "lost"}),
            }
        }
        EventBody::StepStarted { step, name, attempt, in_doubt } => {
            let mut value = json!({"step_id": step.0, "step": name, "attempt": attempt});
            if let Some(policy) = in_doubt {
                value["in_doubt"] = policy.as_str().into();
            }
            value
        }
        EventBody::StepInDoubt { step, name, attempt } => {
            json!({"step_id": step.0, "step": name, "attempt": attempt})
        }
        EventBody::StepResolved(r) => resolved(r),
        EventBody::StepCompleted { step, name, attempt, elapsed, result } => json!({
            "step_id": step.0, "step": name, "attempt": attempt, "elapsed_ms": millis(*elapsed),
            "result": payload(result),
        }),
        EventBody::StepFailed { step, name, attempt, elapsed, failure: f, retry_at } => json!({
            "step_id": step.0, "step": name, "attempt": attempt, "elapsed_ms": millis(*elapsed),
            "failure": failure(f), "retry_at": retry_at.map(time),
        }),
        EventBody::TimerStarted { timer, fire_at } => json!({"timer_id": timer.0, "fire_at": time(*fire_at)}),
        EventBody::TimerFired { timer } => json!({"timer": timer.kind.as_str(), "timer_id": timer.id}),
        EventBody::TimerCanceled { timer } => json!({"timer_id": timer.0}),
        EventBody::SignalReceived { name, signal_id, input } => {
            json!({"signal": name, "signal_id": signal_id, "input": payload(input)})
        }
        EventBody::CancelRequested { reason } | EventBody::RunTerminated { reason } => {
            json!({"reason": reason})
        }
        EventBody::VersionMarked { change_id, version } => {
            json!({"change_id": change_id, "version": version})
        }
        EventBody::RunBlocked(b) => json!({
            "block": format!("{:?}", b.kind), "at_seq": b.at_seq, "expected": b.expected, "produced": b.produced,
            "source": b.source, "hint": b.hint, "build_id": b.build_id,
        }),
        EventBody::RunUnblocked { build_id } => json!({"build_id": build_id}),
        EventBody::RunCompleted { result, unconsumed } => {
            json!({"result": payload(result), "unconsumed": unconsumed})
        }
        EventBody::RunFailed { failure: f, unconsumed } => {
            json!({"failure": failure(f), "unconsumed": unconsumed})
        }
        EventBody::RunCanceled { details } => json!({"details": details}),
        EventBody::RunTimedOut | EventBody::Ignored { .. } => json!({}),
    }
}

/// An event on one line, for people.
pub(crate) fn event_line(e: &Event) -> String {
    let mut text = format!("{:>4}  {}  {:<16}", e.seq, &time(e.at)[11..23], e.body.kind());
    if let Value::Object(attributes) = attributes(&e.body) {
        let mut shown = 0;
        for (name, value) in attributes {
            let empty = value.is_null() || value == json!("") || value == json!([]);
            let noise = matches!(
                name.as_str(),
                "session_id" | "request_id" | "namespace" | "task_queue" | "signal_id"
            );
            if empty || noise || shown > 5 {
                continue;
            }
            let value = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
            let short: String = value.chars().take(60).collect();
            let more = if value.chars().count() > 60 { "…" } else { "" };
            text.push_str(&format!("  {name}={}{more}", printable(&short)));
            shown += 1;
        }
    }
    text
}
