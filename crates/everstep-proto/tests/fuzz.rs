//! Foreign bytes against every parser of this crate: an answer or a typed error, never a panic, and what
//! was understood is understood again.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bolero::check;
use everstep_core::{
    Actor, BlockKind, Blocked, CommandId, CommitCommand, DetachReason, DoubtPolicy, Duration, Event,
    EventBody, Failure, OpId, Payload, QueuedOptions, Resolution, RetryPolicy, Run, RunId, RunStarted,
    SessionId, StepResolved, StepScheduled, TimerKey, Timestamp, TraceContext, UpdateOutcome, WorkerCommit,
    WorkerInfo, limits,
};
use everstep_fuzz::bytes;
use everstep_proto::row::EventRow;
use everstep_proto::wire::{
    conflict_policy, decode_blocked, decode_commit, decode_duration, decode_event, decode_failure,
    decode_payload, decode_retry_policy, decode_run_status, decode_timestamp, decode_worker_info,
    encode_commit, encode_duration, encode_event, encode_failure, encode_payload, encode_retry_policy,
    encode_timestamp, parse_id, reuse_policy,
};
use everstep_proto::{InvalidMessage, api, history, internal, trace};
use prost::Message;
use tonic::metadata::{MetadataMap, MetadataValue};
use uuid::Uuid;

const ITERATIONS: usize = 20_000;
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// One of `samples`, bent as the input says.
fn bent(samples: &[Vec<u8>], input: &[u8]) -> Vec<u8> {
    let Some((choice, edits)) = input.split_first() else { return Vec::new() };
    everstep_fuzz::bent(&samples[usize::from(*choice) % samples.len()], edits)
}

fn failure() -> Failure {
    let cause = Failure { details: Payload::json("[1]"), ..Failure::new("Io", "reset") };
    Failure { cause: Some(Box::new(cause)), ..Failure::new("CardDeclined", "no\u{0}money").non_retryable() }
}

fn started() -> RunStarted {
    RunStarted {
        namespace: "default".to_owned(),
        workflow_id: "order-1".to_owned(),
        workflow_type: "order".to_owned(),
        task_queue: "default".to_owned(),
        input: Payload::json("1"),
        request_id: "r".to_owned(),
        run_timeout: Some(Duration::from_secs(60)),
        seed: u64::MAX,
        trace: TraceContext { traceparent: PARENT.to_owned(), tracestate: "a=b".to_owned() },
        ..RunStarted::default()
    }
}

fn blocked() -> Blocked {
    Blocked {
        kind: BlockKind::Nondeterminism,
        at_seq: 3,
        expected: "step".to_owned(),
        produced: "timer".to_owned(),
        source: "a.rs:1".to_owned(),
        hint: "h".to_owned(),
        build_id: "b".to_owned(),
    }
}

fn resolved(resolution: Resolution) -> EventBody {
    let (step, name, note) = (OpId(1), "charge".to_owned(), "n".to_owned());
    EventBody::StepResolved(Box::new(StepResolved { step, name, attempt: 1, resolution, note }))
}

fn scheduled(step: u32) -> Box<StepScheduled> {
    let (name, input) = ("q".to_owned(), Payload::json("4"));
    let options = QueuedOptions {
        task_queue: "video".to_owned(),
        heartbeat: Some(Duration::from_secs(1)),
        in_doubt: Some(DoubtPolicy::AskHuman),
        ..QueuedOptions::default()
    };
    Box::new(StepScheduled { step: OpId(step), name, input, options })
}

/// One of each kind, in an order that a history may have.
fn bodies() -> Vec<EventBody> {
    let (step, name, attempt, elapsed) = (OpId(1), "charge".to_owned(), 2, Duration::from_millis(3));
    let session = SessionId::from_uuid(Uuid::from_u128(9));
    let worker = WorkerInfo { identity: "w".to_owned(), build_id: "b".to_owned() };
    let at = Timestamp::from_micros(1_700_000_000_000_001);
    let (retry_at, input) = (Some(at), Payload::json("2"));
    let released = DetachReason::Released("panic".to_owned());
    let signal_id = "s".to_owned();
    vec![
        EventBody::RunStarted(Box::new(started())),
        EventBody::WorkerAttached { session, worker, pinned: false },
        EventBody::StepStarted { step, name: name.clone(), attempt: 1, in_doubt: None },
        EventBody::StepStarted { step, name: name.clone(), attempt: 1, in_doubt: Some(DoubtPolicy::Verify) },
        EventBody::StepInDoubt { step, name: name.clone(), attempt: 1 },
        resolved(Resolution::Completed(Payload::json("{}"))),
        resolved(Resolution::Failed(failure())),
        resolved(Resolution::Retry),
        EventBody::StepFailed { step, name: name.clone(), attempt: 1, elapsed, failure: failure(), retry_at },
        EventBody::StepCompleted { step, name, attempt, elapsed, result: Payload::json("{}") },
        EventBody::StepScheduled(scheduled(4)),
        EventBody::StepCancelRequested { step: OpId(4) },
        EventBody::StepInDoubt { step: OpId(4), name: "q".to_owned(), attempt: 1 },
        EventBody::TimerStarted { timer: OpId(2), fire_at: at },
        EventBody::TimerFired { timer: TimerKey::timer(OpId(2)) },
        EventBody::TimerCanceled { timer: OpId(3) },
        EventBody::SignalReceived { name: "paid".to_owned(), signal_id, input },
        EventBody::CancelRequested { reason: "r".to_owned() },
        EventBody::VersionMarked { change_id: "fee".to_owned(), version: 1 },
        EventBody::UpdateAccepted {
            update_id: "u".to_owned(),
            name: "add".to_owned(),
            input: Payload::json("1"),
        },
        EventBody::UpdateCompleted {
            accepted: 3,
            update_id: "u".to_owned(),
            outcome: UpdateOutcome::Completed(Payload::json("2")),
        },
        EventBody::UpdateCompleted {
            accepted: 3,
            update_id: "u".to_owned(),
            outcome: UpdateOutcome::Failed(failure()),
        },
        EventBody::RunBlocked(Box::new(blocked())),
        EventBody::RunUnblocked { build_id: "c".to_owned() },
        EventBody::WorkerDetached { reason: released },
        EventBody::RunCompleted { result: Payload::json("3"), unconsumed: vec![9] },
        EventBody::RunFailed { failure: failure(), unconsumed: vec![1, u64::MAX], retried_by: None },
        EventBody::RunCanceled { details: "d".to_owned() },
        EventBody::RunTerminated { reason: "r".to_owned() },
        EventBody::RunTimedOut { retried_by: None },
        EventBody::RunTimedOut { retried_by: Some(run()) },
        EventBody::RunContinued { successor: run(), carried: vec![2, u64::MAX] },
    ]
}

fn run() -> RunId {
    RunId::from_uuid(Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001))
}

fn events() -> Vec<Event> {
    let event = |(index, body)| Event {
        seq: index as u64 + 1,
        at: Timestamp::from_micros(1_700_000_000_000_001),
        epoch: 1,
        command_id: CommandId::of_worker(run(), 1, 1),
        actor: Actor::Worker("w".to_owned()),
        body,
    };
    bodies().into_iter().enumerate().map(event).collect()
}

fn rows() -> Vec<EventRow> {
    events().iter().map(|event| EventRow::encode(run(), event)).collect()
}

#[test]
fn events_of_the_wire() {
    let samples: Vec<_> = events().iter().map(|e| encode_event(e, false).encode_to_vec()).collect();
    check!().with_iterations(ITERATIONS).with_generator(bytes(64)).for_each(|input: &Vec<u8>| {
        let Ok(wire) = history::Event::decode(&bent(&samples, input)[..]) else { return };
        let Ok(decoded) = decode_event(wire) else { return };
        let event = decoded.event;
        let again = decode_event(encode_event(&event, false)).map(|d| d.event);
        assert_eq!(again.as_ref().ok(), Some(&event), "{again:?}");
        // An event that may be ignored has nothing to be stored.
        if !matches!(event.body, EventBody::Ignored { .. }) {
            assert_eq!(EventRow::encode(run(), &event).decode().ok(), Some(event));
        }
    });
}

/// A row bent field by field: the first two bytes choose samples, each eight more make an edit.
fn bent_row(samples: &[EventRow], input: &[u8]) -> EventRow {
    let (choices, edits) = input.split_at(input.len().min(2));
    let sample = |choice: Option<&u8>| &samples[choice.copied().map_or(0, usize::from) % samples.len()];
    let mut row = sample(choices.first()).clone();
    let donor = sample(choices.get(1));
    for part in edits.chunks(8) {
        let Some((field, value)) = part.split_first() else { continue };
        let text = || String::from_utf8_lossy(value).into_owned();
        let mut number = [0; 8];
        number.iter_mut().zip(value).for_each(|(n, v)| *n = *v);
        let (long, [a, b, c, d, ..]) = (i64::from_le_bytes(number), number);
        let int = i32::from_le_bytes([a, b, c, d]);
        match field % 16 {
            0 => row.kind.clone_from(&donor.kind),
            1 => row.attrs.clone_from(&donor.attrs),
            2 => row.attrs = Some(text()),
            3 => row.step = None,
            4 => row.step_id = None,
            5 => row.attempt = None,
            6 => row.actor = text(),
            7 => row.encoding = Some(text()),
            8 => row.payload = Some(value.to_vec().into()),
            9 => row.seq = long,
            10 => row.at_micros = long,
            11 => row.epoch = int,
            12 => row.kind = text(),
            13 => row.attempt = Some(int),
            14 => row.step_id = Some(int),
            _ => {
                let attrs = row.attrs.take().unwrap_or_default().into_bytes();
                row.attrs = Some(String::from_utf8_lossy(&bent(&[attrs], part)).into_owned());
            }
        }
    }
    row
}

#[test]
fn rows_of_the_log() {
    let samples = rows();
    check!().with_iterations(ITERATIONS).with_generator(bytes(34)).for_each(|input: &Vec<u8>| {
        let Ok(event) = bent_row(&samples, input).decode() else { return };
        if !matches!(event.body, EventBody::Ignored { .. }) {
            assert_eq!(EventRow::encode(run(), &event).decode().ok(), Some(event));
        }
    });
}

#[test]
fn histories_that_nobody_wrote() {
    let samples = rows();
    check!().with_iterations(ITERATIONS).with_generator(bytes(120)).for_each(|input: &Vec<u8>| {
        let Ok(first) = samples[0].clone().decode() else { return };
        let Ok(mut state) = Run::begin(run(), &first) else { return };
        for (index, part) in input.chunks(10).enumerate() {
            // In order, so that it is the body which decides.
            let seq = i64::try_from(index).unwrap_or_default() + 2;
            let row = EventRow { seq, ..bent_row(&samples, part) };
            let Ok(event) = row.decode() else { continue };
            if state.apply(&event).is_err() {
                return;
            }
            assert_eq!(state.seq(), event.seq);
            let _ = (state.row(), state.projection(), state.needs_worker());
        }
    });
}

fn commands() -> Vec<CommitCommand> {
    let (step, name, attempt, elapsed) = (OpId(1), "charge".to_owned(), 1, Duration::from_millis(3));
    let kinds = vec!["CardDeclined".to_owned()];
    let policy = RetryPolicy { non_retryable_kinds: kinds, ..RetryPolicy::default() };
    let result = Payload::json("1");
    vec![
        CommitCommand::StartStep { step, name: name.clone(), attempt, in_doubt: None },
        CommitCommand::StartStep { step, name: name.clone(), attempt, in_doubt: Some(DoubtPolicy::Fail) },
        CommitCommand::CompleteStep { step, name: name.clone(), attempt, elapsed, result: result.clone() },
        CommitCommand::FailStep { step, name, attempt, elapsed, failure: failure(), policy: Some(policy) },
        CommitCommand::StartTimer { timer: OpId(2), delay: Duration::from_secs(1) },
        CommitCommand::CancelTimer { timer: OpId(2) },
        CommitCommand::ScheduleStep(scheduled(4)),
        CommitCommand::CancelStep { step: OpId(4) },
        CommitCommand::MarkVersion { change_id: "fee".to_owned(), version: 1 },
        CommitCommand::CompleteUpdate { accepted: 3, outcome: UpdateOutcome::Completed(Payload::json("2")) },
        CommitCommand::CompleteUpdate { accepted: 3, outcome: UpdateOutcome::Failed(failure()) },
        CommitCommand::CompleteRun { result, unconsumed: vec![2] },
        CommitCommand::FailRun { failure: failure(), unconsumed: Vec::new() },
        CommitCommand::CancelRun { details: "d".to_owned() },
        CommitCommand::Park,
        CommitCommand::Release { reason: "r".to_owned() },
        CommitCommand::Block(Box::new(blocked())),
    ]
}

/// What concerns other runs, and what a run says about itself, as the wire has it.
fn commands_of_the_wire() -> Vec<Vec<u8>> {
    use api::command::Command;
    use history::external_requested::{Action, Target};
    use history::search_attribute::Value;
    let (input, op_id) = (Some(encode_payload(&Payload::json("1"))), 1);
    let attribute = |value| history::SearchAttribute { value: Some(value) };
    let keywords = history::KeywordList { values: vec!["a".to_owned(), "b".to_owned()] };
    let values = [Value::Keyword("k".to_owned()), Value::Keywords(keywords), Value::Float(1.5)];
    let attributes = values.into_iter().enumerate().map(|(n, value)| (format!("a{n}"), attribute(value)));
    let changes =
        attributes.clone().map(|(name, value)| (name, history::SearchAttributeChange { value: Some(value) }));
    let entry = history::MemoChange { value: input.clone() };
    let child = history::ChildScheduled {
        child_id: 1,
        workflow_type: "ship".to_owned(),
        input: input.clone(),
        memo: [("note".to_owned(), history::Payload::default())].into(),
        search_attributes: attributes.collect(),
        ..history::ChildScheduled::default()
    };
    let signal = history::ExternalSignal { name: "go".to_owned(), input: input.clone() };
    let (target, action) = (Some(Target::WorkflowId("w".to_owned())), Some(Action::Signal(signal)));
    let upsert = api::Upsert {
        op_id,
        search_attributes: changes.collect(),
        memo: [("note".to_owned(), entry)].into(),
    };
    let next = api::ContinueAsNew { input, unconsumed: vec![2, 3], ..api::ContinueAsNew::default() };
    let all = [
        Command::StartChild(child),
        Command::RequestExternal(history::ExternalRequested { op_id, target, action }),
        Command::Upsert(upsert),
        Command::ContinueAsNew(next),
    ];
    let commit = |command| api::Commit {
        run_id: run().to_string(),
        epoch: 1,
        number: 1,
        seen_seq: 2,
        commands: vec![api::Command { command: Some(command) }],
        ahead_at: None,
    };
    all.map(|command| commit(command).encode_to_vec()).into()
}

#[test]
fn commits_of_workers() {
    let mut samples: Vec<_> = commands()
        .into_iter()
        .map(|command| WorkerCommit { epoch: 1, number: 1, seen: 2, commands: vec![command], ahead: None })
        .map(|commit| encode_commit(run(), &commit).encode_to_vec())
        .collect();
    samples.extend(commands_of_the_wire());
    let read = |bytes: &Vec<u8>| api::Commit::decode(&bytes[..]).ok().map(decode_commit);
    assert!(samples.iter().all(|sample| matches!(read(sample), Some(Ok(_)))), "the samples are commits");
    check!().with_iterations(ITERATIONS).with_generator(bytes(64)).for_each(|input: &Vec<u8>| {
        let Ok(wire) = api::Commit::decode(&bent(&samples, input)[..]) else { return };
        let Ok((of_run, commit)) = decode_commit(wire) else { return };
        assert_eq!(decode_commit(encode_commit(of_run, &commit)).ok(), Some((of_run, commit)));
    });
}

/// Decodes `bytes` as a message; what was read is written and read again as the same bytes.
fn read<M: Message + Default + std::fmt::Debug>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    let written = message.encode_to_vec();
    let again = M::decode(&written[..]).ok();
    assert_eq!(again.map(|m| m.encode_to_vec()), Some(written), "{message:?}");
    Some(message)
}

#[test]
fn every_message_of_the_wire() {
    check!().with_iterations(ITERATIONS).with_generator(bytes(128)).for_each(|input: &Vec<u8>| {
        read::<api::StartRunRequest>(input);
        read::<api::GetRunRequest>(input);
        read::<api::ListRunsRequest>(input);
        read::<api::GetHistoryRequest>(input);
        read::<api::SignalRunRequest>(input);
        read::<api::CancelRunRequest>(input);
        read::<api::TerminateRunRequest>(input);
        read::<api::GetResultRequest>(input);
        read::<api::QueryRunRequest>(input);
        read::<api::UpdateRunRequest>(input);
        read::<api::GetUpdateRequest>(input);
        read::<api::SignalWithStartRunRequest>(input);
        read::<api::UpdateWithStartRunRequest>(input);
        read::<api::ResolveStepRequest>(input);
        read::<api::FailStepRequest>(input);
        read::<api::SetQueueLimitsRequest>(input);
        read::<api::UpdateNamespaceRequest>(input);
        read::<api::AddSearchAttributesRequest>(input);
        read::<api::AllowBuildRequest>(input);
        read::<api::CheckHistoriesRequest>(input);
        read::<api::CreateNamespaceRequest>(input);
        read::<api::GetNamespaceRequest>(input);
        read::<api::ListNamespacesRequest>(input);
        read::<api::ConnectRequest>(input);
        read::<api::ConnectResponse>(input);
        read::<api::GetHistoryResponse>(input);
        read::<api::GetResultResponse>(input);
        read::<api::ListRunsResponse>(input);
        read::<internal::TaskHint>(input);
        read::<internal::Notice>(input);
    });
}

#[test]
fn values_of_the_wire() {
    check!().with_iterations(ITERATIONS).with_generator(bytes(128)).for_each(|input: &Vec<u8>| {
        if let Some(wire) = read::<history::Payload>(input) {
            let payload = decode_payload(Some(wire));
            assert_eq!(decode_payload(Some(encode_payload(&payload))), payload);
        }
        if let Some(Ok(failure)) = read::<history::Failure>(input).map(|f| decode_failure("f", Some(f))) {
            assert_eq!(decode_failure("f", Some(encode_failure(&failure))).ok(), Some(failure));
        }
        if let Some(Ok(policy)) = read::<api::RetryPolicy>(input).map(|p| decode_retry_policy("p", Some(p))) {
            assert_eq!(decode_retry_policy("p", Some(encode_retry_policy(&policy))).ok(), Some(policy));
        }
        if let Some(Ok(blocked)) = read::<history::RunBlocked>(input).map(decode_blocked) {
            assert_eq!(decode_blocked(everstep_proto::wire::encode_blocked(&blocked)).ok(), Some(blocked));
        }
        let _ = decode_worker_info(read::<history::WorkerInfo>(input));
    });
}

#[test]
fn times_and_numbers_of_the_wire() {
    check!().with_iterations(ITERATIONS).with_type().cloned().for_each(|(seconds, nanos): (i64, i32)| {
        for seconds in [seconds, seconds >> 24] {
            if let Ok(duration) = decode_duration("d", prost_types::Duration { seconds, nanos }) {
                assert!(duration <= limits::DURATION_MAX);
                assert_eq!(decode_duration("d", encode_duration(duration)).ok(), Some(duration));
            }
            if let Ok(at) = decode_timestamp("t", prost_types::Timestamp { seconds, nanos }) {
                assert_eq!(decode_timestamp("t", encode_timestamp(at)).ok(), Some(at));
            }
        }
        // Any instant and length can be written, even one that cannot be read back.
        let _ = encode_timestamp(Timestamp::from_micros(seconds));
        let _ = encode_duration(Duration::from_micros(seconds.cast_unsigned()));
        let _ = (decode_run_status("s", nanos), reuse_policy("r", nanos), conflict_policy("c", nanos));
    });
}

#[test]
fn ids_of_the_wire() {
    let samples = [run().to_string().into_bytes()];
    check!().with_iterations(ITERATIONS).with_generator(bytes(48)).for_each(|input: &Vec<u8>| {
        let text = String::from_utf8_lossy(&bent(&samples, input)).into_owned();
        let id: Result<RunId, InvalidMessage> = parse_id("run_id", &text);
        if let Ok(id) = id {
            assert_eq!(parse_id::<RunId>("run_id", &id.to_string()).ok(), Some(id));
        }
    });
}

#[test]
fn trace_headers() {
    let samples = [PARENT.as_bytes().to_vec(), b"vendor=1,other=2".to_vec()];
    check!().with_iterations(ITERATIONS).with_generator(bytes(64)).for_each(|input: &Vec<u8>| {
        let mut metadata = MetadataMap::new();
        let (one, two) = input.split_at(input.len() / 2);
        for (name, bytes) in [(trace::TRACEPARENT, one), (trace::TRACESTATE, two)] {
            if let Ok(value) = MetadataValue::try_from(bent(&samples, bytes)) {
                metadata.insert(name, value);
            }
        }
        let context = trace::extract(&metadata);
        let _ = trace::remote(&context);
        let mut sent = MetadataMap::new();
        trace::inject(&context, &mut sent);
        assert_eq!(trace::extract(&sent), context);
    });
}

/// The engine of these tests sees a panic.
#[test]
fn a_parser_that_panics_is_found() {
    let found = catch_unwind(AssertUnwindSafe(|| {
        check!().with_iterations(ITERATIONS).with_generator(bytes(8)).for_each(|input: &Vec<u8>| {
            assert!(input.first() != Some(&42), "42");
        });
    }));
    assert!(found.is_err());
}
