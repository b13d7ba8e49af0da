//! The plain HTTP endpoints beside gRPC: `/healthz`, `/readyz`, `/metrics`.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use everstep_engine::{Engine, NodeStatus};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::metrics::{self, Metrics};

/// How long the database may take over a figure.
const COUNT_MAX: Duration = Duration::from_secs(1);

/// What the endpoints look at.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) engine: Engine,
    pub(crate) metrics: Metrics,
    pub(crate) draining: CancellationToken,
}

impl Probe {
    /// Why the node should get no calls now; empty when it should.
    pub(crate) fn not_ready(&self) -> Vec<&'static str> {
        not_ready(&self.engine.status(), self.draining.is_cancelled())
    }
}

fn not_ready(node: &NodeStatus, draining: bool) -> Vec<&'static str> {
    let mut reasons = Vec::new();
    if !node.store_ok {
        reasons.push("the store did not answer its last call");
    }
    if node.store_exhausted {
        reasons.push("the store is out of room");
    }
    if draining || node.draining {
        reasons.push("the node is shutting down");
    }
    reasons
}

/// The endpoints.
pub(crate) fn routes(probe: Probe) -> axum::Router {
    axum::Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render_metrics))
        .with_state(probe)
}

/// Any other path: UNIMPLEMENTED to a gRPC client, 404 to everybody else.
pub(crate) async fn unknown(request: axum::extract::Request) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE);
    if kind.is_some_and(|v| v.as_bytes().starts_with(b"application/grpc")) {
        return tonic::Status::unimplemented("there is no such method").into_http::<axum::body::Body>();
    }
    (StatusCode::NOT_FOUND, "not found; this port serves gRPC, /healthz, /readyz and /metrics\n")
        .into_response()
}

/// The process lives.
async fn healthz() -> Response {
    Json(json!({ "status": "alive" })).into_response()
}

/// The node can take calls.
async fn readyz(State(probe): State<Probe>) -> Response {
    let reasons = probe.not_ready();
    let code = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({ "ready": reasons.is_empty(), "reasons": reasons }))).into_response()
}

async fn render_metrics(State(probe): State<Probe>) -> Response {
    let count = probe.engine.store().count_doubts();
    let doubts = tokio::time::timeout(COUNT_MAX, count).await.ok().and_then(Result::ok);
    match probe.metrics.render(&probe.engine.status(), &probe.engine.upkeep(), doubts) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot render metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_why_it_is_not_ready() {
        let well = NodeStatus { store_ok: true, dispatch_ok: true, ..NodeStatus::default() };
        assert!(not_ready(&well, false).is_empty());
        assert_eq!(not_ready(&well, true), ["the node is shutting down"]);
        assert_eq!(not_ready(&NodeStatus { store_ok: false, ..well.clone() }, false).len(), 1);
        let full = NodeStatus { store_exhausted: true, ..well.clone() };
        assert_eq!(not_ready(&full, false), ["the store is out of room"]);
        // Without dispatch the sweep does its work: taking all nodes out of service would help nobody.
        assert!(not_ready(&NodeStatus { dispatch_ok: false, ..well.clone() }, false).is_empty());
        let draining = NodeStatus { draining: true, ..well };
        assert_eq!(not_ready(&draining, false), ["the node is shutting down"]);
    }
}
