//! What events say of operations that the server carries out for the code.

use everstep_core::{Event, EventBody, Payload, Resolution};

use crate::ctx::CtxState;

/// Notes what an event says of such an operation, if it is about one. Steps that the worker runs itself share some
/// of these events; they are none of this one's.
pub(super) fn note(state: &mut CtxState, event: &Event) {
    match &event.body {
        EventBody::StepScheduled(scheduled) => state.command_recorded(scheduled.step),
        EventBody::StepCancelRequested { step } => state.command_let_go(*step),
        EventBody::AttributesUpserted { op, .. } => state.command_resolved(*op, Ok(Payload::default())),
        EventBody::StepCompleted { step, result, .. } => {
            state.command_resolved(*step, Ok(result.clone()));
        }
        EventBody::StepFailed { step, failure, retry_at: None, .. } => {
            state.command_resolved(*step, Err(failure.clone()));
        }
        EventBody::StepResolved(resolved) => match &resolved.resolution {
            Resolution::Completed(result) => state.command_resolved(resolved.step, Ok(result.clone())),
            Resolution::Failed(failure) => state.command_resolved(resolved.step, Err(failure.clone())),
            Resolution::Retry => {}
        },
        EventBody::ChildScheduled(scheduled) => {
            state.command_recorded(scheduled.child);
            if let Some(op) = state.command(scheduled.child) {
                op.child.scheduled(scheduled.run_id);
            }
        }
        EventBody::ChildStarted { child, .. } => {
            if let Some(op) = state.command(*child) {
                op.child.started();
            }
        }
        EventBody::ChildClosed(closed) => {
            if let Some(op) = state.command(closed.child) {
                op.child.closed(closed.outcome.clone());
            }
            // What became of it is in its notes: this only ends the operation.
            state.command_resolved(closed.child, Ok(Payload::default()));
        }
        EventBody::ExternalRequested(requested) => state.command_recorded(requested.op),
        EventBody::ExternalResolved { op, failure, .. } => {
            state.command_resolved(*op, failure.clone().map_or(Ok(Payload::default()), Err));
        }
        _ => {}
    }
}
