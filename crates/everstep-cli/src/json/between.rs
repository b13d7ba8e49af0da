//! JSON of events between runs: children, and what a workflow asks of other runs.

use everstep_core::{ChildOutcome, ChildScheduled, EventBody, ExternalAction, ExternalTarget};
use serde_json::{Value, json};

use super::{failure, millis, notes, payload};

/// The fields of such an event; none for any other.
pub(super) fn attributes(body: &EventBody) -> Value {
    match body {
        EventBody::ChildScheduled(s) => scheduled(s),
        EventBody::ChildStarted { child, scheduled } => {
            json!({"child_id": child.0, "scheduled_seq": scheduled})
        }
        EventBody::ChildClosed(c) => {
            let mut value = json!({
                "child_id": c.child.0, "scheduled_seq": c.scheduled, "run_id": c.run_id.to_string(),
                "status": c.outcome.as_str(),
            });
            match &c.outcome {
                ChildOutcome::Completed(result) => value["result"] = payload(result),
                ChildOutcome::Ended { failure: f, .. } | ChildOutcome::NotStarted(f) => {
                    value["failure"] = failure(f);
                }
            }
            value
        }
        EventBody::ExternalRequested(r) => {
            let mut value = match &r.action {
                ExternalAction::Signal { name, input } => {
                    json!({"op_id": r.op.0, "action": "signal", "signal": name, "input": payload(input)})
                }
                ExternalAction::Cancel { reason } => {
                    json!({"op_id": r.op.0, "action": "cancel", "reason": reason})
                }
            };
            match &r.target {
                ExternalTarget::Run(run) => value["run_id"] = run.to_string().into(),
                ExternalTarget::Workflow(id) => value["workflow_id"] = id.as_str().into(),
            }
            value
        }
        EventBody::ExternalResolved { op, requested, failure: f } => json!({
            "op_id": op.0, "requested_seq": requested, "failure": f.as_ref().map(failure),
        }),
        _ => json!({}),
    }
}

fn scheduled(s: &ChildScheduled) -> Value {
    let ChildScheduled {
        child,
        run_id,
        workflow_type,
        workflow_id,
        task_queue,
        input,
        run_timeout,
        retry,
        reuse,
        on_parent_close,
        report_start,
        notes,
    } = s;
    let mut value = json!({
        "child_id": child.0, "workflow_type": workflow_type, "workflow_id": workflow_id,
        "run_id": run_id.to_string(), "input": payload(input), "task_queue": task_queue,
        "on_parent_close": on_parent_close.as_str(), "reuse": reuse, "report_start": report_start,
    });
    if let Some(timeout) = run_timeout {
        value["run_timeout_ms"] = millis(*timeout);
    }
    if let Some(policy) = retry {
        value["retry"] = json!(policy);
    }
    notes::add(&mut value, notes);
    value
}
