//! The JSON of events between runs, read back.

use everstep_core::{
    ChildClosed, ChildOutcome, ChildScheduled, EventBody, ExternalAction, ExternalRequested, ExternalTarget,
    ParentClose, RunId, RunStatus,
};
use serde_json::Value;

use super::export::{Read, Row};

impl Row<'_> {
    /// The kinds between runs; `None` for any other.
    pub(super) fn between_body(self) -> Read<Option<EventBody>> {
        Ok(Some(match self.text("kind")? {
            "ChildScheduled" => EventBody::ChildScheduled(Box::new(self.child_scheduled()?)),
            "ChildStarted" => EventBody::ChildStarted {
                child: self.op("child_id")?,
                scheduled: self.number("scheduled_seq")?,
            },
            "ChildClosed" => EventBody::ChildClosed(Box::new(ChildClosed {
                child: self.op("child_id")?,
                scheduled: self.number("scheduled_seq")?,
                run_id: self.id("run_id").map(RunId::from_uuid)?,
                outcome: self.child_outcome()?,
            })),
            "ExternalRequested" => EventBody::ExternalRequested(Box::new(ExternalRequested {
                op: self.op("op_id")?,
                target: if self.is_null("run_id") {
                    ExternalTarget::Workflow(self.owned("workflow_id")?)
                } else {
                    ExternalTarget::Run(self.id("run_id").map(RunId::from_uuid)?)
                },
                action: match self.text("action")? {
                    "signal" => {
                        ExternalAction::Signal { name: self.owned("signal")?, input: self.payload("input") }
                    }
                    "cancel" => ExternalAction::Cancel { reason: self.owned("reason")? },
                    other => return Err(format!("action '{other}' is not known")),
                },
            })),
            "ExternalResolved" => EventBody::ExternalResolved {
                op: self.op("op_id")?,
                requested: self.number("requested_seq")?,
                failure: if self.is_null("failure") { None } else { Some(self.failure("failure")?) },
            },
            _ => return Ok(None),
        }))
    }

    fn child_scheduled(self) -> Read<ChildScheduled> {
        let policy = self.text("on_parent_close")?;
        Ok(ChildScheduled {
            child: self.op("child_id")?,
            run_id: self.id("run_id").map(RunId::from_uuid)?,
            workflow_type: self.owned("workflow_type")?,
            workflow_id: self.owned("workflow_id")?,
            task_queue: self.owned("task_queue")?,
            input: self.payload("input"),
            run_timeout: self.millis("run_timeout_ms")?,
            retry: self.typed("retry")?,
            reuse: self.typed("reuse")?.unwrap_or_default(),
            on_parent_close: ParentClose::parse(policy)
                .ok_or_else(|| format!("on_parent_close '{policy}' is not known"))?,
            report_start: self.0.get("report_start").and_then(Value::as_bool).unwrap_or_default(),
            notes: self.notes()?,
        })
    }

    fn child_outcome(self) -> Read<ChildOutcome> {
        let word = self.text("status")?;
        if word == ChildOutcome::NOT_STARTED {
            return Ok(ChildOutcome::NotStarted(self.failure("failure")?));
        }
        match RunStatus::parse(word) {
            Some(RunStatus::Completed) => Ok(ChildOutcome::Completed(self.payload("result"))),
            Some(status) => Ok(ChildOutcome::Ended { status, failure: self.failure("failure")? }),
            None => Err(format!("status '{word}' is not known")),
        }
    }
}
