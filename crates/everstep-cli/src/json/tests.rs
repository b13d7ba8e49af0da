//! What is printed can be read back by the test kit, kind by kind.

use std::collections::BTreeMap;

use everstep::testing::History;
use everstep_core::{
    Actor, Attribute, BlockKind, Blocked, ChildClosed, ChildOutcome, ChildScheduled, CommandId, DetachReason,
    DoubtPolicy, Duration, Event, EventBody, ExternalAction, ExternalRequested, ExternalTarget, Failure,
    Finite, Notes, NotesChange, OpId, ParentClose, Payload, Resolution, ReusePolicy, RunId, RunStarted,
    RunStatus, SessionId, StepResolved, TimerKey, Timestamp, TraceContext, UpdateOutcome, WorkerInfo,
};
use serde_json::json;
use uuid::Uuid;

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn run() -> RunId {
    RunId::from_uuid(Uuid::from_u128(0x019a_0000_0000_7000_8000_0000_0000_0001))
}

fn failure() -> Failure {
    let cause =
        Failure { cause: Some(Box::new(Failure::new("Root", "why"))), ..Failure::new("Cause", "because") };
    Failure {
        details: Payload { encoding: "raw".into(), data: vec![0, 255].into() },
        cause: Some(Box::new(cause)),
        ..Failure::new("Kind", "text").non_retryable()
    }
}

fn started() -> EventBody {
    EventBody::RunStarted(Box::new(RunStarted {
        namespace: "default".into(),
        workflow_id: "w".into(),
        workflow_type: "t".into(),
        task_queue: "default".into(),
        input: Payload::json(r#"{"b":[1.5,null],"a":"x"}"#),
        request_id: "r".into(),
        run_timeout: Some(Duration::from_micros(1_234_567)),
        seed: u64::MAX - 1,
        trace: TraceContext { traceparent: TRACE.into(), tracestate: String::new() },
        step_retry: Some(everstep_core::RetryPolicy::default()),
        notes: notes(),
        ..RunStarted::default()
    }))
}

fn attributes() -> BTreeMap<String, Attribute> {
    let values = [
        Attribute::Keyword("x".into()),
        Attribute::Keywords(vec!["x".into(), "y".into()]),
        Attribute::Int(i64::MIN),
        Attribute::Float(Finite::new(0.1 + 0.2).unwrap()),
        Attribute::Bool(true),
        Attribute::Time(Timestamp::from_micros(1_700_000_000_000_001)),
    ];
    values.map(|value| (value.kind().as_str().to_owned(), value)).into()
}

fn notes() -> Notes {
    Notes { memo: [("m".to_owned(), Payload::json("{\"a\":1}"))].into(), attributes: attributes() }
}

fn upserted() -> EventBody {
    let mut set: BTreeMap<_, _> = attributes().into_iter().map(|(name, value)| (name, Some(value))).collect();
    set.insert("gone".into(), None);
    let raw = Payload { encoding: "raw".into(), data: vec![0, 255].into() };
    let memo = [("m".to_owned(), Some(raw)), ("n".to_owned(), None)].into();
    EventBody::AttributesUpserted { op: OpId(3), notes: Box::new(NotesChange { attributes: set, memo }) }
}

fn about_steps() -> Vec<EventBody> {
    let (step, name, elapsed) = (OpId(1), "charge".to_owned(), Duration::from_micros(1_501));
    let resolved = |resolution| {
        let note = "seen".to_owned();
        EventBody::StepResolved(Box::new(StepResolved {
            step,
            name: "charge".into(),
            attempt: 1,
            resolution,
            note,
        }))
    };
    let failed = |retry_at| EventBody::StepFailed {
        step,
        name: "charge".into(),
        attempt: 1,
        elapsed,
        failure: failure(),
        retry_at,
    };
    vec![
        EventBody::StepStarted { step, name: name.clone(), attempt: 1, in_doubt: None },
        EventBody::StepStarted {
            step,
            name: name.clone(),
            attempt: 1,
            in_doubt: Some(DoubtPolicy::AskHuman),
        },
        EventBody::StepInDoubt { step, name: name.clone(), attempt: 1 },
        resolved(Resolution::Retry),
        resolved(Resolution::Completed(Payload::json("7"))),
        resolved(Resolution::Failed(failure())),
        failed(Some(Timestamp::from_micros(1_700_000_000_000_001))),
        failed(None),
        EventBody::StepCompleted { step, name, attempt: 2, elapsed, result: Payload::json("\"ok\"") },
        EventBody::TimerStarted { timer: OpId(2), fire_at: Timestamp::MAX },
        EventBody::TimerFired { timer: TimerKey::retry(step) },
        EventBody::TimerFired { timer: TimerKey::timer(OpId(2)) },
        EventBody::TimerCanceled { timer: OpId(2) },
        EventBody::VersionMarked { change_id: "fee".into(), version: 1 },
        upserted(),
        EventBody::AttributesUpserted { op: OpId(3), notes: Box::default() },
    ]
}

fn about_the_run() -> Vec<EventBody> {
    let text = "as said".to_owned();
    let blocked = |kind| Blocked {
        kind,
        at_seq: 2,
        expected: "a".into(),
        produced: "b".into(),
        source: "c".into(),
        hint: "d".into(),
        build_id: "e".into(),
    };
    let session = SessionId::from_uuid(Uuid::from_u128(9));
    let worker = WorkerInfo { identity: "w1".into(), build_id: "b1".into() };
    let mut bodies = vec![
        EventBody::WorkerAttached { session, worker, pinned: false },
        EventBody::WorkerDetached { reason: DetachReason::Parked },
        EventBody::WorkerDetached { reason: DetachReason::Lost },
        EventBody::WorkerDetached { reason: DetachReason::Released(text.clone()) },
        EventBody::SignalReceived { name: "go".into(), signal_id: "s".into(), input: Payload::default() },
        EventBody::UpdateAccepted { update_id: "u".into(), name: "add".into(), input: Payload::json("1") },
        EventBody::UpdateCompleted {
            accepted: 2,
            update_id: "u".into(),
            outcome: UpdateOutcome::Completed(Payload::json("2")),
        },
        EventBody::UpdateCompleted {
            accepted: 2,
            update_id: "u".into(),
            outcome: UpdateOutcome::Failed(failure()),
        },
        EventBody::CancelRequested { reason: text.clone() },
        EventBody::RunUnblocked { build_id: "b2".into() },
        EventBody::RunCompleted {
            result: Payload { encoding: "x".into(), data: vec![1].into() },
            unconsumed: vec![3],
        },
        EventBody::RunFailed { failure: failure(), unconsumed: Vec::new(), retried_by: None },
        EventBody::RunCanceled { details: text.clone() },
        EventBody::RunTerminated { reason: text },
        EventBody::RunTimedOut { retried_by: None },
        EventBody::RunTimedOut { retried_by: Some(run()) },
        EventBody::RunFailed { failure: failure(), unconsumed: vec![2], retried_by: Some(run()) },
        EventBody::RunContinued { successor: run(), carried: vec![3] },
    ];
    let kinds = [BlockKind::Nondeterminism, BlockKind::ForeignWake, BlockKind::Poison];
    bodies.extend(kinds.map(|kind| EventBody::RunBlocked(Box::new(blocked(kind)))));
    bodies
}

fn between_runs() -> Vec<EventBody> {
    let scheduled = ChildScheduled {
        child: OpId(3),
        run_id: run(),
        workflow_type: "ship".into(),
        workflow_id: "s-1".into(),
        task_queue: "main".into(),
        input: Payload::json("1"),
        run_timeout: Some(Duration::from_millis(1_500)),
        retry: Some(everstep_core::RetryPolicy::default()),
        reuse: ReusePolicy::Reject,
        on_parent_close: ParentClose::Abandon,
        report_start: true,
        notes: notes(),
    };
    let plain = ChildScheduled {
        run_timeout: None,
        retry: None,
        report_start: false,
        notes: Notes::default(),
        ..scheduled.clone()
    };
    let closed = |outcome| {
        EventBody::ChildClosed(Box::new(ChildClosed { child: OpId(3), scheduled: 2, run_id: run(), outcome }))
    };
    let external = |target, action| {
        EventBody::ExternalRequested(Box::new(ExternalRequested { op: OpId(4), target, action }))
    };
    let ended = ChildOutcome::Ended { status: RunStatus::TimedOut, failure: failure() };
    let signal = ExternalAction::Signal { name: "go".into(), input: Payload::json("2") };
    vec![
        EventBody::ChildScheduled(Box::new(scheduled)),
        EventBody::ChildScheduled(Box::new(plain)),
        EventBody::ChildStarted { child: OpId(3), scheduled: 2 },
        closed(ChildOutcome::Completed(Payload::json("3"))),
        closed(ended),
        closed(ChildOutcome::NotStarted(failure())),
        external(ExternalTarget::Run(run()), signal.clone()),
        external(ExternalTarget::Workflow("w".into()), signal),
        external(ExternalTarget::Workflow("w".into()), ExternalAction::Cancel { reason: "r".into() }),
        EventBody::ExternalResolved { op: OpId(4), requested: 2, failure: None },
        EventBody::ExternalResolved { op: OpId(4), requested: 2, failure: Some(failure()) },
    ]
}

fn event(seq: u64, epoch: u32, actor: Actor, body: EventBody) -> Event {
    let command_id = CommandId::from_uuid(Uuid::from_u128(u128::from(seq)));
    Event { seq, at: Timestamp::from_micros(1_700_000_000_000_000), epoch, command_id, actor, body }
}

fn printed(events: &[Event]) -> String {
    let line = |e: &Event| json!({"table": "events", "run_id": run().to_string(), "row": super::event(e)});
    events.iter().map(|e| format!("{}\n", line(e))).collect()
}

#[test]
fn every_kind_of_event_is_read_back_as_it_was() {
    for body in about_steps().into_iter().chain(about_the_run()).chain(between_runs()) {
        let epoch = u32::from(matches!(body, EventBody::WorkerAttached { .. }));
        let kind = body.kind().to_owned();
        let events = [
            event(1, 0, Actor::Client("a:b".into()), started()),
            event(2, epoch, if epoch == 1 { Actor::System } else { Actor::Worker("w".into()) }, body),
        ];
        let text = printed(&events);
        let read = History::read_all(text.as_bytes()).unwrap_or_else(|e| panic!("{kind}: {e}\n{text}"));
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].events(), events, "{text}");
        assert_eq!(read[0].run_id(), run());
    }
}
