//! Clients that begin and do not go on, or ask and do not read: their time is up some day.

use std::time::Duration;

use everstep_proto::api;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::raw::{
    DATA, END_STREAM, GOAWAY, HEADERS, LIST_RUNS, PING, PREFACE, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE,
    call_block, frame, healthy, message, settles_at,
};
use super::support::{HANGS, start, start_with};

/// Puts the clock forward, for everything in this process.
pub(super) async fn later(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn who_says_nothing_is_let_go() {
    let server = start().await;
    for said in [&b""[..], &PREFACE[..23]] {
        let mut raw = Raw::silent(server.addr).await;
        raw.write(said).await.unwrap();
        settles_at(&server, 3).await;
        later(9).await;
        healthy(&server).await;
        assert_eq!(super::raw::connections(&server).await, Some(3), "not yet");
        later(2).await;
        let mut rest = Vec::new();
        let _ = timeout(HANGS, raw.stream.read_to_end(&mut rest)).await.unwrap();
        settles_at(&server, 2).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_preface_byte_by_byte_gets_no_more_time() {
    let pace = Duration::from_millis(50);
    let server = start_with(|options| options.connections.first_bytes = 6 * pace).await;
    let mut raw = Raw::silent(server.addr).await;
    let mut sent = 0;
    for byte in &PREFACE[..23] {
        // A closed connection shows itself while the next byte waits for its turn.
        let wrote = raw.write(&[*byte]).await;
        if wrote.is_err() || timeout(pace, raw.stream.read_u8()).await.is_ok() {
            break;
        }
        sent += 1;
    }
    assert!(sent < 23, "all of it was taken");
    settles_at(&server, 2).await;
    healthy(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn headers_that_never_end_are_not_waited_for() {
    let server = start().await;
    let mut raw = Raw::connect(server.addr, &[]).await;
    raw.write(&frame(SETTINGS, 1, 0, b"")).await.unwrap();
    raw.write(&frame(HEADERS, 0, 1, &call_block(LIST_RUNS))).await.unwrap();
    settles_at(&server, 3).await;
    later(21).await;
    // Now it is asked whether it lives, and the answer cannot come in the middle of a header block.
    raw.next_of_unanswered(PING).await;
    later(11).await;
    raw.closed().await;
    settles_at(&server, 2).await;
    healthy(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn who_does_not_answer_pings_is_gone_and_who_does_stays() {
    let server = start().await;
    let mut lively = Raw::connect(server.addr, &[]).await;
    let mut dead = Raw::connect(server.addr, &[]).await;
    for raw in [&mut lively, &mut dead] {
        raw.write(&frame(SETTINGS, 1, 0, b"")).await.unwrap();
    }
    settles_at(&server, 4).await;
    later(21).await;
    lively.next_of(PING).await;
    lively.synced().await;
    dead.next_of_unanswered(PING).await;
    settles_at(&server, 4).await;
    later(11).await;
    dead.closed().await;
    lively.call(1, LIST_RUNS, &api::ListRunsRequest::default()).await;
    assert_eq!(lively.next_of(HEADERS).await.stream, 1);
    drop(lively);
    settles_at(&server, 2).await;
    server.stop().await;
}

#[tokio::test]
async fn http_1_headers_that_never_end_are_not_waited_for() {
    let server = start().await;
    let mut raw = Raw::silent(server.addr).await;
    raw.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\nx-slow: ").await.unwrap();
    settles_at(&server, 3).await;
    later(31).await;
    let mut rest = Vec::new();
    let _ = timeout(HANGS, raw.stream.read_to_end(&mut rest)).await.unwrap();
    settles_at(&server, 2).await;
    // Nor is the next request of a connection that has had its answer.
    let mut raw = Raw::silent(server.addr).await;
    raw.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(timeout(HANGS, raw.stream.read_u8()).await.unwrap().is_ok());
    later(31).await;
    settles_at(&server, 2).await;
    server.stop().await;
}

#[tokio::test]
async fn answers_that_nobody_reads_are_not_kept() {
    let server = start().await;
    let mut raw = Raw::silent(server.addr).await;
    // Until the server can send no more, and so takes no more.
    let requests = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    while timeout(Duration::from_millis(500), raw.stream.write_all(&requests)).await.is_ok() {}
    healthy(&server).await;
    later(31).await;
    settles_at(&server, 2).await;
    drop(raw);
    server.stop().await;
}

#[tokio::test]
async fn answers_without_a_window_are_bounded_and_end_with_the_connection() {
    let server = start().await;
    server.start_run("order-1").await;
    // INITIAL_WINDOW_SIZE 0: every answer waits behind its headers.
    let mut raw = Raw::connect(server.addr, &[(4, 0)]).await;
    let mut answered = 0;
    for i in 0..200 {
        raw.call(2 * i + 1, LIST_RUNS, &api::ListRunsRequest::default()).await;
    }
    while answered < 200 {
        raw.next_of(HEADERS).await;
        answered += 1;
    }
    raw.call(401, LIST_RUNS, &api::ListRunsRequest::default()).await;
    assert_eq!(raw.next_of(RST_STREAM).await.stream, 401, "none of the places is free");
    healthy(&server).await;
    // One that gets its window gets its answer.
    raw.write(&frame(WINDOW_UPDATE, 0, 1, &1_000_u32.to_be_bytes())).await.unwrap();
    assert_eq!(raw.next_of(DATA).await.stream, 1);
    raw.synced().await;
    later(21).await;
    raw.next_of_unanswered(PING).await;
    later(11).await;
    raw.closed().await;
    settles_at(&server, 2).await;
    healthy(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn a_call_whose_message_never_comes_is_answered() {
    let server = start().await;
    let mut raw = Raw::connect(server.addr, &[]).await;
    raw.open(1, LIST_RUNS, 0).await;
    raw.write(&frame(DATA, 0, 1, &[0, 0, 0, 0, 100])).await.unwrap();
    raw.synced().await;
    // Past the longest time of a call, with signs of life on the way.
    for _ in 0..3 {
        later(21).await;
        raw.next_of(PING).await;
        raw.synced().await;
    }
    later(5).await;
    assert_eq!(raw.next_of(HEADERS).await.stream, 1);
    drop(raw);
    settles_at(&server, 2).await;
    server.stop().await;
}

#[tokio::test]
async fn half_closed_connections_are_closed() {
    let server = start().await;
    let mut raw = Raw::connect(server.addr, &[]).await;
    raw.call(1, LIST_RUNS, &api::ListRunsRequest::default()).await;
    raw.stream.shutdown().await.unwrap();
    raw.closed().await;
    let mut raw = Raw::silent(server.addr).await;
    raw.write(&PREFACE[..5]).await.unwrap();
    raw.stream.shutdown().await.unwrap();
    raw.closed().await;
    settles_at(&server, 2).await;
    healthy(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn a_message_after_the_end_of_a_call_is_an_error_of_the_stream() {
    let server = start().await;
    let mut raw = Raw::connect(server.addr, &[]).await;
    let list = message(&api::ListRunsRequest::default());
    // A call of headers only has no message.
    raw.open(1, LIST_RUNS, END_STREAM).await;
    assert_eq!(raw.next_of(HEADERS).await.stream, 1);
    raw.call(3, LIST_RUNS, &api::ListRunsRequest::default()).await;
    raw.write(&frame(DATA, END_STREAM, 3, &list)).await.unwrap();
    loop {
        let got = raw.next().await.unwrap();
        raw.acknowledge(&got).await;
        if got.kind == RST_STREAM || got.kind == GOAWAY {
            break;
        }
    }
    healthy(&server).await;
    drop(raw);
    settles_at(&server, 2).await;
    server.stop().await;
}
