//! What comes back of events: every byte, every kind, page by page.

use bytes::Bytes;
use everstep_core::{
    BlockKind, Blocked, ChildClosed, ChildOutcome, ChildScheduled, DetachReason, DoubtPolicy, Duration,
    Event, EventBody, ExternalAction, ExternalRequested, ExternalTarget, Failure, Notes, OpId, ParentClose,
    Payload, Resolution, ReusePolicy, RunId, RunStatus, StepResolved, TimerKey, Timestamp, UpdateOutcome,
    WorkerInfo,
};

use super::sample::{commit, history, new_run, new_session, started, step};
use super::{Subject, ok};
use crate::{HEAD_MAX, Head, PAGE_BYTES_MAX, Store};

/// `len` bytes that no compression makes small, with every value among them.
fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Goal: payloads of every size and content come back as they were, with their encoding.
pub async fn payloads_come_back_byte_for_byte(subject: &Subject) {
    let store = &*subject.store;
    let sample = started(subject).await;
    let same = noise(100 * 1024, 3);
    let payloads = vec![
        Payload::default(),
        Payload { encoding: "json".to_owned(), data: Bytes::new() },
        Payload { encoding: String::new(), data: Bytes::from_static(b"\0") },
        Payload { encoding: "raw".to_owned(), data: Bytes::from_static(b"a\0b\0\0") },
        Payload::json("\"\\u0000 \u{1f600}\""),
        Payload { encoding: "raw".to_owned(), data: noise(32 * 1024, 1) },
        Payload { encoding: "raw".to_owned(), data: noise(32 * 1024 + 1, 2) },
        Payload { encoding: "raw".to_owned(), data: same.clone() },
        // The same bytes twice in a run.
        Payload { encoding: "json".to_owned(), data: same },
        Payload { encoding: "raw".to_owned(), data: noise(2 * 1024 * 1024, 4) },
        Payload { encoding: "raw".to_owned(), data: vec![0; 2 * 1024 * 1024].into() },
    ];
    let bodies = payloads.into_iter().enumerate().map(|(i, input)| EventBody::SignalReceived {
        name: "n".to_owned(),
        signal_id: i.to_string(),
        input,
    });
    let all = sample.bodies(2, bodies.collect());
    commit(store, vec![all.clone()]).await;
    let stored = history(store, sample.run).await;
    assert_eq!(stored.len(), all.events.len() + 1);
    for (stored, written) in stored[1..].iter().zip(all.events.iter()) {
        // Compared apart, because a difference in a megabyte is no message for a person.
        let (stored_payload, payload) = (stored.body.payload(), written.body.payload());
        assert_eq!(
            stored_payload.map(|p| (&p.encoding, p.data.len())),
            payload.map(|p| (&p.encoding, p.data.len()))
        );
        assert!(stored == written, "event {} came back changed", written.seq);
    }
    // Another run may hold the same bytes, also later in its history.
    let other = started(subject).await;
    let data = noise(100 * 1024, 3);
    commit(store, vec![other.bodies(2, vec![step(2, data.clone())])]).await;
    commit(store, vec![other.bodies(3, vec![step(3, data.clone())])]).await;
    let stored = history(store, other.run).await;
    assert!(stored[1..].iter().all(|e| e.body.payload().is_some_and(|p| p.data == data)));
}

/// Goal: a history of 1,000 events is read in pages of any size, without a gap.
pub async fn a_long_history_is_read_in_pages(subject: &Subject) {
    let store = &*subject.store;
    let sample = started(subject).await;
    for first in (2..1_000).step_by(111) {
        commit(store, vec![sample.steps(first, 111)]).await;
    }
    let all = history(store, sample.run).await;
    assert_eq!(all.iter().map(|e| e.seq).collect::<Vec<_>>(), (1..=1_000).collect::<Vec<_>>());
    for size in [1, 7, 999, 1_000, 5_000] {
        let page = ok(store.read_events(sample.run, 0, size).await);
        assert!(page == all[..size.min(1_000)], "the first {size}");
    }
    assert!(ok(store.read_events(sample.run, 990, 100).await) == all[990..]);
    assert!(ok(store.read_events(sample.run, 1_000, 100).await).is_empty());
    assert!(ok(store.read_events(sample.run, u64::MAX, 100).await).is_empty());
    assert!(ok(store.read_events(sample.run, 0, 0).await).is_empty());
}

/// Goal: a page is as full as [`PAGE_BYTES_MAX`] allows, and holds always at least one event.
pub async fn pages_are_bounded_by_bytes(subject: &Subject) {
    let store = &*subject.store;
    let sample = started(subject).await;
    const K: usize = 1024;
    // Inline and not, some alone larger than a page, and one that makes a page exactly full.
    let sizes =
        [700 * K, 700 * K, 648 * K, 1, 30 * K, 2_100 * K, 2_048 * K, 5, 2_048 * K - 5, 1_500 * K, 600 * K];
    for (seq, size) in (2..).zip(sizes) {
        commit(store, vec![sample.bodies(seq, vec![step(seq, noise(size, seq))])]).await;
    }
    let input = bytes_of(&ok(store.read_events(sample.run, 0, 1).await));
    for (after, last) in [(1, 4), (4, 6), (6, 7), (7, 8), (8, 10), (10, 11), (11, 12), (12, 12)] {
        let page = ok(store.read_events(sample.run, after, 100).await);
        assert_eq!(page.iter().map(|e| e.seq).collect::<Vec<_>>(), (after + 1..=last).collect::<Vec<_>>());
        assert!(page.len() <= 1 || bytes_of(&page) <= PAGE_BYTES_MAX);
    }
    let first = ok(store.read_events(sample.run, 0, 100).await);
    assert!(bytes_of(&first) <= PAGE_BYTES_MAX && bytes_of(&first) >= input + 1_400 * K);
}

/// Goal: the first events of many runs are those of each, in order, and whoever reads on from there has all of it.
pub async fn heads_are_the_first_events_of_each_run(subject: &Subject) {
    let store = &*subject.store;
    const K: usize = 1024;
    let most = HEAD_MAX as u64;
    let mut runs = vec![(new_run(), 0)];
    for (steps, sizes) in [
        (0, &[][..]),
        (3, &[][..]),
        (most - 1, &[]),
        (most, &[]),
        (most + 30, &[]),
        (0, &[10, 100 * K, 10]),
        (0, &[10, 31 * K, 31 * K, 10]),
        (0, &[2_048 * K, 10]),
    ] {
        let sample = started(subject).await;
        if steps > 0 {
            commit(store, vec![sample.steps(2, steps)]).await;
        }
        for (seq, size) in (2..).zip(sizes) {
            commit(store, vec![sample.bodies(seq, vec![step(seq, noise(*size, seq))])]).await;
        }
        runs.extend([(sample.run, 0), (sample.run, 1), (sample.run, 3), (sample.run, u64::MAX)]);
    }
    for asked in [runs.clone(), runs.iter().rev().copied().collect()] {
        let heads = store.read_heads(&asked).await;
        assert_eq!(heads.len(), asked.len());
        for ((run, after), head) in asked.into_iter().zip(heads) {
            check_head(store, (run, after), ok(head)).await;
        }
    }
    for (run, after) in runs {
        let mut heads = store.read_heads(&[(run, after)]).await;
        assert_eq!(heads.len(), 1);
        check_head(store, (run, after), ok(heads.remove(0))).await;
    }
    assert!(store.read_heads(&[]).await.is_empty());
}

async fn check_head(store: &dyn Store, (run, after): (RunId, u64), head: Head) {
    let all = history(store, run).await;
    let rest = &all[usize::try_from(after).unwrap_or(usize::MAX).min(all.len())..];
    assert!(head.events.len() <= HEAD_MAX);
    assert!(head.events == rest[..head.events.len()], "run {run} after {after}");
    assert!(head.more || head.events.len() == rest.len(), "run {run} after {after}: not all, and not said");
    let small = rest.len() <= HEAD_MAX && bytes_of(rest) < 1_024;
    assert!(!(small && head.more), "run {run} after {after}: a short history takes one read");
}

fn bytes_of(page: &[Event]) -> usize {
    page.iter().filter_map(|e| e.body.payload()).map(|p| p.data.len()).sum()
}

/// Goal: an event of every kind comes back equal.
pub async fn every_kind_of_event_comes_back(subject: &Subject) {
    let store = &*subject.store;
    let sample = started(subject).await;
    let failure = Failure {
        details: Payload::json("{\"code\":7}"),
        cause: Some(Box::new(Failure::new("Io", "nul \0 in a text"))),
        ..Failure::new("CardDeclined", "no \u{1f4b3}").non_retryable()
    };
    let worker = WorkerInfo { identity: "w@host".to_owned(), build_id: "b1".to_owned() };
    let mut bodies = vec![
        EventBody::WorkerAttached { session: new_session(), worker, pinned: true },
        EventBody::WorkerDetached { reason: DetachReason::Parked },
        EventBody::WorkerDetached { reason: DetachReason::Released("drain".to_owned()) },
        EventBody::WorkerDetached { reason: DetachReason::Lost },
        EventBody::StepStarted {
            step: OpId(1),
            name: name(),
            attempt: 1,
            in_doubt: Some(DoubtPolicy::Verify),
        },
        step(2, "{\"ok\":true}"),
        EventBody::StepFailed {
            step: OpId(1),
            name: name(),
            attempt: 2,
            elapsed: Duration::from_micros(9),
            failure: failure.clone(),
            retry_at: Some(Timestamp::from_micros(1)),
        },
        EventBody::TimerStarted { timer: OpId(3), fire_at: Timestamp::MAX },
        EventBody::TimerFired { timer: TimerKey::retry(OpId(1)) },
        EventBody::TimerFired { timer: TimerKey::RUN_TIMEOUT },
        EventBody::TimerCanceled { timer: OpId(3) },
        EventBody::SignalReceived { name: name(), signal_id: "s1".to_owned(), input: Payload::default() },
        EventBody::CancelRequested { reason: String::new() },
    ];
    bodies.extend(doubts_and_updates(&failure));
    bodies.extend(what_runs_tell_each_other(&failure));
    bodies.extend(ends_of_runs(failure));
    let written = sample.bodies(2, bodies);
    commit(store, vec![written.clone()]).await;
    assert_eq!(history(store, sample.run).await[1..], written.events[..]);
}

fn name() -> String {
    "charge".to_owned()
}

fn doubts_and_updates(failure: &Failure) -> Vec<EventBody> {
    vec![
        EventBody::VersionMarked { change_id: "fee".to_owned(), version: 1 },
        EventBody::UpdateAccepted {
            update_id: "u".to_owned(),
            name: "add".to_owned(),
            input: Payload::json("1"),
        },
        EventBody::UpdateCompleted {
            accepted: 3,
            update_id: "u\0".to_owned(),
            outcome: UpdateOutcome::Failed(failure.clone()),
        },
        EventBody::StepInDoubt { step: OpId(1), name: name(), attempt: 3 },
        EventBody::StepResolved(Box::new(StepResolved {
            step: OpId(1),
            name: name(),
            attempt: 3,
            resolution: Resolution::Failed(failure.clone()),
            note: "n\0".to_owned(),
        })),
    ]
}

fn what_runs_tell_each_other(failure: &Failure) -> Vec<EventBody> {
    vec![
        EventBody::ChildScheduled(Box::new(ChildScheduled {
            child: OpId(4),
            run_id: new_run(),
            workflow_type: "ship".to_owned(),
            workflow_id: "w".to_owned(),
            task_queue: "q".to_owned(),
            input: Payload::json("1"),
            run_timeout: Some(Duration::from_secs(1)),
            retry: None,
            reuse: ReusePolicy::Reject,
            on_parent_close: ParentClose::Abandon,
            report_start: true,
            notes: Notes { memo: [("m".to_owned(), Payload::json("\"\0\""))].into(), ..Notes::default() },
        })),
        EventBody::ChildStarted { child: OpId(4), scheduled: 3 },
        EventBody::ChildClosed(Box::new(ChildClosed {
            child: OpId(4),
            scheduled: 3,
            run_id: new_run(),
            outcome: ChildOutcome::Ended { status: RunStatus::Failed, failure: failure.clone() },
        })),
        EventBody::ExternalRequested(Box::new(ExternalRequested {
            op: OpId(5),
            target: ExternalTarget::Workflow("w".to_owned()),
            action: ExternalAction::Cancel { reason: "r\0".to_owned() },
        })),
        EventBody::ExternalResolved { op: OpId(5), requested: 6, failure: Some(failure.clone()) },
    ]
}

fn ends_of_runs(failure: Failure) -> Vec<EventBody> {
    vec![
        EventBody::RunBlocked(Box::new(Blocked {
            kind: BlockKind::ForeignWake,
            at_seq: 7,
            expected: "a".to_owned(),
            produced: "b\0".to_owned(),
            source: "main.rs:1".to_owned(),
            hint: "look".to_owned(),
            build_id: "b1".to_owned(),
        })),
        EventBody::RunUnblocked { build_id: "b2".to_owned() },
        EventBody::RunCompleted { result: Payload::json("1"), unconsumed: vec![13] },
        EventBody::RunFailed { failure, unconsumed: vec![], retried_by: None },
        EventBody::RunCanceled { details: "because".to_owned() },
        EventBody::RunTerminated { reason: "because".to_owned() },
        EventBody::RunTimedOut { retried_by: None },
        EventBody::RunTimedOut { retried_by: Some(new_run()) },
        EventBody::RunContinued { successor: new_run(), carried: vec![2, 5] },
        EventBody::TimerFired { timer: TimerKey::START },
    ]
}
