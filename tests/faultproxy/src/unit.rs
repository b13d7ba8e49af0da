//! Traffic, cut into what a rule can speak of.

use bytes::{Bytes, BytesMut};

use crate::GrpcPoint;

/// What the proxy passes on as a whole.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) bytes: Bytes,
    pub(crate) fact: Fact,
}

/// What a unit is, as far as rules care.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    /// Nothing special.
    Other,
    /// Executes the SQL statement with this text.
    Statement(String),
    /// Ends a batch of Postgres requests.
    Sync,
    /// An answer of Postgres that belongs to a batch.
    Answer,
    /// An error as an answer.
    Failed,
    /// The end of the answers to a batch.
    Ready,
    /// A NATS message with this subject.
    Message(String),
    /// A frame of a gRPC response: the points that lie before it, and whether the response ends with it.
    Response { before: Option<GrpcPoint>, end: bool },
}

impl Unit {
    pub(crate) fn other(bytes: Bytes) -> Self {
        Self { bytes, fact: Fact::Other }
    }
}

/// Cuts one direction of one connection.
pub(crate) trait Parser: Send {
    /// The next whole unit, if there is one.
    fn next(&mut self, buffer: &mut BytesMut) -> Option<Unit>;
}

/// Whatever was read is a unit.
pub(crate) struct Raw;

impl Parser for Raw {
    fn next(&mut self, buffer: &mut BytesMut) -> Option<Unit> {
        (!buffer.is_empty()).then(|| Unit::other(buffer.split().freeze()))
    }
}
