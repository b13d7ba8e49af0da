//! Postgres: which statement a request executes, and which answers belong to it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf as _, Bytes, BytesMut};

use crate::unit::{Fact, Parser, Unit};

/// Requests for TLS or GSS, which are answered with one byte.
const ENCRYPTIONS: [u32; 2] = [80_877_103, 80_877_104];
const CANCEL: u32 = 80_877_102;
/// Requests that are answered, and by a ready message only once they are synced.
const BATCHED: &[u8] = b"PBEDCH";

/// What both ways of a connection know of it.
#[derive(Debug, Default)]
pub(crate) struct Talk {
    started: bool,
    encryptions: usize,
    statements: HashMap<Bytes, String>,
    portals: HashMap<Bytes, String>,
    batches: VecDeque<Batch>,
}

/// Requests up to a sync, whose answers are not all here.
#[derive(Debug, Default)]
struct Batch {
    synced: bool,
    /// The rule that swallows the answers.
    lost_by: Option<u64>,
    swallowed: Vec<Bytes>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Shared(Arc<Mutex<Talk>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Talk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answers to the request that was just parsed are lost by this rule.
    pub(crate) fn lose(&self, rule: u64) {
        if let Some(batch) = self.lock().batches.back_mut() {
            batch.lost_by = Some(rule);
        }
    }

    /// Swallows an answer, if it belongs to a batch that loses its own.
    pub(crate) fn swallow(&self, answer: &Bytes) -> bool {
        let mut talk = self.lock();
        let Some(batch) = talk.batches.front_mut().filter(|b| b.lost_by.is_some()) else { return false };
        batch.swallowed.push(answer.clone());
        true
    }

    /// The statement has failed, so that its outcome is known: what was swallowed is given back.
    pub(crate) fn give_back(&self) -> Vec<Bytes> {
        let mut talk = self.lock();
        let Some(batch) = talk.batches.front_mut() else { return Vec::new() };
        batch.lost_by = None;
        std::mem::take(&mut batch.swallowed)
    }

    /// A batch is answered; the rule by which its answers were lost.
    pub(crate) fn ready(&self) -> Option<u64> {
        self.lock().batches.pop_front().and_then(|batch| batch.lost_by)
    }
}

impl Talk {
    fn request(&mut self, kind: u8, body: &Bytes) -> Fact {
        if BATCHED.contains(&kind) {
            self.open();
        }
        let (first, rest) = text(body);
        match kind {
            b'P' => {
                let sql = String::from_utf8_lossy(&text(&rest).0).into_owned();
                self.statements.insert(first, sql);
            }
            b'B' => {
                let sql = self.statements.get(&text(&rest).0).cloned().unwrap_or_default();
                self.portals.insert(first, sql);
            }
            b'E' => return Fact::Statement(self.portals.get(&first).cloned().unwrap_or_default()),
            b'C' if first.first() == Some(&b'S') => {
                self.statements.remove(&first.slice(1..));
            }
            b'S' => {
                self.open().synced = true;
                return Fact::Sync;
            }
            b'Q' | b'F' => {
                self.batches.push_back(Batch { synced: true, ..Batch::default() });
                let sql =
                    if kind == b'Q' { String::from_utf8_lossy(&first).into_owned() } else { String::new() };
                return Fact::Statement(sql);
            }
            _ => {}
        }
        Fact::Other
    }

    /// The batch that requests go to.
    fn open(&mut self) -> &mut Batch {
        if self.batches.back().is_none_or(|batch| batch.synced) {
            self.batches.push_back(Batch::default());
        }
        let last = self.batches.len() - 1;
        &mut self.batches[last]
    }
}

/// Text up to a zero byte, and what follows.
fn text(bytes: &Bytes) -> (Bytes, Bytes) {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    (bytes.slice(..end), bytes.slice((end + 1).min(bytes.len())..))
}

/// A frame whose length stands at `at` and counts from there.
fn frame(buffer: &mut BytesMut, at: usize) -> Option<Bytes> {
    let length = buffer.get(at..at + 4)?.get_u32();
    let whole = at + usize::try_from(length).ok()?.max(4);
    (buffer.len() >= whole).then(|| buffer.split_to(whole).freeze())
}

/// From the client.
pub(crate) struct Requests(pub(crate) Shared);

impl Parser for Requests {
    fn next(&mut self, buffer: &mut BytesMut) -> Option<Unit> {
        let mut talk = self.0.lock();
        if !talk.started {
            let bytes = frame(buffer, 0)?;
            let code = bytes.get(4..8).map_or(0, |mut code| code.get_u32());
            if ENCRYPTIONS.contains(&code) {
                talk.encryptions += 1;
            } else {
                talk.started = true;
                if code != CANCEL {
                    talk.batches.push_back(Batch { synced: true, ..Batch::default() });
                }
            }
            return Some(Unit::other(bytes));
        }
        let bytes = frame(buffer, 1)?;
        let fact = talk.request(bytes[0], &bytes.slice(5..));
        Some(Unit { bytes, fact })
    }
}

/// From the server.
pub(crate) struct Answers(pub(crate) Shared);

impl Parser for Answers {
    fn next(&mut self, buffer: &mut BytesMut) -> Option<Unit> {
        let mut talk = self.0.lock();
        if talk.encryptions > 0 && !buffer.is_empty() {
            talk.encryptions -= 1;
            return Some(Unit::other(buffer.split_to(1).freeze()));
        }
        let bytes = frame(buffer, 1)?;
        let fact = match bytes[0] {
            b'Z' => Fact::Ready,
            b'E' => Fact::Failed,
            // Notices, notifications and settings come at any time.
            b'N' | b'A' | b'S' => Fact::Other,
            _ => Fact::Answer,
        };
        Some(Unit { bytes, fact })
    }
}
