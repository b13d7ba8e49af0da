//! The JSON lines of `everstep admin export`, read back.
//!
//! That form is for people and programs that select from it, and is not exact: JSON payloads are laid out anew,
//! and exports of before have no seed. What a replay looks at is all there.

use chrono::DateTime;
use everstep_core::{
    Actor, BlockKind, Blocked, CommandId, DetachReason, DoubtPolicy, Duration, Event, EventBody, Failure,
    Notes, NotesChange, OpId, Payload, Resolution, RunId, RunStarted, StepResolved, StepScheduled, TimerKey,
    TimerKind, Timestamp, TraceContext, UpdateOutcome, WorkerInfo,
};
use serde_json::{Map, Value};

use super::{History, Unreadable};

/// Every run of the export, in its order.
pub(super) fn read(text: &str) -> Result<Vec<History>, Unreadable> {
    let mut runs: Vec<(RunId, Vec<Event>, bool)> = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = index + 1;
        let value: Value = serde_json::from_str(line).map_err(|e| Unreadable::on_line(number, e))?;
        if value["table"] != "events" {
            continue;
        }
        let run = value["run_id"].as_str().and_then(|id| id.parse::<RunId>().ok());
        let run = run.ok_or_else(|| Unreadable::on_line(number, "run_id is no run's id"))?;
        let row = value["row"].as_object().ok_or_else(|| Unreadable::on_line(number, "row is no object"))?;
        let event = Row(row).event().map_err(|problem| Unreadable::on_line(number, problem))?;
        let seedless = event.seq == 1 && !row.contains_key("seed");
        match runs.last_mut() {
            Some((last, events, _)) if *last == run => events.push(event),
            _ => runs.push((run, vec![event], seedless)),
        }
    }
    let history = |(run, events, seedless)| {
        let checked = History::from_events(run, events)
            .map_err(|e| Unreadable::new(format!("run {run}: {}", e.problem)))?;
        Ok(History { seedless, ..checked })
    };
    runs.into_iter().map(history).collect()
}

/// An event's fields.
#[derive(Clone, Copy)]
pub(super) struct Row<'a>(pub(super) &'a Map<String, Value>);

pub(super) type Read<T> = Result<T, String>;

impl<'r> Row<'r> {
    /// What an object holds, if it is one.
    fn entries(self, field: &str) -> impl Iterator<Item = (&'r String, &'r Value)> + use<'r> {
        self.0.get(field).and_then(Value::as_object).into_iter().flatten()
    }
}

impl Row<'_> {
    fn event(self) -> Read<Event> {
        Ok(Event {
            seq: self.number("seq")?,
            at: self.time("at")?,
            epoch: self.small("epoch")?,
            command_id: self.id("command_id").map(CommandId::from_uuid)?,
            actor: self.actor()?,
            body: self.body()?,
        })
    }

    fn body(self) -> Read<EventBody> {
        Ok(match self.text("kind")? {
            "StepStarted" => EventBody::StepStarted {
                step: self.op("step_id")?,
                name: self.owned("step")?,
                attempt: self.small("attempt")?,
                in_doubt: self.doubt_policy()?,
            },
            "StepInDoubt" => EventBody::StepInDoubt {
                step: self.op("step_id")?,
                name: self.owned("step")?,
                attempt: self.small("attempt")?,
            },
            "StepResolved" => EventBody::StepResolved(Box::new(self.resolved()?)),
            "StepScheduled" => EventBody::StepScheduled(Box::new(StepScheduled {
                step: self.op("step_id")?,
                name: self.owned("step")?,
                input: self.payload("input"),
                options: self.typed("options")?.unwrap_or_default(),
            })),
            "StepCancelRequested" => EventBody::StepCancelRequested { step: self.op("step_id")? },
            "StepCompleted" => EventBody::StepCompleted {
                step: self.op("step_id")?,
                name: self.owned("step")?,
                attempt: self.small("attempt")?,
                elapsed: self.millis("elapsed_ms")?.unwrap_or_default(),
                result: self.payload("result"),
            },
            "StepFailed" => EventBody::StepFailed {
                step: self.op("step_id")?,
                name: self.owned("step")?,
                attempt: self.small("attempt")?,
                elapsed: self.millis("elapsed_ms")?.unwrap_or_default(),
                failure: self.failure("failure")?,
                retry_at: if self.is_null("retry_at") { None } else { Some(self.time("retry_at")?) },
            },
            "TimerStarted" => {
                EventBody::TimerStarted { timer: self.op("timer_id")?, fire_at: self.time("fire_at")? }
            }
            "TimerFired" => {
                let word = self.text("timer")?;
                let kind = TimerKind::parse(word).ok_or_else(|| format!("timer '{word}' is not known"))?;
                EventBody::TimerFired { timer: TimerKey { kind, id: self.small("timer_id")? } }
            }
            "TimerCanceled" => EventBody::TimerCanceled { timer: self.op("timer_id")? },
            "SignalReceived" => EventBody::SignalReceived {
                name: self.owned("signal")?,
                signal_id: self.owned("signal_id")?,
                input: self.payload("input"),
            },
            "UpdateAccepted" => EventBody::UpdateAccepted {
                update_id: self.owned("update_id")?,
                name: self.owned("update")?,
                input: self.payload("input"),
            },
            "UpdateCompleted" => EventBody::UpdateCompleted {
                accepted: self.number("accepted_seq")?,
                update_id: self.owned("update_id")?,
                outcome: if self.is_null("failure") {
                    UpdateOutcome::Completed(self.payload("result"))
                } else {
                    UpdateOutcome::Failed(self.failure("failure")?)
                },
            },
            "VersionMarked" => EventBody::VersionMarked {
                change_id: self.owned("change_id")?,
                version: self.small("version")?,
            },
            _ => return self.run_body(),
        })
    }

    /// The kinds about the run as a whole.
    fn run_body(self) -> Read<EventBody> {
        Ok(match self.text("kind")? {
            "AttributesUpserted" => {
                EventBody::AttributesUpserted { op: self.op("op_id")?, notes: Box::new(self.notes_change()?) }
            }
            "RunStarted" => EventBody::RunStarted(Box::new(self.started()?)),
            "WorkerAttached" => EventBody::WorkerAttached {
                session: self.id("session_id").map(everstep_core::SessionId::from_uuid)?,
                worker: WorkerInfo { identity: self.owned("worker")?, build_id: self.owned("build_id")? },
                pinned: !self.is_null("pinned"),
            },
            "WorkerDetached" => EventBody::WorkerDetached {
                reason: match self.text("reason")? {
                    "parked" => DetachReason::Parked,
                    "released" => DetachReason::Released(self.owned("message")?),
                    "lost" => DetachReason::Lost,
                    other => return Err(format!("reason '{other}' is not known")),
                },
            },
            "CancelRequested" => EventBody::CancelRequested { reason: self.owned("reason")? },
            "RunBlocked" => EventBody::RunBlocked(Box::new(self.blocked()?)),
            "RunUnblocked" => EventBody::RunUnblocked { build_id: self.owned("build_id")? },
            "RunCompleted" => {
                EventBody::RunCompleted { result: self.payload("result"), unconsumed: self.unconsumed() }
            }
            "RunFailed" => {
                let retried_by = self.link("retried_by_run_id")?;
                let failure = self.failure("failure")?;
                EventBody::RunFailed { failure, unconsumed: self.unconsumed(), retried_by }
            }
            "RunContinued" => EventBody::RunContinued {
                successor: self.id("successor_run_id").map(RunId::from_uuid)?,
                carried: self.seqs("carried"),
            },
            "RunCanceled" => EventBody::RunCanceled { details: self.owned("details")? },
            "RunTerminated" => EventBody::RunTerminated { reason: self.owned("reason")? },
            "RunTimedOut" => EventBody::RunTimedOut { retried_by: self.link("retried_by_run_id")? },
            other => {
                if let Some(body) = self.between_body()? {
                    return Ok(body);
                }
                return Err(format!("events of kind '{other}' are not known: a newer version wrote them"));
            }
        })
    }

    fn started(self) -> Read<RunStarted> {
        // A number of JSON does not hold 64 bits in every reader, so it is text.
        let seed = match self.0.get("seed") {
            Some(seed) => seed.as_str().and_then(|s| s.parse().ok()).ok_or("seed is no number in text")?,
            None => 0,
        };
        Ok(RunStarted {
            namespace: self.owned("namespace")?,
            workflow_id: self.owned("workflow_id")?,
            workflow_type: self.owned("workflow_type")?,
            task_queue: self.owned("task_queue")?,
            input: self.payload("input"),
            request_id: self.owned("request_id")?,
            run_timeout: self.millis("run_timeout_ms")?,
            seed,
            trace: TraceContext { traceparent: self.owned("traceparent")?, tracestate: String::new() },
            start_at: if self.is_null("start_at") { None } else { Some(self.time("start_at")?) },
            retry: self.typed("retry")?,
            origin: self.typed("origin")?.unwrap_or_default(),
            step_retry: self.typed("step_retry")?,
            notes: self.notes()?,
        })
    }

    /// Attributes and memo of a start.
    pub(super) fn notes(self) -> Read<Notes> {
        Ok(Notes {
            attributes: self.typed("search_attributes")?.unwrap_or_default(),
            memo: self.entries("memo").map(|(name, value)| (name.clone(), payload(value))).collect(),
        })
    }

    fn notes_change(self) -> Read<NotesChange> {
        let entry =
            |(name, value): (&String, &Value)| (name.clone(), (!value.is_null()).then(|| payload(value)));
        Ok(NotesChange {
            attributes: self.typed("search_attributes")?.unwrap_or_default(),
            memo: self.entries("memo").map(entry).collect(),
        })
    }

    /// A value that is written as the core has it.
    pub(super) fn typed<T: serde::de::DeserializeOwned>(self, field: &str) -> Read<Option<T>> {
        let value = self.0.get(field).cloned().unwrap_or_default();
        serde_json::from_value(value).map_err(|e| format!("{field}: {e}"))
    }

    fn link(self, field: &str) -> Read<Option<RunId>> {
        if self.is_null(field) { Ok(None) } else { self.id(field).map(RunId::from_uuid).map(Some) }
    }

    fn blocked(self) -> Read<Blocked> {
        Ok(Blocked {
            kind: match self.text("block")? {
                "Nondeterminism" => BlockKind::Nondeterminism,
                "ForeignWake" => BlockKind::ForeignWake,
                "Poison" => BlockKind::Poison,
                other => return Err(format!("block '{other}' is not known")),
            },
            at_seq: self.number("at_seq")?,
            expected: self.owned("expected")?,
            produced: self.owned("produced")?,
            source: self.owned("source")?,
            hint: self.owned("hint")?,
            build_id: self.owned("build_id")?,
        })
    }

    fn doubt_policy(self) -> Read<Option<DoubtPolicy>> {
        if self.is_null("in_doubt") {
            return Ok(None);
        }
        let word = self.text("in_doubt")?;
        DoubtPolicy::parse(word).map(Some).ok_or_else(|| format!("in_doubt '{word}' is not known"))
    }

    fn resolved(self) -> Read<StepResolved> {
        Ok(StepResolved {
            step: self.op("step_id")?,
            name: self.owned("step")?,
            attempt: self.small("attempt")?,
            resolution: match self.text("resolution")? {
                "completed" => Resolution::Completed(self.payload("result")),
                "failed" => Resolution::Failed(self.failure("failure")?),
                "retry" => Resolution::Retry,
                other => return Err(format!("resolution '{other}' is not known")),
            },
            note: self.owned("note")?,
        })
    }

    fn actor(self) -> Read<Actor> {
        let text = self.text("actor")?;
        match text.split_once(':') {
            Some(("client", identity)) => Ok(Actor::Client(identity.to_owned())),
            Some(("worker", identity)) => Ok(Actor::Worker(identity.to_owned())),
            Some(("run", id)) => {
                id.parse().map(Actor::Run).map_err(|_| format!("actor '{text}' is not known"))
            }
            None if text == "system" => Ok(Actor::System),
            _ => Err(format!("actor '{text}' is not known")),
        }
    }

    pub(super) fn text(&self, field: &str) -> Read<&str> {
        self.0.get(field).and_then(Value::as_str).ok_or_else(|| format!("{field} is no text"))
    }

    pub(super) fn owned(self, field: &str) -> Read<String> {
        self.text(field).map(ToOwned::to_owned)
    }

    pub(super) fn number(self, field: &str) -> Read<u64> {
        self.0.get(field).and_then(Value::as_u64).ok_or_else(|| format!("{field} is no number"))
    }

    fn small(self, field: &str) -> Read<u32> {
        u32::try_from(self.number(field)?).map_err(|_| format!("{field} is too large"))
    }

    pub(super) fn op(self, field: &str) -> Read<OpId> {
        self.small(field).map(OpId)
    }

    pub(super) fn id(self, field: &str) -> Read<uuid::Uuid> {
        self.text(field)?.parse().map_err(|_| format!("{field} is no UUID"))
    }

    fn time(self, field: &str) -> Read<Timestamp> {
        let at = DateTime::parse_from_rfc3339(self.text(field)?).map_err(|e| format!("{field}: {e}"))?;
        Ok(Timestamp::from_micros(at.timestamp_micros()))
    }

    /// Milliseconds with a fraction; null for none.
    pub(super) fn millis(self, field: &str) -> Read<Option<Duration>> {
        if self.is_null(field) {
            return Ok(None);
        }
        let millis = self.0.get(field).and_then(Value::as_f64).filter(|millis| *millis >= 0.0);
        let millis = millis.ok_or_else(|| format!("{field} is no length of time"))?;
        Ok(Some(Duration::from_micros((millis * 1_000.0).round() as u64)))
    }

    pub(super) fn is_null(self, field: &str) -> bool {
        self.0.get(field).is_none_or(Value::is_null)
    }

    pub(super) fn payload(self, field: &str) -> Payload {
        self.0.get(field).map(payload).unwrap_or_default()
    }

    pub(super) fn failure(self, field: &str) -> Read<Failure> {
        let fields =
            self.0.get(field).and_then(Value::as_object).ok_or_else(|| format!("{field} is missing"))?;
        let inner = Row(fields);
        Ok(Failure {
            kind: inner.owned("kind")?,
            message: inner.owned("message")?,
            non_retryable: fields.get("non_retryable").and_then(Value::as_bool).unwrap_or_default(),
            details: inner.payload("details"),
            cause: if inner.is_null("cause") { None } else { Some(Box::new(inner.failure("cause")?)) },
        })
    }

    fn unconsumed(self) -> Vec<u64> {
        self.seqs("unconsumed")
    }

    fn seqs(self, field: &str) -> Vec<u64> {
        let all = self.0.get(field).and_then(Value::as_array);
        all.into_iter().flatten().filter_map(Value::as_u64).collect()
    }
}

/// JSON stands for itself; other bytes are an object with their encoding and their hex digits.
fn payload(value: &Value) -> Payload {
    if value.is_null() {
        return Payload::default();
    }
    let bytes = value.as_object().filter(|fields| fields.len() == 2).and_then(|fields| {
        let encoding = fields.get("encoding")?.as_str()?.to_owned();
        Some(Payload { encoding, data: unhex(fields.get("hex")?.as_str()?)?.into() })
    });
    bytes.unwrap_or_else(|| Payload::json(value.to_string()))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(pair).collect())?
}
