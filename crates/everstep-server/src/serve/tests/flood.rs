//! Frames without end: the connection is closed, and others notice nothing.

use everstep_proto::api;

use super::raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, LIST_RUNS, PING, PREFACE,
    RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, call_block, frame, healthy, settles_at,
};
use super::support::{Harness, start};

/// Frames of a flood, more than are suffered within a window.
const MANY: usize = 30_000;
const BATCH: usize = 500;

/// Sends `batch` again and again until it is enough or the server has closed, while another client is
/// answered; then waits for the close. Gives the code of the server's GOAWAY, if it was seen.
async fn flood(server: &Harness, mut raw: Raw, mut batch: impl FnMut(usize) -> Vec<u8>) -> Option<u32> {
    let attack = async {
        for round in 0..MANY / BATCH {
            if raw.write(&batch(round)).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        raw.thrown_out().await
    };
    let others = async {
        for _ in 0..10 {
            healthy(server).await;
        }
    };
    let (code, ()) = tokio::join!(attack, others);
    healthy(server).await;
    settles_at(server, 2).await;
    code
}

/// The same frame again and again.
async fn flood_of(server: &Harness, raw: Raw, one: &[u8]) -> Option<u32> {
    flood(server, raw, |_| one.repeat(BATCH)).await
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let server = start().await;
    let raw = Raw::connect(server.addr, &[]).await;
    let block = call_block(LIST_RUNS);
    let opened_and_reset = |first: usize, count: usize| -> Vec<u8> {
        let pairs = (first..first + count).flat_map(|i| {
            let stream = u32::try_from(2 * i + 1).unwrap();
            let open = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block);
            [open, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
        });
        pairs.collect()
    };
    let code = flood(&server, raw, |round| opened_and_reset(round * BATCH, BATCH)).await;
    assert!(code.is_none_or(|c| c == ENHANCE_YOUR_CALM), "{code:?}");
    // As few as these are enough, when they come faster than calls begin.
    let mut raw = Raw::connect(server.addr, &[]).await;
    raw.write(&opened_and_reset(0, 100)).await.unwrap();
    assert_eq!(raw.thrown_out().await, Some(ENHANCE_YOUR_CALM));
    server.stop().await;
}

#[tokio::test]
async fn headers_without_end_end_the_connection() {
    let server = start().await;
    for piece in [&[0x0f][..], &[b'x'; 16 << 10]] {
        let mut raw = Raw::connect(server.addr, &[]).await;
        raw.write(&frame(HEADERS, 0, 1, &call_block(LIST_RUNS))).await.unwrap();
        flood_of(&server, raw, &frame(CONTINUATION, 0, 1, piece)).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn pings_without_end_end_the_connection() {
    let server = start().await;
    let raw = Raw::connect(server.addr, &[]).await;
    flood_of(&server, raw, &frame(PING, 0, 0, &[7; 8])).await;
    server.stop().await;
}

#[tokio::test]
async fn settings_without_end_end_the_connection() {
    let server = start().await;
    let raw = Raw::connect(server.addr, &[]).await;
    // INITIAL_WINDOW_SIZE, which every open stream has to follow.
    flood_of(&server, raw, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])).await;
    server.stop().await;
}

#[tokio::test]
async fn window_updates_without_end_end_the_connection() {
    let server = start().await;
    let raw = Raw::connect(server.addr, &[]).await;
    flood_of(&server, raw, &frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())).await;
    server.stop().await;
}

#[tokio::test]
async fn empty_data_without_end_ends_the_connection() {
    let server = start().await;
    let padding = frame(DATA, 0x8, 1, &[3, 0, 0, 0]);
    for empty in [frame(DATA, 0, 1, b""), padding] {
        let mut raw = Raw::connect(server.addr, &[]).await;
        raw.open(1, LIST_RUNS, 0).await;
        flood_of(&server, raw, &empty).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn frames_of_unknown_kinds_and_oversized_ones_end_the_connection() {
    let server = start().await;
    let raw = Raw::connect(server.addr, &[]).await;
    flood_of(&server, raw, &frame(0xbe, 0, 0, b"")).await;
    let mut raw = Raw::connect(server.addr, &[]).await;
    raw.write(&frame(DATA, 0, 1, &vec![0; (16 << 10) + 1])).await.unwrap();
    assert_eq!(raw.closed().await, Some(6), "FRAME_SIZE_ERROR");
    healthy(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused() {
    let server = start().await;
    let mut raw = Raw::connect(server.addr, &[]).await;
    // Without END_STREAM each of them waits for its message.
    for i in 0..300 {
        raw.open(2 * i + 1, LIST_RUNS, 0).await;
    }
    let refused = raw.next_of(RST_STREAM).await;
    assert_eq!(refused.payload, 7_u32.to_be_bytes(), "REFUSED_STREAM");
    assert_eq!(refused.stream, 2 * 200 + 1, "the first one too many");
    healthy(&server).await;
    // One of the others still works.
    raw.write(&frame(DATA, END_STREAM, 1, &super::raw::message(&api::ListRunsRequest::default())))
        .await
        .unwrap();
    assert_eq!(raw.next_of(HEADERS).await.stream, 1);
    drop(raw);
    settles_at(&server, 2).await;
    server.stop().await;
}

#[tokio::test]
async fn frames_before_their_time_end_the_connection() {
    let server = start().await;
    let open = frame(HEADERS, END_HEADERS | END_STREAM, 2, &call_block(LIST_RUNS));
    for first in [frame(DATA, 0, 1, b"x"), frame(CONTINUATION, 0, 1, b""), open, frame(PING, 0, 1, &[0; 8])] {
        let mut raw = Raw::silent(server.addr).await;
        raw.write(&[PREFACE, &frame(SETTINGS, 0, 0, b""), &first].concat()).await.unwrap();
        assert_eq!(raw.closed().await, Some(1), "PROTOCOL_ERROR: {first:?}");
    }
    healthy(&server).await;
    server.stop().await;
}
