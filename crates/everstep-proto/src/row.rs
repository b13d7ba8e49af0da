//! The event codec of the log: an event as a row that a person can read.
//!
//! Typed columns hold what people select by; `attrs` is a small JSON object with what else the kind needs;
//! the user's bytes stand in `payload`, untouched, with their encoding. The wire speaks protobuf, the log
//! does not, so that a history can be read by SQL alone for as long as it is kept. Where a large payload
//! is stored is the adapter's business: a row is decoded with its payload in place.

mod attrs;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use everstep_core::{
    Actor, CommandId, Event, EventBody, OpId, Payload, RunId, RunStarted, StepResolved, Timestamp, WorkerInfo,
};
use serde::Serialize;
use uuid::Uuid;

use attrs::{
    Attached, BlockedAttrs, CancelAsked, CanceledAttrs, Detached, Elapsed, Failed, Fired, IgnoredAttrs,
    Marked, ResolvedAttrs, Signal, Started, StepFailedAttrs, StepStartedAttrs, Terminated, TimerAttrs,
    Unblocked, Unconsumed,
};

/// One row of the table `events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// The run.
    pub run_id: Uuid,
    /// Position in its history, from 1.
    pub seq: i64,
    /// Claims of the run so far.
    pub epoch: i32,
    /// The request that caused the event.
    pub command_id: Uuid,
    /// The event's stable name, such as `StepCompleted`.
    pub kind: String,
    /// Name of the step, signal or marked change.
    pub step: Option<String>,
    /// Number of the step or timer.
    pub step_id: Option<i32>,
    /// Attempt of the step, from 1.
    pub attempt: Option<i32>,
    /// Database time of the decision, microseconds since 1970.
    pub at_micros: i64,
    /// `client:IDENTITY`, `worker:IDENTITY` or `system`.
    pub actor: String,
    /// A small JSON object: what else the kind needs. `None` for nothing.
    pub attrs: Option<String>,
    /// Encoding of the user's bytes, such as `json`.
    pub encoding: Option<String>,
    /// The user's bytes. `None` only when there is no payload at all.
    pub payload: Option<Bytes>,
}

/// A row that is not an event this version knows.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// A newer version wrote it and did not mark it as one that may be skipped.
    #[error("event {seq} is of the unknown kind {kind:?}: it was written by a newer version")]
    UnknownKind {
        /// Where.
        seq: i64,
        /// Its kind, as stored.
        kind: String,
    },
    /// A column that the kind needs is NULL.
    #[error("event {seq} ({kind}) has no {column}")]
    Missing {
        /// Where.
        seq: i64,
        /// Its kind.
        kind: String,
        /// The column.
        column: &'static str,
    },
    /// `attrs` is not the object that the kind needs.
    #[error("event {seq} ({kind}) has unreadable attrs")]
    Attrs {
        /// Where.
        seq: i64,
        /// Its kind.
        kind: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A column holds a value that nobody writes.
    #[error("event {seq} ({kind}) has {column} {value:?}")]
    Invalid {
        /// Where.
        seq: i64,
        /// Its kind.
        kind: String,
        /// The column.
        column: &'static str,
        /// What stands there.
        value: String,
    },
}

impl EventRow {
    /// The row of `event` in the history of `run`.
    ///
    /// Numbers keep their bits where SQL has no unsigned type; the limits of a history keep real ones
    /// far below the sign bit.
    pub fn encode(run: RunId, event: &Event) -> Self {
        let mut row = Self {
            run_id: run.uuid(),
            seq: event.seq.cast_signed(),
            epoch: event.epoch.cast_signed(),
            command_id: event.command_id.uuid(),
            kind: event.body.kind().to_owned(),
            step: None,
            step_id: None,
            attempt: None,
            at_micros: event.at.as_micros(),
            actor: actor_text(&event.actor),
            attrs: None,
            encoding: None,
            payload: None,
        };
        if let Some(payload) = event.body.payload().filter(|p| !p.is_none()) {
            row.encoding = (!payload.encoding.is_empty()).then(|| payload.encoding.clone());
            row.payload = Some(payload.data.clone());
        }
        row.fill(&event.body);
        row
    }

    /// The columns that depend on the kind, but for the payload.
    fn fill(&mut self, body: &EventBody) {
        match body {
            EventBody::RunStarted(started) => self.attrs = json(&Started::from(&**started)),
            EventBody::WorkerAttached { session, worker } => {
                self.attrs = json(&Attached {
                    session: *session,
                    identity: worker.identity.as_str().into(),
                    build_id: worker.build_id.as_str().into(),
                });
            }
            EventBody::WorkerDetached { reason } => self.attrs = json(&Detached::from(reason)),
            EventBody::StepStarted { step, name, attempt, in_doubt } => {
                self.step(*step, name, *attempt);
                self.attrs = in_doubt.and_then(|policy| json(&StepStartedAttrs { in_doubt: Some(policy) }));
            }
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
            EventBody::TimerStarted { timer, fire_at } => {
                self.step_id = Some(timer.0.cast_signed());
                self.attrs = json(&TimerAttrs { fire_at_us: *fire_at });
            }
            EventBody::TimerFired { timer } => {
                self.step_id = Some(timer.id.cast_signed());
                self.attrs = json(&Fired { timer_kind: timer.kind.into() });
            }
            EventBody::TimerCanceled { timer } => self.step_id = Some(timer.0.cast_signed()),
            EventBody::SignalReceived { name, signal_id, .. } => {
                self.step = Some(name.clone());
                self.attrs = json(&Signal { signal_id: signal_id.as_str().into() });
            }
            EventBody::CancelRequested { reason } => {
                self.attrs = json(&CancelAsked { reason: reason.as_str().into() });
            }
            EventBody::VersionMarked { change_id, version } => {
                self.step = Some(change_id.clone());
                self.attrs = json(&Marked { version: *version });
            }
            EventBody::RunBlocked(blocked) => self.attrs = json(&BlockedAttrs::from(&**blocked)),
            EventBody::RunUnblocked { build_id } => {
                self.attrs = json(&Unblocked { build_id: build_id.as_str().into() });
            }
            EventBody::RunCompleted { unconsumed, .. } => {
                if !unconsumed.is_empty() {
                    self.attrs = json(&Unconsumed { unconsumed: unconsumed.as_slice().into() });
                }
            }
            EventBody::RunFailed { failure, unconsumed } => {
                self.attrs =
                    json(&Failed { failure: failure.into(), unconsumed: unconsumed.as_slice().into() });
            }
            EventBody::RunCanceled { details } => {
                self.attrs = json(&CanceledAttrs { details: details.as_str().into() });
            }
            EventBody::RunTerminated { reason } => {
                self.attrs = json(&Terminated { reason: reason.as_str().into() });
            }
            EventBody::RunTimedOut => {}
            EventBody::Ignored { .. } => self.attrs = json(&IgnoredAttrs { may_ignore: true }),
        }
    }

    fn step(&mut self, step: OpId, name: &str, attempt: u32) {
        self.step_id = Some(step.0.cast_signed());
        self.step = Some(name.to_owned());
        self.attempt = Some(attempt.cast_signed());
    }

    /// The event that this row holds.
    ///
    /// # Errors
    /// A [`RowError`] that names the event and the column: the row was written by a newer version, or is
    /// corrupt.
    pub fn decode(mut self) -> Result<Event, RowError> {
        let actor = self.actor_value()?;
        let body = self.body()?;
        Ok(Event {
            seq: self.seq.cast_unsigned(),
            at: Timestamp::from_micros(self.at_micros),
            epoch: self.epoch.cast_unsigned(),
            command_id: CommandId::from_uuid(self.command_id),
            actor,
            body,
        })
    }

    fn body(&mut self) -> Result<EventBody, RowError> {
        Ok(match self.kind.as_str() {
            "StepCompleted" => EventBody::StepCompleted {
                step: self.op_id()?,
                name: self.take_step()?,
                attempt: self.attempt_number()?,
                elapsed: self.attrs::<Elapsed>()?.elapsed_us,
                result: self.take_payload(),
            },
            "StepStarted" => EventBody::StepStarted {
                in_doubt: self.attrs::<StepStartedAttrs>()?.in_doubt,
                step: self.op_id()?,
                name: self.take_step()?,
                attempt: self.attempt_number()?,
            },
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
            "TimerStarted" => EventBody::TimerStarted {
                timer: self.op_id()?,
                fire_at: self.attrs::<TimerAttrs>()?.fire_at_us,
            },
            "TimerFired" => {
                EventBody::TimerFired { timer: self.attrs::<Fired>()?.timer_kind.key(self.op_id()?.0) }
            }
            "TimerCanceled" => EventBody::TimerCanceled { timer: self.op_id()? },
            "SignalReceived" => EventBody::SignalReceived {
                signal_id: self.attrs::<Signal<'_>>()?.signal_id.into_owned(),
                name: self.take_step()?,
                input: self.take_payload(),
            },
            "VersionMarked" => EventBody::VersionMarked {
                version: self.attrs::<Marked>()?.version,
                change_id: self.take_step()?,
            },
            _ => return self.run_body(),
        })
    }

    /// The kinds about the run as a whole.
    fn run_body(&mut self) -> Result<EventBody, RowError> {
        Ok(match self.kind.as_str() {
            "RunStarted" => {
                let mut started = RunStarted::from(self.attrs::<Started<'_>>()?);
                started.input = self.take_payload();
                EventBody::RunStarted(Box::new(started))
            }
            "WorkerAttached" => {
                let attrs = self.attrs::<Attached<'_>>()?;
                EventBody::WorkerAttached {
                    session: attrs.session,
                    worker: WorkerInfo {
                        identity: attrs.identity.into_owned(),
                        build_id: attrs.build_id.into_owned(),
                    },
                }
            }
            "WorkerDetached" => EventBody::WorkerDetached { reason: self.attrs::<Detached<'_>>()?.into() },
            "CancelRequested" => {
                EventBody::CancelRequested { reason: self.attrs::<CancelAsked<'_>>()?.reason.into_owned() }
            }
            "RunBlocked" => EventBody::RunBlocked(Box::new(self.attrs::<BlockedAttrs<'_>>()?.into())),
            "RunUnblocked" => {
                EventBody::RunUnblocked { build_id: self.attrs::<Unblocked<'_>>()?.build_id.into_owned() }
            }
            "RunCompleted" => EventBody::RunCompleted {
                unconsumed: self.attrs::<Unconsumed<'_>>()?.unconsumed.into_owned(),
                result: self.take_payload(),
            },
            "RunFailed" => {
                let attrs = self.attrs::<Failed<'_>>()?;
                EventBody::RunFailed {
                    unconsumed: attrs.unconsumed.into_owned(),
                    failure: attrs.failure.with_details(self.take_payload()),
                }
            }
            "RunCanceled" => {
                EventBody::RunCanceled { details: self.attrs::<CanceledAttrs<'_>>()?.details.into_owned() }
            }
            "RunTerminated" => {
                EventBody::RunTerminated { reason: self.attrs::<Terminated<'_>>()?.reason.into_owned() }
            }
            "RunTimedOut" => EventBody::RunTimedOut,
            // The attrs of an unknown kind may hold anything; only the mark counts.
            _ if self.attrs::<IgnoredAttrs>().is_ok_and(|a| a.may_ignore) => {
                EventBody::Ignored { kind: self.kind.clone() }
            }
            _ => return Err(RowError::UnknownKind { seq: self.seq, kind: self.kind.clone() }),
        })
    }

    fn actor_value(&self) -> Result<Actor, RowError> {
        match self.actor.split_once(':') {
            Some(("client", identity)) => Ok(Actor::Client(identity.to_owned())),
            Some(("worker", identity)) => Ok(Actor::Worker(identity.to_owned())),
            None if self.actor == "system" => Ok(Actor::System),
            _ => Err(RowError::Invalid {
                seq: self.seq,
                kind: self.kind.clone(),
                column: "actor",
                value: self.actor.clone(),
            }),
        }
    }

    /// The attributes; a missing object is an empty one.
    fn attrs<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, RowError> {
        serde_json::from_str(self.attrs.as_deref().unwrap_or("{}")).map_err(|source| RowError::Attrs {
            seq: self.seq,
            kind: self.kind.clone(),
            source,
        })
    }

    fn op_id(&self) -> Result<OpId, RowError> {
        self.step_id.map(|id| OpId(id.cast_unsigned())).ok_or_else(|| self.missing("step_id"))
    }

    fn attempt_number(&self) -> Result<u32, RowError> {
        self.attempt.map(i32::cast_unsigned).ok_or_else(|| self.missing("attempt"))
    }

    fn take_step(&mut self) -> Result<String, RowError> {
        self.step.take().ok_or_else(|| self.missing("step"))
    }

    fn take_payload(&mut self) -> Payload {
        Payload {
            encoding: self.encoding.take().unwrap_or_default(),
            data: self.payload.take().unwrap_or_default(),
        }
    }

    fn missing(&self, column: &'static str) -> RowError {
        RowError::Missing { seq: self.seq, kind: self.kind.clone(), column }
    }
}

fn actor_text(actor: &Actor) -> String {
    match actor {
        Actor::Client(identity) => format!("client:{identity}"),
        Actor::Worker(identity) => format!("worker:{identity}"),
        Actor::System => "system".to_owned(),
    }
}

#[expect(clippy::expect_used, reason = "attrs are structs with string keys: serde_json cannot refuse them")]
fn json<T: Serialize>(attrs: &T) -> Option<String> {
    Some(serde_json::to_string(attrs).expect("attrs serialize"))
}
