//! Round trips of everything that travels, and what bad messages get.

mod between;
mod queued;
mod succession;

use everstep_core::{
    Actor, BlockKind, Blocked, CommandId, CommitCommand, ConflictPolicy, DetachReason, DoubtPolicy, Duration,
    Event, EventBody, Failure, OpId, Payload, Resolution, RetryPolicy, ReusePolicy, RunId, RunStarted,
    RunStatus, SessionId, StepResolved, TimerKey, TimerKind, Timestamp, TraceContext, UpdateOutcome,
    WorkerCommit, WorkerInfo, limits,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;
use uuid::Uuid;

use super::*;
use crate::{api, history};

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,12}"
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn duration() -> impl Strategy<Value = Duration> {
    (0..=limits::DURATION_MAX.as_micros()).prop_map(Duration::from_micros)
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    (-62_135_596_800_000_000..=Timestamp::MAX.as_micros()).prop_map(Timestamp::from_micros)
}

fn payload() -> impl Strategy<Value = Payload> {
    (text(), vec(any::<u8>(), 0..24)).prop_map(|(encoding, data)| Payload { encoding, data: data.into() })
}

fn failure() -> impl Strategy<Value = Failure> {
    let link = (text(), text(), any::<bool>(), payload());
    vec(link, 1..=FAILURE_DEPTH_MAX).prop_map(|links| {
        let chain = links.into_iter().map(|(kind, message, non_retryable, details)| Failure {
            kind,
            message,
            non_retryable,
            details,
            cause: None,
        });
        chain.reduce(|cause, outer| Failure { cause: Some(Box::new(cause)), ..outer }).unwrap()
    })
}

fn policy() -> impl Strategy<Value = RetryPolicy> {
    (duration(), 1.0..100.0f64, duration(), any::<u32>(), vec(text(), 0..3)).prop_map(|(a, b, c, d, e)| {
        RetryPolicy {
            initial_interval: a,
            backoff_coefficient: b,
            maximum_interval: c,
            maximum_attempts: d,
            non_retryable_kinds: e,
        }
    })
}

fn blocked() -> impl Strategy<Value = Blocked> {
    let kind =
        prop_oneof![Just(BlockKind::Nondeterminism), Just(BlockKind::ForeignWake), Just(BlockKind::Poison)];
    (kind, any::<u64>(), text(), text(), text(), text(), text()).prop_map(
        |(kind, at_seq, expected, produced, source, hint, build_id)| Blocked {
            kind,
            at_seq,
            expected,
            produced,
            source,
            hint,
            build_id,
        },
    )
}

fn started() -> impl Strategy<Value = RunStarted> {
    let names = (text(), text(), text(), text(), text());
    (names, payload(), option::of(duration()), any::<u64>(), text(), text()).prop_map(
        |(
            (namespace, workflow_id, workflow_type, task_queue, request_id),
            input,
            run_timeout,
            seed,
            a,
            b,
        )| RunStarted {
            namespace,
            workflow_id,
            workflow_type,
            task_queue,
            input,
            request_id,
            run_timeout,
            seed,
            trace: TraceContext { traceparent: a, tracestate: b },
            ..RunStarted::default()
        },
    )
}

fn doubt_policy() -> impl Strategy<Value = Option<DoubtPolicy>> {
    option::of(prop::sample::select(DoubtPolicy::ALL.to_vec()))
}

fn resolved() -> impl Strategy<Value = EventBody> {
    let resolution = prop_oneof![
        Just(Resolution::Retry),
        payload().prop_map(Resolution::Completed),
        failure().prop_map(Resolution::Failed),
    ];
    let op = any::<u32>().prop_map(OpId);
    (op, text(), any::<u32>(), resolution, text()).prop_map(|(step, name, attempt, resolution, note)| {
        EventBody::StepResolved(Box::new(StepResolved { step, name, attempt, resolution, note }))
    })
}

fn of_the_run() -> impl Strategy<Value = EventBody> {
    let detach = prop_oneof![
        Just(DetachReason::Parked),
        text().prop_map(DetachReason::Released),
        Just(DetachReason::Lost)
    ];
    prop_oneof![
        started().prop_map(|s| EventBody::RunStarted(Box::new(s))),
        (uuid(), text(), text(), any::<bool>()).prop_map(|(id, identity, build_id, pinned)| {
            EventBody::WorkerAttached {
                session: SessionId::from_uuid(id),
                worker: WorkerInfo { identity, build_id },
                pinned,
            }
        }),
        detach.prop_map(|reason| EventBody::WorkerDetached { reason }),
        blocked().prop_map(|b| EventBody::RunBlocked(Box::new(b))),
        text().prop_map(|build_id| EventBody::RunUnblocked { build_id }),
        (payload(), vec(any::<u64>(), 0..4))
            .prop_map(|(result, unconsumed)| EventBody::RunCompleted { result, unconsumed }),
        (failure(), vec(any::<u64>(), 0..4)).prop_map(|(failure, unconsumed)| EventBody::RunFailed {
            failure,
            unconsumed,
            retried_by: None
        }),
        text().prop_map(|details| EventBody::RunCanceled { details }),
        text().prop_map(|reason| EventBody::RunTerminated { reason }),
        Just(EventBody::RunTimedOut { retried_by: None }),
        succession::followed(),
        succession::ends(),
        Just(EventBody::Ignored { kind: "Unknown".to_owned() }),
    ]
}

fn body() -> impl Strategy<Value = EventBody> {
    let op = || any::<u32>().prop_map(OpId);
    let timer_kind = prop_oneof![
        Just(TimerKind::Timer),
        Just(TimerKind::Retry),
        Just(TimerKind::RunTimeout),
        Just(TimerKind::Start)
    ];
    let within = prop_oneof![
        (op(), text(), any::<u32>(), doubt_policy()).prop_map(|(step, name, attempt, in_doubt)| {
            EventBody::StepStarted { step, name, attempt, in_doubt }
        }),
        (op(), text(), any::<u32>()).prop_map(|(step, name, attempt)| EventBody::StepInDoubt {
            step,
            name,
            attempt
        }),
        resolved(),
        (op(), text(), any::<u32>(), duration(), payload()).prop_map(
            |(step, name, attempt, elapsed, result)| {
                EventBody::StepCompleted { step, name, attempt, elapsed, result }
            }
        ),
        (op(), text(), any::<u32>(), duration(), failure(), option::of(timestamp())).prop_map(
            |(step, name, attempt, elapsed, failure, retry_at)| EventBody::StepFailed {
                step,
                name,
                attempt,
                elapsed,
                failure,
                retry_at,
            }
        ),
        (op(), timestamp()).prop_map(|(timer, fire_at)| EventBody::TimerStarted { timer, fire_at }),
        (timer_kind, any::<u32>())
            .prop_map(|(kind, id)| EventBody::TimerFired { timer: TimerKey { kind, id } }),
        op().prop_map(|timer| EventBody::TimerCanceled { timer }),
        (text(), text(), payload()).prop_map(|(name, signal_id, input)| EventBody::SignalReceived {
            name,
            signal_id,
            input
        }),
        text().prop_map(|reason| EventBody::CancelRequested { reason }),
        (text(), any::<u32>())
            .prop_map(|(change_id, version)| EventBody::VersionMarked { change_id, version }),
        (text(), text(), payload()).prop_map(|(update_id, name, input)| EventBody::UpdateAccepted {
            update_id,
            name,
            input
        }),
        (any::<u64>(), text(), update_outcome()).prop_map(|(accepted, update_id, outcome)| {
            EventBody::UpdateCompleted { accepted, update_id, outcome }
        }),
    ];
    prop_oneof![4 => of_the_run(), 4 => within, 1 => queued::bodies(), 1 => between::bodies()]
}

fn update_outcome() -> impl Strategy<Value = UpdateOutcome> {
    prop_oneof![payload().prop_map(UpdateOutcome::Completed), failure().prop_map(UpdateOutcome::Failed)]
}

fn event() -> impl Strategy<Value = Event> {
    let actor = prop_oneof![
        text().prop_map(Actor::Client),
        text().prop_map(Actor::Worker),
        Just(Actor::System),
        uuid().prop_map(|id| Actor::Run(RunId::from_uuid(id)))
    ];
    (any::<u64>(), timestamp(), any::<u32>(), uuid(), actor, body()).prop_map(
        |(seq, at, epoch, id, actor, body)| Event {
            seq,
            at,
            epoch,
            command_id: CommandId::from_uuid(id),
            actor,
            body,
        },
    )
}

fn command() -> impl Strategy<Value = CommitCommand> {
    let op = || any::<u32>().prop_map(OpId);
    prop_oneof![
        (op(), text(), any::<u32>(), doubt_policy()).prop_map(|(step, name, attempt, in_doubt)| {
            CommitCommand::StartStep { step, name, attempt, in_doubt }
        }),
        (op(), text(), any::<u32>(), duration(), payload()).prop_map(
            |(step, name, attempt, elapsed, result)| {
                CommitCommand::CompleteStep { step, name, attempt, elapsed, result }
            }
        ),
        (op(), text(), any::<u32>(), duration(), failure(), proptest::option::of(policy())).prop_map(
            |(step, name, attempt, elapsed, failure, policy)| CommitCommand::FailStep {
                step,
                name,
                attempt,
                elapsed,
                failure,
                policy,
            }
        ),
        (op(), duration()).prop_map(|(timer, delay)| CommitCommand::StartTimer { timer, delay }),
        op().prop_map(|timer| CommitCommand::CancelTimer { timer }),
        queued::commands(),
        between::commands(),
        (text(), any::<u32>())
            .prop_map(|(change_id, version)| CommitCommand::MarkVersion { change_id, version }),
        (any::<u64>(), update_outcome())
            .prop_map(|(accepted, outcome)| CommitCommand::CompleteUpdate { accepted, outcome }),
        (payload(), vec(any::<u64>(), 0..4))
            .prop_map(|(result, unconsumed)| CommitCommand::CompleteRun { result, unconsumed }),
        (failure(), vec(any::<u64>(), 0..4))
            .prop_map(|(failure, unconsumed)| CommitCommand::FailRun { failure, unconsumed }),
        succession::continues(),
        text().prop_map(|details| CommitCommand::CancelRun { details }),
        Just(CommitCommand::Park),
        text().prop_map(|reason| CommitCommand::Release { reason }),
        blocked().prop_map(|b| CommitCommand::Block(Box::new(b))),
    ]
}

/// Through the bytes, not only through the structs.
fn resent<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

proptest! {
    #[test]
    fn events_survive_the_wire(event in event()) {
        let decoded = decode_event(resent(&encode_event(&event, false))).unwrap();
        prop_assert_eq!(decoded, DecodedEvent { event, payload_omitted: false });
    }

    #[test]
    fn an_omitted_payload_is_all_that_is_missing(event in event()) {
        let sent = encode_event(&event, true);
        let decoded = decode_event(resent(&sent)).unwrap();
        prop_assert_eq!(decoded.payload_omitted, event.body.payload().is_some());
        if let Some(left) = decoded.event.body.payload() {
            prop_assert!(left.is_none());
        }
        prop_assert_eq!(decoded.event.body.kind(), event.body.kind());
        prop_assert_eq!(encode_event(&decoded.event, true), sent);
    }

    #[test]
    fn commits_survive_the_wire(
        run in uuid(), epoch in any::<u32>(), number in 1u32.., seen in any::<u64>(), commands in vec(command(), 0..5),
        ahead in option::of(timestamp()),
    ) {
        let run = RunId::from_uuid(run);
        let commit = WorkerCommit { epoch, number, seen, commands, ahead };
        prop_assert_eq!(decode_commit(resent(&encode_commit(run, &commit))).unwrap(), (run, commit));
    }

    #[test]
    fn no_bytes_make_an_event_panic(bytes in vec(any::<u8>(), 0..64)) {
        if let Ok(wire) = history::Event::decode(bytes.as_slice()) {
            let _ = decode_event(wire);
        }
        if let Ok(wire) = api::Commit::decode(bytes.as_slice()) {
            let _ = decode_commit(wire);
        }
    }

    #[test]
    fn any_duration_is_read_or_refused(seconds in any::<i64>(), nanos in any::<i32>()) {
        let wire = prost_types::Duration { seconds, nanos };
        match decode_duration("delay", wire) {
            Ok(duration) => {
                prop_assert!(duration <= limits::DURATION_MAX);
                prop_assert!(duration.as_micros() * 1_000 >= seconds as u64 * 1_000_000_000 + nanos as u64);
            }
            Err(e) => prop_assert_eq!(e.kind, InvalidKind::Duration),
        }
    }
}

#[test]
fn durations_out_of_range_are_refused() {
    let year = 366 * 24 * 3_600;
    for (seconds, nanos) in
        [(-1, 0), (0, -1), (1, 2_000_000_000), (100 * year, 1), (10_000 * year, 0), (i64::MAX, 0)]
    {
        let refused = decode_duration("wait", prost_types::Duration { seconds, nanos }).unwrap_err();
        assert_eq!(
            (refused.kind, refused.field.as_str()),
            (InvalidKind::Duration, "wait"),
            "{seconds} s {nanos} ns"
        );
    }
    let longest = prost_types::Duration { seconds: 100 * year, nanos: 0 };
    assert_eq!(decode_duration("wait", longest), Ok(limits::DURATION_MAX));
    let least = prost_types::Duration { seconds: 0, nanos: 1 };
    assert_eq!(decode_duration("wait", least), Ok(Duration::from_micros(1)), "rounded up, never early");
}

#[test]
fn instants_out_of_range_are_refused() {
    for (seconds, nanos) in
        [(-62_135_596_801, 0), (253_402_300_800, 0), (0, -1), (0, 1_000_000_000), (i64::MIN, 0)]
    {
        let refused = decode_timestamp("at", prost_types::Timestamp { seconds, nanos }).unwrap_err();
        assert_eq!(refused.kind, InvalidKind::Timestamp, "{seconds} s {nanos} ns");
    }
    let last = prost_types::Timestamp { seconds: 253_402_300_799, nanos: 999_999_999 };
    assert_eq!(decode_timestamp("at", last), Ok(Timestamp::MAX));
}

#[test]
fn an_unknown_kind_is_an_error_unless_marked() {
    let known = Event {
        seq: 7,
        at: Timestamp::from_micros(1),
        epoch: 1,
        command_id: CommandId::from_uuid(Uuid::from_u128(5)),
        actor: Actor::System,
        body: EventBody::RunTimedOut { retried_by: None },
    };
    let mut wire = encode_event(&known, false);
    wire.attributes = None;
    let refused = decode_event(wire.clone()).unwrap_err();
    assert!(refused.problem.contains("event 7"), "{refused}");
    wire.may_ignore = true;
    assert!(matches!(decode_event(wire).unwrap().event.body, EventBody::Ignored { .. }));
}

#[test]
fn a_bad_field_is_named_from_the_root() {
    let commit = |command| api::Commit {
        run_id: Uuid::from_u128(1).to_string(),
        number: 1,
        commands: vec![api::Command { command: Some(api::command::Command::Park(api::Park {})) }, command],
        ..api::Commit::default()
    };
    let field = |command| decode_commit(commit(command)).unwrap_err().field;
    assert_eq!(field(api::Command { command: None }), "commands[1].command");
    let fail = api::FailStep {
        failure: Some(history::Failure::default()),
        retry_policy: Some(api::RetryPolicy::default()),
        ..api::FailStep::default()
    };
    let fail = api::Command { command: Some(api::command::Command::FailStep(fail)) };
    assert_eq!(field(fail), "commands[1].fail_step.retry_policy.initial_interval");
    let block = api::Command { command: Some(api::command::Command::Block(history::RunBlocked::default())) };
    assert_eq!(field(block), "commands[1].block.kind");
    let bad_id = api::Commit { run_id: "../x".to_owned(), ..commit(api::Command { command: None }) };
    assert_eq!(decode_commit(bad_id).unwrap_err().kind, InvalidKind::Id);
}

#[test]
fn a_failure_is_as_deep_as_it_may_be() {
    let nest = |depth: usize| {
        (1..depth).fold(history::Failure::default(), |cause, _| history::Failure {
            cause: Some(Box::new(cause)),
            ..history::Failure::default()
        })
    };
    assert!(decode_failure("failure", Some(nest(FAILURE_DEPTH_MAX))).is_ok());
    let refused = decode_failure("failure", Some(nest(FAILURE_DEPTH_MAX + 1))).unwrap_err();
    assert_eq!(refused.kind, InvalidKind::Limit);
    assert_eq!(decode_failure("failure", None).unwrap_err().kind, InvalidKind::Missing);
}

#[test]
fn enums_are_read_or_refused() {
    for status in RunStatus::ALL {
        assert_eq!(decode_run_status("status", encode_run_status(status).into()), Ok(status));
    }
    for wire in [0, 999, -1] {
        assert_eq!(decode_run_status("statuses[0]", wire).unwrap_err().kind, InvalidKind::UnknownEnum);
    }
    assert_eq!(reuse_policy("reuse_policy", 0), Ok(ReusePolicy::Allow));
    assert_eq!(reuse_policy("reuse_policy", 999).unwrap_err().kind, InvalidKind::UnknownEnum);
    assert_eq!(conflict_policy("conflict_policy", 0), Ok(ConflictPolicy::Fail));
    assert_eq!(conflict_policy("conflict_policy", 999).unwrap_err().kind, InvalidKind::UnknownEnum);
}
