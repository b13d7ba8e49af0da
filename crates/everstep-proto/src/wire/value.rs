//! The small values that events, commands and requests are made of.

use std::str::FromStr;

use everstep_core::{Failure, Payload, RetryPolicy, WorkerInfo};

use super::{InvalidKind, InvalidMessage, decode_duration, encode_duration};
use crate::{api, history};

/// Failures in a chain of causes, the outermost one included.
pub const FAILURE_DEPTH_MAX: usize = 8;

/// Reads an id that is a UUID.
///
/// # Errors
/// [`InvalidKind::Missing`] when it is empty, [`InvalidKind::Id`] when it is anything but a UUID.
pub fn parse_id<T: FromStr>(field: &str, text: &str) -> Result<T, InvalidMessage> {
    if text.is_empty() {
        return Err(InvalidMessage::missing(field));
    }
    let problem = "must be a UUID, such as 01890a5d-ac96-774b-bcce-b302099a8057";
    text.parse().map_err(|_| InvalidMessage::new(InvalidKind::Id, field, problem))
}

/// A payload as the wire has it. The bytes are shared, not copied.
pub fn encode_payload(payload: &Payload) -> history::Payload {
    let Payload { encoding, data } = payload;
    history::Payload { encoding: encoding.clone(), data: data.clone() }
}

/// Reads a payload; an unset one is empty. Its size is the core's to judge.
pub fn decode_payload(wire: Option<history::Payload>) -> Payload {
    let history::Payload { encoding, data } = wire.unwrap_or_default();
    Payload { encoding, data }
}

/// A failure as the wire has it. Causes deeper than [`FAILURE_DEPTH_MAX`] are left out.
pub fn encode_failure(failure: &Failure) -> history::Failure {
    encode_cause(failure, 1, true)
}

/// As [`encode_failure`], without the bytes of the outermost details.
pub(super) fn encode_failure_bare(failure: &Failure) -> history::Failure {
    encode_cause(failure, 1, false)
}

fn encode_cause(failure: &Failure, depth: usize, with_details: bool) -> history::Failure {
    let Failure { kind, message, non_retryable, details, cause } = failure;
    history::Failure {
        kind: kind.clone(),
        message: message.clone(),
        non_retryable: *non_retryable,
        details: (with_details && !details.is_none()).then(|| encode_payload(details)),
        cause: match cause {
            Some(cause) if depth < FAILURE_DEPTH_MAX => Some(Box::new(encode_cause(cause, depth + 1, true))),
            _ => None,
        },
    }
}

/// Reads a failure that must be there.
///
/// # Errors
/// [`InvalidKind::Missing`]; [`InvalidKind::Limit`] when the chain of causes is longer than [`FAILURE_DEPTH_MAX`].
pub fn decode_failure(field: &str, wire: Option<history::Failure>) -> Result<Failure, InvalidMessage> {
    let mut links = Vec::new();
    let mut next = Some(Box::new(wire.ok_or_else(|| InvalidMessage::missing(field))?));
    while let Some(link) = next {
        if links.len() >= FAILURE_DEPTH_MAX {
            let problem = format!("must be at most {FAILURE_DEPTH_MAX} failures deep, causes included");
            return Err(InvalidMessage::new(InvalidKind::Limit, field, problem));
        }
        let history::Failure { kind, message, non_retryable, details, cause } = *link;
        links.push(Failure { kind, message, non_retryable, details: decode_payload(details), cause: None });
        next = cause;
    }
    let whole =
        links.into_iter().rev().reduce(|cause, outer| Failure { cause: Some(Box::new(cause)), ..outer });
    whole.ok_or_else(|| InvalidMessage::missing(field))
}

/// A retry policy as the wire has it.
pub fn encode_retry_policy(policy: &RetryPolicy) -> api::RetryPolicy {
    let RetryPolicy {
        initial_interval,
        backoff_coefficient,
        maximum_interval,
        maximum_attempts,
        non_retryable_kinds,
    } = policy;
    api::RetryPolicy {
        initial_interval: Some(encode_duration(*initial_interval)),
        backoff_coefficient: *backoff_coefficient,
        maximum_interval: Some(encode_duration(*maximum_interval)),
        maximum_attempts: *maximum_attempts,
        non_retryable_kinds: non_retryable_kinds.clone(),
    }
}

/// Reads a retry policy that must be there. Whether it makes sense is
/// [`RetryPolicy::validate`]'s to judge.
///
/// # Errors
/// [`InvalidMessage`] naming the field.
pub fn decode_retry_policy(
    field: &str,
    wire: Option<api::RetryPolicy>,
) -> Result<RetryPolicy, InvalidMessage> {
    let api::RetryPolicy {
        initial_interval,
        backoff_coefficient,
        maximum_interval,
        maximum_attempts,
        non_retryable_kinds,
    } = wire.ok_or_else(|| InvalidMessage::missing(field))?;
    let interval = |name: &str, wire: Option<prost_types::Duration>| match wire {
        Some(wire) => decode_duration(name, wire).map_err(|e| e.within(field)),
        None => Err(InvalidMessage::missing(name).within(field)),
    };
    Ok(RetryPolicy {
        initial_interval: interval("initial_interval", initial_interval)?,
        backoff_coefficient,
        maximum_interval: interval("maximum_interval", maximum_interval)?,
        maximum_attempts,
        non_retryable_kinds,
    })
}

/// What a worker says about itself, as the wire has it.
pub fn encode_worker_info(worker: &WorkerInfo) -> history::WorkerInfo {
    let WorkerInfo { identity, build_id } = worker;
    history::WorkerInfo { identity: identity.clone(), build_id: build_id.clone() }
}

/// Reads what a worker says about itself; unset is empty.
pub fn decode_worker_info(wire: Option<history::WorkerInfo>) -> WorkerInfo {
    let history::WorkerInfo { identity, build_id } = wire.unwrap_or_default();
    WorkerInfo { identity, build_id }
}
