//! Spans of task hints, in the trace that the hint carries. A hint without one has no spans.

use everstep_dispatch::{Error, TaskHint};
use everstep_proto::trace;
use opentelemetry::global::BoxedSpan;
use opentelemetry::trace::{Span, SpanKind, Status, Tracer};
use opentelemetry::{KeyValue, global};

/// The destination that all queues share; the queue itself is an attribute.
const DESTINATION: &str = "everstep.tasks";

/// Begins the span of a publication; end it with [`sent`].
pub(crate) fn send(hint: &TaskHint) -> Option<BoxedSpan> {
    span("send", SpanKind::Producer, hint)
}

/// Ends the span of a publication.
pub(crate) fn sent(span: Option<BoxedSpan>, outcome: &Result<(), Error>) {
    let Some(mut span) = span else { return };
    if let Err(error) = outcome {
        span.set_status(Status::error(error.to_string()));
    }
    span.end();
}

/// A hint has come, for the `delivery`th time.
pub(crate) fn received(hint: &TaskHint, delivery: u64) {
    if let Some(mut span) = span("receive", SpanKind::Consumer, hint) {
        let count = i64::try_from(delivery).unwrap_or(i64::MAX);
        span.set_attribute(KeyValue::new("everstep.delivery_count", count));
        span.end();
    }
}

fn span(operation: &'static str, kind: SpanKind, hint: &TaskHint) -> Option<BoxedSpan> {
    let parent = trace::remote(&hint.trace)?;
    let tracer = global::tracer("everstep");
    let builder =
        tracer.span_builder(format!("{operation} {DESTINATION}")).with_kind(kind).with_attributes([
            KeyValue::new("messaging.system", "nats"),
            KeyValue::new("messaging.operation.name", operation),
            KeyValue::new("messaging.operation.type", operation),
            KeyValue::new("messaging.destination.name", DESTINATION),
            KeyValue::new("everstep.task_queue", hint.queue.task_queue.clone()),
            KeyValue::new("everstep.namespace", hint.queue.namespace.clone()),
            KeyValue::new("everstep.run.id", hint.run_id.to_string()),
        ]);
    Some(tracer.build_with_context(builder, &parent))
}
