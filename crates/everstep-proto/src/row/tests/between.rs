//! Events between runs, as rows.

use everstep_core::{
    Attribute, ChildClosed, ChildOutcome, ChildScheduled, ExternalAction, ExternalRequested, ExternalTarget,
    Notes, Origin, ParentClose, ParentLink, RetryPolicy, ReusePolicy,
};

use super::*;
use crate::samples::Leaves;

/// What may stand in a row.
fn leaves() -> Leaves {
    Leaves {
        name: column().boxed(),
        text: text().boxed(),
        payload: payload().boxed(),
        failure: failure().boxed(),
        duration: duration().boxed(),
    }
}

pub(super) fn bodies() -> impl Strategy<Value = EventBody> {
    leaves().bodies()
}

fn noted() -> Notes {
    Notes {
        memo: [("m".to_owned(), Payload::json("1"))].into(),
        attributes: [("a".to_owned(), Attribute::Int(1))].into(),
    }
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
        notes: Notes::default(),
    };
    let full = ChildScheduled {
        run_timeout: Some(Duration::from_secs(1)),
        retry: Some(RetryPolicy::default()),
        reuse: ReusePolicy::AllowIfNotCompleted,
        on_parent_close: ParentClose::RequestCancel,
        report_start: true,
        notes: noted(),
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
                 \"report_start\":true,\"attributes\":{{\"a\":{{\"int\":1}}}},\"memo\":{{\"m\":{{\"encoding\":\"json\",\"text\":\"1\"}}}}}} | Some(\"json\") Some(b\"1\")"
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

/// A child of a run that is nobody's child is written as it was before generations were counted.
#[test]
fn rows_of_what_children_come_from_keep_their_text() {
    for (above, counted) in [(0, ""), (2, ",\"above\":2")] {
        let run_id = RunId::from_uuid(Uuid::from_u128(9));
        let parent = Some(ParentLink { run_id, child: OpId(3), scheduled: 4, report_start: true, above });
        let origin = Origin { parent, ..Origin::default() };
        let body = EventBody::RunStarted(Box::new(RunStarted { origin, ..RunStarted::default() }));
        let text = line(&event(1, Actor::Run(run_id), body));
        let expected = format!(
            "\"parent\":{{\"run_id\":\"{run_id}\",\"child\":3,\"scheduled\":4,\"report_start\":true{counted}}}"
        );
        assert!(text.contains(&expected), "{text}");
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
