//! Operations of the workflow's code have one number each, for ever, whatever they are.

use super::Run;
use super::decide::Draft;
use crate::{OpId, Rejection, TimerKey};

impl Run {
    /// What the history has under this number, if it has anything: a number is never used twice.
    pub(super) fn taken(&self, op: OpId) -> Option<&'static str> {
        if self.is_queued(op) {
            Some("a queued step")
        } else if self.steps.contains_key(&op) || self.steps_ended.contains(op) {
            Some("a step")
        } else if self.timers.contains_key(&TimerKey::timer(op)) || self.timers_ended.contains(op) {
            Some("a timer")
        } else if self.children.contains(op) {
            Some("a child")
        } else if self.externals.contains(op) {
            Some("a request to another run")
        } else if self.upserts.contains(op) {
            Some("an upsert")
        } else {
            None
        }
    }
}

/// Refuses a number that the history, or an earlier command of the same commit, has given to something. `scheduled`
/// are operations of the commit that are carried out elsewhere.
pub(super) fn check_free(draft: &Draft<'_>, scheduled: &[OpId], op: OpId) -> Result<(), Rejection> {
    let refused = |problem| Err(Rejection::InvalidCommands { problem });
    if op.0 == 0 {
        return refused("operations count from 1".to_owned());
    }
    if let Some(kind) = draft.run.taken(op) {
        return refused(format!("{op} is {kind} already"));
    }
    if scheduled.contains(&op) || draft.events.iter().any(|e| e.body.op() == Some(op)) {
        return refused(format!("{op} stands for something else in the same commit"));
    }
    Ok(())
}
