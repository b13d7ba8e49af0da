//! The end of a server: orderly if it can be, punctual if not.

use std::time::Duration;

use everstep_proto::api;
use everstep_proto::api::server_message::Message as Out;
use tokio::time::{Instant, timeout};
use tonic::Code;

use super::support::{HANGS, of_workflow, reason, start, start_with_grace};

#[tokio::test]
async fn long_polls_are_answered_and_followers_told() {
    let server = start().await;
    server.start_run("order-1").await;
    let follow = api::GetHistoryRequest {
        run: of_workflow("order-1"),
        follow: true,
        ..api::GetHistoryRequest::default()
    };
    let mut history = server.runs().get_history(follow).await.unwrap().into_inner();
    history.message().await.unwrap().unwrap();
    let mut runs = server.runs();
    let wait = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let mut poll = tokio::spawn(async move {
        runs.get_result(api::GetResultRequest { run: of_workflow("order-1"), wait }).await
    });
    // The request is on its way once the same connection has answered a later one.
    tokio::task::yield_now().await;
    server.runs().get_run(api::GetRunRequest { run: of_workflow("order-1") }).await.unwrap();
    server.shutdown.cancel();
    let answer = timeout(HANGS, &mut poll).await.unwrap().unwrap().unwrap().into_inner();
    assert_eq!(answer.status(), api::RunStatus::Running);
    let told = history.message().await.unwrap_err();
    assert_eq!((told.code(), reason(&told).as_str()), (Code::Unavailable, "NODE_STOPPING"));
    server.stop().await;
}

#[tokio::test]
async fn workers_are_told_to_go() {
    let server = start().await;
    let mut worker = server.worker().await;
    server.shutdown.cancel();
    assert_eq!(worker.next().await.unwrap(), Some(Out::Drain(api::Drain {})));
    drop(worker);
    server.stop().await;
}

#[tokio::test]
async fn whoever_stays_is_thrown_out() {
    let grace = Duration::from_millis(100);
    let server = start_with_grace(grace).await;
    let mut worker = server.worker().await;
    server.shutdown.cancel();
    let before = Instant::now();
    let end = worker.ended().await;
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    // The channel and the stream are still held here, and the server ends all the same.
    timeout(HANGS, server.serving).await.unwrap().unwrap().unwrap();
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    drop((worker, server.channel));
}
