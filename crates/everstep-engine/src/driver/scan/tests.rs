//! What the scan finds, and when it is sure.

use std::sync::Arc;

use everstep_core::{
    Actor, CommandId, Event, EventBody, OpId, Payload, RunId, RunRow, RunStarted, RunStatus, Seq, Timer,
    TimerKey, Timestamp, TraceContext, Write,
};
use everstep_store::{Append, MemoryStore, RunAppend, StartClaim, Verdict};
use uuid::Uuid;

use super::{ROWS_MAX, Scan};

const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

fn store() -> MemoryStore {
    MemoryStore::new(|| NOW)
}

fn run(number: u128) -> RunId {
    RunId::from_uuid(Uuid::from_u128(number))
}

fn row(run_id: RunId, last_seq: Seq, status: RunStatus) -> Write {
    Write::Run(Box::new(RunRow {
        run_id,
        namespace: "default".to_owned(),
        workflow_id: run_id.to_string(),
        workflow_type: "order".to_owned(),
        task_queue: "main".to_owned(),
        status,
        owner: None,
        epoch: 1,
        build_id: "b1".to_owned(),
        blocked: String::new(),
        cancel_requested: false,
        started_at: NOW,
        closed_at: status.is_closed().then_some(NOW),
        last_seq,
    }))
}

fn timer() -> Write {
    Write::TimerSet(Timer { key: TimerKey::timer(OpId(1)), fire_at: Timestamp::MAX })
}

fn append(store: &MemoryStore, run_id: RunId, seq: Seq, body: EventBody, writes: Vec<Write>) {
    let (command_id, actor) = (CommandId::from_uuid(Uuid::from_u128(seq.into())), Actor::System);
    let start = (seq == 1).then(|| StartClaim {
        namespace: "default".to_owned(),
        workflow_id: run_id.to_string(),
        expected: None,
        request_id: "1".to_owned(),
        body_hash: [0; 32],
    });
    let events = Arc::new(vec![Event { seq, at: NOW, epoch: 1, command_id, actor, body }]);
    let reply = store.append_sync(vec![Append::of(RunAppend { run_id, start, events, writes })]);
    assert!(matches!(reply.verdicts[..], [Verdict::Committed]), "{:?}", reply.verdicts);
}

fn started(store: &MemoryStore, run_id: RunId, mut writes: Vec<Write>) {
    let body = EventBody::RunStarted(Box::new(RunStarted {
        namespace: "default".to_owned(),
        workflow_id: run_id.to_string(),
        workflow_type: "order".to_owned(),
        task_queue: "main".to_owned(),
        input: Payload::default(),
        request_id: "1".to_owned(),
        run_timeout: None,
        seed: 1,
        trace: TraceContext::default(),
        ..RunStarted::default()
    }));
    writes.insert(0, row(run_id, 1, RunStatus::Running));
    append(store, run_id, 1, body, writes);
}

fn parked(store: &MemoryStore, run_id: RunId) {
    started(store, run_id, Vec::new());
    let body = EventBody::WorkerDetached { reason: everstep_core::DetachReason::Parked };
    append(store, run_id, 2, body, vec![row(run_id, 2, RunStatus::Running)]);
}

async fn passes(scan: &mut Scan, store: &MemoryStore, count: usize) -> usize {
    let mut violations = 0;
    for _ in 0..count {
        violations = scan.pass(store).await.unwrap();
    }
    violations
}

#[tokio::test]
async fn a_violation_counts_when_it_is_seen_twice_and_until_it_is_mended() {
    let (store, mut scan) = (store(), Scan::default());
    parked(&store, run(1));
    assert_eq!(passes(&mut scan, &store, 3).await, 0, "a parked run waits for a signal");
    let signal = || EventBody::SignalReceived {
        name: "go".to_owned(),
        signal_id: "1".to_owned(),
        input: Payload::default(),
    };
    // The signal without the task that it calls for.
    append(&store, run(1), 3, signal(), Vec::new());
    assert_eq!(passes(&mut scan, &store, 1).await, 0, "seen once");
    assert_eq!(passes(&mut scan, &store, 1).await, 1);
    assert_eq!(passes(&mut scan, &store, 5).await, 1, "one run, however often it is seen");
    let queue = everstep_core::QueueKey { namespace: "default".to_owned(), task_queue: "main".to_owned() };
    append(
        &store,
        run(1),
        4,
        signal(),
        vec![Write::TaskSet(everstep_core::TaskRow {
            queue,
            workflow_type: String::new(),
            build_id: String::new(),
        })],
    );
    assert_eq!(passes(&mut scan, &store, 1).await, 0, "mended");
    assert!(scan.suspects.is_empty());
}

#[tokio::test]
async fn another_fault_of_the_same_run_begins_anew() {
    let (store, mut scan) = (store(), Scan::default());
    started(&store, run(1), Vec::new());
    assert_eq!(passes(&mut scan, &store, 1).await, 0);
    let body = EventBody::RunTerminated { reason: String::new() };
    append(&store, run(1), 2, body, vec![row(run(1), 2, RunStatus::Terminated), timer()]);
    assert_eq!(passes(&mut scan, &store, 1).await, 0, "what was seen first is mended");
    assert_eq!(passes(&mut scan, &store, 1).await, 1);
}

#[tokio::test]
async fn a_pass_is_bounded_and_the_next_goes_on() {
    let (store, mut scan) = (store(), Scan::default());
    let many = ROWS_MAX as u128 + 10;
    for number in 1..=many {
        parked(&store, run(number));
        append(&store, run(number), 3, EventBody::TimerCanceled { timer: OpId(9) }, vec![timer()]);
    }
    // Only the table of timers leads to it.
    let closed = run(many + 1);
    started(&store, closed, Vec::new());
    let body = EventBody::RunTerminated { reason: String::new() };
    append(&store, closed, 2, body, vec![row(closed, 2, RunStatus::Terminated), timer()]);
    assert_eq!(passes(&mut scan, &store, 1).await, 0);
    assert!(scan.suspects.is_empty(), "beyond the first page");
    assert_eq!(passes(&mut scan, &store, 1).await, 0);
    assert_eq!(scan.suspects.keys().copied().collect::<Vec<_>>(), [closed]);
    assert_eq!(passes(&mut scan, &store, 1).await, 1);
    // Round and round: the first page comes again.
    append(&store, run(1), 4, EventBody::CancelRequested { reason: String::new() }, Vec::new());
    assert_eq!(passes(&mut scan, &store, 4).await, 2);
}
