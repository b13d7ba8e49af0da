//! What the database holds, asked of nobody but the database.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use everstep_checker::format::{EXPORT, SNAPSHOTS};
use tokio::process::Command;
use tokio::sync::watch;

use crate::pace;
use crate::process::LEASHED;

/// Where an export comes from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The multi-call binary.
    pub binary: PathBuf,
    /// The database, not through any proxy.
    pub url: String,
    /// Where an export is until it is whole. There is one at a time.
    pub part: PathBuf,
    /// Only this one.
    pub namespace: Option<String>,
}

impl Source {
    /// Writes `admin export` to a file, which is there only when it is whole.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn write(&self, to: &Path) -> anyhow::Result<()> {
        let file = std::fs::File::create(&self.part);
        let file = file.with_context(|| format!("create {}", self.part.display()))?;
        let mut command = Command::new(&self.binary);
        command.args(["admin", "export", "--database-url", &self.url]).env_clear().env(LEASHED, "1");
        if let Some(namespace) = &self.namespace {
            command.args(["--namespace", namespace]);
        }
        command.stdin(Stdio::null()).stdout(file).stderr(Stdio::piped()).kill_on_drop(true);
        let ended = command.spawn()?.wait_with_output().await?;
        ensure!(ended.status.success(), "admin export: {}", String::from_utf8_lossy(&ended.stderr));
        std::fs::rename(&self.part, to)?;
        Ok(())
    }

    /// The export after the run.
    ///
    /// # Errors
    /// As [`Source::write`].
    pub async fn finish(&self, case: &Path) -> anyhow::Result<()> {
        self.write(&case.join(EXPORT)).await
    }
}

/// Takes exports until told to stop: every 2 s, and less often as they grow. One that fails, because a fault has
/// the database, is left out.
///
/// # Errors
/// When the folder cannot be made.
pub async fn snapshots(
    source: Source,
    case: PathBuf,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<u32> {
    let folder = case.join(SNAPSHOTS);
    std::fs::create_dir_all(&folder)?;
    let (mut number, mut pause) = (0, Duration::from_secs(2));
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return Ok(number),
            () = pace::hold(pause) => {}
        }
        let began = Instant::now();
        let path = folder.join(format!("{:04}.ndjson", number + 1));
        let taken = tokio::time::timeout(Duration::from_secs(20), source.write(&path)).await;
        if matches!(taken, Ok(Ok(()))) {
            number += 1;
        }
        pause = (began.elapsed() * 10).clamp(Duration::from_secs(2), Duration::from_secs(60));
    }
}
