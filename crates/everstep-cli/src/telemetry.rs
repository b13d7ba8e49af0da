//! Logs on stderr; spans to an OTLP collector when the environment names one.

use std::io::IsTerminal;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use everstep_server::SpanIds;

use crate::fail::Fail;

/// Sends what is left when the command ends.
#[derive(Debug)]
pub(crate) struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    pub(crate) fn flush(&self) {
        if let Some(provider) = &self.provider
            && let Err(error) = provider.shutdown()
        {
            tracing::debug!(%error, "spans lost at the end");
        }
    }
}

/// Installs both. `EVERSTEP_LOG` filters the log (default `warn`); the standard `OTEL_*` variables steer the
/// exporter, which is off unless one of them names an endpoint.
pub(crate) fn install() -> Result<Telemetry, Fail> {
    let filter =
        std::env::var("EVERSTEP_LOG").ok().filter(|v| !v.is_empty()).unwrap_or_else(|| "warn".to_owned());
    let filter =
        EnvFilter::try_new(&filter).map_err(|e| Fail::usage(format!("EVERSTEP_LOG '{filter}': {e}")))?;
    // Colors are for people: a file or a pipe gets none.
    let colors = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let log =
        fmt::layer().with_writer(std::io::stderr).with_ansi(colors).with_target(false).with_filter(filter);
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let wanted = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
    if !wanted.iter().any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty())) {
        tracing_subscriber::registry().with(log).init();
        return Ok(Telemetry { provider: None });
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .build()
        .map_err(|e| Fail::usage(format!("OTLP exporter: {e}")))?;
    let service = std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| "everstep".to_owned());
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_id_generator(SpanIds::default())
        .with_resource(Resource::builder().with_service_name(service).build())
        .build();
    opentelemetry::global::set_tracer_provider(provider.clone());
    // The exporter's own calls are not traced: they would trace themselves.
    let own = EnvFilter::new("info,h2=off,hyper=off,tonic=off,reqwest=off,opentelemetry=off");
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("everstep"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(own);
    tracing_subscriber::registry().with(log).with(spans).init();
    Ok(Telemetry { provider: Some(provider) })
}
