//! Signals and cancels from one run's workflow to another run.

use std::collections::BTreeMap;

use super::Run;
use super::commit::check_failure;
use super::decide::{Draft, check_payload, cut};
use super::id_set::IdSet;
use super::ops::check_free;
use crate::{
    EventBody, ExternalAction, ExternalRequested, ExternalTarget, Failure, OpId, Rejection, Seq,
    validate_name,
};

/// What a run has asked of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Externals {
    /// Requests without an answer, with the event that made each.
    pending: BTreeMap<OpId, Seq>,
    answered: IdSet,
}

impl Externals {
    pub(super) fn contains(&self, op: OpId) -> bool {
        self.pending.contains_key(&op) || self.answered.contains(op)
    }

    /// True while there is no answer to that request.
    pub(super) fn is_pending(&self, op: OpId) -> bool {
        self.pending.contains_key(&op)
    }
}

impl Run {
    pub(super) fn note_external(&mut self, seq: Seq, op: OpId) {
        self.externals.pending.insert(op, seq);
    }

    pub(super) fn note_external_resolved(&mut self, op: OpId) {
        self.externals.pending.remove(&op);
        self.externals.answered.insert(op);
        self.wake();
    }
}

/// The workflow wants something of another run. `scheduled` are operations of the same commit that are carried out
/// elsewhere.
pub(super) fn request(
    draft: &mut Draft<'_>,
    scheduled: &mut Vec<OpId>,
    wanted: &ExternalRequested,
) -> Result<(), Rejection> {
    let ExternalRequested { op, target, action } = wanted;
    check_free(draft, scheduled, *op)?;
    if let ExternalTarget::Workflow(workflow_id) = target {
        validate_name("workflow_id", workflow_id)?;
    }
    let action = match action {
        ExternalAction::Signal { name, input } => {
            validate_name("signal name", name)?;
            check_payload("input", input)?;
            action.clone()
        }
        ExternalAction::Cancel { reason } => ExternalAction::Cancel { reason: cut(reason) },
    };
    scheduled.push(*op);
    let requested = ExternalRequested { op: *op, target: target.clone(), action };
    draft.push(EventBody::ExternalRequested(Box::new(requested)));
    Ok(())
}

/// What became of a request: delivered, or why not. Only the first such word counts.
pub(super) fn resolve(
    draft: &mut Draft<'_>,
    op: OpId,
    requested: Seq,
    failure: Option<&Failure>,
) -> Result<(), Rejection> {
    if draft.run.externals.pending.get(&op) == Some(&requested) {
        let failure = failure.map(check_failure).transpose()?;
        draft.push(EventBody::ExternalResolved { op, requested, failure });
    }
    Ok(())
}
