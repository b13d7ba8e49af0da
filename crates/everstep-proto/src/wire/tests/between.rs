//! Events between runs, and what workflows ask for, on the wire.

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
    let retry = option::of(Just(RetryPolicy { maximum_attempts: 3, ..RetryPolicy::default() }));
    let reuse = prop_oneof![
        Just(ReusePolicy::Allow),
        Just(ReusePolicy::AllowIfNotCompleted),
        Just(ReusePolicy::Reject)
    ];
    let close = (0..3usize).prop_map(|n| ParentClose::ALL[n]);
    let names = (text(), text(), text());
    ((ops(), run_id), names, payload(), (option::of(duration()), retry), (reuse, close, any::<bool>()))
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
        (text(), payload()).prop_map(|(name, input)| ExternalAction::Signal { name, input }),
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
        (ops(), any::<u64>(), option::of(failure()))
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

/// A command has no run id yet.
pub(super) fn commands() -> impl Strategy<Value = CommitCommand> {
    let nil = Just(RunId::from_uuid(Uuid::nil()));
    prop_oneof![
        scheduled(nil).prop_map(|s| CommitCommand::StartChild(Box::new(s))),
        requested().prop_map(|r| CommitCommand::RequestExternal(Box::new(r))),
    ]
}
