//! Questions to the code of runs, on a worker's stream.

use everstep_core::{Blocked, limits};
use everstep_engine::{AskKind, Query, Said};
use everstep_engine::{WorkerIn, WorkerOut};
use everstep_proto::api::{self, answer, ask, server_message::Message};
use everstep_proto::wire::{decode_blocked, decode_failure, encode_duration, encode_payload, parse_id};
use everstep_proto::{InvalidKind, InvalidMessage, history};

use super::frame::pieces;

/// What Hello's capability is called.
pub(super) const CAPABILITY: &str = "asks";
/// The same, of holding histories against the code.
pub(super) const CHECKS: &str = "checks";
/// What is kept of a failure's message; it travels in the headers of an answer.
const MESSAGE_BYTES_MAX: usize = 2_048;
/// What is kept of either side of a mismatch.
const SIDE_BYTES_MAX: usize = 800;

/// A question, in pieces of a frame at most.
pub(super) fn encode(out: WorkerOut) -> Vec<Message> {
    let WorkerOut::Ask { ask, run_id, epoch, at_least, events, query, wait } = out else { return Vec::new() };
    let mut pieces = pieces(&events, |_| false).into_iter().peekable();
    let mut messages = Vec::new();
    while let Some((_, events)) = pieces.next() {
        let Query { kind, name, input } = &*query;
        let more = pieces.peek().is_some();
        let (name, input) = (name.clone(), Some(encode_payload(input)));
        let what = match kind {
            AskKind::Query => ask::What::Query(api::Query { name, input }),
            AskKind::Update => ask::What::Validate(api::Validate { name, input }),
        };
        messages.push(Message::Ask(api::Ask {
            ask_id: ask.to_string(),
            run_id: run_id.to_string(),
            epoch,
            at_least_seq: at_least,
            events,
            more,
            wait: Some(encode_duration(wait)),
            // The last piece says what is asked.
            what: (!more).then_some(what),
        }));
    }
    messages
}

/// A history to be checked, in pieces of a frame at most.
pub(super) fn encode_check(out: WorkerOut) -> Vec<Message> {
    let WorkerOut::Check { check, run_id, events, wait } = out else { return Vec::new() };
    let mut pieces = pieces(&events, |_| false).into_iter().peekable();
    let mut messages = Vec::new();
    while let Some((_, events)) = pieces.next() {
        let more = pieces.peek().is_some();
        messages.push(Message::Ask(api::Ask {
            ask_id: check.to_string(),
            run_id: run_id.to_string(),
            epoch: 0,
            at_least_seq: 0,
            events,
            more,
            wait: Some(encode_duration(wait)),
            what: (!more).then_some(ask::What::Check(api::CheckHistory {})),
        }));
    }
    messages
}

/// What a worker says to a question.
pub(super) fn decode(wire: api::Answer) -> Result<WorkerIn, InvalidMessage> {
    let api::Answer { ask_id, seq, outcome } = wire;
    let ask = parse_id("ask_id", &ask_id)?;
    let said = match outcome.ok_or_else(|| InvalidMessage::missing("outcome"))? {
        answer::Outcome::Value(value) => Said::Value(payload(value)?),
        answer::Outcome::Refused(failure) => {
            let failure = decode_failure("refused", Some(failure))?;
            Said::Refused {
                kind: cut(failure.kind, limits::NAME_BYTES_MAX),
                message: cut(failure.message, MESSAGE_BYTES_MAX),
            }
        }
        answer::Outcome::Mismatch(blocked) => {
            let blocked = decode_blocked(blocked).map_err(|e| e.within("mismatch"))?;
            Said::Mismatch(Box::new(Blocked {
                expected: cut(blocked.expected, SIDE_BYTES_MAX),
                produced: cut(blocked.produced, SIDE_BYTES_MAX),
                source: cut(blocked.source, SIDE_BYTES_MAX),
                hint: cut(blocked.hint, SIDE_BYTES_MAX),
                build_id: cut(blocked.build_id, limits::NAME_BYTES_MAX),
                ..blocked
            }))
        }
        answer::Outcome::Passed(api::Passed {}) => Said::Passed,
        answer::Outcome::Gone(reason) => Said::Gone(cut(reason, MESSAGE_BYTES_MAX)),
    };
    Ok(WorkerIn::Answer { ask, seq, said })
}

fn payload(wire: history::Payload) -> Result<everstep_core::Payload, InvalidMessage> {
    let value = everstep_proto::wire::decode_payload(Some(wire));
    let limit = |field: &str, size: usize, max: usize| {
        let problem = format!("is {size} bytes long, more than the limit of {max}");
        (size > max).then(|| InvalidMessage::new(InvalidKind::Limit, field, problem))
    };
    let large = limit("value.data", value.data.len(), limits::PAYLOAD_BYTES_MAX)
        .or_else(|| limit("value.encoding", value.encoding.len(), limits::NAME_BYTES_MAX));
    match large {
        Some(error) => Err(error),
        None if value.encoding.contains('\0') => {
            Err(InvalidMessage::new(InvalidKind::Value, "value.encoding", "must not contain NUL"))
        }
        None => Ok(value),
    }
}

/// Text for people: no database takes NUL, and headers have little room.
fn cut(text: String, max: usize) -> String {
    let text = if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text };
    if text.len() <= max {
        return text;
    }
    let end = (0..=max - '…'.len_utf8()).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests;
