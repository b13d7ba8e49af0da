//! What an operator is told: how much waits, and what there is to wake a run.

use everstep_core::{
    DetachReason, Duration, EventBody, RunId, RunRow, RunStatus, TaskRow, Timer, TimerKey, Timestamp, Write,
};

use super::sample::{MANY, Sample, commit, new_run, new_session, started, timer_set};
use super::steps::step_set;
use super::{Subject, ok};
use crate::{LastEvent, RunWant, WakeRows, WakeTable};

/// A run without a row, a task, a timer or a wake.
fn nothing(run: RunId) -> WakeRows {
    let (owned, task, timers, delayed, wakes, steps) = (false, false, false, false, false, false);
    WakeRows { run, status: None, owned, task, timers, delayed, wakes, steps, last: None }
}

fn last(kind: &str, parked: bool) -> Option<LastEvent> {
    Some(LastEvent { kind: kind.to_owned(), parked })
}

async fn ends_with(subject: &Subject, body: EventBody) -> (Sample, Option<LastEvent>) {
    let sample = started(subject).await;
    commit(&*subject.store, vec![sample.bodies(2, vec![body])]).await;
    let rows = ok(subject.store.wake_rows(&[sample.run]).await);
    (sample, rows.into_iter().next().and_then(|rows| rows.last))
}

/// Goal: what there is to wake a run is told as it is, of each run, whether it exists or not.
pub async fn wake_rows_are_told(subject: &Subject) {
    let store = &*subject.store;
    let (bare, full, closed) = (started(subject).await, started(subject).await, started(subject).await);
    let (owned, blocked, absent) = (started(subject).await, started(subject).await, new_run());
    let row = |row: RunRow| Write::Run(Box::new(row));
    let task = Write::TaskSet(TaskRow::of_queue(full.queue.clone()));
    let rows = vec![
        timer_set(1, Timestamp::MAX),
        timer_set(2, Timestamp::MAX),
        task,
        Write::WakeSet { seq: 2 },
        step_set(&full, 1),
    ];
    commit(store, vec![full.with(2, rows)]).await;
    let timer = timer_set(1, Timestamp::MAX);
    commit(store, vec![closed.with(2, vec![row(closed.closed(2, RunStatus::Failed)), timer])]).await;
    let wakes = [Write::WakeSet { seq: 2 }, Write::WakeSet { seq: 3 }];
    let mut writes = vec![row(owned.owned(2, new_session()))];
    writes.extend(wakes);
    commit(store, vec![owned.with(2, writes)]).await;
    let why = RunRow { status: RunStatus::Blocked, blocked: "why".to_owned(), ..blocked.row(2) };
    commit(store, vec![blocked.with(2, vec![row(why)])]).await;
    let delayed = started(subject).await;
    let start = Write::TimerSet(Timer { key: TimerKey::START, fire_at: Timestamp::MAX });
    commit(store, vec![delayed.with(2, vec![start])]).await;
    let running = |run| WakeRows { status: Some(RunStatus::Running), ..nothing(run) };
    let mut expected = vec![
        WakeRows { last: last("RunStarted", false), ..running(bare.run) },
        WakeRows { task: true, timers: true, wakes: true, steps: true, ..running(full.run) },
        WakeRows { status: Some(RunStatus::Failed), timers: true, ..nothing(closed.run) },
        WakeRows { owned: true, wakes: true, ..running(owned.run) },
        WakeRows { status: Some(RunStatus::Blocked), ..nothing(blocked.run) },
        WakeRows { timers: true, delayed: true, last: last("StepCompleted", false), ..running(delayed.run) },
        nothing(absent),
    ];
    let asked: Vec<RunId> = expected.iter().rev().map(|rows| rows.run).collect();
    expected.sort_by_key(|rows| rows.run);
    assert_eq!(ok(store.wake_rows(&asked).await), expected);
    assert!(ok(store.wake_rows(&[]).await).is_empty());
}

/// Goal: a run that its worker parked is told from one that was taken or given away, whatever the worker said.
pub async fn parked_runs_are_told_apart(subject: &Subject) {
    let words = "\"reason\":\"parked\"".to_owned();
    for (reason, parked) in
        [(DetachReason::Parked, true), (DetachReason::Lost, false), (DetachReason::Released(words), false)]
    {
        let (_, told) = ends_with(subject, EventBody::WorkerDetached { reason }).await;
        assert_eq!(told, last("WorkerDetached", parked));
    }
    let reason = "{\"reason\":\"parked\"}".to_owned();
    let (sample, told) = ends_with(subject, EventBody::CancelRequested { reason }).await;
    assert_eq!(told, last("CancelRequested", false));
    let parked = EventBody::WorkerDetached { reason: DetachReason::Parked };
    commit(&*subject.store, vec![sample.bodies(3, vec![parked])]).await;
    let rows = ok(subject.store.wake_rows(&[sample.run]).await);
    assert_eq!(rows[0].last, last("WorkerDetached", true), "the last event counts");
}

/// All runs of a table in pages.
async fn all_of(subject: &Subject, table: WakeTable, limit: usize) -> Vec<RunId> {
    let (mut runs, mut after) = (Vec::new(), None);
    loop {
        let page = ok(subject.store.wake_page(table, after, limit).await);
        assert!(page.runs.len() <= limit, "a page of {table:?} has {} runs", page.runs.len());
        assert!(page.runs.iter().all(|run| Some(*run) > after && page.last.is_none_or(|last| *run <= last)));
        runs.extend(page.runs);
        after = match page.last {
            Some(last) => Some(last),
            None => return runs,
        };
    }
}

/// Goal: pages of any size name every run of a table once, in order of id.
pub async fn wake_tables_are_gone_through_in_pages(subject: &Subject) {
    let store = &*subject.store;
    let mut samples = Vec::new();
    for _ in 0..4 {
        let sample = started(subject).await;
        let mut writes: Vec<Write> = (1..4).map(|id| timer_set(id, Timestamp::MAX)).collect();
        writes.extend([2, 3, 4].map(|seq| Write::WakeSet { seq }));
        writes.push(Write::TaskSet(TaskRow::of_queue(sample.queue.clone())));
        writes.extend([1, 2].map(|step| step_set(&sample, step)));
        commit(store, vec![sample.with(2, writes)]).await;
        samples.push(sample);
    }
    let row = Write::Run(Box::new(samples[1].owned(3, new_session())));
    commit(store, vec![samples[1].with(3, vec![row])]).await;
    let row = Write::Run(Box::new(samples[2].closed(3, RunStatus::Completed)));
    commit(store, vec![samples[2].with(3, vec![row])]).await;
    let own: Vec<RunId> = samples.iter().map(|sample| sample.run).collect();
    for table in WakeTable::ALL {
        for limit in [1, 2, 5, MANY] {
            let mut found = all_of(subject, table, limit).await;
            assert!(found.is_sorted_by(|a, b| a < b), "{table:?} in pages of {limit}");
            found.retain(|run| own.contains(run));
            match table {
                WakeTable::Runs => assert_eq!(found, [own[0], own[3]], "in pages of {limit}"),
                _ => assert_eq!(found, own, "{table:?} in pages of {limit}"),
            }
        }
    }
}

/// Goal: blocked runs, and events that others have not heard of, are counted up to the limit, and the age of a task or of
/// such an event counts the looks that came to nothing.
pub async fn the_backlog_is_told(subject: &Subject) {
    let (store, secs) = (&*subject.store, Duration::from_secs);
    let sample = started(subject).await;
    let queues = [RunWant::of_queue(sample.queue.clone())];
    let news = started(subject).await;
    let untold = async || ok(store.backlog(MANY).await).untold;
    let others = untold().await;
    commit(store, vec![news.with(2, vec![Write::OutboxSet { seq: 2 }, Write::OutboxSet { seq: 3 }])]).await;
    assert_eq!(untold().await, others + 2);
    assert_eq!(ok(store.backlog(1).await).untold, 1, "no further than the limit");
    commit(store, vec![sample.with(2, vec![Write::TaskSet(TaskRow::of_queue(sample.queue.clone()))])]).await;
    let set = subject.now().await;
    let age = async || ok(store.backlog(MANY).await).oldest_task.unwrap_or_default();
    subject.pass(set.after(secs(1))).await;
    for at_least in [1, 3] {
        let claimed = ok(store.claim_tasks(Some(&queues), MANY).await);
        assert_eq!(claimed.len(), 1, "due for a look");
        let waited = age().await;
        assert!(waited >= secs(at_least), "{waited:?}, and a look came after {at_least} s");
        let found = ok(store.claim_outbox(MANY, MANY).await);
        assert!(found.contains(&(news.run, vec![2, 3])), "due for a look, too");
        let waited = ok(store.backlog(MANY).await).oldest_untold.unwrap_or_default();
        assert!(waited >= secs(at_least), "{waited:?}, and a look came after {at_least} s");
        if at_least == 1 {
            subject.pass(subject.now().await.after(secs(2))).await;
        }
    }
    commit(store, vec![sample.with(3, vec![Write::TaskDeleted])]).await;
    ok(store.delete_outbox(&[(news.run, 2), (news.run, 3)]).await);
    assert_eq!(untold().await, others);
    let before = ok(store.backlog(MANY).await).blocked;
    let why = RunRow { status: RunStatus::Blocked, blocked: "why".to_owned(), ..sample.row(4) };
    commit(store, vec![sample.with(4, vec![Write::Run(Box::new(why))])]).await;
    assert_eq!(ok(store.backlog(MANY).await).blocked, before + 1);
    let other = started(subject).await;
    let why = RunRow { status: RunStatus::Blocked, blocked: "why".to_owned(), ..other.row(2) };
    commit(store, vec![other.with(2, vec![Write::Run(Box::new(why))])]).await;
    assert_eq!(ok(store.backlog(1).await).blocked, 1, "no further than the limit");
}
