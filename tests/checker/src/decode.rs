//! The export's JSON, back as the core's types.
//!
//! What the export leaves out is the run's seed, the trace state and the exact bytes of JSON payloads
//! (their text is written compactly again). Nothing of that reaches a projection.

mod child;

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Context, bail};
use everstep_core::{
    Actor, BlockKind, Blocked, CommandId, DetachReason, Doubt, DoubtPolicy, Duration, Event, EventBody,
    Failure, Notes, NotesChange, OpId, Payload, QueueKey, Resolution, RunId, RunRow, RunStarted, RunStatus,
    SessionId, StepResolved, StepScheduled, StepTask, Timer, TimerKey, TimerKind, Timestamp, TraceContext,
    UpdateOutcome, WorkerInfo,
};
use serde_json::Value;

/// One JSON object whose fields are asked for by name.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn get(self, name: &str) -> anyhow::Result<&'a Value> {
        self.0.get(name).with_context(|| format!("no field '{name}'"))
    }

    fn text(self, name: &str) -> anyhow::Result<String> {
        let value = self.get(name)?;
        value.as_str().map(ToOwned::to_owned).with_context(|| format!("'{name}' is {value}, no text"))
    }

    fn number<T: TryFrom<u64>>(self, name: &str) -> anyhow::Result<T> {
        let value = self.get(name)?;
        let number = value.as_u64().and_then(|n| T::try_from(n).ok());
        number.with_context(|| format!("'{name}' is {value}, no number that fits"))
    }

    fn parsed<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
        self,
        name: &str,
    ) -> anyhow::Result<T> {
        self.text(name)?.parse().with_context(|| format!("'{name}'"))
    }

    fn flag(self, name: &str) -> anyhow::Result<bool> {
        self.get(name)?.as_bool().with_context(|| format!("'{name}' is neither true nor false"))
    }

    fn time(self, name: &str) -> anyhow::Result<Timestamp> {
        time(&self.text(name)?)
    }

    fn maybe_time(self, name: &str) -> anyhow::Result<Option<Timestamp>> {
        if self.get(name)?.is_null() { Ok(None) } else { self.time(name).map(Some) }
    }

    fn millis(self, name: &str) -> anyhow::Result<Duration> {
        let value = self.get(name)?;
        let millis = value.as_f64().with_context(|| format!("'{name}' is {value}, no number"))?;
        Ok(Duration::from_micros((millis * 1_000.0).round() as u64))
    }

    fn op(self, name: &str) -> anyhow::Result<OpId> {
        Ok(OpId(self.number(name)?))
    }

    fn seqs(self, name: &str) -> anyhow::Result<Vec<u64>> {
        let list = self.get(name)?.as_array().with_context(|| format!("'{name}' is no list"))?;
        list.iter().map(|n| n.as_u64().with_context(|| format!("'{name}' holds {n}"))).collect()
    }
}

/// An instant as the export writes it: RFC 3339 in UTC with microseconds.
pub(crate) fn time(text: &str) -> anyhow::Result<Timestamp> {
    parse_time(text).with_context(|| format!("'{text}' is no instant in UTC with microseconds"))
}

fn parse_time(text: &str) -> Option<Timestamp> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (clock, fraction) = clock.split_once('.')?;
    let mut clock = clock.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    let micros: i64 = if fraction.len() == 6 { fraction.parse().ok()? } else { return None };
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = ((days_from_civil(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Some(Timestamp::from_micros(seconds * 1_000_000 + micros))
}

/// Days from 1970-01-01 in the Gregorian calendar (Howard Hinnant's algorithm).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// A payload's bytes: compact JSON text, or what the hex says.
fn payload(value: &Value) -> Payload {
    if value.is_null() {
        return Payload::default();
    }
    if let Some(object) = value.as_object()
        && object.len() == 2
        && let (Some(Value::String(encoding)), Some(Value::String(hex))) =
            (object.get("encoding"), object.get("hex"))
        && let Some(data) = unhex(hex)
    {
        return Payload { encoding: encoding.clone(), data: data.into() };
    }
    Payload::json(value.to_string().into_bytes())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let digits = digits.filter(|d| d.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

fn failure(value: &Value) -> anyhow::Result<Failure> {
    let f = Fields(value);
    Ok(Failure {
        kind: f.text("kind")?,
        message: f.text("message")?,
        non_retryable: f.flag("non_retryable")?,
        details: value.get("details").map(payload).unwrap_or_default(),
        cause: value.get("cause").map(failure).transpose()?.map(Box::new),
    })
}

fn actor(text: &str) -> anyhow::Result<Actor> {
    Ok(match text.split_once(':') {
        None if text == "system" => Actor::System,
        Some(("client", who)) => Actor::Client(who.to_owned()),
        Some(("worker", who)) => Actor::Worker(who.to_owned()),
        Some(("run", id)) => Actor::Run(id.parse()?),
        _ => bail!("'{text}' is no actor"),
    })
}

/// A row of the table `events`.
pub(crate) fn event(row: &Value) -> anyhow::Result<Event> {
    let f = Fields(row);
    let kind = f.text("kind")?;
    Ok(Event {
        seq: f.number("seq")?,
        at: f.time("at")?,
        epoch: f.number("epoch")?,
        command_id: f.parsed::<CommandId>("command_id")?,
        actor: actor(&f.text("actor")?)?,
        body: body(&kind, f).with_context(|| format!("event of kind {kind}"))?,
    })
}

fn body(kind: &str, f: Fields<'_>) -> anyhow::Result<EventBody> {
    Ok(match kind {
        "RunStarted" => EventBody::RunStarted(Box::new(run_started(f)?)),
        "WorkerAttached" => EventBody::WorkerAttached {
            session: f.parsed::<SessionId>("session_id")?,
            worker: WorkerInfo { identity: f.text("worker")?, build_id: f.text("build_id")? },
            pinned: f.flag("pinned").unwrap_or_default(),
        },
        "WorkerDetached" => EventBody::WorkerDetached { reason: detached(f)? },
        "StepScheduled" => EventBody::StepScheduled(Box::new(StepScheduled {
            step: f.op("step_id")?,
            name: f.text("step")?,
            input: payload(f.get("input")?),
            options: serde_json::from_value(f.get("options")?.clone())?,
        })),
        "StepCancelRequested" => EventBody::StepCancelRequested { step: f.op("step_id")? },
        "StepStarted" | "StepInDoubt" | "StepResolved" | "StepCompleted" | "StepFailed" => step(kind, f)?,
        "TimerStarted" => EventBody::TimerStarted { timer: f.op("timer_id")?, fire_at: f.time("fire_at")? },
        "TimerFired" => EventBody::TimerFired { timer: timer_key(&f.text("timer")?, f.number("timer_id")?)? },
        "TimerCanceled" => EventBody::TimerCanceled { timer: f.op("timer_id")? },
        "SignalReceived" => EventBody::SignalReceived {
            name: f.text("signal")?,
            signal_id: f.text("signal_id")?,
            input: payload(f.get("input")?),
        },
        "CancelRequested" => EventBody::CancelRequested { reason: f.text("reason")? },
        "UpdateAccepted" => EventBody::UpdateAccepted {
            update_id: f.text("update_id")?,
            name: f.text("update")?,
            input: payload(f.get("input")?),
        },
        "UpdateCompleted" => EventBody::UpdateCompleted {
            accepted: f.number("accepted_seq")?,
            update_id: f.text("update_id")?,
            outcome: update_outcome(f)?,
        },
        "AttributesUpserted" => {
            let entry = |value: &Value| (!value.is_null()).then(|| payload(value));
            let notes = NotesChange { attributes: typed(f, "search_attributes")?, memo: memo(f, entry) };
            EventBody::AttributesUpserted { op: OpId(f.number("op_id")?), notes: Box::new(notes) }
        }
        "VersionMarked" => {
            EventBody::VersionMarked { change_id: f.text("change_id")?, version: f.number("version")? }
        }
        "RunBlocked" => EventBody::RunBlocked(Box::new(blocked(f)?)),
        "RunUnblocked" => EventBody::RunUnblocked { build_id: f.text("build_id")? },
        "RunCompleted" => {
            EventBody::RunCompleted { result: payload(f.get("result")?), unconsumed: f.seqs("unconsumed")? }
        }
        "RunFailed" => {
            let retried_by = link(f, "retried_by_run_id")?;
            let failure = failure(f.get("failure")?)?;
            EventBody::RunFailed { failure, unconsumed: f.seqs("unconsumed")?, retried_by }
        }
        "RunCanceled" => EventBody::RunCanceled { details: f.text("details")? },
        "RunTerminated" => EventBody::RunTerminated { reason: f.text("reason")? },
        "RunContinued" => {
            EventBody::RunContinued { successor: f.parsed("successor_run_id")?, carried: f.seqs("carried")? }
        }
        "RunTimedOut" => EventBody::RunTimedOut { retried_by: link(f, "retried_by_run_id")? },
        "ChildScheduled" | "ChildStarted" | "ChildClosed" | "ExternalRequested" | "ExternalResolved" => {
            child::body(kind, f)?
        }
        other => EventBody::Ignored { kind: other.to_owned() },
    })
}

fn run_started(f: Fields<'_>) -> anyhow::Result<RunStarted> {
    let timeout = f.get("run_timeout_ms")?;
    Ok(RunStarted {
        namespace: f.text("namespace")?,
        workflow_id: f.text("workflow_id")?,
        workflow_type: f.text("workflow_type")?,
        task_queue: f.text("task_queue")?,
        input: payload(f.get("input")?),
        request_id: f.text("request_id")?,
        run_timeout: if timeout.is_null() { None } else { Some(f.millis("run_timeout_ms")?) },
        seed: 0,
        trace: TraceContext { traceparent: f.text("traceparent")?, tracestate: String::new() },
        start_at: f.0.get("start_at").map(|_| f.time("start_at")).transpose()?,
        retry: f.0.get("retry").map(|v| serde_json::from_value(v.clone())).transpose()?,
        origin: f.0.get("origin").map(|v| serde_json::from_value(v.clone())).transpose()?.unwrap_or_default(),
        step_retry: f.0.get("step_retry").map(|v| serde_json::from_value(v.clone())).transpose()?,
        notes: notes(f)?,
    })
}

/// Attributes and memo of a start.
fn notes(f: Fields<'_>) -> anyhow::Result<Notes> {
    Ok(Notes { attributes: typed(f, "search_attributes")?, memo: memo(f, payload) })
}

/// A map that is left out when it is empty.
fn typed<T: serde::de::DeserializeOwned + Default>(f: Fields<'_>, name: &str) -> anyhow::Result<T> {
    Ok(f.0.get(name).map(|v| serde_json::from_value(v.clone())).transpose()?.unwrap_or_default())
}

fn memo<T>(f: Fields<'_>, entry: impl Fn(&Value) -> T) -> BTreeMap<String, T> {
    let entries = f.0.get("memo").and_then(Value::as_object).into_iter().flatten();
    entries.map(|(name, value)| (name.clone(), entry(value))).collect()
}

/// A run that may not be named.
fn link(f: Fields<'_>, name: &str) -> anyhow::Result<Option<RunId>> {
    f.0.get(name).map(|_| f.parsed(name)).transpose()
}

fn detached(f: Fields<'_>) -> anyhow::Result<DetachReason> {
    Ok(match f.text("reason")?.as_str() {
        "parked" => DetachReason::Parked,
        "released" => DetachReason::Released(f.text("message")?),
        "lost" => DetachReason::Lost,
        other => bail!("'{other}' is no reason to detach"),
    })
}

fn update_outcome(f: Fields<'_>) -> anyhow::Result<UpdateOutcome> {
    Ok(match f.0.get("failure") {
        Some(said) => UpdateOutcome::Failed(failure(said)?),
        None => UpdateOutcome::Completed(payload(f.get("result")?)),
    })
}

fn step(kind: &str, f: Fields<'_>) -> anyhow::Result<EventBody> {
    let (step, name, attempt) = (f.op("step_id")?, f.text("step")?, f.number("attempt")?);
    Ok(match kind {
        "StepStarted" => EventBody::StepStarted { step, name, attempt, in_doubt: doubt_policy(f)? },
        "StepInDoubt" => EventBody::StepInDoubt { step, name, attempt },
        "StepResolved" => {
            let (resolution, note) = (resolution(f)?, f.text("note")?);
            EventBody::StepResolved(Box::new(StepResolved { step, name, attempt, resolution, note }))
        }
        "StepCompleted" => EventBody::StepCompleted {
            step,
            name,
            attempt,
            elapsed: f.millis("elapsed_ms")?,
            result: payload(f.get("result")?),
        },
        _ => EventBody::StepFailed {
            step,
            name,
            attempt,
            elapsed: f.millis("elapsed_ms")?,
            failure: failure(f.get("failure")?)?,
            retry_at: f.maybe_time("retry_at")?,
        },
    })
}

/// Absent for a step that is not guarded.
fn doubt_policy(f: Fields<'_>) -> anyhow::Result<Option<DoubtPolicy>> {
    let Some(Value::String(word)) = f.0.get("in_doubt") else { return Ok(None) };
    Ok(Some(DoubtPolicy::parse(word).with_context(|| format!("'{word}' is no policy"))?))
}

fn resolution(f: Fields<'_>) -> anyhow::Result<Resolution> {
    Ok(match f.text("resolution")?.as_str() {
        "completed" => Resolution::Completed(payload(f.get("result")?)),
        "failed" => Resolution::Failed(failure(f.get("failure")?)?),
        "retry" => Resolution::Retry,
        other => bail!("'{other}' is no resolution"),
    })
}

fn timer_key(kind: &str, id: u32) -> anyhow::Result<TimerKey> {
    let kind = TimerKind::parse(kind).with_context(|| format!("'{kind}' is no kind of timer"))?;
    Ok(TimerKey { kind, id })
}

fn blocked(f: Fields<'_>) -> anyhow::Result<Blocked> {
    let kind = match f.text("block")?.as_str() {
        "Nondeterminism" => BlockKind::Nondeterminism,
        "ForeignWake" => BlockKind::ForeignWake,
        "Poison" => BlockKind::Poison,
        other => bail!("'{other}' is no obstacle"),
    };
    Ok(Blocked {
        kind,
        at_seq: f.number("at_seq")?,
        expected: f.text("expected")?,
        produced: f.text("produced")?,
        source: f.text("source")?,
        hint: f.text("hint")?,
        build_id: f.text("build_id")?,
    })
}

/// A row of the table `runs`.
pub(crate) fn run_row(row: &Value) -> anyhow::Result<RunRow> {
    let f = Fields(row);
    let status = f.text("status")?;
    let owner = if f.get("owner")?.is_null() { None } else { Some(f.parsed::<SessionId>("owner")?) };
    Ok(RunRow {
        run_id: f.parsed::<RunId>("run_id")?,
        namespace: f.text("namespace")?,
        workflow_id: f.text("workflow_id")?,
        workflow_type: f.text("workflow_type")?,
        task_queue: f.text("task_queue")?,
        status: RunStatus::parse(&status).with_context(|| format!("'{status}' is no status"))?,
        owner,
        epoch: f.number("epoch")?,
        build_id: f.text("build_id")?,
        blocked: f.text("blocked")?,
        cancel_requested: f.flag("cancel_requested")?,
        started_at: f.time("started_at")?,
        closed_at: f.maybe_time("closed_at")?,
        last_seq: f.number("last_seq")?,
    })
}

/// A row of the table `timers`.
pub(crate) fn timer(row: &Value) -> anyhow::Result<Timer> {
    let f = Fields(row);
    Ok(Timer { key: timer_key(&f.text("kind")?, f.number("id")?)?, fire_at: f.time("fire_at")? })
}

/// A row of the table `step_tasks`.
pub(crate) fn step_task(row: &Value) -> anyhow::Result<StepTask> {
    Ok(serde_json::from_value(row.clone())?)
}

/// A row of the table `doubts`.
pub(crate) fn doubt(row: &Value) -> anyhow::Result<Doubt> {
    let f = Fields(row);
    let policy = f.text("policy")?;
    Ok(Doubt {
        step: f.op("step_id")?,
        name: f.text("step")?,
        attempt: f.number("attempt")?,
        policy: DoubtPolicy::parse(&policy).with_context(|| format!("'{policy}' is no policy"))?,
        since: f.time("since")?,
    })
}

/// A row of the table `tasks`.
pub(crate) fn task(row: &Value) -> anyhow::Result<QueueKey> {
    let f = Fields(row);
    Ok(QueueKey { namespace: f.text("namespace")?, task_queue: f.text("task_queue")? })
}

/// A row of the table `wakes`.
pub(crate) fn wake(row: &Value) -> anyhow::Result<u64> {
    Fields(row).number("seq")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn instants_are_read_to_the_microsecond() -> anyhow::Result<()> {
        assert_eq!(time("1970-01-01T00:00:00.000001Z")?.as_micros(), 1);
        assert_eq!(time("2000-02-29T23:59:59.999999Z")?.as_micros(), 951_868_799_999_999);
        assert_eq!(time("9999-12-31T23:59:59.999999Z")?, Timestamp::MAX);
        for bad in ["", "2000-02-29", "2000-13-01T00:00:00.000000Z", "2000-01-01T00:00:00.0Z"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        Ok(())
    }

    #[test]
    fn payloads_keep_their_bytes() {
        assert_eq!(payload(&json!({"b": 1, "a": [true]})), Payload::json(r#"{"b":1,"a":[true]}"#));
        assert_eq!(payload(&Value::Null), Payload::default());
        let hex = payload(&json!({"encoding": "raw", "hex": "00ff"}));
        assert_eq!((hex.encoding.as_str(), &hex.data[..]), ("raw", &[0, 255][..]));
    }

    #[test]
    fn what_does_not_decode_is_an_error_that_names_the_field() {
        let row = json!({"seq": 1, "at": "1970-01-01T00:00:00.000000Z", "epoch": 0, "kind": "TimerStarted",
            "actor": "system", "command_id": "00000000-0000-0000-0000-000000000000", "timer_id": -1});
        let error = event(&row).map_err(|e| format!("{e:#}")).err().unwrap_or_default();
        assert!(error.contains("TimerStarted") && error.contains("timer_id"), "{error}");
    }

    /// Rows as the export writes them. A field that it renames shows here or in a case of the real thing.
    #[test]
    fn every_kind_of_event_is_read() -> anyhow::Result<()> {
        let session = "01a1fdc4-34a4-7e57-b9a3-7db920d4a64b";
        let failure = json!({"kind": "K", "message": "m", "non_retryable": true, "details": [1],
            "cause": {"kind": "C", "message": "c", "non_retryable": false}});
        let at = "2026-11-21T11:00:56.796137Z";
        let step = |more: Value| merged(json!({"step_id": 1, "step": "s", "attempt": 2}), more);
        let rows = [
            (
                "RunStarted",
                json!({"workflow_id": "w", "workflow_type": "t", "namespace": "n", "task_queue": "q",
                "input": {"a": 1}, "request_id": "r", "run_timeout_ms": 1.5, "traceparent": ""}),
            ),
            ("WorkerAttached", json!({"session_id": session, "worker": "w", "build_id": "b"})),
            ("WorkerDetached", json!({"reason": "released", "message": "panicked"})),
            ("StepStarted", step(json!({}))),
            ("StepCompleted", step(json!({"elapsed_ms": 0.25, "result": "x"}))),
            ("StepFailed", step(json!({"elapsed_ms": 1.0, "failure": failure, "retry_at": at}))),
            ("TimerStarted", json!({"timer_id": 3, "fire_at": at})),
            ("TimerFired", json!({"timer": "run_timeout", "timer_id": 0})),
            ("TimerCanceled", json!({"timer_id": 3})),
            ("SignalReceived", json!({"signal": "s", "signal_id": "i", "input": null})),
            ("CancelRequested", json!({"reason": ""})),
            (
                "RunBlocked",
                json!({"block": "Poison", "at_seq": 0, "expected": "e", "produced": "p", "source": "",
                "hint": "h", "build_id": "b"}),
            ),
            (
                "AttributesUpserted",
                json!({"op_id": 2, "search_attributes": {"a": {"int": 1}, "b": null}, "memo": {"m": null}}),
            ),
            ("RunUnblocked", json!({"build_id": "b"})),
            ("RunCompleted", json!({"result": 1, "unconsumed": [2, 3]})),
            ("RunFailed", json!({"failure": failure, "unconsumed": []})),
            ("RunCanceled", json!({"details": "d"})),
            ("RunTerminated", json!({"reason": "r"})),
            ("RunTimedOut", json!({})),
            ("RunTimedOut", json!({"retried_by_run_id": session})),
            ("RunContinued", json!({"successor_run_id": session, "carried": [4]})),
        ];
        for (kind, attributes) in rows {
            let head = json!({"seq": 1, "at": at, "epoch": 0, "kind": kind, "actor": "worker:a:b",
                "command_id": session});
            let read = event(&merged(head, attributes))?;
            assert_eq!(read.actor, Actor::Worker("a:b".to_owned()));
            assert!(read.body.kind() == kind && !matches!(read.body, EventBody::Ignored { .. }), "{read:?}");
            match read.body {
                EventBody::RunStarted(s) => assert_eq!(s.run_timeout, Some(Duration::from_micros(1_500))),
                EventBody::StepCompleted { elapsed, .. } => assert_eq!(elapsed, Duration::from_micros(250)),
                EventBody::RunFailed { failure, .. } => {
                    assert_eq!(failure.details, Payload::json("[1]"));
                    assert_eq!(failure.cause.map(|c| c.kind), Some("C".to_owned()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn merged(mut object: Value, more: Value) -> Value {
        if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
            object.extend(more);
        }
        object
    }
}
