//! Events about queued steps, as rows.

use everstep_core::{QueuedOptions, RetryPolicy, StepScheduled};

use super::*;

fn options() -> impl Strategy<Value = QueuedOptions> {
    let time = || prop::option::of(duration());
    let finite = any::<f64>().prop_filter("is written as JSON", |f| f.is_finite());
    let retry = (duration(), finite, duration(), any::<u32>(), prop::collection::vec(text(), 0..3)).prop_map(
        |(initial_interval, backoff_coefficient, maximum_interval, maximum_attempts, non_retryable_kinds)| {
            RetryPolicy {
                initial_interval,
                backoff_coefficient,
                maximum_interval,
                maximum_attempts,
                non_retryable_kinds,
            }
        },
    );
    let policy = prop::option::of(prop::sample::select(DoubtPolicy::ALL.to_vec()));
    ((text(), any::<u8>()), (time(), time(), time(), time()), retry, policy).prop_map(
        |((task_queue, priority), (start, close, whole, heartbeat), retry, in_doubt)| QueuedOptions {
            task_queue,
            priority,
            schedule_to_start: start,
            start_to_close: close,
            schedule_to_close: whole,
            heartbeat,
            retry,
            in_doubt,
        },
    )
}

pub(super) fn bodies() -> impl Strategy<Value = EventBody> {
    prop_oneof![
        3 => (op(), column(), payload(), options()).prop_map(|(step, name, input, options)| {
            EventBody::StepScheduled(Box::new(StepScheduled { step, name, input, options }))
        }),
        1 => op().prop_map(|step| EventBody::StepCancelRequested { step }),
    ]
}

#[test]
fn rows_of_queued_steps_keep_their_text() {
    let id = "00000000-0000-0000-0000-000000000007";
    let at = 1_700_000_000_000_001_i64;
    let plain = QueuedOptions { task_queue: "video".to_owned(), ..QueuedOptions::default() };
    let secs = |n| Some(Duration::from_secs(n));
    let full = QueuedOptions {
        priority: 1,
        schedule_to_start: secs(1),
        start_to_close: secs(2),
        schedule_to_close: secs(3),
        heartbeat: secs(4),
        retry: RetryPolicy {
            backoff_coefficient: 1.5,
            maximum_attempts: 7,
            non_retryable_kinds: vec!["Bad".to_owned()],
            ..RetryPolicy::default()
        },
        in_doubt: Some(DoubtPolicy::AskHuman),
        ..plain.clone()
    };
    for (options, attrs) in [
        (
            plain,
            "{\"queue\":\"video\",\"retry\":{\"initial_us\":1000000,\"coefficient\":2.0,\"maximum_us\":60000000}}",
        ),
        (
            full,
            "{\"queue\":\"video\",\"priority\":1,\"schedule_to_start_us\":1000000,\"start_to_close_us\":2000000,\
             \"schedule_to_close_us\":3000000,\"heartbeat_us\":4000000,\"retry\":{\"initial_us\":1000000,\
             \"coefficient\":1.5,\"maximum_us\":60000000,\"attempts\":7,\"final_kinds\":[\"Bad\"]},\
             \"in_doubt\":\"ask_human\"}",
        ),
    ] {
        let (step, name, input) = (OpId(3), "transcode".to_owned(), Payload::json("\"u\""));
        let body = EventBody::StepScheduled(Box::new(StepScheduled { step, name, input, options }));
        assert_eq!(
            line(&event(6, Actor::Worker("w-1".to_owned()), body)),
            format!(
                "6 2 {id} StepScheduled Some(\"transcode\") Some(3) None {at} worker:w-1 | {attrs} | \
                 Some(\"json\") Some(b\"\\\"u\\\"\")"
            )
        );
    }
    let canceled = EventBody::StepCancelRequested { step: OpId(3) };
    assert_eq!(
        line(&event(7, Actor::Worker("w-1".to_owned()), canceled)),
        format!("7 2 {id} StepCancelRequested None Some(3) None {at} worker:w-1 | - | None None")
    );
}
