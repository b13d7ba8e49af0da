//! The writing half: what it does when either side stops.

use everstep_core::{Duration as CoreDuration, NodeId, SessionId};
use tokio::time::Instant;
use uuid::Uuid;

use super::*;

fn framer() -> Framer {
    Framer::new(NodeId::from_uuid(Uuid::nil()), [].into())
}

fn welcome() -> WorkerOut {
    let session_id = SessionId::from_uuid(Uuid::from_u128(1));
    WorkerOut::Welcome { session_id, lease: CoreDuration::from_secs(10), resumed: false }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_read_is_cut_off() {
    let (to_worker, from_engine) = mpsc::channel(1);
    let (frames, _never_read) = mpsc::channel(1);
    let feed = async {
        to_worker.send(welcome()).await.unwrap();
        for number in 0.. {
            if to_worker.send(WorkerOut::HeartbeatAck { number }).await.is_err() {
                break;
            }
        }
    };
    let before = Instant::now();
    let (end, ()) = tokio::join!(write(from_engine, framer(), &frames), feed);
    assert!(matches!(end, End::Slow), "{end:?}");
    assert!(before.elapsed() >= WRITE_WAIT);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_never_opens_is_given_up() {
    let (_silent, from_engine) = mpsc::channel(1);
    let (frames, mut outbound) = mpsc::channel(1);
    let end = write(from_engine, framer(), &frames).await;
    assert!(matches!(end, End::LetGo), "{end:?}");
    assert!(outbound.try_recv().is_err());
}

#[tokio::test]
async fn the_last_message_is_delivered() {
    let (to_worker, from_engine) = mpsc::channel(4);
    let (frames, mut outbound) = mpsc::channel(4);
    to_worker.send(welcome()).await.unwrap();
    to_worker.send(WorkerOut::SessionClosed { reason: "lease over" }).await.unwrap();
    let end = write(from_engine, framer(), &frames).await;
    assert!(matches!(end, End::Closed), "the sender still lives: {end:?}");
    let mut sent = Vec::new();
    while let Ok(frame) = outbound.try_recv() {
        sent.extend(frame.unwrap().messages);
    }
    assert_eq!(sent.len(), 2);
}

#[tokio::test]
async fn both_ways_of_losing_the_other_side_end_it() {
    let (to_worker, from_engine) = mpsc::channel(4);
    let (frames, outbound) = mpsc::channel(4);
    to_worker.send(welcome()).await.unwrap();
    drop(to_worker);
    let end = write(from_engine, framer(), &frames).await;
    assert!(matches!(end, End::LetGo), "{end:?}");

    let (to_worker, from_engine) = mpsc::channel(4);
    drop(outbound);
    to_worker.send(welcome()).await.unwrap();
    let end = write(from_engine, framer(), &frames).await;
    assert!(matches!(end, End::Gone), "{end:?}");
}
