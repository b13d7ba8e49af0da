//! Guarded steps and what was said about their attempts in doubt, both ways.

use everstep_core::{DoubtPolicy, EventBody, OpId, Resolution, StepResolved};

use super::value::{encode_failure_bare, encode_payload};
use super::{InvalidKind, InvalidMessage, decode_failure, decode_payload, encode_failure};
use crate::history::{self, event::Attributes, step_resolved};

/// A policy as the wire has it; unspecified for a step that is not guarded.
pub fn encode_doubt_policy(policy: Option<DoubtPolicy>) -> history::DoubtPolicy {
    match policy {
        None => history::DoubtPolicy::Unspecified,
        Some(DoubtPolicy::Retry) => history::DoubtPolicy::Retry,
        Some(DoubtPolicy::Verify) => history::DoubtPolicy::Verify,
        Some(DoubtPolicy::AskHuman) => history::DoubtPolicy::AskHuman,
        Some(DoubtPolicy::Fail) => history::DoubtPolicy::Fail,
    }
}

/// Reads a policy.
///
/// # Errors
/// [`InvalidKind::UnknownEnum`].
pub fn decode_doubt_policy(field: &str, wire: i32) -> Result<Option<DoubtPolicy>, InvalidMessage> {
    Ok(match history::DoubtPolicy::try_from(wire) {
        Ok(history::DoubtPolicy::Unspecified) => None,
        Ok(history::DoubtPolicy::Retry) => Some(DoubtPolicy::Retry),
        Ok(history::DoubtPolicy::Verify) => Some(DoubtPolicy::Verify),
        Ok(history::DoubtPolicy::AskHuman) => Some(DoubtPolicy::AskHuman),
        Ok(history::DoubtPolicy::Fail) => Some(DoubtPolicy::Fail),
        Err(_) => {
            let problem = format!("has the unknown value {wire}");
            return Err(InvalidMessage::new(InvalidKind::UnknownEnum, field, problem));
        }
    })
}

pub(super) fn encode_in_doubt(step: OpId, name: &str, attempt: u32) -> Attributes {
    Attributes::StepInDoubt(history::StepInDoubt { step_id: step.0, name: name.to_owned(), attempt })
}

pub(super) fn decode_in_doubt(wire: history::StepInDoubt) -> EventBody {
    let history::StepInDoubt { step_id, name, attempt } = wire;
    EventBody::StepInDoubt { step: OpId(step_id), name, attempt }
}

pub(super) fn encode_resolved(resolved: &StepResolved, omit: bool) -> Attributes {
    let StepResolved { step, name, attempt, resolution, note } = resolved;
    let resolution = match resolution {
        Resolution::Completed(_) if omit => step_resolved::Resolution::Completed(history::Payload::default()),
        Resolution::Completed(result) => step_resolved::Resolution::Completed(encode_payload(result)),
        Resolution::Failed(failure) if omit => {
            step_resolved::Resolution::Failed(encode_failure_bare(failure))
        }
        Resolution::Failed(failure) => step_resolved::Resolution::Failed(encode_failure(failure)),
        Resolution::Retry => step_resolved::Resolution::Retry(history::RetryStep {}),
    };
    Attributes::StepResolved(history::StepResolved {
        step_id: step.0,
        name: name.clone(),
        attempt: *attempt,
        resolution: Some(resolution),
        note: note.clone(),
    })
}

pub(super) fn decode_resolved(wire: history::StepResolved) -> Result<EventBody, InvalidMessage> {
    let history::StepResolved { step_id, name, attempt, resolution, note } = wire;
    let resolution = match resolution {
        Some(step_resolved::Resolution::Completed(result)) => {
            Resolution::Completed(decode_payload(Some(result)))
        }
        Some(step_resolved::Resolution::Failed(failure)) => {
            Resolution::Failed(decode_failure("step_resolved.failed", Some(failure))?)
        }
        Some(step_resolved::Resolution::Retry(history::RetryStep {})) => Resolution::Retry,
        None => return Err(InvalidMessage::missing("step_resolved.resolution")),
    };
    Ok(EventBody::StepResolved(Box::new(StepResolved {
        step: OpId(step_id),
        name,
        attempt,
        resolution,
        note,
    })))
}
