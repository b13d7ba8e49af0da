//! Events about steps and timers, as JSON.

use everstep_core::{EventBody, Resolution, StepResolved};
use serde_json::{Value, json};

use super::{failure, millis, payload, time};

/// What such an event says; nothing for an event about something else.
pub(super) fn attributes(body: &EventBody) -> Value {
    match body {
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
        EventBody::StepScheduled(s) => json!({
            "step_id": s.step.0, "step": s.name, "input": payload(&s.input), "options": s.options,
        }),
        EventBody::StepCancelRequested { step } => json!({"step_id": step.0}),
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
        _ => json!({}),
    }
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
