//! Queued steps, on a worker's stream.

use everstep_core::{OpId, Payload, limits};
use everstep_engine::{GivenStep, StepKey, StepOffer, StepSaid, WorkerIn, WorkerOut};
use everstep_proto::api::{self, server_message::Message, step_result::End};
use everstep_proto::wire::{
    decode_duration, decode_failure, decode_payload, encode_duration, encode_payload, encode_timestamp,
    parse_id,
};
use everstep_proto::{InvalidKind, InvalidMessage, history};
use everstep_store::DETAILS_BYTES_MAX;

use crate::check::Check;
use crate::steps::token::TaskTokens;
use crate::{reason, status};

/// What Hello's and Welcome's capability is called.
pub(super) const CAPABILITY: &str = "steps";
const TYPES_MAX: usize = 1_000;
const SLOTS_MAX: u32 = 100_000;

/// What a worker says in its Hello about the queued steps that it runs.
pub(super) struct Said {
    pub(super) types: Vec<String>,
    pub(super) slots: u32,
    pub(super) per_second: f64,
    pub(super) held: Vec<api::HeldStep>,
}

/// Checks it.
pub(super) fn offer(check: &mut Check, said: Said) -> StepOffer {
    let Said { types, slots, per_second, held } = said;
    let types = super::hello::names(check, "hello.step_types", types, TYPES_MAX);
    if slots > SLOTS_MAX {
        check.refuse("hello.step_slots", reason::INVALID_ARGUMENT, format!("must be 0 to {SLOTS_MAX}"));
    }
    if !is_rate(per_second) {
        check.refuse("hello.steps_per_second", reason::INVALID_ARGUMENT, "must be 0 or a positive number");
    }
    if held.len() > SLOTS_MAX as usize {
        let problem = format!("has {} entries, more than the limit of {SLOTS_MAX}", held.len());
        check.refuse("hello.held_steps", reason::LIMIT_EXCEEDED, problem);
        return StepOffer::default();
    }
    let mut keys = Vec::with_capacity(held.len());
    for (i, api::HeldStep { run_id, step_id, attempt, claim_id }) in held.into_iter().enumerate() {
        match key((&run_id, step_id, attempt, &claim_id)) {
            Ok(key) => keys.push(key),
            Err(error) => check.take(Err(error.within(&format!("hello.held_steps[{i}]")))),
        }
    }
    StepOffer { types, slots, per_second, held: keys }
}

fn is_rate(rate: f64) -> bool {
    rate.is_finite() && rate >= 0.0
}

fn key((run_id, step, attempt, claim_id): (&str, u32, u32, &str)) -> Result<StepKey, InvalidMessage> {
    Ok(StepKey {
        run_id: parse_id("run_id", run_id)?,
        step: OpId(step),
        attempt,
        claim: parse_id("claim_id", claim_id)?,
    })
}

/// What a worker says about an attempt that it lets go of.
pub(super) fn decode_result(wire: api::StepResult) -> Result<WorkerIn, InvalidMessage> {
    let api::StepResult { run_id, step_id, attempt, claim_id, elapsed, end, details } = wire;
    let elapsed = decode_duration("elapsed", elapsed.unwrap_or_default())?;
    let ended = |end| StepSaid::Ended(end, elapsed);
    let said = match end.ok_or_else(|| InvalidMessage::missing("end"))? {
        End::Completed(result) => {
            let result = decode_payload(Some(result));
            within("completed", &result, limits::PAYLOAD_BYTES_MAX)?;
            ended(everstep_core::StepEnd::Completed(result))
        }
        End::Failed(failure) => {
            ended(everstep_core::StepEnd::Failed(decode_failure("failed", Some(failure))?))
        }
        End::Canceled(said) => ended(everstep_core::StepEnd::Canceled(said)),
        End::Deferred(api::Deferred {}) => StepSaid::Deferred,
        End::Returned(api::Returned {}) => StepSaid::Returned,
    };
    let key = key((&run_id, step_id, attempt, &claim_id))?;
    Ok(WorkerIn::StepSaid { key, said, details: details_of(details)? })
}

/// A worker says that an attempt lives.
pub(super) fn decode_beat(wire: api::StepBeat) -> Result<WorkerIn, InvalidMessage> {
    let api::StepBeat { run_id, step_id, attempt, claim_id, details } = wire;
    let key = key((&run_id, step_id, attempt, &claim_id))?;
    Ok(WorkerIn::StepBeat { key, details: details_of(details)? })
}

/// A worker says what it takes from here on.
pub(super) fn decode_limits(wire: api::Limits) -> Result<WorkerIn, InvalidMessage> {
    let api::Limits { step_slots: slots, steps_per_second: per_second } = wire;
    let invalid = |field, problem| Err(InvalidMessage::new(InvalidKind::Value, field, problem));
    if slots > SLOTS_MAX {
        return invalid("step_slots", format!("must be 0 to {SLOTS_MAX}"));
    }
    if !is_rate(per_second) {
        return invalid("steps_per_second", "must be 0 or a positive number".to_owned());
    }
    Ok(WorkerIn::Limits { slots, per_second })
}

fn details_of(wire: Option<history::Payload>) -> Result<Option<Payload>, InvalidMessage> {
    let Some(wire) = wire else { return Ok(None) };
    let details = decode_payload(Some(wire));
    within("details", &details, DETAILS_BYTES_MAX)?;
    Ok(Some(details))
}

/// Refuses what is too large, and what no database takes.
fn within(field: &str, payload: &Payload, max: usize) -> Result<(), InvalidMessage> {
    let limit = |what: &str, size: usize, max: usize| {
        let problem = format!("is {size} bytes long, more than the limit of {max}");
        Err(InvalidMessage::new(InvalidKind::Limit, format!("{field}.{what}"), problem))
    };
    if payload.data.len() > max {
        return limit("data", payload.data.len(), max);
    }
    if payload.encoding.len() > limits::NAME_BYTES_MAX {
        return limit("encoding", payload.encoding.len(), limits::NAME_BYTES_MAX);
    }
    if payload.encoding.contains('\0') {
        let field = format!("{field}.encoding");
        return Err(InvalidMessage::new(InvalidKind::Value, field, "must not contain NUL"));
    }
    Ok(())
}

/// What the engine says of queued steps.
pub(super) fn encode(out: WorkerOut, tokens: Option<&TaskTokens>) -> Option<Message> {
    Some(match out {
        WorkerOut::StepTask(given) => Message::StepTask(task(*given, tokens)),
        WorkerOut::StepCancel { run_id, step, attempt, gone } => Message::StepCancel(api::StepCancel {
            run_id: run_id.to_string(),
            step_id: step.0,
            attempt,
            reason: if gone { "GONE" } else { "CANCELED" }.to_owned(),
            claim_id: String::new(),
        }),
        WorkerOut::StepAsk(key) => Message::StepCancel(api::StepCancel {
            run_id: key.run_id.to_string(),
            step_id: key.step.0,
            attempt: key.attempt,
            reason: "UNHEARD".to_owned(),
            claim_id: key.claim.to_string(),
        }),
        WorkerOut::StepAck { key, result } => Message::StepResultAck(api::StepResultAck {
            run_id: key.run_id.to_string(),
            step_id: key.step.0,
            attempt: key.attempt,
            reason: result.err().map(|r| status::reason_of(&r).word.to_owned()).unwrap_or_default(),
        }),
        _ => return None,
    })
}

fn task(given: GivenStep, tokens: Option<&TaskTokens>) -> api::StepTask {
    let task_token = tokens.map(|tokens| tokens.of(&given.key)).unwrap_or_default();
    let GivenStep {
        key,
        name,
        input,
        details,
        start_to_close,
        heartbeat,
        workflow_type,
        workflow_id,
        task_queue,
        trace,
        scheduled_at,
    } = given;
    api::StepTask {
        run_id: key.run_id.to_string(),
        step_id: key.step.0,
        name,
        attempt: key.attempt,
        claim_id: key.claim.to_string(),
        input: Some(encode_payload(&input)),
        last_details: (!details.is_none()).then(|| encode_payload(&details)),
        start_to_close: start_to_close.map(encode_duration),
        heartbeat: heartbeat.map(encode_duration),
        workflow_type,
        workflow_id,
        task_queue,
        trace: Some(history::TraceContext { traceparent: trace.traceparent, tracestate: trace.tracestate }),
        scheduled_at: Some(encode_timestamp(scheduled_at)),
        task_token,
    }
}

#[cfg(test)]
mod tests;
