//! A file system of a fixed size, to fill up.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// A tmpfs, unmounted with this value.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many mebibytes. `None` where this user may not.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn mount(at: &Path, mib: u64) -> anyhow::Result<Option<Self>> {
        std::fs::create_dir_all(at)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(at);
        // Where there is no such program, there is no such right either.
        let done = mount.output().is_ok_and(|output| output.status.success());
        Ok(done.then(|| Self { at: at.to_path_buf() }))
    }

    /// Takes all space that is left.
    ///
    /// # Errors
    /// When the file that takes it cannot be made.
    pub fn fill(&self) -> anyhow::Result<()> {
        let mut file = std::fs::File::create(self.ballast()).context("no ballast")?;
        for size in [1 << 20, 4096] {
            let block = vec![0u8; size];
            while file.write_all(&block).is_ok() {}
        }
        Ok(())
    }

    /// Gives the space back.
    ///
    /// # Errors
    /// When it was not taken.
    pub fn empty(&self) -> anyhow::Result<()> {
        std::fs::remove_file(self.ballast()).context("no ballast")
    }

    /// Copies a folder to here, with owners and rights.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn take(&self, from: &Path) -> anyhow::Result<()> {
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(from.join(".")).arg(&self.at);
        let output = copy.output().context("cannot run cp")?;
        ensure!(output.status.success(), "cp: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever has files open there ends sooner or later.
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}
