//! Events about steps, as rows.

use everstep_core::{EventBody, OpId, StepResolved, StepScheduled};

use super::attrs::{Elapsed, ResolvedAttrs, StepFailedAttrs, StepStartedAttrs};
use super::attrs_steps::ScheduledAttrs;
use super::{EventRow, RowError, json};

impl EventRow {
    pub(super) fn fill_step(&mut self, body: &EventBody) {
        match body {
            EventBody::StepStarted { step, name, attempt, in_doubt } => {
                self.step(*step, name, *attempt);
                self.attrs = in_doubt.and_then(|policy| json(&StepStartedAttrs { in_doubt: Some(policy) }));
            }
            EventBody::StepScheduled(scheduled) => {
                let StepScheduled { step, name, input: _, options } = &**scheduled;
                self.step_id = Some(step.0.cast_signed());
                self.step = Some(name.clone());
                self.attrs = json(&ScheduledAttrs::from(options));
            }
            EventBody::StepCancelRequested { step } => self.step_id = Some(step.0.cast_signed()),
            EventBody::StepInDoubt { step, name, attempt } => self.step(*step, name, *attempt),
            EventBody::StepResolved(resolved) => {
                self.step(resolved.step, &resolved.name, resolved.attempt);
                self.attrs = json(&ResolvedAttrs::from(&**resolved));
            }
            EventBody::StepCompleted { step, name, attempt, elapsed, .. } => {
                self.step(*step, name, *attempt);
                self.attrs = json(&Elapsed { elapsed_us: *elapsed });
            }
            EventBody::StepFailed { step, name, attempt, elapsed, failure, retry_at } => {
                self.step(*step, name, *attempt);
                let failure = failure.into();
                self.attrs = json(&StepFailedAttrs { elapsed_us: *elapsed, failure, retry_at_us: *retry_at });
            }
            _ => {}
        }
    }

    fn step(&mut self, step: OpId, name: &str, attempt: u32) {
        self.step_id = Some(step.0.cast_signed());
        self.step = Some(name.to_owned());
        self.attempt = Some(attempt.cast_signed());
    }

    pub(super) fn step_body(&mut self) -> Result<EventBody, RowError> {
        Ok(match self.kind.as_str() {
            "StepStarted" => EventBody::StepStarted {
                in_doubt: self.attrs::<StepStartedAttrs>()?.in_doubt,
                step: self.op_id()?,
                name: self.take_step()?,
                attempt: self.attempt_number()?,
            },
            "StepScheduled" => EventBody::StepScheduled(Box::new(StepScheduled {
                options: self.attrs::<ScheduledAttrs<'_>>()?.into(),
                step: self.op_id()?,
                name: self.take_step()?,
                input: self.take_payload(),
            })),
            "StepCancelRequested" => EventBody::StepCancelRequested { step: self.op_id()? },
            "StepInDoubt" => EventBody::StepInDoubt {
                step: self.op_id()?,
                name: self.take_step()?,
                attempt: self.attempt_number()?,
            },
            "StepResolved" => {
                let attrs = self.attrs::<ResolvedAttrs<'_>>()?;
                let (resolution, note) = attrs.resolution(self.take_payload()).ok_or_else(|| {
                    let value = "no failure".to_owned();
                    RowError::Invalid { seq: self.seq, kind: self.kind.clone(), column: "attrs", value }
                })?;
                EventBody::StepResolved(Box::new(StepResolved {
                    step: self.op_id()?,
                    name: self.take_step()?,
                    attempt: self.attempt_number()?,
                    resolution,
                    note,
                }))
            }
            "StepFailed" => {
                let attrs = self.attrs::<StepFailedAttrs<'_>>()?;
                EventBody::StepFailed {
                    elapsed: attrs.elapsed_us,
                    retry_at: attrs.retry_at_us,
                    failure: attrs.failure.with_details(self.take_payload()),
                    step: self.op_id()?,
                    name: self.take_step()?,
                    attempt: self.attempt_number()?,
                }
            }
            _ => return Err(RowError::UnknownKind { seq: self.seq, kind: self.kind.clone() }),
        })
    }
}
