//! Answers that nobody takes, on streams whose window stays shut.

use everstep_proto::api;

use super::raw::{DATA, END_STREAM, HEADERS, PING, Raw, WINDOW_UPDATE, frame, healthy, settles_at};
use super::slow::later;
use super::support::{Harness, json, of_workflow, start};

const HISTORY: &str = "/everstep.api.v1.RunService/GetHistory";

/// A run whose history takes more than a piece.
async fn start_large(server: &Harness, bytes: usize) -> String {
    let text = format!("\"{}\"", "x".repeat(bytes));
    let request = api::StartRunRequest {
        workflow_id: "order-1".to_owned(),
        workflow_type: "order".to_owned(),
        input: Some(json(&text)),
        ..api::StartRunRequest::default()
    };
    server.runs().start_run(request).await.unwrap();
    text
}

fn history() -> api::GetHistoryRequest {
    api::GetHistoryRequest { run: of_workflow("order-1"), ..api::GetHistoryRequest::default() }
}

/// Asks for the history `count` times without a window, and waits for the beginning of every answer.
async fn ask(raw: &mut Raw, count: u32) {
    for i in 0..count {
        raw.call(2 * i + 1, HISTORY, &history()).await;
    }
    for _ in 0..count {
        assert_eq!(raw.next_of(HEADERS).await.flags & END_STREAM, 0);
    }
}

/// Lets some time pass for a client that answers pings.
async fn wait_lively(raw: &mut Raw, times: usize) {
    for _ in 0..times {
        later(21).await;
        raw.next_of(PING).await;
        raw.synced().await;
    }
}

/// The piece that the transport has in hand.
const PIECE: usize = 16 << 10;

/// Opens the window of the first answer, for two pieces; gives the bytes that come until then, or to the end.
async fn take(raw: &mut Raw) -> usize {
    raw.write(&frame(WINDOW_UPDATE, 0, 1, &(2 * 16_384_u32).to_be_bytes())).await.unwrap();
    let mut bytes = 0;
    while bytes < 2 * PIECE {
        let got = raw.next().await.unwrap();
        raw.acknowledge(&got).await;
        match got.kind {
            DATA => bytes += got.payload.len(),
            HEADERS => {
                assert_eq!((got.stream, got.flags & END_STREAM), (1, END_STREAM));
                break;
            }
            _ => {}
        }
    }
    bytes
}

#[tokio::test]
async fn large_answers_come_whole() {
    let server = start().await;
    let text = start_large(&server, 1 << 20).await;
    let mut answers = server.runs().get_history(history()).await.unwrap().into_inner();
    let events = answers.message().await.unwrap().unwrap().events;
    let Some(everstep_proto::history::event::Attributes::RunStarted(started)) = &events[0].attributes else {
        panic!("no beginning")
    };
    assert_eq!(started.input, Some(json(&text)));
    assert!(answers.message().await.unwrap().is_none());
    server.stop().await;
}

#[tokio::test]
async fn a_few_slow_callers_are_waited_for() {
    let server = start().await;
    start_large(&server, 100 << 10).await;
    let mut raw = Raw::connect(server.addr, &[(4, 0)]).await;
    ask(&mut raw, 3).await;
    wait_lively(&mut raw, 5).await;
    assert_eq!(take(&mut raw).await, 2 * PIECE);
    drop(raw);
    server.stop().await;
}

#[tokio::test]
async fn nobody_is_waited_for_for_ever() {
    let server = start().await;
    start_large(&server, 100 << 10).await;
    let mut raw = Raw::connect(server.addr, &[(4, 0)]).await;
    ask(&mut raw, 3).await;
    wait_lively(&mut raw, 30).await;
    assert_eq!(take(&mut raw).await, PIECE, "and the end");
    drop(raw);
    settles_at(&server, 2).await;
    server.stop().await;
}

#[tokio::test]
async fn many_slow_callers_are_given_up_soon() {
    let server = start().await;
    start_large(&server, 100 << 10).await;
    let mut raw = Raw::connect(server.addr, &[(4, 0)]).await;
    ask(&mut raw, 100).await;
    wait_lively(&mut raw, 2).await;
    healthy(&server).await;
    assert_eq!(take(&mut raw).await, PIECE, "and the end");
    drop(raw);
    server.stop().await;
}
