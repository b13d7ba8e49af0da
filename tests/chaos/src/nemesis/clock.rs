//! Wall clocks of single processes, by libfaketime: an hour ahead or back, changed while the process runs.
//! The machine's own clock is never touched, and neither is anybody's monotonic clock.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use crate::pace;

/// Where Debian and others put the library.
const PLACES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// The library, where it is installed.
#[must_use]
pub fn library() -> Option<PathBuf> {
    PLACES.iter().map(PathBuf::from).find(|path| path.exists())
}

/// The wall clock of one process.
#[derive(Clone, Debug)]
pub struct ClockFile(PathBuf);

impl ClockFile {
    /// A clock that is right, kept in `path`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(path: PathBuf) -> anyhow::Result<Self> {
        let clock = Self(path);
        clock.set("+0")?;
        Ok(clock)
    }

    /// What a process needs in its environment to go by this clock.
    #[must_use]
    pub fn environment(&self, library: &Path) -> Vec<(String, String)> {
        let pairs = [
            ("LD_PRELOAD", library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.0.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Sets it, such as to `+3600s`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set(&self, offset: &str) -> anyhow::Result<()> {
        // Renamed into place: half a file would be another time.
        let part = self.0.with_extension("part");
        std::fs::write(&part, format!("{offset}\n")).with_context(|| format!("write {}", part.display()))?;
        Ok(std::fs::rename(&part, &self.0)?)
    }

    /// An hour off for a while, ahead or back.
    pub(super) async fn jump(&self, luck: u64, hold: Duration) -> anyhow::Result<bool> {
        self.set(if luck.is_multiple_of(2) { "+3600s" } else { "-3600s" })?;
        pace::hold(hold).await;
        self.set("+0")?;
        Ok(true)
    }
}
