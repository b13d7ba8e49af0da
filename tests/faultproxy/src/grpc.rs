//! gRPC: the frames of HTTP/2 by their nine bytes of header, no further.

use std::collections::HashSet;

use bytes::BytesMut;

use crate::GrpcPoint;
use crate::unit::{Fact, Parser, Unit};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;

/// One way of a connection.
pub(crate) struct Frames {
    /// Only the client opens with a preface.
    from_client: bool,
    /// What the other end speaks, once its first bytes have told.
    speaks: Option<Speaks>,
    /// Streams whose response has begun.
    begun: HashSet<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Http2,
    Other,
}

impl Frames {
    pub(crate) fn new(from_client: bool) -> Self {
        Self { from_client, speaks: None, begun: HashSet::new() }
    }

    fn first(&mut self, buffer: &mut BytesMut) -> Option<Unit> {
        if self.from_client {
            let known = buffer.len().min(PREFACE.len());
            if known == 0 || (buffer[..known] == PREFACE[..known] && known < PREFACE.len()) {
                return None;
            }
            if buffer[..known] == *PREFACE {
                self.speaks = Some(Speaks::Http2);
                return Some(Unit::other(buffer.split_to(PREFACE.len()).freeze()));
            }
            self.speaks = Some(Speaks::Other);
        } else {
            // A server opens with its settings, on stream 0.
            let head = buffer.get(..HEADER)?;
            let settings = head[3] == SETTINGS && head[5..] == [0; 4];
            self.speaks = Some(if settings { Speaks::Http2 } else { Speaks::Other });
        }
        self.next(buffer)
    }

    fn fact(&mut self, head: [u8; HEADER]) -> Fact {
        if self.from_client {
            return Fact::Other;
        }
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let empty = head[..3] == [0; 3];
        let end = matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 || kind == RST_STREAM;
        let before = match kind {
            HEADERS if self.begun.insert(stream) => Some(GrpcPoint::Headers),
            HEADERS => Some(GrpcPoint::Trailers),
            DATA if !empty => Some(GrpcPoint::Data),
            _ => None,
        };
        if end {
            self.begun.remove(&stream);
        }
        if before.is_none() && !end { Fact::Other } else { Fact::Response { before, end } }
    }
}

impl Parser for Frames {
    fn next(&mut self, buffer: &mut BytesMut) -> Option<Unit> {
        match self.speaks {
            None => return self.first(buffer),
            Some(Speaks::Other) => {
                return (!buffer.is_empty()).then(|| Unit::other(buffer.split().freeze()));
            }
            Some(Speaks::Http2) => {}
        }
        let head = <[u8; HEADER]>::try_from(buffer.get(..HEADER)?).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let whole = HEADER + usize::try_from(length).ok()?;
        if buffer.len() < whole {
            return None;
        }
        let bytes = buffer.split_to(whole).freeze();
        Some(Unit { bytes, fact: self.fact(head) })
    }
}
