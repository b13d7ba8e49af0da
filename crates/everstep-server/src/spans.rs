//! The spans of a run: its trigger when it starts, and the run itself once it has ended.
//!
//! No span is held open over a wait, which may be days and several processes long. The run's own has an id
//! that follows from the run's, so that workers hang their steps below it before it is sent.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use everstep_core::{Run, RunStatus, RunTrace, Timestamp};
use everstep_engine::Observer;
use everstep_proto::trace;
use opentelemetry::trace::{Span, SpanBuilder, SpanId, SpanKind, Status, TraceId, Tracer};
use opentelemetry::{KeyValue, global};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

thread_local! {
    /// The ids of the span that this thread is starting, if they are given.
    static GIVEN: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// The ids of spans: random, but for the spans of [`RunSpans`]. A tracer provider without it gives those
/// random ids as well, and the steps of a run then name a parent that nobody has seen.
#[derive(Clone, Debug, Default)]
pub struct SpanIds(RandomIdGenerator);

impl IdGenerator for SpanIds {
    fn new_trace_id(&self) -> TraceId {
        GIVEN.get().map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace)
    }

    fn new_span_id(&self) -> SpanId {
        GIVEN.get().map_or_else(|| self.0.new_span_id(), |(_, span)| span)
    }
}

/// Sends the spans of runs to the global tracer provider. They are sent once: after the commit, by the node
/// that made it, and not at all when it dies in between.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunSpans;

impl Observer for RunSpans {
    fn run_started(&self, run: &Run) {
        let start = run.start();
        // Below the caller's span if it sent one, beside the run's; else below the run's.
        let own = RunTrace::of(run.id(), &start.trace);
        let caller = if own.parent_span_id.is_some() { trace::remote(&start.trace) } else { None };
        let parent = caller.or_else(|| trace::remote(&start.trace.of_run(run.id())));
        let tracer = global::tracer("everstep");
        let builder =
            described(tracer.span_builder(format!("workflow.trigger {}", start.workflow_type)), run);
        let mut span = tracer.build_with_context(builder, &parent.unwrap_or_default());
        span.set_attribute(KeyValue::new("everstep.trigger.kind", "api"));
        // It begins by the database's clock, which may be ahead of this one.
        span.end_with_timestamp(SystemTime::now().max(time(run.row().started_at)));
    }

    fn run_closed(&self, run: &Run) {
        let own = RunTrace::of(run.id(), &run.start().trace);
        let parent = own.parent_span_id.and_then(|_| trace::remote(&run.start().trace));
        let tracer = global::tracer("everstep");
        let builder = tracer.span_builder(format!("workflow.run {}", run.start().workflow_type));
        let ids = (TraceId::from_bytes(own.trace_id), SpanId::from_bytes(own.run_span_id));
        GIVEN.set(Some(ids));
        let mut span = tracer.build_with_context(described(builder, run), &parent.unwrap_or_default());
        GIVEN.set(None);
        let row = run.row();
        span.set_attribute(KeyValue::new("everstep.run.status", row.status.as_str()));
        span.set_attribute(KeyValue::new("everstep.run.epochs", i64::from(row.epoch)));
        if let Some(failure) = run.failure().filter(|_| row.status != RunStatus::Canceled) {
            span.set_attribute(KeyValue::new("error.type", failure.kind.clone()));
            span.set_status(Status::error(failure.kind.clone()));
        }
        span.end_with_timestamp(row.closed_at.map_or_else(SystemTime::now, time));
    }
}

/// What every span of a run says about it.
fn described(builder: SpanBuilder, run: &Run) -> SpanBuilder {
    builder.with_kind(SpanKind::Internal).with_start_time(time(run.row().started_at)).with_attributes([
        KeyValue::new("everstep.run.id", run.id().to_string()),
        KeyValue::new("everstep.workflow.name", run.start().workflow_type.clone()),
        KeyValue::new("everstep.workflow.id", run.start().workflow_id.clone()),
        KeyValue::new("everstep.namespace", run.start().namespace.clone()),
    ])
}

fn time(at: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(at.as_micros()).unwrap_or(0))
}
