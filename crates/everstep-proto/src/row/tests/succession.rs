//! Runs that follow runs, as rows.

use everstep_core::{Digest, HeardSignal, Origin, RetryPolicy};

use super::*;

fn run_ids() -> impl Strategy<Value = RunId> {
    any::<u128>().prop_map(|id| RunId::from_uuid(Uuid::from_u128(id)))
}

fn policy() -> impl Strategy<Value = RetryPolicy> {
    (duration(), 1.0..10.0f64, duration(), any::<u32>(), prop::collection::vec(text(), 0..3)).prop_map(
        |(initial_interval, backoff_coefficient, maximum_interval, maximum_attempts, kinds)| RetryPolicy {
            initial_interval,
            backoff_coefficient,
            maximum_interval,
            maximum_attempts,
            non_retryable_kinds: kinds,
        },
    )
}

fn heard() -> impl Strategy<Value = HeardSignal> {
    (text(), any::<u64>(), instant()).prop_map(|(signal_id, said, at)| HeardSignal {
        signal_id,
        said: Digest::from_u64(said),
        at,
    })
}

/// A run that comes from others, or from a request that says when it starts and how often it is tried.
pub(super) fn followed() -> impl Strategy<Value = EventBody> {
    let link = || prop::option::of(run_ids());
    let heard = prop::collection::vec(heard(), 0..3);
    (prop::option::of(instant()), prop::option::of(policy()), link(), link(), any::<u32>(), heard).prop_map(
        |(start_at, retry, previous, first, attempt, heard)| {
            let origin = Origin { previous, first, attempt, heard, ..Origin::default() };
            EventBody::RunStarted(Box::new(RunStarted { start_at, retry, origin, ..RunStarted::default() }))
        },
    )
}

/// The ends of runs that others follow.
pub(super) fn ends() -> impl Strategy<Value = EventBody> {
    let seqs = || prop::collection::vec(any::<u64>(), 0..4);
    prop_oneof![
        (run_ids(), seqs()).prop_map(|(successor, carried)| EventBody::RunContinued { successor, carried }),
        (failure(), seqs(), run_ids()).prop_map(|(failure, unconsumed, by)| EventBody::RunFailed {
            failure,
            unconsumed,
            retried_by: Some(by),
        }),
        run_ids().prop_map(|by| EventBody::RunTimedOut { retried_by: Some(by) }),
    ]
}

#[test]
fn rows_keep_their_text() {
    let other = "00000000-0000-0000-0000-000000000009";
    let by = RunId::from_uuid(Uuid::from_u128(9));
    let origin = Origin {
        previous: Some(by),
        first: Some(by),
        attempt: 2,
        heard: vec![HeardSignal {
            signal_id: "s".to_owned(),
            said: Digest::from_u64(255),
            at: Timestamp::from_micros(5),
        }],
        ..Origin::default()
    };
    let retry = RetryPolicy {
        initial_interval: Duration::from_secs(1),
        backoff_coefficient: 2.0,
        maximum_interval: Duration::from_secs(60),
        maximum_attempts: 3,
        non_retryable_kinds: vec!["No".to_owned()],
    };
    let started = EventBody::RunStarted(Box::new(RunStarted {
        start_at: Some(Timestamp::from_micros(77)),
        retry: Some(retry),
        origin,
        ..RunStarted::default()
    }));
    let failed = EventBody::RunFailed {
        failure: Failure::new("Oops", "no"),
        unconsumed: Vec::new(),
        retried_by: Some(by),
    };
    for (body, attrs) in [
        (
            started,
            format!(
                "{{\"namespace\":\"\",\"workflow_id\":\"\",\"workflow_type\":\"\",\"task_queue\":\"\",\"request_id\":\"\",\
                 \"seed\":0,\"start_at_us\":77,\"retry\":{{\"initial_us\":1000000,\"coefficient\":2.0,\"maximum_us\":60000000,\
                 \"attempts\":3,\"final_kinds\":[\"No\"]}},\"previous\":\"{other}\",\"first\":\"{other}\",\"run_attempt\":2,\
                 \"heard\":[{{\"id\":\"s\",\"said\":\"00000000000000ff\",\"at_us\":5}}]}}"
            ),
        ),
        (
            EventBody::RunContinued { successor: by, carried: vec![3, 4] },
            format!("{{\"successor\":\"{other}\",\"carried\":[3,4]}}"),
        ),
        (
            failed,
            format!("{{\"failure\":{{\"kind\":\"Oops\",\"message\":\"no\"}},\"retried_by\":\"{other}\"}}"),
        ),
        (EventBody::RunTimedOut { retried_by: Some(by) }, format!("{{\"retried_by\":\"{other}\"}}")),
        (EventBody::TimerFired { timer: TimerKey::START }, "{\"timer_kind\":\"start\"}".to_owned()),
    ] {
        let row = EventRow::encode(run(), &event(2, Actor::System, body));
        assert_eq!(row.attrs.as_deref(), Some(attrs.as_str()), "{}", row.kind);
    }
    let plain =
        EventRow::encode(run(), &event(2, Actor::System, EventBody::RunTimedOut { retried_by: None }));
    assert_eq!(plain.attrs, None, "as before there were other attempts");
}
