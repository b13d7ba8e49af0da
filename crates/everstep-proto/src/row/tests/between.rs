//! Events between runs, as rows.

use everstep_core::{
    ChildClosed, ChildOutcome, ChildScheduled, ExternalAction, ExternalRequested, ExternalTarget, Origin,
    ParentClose, ParentLink, RetryPolicy, ReusePolicy, RunStatus,
};

use super::*;

fn ops() -> impl Strategy<Value = OpId> {
    any::<u32>().prop_map(OpId)
}

fn run_ids() -> impl Strategy<Value = RunId> {
    any::<u128>().prop_map(|id| RunId::from_uuid(Uuid::from_u128(id)))
}

fn scheduled(run_id: impl Strategy<Value = RunId>) -> impl Strategy<Value = ChildScheduled> {
    let retry = prop::option::of(Just(RetryPolicy { maximum_attempts: 3, ..RetryPolicy::default() }));
    let reuse = prop_oneof![
        Just(ReusePolicy::Allow),
        Just(ReusePolicy::AllowIfNotCompleted),
        Just(ReusePolicy::Reject)
    ];
    let close = (0..3usize).prop_map(|n| ParentClose::ALL[n]);
    let names = (column(), text(), text());
    ((ops(), run_id), names, payload(), (prop::option::of(duration()), retry), (reuse, close, any::<bool>()))
        .prop_map(
            |(
                (child, run_id),
                (workflow_type, workflow_id, task_queue),
                input,
                (run_timeout, retry),
                more,
            )| {
                let (reuse, on_parent_close, report_start) = more;
                ChildScheduled {
                    child,
                    run_id,
                    workflow_type,
                    workflow_id,
                    task_queue,
                    input,
                    run_timeout,
                    retry,
                    reuse,
                    on_parent_close,
                    report_start,
                }
            },
        )
}

fn outcome() -> impl Strategy<Value = ChildOutcome> {
    let status = prop_oneof![
        Just(RunStatus::Failed),
        Just(RunStatus::Canceled),
        Just(RunStatus::Terminated),
        Just(RunStatus::TimedOut)
    ];
    prop_oneof![
        payload().prop_map(ChildOutcome::Completed),
        (status, failure()).prop_map(|(status, failure)| ChildOutcome::Ended { status, failure }),
        failure().prop_map(ChildOutcome::NotStarted),
    ]
}

fn requested() -> impl Strategy<Value = ExternalRequested> {
    let target =
        prop_oneof![run_ids().prop_map(ExternalTarget::Run), text().prop_map(ExternalTarget::Workflow)];
    let action = prop_oneof![
        (column(), payload()).prop_map(|(name, input)| ExternalAction::Signal { name, input }),
        text().prop_map(|reason| ExternalAction::Cancel { reason }),
    ];
    (ops(), target, action).prop_map(|(op, target, action)| ExternalRequested { op, target, action })
}

pub(super) fn bodies() -> impl Strategy<Value = EventBody> {
    prop_oneof![
        scheduled(run_ids()).prop_map(|s| EventBody::ChildScheduled(Box::new(s))),
        (ops(), any::<u64>()).prop_map(|(child, scheduled)| EventBody::ChildStarted { child, scheduled }),
        (ops(), any::<u64>(), run_ids(), outcome()).prop_map(|(child, scheduled, run_id, outcome)| {
            EventBody::ChildClosed(Box::new(ChildClosed { child, scheduled, run_id, outcome }))
        }),
        requested().prop_map(|r| EventBody::ExternalRequested(Box::new(r))),
        (ops(), any::<u64>(), prop::option::of(failure()))
            .prop_map(|(op, requested, failure)| EventBody::ExternalResolved { op, requested, failure }),
        (run_ids(), ops(), any::<u64>(), any::<bool>()).prop_map(
            |(run_id, child, scheduled, report_start)| {
                let parent = Some(ParentLink { run_id, child, scheduled, report_start });
                let origin = Origin { parent, ..Origin::default() };
                EventBody::RunStarted(Box::new(RunStarted { origin, ..RunStarted::default() }))
            }
        ),
    ]
}

#[test]
fn rows_of_children_keep_their_text() {
    let id = "00000000-0000-0000-0000-000000000007";
    let other = "00000000-0000-0000-0000-000000000009";
    let at = 1_700_000_000_000_001_i64;
    let run_id = RunId::from_uuid(Uuid::from_u128(9));
    let plain = ChildScheduled {
        child: OpId(3),
        run_id,
        workflow_type: "ship".to_owned(),
        workflow_id: "s-1".to_owned(),
        task_queue: "main".to_owned(),
        input: Payload::json("1"),
        run_timeout: None,
        retry: None,
        reuse: ReusePolicy::Allow,
        on_parent_close: ParentClose::Terminate,
        report_start: false,
    };
    let full = ChildScheduled {
        run_timeout: Some(Duration::from_secs(1)),
        retry: Some(RetryPolicy::default()),
        reuse: ReusePolicy::AllowIfNotCompleted,
        on_parent_close: ParentClose::RequestCancel,
        report_start: true,
        ..plain.clone()
    };
    let closed = |outcome| {
        EventBody::ChildClosed(Box::new(ChildClosed { child: OpId(3), scheduled: 4, run_id, outcome }))
    };
    let why = || Failure::new("RunClosed", "no");
    for (body, rest) in [
        (
            EventBody::ChildScheduled(Box::new(plain)),
            format!(
                "ChildScheduled Some(\"ship\") Some(3) None {at} run:{other} | {{\"run_id\":\"{other}\",\"workflow_id\":\"s-1\",\
                 \"queue\":\"main\"}} | Some(\"json\") Some(b\"1\")"
            ),
        ),
        (
            EventBody::ChildScheduled(Box::new(full)),
            format!(
                "ChildScheduled Some(\"ship\") Some(3) None {at} run:{other} | {{\"run_id\":\"{other}\",\"workflow_id\":\"s-1\",\
                 \"queue\":\"main\",\"run_timeout_us\":1000000,\"retry\":{{\"initial_us\":1000000,\"coefficient\":2.0,\
                 \"maximum_us\":60000000}},\"reuse\":\"allow_if_not_completed\",\"on_parent_close\":\"request_cancel\",\
                 \"report_start\":true}} | Some(\"json\") Some(b\"1\")"
            ),
        ),
        (
            EventBody::ChildStarted { child: OpId(3), scheduled: 4 },
            format!("ChildStarted None Some(3) None {at} run:{other} | {{\"scheduled\":4}} | None None"),
        ),
        (
            closed(ChildOutcome::Completed(Payload::json("2"))),
            format!(
                "ChildClosed None Some(3) None {at} run:{other} | {{\"scheduled\":4,\"run_id\":\"{other}\",\
                 \"status\":\"completed\"}} | Some(\"json\") Some(b\"2\")"
            ),
        ),
        (
            closed(ChildOutcome::NotStarted(why())),
            format!(
                "ChildClosed None Some(3) None {at} run:{other} | {{\"scheduled\":4,\"run_id\":\"{other}\",\
                 \"status\":\"not_started\",\"failure\":{{\"kind\":\"RunClosed\",\"message\":\"no\"}}}} | None None"
            ),
        ),
    ] {
        assert_eq!(line(&event(9, Actor::Run(run_id), body)), format!("9 2 {id} {rest}"));
    }
}

#[test]
fn rows_of_requests_to_other_runs_keep_their_text() {
    let id = "00000000-0000-0000-0000-000000000007";
    let other = "00000000-0000-0000-0000-000000000009";
    let at = 1_700_000_000_000_001_i64;
    let run_id = RunId::from_uuid(Uuid::from_u128(9));
    let external = |target, action| {
        EventBody::ExternalRequested(Box::new(ExternalRequested { op: OpId(5), target, action }))
    };
    for (body, rest) in [
        (
            external(
                ExternalTarget::Workflow("w".to_owned()),
                ExternalAction::Signal { name: "go".to_owned(), input: Payload::json("2") },
            ),
            format!(
                "ExternalRequested Some(\"go\") Some(5) None {at} run:{other} | {{\"workflow_id\":\"w\",\
                 \"action\":\"signal\"}} | Some(\"json\") Some(b\"2\")"
            ),
        ),
        (
            external(ExternalTarget::Run(run_id), ExternalAction::Cancel { reason: "r".to_owned() }),
            format!(
                "ExternalRequested None Some(5) None {at} run:{other} | {{\"run_id\":\"{other}\",\"action\":\"cancel\",\
                 \"reason\":\"r\"}} | None None"
            ),
        ),
        (
            EventBody::ExternalResolved { op: OpId(5), requested: 6, failure: None },
            format!("ExternalResolved None Some(5) None {at} run:{other} | {{\"requested\":6}} | None None"),
        ),
    ] {
        assert_eq!(line(&event(9, Actor::Run(run_id), body)), format!("9 2 {id} {rest}"));
    }
}
