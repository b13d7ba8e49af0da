//! What a run says of the run before it and of the one that follows it, both ways.

use everstep_core::{Continuation, Digest, EventBody, HeardSignal, RetryPolicy, RunId};

use super::{
    InvalidKind, InvalidMessage, decode_duration, decode_payload, decode_retry_policy, decode_timestamp,
    encode_duration, encode_payload, encode_retry_policy, encode_timestamp, parse_id,
};
use crate::{api, history};

/// A retry policy as histories have it.
pub fn encode_recorded_policy(policy: &RetryPolicy) -> history::RetryPolicy {
    let api::RetryPolicy {
        initial_interval,
        backoff_coefficient,
        maximum_interval,
        maximum_attempts,
        non_retryable_kinds,
    } = encode_retry_policy(policy);
    history::RetryPolicy {
        initial_interval,
        backoff_coefficient,
        maximum_interval,
        maximum_attempts,
        non_retryable_kinds,
    }
}

/// Reads a retry policy of a history, or of a request that is recorded as it is.
///
/// # Errors
/// [`InvalidMessage`] naming the field.
pub fn decode_recorded_policy(
    field: &str,
    wire: history::RetryPolicy,
) -> Result<RetryPolicy, InvalidMessage> {
    let history::RetryPolicy {
        initial_interval,
        backoff_coefficient,
        maximum_interval,
        maximum_attempts,
        non_retryable_kinds,
    } = wire;
    let wire = api::RetryPolicy {
        initial_interval,
        backoff_coefficient,
        maximum_interval,
        maximum_attempts,
        non_retryable_kinds,
    };
    // The log has no word for what is no number.
    if !wire.backoff_coefficient.is_finite() {
        let field = format!("{field}.backoff_coefficient");
        return Err(InvalidMessage::new(InvalidKind::Value, field, "must be a finite number"));
    }
    decode_retry_policy(field, Some(wire))
}

pub(super) fn encode_continued(successor: RunId, carried: &[u64]) -> history::RunContinued {
    history::RunContinued { successor_run_id: successor.to_string(), carried: carried.to_vec() }
}

pub(super) fn decode_continued(wire: history::RunContinued) -> Result<EventBody, InvalidMessage> {
    let history::RunContinued { successor_run_id, carried } = wire;
    Ok(EventBody::RunContinued { successor: parse_id("successor_run_id", &successor_run_id)?, carried })
}

/// A run that may not be there: the empty text.
pub(super) fn encode_link(run: Option<RunId>) -> String {
    run.map(|run| run.to_string()).unwrap_or_default()
}

pub(super) fn decode_link(field: &str, text: &str) -> Result<Option<RunId>, InvalidMessage> {
    if text.is_empty() { Ok(None) } else { parse_id(field, text).map(Some) }
}

pub(super) fn encode_heard(heard: &HeardSignal) -> history::HeardSignal {
    let HeardSignal { signal_id, said, at } = heard;
    history::HeardSignal {
        signal_id: signal_id.clone(),
        digest: said.as_u64(),
        at: Some(encode_timestamp(*at)),
    }
}

pub(super) fn decode_heard(wire: history::HeardSignal) -> Result<HeardSignal, InvalidMessage> {
    let history::HeardSignal { signal_id, digest, at } = wire;
    let at = at.ok_or_else(|| InvalidMessage::missing("heard_signals.at"))?;
    let at = decode_timestamp("heard_signals.at", at)?;
    Ok(HeardSignal { signal_id, said: Digest::from_u64(digest), at })
}

pub(super) fn encode_continue(next: &Continuation) -> api::ContinueAsNew {
    let Continuation { workflow_type, task_queue, input, run_timeout, unconsumed } = next;
    api::ContinueAsNew {
        workflow_type: workflow_type.clone(),
        task_queue: task_queue.clone(),
        input: Some(encode_payload(input)),
        run_timeout: run_timeout.map(encode_duration),
        unconsumed: unconsumed.clone(),
    }
}

pub(super) fn decode_continue(wire: api::ContinueAsNew) -> Result<Continuation, InvalidMessage> {
    let api::ContinueAsNew { workflow_type, task_queue, input, run_timeout, unconsumed } = wire;
    let run_timeout = run_timeout.map(|d| decode_duration("continue_as_new.run_timeout", d)).transpose()?;
    Ok(Continuation { workflow_type, task_queue, input: decode_payload(input), run_timeout, unconsumed })
}
