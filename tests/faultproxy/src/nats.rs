//! NATS: protocol lines, and the payload behind those that carry a message.

use bytes::BytesMut;

use crate::unit::{Fact, Parser, Unit};

const CARRIERS: [&str; 4] = ["PUB", "HPUB", "MSG", "HMSG"];

/// Either way: the lines do not collide.
pub(crate) struct Lines;

impl Parser for Lines {
    fn next(&mut self, buffer: &mut BytesMut) -> Option<Unit> {
        let line = buffer.iter().position(|&b| b == b'\n')? + 1;
        let (mut whole, mut fact) = (line, Fact::Other);
        if let Some((subject, payload)) = message(&buffer[..line]) {
            whole = line.checked_add(payload)?.checked_add(2)?;
            fact = Fact::Message(subject);
        }
        (buffer.len() >= whole).then(|| Unit { bytes: buffer.split_to(whole).freeze(), fact })
    }
}

/// Subject and payload size: the second word and the last.
fn message(line: &[u8]) -> Option<(String, usize)> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let verb = words.next()?;
    if !CARRIERS.iter().any(|carrier| carrier.eq_ignore_ascii_case(verb)) {
        return None;
    }
    let subject = words.next()?;
    Some((subject.to_owned(), words.last()?.parse().ok()?))
}
