//! More bytes of requests at one time than there is memory for.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use everstep_proto::api::{self, command::Command, server_message};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::Request;
use http_body::Frame;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::{Service, ServiceExt};

use super::raw::{healthy, settles_at};
use super::support::{HANGS, Harness, commit, json, of_workflow, reason, start_with};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn order(bytes: usize, wait: Duration) -> api::StartRunRequest {
    api::StartRunRequest {
        workflow_type: "order".to_owned(),
        input: Some(json(&format!("\"{}\"", "x".repeat(bytes)))),
        wait: Some(everstep_proto::wire::encode_duration(wait.into())),
        ..api::StartRunRequest::default()
    }
}

async fn start_order(server: &Harness, bytes: usize) -> Result<(), Status> {
    server.runs().start_run(order(bytes, Duration::ZERO)).await.map(drop)
}

/// It is about bytes, and worth another try.
fn is_typed(refused: &Status) -> bool {
    let pause = refused.get_details_retry_info().and_then(|info| info.retry_delay);
    refused.code() == Code::ResourceExhausted
        && reason(refused) == "REQUEST_BYTES_EXHAUSTED"
        && pause.is_some_and(|pause| !pause.is_zero())
}

/// A message of 4 MiB, of which so many bytes come and no more.
struct Stalled(usize);

impl HttpBody for Stalled {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        const PIECE: &[u8] = &[0, 0, 0x40, 0, 0];
        static ZEROS: [u8; 16 * KIB] = [0; 16 * KIB];
        if self.0 == 0 {
            return Poll::Pending;
        }
        let first = !self.0.is_multiple_of(ZEROS.len());
        let piece = if first { PIECE } else { &ZEROS };
        self.0 -= piece.len();
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(piece)))))
    }
}

/// Sends some of a large request on a connection of its own, and waits for an answer before its end.
async fn stall(server: &Harness, bytes: usize) -> http::Response<Body> {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.addr)).unwrap();
    let mut channel = endpoint.connect().await.unwrap();
    let request = Request::post(format!("http://{}/everstep.api.v1.RunService/StartRun", server.addr))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Stalled(bytes / (16 * KIB) * 16 * KIB + 5)))
        .unwrap();
    channel.ready().await.unwrap().call(request).await.unwrap()
}

#[tokio::test]
async fn a_request_that_finds_no_room_is_refused_in_our_words() {
    let server = start_with(|options| options.request_bytes = MIB).await;
    start_order(&server, 900 * KIB).await.unwrap();
    let refused = start_order(&server, 1_500 * KIB).await.unwrap_err();
    assert!(is_typed(&refused), "{refused:?}");
    // It has given back what it took.
    for _ in 0..3 {
        start_order(&server, 900 * KIB).await.unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn slow_senders_get_no_more_than_there_is_and_others_go_on() {
    let server = start_with(|options| options.request_bytes = 2 * MIB).await;
    let mut senders: FuturesUnordered<_> = (0..8).map(|_| stall(&server, 900 * KIB)).collect();
    // Two fit, and no third beside them.
    for _ in 0..6 {
        let refused = timeout(HANGS, senders.next()).await.unwrap().unwrap();
        assert_eq!(refused.headers()["grpc-status"], "8", "{refused:?}");
    }
    healthy(&server).await;
    start_order(&server, 10 * KIB).await.unwrap();
    drop(senders);
    settles_at(&server, 2).await;
    let again = async {
        while let Err(refused) = start_order(&server, 1_900 * KIB).await {
            assert!(is_typed(&refused), "{refused:?}");
        }
    };
    timeout(HANGS, again).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn who_waits_for_a_result_takes_nothing_meanwhile() {
    let server = start_with(|options| options.request_bytes = MIB).await;
    let waiting = FuturesUnordered::new();
    for _ in 0..3 {
        // Each is started before the next one is sent: only then does its request count no more.
        let mut runs = server.runs();
        waiting.push(tokio::spawn(
            async move { runs.start_run(order(900 * KIB, Duration::from_secs(20))).await },
        ));
        let count = waiting.len();
        let started = async {
            let mut runs = server.runs();
            while runs.list_runs(api::ListRunsRequest::default()).await.unwrap().into_inner().runs.len()
                < count
            {
                tokio::task::yield_now().await;
            }
        };
        timeout(HANGS, started).await.unwrap();
    }
    let refused = start_order(&server, 1_500 * KIB).await.unwrap_err();
    assert!(is_typed(&refused), "{refused:?}");
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    server.stop().await;
}

#[tokio::test]
async fn a_workers_stream_is_told_what_does_not_fit_at_one_time() {
    let server = start_with(|options| options.request_bytes = MIB).await;
    let run_id = server.start_run("order-1").await;
    let mut worker = server.worker().await;
    let activate = worker.activated().await;
    let seen = activate.base_seq + activate.events.len() as u64;
    let end = |bytes: usize| {
        Command::CompleteRun(api::CompleteRun {
            result: Some(json(&format!("\"{}\"", "x".repeat(bytes)))),
            unconsumed: Vec::new(),
        })
    };
    // More than there is room for, but not at one time.
    for number in 1..=5 {
        worker.send(commit(&run_id, activate.epoch + 7, number, seen, end(300 * KIB))).await;
        assert!(matches!(worker.next().await.unwrap(), Some(server_message::Message::Rejected(_))));
    }
    worker.send(commit(&run_id, activate.epoch, 1, seen, end(1_500 * KIB))).await;
    let told = worker.ended().await;
    assert!(is_typed(&told), "{told:?}");
    let run = api::GetRunRequest { run: of_workflow("order-1") };
    let run = server.runs().get_run(run).await.unwrap().into_inner().run.unwrap();
    assert_eq!(run.status, i32::from(api::RunStatus::Running), "nothing was recorded");
    server.stop().await;
}
