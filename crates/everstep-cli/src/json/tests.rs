//! What is printed can be read back by the test kit, kind by kind.

use everstep::testing::History;
use everstep_core::{
    Actor, BlockKind, Blocked, CommandId, DetachReason, DoubtPolicy, Duration, Event, EventBody, Failure,
    OpId, Payload, Resolution, RunId, RunStarted, SessionId, StepResolved, TimerKey, Timestamp, TraceContext,
    WorkerInfo,
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
    }))
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
        EventBody::WorkerAttached { session, worker },
        EventBody::WorkerDetached { reason: DetachReason::Parked },
        EventBody::WorkerDetached { reason: DetachReason::Lost },
        EventBody::WorkerDetached { reason: DetachReason::Released(text.clone()) },
        EventBody::SignalReceived { name: "go".into(), signal_id: "s".into(), input: Payload::default() },
        EventBody::CancelRequested { reason: text.clone() },
        EventBody::RunUnblocked { build_id: "b2".into() },
        EventBody::RunCompleted {
            result: Payload { encoding: "x".into(), data: vec![1].into() },
            unconsumed: vec![3],
        },
        EventBody::RunFailed { failure: failure(), unconsumed: Vec::new() },
        EventBody::RunCanceled { details: text.clone() },
        EventBody::RunTerminated { reason: text },
        EventBody::RunTimedOut,
    ];
    let kinds = [BlockKind::Nondeterminism, BlockKind::ForeignWake, BlockKind::Poison];
    bodies.extend(kinds.map(|kind| EventBody::RunBlocked(Box::new(blocked(kind)))));
    bodies
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
    for body in about_steps().into_iter().chain(about_the_run()) {
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
