//! The event codec of the log: an event as a row that a person can read.
//!
//! Typed columns hold what people select by; `attrs` is a small JSON object with what else the kind needs;
//! the user's bytes stand in `payload`, untouched, with their encoding. The wire speaks protobuf, the log
//! does not, so that a history can be read by SQL alone for as long as it is kept. Where a large payload
//! is stored is the adapter's business: a row is decoded with its payload in place.

mod attrs;
mod attrs_notes;
mod attrs_runs;
mod attrs_steps;
mod attrs_succession;
mod attrs_updates;
mod between;
mod steps;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use everstep_core::{
    Actor, CommandId, Event, EventBody, OpId, Payload, RunId, RunStarted, Timestamp, WorkerInfo,
};
use serde::Serialize;
use uuid::Uuid;

use attrs::{
    Attached, BlockedAttrs, CancelAsked, CanceledAttrs, Detached, Elapsed, Failed, Fired, IgnoredAttrs,
    Marked, Signal, Started, Terminated, TimerAttrs, Unblocked, Unconsumed,
};

use attrs_notes::UpsertedAttrs;
use attrs_succession::{Continued, Retried};
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
    /// `client:IDENTITY`, `worker:IDENTITY`, `run:RUN_ID` or `system`.
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
            EventBody::WorkerAttached { session, worker, pinned } => {
                self.attrs = json(&Attached {
                    session: *session,
                    identity: worker.identity.as_str().into(),
                    build_id: worker.build_id.as_str().into(),
                    pinned: *pinned,
                });
            }
            EventBody::WorkerDetached { reason } => self.attrs = json(&Detached::from(reason)),
            EventBody::StepStarted { .. }
            | EventBody::StepScheduled(_)
            | EventBody::StepCancelRequested { .. }
            | EventBody::StepInDoubt { .. }
            | EventBody::StepResolved(_)
            | EventBody::StepCompleted { .. }
            | EventBody::StepFailed { .. } => self.fill_step(body),
            EventBody::TimerStarted { .. }
            | EventBody::TimerFired { .. }
            | EventBody::TimerCanceled { .. } => {
                self.fill_timer(body);
            }
            EventBody::SignalReceived { name, signal_id, .. } => {
                self.step = Some(name.clone());
                self.attrs = json(&Signal { signal_id: signal_id.as_str().into() });
            }
            EventBody::CancelRequested { reason } => {
                self.attrs = json(&CancelAsked { reason: reason.as_str().into() });
            }
            EventBody::UpdateAccepted { .. } | EventBody::UpdateCompleted { .. } => self.fill_update(body),
            EventBody::AttributesUpserted { op, notes } => {
                self.step_id = Some(op.0.cast_signed());
                self.attrs = json(&UpsertedAttrs::from(&**notes));
            }
            EventBody::VersionMarked { change_id, version } => {
                self.step = Some(change_id.clone());
                self.attrs = json(&Marked { version: *version });
            }
            EventBody::ChildScheduled(_)
            | EventBody::ChildStarted { .. }
            | EventBody::ChildClosed(_)
            | EventBody::ExternalRequested(_)
            | EventBody::ExternalResolved { .. } => self.fill_between(body),
            EventBody::RunBlocked(blocked) => self.attrs = json(&BlockedAttrs::from(&**blocked)),
            EventBody::RunUnblocked { build_id } => {
                self.attrs = json(&Unblocked { build_id: build_id.as_str().into() });
            }
            EventBody::RunCompleted { .. }
            | EventBody::RunFailed { .. }
            | EventBody::RunContinued { .. }
            | EventBody::RunCanceled { .. }
            | EventBody::RunTerminated { .. }
            | EventBody::RunTimedOut { .. } => self.fill_end(body),
            EventBody::Ignored { .. } => self.attrs = json(&IgnoredAttrs { may_ignore: true }),
        }
    }

    fn fill_timer(&mut self, body: &EventBody) {
        match body {
            EventBody::TimerStarted { timer, fire_at } => {
                self.step_id = Some(timer.0.cast_signed());
                self.attrs = json(&TimerAttrs { fire_at_us: *fire_at });
            }
            EventBody::TimerFired { timer } => {
                self.step_id = Some(timer.id.cast_signed());
                self.attrs = json(&Fired { timer_kind: timer.kind.into() });
            }
            EventBody::TimerCanceled { timer } => self.step_id = Some(timer.0.cast_signed()),
            _ => {}
        }
    }

    /// The last event of a run.
    fn fill_end(&mut self, body: &EventBody) {
        match body {
            EventBody::RunCompleted { unconsumed, .. } if !unconsumed.is_empty() => {
                self.attrs = json(&Unconsumed { unconsumed: unconsumed.as_slice().into() });
            }
            EventBody::RunFailed { failure, unconsumed, retried_by } => {
                self.attrs = json(&Failed {
                    failure: failure.into(),
                    unconsumed: unconsumed.as_slice().into(),
                    retried_by: *retried_by,
                });
            }
            EventBody::RunContinued { successor, carried } => {
                self.attrs = json(&Continued { successor: *successor, carried: carried.as_slice().into() });
            }
            EventBody::RunCanceled { details } => {
                self.attrs = json(&CanceledAttrs { details: details.as_str().into() });
            }
            EventBody::RunTerminated { reason } => {
                self.attrs = json(&Terminated { reason: reason.as_str().into() });
            }
            EventBody::RunTimedOut { retried_by } => {
                self.attrs = retried_by.and_then(|_| json(&Retried { retried_by: *retried_by }));
            }
            _ => {}
        }
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
            "StepStarted"
            | "StepScheduled"
            | "StepCancelRequested"
            | "StepInDoubt"
            | "StepResolved"
            | "StepFailed" => {
                return self.step_body();
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
            "UpdateAccepted" | "UpdateCompleted" => return self.update_body(),
            "AttributesUpserted" => EventBody::AttributesUpserted {
                notes: Box::new(self.attrs::<UpsertedAttrs<'_>>()?.into()),
                op: self.op_id()?,
            },
            "VersionMarked" => EventBody::VersionMarked {
                version: self.attrs::<Marked>()?.version,
                change_id: self.take_step()?,
            },
            "ChildScheduled" | "ChildStarted" | "ChildClosed" | "ExternalRequested" | "ExternalResolved" => {
                return self.between_body();
            }
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
                    pinned: attrs.pinned,
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
                    retried_by: attrs.retried_by,
                    failure: attrs.failure.with_details(self.take_payload()),
                }
            }
            "RunCanceled" => {
                EventBody::RunCanceled { details: self.attrs::<CanceledAttrs<'_>>()?.details.into_owned() }
            }
            "RunTerminated" => {
                EventBody::RunTerminated { reason: self.attrs::<Terminated<'_>>()?.reason.into_owned() }
            }
            "RunContinued" => {
                let attrs = self.attrs::<Continued<'_>>()?;
                EventBody::RunContinued { successor: attrs.successor, carried: attrs.carried.into_owned() }
            }
            "RunTimedOut" => EventBody::RunTimedOut { retried_by: self.attrs::<Retried>()?.retried_by },
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
            Some(("run", id)) if let Ok(run) = id.parse() => Ok(Actor::Run(run)),
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
        Actor::Run(run) => format!("run:{run}"),
    }
}

#[expect(clippy::expect_used, reason = "attrs are structs with string keys: serde_json cannot refuse them")]
fn json<T: Serialize>(attrs: &T) -> Option<String> {
    Some(serde_json::to_string(attrs).expect("attrs serialize"))
}
