//! Children: runs that a workflow starts and may wait for. The parent's log says that a child is to begin, and later
//! how it ended; what lies between is in the child's own log.

use std::collections::BTreeMap;

use super::Run;
use super::commit::check_failure;
use super::decide::{Draft, check_payload};
use super::ops::check_free;
use crate::start::check_run_timeout;
use crate::{
    ChildClosed, ChildOutcome, ChildScheduled, Event, EventBody, Failure, OpId, ParentClose, Rejection,
    RunId, Seq, limits, validate_name,
};

/// The children of a run. They are kept when the run ends: what becomes of them then is still to be told to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Children {
    by_op: BTreeMap<OpId, ChildState>,
    /// Those that have not ended.
    open: usize,
}

/// A child of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChildState {
    /// The run that it began as.
    pub run_id: RunId,
    /// The event that scheduled it.
    pub scheduled: Seq,
    /// What becomes of it when the parent ends first.
    pub on_parent_close: ParentClose,
    /// It is known to have begun.
    pub started: bool,
    /// It has ended, or could not begin.
    pub closed: bool,
}

impl Children {
    pub(super) fn contains(&self, op: OpId) -> bool {
        self.by_op.contains_key(&op)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (OpId, &ChildState)> {
        self.by_op.iter().map(|(op, state)| (*op, state))
    }

    /// Those that have not ended.
    pub(super) fn open(&self) -> impl Iterator<Item = (OpId, &ChildState)> {
        self.all().filter(|(_, state)| !state.closed)
    }

    /// The open child that `event` is about, which has to name the event that scheduled it.
    fn awaited(&self, child: OpId, scheduled: Seq) -> Option<&ChildState> {
        self.by_op.get(&child).filter(|state| state.scheduled == scheduled && !state.closed)
    }
}

impl Run {
    /// A child that its workflow asked for.
    pub fn child(&self, op: OpId) -> Option<&ChildState> {
        self.children.by_op.get(&op)
    }

    /// Children that have not ended.
    pub fn open_children(&self) -> usize {
        self.children.open
    }

    pub(super) fn note_child(&mut self, event: &Event, scheduled: &ChildScheduled) {
        let state = ChildState {
            run_id: scheduled.run_id,
            scheduled: event.seq,
            on_parent_close: scheduled.on_parent_close,
            started: false,
            closed: false,
        };
        if self.children.by_op.insert(scheduled.child, state).is_none() {
            self.children.open += 1;
        }
    }

    pub(super) fn note_child_started(&mut self, child: OpId) {
        if let Some(state) = self.children.by_op.get_mut(&child) {
            state.started = true;
        }
        self.wake();
    }

    pub(super) fn note_child_closed(&mut self, child: OpId) {
        if let Some(state) = self.children.by_op.get_mut(&child)
            && !std::mem::replace(&mut state.closed, true)
        {
            self.children.open -= 1;
        }
        self.wake();
    }
}

/// The workflow starts a child. `scheduled` are operations of the same commit that are carried out elsewhere.
pub(super) fn start(
    draft: &mut Draft<'_>,
    scheduled: &mut Vec<OpId>,
    wanted: &ChildScheduled,
) -> Result<(), Rejection> {
    let run = draft.run;
    let child = wanted.child;
    check_free(draft, scheduled, child)?;
    check_payload("input", &wanted.input)?;
    wanted.notes.check()?;
    let or = |given: &str, own: String| if given.is_empty() { own } else { given.to_owned() };
    let wanted = ChildScheduled {
        run_id: RunId::derived(draft.at, &[b"child", run.id.as_bytes(), &child.0.to_be_bytes()]),
        workflow_id: or(&wanted.workflow_id, format!("{}/{}", run.id, child.0)),
        task_queue: or(&wanted.task_queue, run.start.task_queue.clone()),
        ..wanted.clone()
    };
    if let Some(retry) = &wanted.retry {
        retry.validate()?;
    }
    check_run_timeout(wanted.run_timeout)?;
    validate_name("workflow_type", &wanted.workflow_type)?;
    validate_name("workflow_id", &wanted.workflow_id)?;
    validate_name("task_queue", &wanted.task_queue)?;
    scheduled.push(child);
    draft.push(EventBody::ChildScheduled(Box::new(wanted)));
    Ok(())
}

/// A run that would have more open children than it may have ends in a way that says so.
pub(super) fn stop_if_too_many(draft: &mut Draft<'_>) {
    let before = draft.run.open_children();
    if before + draft.events.len() <= limits::CHILDREN_OPEN_MAX {
        return;
    }
    let added = draft.events.iter().filter(|e| matches!(e.body, EventBody::ChildScheduled(_))).count();
    let open = before + added;
    if open <= limits::CHILDREN_OPEN_MAX || draft.events.last().is_some_and(|e| e.body.is_terminal()) {
        return;
    }
    draft.events.clear();
    let message = format!(
        "the run would have had {open} open children at a time; the limit is {}. Wait for some before the next",
        limits::CHILDREN_OPEN_MAX
    );
    let failure = Failure::new("LimitExceeded", message).non_retryable();
    draft.push(EventBody::RunFailed { failure, unconsumed: Vec::new(), retried_by: None });
}

/// A child has begun. Recorded when its parent's code asked to be told.
pub(super) fn started(draft: &mut Draft<'_>, child: OpId, scheduled: Seq) {
    if draft.run.children.awaited(child, scheduled).is_some_and(|state| !state.started) {
        draft.push(EventBody::ChildStarted { child, scheduled });
    }
}

/// A child has ended, or could not begin. Only the first such word counts; one that has begun has not failed to.
pub(super) fn closed(draft: &mut Draft<'_>, closed: &ChildClosed) -> Result<(), Rejection> {
    let Some(state) = draft.run.children.awaited(closed.child, closed.scheduled) else { return Ok(()) };
    let outcome = match &closed.outcome {
        ChildOutcome::NotStarted(_) if state.started => return Ok(()),
        ChildOutcome::NotStarted(failure) => ChildOutcome::NotStarted(check_failure(failure)?),
        ChildOutcome::Ended { status, failure } => {
            ChildOutcome::Ended { status: *status, failure: check_failure(failure)? }
        }
        ChildOutcome::Completed(result) => {
            check_payload("result", result)?;
            ChildOutcome::Completed(result.clone())
        }
    };
    draft.push(EventBody::ChildClosed(Box::new(ChildClosed { outcome, ..closed.clone() })));
    Ok(())
}
