//! The services as a client sees them.

use everstep_proto::api;
use everstep_proto::history::event::Attributes;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServiceResponse};

use super::support::{fields, json, of_workflow, reason, start};

#[tokio::test]
async fn a_start_is_recorded_with_the_callers_trace() {
    let server = start().await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut request = Request::new(api::StartRunRequest {
        workflow_id: "order-1".to_owned(),
        workflow_type: "order".to_owned(),
        input: Some(json("{}")),
        request_id: "r1".to_owned(),
        ..api::StartRunRequest::default()
    });
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    let again = request.get_ref().clone();
    let first = server.runs().start_run(request).await.unwrap().into_inner();
    assert!(first.started);
    let second = server.runs().start_run(again.clone()).await.unwrap().into_inner();
    assert_eq!((second.run_id.as_str(), second.started), (first.run_id.as_str(), false));
    let misused = api::StartRunRequest { input: Some(json("[]")), ..again.clone() };
    let refused = server.runs().start_run(misused).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "IDEMPOTENCY_MISMATCH"));
    let other = api::StartRunRequest { request_id: String::new(), ..again };
    let refused = server.runs().start_run(other).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::AlreadyExists, "RUN_ALREADY_EXISTS"));

    let request = api::GetHistoryRequest { run: of_workflow("order-1"), ..api::GetHistoryRequest::default() };
    let mut history = server.runs().get_history(request).await.unwrap().into_inner();
    let events = history.message().await.unwrap().unwrap().events;
    assert!(history.message().await.unwrap().is_none());
    let Some(Attributes::RunStarted(started)) = &events[0].attributes else { panic!("{events:?}") };
    assert_eq!(started.trace.as_ref().unwrap().traceparent, parent);
    server.stop().await;
}

#[tokio::test]
async fn a_run_can_be_seen_steered_and_ended() {
    let server = start().await;
    let run_id = server.start_run("order-1").await;
    let signal = api::SignalRunRequest {
        run: of_workflow("order-1"),
        name: "paid".to_owned(),
        request_id: "s1".to_owned(),
        ..api::SignalRunRequest::default()
    };
    server.runs().signal_run(signal.clone()).await.unwrap();
    server.runs().signal_run(signal.clone()).await.unwrap();
    let cancel = api::CancelRunRequest { run: of_workflow("order-1"), ..api::CancelRunRequest::default() };
    server.runs().cancel_run(cancel).await.unwrap();
    let shown = server.runs().get_run(api::GetRunRequest { run: of_workflow("order-1") }).await.unwrap();
    let run = shown.into_inner().run.unwrap();
    assert_eq!((run.run_id.as_str(), run.history_events, run.cancel_requested), (run_id.as_str(), 3, true));

    let wait = Some(prost_types::Duration { seconds: 0, nanos: 0 });
    let open =
        server.runs().get_result(api::GetResultRequest { run: of_workflow("order-1"), wait }).await.unwrap();
    assert_eq!(open.into_inner().status(), api::RunStatus::Running);
    let end = api::TerminateRunRequest {
        run: of_workflow("order-1"),
        reason: "enough".to_owned(),
        request_id: "t1".to_owned(),
        ..api::TerminateRunRequest::default()
    };
    server.runs().terminate_run(end.clone()).await.unwrap();
    server.runs().terminate_run(end.clone()).await.unwrap();
    let other = api::TerminateRunRequest { request_id: "t2".to_owned(), ..end };
    let refused = server.runs().terminate_run(other).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "RUN_CLOSED"));
    let late = api::SignalRunRequest { request_id: "s2".to_owned(), ..signal };
    assert_eq!(reason(&server.runs().signal_run(late).await.unwrap_err()), "RUN_CLOSED");
    let closed = server
        .runs()
        .get_result(api::GetResultRequest { run: of_workflow("order-1"), wait: None })
        .await
        .unwrap();
    let closed = closed.into_inner();
    assert_eq!(closed.status(), api::RunStatus::Terminated);
    assert!(closed.failure.is_some() && closed.result.is_none());
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let server = start().await;
    let run_id = server.start_run("order-1").await;
    let get = |namespace: &str, run_id: &str, workflow_id: &str| api::GetRunRequest {
        run: Some(api::RunRef {
            namespace: namespace.to_owned(),
            run_id: run_id.to_owned(),
            workflow_id: workflow_id.to_owned(),
        }),
    };
    let absent = "01890a5d-ac96-774b-bcce-b302099a8057";
    for request in
        [get("", absent, ""), get("", "", "other"), get("other", &run_id, ""), get("", &run_id, "other")]
    {
        let refused = server.runs().get_run(request.clone()).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::NotFound, "RUN_NOT_FOUND"),
            "{request:?}"
        );
    }
    let list = api::ListRunsRequest { namespace: "other".to_owned(), ..api::ListRunsRequest::default() };
    assert_eq!(reason(&server.runs().list_runs(list).await.unwrap_err()), "NAMESPACE_NOT_FOUND");
    let elsewhere = api::StartRunRequest {
        namespace: "other".to_owned(),
        workflow_type: "order".to_owned(),
        ..api::StartRunRequest::default()
    };
    assert_eq!(reason(&server.runs().start_run(elsewhere).await.unwrap_err()), "NAMESPACE_NOT_FOUND");
    let past = api::GetHistoryRequest {
        run: of_workflow("order-1"),
        after_seq: 9,
        ..api::GetHistoryRequest::default()
    };
    assert_eq!(fields(&server.runs().get_history(past).await.unwrap_err()), ["after_seq"]);
    server.stop().await;
}

#[tokio::test]
async fn pages_lead_through_all_runs_once() {
    let server = start().await;
    let mut started = Vec::new();
    for i in 0..7 {
        started.push(server.start_run(&format!("order-{i}")).await);
    }
    let mut request = api::ListRunsRequest { page_size: 3, ..api::ListRunsRequest::default() };
    let (mut seen, mut sizes) = (Vec::new(), Vec::new());
    loop {
        let page = server.runs().list_runs(request.clone()).await.unwrap().into_inner();
        sizes.push(page.runs.len());
        seen.extend(page.runs.into_iter().map(|r| r.run_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    started.sort();
    started.reverse();
    assert_eq!((seen, sizes), (started, vec![3, 3, 1]));
    let other = api::ListRunsRequest { workflow_type: "order".to_owned(), ..request };
    let refused = server.runs().list_runs(other).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_PAGE_TOKEN"));
    server.stop().await;
}

#[tokio::test]
async fn a_followed_history_ends_with_the_run() {
    let server = start().await;
    server.start_run("order-1").await;
    let follow = api::GetHistoryRequest {
        run: of_workflow("order-1"),
        follow: true,
        ..api::GetHistoryRequest::default()
    };
    let mut history = server.runs().get_history(follow).await.unwrap().into_inner();
    assert_eq!(history.message().await.unwrap().unwrap().events.len(), 1);
    let end = api::TerminateRunRequest { run: of_workflow("order-1"), ..api::TerminateRunRequest::default() };
    server.runs().terminate_run(end).await.unwrap();
    let last = history.message().await.unwrap().unwrap().events;
    assert!(matches!(last[0].attributes, Some(Attributes::RunTerminated(_))), "{last:?}");
    assert!(history.message().await.unwrap().is_none());
    let one = api::GetHistoryRequest { run: of_workflow("order-1"), limit: 1, follow: true, after_seq: 0 };
    let mut history = server.runs().get_history(one).await.unwrap().into_inner();
    assert_eq!(history.message().await.unwrap().unwrap().events.len(), 1);
    assert!(history.message().await.unwrap().is_none());
    server.stop().await;
}

#[tokio::test]
async fn namespaces_are_made_once() {
    let server = start().await;
    let make = |name: &str| api::CreateNamespaceRequest {
        name: name.to_owned(),
        description: "d".to_owned(),
        request_id: String::new(),
    };
    let made =
        server.namespaces().create_namespace(make("team-a")).await.unwrap().into_inner().namespace.unwrap();
    assert_eq!((made.name.as_str(), made.description.as_str()), ("team-a", "d"));
    let again = server.namespaces().create_namespace(make("team-a")).await.unwrap_err();
    assert_eq!((again.code(), reason(&again).as_str()), (Code::AlreadyExists, "NAMESPACE_ALREADY_EXISTS"));
    let refused = server.namespaces().create_namespace(make("../x")).await.unwrap_err();
    assert_eq!((reason(&refused).as_str(), fields(&refused)), ("INVALID_ID", vec!["name".to_owned()]));
    let get = api::GetNamespaceRequest { name: "team-b".to_owned() };
    assert_eq!(reason(&server.namespaces().get_namespace(get).await.unwrap_err()), "NAMESPACE_NOT_FOUND");
    let mut request = api::ListNamespacesRequest { page_size: 1, page_token: String::new() };
    let mut names = Vec::new();
    loop {
        let page = server.namespaces().list_namespaces(request.clone()).await.unwrap().into_inner();
        names.extend(page.namespaces.into_iter().map(|n| n.name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(names, ["default", "team-a"]);
    server.stop().await;
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let server = start().await;
    let mut health = HealthClient::new(server.channel.clone());
    for service in ["", "everstep.api.v1.RunService", "everstep.api.v1.WorkerService"] {
        let mut watch =
            health.watch(HealthCheckRequest { service: service.to_owned() }).await.unwrap().into_inner();
        // A service may be unknown for the moment until the first report.
        loop {
            match watch.message().await.unwrap().unwrap().status() {
                tonic_health::pb::health_check_response::ServingStatus::Serving => break,
                other => {
                    assert_ne!(other, tonic_health::pb::health_check_response::ServingStatus::NotServing)
                }
            }
        }
    }
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(server.channel.clone());
    let mut answers = reflection.server_reflection_info(tokio_stream::once(list)).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(listed)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!()
    };
    let names: Vec<String> = listed.service.into_iter().map(|ServiceResponse { name }| name).collect();
    for service in ["RunService", "NamespaceService", "WorkerService"] {
        assert!(names.contains(&format!("everstep.api.v1.{service}")), "{names:?}");
    }
    server.stop().await;
}
