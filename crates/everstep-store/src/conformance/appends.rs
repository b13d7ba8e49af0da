//! The append: who wins, and what a loser leaves behind.

use std::sync::Arc;

use everstep_core::{OpId, RunStatus, TaskRow, Timer, TimerKey, Timestamp, Write};

use super::sample::{Sample, append, append_one, commit, history, started, tables, timer_set};
use super::{Subject, ok};
use crate::{Append, RunAppend};

/// Goal: what was committed is read back in order, equal in every field.
pub async fn appends_are_in_order_without_gaps(subject: &Subject) {
    let store = &*subject.store;
    let sample = Sample::new(subject).await;
    assert!(ok(store.read_events(sample.run, 0, 10).await).is_empty(), "no history before the start");
    let appends = [sample.start(None), sample.steps(2, 1), sample.steps(3, 4), sample.steps(7, 2)];
    for run in &appends {
        assert_eq!(append_one(store, run.clone()).await, "committed");
    }
    let written: Vec<_> = appends.iter().flat_map(|run| run.events.iter().cloned()).collect();
    assert_eq!(history(store, sample.run).await, written);
    let record = ok(store.get_run(sample.run).await);
    assert_eq!(record.map(|r| (r.row, r.tail_seq)), Some((sample.row(1), 8)));
}

/// Goal: the second of two appends at one seq loses.
pub async fn a_taken_seq_is_a_conflict(subject: &Subject) {
    let store = &*subject.store;
    let sample = started(subject).await;
    let first = sample.steps(2, 1);
    assert_eq!(append_one(store, first.clone()).await, "committed");
    assert_eq!(append_one(store, sample.steps(2, 1)).await, "conflict");
    assert_eq!(append_one(store, sample.steps(1, 1)).await, "conflict");
    // A loser that reaches past the tail leaves nothing there.
    assert_eq!(append_one(store, sample.steps(2, 3)).await, "conflict");
    let events = history(store, sample.run).await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[1], first.events[0]);
}

/// Goal: nobody appends behind a gap, or to a run that was not started.
pub async fn a_missing_predecessor_is_a_conflict(subject: &Subject) {
    let store = &*subject.store;
    let sample = started(subject).await;
    assert_eq!(append_one(store, sample.steps(3, 1)).await, "conflict");
    assert_eq!(append_one(store, sample.steps(1_000_000, 2)).await, "conflict");
    assert_eq!(append_one(store, sample.next().steps(2, 1)).await, "conflict");
    assert_eq!(history(store, sample.run).await.len(), 1);
}

/// Goal: of a lost append nothing is written: no event, no timer, task, wake or row.
pub async fn a_loser_writes_nothing(subject: &Subject) {
    let store = &*subject.store;
    let sample = started(subject).await;
    commit(store, vec![sample.with(2, vec![timer_set(1, Timestamp::MAX)])]).await;
    let (before, events) = (tables(store, sample.run).await, history(store, sample.run).await);
    let writes = vec![
        Write::Run(Box::new(sample.closed(9, RunStatus::Failed))),
        Write::TimerDeleted(TimerKey::timer(OpId(1))),
        timer_set(2, Timestamp::MAX),
        Write::TaskSet(TaskRow::of_queue(sample.queue.clone())),
        Write::WakeSet { seq: 2 },
    ];
    for seq in [1, 2, 4] {
        assert_eq!(append_one(store, sample.with(seq, writes.clone())).await, "conflict");
    }
    assert_eq!(tables(store, sample.run).await, before);
    assert_eq!(history(store, sample.run).await, events);
}

/// Goal: each append of a batch has its own verdict, and losers harm nobody, also in a large batch.
pub async fn a_batch_has_a_verdict_each(subject: &Subject) {
    let store = &*subject.store;
    let mut samples = Vec::new();
    for _ in 0..75 {
        samples.push(Sample::new(subject).await);
    }
    let starts = samples.iter().map(|sample| Append::of(sample.start(None))).collect();
    assert_eq!(append(store, starts).await, vec!["committed"; 75]);
    let batch = samples.iter().zip(0_u64..).map(|(sample, i)| match i % 3 {
        0 => Append::of(sample.with(2, vec![timer_set(1, Timestamp::MAX)])),
        1 => Append::of(sample.steps(1, 1)),
        _ => Append::of(sample.steps(2, 2)),
    });
    let verdicts = append(store, batch.collect()).await;
    for ((sample, verdict), i) in samples.iter().zip(verdicts).zip(0_u64..) {
        let (expected, events) = [("committed", 2), ("conflict", 1), ("committed", 3)][(i % 3) as usize];
        assert_eq!(verdict, expected, "append {i}");
        assert_eq!(history(store, sample.run).await.len(), events, "append {i}");
    }
    assert!(append(store, vec![]).await.is_empty(), "an empty batch is no error");
}

/// Goal: an append that was committed already is told from one that was not, by `Conflict`.
pub async fn a_committed_append_again_is_a_conflict(subject: &Subject) {
    let store = &*subject.store;
    let sample = Sample::new(subject).await;
    let (start, steps) = (sample.start(None), sample.steps(2, 3));
    commit(store, vec![start.clone()]).await;
    commit(store, vec![steps.clone()]).await;
    assert_eq!(append_one(store, start).await, "conflict");
    assert_eq!(append_one(store, steps.clone()).await, "conflict");
    let stored = ok(store.read_events(sample.run, 1, 10).await);
    assert_eq!(stored[0].command_id, steps.events[0].command_id, "whose event it is can be told");
    assert_eq!(stored.len(), 3);
}

/// Goal: two appends of one run in a batch: the later one is a conflict, not an error.
pub async fn a_run_twice_in_a_batch_is_a_conflict(subject: &Subject) {
    let store = &*subject.store;
    let (one, two) = (started(subject).await, started(subject).await);
    let batch = vec![one.steps(2, 1), two.steps(2, 1), one.steps(2, 1), two.steps(3, 1)];
    let verdicts = append(store, batch.into_iter().map(Append::of).collect()).await;
    assert_eq!(verdicts, ["committed", "committed", "conflict", "conflict"]);
    assert_eq!(history(store, one.run).await.len(), 2);
    assert_eq!(history(store, two.run).await.len(), 2);
}

/// Goal: an append that nobody should make fails by itself, and the rest of its batch is committed.
pub async fn a_malformed_append_is_refused_alone(subject: &Subject) {
    let store = &*subject.store;
    let sample = started(subject).await;
    let empty = RunAppend { events: Arc::default(), ..started(subject).await.steps(2, 1) };
    let gap = started(subject).await;
    let mut events = gap.steps(2, 3).events.to_vec();
    events.remove(1);
    let gap = RunAppend { events: Arc::new(events), ..gap.steps(2, 1) };
    let batch = vec![empty, sample.steps(2, 1), gap];
    let verdicts = append(store, batch.into_iter().map(Append::of).collect()).await;
    assert_eq!(verdicts, ["refused", "committed", "refused"]);
}

/// Goal: a group of two runs is committed whole or leaves nothing, whichever of them loses.
pub async fn a_group_is_committed_whole_or_not_at_all(subject: &Subject) {
    let store = &*subject.store;
    let old = started(subject).await;
    let new = old.next();
    let end = |seq| RunAppend {
        writes: vec![Write::Run(Box::new(old.closed(seq, RunStatus::Terminated)))],
        ..old.steps(seq, 1)
    };
    let group = |run: RunAppend, with: RunAppend| Append { run, with: Some(Box::new(with)) };
    let lost = [
        group(end(3), new.start(Some(old.run))),
        group(end(2), new.start(None)),
        group(new.start(Some(new.run)), end(2)),
    ];
    for append_of_two in lost {
        assert_eq!(append(store, vec![append_of_two]).await, ["conflict"]);
        assert_eq!(history(store, old.run).await.len(), 1);
        assert!(history(store, new.run).await.is_empty());
        assert_eq!(tables(store, old.run).await.projection.row, old.row(1));
        assert_eq!(ok(store.get_run(new.run).await), None);
    }
    let winner = group(end(2), new.start(Some(old.run)));
    assert_eq!(append(store, vec![winner.clone()]).await, ["committed"]);
    assert_eq!(history(store, old.run).await.len(), 2);
    assert_eq!(history(store, new.run).await.len(), 1);
    let found = ok(store.find_start(&new.queue.namespace, &new.workflow_id, "none").await);
    assert_eq!(found.current, Some((new.run, RunStatus::Running)));
    assert_eq!(tables(store, old.run).await.projection.row.status, RunStatus::Terminated);
    assert_eq!(append(store, vec![winner]).await, ["conflict"], "a group again is a conflict");
}

/// Goal: a run's row is replaced by a newer one only.
pub async fn an_older_run_row_never_overwrites(subject: &Subject) {
    let store = &*subject.store;
    let sample = started(subject).await;
    let row = |seq, status| Write::Run(Box::new(sample.closed(seq, status)));
    for (seq, write, shown) in [
        (2, row(5, RunStatus::Canceled), RunStatus::Canceled),
        (3, row(4, RunStatus::Failed), RunStatus::Canceled),
        (4, row(5, RunStatus::Failed), RunStatus::Canceled),
        (5, row(6, RunStatus::Completed), RunStatus::Completed),
    ] {
        commit(store, vec![sample.with(seq, vec![write])]).await;
        assert_eq!(tables(store, sample.run).await.projection.row.status, shown, "after event {seq}");
    }
}

/// Goal: writes of one append count in their order.
pub async fn writes_of_a_run_apply_in_order(subject: &Subject) {
    let store = &*subject.store;
    let sample = started(subject).await;
    let far = |micros| Timestamp::from_micros(Timestamp::MAX.as_micros() - micros);
    let queue = everstep_core::QueueKey { task_queue: "other".to_owned(), ..sample.queue.clone() };
    let other = TaskRow { queue, workflow_type: "order".to_owned(), build_id: "b1".to_owned() };
    let first = vec![timer_set(1, far(1)), timer_set(2, far(2)), Write::WakeSet { seq: 2 }];
    commit(store, vec![sample.with(2, first)]).await;
    let second = vec![
        timer_set(3, far(3)),
        Write::TimersCleared,
        timer_set(2, far(5)),
        timer_set(2, far(4)),
        timer_set(4, far(4)),
        Write::TimerDeleted(TimerKey::timer(OpId(4))),
        Write::TimerSet(Timer { key: TimerKey::RUN_TIMEOUT, fire_at: far(6) }),
        Write::TaskSet(TaskRow::of_queue(sample.queue.clone())),
        Write::TaskDeleted,
        Write::TaskSet(other.clone()),
        Write::WakeSet { seq: 3 },
        Write::WakesDeleted { up_to: 3 },
        Write::WakeSet { seq: 1 },
        Write::WakeSet { seq: 4 },
        Write::Run(Box::new(sample.closed(3, RunStatus::Canceled))),
        Write::Run(Box::new(sample.closed(2, RunStatus::Failed))),
    ];
    commit(store, vec![sample.with(3, second)]).await;
    let shown = tables(store, sample.run).await;
    let timers = [(TimerKey::timer(OpId(2)), far(4)), (TimerKey::RUN_TIMEOUT, far(6))];
    assert_eq!(shown.projection.timers, timers.map(|(key, fire_at)| Timer { key, fire_at }));
    assert_eq!(shown.projection.task, Some(other));
    assert_eq!(shown.wakes, [1, 4]);
    assert_eq!(shown.projection.row.status, RunStatus::Canceled);
    let last = vec![Write::TaskDeleted, Write::TimersCleared, Write::WakesDeleted { up_to: 4 }];
    commit(store, vec![sample.with(4, last)]).await;
    let shown = tables(store, sample.run).await;
    assert_eq!((shown.projection.timers, shown.projection.task, shown.wakes), (vec![], None, vec![]));
}
