//! The shim of `tests/shim/durable.c`: what a disk would have kept, slow syncs, and death at a chosen write.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::folder;

/// The shim, compiled, and the folder of the copies that it makes.
#[derive(Debug)]
pub(crate) struct Shim {
    object: PathBuf,
    copies: TempDir,
}

impl Shim {
    pub(crate) async fn compile() -> anyhow::Result<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/shim/durable.c");
        let copies = folder()?;
        let object = copies.path().join("durable.so");
        let mut cc = Command::new("cc");
        cc.args(["-Wall", "-Werror", "-O1", "-shared", "-fPIC", "-o"]).args([&object, &source]);
        let done = cc.args(["-ldl", "-lpthread"]).output().await.context("cannot run cc")?;
        ensure!(done.status.success(), "cc: {}", String::from_utf8_lossy(&done.stderr));
        Ok(Self { object, copies })
    }

    /// Puts it into a process to be, which copies what it syncs.
    pub(crate) fn preload(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.object).env("DURABLE_DIR", self.copies.path());
    }

    /// The synced files of the folder `from`, as they were at their last sync, into the folder `to`. Says
    /// which there were. SQLite's shared memory (`-shm`) is never durable; nobody syncs it.
    pub(crate) fn restore(&self, from: &Path, to: &Path) -> anyhow::Result<Vec<String>> {
        let prefix = format!("{}%", from.canonicalize()?.display().to_string().replace('/', "%"));
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.copies.path())? {
            let (path, name) = entry.map(|e| (e.path(), e.file_name().to_string_lossy().into_owned()))?;
            let Some(name) = name.strip_prefix(&prefix).filter(|name| !name.ends_with(".fresh")) else {
                continue;
            };
            ensure!(!name.ends_with("-shm"), "somebody synced shared memory");
            std::fs::copy(path, to.join(name))?;
            names.push(name.to_owned());
        }
        names.sort();
        Ok(names)
    }
}
