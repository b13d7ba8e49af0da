//! What a trace shows of each attempt, and what it must not show.

use std::sync::{Arc, Mutex};

use everstep_provider::{Chain, OpenAiCompatible, OpenAiConfig};
use opentelemetry::trace::{SpanKind, Status};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};

use crate::clock::FrozenClock;
use crate::server::{Answer, FakeServer};
use crate::{KEY, config, good_answer, request};

/// Keeps the spans that end.
#[derive(Clone, Debug, Default)]
struct RecordingExporter(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for RecordingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap_or_else(|broken| broken.into_inner()).extend(batch);
        Ok(())
    }
}

fn attribute(span: &SpanData, name: &str) -> String {
    span.attributes.iter().find(|a| a.key.as_str() == name).map(|a| a.value.to_string()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn each_attempt_has_a_span_with_its_outcome_and_no_content() {
    let exporter = RecordingExporter::default();
    let tracing = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    // It is the whole process's, so the spans of this test are told by their model.
    opentelemetry::global::set_tracer_provider(tracing);
    let server = FakeServer::start([Answer::bare(503, KEY), good_answer()]).await.unwrap();
    let config = OpenAiConfig { model: "traced".to_owned(), ..config(server.base_url()) };
    let chain = Chain::new(2).then(FrozenClock(OpenAiCompatible::new(config).unwrap()), 2);
    chain.complete(&request()).await.unwrap();
    let mut spans = exporter.0.lock().unwrap().clone();
    spans.retain(|span| attribute(span, "gen_ai.request.model") == "traced");
    let [failed, answered] = &spans[..] else { panic!("{spans:?}") };
    for (span, attempt) in [(failed, "1"), (answered, "2")] {
        assert_eq!((&*span.name, &span.span_kind), ("chat traced", &SpanKind::Client));
        assert_eq!(attribute(span, "gen_ai.operation.name"), "chat");
        assert_eq!(attribute(span, "gen_ai.provider.name"), "openai");
        assert_eq!(attribute(span, "server.address"), "127.0.0.1");
        assert_eq!(attribute(span, "everstep.provider.attempt"), attempt);
    }
    assert_eq!(attribute(failed, "error.type"), "overloaded");
    assert!(matches!(failed.status, Status::Error { .. }), "{failed:?}");
    assert_eq!(answered.status, Status::Unset);
    assert_eq!(attribute(answered, "gen_ai.response.model"), "small-1-2026");
    assert_eq!(attribute(answered, "gen_ai.response.id"), "chat-1");
    assert_eq!(attribute(answered, "gen_ai.usage.input_tokens"), "21");
    assert_eq!(attribute(answered, "gen_ai.usage.output_tokens"), "4");
    let printed = format!("{spans:?}");
    for secret in [KEY, "Storms form", "Summarize."] {
        assert!(!printed.contains(secret), "{secret}: {printed}");
    }
}
