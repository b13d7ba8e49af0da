//! What clients asked and heard, written down as it happens.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use everstep_checker::format::{EntryKind, HISTORY, HistoryEntry, LineWriter, OpKind};

use crate::clock::mono_ns;

/// The history file of a case. All clients share it.
#[derive(Clone, Debug)]
pub struct History(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: Mutex<LineWriter<HistoryEntry>>,
    /// Answers that changed something or said that a run has ended: what counts as progress.
    moved: AtomicU64,
}

/// What came of an op.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// It was done; reads have a value.
    Ok(Option<serde_json::Value>),
    /// It was refused and had no effect: the reason word, and the text.
    Fail(String, String),
    /// It may have had an effect.
    Unknown(String),
}

impl History {
    /// Opens the file in the folder of a case.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(case: &Path) -> anyhow::Result<Self> {
        let file = Mutex::new(LineWriter::append(&case.join(HISTORY))?);
        Ok(Self(Arc::new(Inner { file, moved: AtomicU64::new(0) })))
    }

    /// Writes a line.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write(&self, mut entry: HistoryEntry) -> anyhow::Result<()> {
        let ended = matches!(entry.op, OpKind::Result) && entry.value.is_some();
        let changes = !entry.op.reads();
        if entry.kind == EntryKind::Ok && (ended || changes) {
            self.0.moved.fetch_add(1, Ordering::Relaxed);
        }
        let mut file = self.0.file.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that the lines are in the order of their times.
        entry.mono_ns = mono_ns();
        file.write(&entry)
    }

    /// A number that grows when a client gets somewhere.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.0.moved.load(Ordering::Relaxed)
    }
}
