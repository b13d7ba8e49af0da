//! Any bytes as any call, through all that a call passes but the socket: answered or refused with a reason,
//! never with a panic or an error of ours.

use std::cell::Cell;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Once};

use axum::body::HttpBody;
use bolero::{check, produce};
use bytes::Bytes;
use everstep_core::{NodeId, RunId, RunStatus, Timestamp};
use everstep_dispatch::InProcess;
use everstep_engine::{Engine, EngineConfig};
use everstep_fuzz::{bent, bytes};
use everstep_proto::api;
use everstep_proto::api::worker_message::Message as In;
use everstep_store::{MemoryStore, RunFilter};
use prost::Message;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::{Layer, Service, ServiceExt};
use uuid::Uuid;

use super::raw::message;
use super::support::{commit, hello, json, of_workflow};
use crate::http::Probe;
use crate::metrics::Metrics;
use crate::page;
use crate::rpc::{RpcLayer, RpcService};
use crate::serve::ServerOptions;

const ITERATIONS: usize = 20_000;

thread_local! {
    /// Panics of this thread, in tasks of its runtime too.
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// Counts panics from here on: a task's is caught by its runtime, and seen by nobody.
fn count_panics() {
    static COUNTING: Once = Once::new();
    COUNTING.call_once(|| {
        // The engine of these tests sets its own hook at its first use, which is then over.
        check!().with_iterations(1).for_each(|_: &[u8]| {});
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with(|count| count.set(count.get() + 1));
            before(info);
        }));
    });
}

/// A server without a socket, in a runtime whose clock is put forward whenever all wait.
struct Fixture {
    runtime: Runtime,
    service: RpcService<Routes>,
    metrics: Metrics,
}

fn fixture() -> AssertUnwindSafe<Fixture> {
    count_panics();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (service, metrics) = runtime.block_on(async {
        let store = Arc::new(MemoryStore::new(|| Timestamp::from_micros(1)));
        let node_id = NodeId::from_uuid(Uuid::nil());
        let dispatch = Arc::new(InProcess::new());
        let engine = Engine::start(EngineConfig::new(node_id), store, dispatch).await.unwrap();
        let (metrics, draining) = (Metrics::new().unwrap(), CancellationToken::new());
        let probe = Probe { engine: engine.clone(), metrics: metrics.clone(), draining };
        let routes = crate::serve::routes(&engine, &ServerOptions::new(node_id), &probe).unwrap();
        (RpcLayer::new(metrics.clone()).layer(routes.prepare()), metrics)
    });
    AssertUnwindSafe(Fixture { runtime, service, metrics })
}

impl Fixture {
    /// The status of a call with this body, from the answer's headers or trailers.
    fn call(&self, path: &str, headers: &[(&str, &[u8])], body: Vec<u8>) -> Status {
        let mut request = http::Request::post(path).header("content-type", "application/grpc");
        for (name, value) in headers {
            if let Ok(value) = http::HeaderValue::from_bytes(value) {
                request = request.header(*name, value);
            }
        }
        let request = request.body(Body::new(axum::body::Body::from(body))).unwrap();
        let mut service = self.service.clone();
        self.runtime.block_on(async {
            let response = service.ready().await.unwrap().call(request).await.unwrap();
            if let Some(status) = Status::from_header_map(response.headers()) {
                return status;
            }
            let mut body = response.into_body();
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                if let Ok(trailers) = frame.unwrap().into_trailers() {
                    return Status::from_header_map(&trailers).unwrap();
                }
            }
            Status::ok("the stream ended")
        })
    }

    fn panics(&self) -> String {
        let text = self.metrics.render(&Default::default(), &Default::default(), Some(0)).unwrap();
        text.lines().find(|l| l.starts_with("everstep_rpc_panics_total")).unwrap().to_owned()
    }
}

/// Ours are never the caller's fault, and the other way round.
fn is_the_callers(status: &Status) -> bool {
    !matches!(status.code(), Code::Internal | Code::Unknown | Code::DataLoss)
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let run = || of_workflow("order-1");
    let duration = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let start = api::StartRunRequest {
        workflow_id: "order-1".to_owned(),
        workflow_type: "order".to_owned(),
        input: Some(json("1")),
        run_timeout: duration,
        ..api::StartRunRequest::default()
    };
    let too_many = api::ListRunsRequest { page_size: i32::MAX, ..api::ListRunsRequest::default() };
    let negative = api::ListRunsRequest { page_size: -1, ..api::ListRunsRequest::default() };
    let list = api::ListRunsRequest { page_size: 3, statuses: vec![1], ..api::ListRunsRequest::default() };
    let history = api::GetHistoryRequest { run: run(), limit: 1, ..api::GetHistoryRequest::default() };
    let signal = api::SignalRunRequest {
        run: run(),
        name: "paid".to_owned(),
        input: Some(json("2")),
        ..api::SignalRunRequest::default()
    };
    let cancel = api::CancelRunRequest { run: run(), ..api::CancelRunRequest::default() };
    let terminate = api::TerminateRunRequest { run: run(), ..api::TerminateRunRequest::default() };
    let create = api::CreateNamespaceRequest {
        name: "team-a".to_owned(),
        description: "d".to_owned(),
        request_id: String::new(),
    };
    let steps = api::ListStepsRequest { page_size: 2, state: 3, ..api::ListStepsRequest::default() };
    let resolve = api::ResolveStepRequest {
        run: run(),
        step_id: 1,
        resolution: Some(api::resolve_step_request::Resolution::Completed(json("2"))),
        ..api::ResolveStepRequest::default()
    };
    let namespaces = api::ListNamespacesRequest { page_size: 1, page_token: "01".to_owned() };
    let mut all = vec![
        ("/everstep.api.v1.RunService/StartRun", message(&start)),
        ("/everstep.api.v1.RunService/GetRun", message(&api::GetRunRequest { run: run() })),
        ("/everstep.api.v1.RunService/ListRuns", message(&list)),
        ("/everstep.api.v1.RunService/GetHistory", message(&history)),
        ("/everstep.api.v1.RunService/SignalRun", message(&signal)),
        ("/everstep.api.v1.RunService/CancelRun", message(&cancel)),
        (
            "/everstep.api.v1.RunService/GetResult",
            message(&api::GetResultRequest { run: run(), wait: duration }),
        ),
        ("/everstep.api.v1.RunService/TerminateRun", message(&terminate)),
        ("/everstep.api.v1.RunService/ListRuns", message(&too_many)),
        ("/everstep.api.v1.RunService/ListRuns", message(&negative)),
        ("/everstep.api.v1.NamespaceService/CreateNamespace", message(&create)),
        (
            "/everstep.api.v1.NamespaceService/GetNamespace",
            message(&api::GetNamespaceRequest { name: "default".to_owned() }),
        ),
        ("/everstep.api.v1.NamespaceService/ListNamespaces", message(&namespaces)),
        ("/everstep.api.v1.StepService/ListSteps", message(&steps)),
        ("/everstep.api.v1.StepService/ResolveStep", message(&resolve)),
    ];
    all.extend(newer_samples(start));
    all
}

/// Calls that ask a run's code, bring something along, or administer.
fn newer_samples(start: api::StartRunRequest) -> Vec<(&'static str, Vec<u8>)> {
    let (run, name, input) = (of_workflow("order-1"), "add".to_owned(), Some(json("2")));
    let wait = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let start = Some(start);
    let update = api::UpdateRunRequest {
        run: run.clone(),
        name: name.clone(),
        input: input.clone(),
        wait,
        ..api::UpdateRunRequest::default()
    };
    let query = api::QueryRunRequest { run: run.clone(), name: name.clone(), input: input.clone() };
    let get = api::GetUpdateRequest { run, update_id: "u".to_owned(), wait, ..Default::default() };
    let signal = api::SignalWithStartRunRequest {
        start: start.clone(),
        name: name.clone(),
        signal_input: input.clone(),
    };
    let with =
        api::UpdateWithStartRunRequest { start, name, input: input.clone(), wait, ..Default::default() };
    let limits = Some(api::QueueLimits { max_running: 3, max_per_second: 2.5, burst: 4 });
    let limits = api::SetQueueLimitsRequest { task_queue: "q".to_owned(), limits, ..Default::default() };
    let allow = api::AllowBuildRequest {
        build_id: "b".to_owned(),
        continues: "a".to_owned(),
        ..api::AllowBuildRequest::default()
    };
    let attributes = api::AddSearchAttributesRequest {
        search_attributes: [("amount".to_owned(), 3)].into(),
        ..api::AddSearchAttributesRequest::default()
    };
    let complete = api::CompleteStepRequest {
        task_token: "t1.01890a5dac96774bbcceb302099a8057.1.1.00".to_owned(),
        result: input,
        ..api::CompleteStepRequest::default()
    };
    vec![
        ("/everstep.api.v1.RunService/UpdateRun", message(&update)),
        ("/everstep.api.v1.RunService/QueryRun", message(&query)),
        ("/everstep.api.v1.RunService/GetUpdate", message(&get)),
        ("/everstep.api.v1.RunService/SignalWithStartRun", message(&signal)),
        ("/everstep.api.v1.RunService/UpdateWithStartRun", message(&with)),
        ("/everstep.api.v1.QueueService/SetQueueLimits", message(&limits)),
        ("/everstep.api.v1.BuildService/AllowBuild", message(&allow)),
        ("/everstep.api.v1.NamespaceService/AddSearchAttributes", message(&attributes)),
        ("/everstep.api.v1.StepService/CompleteStep", message(&complete)),
    ]
}

#[test]
fn any_bytes_as_any_call() {
    let fixture = fixture();
    let samples = samples();
    for (path, sample) in &samples[..7] {
        let status = fixture.call(path, &[], sample.clone());
        assert_eq!(status.code(), Code::Ok, "{path}: {status:?}");
    }
    check!().with_iterations(ITERATIONS).with_generator((produce::<u8>(), bytes(12), bytes(64))).for_each(
        |(choice, edits, raw)| {
            let fixture = &*fixture;
            let (path, sample) = &samples[usize::from(*choice) % samples.len()];
            // Bytes of a message within a frame that is whole, or the frame itself.
            let body = if choice % 3 == 0 {
                let length = u32::try_from(raw.len()).unwrap().to_be_bytes();
                [&[0], &length[..], raw].concat()
            } else {
                bent(sample, edits)
            };
            let status = fixture.call(path, &[], body);
            assert!(is_the_callers(&status), "{path}: {status:?}");
            assert_eq!(PANICS.get(), 0);
        },
    );
    assert_eq!(fixture.panics(), "everstep_rpc_panics_total 0");
}

#[test]
fn any_headers_on_a_call() {
    let fixture = fixture();
    let parent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let samples: [(&str, &[u8]); 6] = [
        ("grpc-timeout", b"1S"),
        ("grpc-timeout", b"99999999H"),
        ("traceparent", parent),
        ("tracestate", b"a=b,c=d"),
        ("grpc-encoding", b"gzip"),
        ("content-type", b"application/grpc+proto"),
    ];
    let body = message(&api::ListRunsRequest::default());
    check!().with_iterations(ITERATIONS).with_generator((produce::<u8>(), bytes(9))).for_each(
        |(choice, edits)| {
            let fixture = &*fixture;
            let (name, value) = samples[usize::from(*choice) % samples.len()];
            let status = fixture.call(
                "/everstep.api.v1.RunService/ListRuns",
                &[(name, &bent(value, edits))],
                body.clone(),
            );
            assert!(is_the_callers(&status), "{name}: {status:?}");
        },
    );
    assert_eq!(fixture.panics(), "everstep_rpc_panics_total 0");
}

#[test]
fn any_bytes_as_a_workers_stream() {
    let fixture = fixture();
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    let frames = |last: In| {
        let said = [In::Hello(hello()), In::Heartbeat(api::Heartbeat { number: 1 }), last];
        let messages = said.map(|m| api::WorkerMessage { message: Some(m) }).to_vec();
        message(&api::ConnectRequest { messages })
    };
    let fail = api::FailStep {
        step_id: 1,
        name: "charge".to_owned(),
        attempt: 1,
        retry_policy: Some(api::RetryPolicy { backoff_coefficient: 2.0, ..api::RetryPolicy::default() }),
        ..api::FailStep::default()
    };
    let held = vec![api::HeldRun { run_id: id.to_owned(), epoch: 1, seen_seq: 1 }];
    let again = api::Hello { held, session_token: format!("s1.{}", id.replace('-', "")), ..hello() };
    let again =
        api::ConnectRequest { messages: vec![api::WorkerMessage { message: Some(In::Hello(again)) }] };
    let samples = [
        frames(commit(id, 1, 1, 1, api::command::Command::FailStep(fail))),
        frames(In::NeedHistory(api::NeedHistory { run_id: id.to_owned(), epoch: 1 })),
        frames(In::Goodbye(api::Goodbye {})),
        message(&again),
    ];
    check!().with_iterations(2_000).with_generator((produce::<u8>(), bytes(12))).for_each(
        |(choice, edits)| {
            let fixture = &*fixture;
            let sample = &samples[usize::from(*choice) % samples.len()];
            let status = fixture.call("/everstep.api.v1.WorkerService/Connect", &[], bent(sample, edits));
            assert!(is_the_callers(&status), "{status:?}");
            assert_eq!(PANICS.get(), 0);
        },
    );
    assert_eq!(fixture.panics(), "everstep_rpc_panics_total 0");
}

#[test]
fn page_tokens() {
    let filter = RunFilter {
        namespace: "default".to_owned(),
        workflow_id: None,
        workflow_type: Some("order".to_owned()),
        statuses: vec![RunStatus::Running],
        ..RunFilter::default()
    };
    let of_runs = page::runs_token(&filter, RunId::from_uuid(Uuid::from_u128(7)));
    let of_namespaces = page::namespaces_token("team-a");
    check!().with_iterations(ITERATIONS).with_generator(bytes(9)).for_each(|input: &Vec<u8>| {
        let text = |sample: &str| String::from_utf8_lossy(&bent(sample.as_bytes(), input)).into_owned();
        if let Ok(Some(token)) = page::runs_page(&filter, &text(&of_runs)) {
            let again = page::runs_token(&filter, token.0);
            assert_eq!(page::runs_page(&filter, &again).unwrap(), Some(token));
        }
        if let Ok(name) = page::namespaces_page(&text(&of_namespaces)) {
            assert!(
                name.is_empty() || page::namespaces_page(&page::namespaces_token(&name)).unwrap() == name
            );
        }
    });
}

/// A message that its own parser takes is what the samples above are.
#[test]
fn the_samples_are_messages() {
    let list = &samples()[2].1;
    let read = api::ListRunsRequest::decode(Bytes::copy_from_slice(&list[5..])).unwrap();
    assert_eq!((read.page_size, read.statuses.len()), (3, 1));
}
