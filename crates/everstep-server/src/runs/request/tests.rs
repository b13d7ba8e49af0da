//! Requests as they come in: good ones, empty ones, hostile ones.

use everstep_core::{ConflictPolicy, ReusePolicy};
use everstep_proto::history;
use tonic::Code;
use tonic_types::StatusExt;

use super::*;

const RUN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

fn fields<T: std::fmt::Debug>(read: Result<T, Status>) -> Vec<String> {
    let status = read.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    status.get_details_bad_request().unwrap().field_violations.into_iter().map(|v| v.field).collect()
}

fn run() -> Option<api::RunRef> {
    Some(api::RunRef { run_id: RUN.to_owned(), ..api::RunRef::default() })
}

/// The start alone, as a call has it.
fn start(request: api::StartRunRequest, trace: TraceContext) -> Result<(StartRun, Duration), Status> {
    let mut check = Check::default();
    let read = super::start(&mut check, request, trace);
    check.finish().map(|()| read)
}

#[test]
fn empty_requests_name_what_is_missing() {
    assert_eq!(fields(start(api::StartRunRequest::default(), TraceContext::default())), ["workflow_type"]);
    assert_eq!(fields(signal(api::SignalRunRequest::default())), ["run", "name"]);
    assert_eq!(fields(cancel(api::CancelRunRequest::default())), ["run"]);
    assert_eq!(fields(terminate(api::TerminateRunRequest::default())), ["run"]);
}

#[test]
fn a_start_gets_its_defaults() {
    let request =
        api::StartRunRequest { workflow_type: "order".to_owned(), ..api::StartRunRequest::default() };
    let (start, wait) = start(request, TraceContext::default()).unwrap();
    assert!(wait.is_zero());
    assert_eq!((start.namespace.as_str(), start.task_queue.as_str()), ("default", "default"));
    assert_eq!((start.reuse, start.conflict), (ReusePolicy::Allow, ConflictPolicy::Fail));
    assert!(!start.workflow_id.is_empty() && start.workflow_id != start.request_id);
    assert!(start.input.is_none() && start.run_timeout.is_none());
}

#[test]
fn a_hostile_start_gets_every_field_named() {
    let request = api::StartRunRequest {
        namespace: "../etc".to_owned(),
        workflow_id: "a\0".to_owned(),
        workflow_type: "x".repeat(256),
        task_queue: "\u{202e}".to_owned(),
        input: Some(history::Payload {
            encoding: "json".to_owned(),
            data: vec![0; 2 * 1024 * 1024 + 1].into(),
        }),
        request_id: "a\nb".to_owned(),
        run_timeout: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        reuse_policy: 999,
        conflict_policy: -1,
        identity: "i".repeat(256),
        wait: Some(prost_types::Duration { seconds: 61, nanos: 0 }),
        ..api::StartRunRequest::default()
    };
    let all = [
        "wait",
        "namespace",
        "workflow_id",
        "workflow_type",
        "task_queue",
        "input.data",
        "request_id",
        "run_timeout",
        "reuse_policy",
        "conflict_policy",
        "identity",
    ];
    assert_eq!(fields(start(request, TraceContext::default())), all);
}

#[test]
fn an_unknown_enum_is_called_one() {
    let request = api::StartRunRequest {
        workflow_type: "order".to_owned(),
        reuse_policy: 999,
        ..api::StartRunRequest::default()
    };
    let status = start(request, TraceContext::default()).unwrap_err();
    assert_eq!(status.get_details_error_info().unwrap().reason, "UNKNOWN_ENUM");
    let request = api::ListRunsRequest { statuses: vec![1, 0, 999], ..api::ListRunsRequest::default() };
    assert_eq!(fields(list(request)), ["statuses[1]", "statuses[2]"]);
}

#[test]
fn a_list_reads_each_state_once() {
    let of = |namespace: &str, page_token: String| api::ListRunsRequest {
        namespace: namespace.to_owned(),
        statuses: vec![2, 1, 2],
        page_token,
        ..api::ListRunsRequest::default()
    };
    let (filter, page, size) = list(of("", String::new())).unwrap();
    assert_eq!(
        (filter.statuses.as_slice(), page, size),
        (&[RunStatus::Running, RunStatus::Blocked][..], String::new(), 100)
    );
    // What the token is worth is seen where the whole question is known.
    assert_eq!(list(of("default", "token".to_owned())).unwrap().1, "token");
    let many = api::ListRunsRequest { statuses: vec![1; 101], ..api::ListRunsRequest::default() };
    assert_eq!(list(many).unwrap_err().code(), Code::ResourceExhausted);
}

#[test]
fn a_repeated_request_has_the_same_command_id() {
    let id = |request_id: &str, kind| {
        let call = RunCall {
            run: Check::default().run(run()),
            request_id: request_id.to_owned(),
            identity: String::new(),
            kind,
        };
        call.command_id(RUN.parse().unwrap())
    };
    assert_eq!(id("r1", "cancel"), id("r1", "cancel"));
    let others = [id("r2", "cancel"), id("r1", "terminate"), id("r1", "signal")];
    assert!(others.iter().all(|other| *other != id("r1", "cancel")));
    assert_eq!(id("r1", "cancel").worker_commit(RUN.parse().unwrap()), None);
}

#[test]
fn a_signals_request_id_is_its_id() {
    let request = api::SignalRunRequest {
        run: run(),
        name: "approved".to_owned(),
        request_id: "s-1".to_owned(),
        ..api::SignalRunRequest::default()
    };
    let (_, body) = signal(request).unwrap();
    assert!(matches!(body, CommandBody::Signal { signal_id, .. } if signal_id == "s-1"));
}
