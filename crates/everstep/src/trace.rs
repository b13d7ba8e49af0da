//! Spans of step attempts, hung below the run's own span.

use std::time::{Duration, SystemTime};

use everstep_core::{OpId, RunId, RunStarted};
use opentelemetry::trace::{SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};

/// The context of a run's span, as a remote parent. The span itself is emitted once, by the node that
/// records the run's end.
pub(crate) fn run_context(run: RunId, start: &RunStarted) -> Context {
    everstep_proto::trace::remote(&start.trace.of_run(run)).unwrap_or_default()
}

/// Begins the span of one attempt; the returned context is current while the attempt runs.
pub(crate) fn begin_attempt(
    parent: &Context,
    run: RunId,
    workflow: &str,
    step: (OpId, &str, u32),
) -> Context {
    begin(parent, "inline", (run, workflow), step)
}

/// As [`begin_attempt`], of a queued step.
pub(crate) fn begin_queued(parent: &Context, run: RunId, workflow: &str, step: (OpId, &str, u32)) -> Context {
    begin(parent, "queued", (run, workflow), step)
}

fn begin(
    parent: &Context,
    kind: &'static str,
    (run, workflow): (RunId, &str),
    (step, name, attempt): (OpId, &str, u32),
) -> Context {
    let tracer = global::tracer("everstep");
    let span = tracer
        .span_builder(format!("workflow.step {name}"))
        .with_kind(SpanKind::Internal)
        .with_attributes([
            KeyValue::new("everstep.run.id", run.to_string()),
            KeyValue::new("everstep.workflow.name", workflow.to_owned()),
            KeyValue::new("everstep.step.id", i64::from(step.0)),
            KeyValue::new("everstep.step.kind", kind),
            KeyValue::new("everstep.attempt", i64::from(attempt)),
        ])
        .start_with_context(&tracer, parent);
    parent.with_span(span)
}

/// Ends an attempt's span.
pub(crate) fn end_attempt(context: &Context, elapsed: Duration, failure: Option<&str>) {
    let span = context.span();
    if let Some(kind) = failure {
        span.set_attribute(KeyValue::new("error.type", kind.to_owned()));
        span.set_status(Status::error(kind.to_owned()));
    }
    span.set_attribute(KeyValue::new("everstep.elapsed_ms", elapsed.as_millis() as i64));
    span.end_with_timestamp(SystemTime::now());
}
