//! Events between runs.

use anyhow::{Context, bail};
use everstep_core::{
    ChildClosed, ChildOutcome, ChildScheduled, EventBody, ExternalAction, ExternalRequested, ExternalTarget,
    ParentClose, RunStatus,
};
use serde_json::Value;

use super::{Fields, failure, payload};

/// The event of a row of one of these kinds.
pub(super) fn body(kind: &str, f: Fields<'_>) -> anyhow::Result<EventBody> {
    Ok(match kind {
        "ChildScheduled" => EventBody::ChildScheduled(Box::new(scheduled(f)?)),
        "ChildStarted" => {
            EventBody::ChildStarted { child: f.op("child_id")?, scheduled: f.number("scheduled_seq")? }
        }
        "ChildClosed" => EventBody::ChildClosed(Box::new(ChildClosed {
            child: f.op("child_id")?,
            scheduled: f.number("scheduled_seq")?,
            run_id: f.parsed("run_id")?,
            outcome: outcome(f)?,
        })),
        "ExternalRequested" => EventBody::ExternalRequested(Box::new(ExternalRequested {
            op: f.op("op_id")?,
            target: match f.0.get("run_id") {
                Some(_) => ExternalTarget::Run(f.parsed("run_id")?),
                None => ExternalTarget::Workflow(f.text("workflow_id")?),
            },
            action: match f.text("action")?.as_str() {
                "signal" => {
                    ExternalAction::Signal { name: f.text("signal")?, input: payload(f.get("input")?) }
                }
                "cancel" => ExternalAction::Cancel { reason: f.text("reason")? },
                other => bail!("'{other}' is nothing to ask of a run"),
            },
        })),
        _ => EventBody::ExternalResolved {
            op: f.op("op_id")?,
            requested: f.number("requested_seq")?,
            failure: match f.get("failure")? {
                Value::Null => None,
                why => Some(failure(why)?),
            },
        },
    })
}

fn scheduled(f: Fields<'_>) -> anyhow::Result<ChildScheduled> {
    let policy = f.text("on_parent_close")?;
    Ok(ChildScheduled {
        child: f.op("child_id")?,
        run_id: f.parsed("run_id")?,
        workflow_type: f.text("workflow_type")?,
        workflow_id: f.text("workflow_id")?,
        task_queue: f.text("task_queue")?,
        input: payload(f.get("input")?),
        run_timeout: f.0.get("run_timeout_ms").map(|_| f.millis("run_timeout_ms")).transpose()?,
        retry: f.0.get("retry").map(|v| serde_json::from_value(v.clone())).transpose()?,
        reuse: serde_json::from_value(f.get("reuse")?.clone())?,
        on_parent_close: ParentClose::parse(&policy).with_context(|| format!("'{policy}' is no policy"))?,
        report_start: f.flag("report_start")?,
        notes: super::notes(f)?,
    })
}

fn outcome(f: Fields<'_>) -> anyhow::Result<ChildOutcome> {
    let word = f.text("status")?;
    if word == ChildOutcome::NOT_STARTED {
        return Ok(ChildOutcome::NotStarted(failure(f.get("failure")?)?));
    }
    Ok(match RunStatus::parse(&word).with_context(|| format!("'{word}' is no status"))? {
        RunStatus::Completed => ChildOutcome::Completed(payload(f.get("result")?)),
        status => ChildOutcome::Ended { status, failure: failure(f.get("failure")?)? },
    })
}
