//! Every event survives the row, and the row's text does not drift.

mod between;
mod queued;
mod succession;

use bytes::Bytes;
use everstep_core::{
    Actor, BlockKind, Blocked, CommandId, DetachReason, DoubtPolicy, Duration, Event, EventBody, Failure,
    OpId, Payload, Resolution, RunId, RunStarted, SessionId, StepResolved, TimerKey, TimerKind, Timestamp,
    TraceContext, UpdateOutcome, WorkerInfo,
};
use proptest::prelude::*;
use uuid::Uuid;

use super::{EventRow, RowError};

fn run() -> RunId {
    RunId::from_uuid(Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001))
}

fn event(seq: u64, actor: Actor, body: EventBody) -> Event {
    Event {
        seq,
        at: Timestamp::from_micros(1_700_000_000_000_001),
        epoch: 2,
        command_id: CommandId::from_uuid(Uuid::from_u128(7)),
        actor,
        body,
    }
}

/// Typed columns hold text that was checked at the edge: no NUL.
fn column() -> impl Strategy<Value = String> {
    "[^\u{0}]{0,12}"
}

/// Text inside attrs may hold anything.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), Just("a\u{0}b\"\\".to_owned())]
}

fn payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        Just(Payload::default()),
        Just(Payload { encoding: String::new(), data: Bytes::from_static(b"x\0y") }),
        (column(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(encoding, data)| Payload { encoding, data: data.into() }),
    ]
}

fn failure() -> impl Strategy<Value = Failure> {
    let one =
        (text(), text(), any::<bool>(), payload()).prop_map(|(kind, message, non_retryable, details)| {
            Failure { kind, message, non_retryable, details, cause: None }
        });
    prop::collection::vec(one, 1..5).prop_map(|chain| {
        chain
            .into_iter()
            .rev()
            .reduce(|cause, f| Failure { cause: Some(Box::new(cause)), ..f })
            .unwrap_or_default()
    })
}

fn duration() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_micros)
}

fn instant() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(Timestamp::from_micros)
}

fn op() -> impl Strategy<Value = OpId> {
    any::<u32>().prop_map(OpId)
}

fn timer_key() -> impl Strategy<Value = TimerKey> {
    let kind = prop_oneof![
        Just(TimerKind::Timer),
        Just(TimerKind::Retry),
        Just(TimerKind::RunTimeout),
        Just(TimerKind::Start)
    ];
    (kind, any::<u32>()).prop_map(|(kind, id)| TimerKey { kind, id })
}

fn started() -> impl Strategy<Value = EventBody> {
    (
        (text(), text(), text(), text(), text()),
        payload(),
        prop::option::of(duration()),
        any::<u64>(),
        (text(), text()),
    )
        .prop_map(
            |(
                (namespace, workflow_id, workflow_type, task_queue, request_id),
                input,
                run_timeout,
                seed,
                t,
            )| {
                EventBody::RunStarted(Box::new(RunStarted {
                    namespace,
                    workflow_id,
                    workflow_type,
                    task_queue,
                    input,
                    request_id,
                    run_timeout,
                    seed,
                    trace: TraceContext { traceparent: t.0, tracestate: t.1 },
                    ..RunStarted::default()
                }))
            },
        )
}

fn blocked() -> impl Strategy<Value = EventBody> {
    let kind =
        prop_oneof![Just(BlockKind::Nondeterminism), Just(BlockKind::ForeignWake), Just(BlockKind::Poison)];
    (kind, any::<u64>(), (text(), text(), text(), text(), text())).prop_map(
        |(kind, at_seq, (expected, produced, source, hint, build_id))| {
            EventBody::RunBlocked(Box::new(Blocked {
                kind,
                at_seq,
                expected,
                produced,
                source,
                hint,
                build_id,
            }))
        },
    )
}

fn resolved() -> impl Strategy<Value = EventBody> {
    let resolution = prop_oneof![
        Just(Resolution::Retry),
        payload().prop_map(Resolution::Completed),
        failure().prop_map(Resolution::Failed),
    ];
    (op(), column(), any::<u32>(), resolution, text()).prop_map(|(step, name, attempt, resolution, note)| {
        EventBody::StepResolved(Box::new(StepResolved { step, name, attempt, resolution, note }))
    })
}

fn step_body() -> impl Strategy<Value = EventBody> {
    let policy = prop::option::of(prop::sample::select(DoubtPolicy::ALL.to_vec()));
    prop_oneof![
        (op(), column(), any::<u32>()).prop_map(|(step, name, attempt)| EventBody::StepInDoubt {
            step,
            name,
            attempt
        }),
        resolved(),
        (op(), column(), any::<u32>(), policy).prop_map(|(step, name, attempt, in_doubt)| {
            EventBody::StepStarted { step, name, attempt, in_doubt }
        }),
        (op(), column(), any::<u32>(), duration(), payload()).prop_map(
            |(step, name, attempt, elapsed, result)| EventBody::StepCompleted {
                step,
                name,
                attempt,
                elapsed,
                result
            }
        ),
        (op(), column(), any::<u32>(), duration(), failure(), prop::option::of(instant())).prop_map(
            |(step, name, attempt, elapsed, failure, retry_at)| EventBody::StepFailed {
                step,
                name,
                attempt,
                elapsed,
                failure,
                retry_at
            }
        ),
        (op(), instant()).prop_map(|(timer, fire_at)| EventBody::TimerStarted { timer, fire_at }),
        timer_key().prop_map(|timer| EventBody::TimerFired { timer }),
        op().prop_map(|timer| EventBody::TimerCanceled { timer }),
        (column(), any::<u32>())
            .prop_map(|(change_id, version)| EventBody::VersionMarked { change_id, version }),
        (text(), column(), payload()).prop_map(|(update_id, name, input)| EventBody::UpdateAccepted {
            update_id,
            name,
            input
        }),
        (any::<u64>(), text(), payload()).prop_map(|(accepted, update_id, result)| {
            EventBody::UpdateCompleted { accepted, update_id, outcome: UpdateOutcome::Completed(result) }
        }),
        (any::<u64>(), text(), failure()).prop_map(|(accepted, update_id, failure)| {
            EventBody::UpdateCompleted { accepted, update_id, outcome: UpdateOutcome::Failed(failure) }
        }),
        (column(), text(), payload()).prop_map(|(name, signal_id, input)| EventBody::SignalReceived {
            name,
            signal_id,
            input
        }),
    ]
}

fn run_body() -> impl Strategy<Value = EventBody> {
    let seqs = || prop::collection::vec(any::<u64>(), 0..4);
    let reason = prop_oneof![
        Just(DetachReason::Parked),
        Just(DetachReason::Lost),
        text().prop_map(DetachReason::Released)
    ];
    prop_oneof![
        started(),
        blocked(),
        (any::<u128>(), text(), text(), any::<bool>()).prop_map(|(session, identity, build_id, pinned)| {
            EventBody::WorkerAttached {
                session: SessionId::from_uuid(Uuid::from_u128(session)),
                worker: WorkerInfo { identity, build_id },
                pinned,
            }
        }),
        reason.prop_map(|reason| EventBody::WorkerDetached { reason }),
        text().prop_map(|reason| EventBody::CancelRequested { reason }),
        text().prop_map(|build_id| EventBody::RunUnblocked { build_id }),
        (payload(), seqs()).prop_map(|(result, unconsumed)| EventBody::RunCompleted { result, unconsumed }),
        (failure(), seqs()).prop_map(|(failure, unconsumed)| EventBody::RunFailed {
            failure,
            unconsumed,
            retried_by: None
        }),
        text().prop_map(|details| EventBody::RunCanceled { details }),
        text().prop_map(|reason| EventBody::RunTerminated { reason }),
        Just(EventBody::RunTimedOut { retried_by: None }),
        succession::followed(),
        succession::ends(),
        "[a-z]{1,10}".prop_map(|kind| EventBody::Ignored { kind }),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let actor = prop_oneof![
        Just(Actor::System),
        column().prop_map(Actor::Client),
        column().prop_map(Actor::Worker),
        any::<u128>().prop_map(|id| Actor::Run(RunId::from_uuid(Uuid::from_u128(id))))
    ];
    let body = prop_oneof![4 => step_body(), 4 => run_body(), 1 => queued::bodies(), 1 => between::bodies()];
    (any::<u64>(), instant(), any::<u32>(), any::<u128>(), actor, body).prop_map(
        |(seq, at, epoch, command, actor, body)| Event {
            seq,
            at,
            epoch,
            command_id: CommandId::from_uuid(Uuid::from_u128(command)),
            actor,
            body,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_encoded_is_decoded(event in any_event()) {
        let row = EventRow::encode(run(), &event);
        prop_assert_eq!(row.run_id, run().uuid());
        prop_assert_eq!(row.kind.as_str(), event.body.kind());
        // Postgres refuses NUL in text.
        let texts = [Some(&row.kind), row.step.as_ref(), Some(&row.actor), row.attrs.as_ref(), row.encoding.as_ref()];
        prop_assert!(texts.into_iter().flatten().all(|t| !t.contains('\0')));
        prop_assert_eq!(row.decode().map_err(|e| TestCaseError::fail(e.to_string()))?, event);
    }
}

/// The row as one line of text: what must never drift.
fn line(event: &Event) -> String {
    let row = EventRow::encode(run(), event);
    format!(
        "{} {} {} {} {:?} {:?} {:?} {} {} | {} | {:?} {:?}",
        row.seq,
        row.epoch,
        row.command_id,
        row.kind,
        row.step,
        row.step_id,
        row.attempt,
        row.at_micros,
        row.actor,
        row.attrs.as_deref().unwrap_or("-"),
        row.encoding,
        row.payload,
    )
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of rows")]
fn rows_keep_their_text() {
    let id = "00000000-0000-0000-0000-000000000007";
    let at = 1_700_000_000_000_001_i64;
    let completed = EventBody::StepCompleted {
        step: OpId(3),
        name: "charge".to_owned(),
        attempt: 1,
        elapsed: Duration::from_micros(123),
        result: Payload::json("{\"ok\":true}"),
    };
    assert_eq!(
        line(&event(9, Actor::Worker("w-1".to_owned()), completed)),
        format!(
            "9 2 {id} StepCompleted Some(\"charge\") Some(3) Some(1) {at} worker:w-1 | \
             {{\"elapsed_us\":123}} | Some(\"json\") Some(b\"{{\\\"ok\\\":true}}\")"
        )
    );
    let cause = Failure {
        kind: "Io".to_owned(),
        message: "reset".to_owned(),
        details: Payload { encoding: "raw".to_owned(), data: Bytes::from_static(&[0xff, 0x01]) },
        ..Failure::default()
    };
    let failed = EventBody::StepFailed {
        step: OpId(3),
        name: "charge".to_owned(),
        attempt: 2,
        elapsed: Duration::from_micros(5),
        failure: Failure {
            cause: Some(Box::new(cause)),
            ..Failure::new("CardDeclined", "no").non_retryable()
        },
        retry_at: Some(Timestamp::from_micros(77)),
    };
    assert_eq!(
        line(&event(10, Actor::Worker("w-1".to_owned()), failed)),
        format!(
            "10 2 {id} StepFailed Some(\"charge\") Some(3) Some(2) {at} worker:w-1 | \
             {{\"elapsed_us\":5,\"failure\":{{\"kind\":\"CardDeclined\",\"message\":\"no\",\"non_retryable\":true,\
             \"causes\":[{{\"kind\":\"Io\",\"message\":\"reset\",\"details\":{{\"encoding\":\"raw\",\"hex\":\"ff01\"}}}}]}},\
             \"retry_at_us\":77}} | None None"
        )
    );
    let step =
        |in_doubt| EventBody::StepStarted { step: OpId(3), name: "charge".to_owned(), attempt: 1, in_doubt };
    for (policy, attrs) in [(None, "-"), (Some(DoubtPolicy::AskHuman), "{\"in_doubt\":\"ask_human\"}")] {
        assert_eq!(
            line(&event(6, Actor::Worker("w-1".to_owned()), step(policy))),
            format!(
                "6 2 {id} StepStarted Some(\"charge\") Some(3) Some(1) {at} worker:w-1 | {attrs} | None None"
            )
        );
    }
    let in_doubt = EventBody::StepInDoubt { step: OpId(3), name: "charge".to_owned(), attempt: 1 };
    assert_eq!(
        line(&event(7, Actor::System, in_doubt)),
        format!("7 2 {id} StepInDoubt Some(\"charge\") Some(3) Some(1) {at} system | - | None None")
    );
    let resolved = |resolution, note: &str| {
        EventBody::StepResolved(Box::new(StepResolved {
            step: OpId(3),
            name: "charge".to_owned(),
            attempt: 1,
            resolution,
            note: note.to_owned(),
        }))
    };
    for (body, rest) in [
        (resolved(Resolution::Retry, ""), "{\"resolution\":\"retry\"} | None None"),
        (
            resolved(Resolution::Completed(Payload::json("5")), "bank says so"),
            "{\"resolution\":\"completed\",\"note\":\"bank says so\"} | Some(\"json\") Some(b\"5\")",
        ),
        (
            resolved(Resolution::Failed(Failure::new("Lost", "no")), ""),
            "{\"resolution\":\"failed\",\"failure\":{\"kind\":\"Lost\",\"message\":\"no\"}} | None None",
        ),
    ] {
        assert_eq!(
            line(&event(8, Actor::Client("ann".to_owned()), body)),
            format!("8 2 {id} StepResolved Some(\"charge\") Some(3) Some(1) {at} client:ann | {rest}")
        );
    }
    let update_id = "u-1".to_owned();
    let accepted = EventBody::UpdateAccepted { update_id, name: "add".to_owned(), input: Payload::json("1") };
    let completed =
        |outcome| EventBody::UpdateCompleted { accepted: 8, update_id: "u-1".to_owned(), outcome };
    for (body, rest) in [
        (
            accepted,
            format!(
                "UpdateAccepted Some(\"add\") None None {at} client:ann | {{\"update_id\":\"u-1\"}} | Some(\"json\") Some(b\"1\")"
            ),
        ),
        (
            completed(UpdateOutcome::Completed(Payload::json("2"))),
            format!(
                "UpdateCompleted None None None {at} client:ann | {{\"update_id\":\"u-1\",\"accepted\":8}} | Some(\"json\") Some(b\"2\")"
            ),
        ),
        (
            completed(UpdateOutcome::Failed(Failure::new("Lost", "no"))),
            format!(
                "UpdateCompleted None None None {at} client:ann | {{\"update_id\":\"u-1\",\"accepted\":8,\"failure\":{{\"kind\":\"Lost\",\"message\":\"no\"}}}} | None None"
            ),
        ),
    ] {
        assert_eq!(line(&event(9, Actor::Client("ann".to_owned()), body)), format!("9 2 {id} {rest}"));
    }
    let marked = EventBody::VersionMarked { change_id: "fee".to_owned(), version: 1 };
    assert_eq!(
        line(&event(5, Actor::Worker("w-1".to_owned()), marked)),
        format!(
            "5 2 {id} VersionMarked Some(\"fee\") None None {at} worker:w-1 | {{\"version\":1}} | None None"
        )
    );
    assert_eq!(
        line(&event(4, Actor::System, EventBody::TimerFired { timer: TimerKey::RUN_TIMEOUT })),
        format!(
            "4 2 {id} TimerFired None Some(0) None {at} system | {{\"timer_kind\":\"run_timeout\"}} | None None"
        )
    );
    let detached = EventBody::WorkerDetached { reason: DetachReason::Parked };
    assert_eq!(
        line(&event(5, Actor::Client("ci".to_owned()), detached)),
        format!(
            "5 2 {id} WorkerDetached None None None {at} client:ci | {{\"reason\":\"parked\"}} | None None"
        )
    );
    let started = EventBody::RunStarted(Box::new(RunStarted {
        namespace: "default".to_owned(),
        workflow_id: "order-1".to_owned(),
        workflow_type: "order".to_owned(),
        task_queue: "main".to_owned(),
        input: Payload::default(),
        request_id: "r1".to_owned(),
        run_timeout: Some(Duration::from_secs(1)),
        seed: u64::MAX,
        trace: TraceContext::default(),
        ..RunStarted::default()
    }));
    assert_eq!(
        line(&event(1, Actor::Client("ci".to_owned()), started)),
        format!(
            "1 2 {id} RunStarted None None None {at} client:ci | {{\"namespace\":\"default\",\"workflow_id\":\"order-1\",\
             \"workflow_type\":\"order\",\"task_queue\":\"main\",\"request_id\":\"r1\",\"run_timeout_us\":1000000,\
             \"seed\":18446744073709551615}} | None None"
        )
    );
    let attached = |pinned| EventBody::WorkerAttached {
        session: SessionId::from_uuid(Uuid::from_u128(7)),
        worker: WorkerInfo { identity: "w".to_owned(), build_id: "b".to_owned() },
        pinned,
    };
    for (pinned, more) in [(false, ""), (true, ",\"pinned\":true")] {
        let text = line(&event(2, Actor::System, attached(pinned)));
        let attrs = format!("{{\"session\":\"{id}\",\"identity\":\"w\",\"build_id\":\"b\"{more}}}");
        assert!(text.contains(&format!("| {attrs} |")), "{text}");
    }
}

#[test]
fn a_deep_chain_of_causes_comes_back() {
    let deep = (0..500).fold(Failure::new("Root", ""), |cause, i| Failure {
        cause: Some(Box::new(cause)),
        ..Failure::new(format!("K{i}"), "")
    });
    let before =
        event(2, Actor::System, EventBody::RunFailed { failure: deep, unconsumed: vec![], retried_by: None });
    assert_eq!(EventRow::encode(run(), &before).decode().unwrap(), before);
}

#[test]
fn a_newer_kind_is_refused_unless_marked() {
    let mut row =
        EventRow::encode(run(), &event(3, Actor::System, EventBody::RunTimedOut { retried_by: None }));
    row.kind = "RunPaused".to_owned();
    row.attrs = Some("{\"why\":[1],\"may_ignore\":true}".to_owned());
    let ignored = row.clone().decode().unwrap();
    assert_eq!(ignored.body, EventBody::Ignored { kind: "RunPaused".to_owned() });
    for attrs in [None, Some("{\"may_ignore\":false}".to_owned()), Some("nonsense".to_owned())] {
        let result = EventRow { attrs, ..row.clone() }.decode();
        assert!(matches!(result, Err(RowError::UnknownKind { seq: 3, .. })), "{result:?}");
    }
}

#[test]
fn a_damaged_row_names_its_column() {
    let body = EventBody::StepStarted { step: OpId(1), name: "a".to_owned(), attempt: 1, in_doubt: None };
    let row = EventRow::encode(run(), &event(2, Actor::System, body));
    let check = |row: EventRow, expected: &str| assert_eq!(row.decode().unwrap_err().to_string(), expected);
    check(EventRow { step_id: None, ..row.clone() }, "event 2 (StepStarted) has no step_id");
    check(EventRow { step: None, ..row.clone() }, "event 2 (StepStarted) has no step");
    check(EventRow { attempt: None, ..row.clone() }, "event 2 (StepStarted) has no attempt");
    check(
        EventRow { actor: "nobody".to_owned(), ..row.clone() },
        "event 2 (StepStarted) has actor \"nobody\"",
    );
    check(
        EventRow { kind: "StepCompleted".to_owned(), ..row },
        "event 2 (StepCompleted) has unreadable attrs",
    );
}
