//! Frames that cost a client nothing and do nothing: counted, and the connection closed when it sends little else.
//!
//! The transport bounds what such frames take in memory, but answers them for as long as they come. Only the
//! heads of frames are looked at; what is in them is the transport's to judge.

use std::time::{Duration, Instant};

/// What an HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD_BYTES: usize = 9;
/// Idle frames that a client may send within a window, besides two for each frame of an answer: clients
/// that measure the connection send a PING for the data that they get.
const IDLE_MAX: u32 = 10_000;
const WINDOW: Duration = Duration::from_secs(10);

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const CONTINUATION: u8 = 0x9;
/// ACK of SETTINGS and PING, `END_STREAM` of DATA: the frames with it are bounded by what they answer or end.
const FLAG_ONE: u8 = 0x1;
const PADDED: u8 = 0x8;

/// The client sends frames that do nothing, and little else.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flooded;

/// Looks at both directions of a connection.
#[derive(Debug)]
pub(super) struct Watch {
    greeting: Greeting,
    inbound: Heads,
    outbound: Heads,
    since: Instant,
    idle: u32,
    answers: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Greeting {
    /// So many bytes of the preface have come.
    Http2(usize),
    Done,
    /// Something else, which is not looked at.
    Other,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            greeting: Greeting::Http2(0),
            inbound: Heads::default(),
            outbound: Heads::default(),
            since: Instant::now(),
            idle: 0,
            answers: 0,
        }
    }

    /// Whether the client has shown which protocol it speaks.
    pub(super) fn greeted(&self) -> bool {
        !matches!(self.greeting, Greeting::Http2(_))
    }

    /// The client has sent `bytes`.
    pub(super) fn received(&mut self, mut bytes: &[u8]) -> Result<(), Flooded> {
        if let Greeting::Http2(seen) = self.greeting {
            let (now, rest) = bytes.split_at(bytes.len().min(PREFACE.len() - seen));
            self.greeting = match seen + now.len() {
                _ if !PREFACE[seen..].starts_with(now) => Greeting::Other,
                all if all == PREFACE.len() => Greeting::Done,
                some => Greeting::Http2(some),
            };
            bytes = rest;
        }
        if self.greeting != Greeting::Done {
            return Ok(());
        }
        let mut idle = 0;
        self.inbound.feed(bytes, |head| idle += u32::from(head.is_idle()));
        if idle == 0 {
            return Ok(());
        }
        if self.since.elapsed() >= WINDOW {
            (self.since, self.idle, self.answers) = (Instant::now(), 0, 0);
        }
        self.idle = self.idle.saturating_add(idle);
        let most = self.answers.saturating_mul(2).saturating_add(IDLE_MAX);
        if self.idle > most { Err(Flooded) } else { Ok(()) }
    }

    /// The client was sent `bytes`.
    pub(super) fn sent(&mut self, bytes: &[u8]) {
        if self.greeting == Greeting::Done {
            let mut answers = 0;
            self.outbound.feed(bytes, |head| answers += u32::from(matches!(head.kind, DATA | HEADERS)));
            self.answers = self.answers.saturating_add(answers);
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Head {
    bytes: usize,
    kind: u8,
    flags: u8,
}

impl Head {
    fn is_idle(self) -> bool {
        match self.kind {
            HEADERS | CONTINUATION => false,
            SETTINGS | PING => self.flags & FLAG_ONE == 0,
            // Padding is at most 255 bytes and its length.
            DATA => {
                self.flags & FLAG_ONE == 0
                    && (self.bytes == 0 || self.flags & PADDED != 0 && self.bytes <= 256)
            }
            _ => true,
        }
    }
}

/// Finds the heads of frames in a stream of bytes.
#[derive(Debug, Default)]
struct Heads {
    head: [u8; HEAD_BYTES],
    have: usize,
    skip: usize,
}

impl Heads {
    fn feed(&mut self, mut bytes: &[u8], mut found: impl FnMut(Head)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = bytes.len().min(HEAD_BYTES - self.have);
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEAD_BYTES {
                let [high, middle, low, kind, flags, ..] = self.head;
                let length = u32::from_be_bytes([0, high, middle, low]) as usize;
                found(Head { bytes: length, kind, flags });
                (self.have, self.skip) = (0, length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn greeted() -> Watch {
        let mut watch = Watch::new();
        watch.received(PREFACE).unwrap();
        watch
    }

    #[test]
    fn a_greeting_is_known_by_its_bytes() {
        let mut slow = Watch::new();
        for byte in PREFACE {
            assert!(!slow.greeted());
            slow.received(&[*byte]).unwrap();
        }
        assert!(slow.greeted() && slow.greeting == Greeting::Done);
        for other in [&b"GET / HTTP/1.1"[..], b"P", b"POST", b"\x16\x03\x01"] {
            let mut watch = Watch::new();
            watch.received(other).unwrap();
            assert_eq!(watch.greeted(), other != b"P", "{other:?}");
        }
    }

    #[test]
    fn heads_are_found_wherever_the_bytes_are_cut() {
        let bytes = [frame(HEADERS, 4, &[7; 300]), frame(PING, 0, &[0; 8]), frame(DATA, 1, b"")].concat();
        for cut in 1..bytes.len() {
            let (mut heads, mut kinds) = (Heads::default(), Vec::new());
            for piece in bytes.chunks(cut) {
                heads.feed(piece, |head| kinds.push((head.kind, head.bytes)));
            }
            assert_eq!(kinds, [(HEADERS, 300), (PING, 8), (DATA, 0)], "{cut}");
        }
    }

    #[test]
    fn idle_frames_are_bounded_and_work_is_not() {
        let idle = [
            frame(PING, 0, &[0; 8]),
            frame(SETTINGS, 0, b""),
            frame(DATA, 0, b""),
            frame(DATA, PADDED, &[3, 0, 0, 0]),
            frame(0x2, 0, &[0; 5]),
            frame(0x3, 0, &[0; 4]),
            frame(0x8, 0, &[0, 0, 0, 1]),
            frame(0xbe, 0, b""),
        ];
        for bytes in idle {
            let mut watch = greeted();
            let sent = (0..=IDLE_MAX).map(|_| watch.received(&bytes)).collect::<Vec<_>>();
            assert!(sent[..IDLE_MAX as usize].iter().all(Result::is_ok), "{bytes:?}");
            assert_eq!(sent[IDLE_MAX as usize], Err(Flooded), "{bytes:?}");
        }
        let work =
            [frame(HEADERS, 5, b"x"), frame(DATA, 0, b"x"), frame(DATA, 1, b""), frame(PING, 1, &[0; 8])];
        for bytes in work {
            let mut watch = greeted();
            assert!((0..3 * IDLE_MAX).all(|_| watch.received(&bytes).is_ok()), "{bytes:?}");
        }
    }

    #[test]
    fn who_gets_answers_may_measure_the_connection() {
        let mut watch = greeted();
        let (ping, data) = (frame(PING, 0, &[0; 8]), frame(DATA, 0, b"an event"));
        for _ in 0..2 * IDLE_MAX {
            watch.sent(&data);
            watch.received(&ping).unwrap();
        }
    }
}
