//! Hints and notices as bytes and headers.

use async_nats::{HeaderMap, HeaderValue};
use bytes::{Bytes, BytesMut};
use everstep_core::{NodeId, QueueKey, RunId, TraceContext, limits};
use everstep_dispatch::{HintKind, HintQueue, Notice, TaskHint};
use everstep_proto::internal as wire;
use prost::{DecodeError, Message};
use uuid::Uuid;

#[cfg(test)]
mod tests;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// Longest trace header that is carried on; W3C asks for 512.
const TRACE_BYTES_MAX: usize = 2_048;

/// Why a message was skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Garbage {
    NotProtobuf(DecodeError),
    BadId(&'static str),
    WrongQueue,
}

impl std::fmt::Display for Garbage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotProtobuf(err) => write!(f, "not a message of ours: {err}"),
            Self::BadId(field) => write!(f, "{field} is not 16 bytes long"),
            Self::WrongQueue => f.write_str("it names another queue than the subject it came on"),
        }
    }
}

pub(crate) fn encode_hint(hint: &TaskHint) -> (HeaderMap, Bytes) {
    let message = wire::TaskHint {
        run_id: Bytes::copy_from_slice(hint.run_id.as_bytes()),
        namespace: hint.queue.namespace.clone(),
        task_queue: hint.queue.task_queue.clone(),
        step: hint.kind == HintKind::Step,
        needs: hint.needs.clone(),
        passes: hint.passes,
        build_id: hint.build_id.clone(),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in [(TRACEPARENT, &hint.trace.traceparent), (TRACESTATE, &hint.trace.tracestate)] {
        if value.is_empty() || value.len() > TRACE_BYTES_MAX {
            continue;
        }
        // A value with a line break is no trace context, and could forge headers: it is left out.
        if let Ok(value) = value.parse::<HeaderValue>() {
            headers.insert(name, value);
        }
    }
    (headers, Bytes::from(message.encode_to_vec()))
}

/// Reads a hint that came on the subject of `queue`.
pub(crate) fn decode_hint(
    queue: &HintQueue,
    headers: Option<&HeaderMap>,
    payload: &Bytes,
) -> Result<TaskHint, Garbage> {
    let wire::TaskHint { run_id, namespace, task_queue, step, needs, passes, build_id } =
        wire::TaskHint::decode(payload.clone()).map_err(Garbage::NotProtobuf)?;
    let hint = TaskHint {
        run_id: RunId::from_uuid(uuid(&run_id, "run_id")?),
        queue: QueueKey { namespace, task_queue },
        kind: if step { HintKind::Step } else { HintKind::Run },
        // No code has a name that is too long: whoever hears of the hint looks for itself.
        needs: name(needs),
        build_id: name(build_id),
        passes,
        trace: trace_of(headers),
    };
    // Who may publish is granted by subject: a message must not reach further than its own.
    if hint.place() == *queue { Ok(hint) } else { Err(Garbage::WrongQueue) }
}

fn name(name: String) -> String {
    if name.len() <= limits::NAME_BYTES_MAX { name } else { String::new() }
}

fn trace_of(headers: Option<&HeaderMap>) -> TraceContext {
    let read = |name| {
        let value = headers.and_then(|headers| headers.get(name)).map(HeaderValue::as_str);
        value.filter(|value| value.len() <= TRACE_BYTES_MAX).unwrap_or_default().to_owned()
    };
    let traceparent = read(TRACEPARENT);
    // A tracestate means nothing without its traceparent.
    let tracestate = if traceparent.is_empty() { String::new() } else { read(TRACESTATE) };
    TraceContext { traceparent, tracestate }
}

/// Appends `notice` to a packet of notices, each behind its length.
pub(crate) fn encode_notice(notice: &Notice, packet: &mut BytesMut) {
    let message = wire::Notice {
        run_id: Bytes::copy_from_slice(notice.run_id.as_bytes()),
        tail: notice.tail,
        closed: notice.closed,
        node_id: Bytes::copy_from_slice(notice.node.as_bytes()),
        asked: notice.asked,
    };
    // Writing into a `Vec` cannot run out of room, unlike into the packet itself.
    packet.extend_from_slice(&message.encode_length_delimited_to_vec());
}

/// Reads a packet into `notices`; what precedes the first bad one is kept.
pub(crate) fn decode_notices(mut packet: Bytes, notices: &mut Vec<Notice>) -> Result<(), Garbage> {
    while !packet.is_empty() {
        let wire::Notice { run_id, tail, closed, node_id, asked } =
            wire::Notice::decode_length_delimited(&mut packet).map_err(Garbage::NotProtobuf)?;
        notices.push(Notice {
            run_id: RunId::from_uuid(uuid(&run_id, "run_id")?),
            tail,
            closed,
            node: NodeId::from_uuid(uuid(&node_id, "node_id")?),
            asked,
        });
    }
    Ok(())
}

fn uuid(bytes: &Bytes, field: &'static str) -> Result<Uuid, Garbage> {
    Uuid::from_slice(bytes).map_err(|_| Garbage::BadId(field))
}
