//! More connections than there are places.

use everstep_proto::api;

use super::raw::{ENHANCE_YOUR_CALM, HEADERS, LIST_RUNS, Raw, healthy, settles_at};
use super::support::{Harness, start_with};

/// Opens connections until one is refused; gives those that were not.
async fn fill(server: &Harness, places: usize) -> Vec<Raw> {
    let mut held = Vec::new();
    for _ in 0..places {
        held.push(Raw::connect(server.addr, &[]).await);
    }
    let refused = Raw::silent(server.addr).await;
    assert_eq!(refused.closed().await, Some(ENHANCE_YOUR_CALM), "told and closed");
    held
}

/// Every one of them works.
async fn all_work(held: &mut [Raw]) {
    for raw in held {
        raw.call(1, LIST_RUNS, &api::ListRunsRequest::default()).await;
        assert_eq!(raw.next_of(HEADERS).await.stream, 1);
    }
}

#[tokio::test]
async fn one_connection_too_many_is_refused_and_the_others_live() {
    let server = start_with(|options| options.connections.total = 6).await;
    let mut held = fill(&server, 5).await;
    healthy(&server).await;
    all_work(&mut held).await;
    drop(held);
    settles_at(&server, 2).await;
    drop(fill(&server, 5).await);
    settles_at(&server, 2).await;
    server.stop().await;
}

#[tokio::test]
async fn one_peer_does_not_take_all_places() {
    let server = start_with(|options| options.connections.per_peer = 4).await;
    let mut held = fill(&server, 3).await;
    healthy(&server).await;
    all_work(&mut held).await;
    drop(held.pop());
    // Its place is free again, for the question at least.
    settles_at(&server, 4).await;
    drop(held);
    settles_at(&server, 2).await;
    server.stop().await;
}
