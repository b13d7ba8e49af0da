//! Appends that nobody should make: refused or judged, never a panic, and a history stays one without gaps.

use std::sync::Arc;

use bolero::{check, produce};
use everstep_core::{
    Actor, CommandId, Event, EventBody, OpId, Payload, QueueKey, RunId, RunStarted, TaskRow, TimerKey,
    Timestamp, TraceContext, Write,
};
use everstep_store::{Append, MemoryStore, RunAppend, StartClaim, Verdict};
use uuid::Uuid;

const ITERATIONS: usize = 20_000;

fn event(seq: u64, begins: bool) -> Event {
    let started = RunStarted {
        namespace: "default".to_owned(),
        workflow_id: "order-1".to_owned(),
        workflow_type: "order".to_owned(),
        task_queue: "default".to_owned(),
        input: Payload::default(),
        request_id: "r".to_owned(),
        run_timeout: None,
        seed: 1,
        trace: TraceContext::default(),
        ..RunStarted::default()
    };
    let body = if begins {
        EventBody::RunStarted(Box::new(started))
    } else {
        EventBody::RunTimedOut { retried_by: None }
    };
    let at = Timestamp::from_micros(1);
    Event { seq, at, epoch: 0, command_id: CommandId::from_uuid(Uuid::nil()), actor: Actor::System, body }
}

/// One append of what each byte says.
fn run_append(input: &[u8]) -> RunAppend {
    let mut input = input.iter().copied();
    let mut next = || input.next().unwrap_or_default();
    let (run, first, step, count) = (next() % 3, next() % 5, next(), next() % 4);
    // Mostly in order.
    let step = if step < 240 { 1 } else { u64::from(step) };
    let seq = |i: u8| if first == 4 { u64::MAX } else { u64::from(first) + u64::from(i) * step };
    let events = (0..count).map(|i| event(seq(i), first == 1 && i == 0)).collect();
    let (claims, holder, writes) = (next() % 3 > 0, next() % 4, next() % 10);
    let id = |n: u8| RunId::from_uuid(Uuid::from_u128(u128::from(n)));
    let start = claims.then(|| StartClaim {
        namespace: "default".to_owned(),
        workflow_id: "order-1".to_owned(),
        expected: (holder < 3).then(|| id(holder)),
        request_id: "r".to_owned(),
        body_hash: [holder; 32],
    });
    let all = [
        Write::TimersCleared,
        Write::TaskDeleted,
        Write::TimerDeleted(TimerKey::RUN_TIMEOUT),
        Write::TaskSet(TaskRow::of_queue(QueueKey {
            namespace: "default".to_owned(),
            task_queue: "q".to_owned(),
        })),
        Write::DoubtsCleared,
        Write::DoubtDeleted(OpId(u32::MAX)),
        Write::WakeSet { seq: u64::MAX },
        Write::WakesDeleted { up_to: u64::MAX },
    ];
    RunAppend {
        run_id: id(run),
        start,
        events: Arc::new(events),
        writes: all.into_iter().take(usize::from(writes)).collect(),
    }
}

#[test]
fn appends_that_nobody_should_make() {
    let batches = produce::<Vec<Vec<u8>>>()
        .with()
        .values(produce::<Vec<u8>>().with().len(0..=8_usize))
        .len(0..=6_usize);
    check!().with_iterations(ITERATIONS).with_generator(batches).for_each(|batches| {
        let store = MemoryStore::new(|| Timestamp::from_micros(2));
        for pair in batches.chunks(2) {
            let with = pair.get(1).map(|input| Box::new(run_append(input)));
            let append = Append { run: run_append(&pair[0]), with };
            let refused = append.malformed().is_some();
            let verdicts = store.append_sync(vec![append]).verdicts;
            let [verdict] = &verdicts[..] else { panic!("{verdicts:?}") };
            assert!(!refused || matches!(verdict, Verdict::Failed(_)), "{verdict:?}");
        }
        for run in store.run_ids_sync() {
            let events = store.read_events_sync(run, 0, usize::MAX);
            let seqs: Vec<u64> = events.iter().map(|e| e.seq).collect();
            assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
        }
    });
}
