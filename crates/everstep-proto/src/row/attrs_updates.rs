//! The column `attrs` of updates.

use everstep_core::{EventBody, Failure, Payload, Seq, UpdateOutcome};
use serde::{Deserialize, Serialize};

use super::attrs::{FailureAttrs, Text};
use super::{EventRow, RowError, json};

impl EventRow {
    /// The columns of an event about an update.
    pub(super) fn fill_update(&mut self, body: &EventBody) {
        match body {
            EventBody::UpdateAccepted { update_id, name, .. } => {
                self.step = Some(name.clone());
                self.attrs = json(&UpdateAcceptedAttrs { update_id: update_id.as_str().into() });
            }
            EventBody::UpdateCompleted { accepted, update_id, outcome } => {
                self.attrs = json(&UpdateCompletedAttrs::new(update_id, *accepted, outcome));
            }
            _ => {}
        }
    }

    /// The event about an update that this row holds.
    pub(super) fn update_body(&mut self) -> Result<EventBody, RowError> {
        let payload = self.take_payload();
        if self.kind == "UpdateAccepted" {
            let update_id = self.attrs::<UpdateAcceptedAttrs<'_>>()?.update_id.into_owned();
            return Ok(EventBody::UpdateAccepted { update_id, name: self.take_step()?, input: payload });
        }
        let attrs = self.attrs::<UpdateCompletedAttrs<'_>>()?;
        let (accepted, update_id) = (attrs.accepted, attrs.update_id.clone().into_owned());
        Ok(EventBody::UpdateCompleted { accepted, update_id, outcome: attrs.outcome(payload) })
    }
}

#[derive(Serialize, Deserialize)]
struct UpdateAcceptedAttrs<'a> {
    update_id: Text<'a>,
}

#[derive(Serialize, Deserialize)]
struct UpdateCompletedAttrs<'a> {
    update_id: Text<'a>,
    accepted: Seq,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure: Option<FailureAttrs<'a>>,
}

impl<'a> UpdateCompletedAttrs<'a> {
    fn new(update_id: &'a str, accepted: Seq, outcome: &'a UpdateOutcome) -> Self {
        let failure: Option<&Failure> = match outcome {
            UpdateOutcome::Completed(_) => None,
            UpdateOutcome::Failed(failure) => Some(failure),
        };
        Self { update_id: update_id.into(), accepted, failure: failure.map(FailureAttrs::from) }
    }
}

impl UpdateCompletedAttrs<'_> {
    /// The outcome, whose bytes stand in a column of their own.
    fn outcome(self, payload: Payload) -> UpdateOutcome {
        match self.failure {
            Some(failure) => UpdateOutcome::Failed(failure.with_details(payload)),
            None => UpdateOutcome::Completed(payload),
        }
    }
}
