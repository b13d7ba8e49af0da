//! What the layer does to calls that go wrong, without a network.

use opentelemetry::trace::TraceContextExt;
use std::sync::Mutex;

use tonic_types::StatusExt;
use tower::{ServiceExt, service_fn};

use super::*;

const START: &str = "everstep.api.v1.RunService/StartRun";

fn request(path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut builder = Request::builder().uri(format!("/{path}")).header("content-type", "application/grpc");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Body::empty()).unwrap()
}

async fn through<F, R>(layer: &RpcLayer, request: Request<Body>, handler: F) -> Response<Body>
where
    F: FnMut(Request<Body>) -> R + Clone + Send + 'static,
    R: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    layer.layer(service_fn(handler)).oneshot(request).await.unwrap()
}

fn layer() -> RpcLayer {
    RpcLayer::new(Metrics::new().unwrap())
}

fn reason_of(response: &Response<Body>) -> String {
    response.extensions().get::<Status>().unwrap().get_details_error_info().unwrap().reason
}

#[test]
fn every_method_of_the_contract_is_known() {
    let known = methods();
    for method in [START, "everstep.api.v1.WorkerService/Connect", "grpc.health.v1.Health/Check"] {
        assert!(known.contains(method), "{method} is not in {known:?}");
    }
    assert!(known.contains("grpc.reflection.v1.ServerReflection/ServerReflectionInfo"), "{known:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_is_ended_in_time() {
    let silent = |_| std::future::pending();
    let before = Instant::now();
    let answer = through(&layer(), request(START, &[("grpc-timeout", "2S")]), silent).await;
    assert_eq!(reason_of(&answer), "DEADLINE_EXCEEDED");
    assert_eq!(before.elapsed().as_secs(), 1, "a little early, so that the answer arrives");
    let before = Instant::now();
    let answer = through(&layer(), request(START, &[]), silent).await;
    assert_eq!(reason_of(&answer), "DEADLINE_EXCEEDED");
    assert_eq!(before.elapsed().as_secs(), 64, "the server has a limit of its own");
}

#[tokio::test]
async fn a_call_whose_deadline_has_passed_does_nothing() {
    let reached = Arc::new(Mutex::new(false));
    let handler = {
        let reached = Arc::clone(&reached);
        move |_| {
            *reached.lock().unwrap() = true;
            std::future::ready(Ok(Response::new(Body::empty())))
        }
    };
    let answer = through(&layer(), request(START, &[("grpc-timeout", "0n")]), handler).await;
    assert_eq!(reason_of(&answer), "DEADLINE_EXCEEDED");
    assert!(!*reached.lock().unwrap());
}

#[tokio::test]
async fn a_panic_ends_its_own_call_only() {
    let layer = layer();
    let answer = through(&layer, request(START, &[]), |_| async { panic!("a bug") }).await;
    assert_eq!(reason_of(&answer), "INTERNAL");
    let text = layer.shared.metrics.render(&Default::default(), &Default::default(), Some(0)).unwrap();
    assert!(text.contains("everstep_rpc_panics_total 1"), "{text}");
}

#[tokio::test]
async fn more_calls_than_the_limit_are_shed() {
    let layer = RpcLayer::with_limit(Metrics::new().unwrap(), 1);
    let waiting = tokio::spawn({
        let layer = layer.clone();
        async move { through(&layer, request(START, &[]), |_| std::future::pending()).await }
    });
    tokio::task::yield_now().await;
    let answer = through(&layer, request(START, &[]), |_| async { Ok(Response::new(Body::empty())) }).await;
    assert_eq!(reason_of(&answer), "OVERLOADED");
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    let answer = through(&layer, request(START, &[]), |_| async { Ok(Response::new(Body::empty())) }).await;
    assert!(answer.extensions().get::<Status>().is_none(), "there is room again");
}

#[tokio::test]
async fn undecodable_messages_are_the_callers_fault() {
    let undecodable = |_| async { Ok(Status::internal("failed to decode Protobuf message: x").into_http()) };
    let answer = through(&layer(), request(START, &[]), undecodable).await;
    assert_eq!(answer.headers()["grpc-status"], "3");
    assert_eq!(reason_of(&answer), "INVALID_MESSAGE");
}

#[tokio::test]
async fn unknown_methods_share_one_figure() {
    let layer = layer();
    for i in 0..1_000 {
        through(&layer, request(&format!("x.Y/m{i}"), &[]), |_| async {
            Ok(Status::unimplemented("").into_http())
        })
        .await;
    }
    let text = layer.shared.metrics.render(&Default::default(), &Default::default(), Some(0)).unwrap();
    assert!(text.contains("rpc_method=\"_OTHER\""), "{text}");
    assert!(!text.contains("x.Y"), "{text}");
}

#[test]
fn a_callers_trace_is_taken_up() {
    let mut headers = HeaderMap::new();
    assert!(remote_parent(&headers).is_none());
    headers.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap());
    headers.insert("tracestate", "a=1".parse().unwrap());
    let parent = remote_parent(&headers).unwrap();
    let remote = parent.span().span_context().clone();
    assert_eq!(remote.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert!(remote.is_remote() && remote.is_sampled());
    headers.insert("traceparent", "garbage".parse().unwrap());
    assert!(remote_parent(&headers).is_none());
}
