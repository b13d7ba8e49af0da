//! Rows of events between runs: children, and what a workflow asks of other runs.

use everstep_core::{ChildClosed, EventBody, ExternalAction};

use super::attrs_runs::{
    ChildClosedAttrs, ChildScheduledAttrs, ChildStartedAttrs, ExternalRequestedAttrs, ExternalResolvedAttrs,
};
use super::{EventRow, RowError, json};

impl EventRow {
    /// The columns that depend on the kind, but for the payload; nothing for a kind that is not between runs.
    pub(super) fn fill_between(&mut self, body: &EventBody) {
        self.step_id = body.op().map(|op| op.0.cast_signed());
        match body {
            EventBody::ChildScheduled(scheduled) => {
                self.step = Some(scheduled.workflow_type.clone());
                self.attrs = json(&ChildScheduledAttrs::from(&**scheduled));
            }
            EventBody::ChildStarted { scheduled, .. } => {
                self.attrs = json(&ChildStartedAttrs { scheduled: *scheduled });
            }
            EventBody::ChildClosed(closed) => {
                let ChildClosed { child: _, scheduled, run_id, outcome } = &**closed;
                self.attrs = json(&ChildClosedAttrs::new(*scheduled, *run_id, outcome));
            }
            EventBody::ExternalRequested(requested) => {
                if let ExternalAction::Signal { name, .. } = &requested.action {
                    self.step = Some(name.clone());
                }
                self.attrs = json(&ExternalRequestedAttrs::from(&**requested));
            }
            EventBody::ExternalResolved { requested, failure, .. } => {
                let failure = failure.as_ref().map(Into::into);
                self.attrs = json(&ExternalResolvedAttrs { requested: *requested, failure });
            }
            _ => {}
        }
    }

    /// The event of a row of one of these kinds.
    pub(super) fn between_body(&mut self) -> Result<EventBody, RowError> {
        let op = self.op_id()?;
        Ok(match self.kind.as_str() {
            "ChildScheduled" => {
                let (workflow_type, input) = (self.take_step()?, self.take_payload());
                let attrs = self.attrs::<ChildScheduledAttrs<'_>>()?;
                EventBody::ChildScheduled(Box::new(attrs.scheduled(op, workflow_type, input)))
            }
            "ChildStarted" => {
                EventBody::ChildStarted { child: op, scheduled: self.attrs::<ChildStartedAttrs>()?.scheduled }
            }
            "ChildClosed" => {
                let payload = self.take_payload();
                let attrs = self.attrs::<ChildClosedAttrs<'_>>()?;
                let (scheduled, run_id) = (attrs.scheduled, attrs.run_id);
                let outcome = attrs.outcome(payload).ok_or_else(|| self.unreadable())?;
                EventBody::ChildClosed(Box::new(ChildClosed { child: op, scheduled, run_id, outcome }))
            }
            "ExternalRequested" => {
                let (name, input) = (self.step.take(), self.take_payload());
                let attrs = self.attrs::<ExternalRequestedAttrs<'_>>()?;
                let requested = attrs.requested(op, name, input).ok_or_else(|| self.unreadable())?;
                EventBody::ExternalRequested(Box::new(requested))
            }
            _ => {
                let details = self.take_payload();
                let attrs = self.attrs::<ExternalResolvedAttrs<'_>>()?;
                let failure = attrs.failure.map(|failure| failure.with_details(details));
                EventBody::ExternalResolved { op, requested: attrs.requested, failure }
            }
        })
    }

    fn unreadable(&self) -> RowError {
        let value = self.attrs.clone().unwrap_or_default();
        RowError::Invalid { seq: self.seq, kind: self.kind.clone(), column: "attrs", value }
    }
}
