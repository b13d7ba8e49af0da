//! An HTTP/2 client that does as it is told, one frame at a time.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use everstep_proto::api;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::support::{HANGS, Harness};

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0x0;
pub(super) const HEADERS: u8 = 0x1;
pub(super) const RST_STREAM: u8 = 0x3;
pub(super) const SETTINGS: u8 = 0x4;
pub(super) const PING: u8 = 0x6;
pub(super) const GOAWAY: u8 = 0x7;
pub(super) const WINDOW_UPDATE: u8 = 0x8;
pub(super) const CONTINUATION: u8 = 0x9;
pub(super) const ACK: u8 = 0x1;
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;

/// The error code of a GOAWAY to a client that overdoes it.
pub(super) const ENHANCE_YOUR_CALM: u32 = 0xb;

pub(super) const LIST_RUNS: &str = "/everstep.api.v1.RunService/ListRuns";

/// A frame as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    /// The answer that a PING or SETTINGS is due.
    fn answer(&self) -> Option<Vec<u8>> {
        let due = [SETTINGS, PING].contains(&self.kind) && self.flags & ACK == 0;
        let echo: &[u8] = if self.kind == PING { &self.payload } else { &[] };
        due.then(|| frame(self.kind, ACK, 0, echo))
    }

    fn goaway_code(&self) -> Option<u32> {
        let code = (self.kind == GOAWAY).then(|| self.payload[4..8].try_into().unwrap());
        code.map(u32::from_be_bytes)
    }
}

/// The bytes of a frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The header block of a call: indexed fields where HPACK has them, plain text otherwise.
pub(super) fn call_block(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let post_http = [0x83, 0x86];
    [
        &post_http[..],
        &[0x04],
        &text(path),
        &[0x01],
        &text("x"),
        &[0x0f, 0x10],
        &text("application/grpc"),
        &[0x00],
        &text("te"),
        &text("trailers"),
    ]
    .concat()
}

/// A message with its gRPC prefix.
pub(super) fn message(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&[0], &u32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
}

/// A connection.
pub(super) struct Raw {
    pub(super) stream: TcpStream,
}

impl Raw {
    /// Connects and says nothing.
    pub(super) async fn silent(addr: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(addr).await.unwrap() }
    }

    /// Connects, says hello with `settings`, and has read the server's.
    pub(super) async fn connect(addr: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self::silent(addr).await;
        let pairs = settings.iter().flat_map(|(id, value)| {
            id.to_be_bytes().into_iter().chain(value.to_be_bytes()).collect::<Vec<u8>>()
        });
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, &pairs.collect::<Vec<u8>>())].concat();
        raw.write(&hello).await.unwrap();
        assert_eq!(raw.next().await.unwrap().kind, SETTINGS, "the first frame");
        raw
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(HANGS, self.stream.write_all(bytes)).await.unwrap()
    }

    /// Opens a stream with a call; `flags` besides `END_HEADERS`.
    pub(super) async fn open(&mut self, stream: u32, path: &str, flags: u8) {
        self.write(&frame(HEADERS, END_HEADERS | flags, stream, &call_block(path))).await.unwrap();
    }

    /// A whole call.
    pub(super) async fn call(&mut self, stream: u32, path: &str, body: &impl Message) {
        self.open(stream, path, 0).await;
        self.write(&frame(DATA, END_STREAM, stream, &message(body))).await.unwrap();
    }

    /// The next frame.
    pub(super) async fn next(&mut self) -> io::Result<Frame> {
        timeout(HANGS, self.read()).await.unwrap()
    }

    async fn read(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        let [high, middle, low, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
        self.stream.read_exact(&mut payload).await?;
        Ok(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    /// The next frame of one kind; acknowledges SETTINGS and PING on the way.
    pub(super) async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.unwrap();
            self.acknowledge(&frame).await;
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// The next frame of one kind; acknowledges nothing.
    pub(super) async fn next_of_unanswered(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.unwrap();
            if frame.kind == kind {
                return frame;
            }
        }
    }

    pub(super) async fn acknowledge(&mut self, got: &Frame) {
        if let Some(answer) = got.answer() {
            self.write(&answer).await.unwrap();
        }
    }

    /// Waits until the server has read all that was sent so far.
    pub(super) async fn synced(&mut self) {
        self.write(&frame(PING, 0, 0, b"all read")).await.unwrap();
        while self.next_of(PING).await.flags & ACK == 0 {}
    }

    /// Waits until the server has closed the connection of a client that says nothing more; the error code of
    /// its GOAWAY, if it came through.
    pub(super) async fn closed(mut self) -> Option<u32> {
        let mut code = None;
        while let Ok(frame) = self.next().await {
            code = frame.goaway_code().or(code);
        }
        code
    }

    /// As [`Raw::closed`], for a client that goes on to answer what it is asked: not the keepalive ends it.
    pub(super) async fn thrown_out(mut self) -> Option<u32> {
        let mut code = None;
        let ended = async {
            while let Ok(got) = self.read().await {
                code = got.goaway_code().or(code);
                if let Some(answer) = got.answer() {
                    // It may be closed already, and still have something to read.
                    let _ = self.stream.write_all(&answer).await;
                }
            }
        };
        timeout(HANGS, ended).await.unwrap();
        code
    }
}

/// The number of open connections, as the metrics say it; this question is one of them. `None` when there is
/// no place for it.
pub(super) async fn connections(server: &Harness) -> Option<usize> {
    let mut raw = Raw::silent(server.addr).await;
    raw.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.ok()?;
    let mut answer = Vec::new();
    timeout(HANGS, raw.stream.read_to_end(&mut answer)).await.unwrap().ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let line = answer.lines().find_map(|line| line.strip_prefix("everstep_connections "))?;
    Some(line.parse().unwrap())
}

/// Waits until the server has no more than `count` connections, this question among them.
pub(super) async fn settles_at(server: &Harness, count: usize) {
    let settled = async {
        while connections(server).await.is_none_or(|open| open > count) {
            tokio::task::yield_now().await;
        }
    };
    timeout(HANGS, settled).await.unwrap();
}

/// Another client is answered.
pub(super) async fn healthy(server: &Harness) {
    let mut client = server.namespaces();
    let answer = client.list_namespaces(api::ListNamespacesRequest::default());
    timeout(Duration::from_secs(10), answer).await.unwrap().unwrap();
}
