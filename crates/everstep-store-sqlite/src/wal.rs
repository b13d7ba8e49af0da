//! A write-ahead log that is damaged before its end. SQLite takes such a log up to the damage and drops the rest
//! without a word: right for a commit that a crash cut short, and wrong for commits that were acknowledged.
//!
//! What tells the two apart: a commit is on the disk before the next one is written, so a crash leaves at most one
//! that is not whole, and nothing behind it. What is *not* here: damage to the pages of the file itself, which have
//! no checksums.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

#[cfg(test)]
mod tests;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// The first word of a log; its lowest bit says which way the checksums take their words.
const MAGIC: u32 = 0x377f_0682;
const PAGE_MAX: usize = 65_536;

/// The log beside a database file.
pub(crate) fn path_of(database: &Path) -> PathBuf {
    let mut name = OsString::from(database);
    name.push("-wal");
    name.into()
}

/// The first byte of the frame that is damaged, if whole commits stand behind it. A log that is not there is whole.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn damaged_at(wal: &Path) -> std::io::Result<Option<u64>> {
    let file = match File::open(wal) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut bytes = [0; HEADER];
    if !fill(&mut reader, &mut bytes)? {
        return Ok(None);
    }
    let Some(mut log) = Log::begin(&bytes) else {
        // The header is written once, by itself, and is smaller than a sector: nothing tears it. Zeros are what a
        // file has that was made longer and never written.
        return Ok(bytes.iter().any(|byte| *byte != 0).then_some(0));
    };
    let mut frame = vec![0; FRAME_HEADER + log.page];
    let mut at = HEADER as u64;
    while fill(&mut reader, &mut frame)? {
        if log.take(&frame, at) {
            return Ok(log.broken);
        }
        at += frame.len() as u64;
    }
    Ok(None)
}

/// False at the end of the file.
fn fill(reader: &mut impl Read, bytes: &mut [u8]) -> std::io::Result<bool> {
    match reader.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

type Sum = (u32, u32);

/// A log, read up to some frame.
struct Log {
    big_endian: bool,
    page: usize,
    salts: [u8; 8],
    /// The checksum that the last frame has; each one's continues that of the frame before.
    last: Sum,
    /// Where the first frame is that is not sound.
    broken: Option<u64>,
    /// Behind that: there was a commit, and all frames since are sound.
    committed: bool,
}

impl Log {
    fn begin(header: &[u8; HEADER]) -> Option<Self> {
        let magic = word(header, 0);
        let big_endian = magic & 1 == 1;
        let page = word(header, 8) as usize;
        let mut salts = [0; 8];
        salts.copy_from_slice(&header[16..24]);
        let last = sum(big_endian, (0, 0), &header[..24]);
        let sound = magic & !1 == MAGIC && last == (word(header, 24), word(header, 28));
        let sized = page.is_power_of_two() && (512..=PAGE_MAX).contains(&page);
        (sound && sized).then_some(Self { big_endian, page, salts, last, broken: None, committed: false })
    }

    /// The next frame. True when it proves that a commit stands behind the damage which was whole when the next one
    /// was written.
    fn take(&mut self, frame: &[u8], at: u64) -> bool {
        let (header, page) = frame.split_at(FRAME_HEADER);
        let own = header[8..16] == self.salts;
        let reached = sum(self.big_endian, sum(self.big_endian, self.last, &header[..8]), page);
        let told = (word(header, 16), word(header, 20));
        self.last = told;
        let sound = own && reached == told;
        if self.broken.is_none() {
            self.broken = (!sound).then_some(at);
            // What is damaged may be a commit, but for that nothing vouches.
            return false;
        }
        let commits = own && word(header, 4) != 0;
        let proven = self.committed && sound && commits;
        self.committed = (self.committed && sound) || commits;
        proven
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// SQLite's checksum of a whole number of pairs of words.
fn sum(big_endian: bool, (mut a, mut b): Sum, bytes: &[u8]) -> Sum {
    let read = |bytes: &[u8]| {
        let bytes = bytes.try_into().unwrap_or_default();
        if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    for pair in bytes.chunks_exact(8) {
        let (one, two) = pair.split_at(4);
        a = a.wrapping_add(read(one)).wrapping_add(b);
        b = b.wrapping_add(read(two)).wrapping_add(a);
    }
    (a, b)
}
