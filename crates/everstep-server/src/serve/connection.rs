//! Accepted connections: counted, without Nagle's delay, with deadlines for what the transport waits for
//! without one, and closed at once when the grace is over.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::ConnectionLimits;
use super::flood::Watch;
use super::gate::{self, Gate, Place};

/// How long to wait for a file to become free when the process has none left.
const NO_FILES_PAUSE: Duration = Duration::from_millis(100);

/// The connections that come in. It never ends: an error belongs to one client, or passes.
pub(super) fn accept(
    listener: TcpListener,
    gate: Gate,
    limits: ConnectionLimits,
    hard_stop: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    futures::stream::unfold((listener, gate, limits, hard_stop), |state| async move {
        let (listener, gate, limits, hard_stop) = &state;
        let connection = loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if is_of_one_client(&error) => continue,
                Err(error) => {
                    // Out of files or memory: the listener stays readable, so that to try again at once
                    // would take a whole core.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(NO_FILES_PAUSE).await;
                    continue;
                }
            };
            match gate.enter(peer.ip()) {
                Some(place) => break Connection::new(stream, place, limits, hard_stop),
                None => gate::turn_away(stream),
            }
        };
        Some((Ok(connection), state))
    })
}

fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// One connection.
pub(super) struct Connection {
    stream: TcpStream,
    /// Polled by every read: the transport always has one pending.
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    watch: Watch,
    /// When the client must have shown its protocol; gone as soon as it has.
    greeting: Option<Pin<Box<Sleep>>>,
    unread: Unread,
    /// Given back at the end.
    _place: Place,
}

impl Connection {
    fn new(stream: TcpStream, place: Place, limits: &ConnectionLimits, stop: &CancellationToken) -> Self {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot turn off Nagle's delay");
        }
        Self {
            stream,
            stop: Box::pin(stop.clone().cancelled_owned()),
            watch: Watch::new(),
            greeting: Some(Box::pin(tokio::time::sleep(limits.first_bytes))),
            unread: Unread { limit: limits.unread, deadline: None },
            _place: place,
        }
    }

    /// A write ended like `polled`; `written` are the bytes that it took at most.
    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<usize>>,
        written: &[u8],
    ) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Pending => self.unread.poll(cx),
            Poll::Ready(Ok(bytes)) => {
                self.unread.deadline = None;
                self.watch.sent(&written[..bytes.min(written.len())]);
                Poll::Ready(Ok(bytes))
            }
            failed @ Poll::Ready(Err(_)) => failed,
        }
    }
}

/// The time that a client's system has taken nothing of what was sent.
struct Unread {
    limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Unread {
    /// Nothing can be written: starts the time, or ends the connection when it is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let limit = self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        deadline.as_mut().poll(cx).map(|()| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read what it is sent"))
        })
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.greeting.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            let message = "the client does not say what it speaks";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if polled.is_ready() {
            if self.watch.received(&buf.filled()[before..]).is_err() {
                tracing::debug!(peer = ?self.stream.peer_addr().ok(), "closing a connection that floods");
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            if self.watch.greeted() {
                self.greeting = None;
            }
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(cx, polled, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        let Poll::Ready(Ok(mut left)) = polled else { return self.wrote(cx, polled, &[]) };
        for buf in bufs {
            let written = left.min(buf.len());
            self.watch.sent(&buf[..written]);
            left -= written;
        }
        self.wrote(cx, polled, &[])
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
