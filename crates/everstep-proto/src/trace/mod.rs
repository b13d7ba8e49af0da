//! W3C trace context in the metadata of gRPC calls.

use everstep_core::{TraceContext, parse_traceparent};
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tonic::metadata::{MetadataMap, MetadataValue};

/// Name of the header that carries the trace and span ids.
pub const TRACEPARENT: &str = "traceparent";
/// Name of the header that carries vendors' additions.
pub const TRACESTATE: &str = "tracestate";
/// Longest `tracestate` that is kept, as W3C asks implementations to carry.
const TRACESTATE_BYTES_MAX: usize = 512;
/// Longest `traceparent` that is kept; version 00 has 55 bytes, later ones may be longer.
const TRACEPARENT_BYTES_MAX: usize = 255;

/// The trace context of a call: empty when there is none, or when its `traceparent` is malformed. A
/// `tracestate` that is too long or not ASCII is dropped by itself.
pub fn extract(metadata: &MetadataMap) -> TraceContext {
    let mut parents = metadata.get_all(TRACEPARENT).iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else {
        return TraceContext::default();
    };
    let Some(traceparent) = parent.to_str().ok().filter(|text| is_valid_traceparent(text)) else {
        return TraceContext::default();
    };
    let states: Result<Vec<&str>, _> = metadata.get_all(TRACESTATE).iter().map(|v| v.to_str()).collect();
    let tracestate = states.map(|parts| parts.join(",")).unwrap_or_default();
    TraceContext {
        traceparent: traceparent.to_owned(),
        tracestate: if tracestate.len() > TRACESTATE_BYTES_MAX { String::new() } else { tracestate },
    }
}

/// Adds a trace context to a call. Does nothing when it is empty or malformed.
pub fn inject(context: &TraceContext, metadata: &mut MetadataMap) {
    let TraceContext { traceparent, tracestate } = context;
    if !is_valid_traceparent(traceparent) {
        return;
    }
    let Ok(parent) = MetadataValue::try_from(traceparent.as_str()) else { return };
    metadata.insert(TRACEPARENT, parent);
    if let Ok(state) = MetadataValue::try_from(tracestate.as_str())
        && !tracestate.is_empty()
    {
        metadata.insert(TRACESTATE, state);
    }
}

/// The context as a remote parent of spans; `None` when it is empty or malformed.
pub fn remote(context: &TraceContext) -> Option<Context> {
    let (trace_id, span_id, sampled) = parse_traceparent(&context.traceparent)?;
    let span = SpanContext::new(
        TraceId::from_bytes(trace_id),
        SpanId::from_bytes(span_id),
        if sampled { TraceFlags::SAMPLED } else { TraceFlags::default() },
        true,
        context.tracestate.parse().unwrap_or(TraceState::NONE),
    );
    Some(Context::new().with_remote_span_context(span))
}

/// True for a `traceparent` that W3C trace context allows.
pub fn is_valid_traceparent(text: &str) -> bool {
    text.len() <= TRACEPARENT_BYTES_MAX && parse_traceparent(text).is_some()
}

#[cfg(test)]
mod tests;
