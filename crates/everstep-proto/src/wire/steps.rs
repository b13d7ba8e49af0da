//! Events about steps, both ways.

use everstep_core::{EventBody, OpId};

use super::doubt::{encode_in_doubt, encode_resolved};
use super::event::encode_why;
use super::{
    InvalidMessage, decode_doubt_policy, decode_duration, decode_failure, decode_payload, decode_timestamp,
    encode_doubt_policy, encode_duration, encode_payload, encode_timestamp, queued,
};
use crate::history::{self, event::Attributes};

/// The kinds that are about a step; `None` for any other.
pub(super) fn encode(body: &EventBody, omit: bool) -> Option<Attributes> {
    Some(match body {
        EventBody::StepScheduled(scheduled) => {
            Attributes::StepScheduled(queued::encode_scheduled(scheduled, omit))
        }
        EventBody::StepCancelRequested { step } => {
            Attributes::StepCancelRequested(history::StepCancelRequested { step_id: step.0 })
        }
        EventBody::StepInDoubt { step, name, attempt } => encode_in_doubt(*step, name, *attempt),
        EventBody::StepResolved(resolved) => encode_resolved(resolved, omit),
        EventBody::StepStarted { step, name, attempt, in_doubt } => {
            Attributes::StepStarted(history::StepStarted {
                in_doubt: encode_doubt_policy(*in_doubt).into(),
                step_id: step.0,
                name: name.clone(),
                attempt: *attempt,
            })
        }
        EventBody::StepCompleted { step, name, attempt, elapsed, result } => {
            Attributes::StepCompleted(history::StepCompleted {
                step_id: step.0,
                name: name.clone(),
                attempt: *attempt,
                elapsed: Some(encode_duration(*elapsed)),
                result: (!omit).then(|| encode_payload(result)),
            })
        }
        EventBody::StepFailed { step, name, attempt, elapsed, failure, retry_at } => {
            Attributes::StepFailed(history::StepFailed {
                step_id: step.0,
                name: name.clone(),
                attempt: *attempt,
                elapsed: Some(encode_duration(*elapsed)),
                failure: encode_why(failure, omit),
                retry_at: retry_at.map(encode_timestamp),
            })
        }
        _ => return None,
    })
}

pub(super) fn decode_started(wire: history::StepStarted) -> Result<EventBody, InvalidMessage> {
    let history::StepStarted { step_id, name, attempt, in_doubt } = wire;
    let in_doubt = decode_doubt_policy("step_started.in_doubt", in_doubt)?;
    Ok(EventBody::StepStarted { step: OpId(step_id), name, attempt, in_doubt })
}

pub(super) fn decode_completed(wire: history::StepCompleted) -> Result<EventBody, InvalidMessage> {
    let history::StepCompleted { step_id, name, attempt, elapsed, result } = wire;
    Ok(EventBody::StepCompleted {
        step: OpId(step_id),
        name,
        attempt,
        elapsed: decode_duration("step_completed.elapsed", elapsed.unwrap_or_default())?,
        result: decode_payload(result),
    })
}

pub(super) fn decode_failed(wire: history::StepFailed) -> Result<EventBody, InvalidMessage> {
    let history::StepFailed { step_id, name, attempt, elapsed, failure, retry_at } = wire;
    Ok(EventBody::StepFailed {
        step: OpId(step_id),
        name,
        attempt,
        elapsed: decode_duration("elapsed", elapsed.unwrap_or_default())?,
        failure: decode_failure("failure", failure)?,
        retry_at: retry_at.map(|at| decode_timestamp("retry_at", at)).transpose()?,
    })
}
