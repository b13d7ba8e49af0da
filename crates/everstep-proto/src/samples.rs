//! Events between runs as properties make them up, for the rows of the log and for the wire: what may stand in their
//! leaves differs, what they are made of does not.

use everstep_core::{
    Attribute, ChildClosed, ChildOutcome, ChildScheduled, CommitCommand, Duration, EventBody, ExternalAction,
    ExternalRequested, ExternalTarget, Failure, Notes, OpId, Origin, ParentClose, ParentLink, Payload,
    RetryPolicy, ReusePolicy, RunId, RunStarted, RunStatus,
};
use proptest::prelude::*;
use proptest::strategy::Union;
use uuid::Uuid;

/// What events are made of.
pub(crate) struct Leaves {
    /// Text in a place of its own: a column, for a row.
    pub(crate) name: BoxedStrategy<String>,
    pub(crate) text: BoxedStrategy<String>,
    pub(crate) payload: BoxedStrategy<Payload>,
    pub(crate) failure: BoxedStrategy<Failure>,
    pub(crate) duration: BoxedStrategy<Duration>,
}

fn ops() -> impl Strategy<Value = OpId> {
    any::<u32>().prop_map(OpId)
}

fn run_ids() -> BoxedStrategy<RunId> {
    any::<u128>().prop_map(|id| RunId::from_uuid(Uuid::from_u128(id))).boxed()
}

fn one_of<T: Clone + std::fmt::Debug + 'static>(values: impl IntoIterator<Item = T>) -> Union<Just<T>> {
    Union::new(values.into_iter().map(Just))
}

impl Leaves {
    /// Every kind of event between runs, and a start with a parent.
    pub(crate) fn bodies(&self) -> impl Strategy<Value = EventBody> + use<> {
        let failure = &self.failure;
        let closed = (ops(), any::<u64>(), run_ids(), self.outcomes());
        let resolved = (ops(), any::<u64>(), prop::option::of(failure.clone()));
        let parents = (run_ids(), ops(), any::<u64>(), any::<bool>(), any::<u32>());
        prop_oneof![
            self.scheduled(run_ids()).prop_map(|s| EventBody::ChildScheduled(Box::new(s))),
            (ops(), any::<u64>()).prop_map(|(child, scheduled)| EventBody::ChildStarted { child, scheduled }),
            closed.prop_map(|(child, scheduled, run_id, outcome)| {
                EventBody::ChildClosed(Box::new(ChildClosed { child, scheduled, run_id, outcome }))
            }),
            self.requested().prop_map(|r| EventBody::ExternalRequested(Box::new(r))),
            resolved.prop_map(|(op, requested, failure)| EventBody::ExternalResolved {
                op,
                requested,
                failure
            }),
            parents.prop_map(|(run_id, child, scheduled, report_start, above)| {
                let parent = Some(ParentLink { run_id, child, scheduled, report_start, above });
                let origin = Origin { parent, ..Origin::default() };
                EventBody::RunStarted(Box::new(RunStarted { origin, ..RunStarted::default() }))
            }),
        ]
    }

    /// What a workflow asks for. A command has no run id yet.
    pub(crate) fn commands(&self) -> impl Strategy<Value = CommitCommand> + use<> {
        let nil = Just(RunId::from_uuid(Uuid::nil())).boxed();
        prop_oneof![
            self.scheduled(nil).prop_map(|s| CommitCommand::StartChild(Box::new(s))),
            self.requested().prop_map(|r| CommitCommand::RequestExternal(Box::new(r))),
        ]
    }

    fn scheduled(&self, run_id: BoxedStrategy<RunId>) -> impl Strategy<Value = ChildScheduled> + use<> {
        let retry = prop::option::of(Just(RetryPolicy { maximum_attempts: 3, ..RetryPolicy::default() }));
        let reuse = one_of([ReusePolicy::Allow, ReusePolicy::AllowIfNotCompleted, ReusePolicy::Reject]);
        let names = (self.name.clone(), self.text.clone(), self.text.clone());
        let times = (prop::option::of(self.duration.clone()), retry);
        let more = (reuse, one_of(ParentClose::ALL), any::<bool>(), self.notes());
        ((ops(), run_id), names, self.payload.clone(), times, more).prop_map(
            |(
                (child, run_id),
                (workflow_type, workflow_id, task_queue),
                input,
                (run_timeout, retry),
                more,
            )| {
                let (reuse, on_parent_close, report_start, notes) = more;
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
                    notes,
                }
            },
        )
    }

    fn notes(&self) -> impl Strategy<Value = Notes> + use<> {
        let memo = prop::collection::btree_map(self.text.clone(), self.payload.clone(), 0..2);
        let keywords = self.text.clone().prop_map(Attribute::Keyword);
        let attributes = prop::collection::btree_map(self.text.clone(), keywords, 0..2);
        (memo, attributes).prop_map(|(memo, attributes)| Notes { memo, attributes })
    }

    fn outcomes(&self) -> impl Strategy<Value = ChildOutcome> + use<> {
        let status =
            one_of([RunStatus::Failed, RunStatus::Canceled, RunStatus::Terminated, RunStatus::TimedOut]);
        prop_oneof![
            self.payload.clone().prop_map(ChildOutcome::Completed),
            (status, self.failure.clone())
                .prop_map(|(status, failure)| ChildOutcome::Ended { status, failure }),
            self.failure.clone().prop_map(ChildOutcome::NotStarted),
        ]
    }

    fn requested(&self) -> impl Strategy<Value = ExternalRequested> + use<> {
        let target = prop_oneof![
            run_ids().prop_map(ExternalTarget::Run),
            self.text.clone().prop_map(ExternalTarget::Workflow)
        ];
        let action = prop_oneof![
            (self.name.clone(), self.payload.clone())
                .prop_map(|(name, input)| ExternalAction::Signal { name, input }),
            self.text.clone().prop_map(|reason| ExternalAction::Cancel { reason }),
        ];
        (ops(), target, action).prop_map(|(op, target, action)| ExternalRequested { op, target, action })
    }
}
