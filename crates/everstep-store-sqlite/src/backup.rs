//! A copy of a database file, also while a node writes to it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use everstep_store::Error;
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use crate::error::before_commit;
use crate::lock::FileLock;
use crate::open::{cannot_open, check_version, options, refuse_damaged_wal, refuse_foreign, resolve};

/// Copies the database at `path` into a new file, `copy`, as it is at one moment, and checks the copy. Gives the
/// bytes of it. Nodes may have the database open, and go on; its schema may be an older one.
///
/// The copy is one file, and is on the disk when this is done. It has its name only then; until then it is beside,
/// with `.part` behind the name.
///
/// # Errors
/// [`Error::Refused`] when there is a file at `copy`, [`Error::Unavailable`] when one of the two cannot be read or
/// written, [`Error::Exhausted`] when there is no room, [`Error::Schema`] when there is no Everstep database at
/// `path`, [`Error::Corrupt`] when it is damaged. Nothing is left behind then.
pub async fn back_up(path: &Path, copy: &Path) -> Result<u64, Error> {
    if !path.is_file() {
        return Err(Error::Schema(format!("there is no database at {}", path.display())));
    }
    let (path, copy) = (resolve(path)?, copy.to_owned());
    // While a node writes to the log, it has no end that could be judged; the node has looked at it when it began.
    if let Ok(lock) = FileLock::take(&path) {
        refuse_damaged_wal(&path).await?;
        drop(lock);
    }
    let place = Place::take(&copy)?;
    write(&path, &place.part).await?;
    check(&place.part).await?;
    place.keep()
}

async fn write(path: &Path, part: &Path) -> Result<(), Error> {
    let to = part.to_str().ok_or_else(|| Error::Refused(format!("{} is no UTF-8", part.display())))?;
    let mut connection = connect(path, false).await?;
    check_version(path, &mut connection).await?;
    let ours = "SELECT count(*) FROM sqlite_schema WHERE name = '_sqlx_migrations'";
    let tables: i64 =
        sqlx::query_scalar(ours).fetch_one(&mut connection).await.map_err(|e| cannot_open(path, &e))?;
    refuse_foreign(path, &mut connection).await?;
    if tables == 0 {
        return Err(Error::Schema(format!("there is no Everstep database in {}", path.display())));
    }
    let copied = sqlx::query("VACUUM INTO ?").bind(to).execute(&mut connection).await;
    let closed = connection.close().await;
    copied.and(closed.map(|()| sqlx::sqlite::SqliteQueryResult::default())).map_err(|e| before_commit(&e))?;
    Ok(())
}

/// A copy that SQLite finds fault with is none.
async fn check(part: &Path) -> Result<(), Error> {
    let mut connection = connect(part, true).await?;
    let found: Vec<String> = sqlx::query_scalar("PRAGMA quick_check(3)")
        .fetch_all(&mut connection)
        .await
        .map_err(|e| before_commit(&e))?;
    connection.close().await.map_err(|e| before_commit(&e))?;
    match &found[..] {
        [ok] if ok == "ok" => Ok(()),
        _ => Err(Error::Corrupt(format!("the copy is damaged: {}", found.join("; ")))),
    }
}

/// A connection that writes nothing; `ours` is nobody else's file.
async fn connect(path: &Path, ours: bool) -> Result<SqliteConnection, Error> {
    let options = options(path).read_only(true).immutable(ours);
    options.connect().await.map_err(|e| cannot_open(path, &e))
}

/// The names of a copy that is being made: taken, so that nobody else's file is written over.
struct Place {
    copy: PathBuf,
    part: PathBuf,
    kept: bool,
}

impl Place {
    fn take(copy: &Path) -> Result<Self, Error> {
        let copy = resolve(copy)?;
        let mut part = copy.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        new_file(&copy)?;
        let place = Self { copy, part, kept: false };
        if let Err(error) = new_file(&place.part) {
            // Not ours: it stays.
            let _ = std::fs::remove_file(&place.copy);
            std::mem::forget(place);
            return Err(error);
        }
        Ok(place)
    }

    /// Puts the copy in its place, on the disk.
    fn keep(mut self) -> Result<u64, Error> {
        let mut settle = || -> io::Result<u64> {
            let file = File::open(&self.part)?;
            file.sync_all()?;
            std::fs::rename(&self.part, &self.copy)?;
            self.kept = true;
            if let Some(folder) = self.copy.parent() {
                File::open(folder)?.sync_all()?;
            }
            Ok(file.metadata()?.len())
        };
        let settled = settle();
        settled.map_err(|e| Error::Unavailable(format!("cannot write {}: {e}", self.copy.display())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.part);
            let _ = std::fs::remove_file(&self.copy);
        }
    }
}

fn new_file(path: &Path) -> Result<(), Error> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            Err(Error::Refused(format!("{} exists; a backup is a new file", path.display())))
        }
        Err(e) => Err(Error::Unavailable(format!("cannot write {}: {e}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SqliteStore;

    #[tokio::test]
    async fn a_damaged_copy_is_told_from_a_good_one() {
        let folder = tempfile::tempdir().unwrap();
        let (path, copy) = (folder.path().join("a.db"), folder.path().join("b.db"));
        let store = SqliteStore::open(&path).await.unwrap();
        let bytes = back_up(&path, &copy).await.unwrap();
        assert_eq!(std::fs::metadata(&copy).unwrap().len(), bytes);
        check(&copy).await.unwrap();
        let mut damaged = std::fs::read(&copy).unwrap();
        let last = damaged.len() - 4_096;
        damaged[last..].fill(0xff);
        std::fs::write(&copy, damaged).unwrap();
        let found = check(&copy).await.unwrap_err();
        assert!(matches!(found, Error::Corrupt(_)), "{found}");
        drop(store);
    }
}
