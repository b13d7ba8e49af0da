//! What stands in the column `attrs` of events between runs. The rules of `attrs.rs` hold here too.

use std::borrow::Cow;
use std::collections::BTreeMap;

use everstep_core::{
    ChildOutcome, ChildScheduled, Duration, ExternalAction, ExternalRequested, ExternalTarget, OpId,
    ParentClose, ParentLink, Payload, ReusePolicy, RunId, RunStatus, Seq,
};
use serde::{Deserialize, Serialize};

use super::attrs::FailureAttrs;
use super::attrs_notes::{self, AttributesAttrs, MemoAttrs};
use super::attrs_steps::RetryAttrs;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Where a run comes from.
#[derive(Serialize, Deserialize)]
pub(super) struct ParentAttrs {
    run_id: RunId,
    child: OpId,
    scheduled: Seq,
    #[serde(default, skip_serializing_if = "is_default")]
    report_start: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    above: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ChildScheduledAttrs<'a> {
    run_id: RunId,
    workflow_id: Cow<'a, str>,
    queue: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run_timeout_us: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry: Option<RetryAttrs<'a>>,
    #[serde(default, skip_serializing_if = "is_default")]
    reuse: ReusePolicy,
    #[serde(default, skip_serializing_if = "is_default")]
    on_parent_close: ParentClose,
    #[serde(default, skip_serializing_if = "is_default")]
    report_start: bool,
    #[serde(borrow, default, skip_serializing_if = "BTreeMap::is_empty")]
    attributes: AttributesAttrs<'a>,
    #[serde(borrow, default, skip_serializing_if = "BTreeMap::is_empty")]
    memo: MemoAttrs<'a>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ChildStartedAttrs {
    pub(super) scheduled: Seq,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ChildClosedAttrs<'a> {
    pub(super) scheduled: Seq,
    pub(super) run_id: RunId,
    status: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure: Option<FailureAttrs<'a>>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ExternalRequestedAttrs<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run_id: Option<RunId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    workflow_id: Option<Cow<'a, str>>,
    action: ActionWord,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    reason: Cow<'a, str>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ActionWord {
    Signal,
    Cancel,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ExternalResolvedAttrs<'a> {
    pub(super) requested: Seq,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<FailureAttrs<'a>>,
}

impl From<&ParentLink> for ParentAttrs {
    fn from(link: &ParentLink) -> Self {
        let ParentLink { run_id, child, scheduled, report_start, above } = *link;
        Self { run_id, child, scheduled, report_start, above }
    }
}

impl From<ParentAttrs> for ParentLink {
    fn from(attrs: ParentAttrs) -> Self {
        let ParentAttrs { run_id, child, scheduled, report_start, above } = attrs;
        Self { run_id, child, scheduled, report_start, above }
    }
}

impl<'a> From<&'a ChildScheduled> for ChildScheduledAttrs<'a> {
    fn from(scheduled: &'a ChildScheduled) -> Self {
        let ChildScheduled {
            child: _,
            run_id,
            workflow_type: _,
            workflow_id,
            task_queue,
            input: _,
            run_timeout,
            retry,
            reuse,
            on_parent_close,
            report_start,
            notes,
        } = scheduled;
        let (attributes, memo) = attrs_notes::encode(notes);
        Self {
            run_id: *run_id,
            workflow_id: workflow_id.into(),
            queue: task_queue.into(),
            run_timeout_us: *run_timeout,
            retry: retry.as_ref().map(RetryAttrs::from),
            reuse: *reuse,
            on_parent_close: *on_parent_close,
            report_start: *report_start,
            attributes,
            memo,
        }
    }
}

impl ChildScheduledAttrs<'_> {
    pub(super) fn scheduled(self, child: OpId, workflow_type: String, input: Payload) -> ChildScheduled {
        ChildScheduled {
            child,
            run_id: self.run_id,
            workflow_type,
            workflow_id: self.workflow_id.into_owned(),
            task_queue: self.queue.into_owned(),
            input,
            run_timeout: self.run_timeout_us,
            retry: self.retry.map(Into::into),
            reuse: self.reuse,
            on_parent_close: self.on_parent_close,
            report_start: self.report_start,
            notes: attrs_notes::decode(self.attributes, self.memo),
        }
    }
}

impl<'a> ChildClosedAttrs<'a> {
    pub(super) fn new(scheduled: Seq, run_id: RunId, outcome: &'a ChildOutcome) -> Self {
        let failure = outcome.failure().map(FailureAttrs::from);
        Self { scheduled, run_id, status: outcome.as_str().into(), failure }
    }

    /// How the child ended, with the event's payload as its result or details; `None` when that cannot be read.
    pub(super) fn outcome(self, payload: Payload) -> Option<ChildOutcome> {
        if self.status == ChildOutcome::NOT_STARTED {
            return Some(ChildOutcome::NotStarted(self.failure?.with_details(payload)));
        }
        match RunStatus::parse(&self.status)? {
            RunStatus::Completed => Some(ChildOutcome::Completed(payload)),
            status => Some(ChildOutcome::Ended { status, failure: self.failure?.with_details(payload) }),
        }
    }
}

impl<'a> From<&'a ExternalRequested> for ExternalRequestedAttrs<'a> {
    fn from(requested: &'a ExternalRequested) -> Self {
        let ExternalRequested { op: _, target, action } = requested;
        let (run_id, workflow_id) = match target {
            ExternalTarget::Run(run) => (Some(*run), None),
            ExternalTarget::Workflow(id) => (None, Some(id.into())),
        };
        let (action, reason) = match action {
            ExternalAction::Signal { .. } => (ActionWord::Signal, ""),
            ExternalAction::Cancel { reason } => (ActionWord::Cancel, reason.as_str()),
        };
        Self { run_id, workflow_id, action, reason: reason.into() }
    }
}

impl ExternalRequestedAttrs<'_> {
    /// The request; `None` when it names no run, or a signal without a name.
    pub(super) fn requested(
        self,
        op: OpId,
        name: Option<String>,
        input: Payload,
    ) -> Option<ExternalRequested> {
        let target = match (self.run_id, self.workflow_id) {
            (Some(run), _) => ExternalTarget::Run(run),
            (None, Some(id)) => ExternalTarget::Workflow(id.into_owned()),
            (None, None) => return None,
        };
        let action = match self.action {
            ActionWord::Signal => ExternalAction::Signal { name: name?, input },
            ActionWord::Cancel => ExternalAction::Cancel { reason: self.reason.into_owned() },
        };
        Some(ExternalRequested { op, target, action })
    }
}
