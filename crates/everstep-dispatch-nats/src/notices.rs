//! Notices over core NATS: merged on the way out, gathered on the way in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::Subscriber;
use bytes::{Bytes, BytesMut};
use everstep_core::RunId;
use everstep_dispatch::{Error, Notice};
use futures::{FutureExt, StreamExt};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::connection::Connection;
use crate::message;

/// A packet is sent off at this size; far below what servers take at most.
const PACKET_BYTES: usize = 16 * 1024;
/// Runs whose notices may wait; more are dropped.
const OUTBOX_RUNS_MAX: usize = 100_000;
/// Packets that one call of [`Inbox::next`] gathers.
const GATHER_PACKETS_MAX: usize = 256;

/// What is to be sent: at most one notice per run. While one packet goes out, the next one fills.
pub(crate) struct Outbox {
    shared: Arc<Shared>,
    sender: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    by_run: Mutex<HashMap<RunId, Notice>>,
    filled: Notify,
}

impl Outbox {
    pub(crate) fn start(connection: Arc<Connection>, subject: String) -> Self {
        let shared = Arc::new(Shared::default());
        let sender = tokio::spawn(send(Arc::clone(&shared), connection, subject));
        Self { shared, sender }
    }

    pub(crate) fn put(&self, notice: Notice) {
        let mut by_run = self.shared.by_run.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = by_run.get_mut(&notice.run_id) {
            let closed = waiting.closed || notice.closed;
            let tail = waiting.tail.max(notice.tail);
            let asked = waiting.asked || notice.asked;
            *waiting = Notice { tail, closed, asked, ..notice };
            return;
        }
        if by_run.len() >= OUTBOX_RUNS_MAX {
            tracing::debug!(run_id = %notice.run_id, "too many notices wait: dropped this one");
            return;
        }
        by_run.insert(notice.run_id, notice);
        drop(by_run);
        self.shared.filled.notify_one();
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.sender.abort();
    }
}

async fn send(shared: Arc<Shared>, connection: Arc<Connection>, subject: String) {
    loop {
        shared.filled.notified().await;
        let batch = std::mem::take(&mut *shared.by_run.lock().unwrap_or_else(PoisonError::into_inner));
        let mut packet = BytesMut::new();
        let mut packets = Vec::new();
        let enough = PACKET_BYTES.min(connection.client.server_info().max_payload / 2);
        for notice in batch.values() {
            message::encode_notice(notice, &mut packet);
            if packet.len() >= enough {
                packets.push(packet.split().freeze());
            }
        }
        packets.push(packet.freeze());
        for packet in packets.into_iter().filter(|packet: &Bytes| !packet.is_empty()) {
            // Without a connection they would wait in the client and go out when they are stale.
            if !connection.is_up() {
                break;
            }
            if let Err(error) = connection.client.publish(subject.clone(), packet).await {
                tracing::debug!(%error, "cannot send notices");
            }
        }
    }
}

/// What other nodes sent.
pub(crate) struct Inbox {
    subscriber: Subscriber,
    losses: watch::Receiver<u64>,
}

impl Inbox {
    pub(crate) async fn open(connection: &Connection, subject: String) -> Result<Self, Error> {
        let losses = connection.losses();
        let subscriber = connection
            .client
            .subscribe(subject)
            .await
            .map_err(|err| Error::Unavailable(format!("cannot subscribe to notices: {err}")))?;
        Ok(Self { subscriber, losses })
    }

    /// Waits for notices and takes all that are there. Cancel safe: nothing is awaited after the first.
    pub(crate) async fn next(&mut self) -> Result<Vec<Notice>, Error> {
        loop {
            let first = tokio::select! {
                biased;
                packet = self.subscriber.next() => packet,
                _ = self.losses.changed() => {
                    return Err(Error::Unavailable("notices may have been lost".to_owned()));
                }
            };
            let Some(first) = first else {
                return Err(Error::Unavailable("the subscription to notices has ended".to_owned()));
            };
            let mut notices = Vec::new();
            read(first.payload, &mut notices);
            for _ in 1..GATHER_PACKETS_MAX {
                let Some(Some(more)) = self.subscriber.next().now_or_never() else { break };
                read(more.payload, &mut notices);
            }
            if !notices.is_empty() {
                return Ok(notices);
            }
        }
    }
}

fn read(packet: Bytes, notices: &mut Vec<Notice>) {
    let bytes = packet.len();
    if let Err(problem) = message::decode_notices(packet, notices) {
        tracing::warn!(bytes, %problem, "skipped a message on the notice subject");
    }
}
