//! The effect journal while it is written.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use everstep_checker::format::{JOURNAL, JournalEntry, Phase};

/// What the end of the journal is, in bytes.
const TAIL: u64 = 64 << 10;

/// Executions of a worker that have begun lately and not ended, by the journal of a case.
///
/// # Errors
/// When the journal cannot be read.
pub fn under_way(case: &Path, worker: &str) -> anyhow::Result<Vec<JournalEntry>> {
    let mut open: Vec<JournalEntry> = Vec::new();
    for entry in lately(case)?.into_iter().filter(|entry| entry.worker == worker) {
        let same = |o: &JournalEntry| {
            (&o.run_id, o.step, o.attempt, o.epoch) == (&entry.run_id, entry.step, entry.attempt, entry.epoch)
        };
        match entry.phase {
            // What happens to a run's owner, an attempt of a queued step does not tell.
            _ if entry.queued.is_some() => {}
            Phase::Begin => open.push(entry),
            Phase::End => open.retain(|o| !same(o)),
            Phase::Beat | Phase::Denied => {}
        }
    }
    Ok(open)
}

/// Executions of a worker that have ended since then, by the clock of the journal.
///
/// # Errors
/// When the journal cannot be read.
pub fn ended_since(case: &Path, worker: &str, mono_ns: u64) -> anyhow::Result<Vec<JournalEntry>> {
    let mut entries = lately(case)?;
    entries.retain(|entry| {
        let ends = matches!(entry.phase, Phase::End) && entry.queued.is_none();
        entry.worker == worker && ends && entry.mono_ns > mono_ns
    });
    Ok(entries)
}

/// The end of the journal.
fn lately(case: &Path) -> anyhow::Result<Vec<JournalEntry>> {
    let mut file = File::open(case.join(JOURNAL))?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line may be a part of one, and so may the last.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}
