//! Messages on their way to the server: whatever has gathered goes into one frame.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use everstep_proto::api::{ConnectRequest, WorkerMessage, worker_message::Message};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::Stream;

/// Messages in one frame at most.
const FRAME_MESSAGES: usize = 256;
/// Bytes in one frame at most, unless a single message is larger.
const FRAME_BYTES: usize = 1024 * 1024;

/// Where runs put what they have to say. Without a connection it is dropped: it is said again after the
/// session was taken up.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    to_stream: Mutex<Option<mpsc::UnboundedSender<Message>>>,
    /// Counts connections. A run that has not repeated its unanswered commits on the present one yet must
    /// not say anything newer: commits are taken in order.
    generation: AtomicU64,
}

impl Outbox {
    pub(super) fn send(&self, message: Message) {
        if let Some(to_stream) = &*self.to_stream.lock().unwrap_or_else(PoisonError::into_inner) {
            // A stream that broke is noticed by its reader.
            let _ = to_stream.send(message);
        }
    }

    /// The present connection.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn open(&self, to_stream: mpsc::UnboundedSender<Message>) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        *self.to_stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(to_stream);
    }

    pub(super) fn close(&self) {
        *self.to_stream.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The frames of one connection.
#[derive(Debug)]
pub(super) struct Frames {
    pub(super) messages: mpsc::UnboundedReceiver<Message>,
    pub(super) left_over: Option<Message>,
}

impl Stream for Frames {
    type Item = ConnectRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ConnectRequest>> {
        let mut messages = Vec::new();
        let mut bytes = 0;
        loop {
            let next = match self.left_over.take() {
                Some(message) => Poll::Ready(Some(message)),
                None => self.messages.poll_recv(cx),
            };
            match next {
                Poll::Ready(Some(message)) => {
                    let wrapped = WorkerMessage { message: Some(message) };
                    let size = wrapped.encoded_len();
                    if !messages.is_empty() && bytes + size > FRAME_BYTES {
                        self.left_over = wrapped.message;
                        break;
                    }
                    bytes += size;
                    messages.push(wrapped);
                    if messages.len() >= FRAME_MESSAGES {
                        break;
                    }
                }
                Poll::Ready(None) if messages.is_empty() => return Poll::Ready(None),
                Poll::Pending if messages.is_empty() => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Poll::Ready(Some(ConnectRequest { messages }))
    }
}
