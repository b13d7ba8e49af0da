//! The lock that admits one process to a database file.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use everstep_store::Error;

/// Held for as long as the value lives; the operating system lets go of it when the process dies.
#[derive(Debug)]
pub(crate) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Locks `database`, by a file beside it that is never deleted (deleting it would admit two).
    ///
    /// # Errors
    /// [`Error::Unavailable`] when another store holds it, or the folder cannot be written.
    pub(crate) fn take(database: &Path) -> Result<Self, Error> {
        let path = beside(database);
        let failed =
            |e: &dyn std::fmt::Display| Error::Unavailable(format!("cannot lock {}: {e}", path.display()));
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| failed(&e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Unavailable(format!(
                "{} is in use by another Everstep process; stop that one, or choose another file",
                database.display()
            ))),
            Err(TryLockError::Error(e)) => Err(failed(&e)),
        }
    }
}

fn beside(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}
