//! What every gRPC call passes through: a span and a figure, a deadline, a limit on calls at one time, a net
//! under panics, and our words for what the framework answers by itself.
//!
//! A stream passes here until it begins; what it carries later is its own business.

mod timeout;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use everstep_proto::trace;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use prost::Message;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::metrics::{Metrics, code_name};
use crate::{reason, status};

/// Longest time from a call's headers to those of its answer.
const CALL_MAX: Duration = Duration::from_secs(65);
/// Calls that a node works on at one time; streams count until they begin.
const CALLS_MAX: usize = 10_000;
/// The name in figures of methods that do not exist: there are endlessly many of them.
const OTHER: &str = "_OTHER";

/// When the caller stops waiting; in the extensions of a request that has a deadline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(pub(crate) Instant);

/// The layer.
#[derive(Clone, Debug)]
pub(crate) struct RpcLayer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    metrics: Metrics,
    methods: HashSet<String>,
    calls: Semaphore,
}

impl RpcLayer {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self::with_limit(metrics, CALLS_MAX)
    }

    fn with_limit(metrics: Metrics, calls: usize) -> Self {
        Self { shared: Arc::new(Shared { metrics, methods: methods(), calls: Semaphore::new(calls) }) }
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = RpcService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RpcService { inner, shared: Arc::clone(&self.shared) }
    }
}

/// The layer around a service.
#[derive(Clone, Debug)]
pub(crate) struct RpcService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for RpcService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The service that was made ready is the one to call.
        let fresh = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, fresh);
        if !is_grpc(request.headers()) {
            return Box::pin(call_caught(inner, request));
        }
        let path = request.uri().path().trim_start_matches('/');
        let method = self.shared.methods.get(path).cloned();
        let span = method.as_deref().map_or_else(Span::none, |method| span(method, request.headers()));
        let shared = Arc::clone(&self.shared);
        let call = async move {
            let started = Instant::now();
            let response = guarded(&shared, inner, request).await;
            let code = response
                .extensions()
                .get::<Status>()
                .map_or_else(|| code_of(response.headers()), Status::code);
            shared.metrics.call(method.as_deref().unwrap_or(OTHER), code, started.elapsed());
            record(&Span::current(), code);
            Ok(response)
        };
        Box::pin(call.instrument(span))
    }
}

async fn guarded<S>(shared: &Shared, inner: S, mut request: Request<Body>) -> Response<Body>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send + 'static,
    S::Future: Send,
{
    let Ok(_permit) = shared.calls.try_acquire() else {
        return status::of(reason::OVERLOADED, "the node has too many calls at one time").into_http();
    };
    let given = timeout::of(request.headers());
    let limit = given.map_or(CALL_MAX, |t| t.min(CALL_MAX));
    if limit.is_zero() {
        return too_late();
    }
    if given.is_some() {
        request.extensions_mut().insert(Deadline(Instant::now() + limit));
    }
    // A little early, so that the caller hears it from us and not from its own clock.
    let early = limit - (limit / 8).min(Duration::from_millis(10));
    let call = AssertUnwindSafe(call(inner, request)).catch_unwind();
    match tokio::time::timeout(early, call).await {
        Ok(Ok(response)) => reworded(response),
        Ok(Err(_)) => {
            shared.metrics.panicked();
            status::internal("the call panicked", &"panic").into_http()
        }
        Err(_) => too_late(),
    }
}

async fn call<S>(mut inner: S, request: Request<Body>) -> Response<Body>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    match inner.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// A plain HTTP request: a panic becomes status 500.
async fn call_caught<S>(inner: S, request: Request<Body>) -> Result<Response<Body>, Infallible>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    Ok(AssertUnwindSafe(call(inner, request)).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("an HTTP request panicked");
        let mut response = Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        response
    }))
}

fn too_late() -> Response<Body> {
    status::of(reason::DEADLINE_EXCEEDED, "the call's deadline has passed").into_http()
}

/// What the framework answered by itself, in our words.
fn reworded(response: Response<Body>) -> Response<Body> {
    let ours = response.extensions().get::<Status>().and_then(status::of_framework);
    ours.map_or(response, Status::into_http)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(http::header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

/// The code in an answer's headers. An answer without one goes well, as far as is known here.
fn code_of(headers: &HeaderMap) -> Code {
    headers.get("grpc-status").map_or(Code::Ok, |v| Code::from_bytes(v.as_bytes()))
}

/// The span of a call, below the caller's.
fn span(method: &str, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        target: "everstep::trace",
        "rpc",
        otel.name = method,
        otel.kind = "server",
        otel.status_code = field::Empty,
        rpc.system.name = "grpc",
        rpc.method = method,
        rpc.response.status_code = field::Empty,
        error.type = field::Empty,
    );
    if let Some(parent) = remote_parent(headers)
        && !span.is_disabled()
    {
        // Fails only when no exporter is installed: then there is no parent to have.
        let _ = span.set_parent(parent);
    }
    span
}

fn remote_parent(headers: &HeaderMap) -> Option<opentelemetry::Context> {
    trace::remote(&trace::extract(&MetadataMap::from_headers(traces(headers))))
}

/// The two headers that matter, without a copy of the others.
fn traces(headers: &HeaderMap) -> HeaderMap {
    let mut found = HeaderMap::new();
    for name in [trace::TRACEPARENT, trace::TRACESTATE] {
        for value in headers.get_all(name) {
            found.append(name, value.clone());
        }
    }
    found
}

fn record(span: &Span, code: Code) {
    span.record("rpc.response.status_code", code_name(code));
    // The codes that semantic conventions call a server's error; the others are the caller's.
    let failed = matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    );
    if failed {
        span.record("error.type", code_name(code));
        span.record("otel.status_code", "ERROR");
    }
}

/// Every method of the contract, and of health and reflection.
fn methods() -> HashSet<String> {
    let sets = [
        everstep_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ];
    let files =
        sets.iter().filter_map(|set| prost_types::FileDescriptorSet::decode(*set).ok()).flat_map(|s| s.file);
    files
        .flat_map(|file| {
            let package = file.package.unwrap_or_default();
            file.service.into_iter().flat_map(move |service| {
                let service_name = format!("{package}.{}", service.name.unwrap_or_default());
                service
                    .method
                    .into_iter()
                    .map(move |m| format!("{service_name}/{}", m.name.unwrap_or_default()))
            })
        })
        .collect()
}
