//! Logs that SQLite wrote, with a bit or a tail of them changed.

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

use super::*;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A database with so many commits in its log, the connection that keeps the log there, and the ends of the commits.
async fn database(folder: &Path, commits: u32) -> Result<(PathBuf, SqliteConnection, Vec<u64>)> {
    let path = folder.join("some.db");
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut connection = options.connect().await?;
    sqlx::query("CREATE TABLE some (text TEXT)").execute(&mut connection).await?;
    let mut ends = Vec::new();
    for n in 0..commits {
        // Some commits take one frame, others several.
        let text = "x".repeat(if n % 3 == 0 { 10 } else { 9_000 });
        sqlx::query("INSERT INTO some VALUES (?)").bind(text).execute(&mut connection).await?;
        ends.push(std::fs::metadata(path_of(&path))?.len());
    }
    Ok((path, connection, ends))
}

/// What is said of a log with these bytes.
fn judge(folder: &Path, bytes: &[u8]) -> Result<Option<u64>> {
    let path = folder.join("judged");
    std::fs::write(&path, bytes)?;
    Ok(damaged_at(&path)?)
}

#[tokio::test]
async fn a_bit_that_flips_is_told_from_a_commit_that_was_cut_short() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (path, connection, ends) = database(folder.path(), 12).await?;
    let whole = std::fs::read(path_of(&path))?;
    assert_eq!(judge(folder.path(), &whole)?, None);
    let first_of_last = *ends.get(ends.len() - 2).expect("commits");
    // Two whole commits prove it that stand behind the damage.
    let provable = *ends.get(ends.len() - 3).expect("commits");
    let (mut told, mut looked) = (0, 0);
    for at in (0..whole.len()).step_by(97) {
        let mut bent = whole.clone();
        bent[at] ^= 1 << (at % 8);
        let said = judge(folder.path(), &bent)?;
        if (at as u64) < provable {
            assert!(said.is_some_and(|from| from <= at as u64), "byte {at}: {said:?}");
            told += 1;
        } else if at as u64 >= first_of_last {
            assert_eq!(said, None, "byte {at} is of the last commit, which a crash may have cut short");
        }
        looked += 1;
    }
    assert!(told > looked / 2, "{told} of {looked}");
    // Cut anywhere, or zeros from anywhere, as after a crash.
    for at in (0..whole.len()).step_by(1_009) {
        assert_eq!(judge(folder.path(), &whole[..at])?, None, "cut at {at}");
    }
    for at in (usize::try_from(first_of_last)?..whole.len()).step_by(97) {
        let mut bent = whole.clone();
        bent[at..].fill(0);
        assert_eq!(judge(folder.path(), &bent)?, None, "zeros from {at}");
    }
    Ok(connection.close().await?)
}

#[tokio::test]
async fn frames_of_before_a_checkpoint_prove_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (path, mut connection, _) = database(folder.path(), 30).await?;
    sqlx::query("PRAGMA wal_checkpoint(RESTART)").execute(&mut connection).await?;
    for _ in 0..3 {
        sqlx::query("INSERT INTO some VALUES ('after')").execute(&mut connection).await?;
    }
    // The log begins anew, and behind that the frames of before are still there.
    assert_eq!(damaged_at(&path_of(&path))?, None);
    Ok(connection.close().await?)
}

#[test]
fn a_log_that_is_not_there_or_empty_is_whole() -> Result<()> {
    let folder = tempfile::tempdir()?;
    assert_eq!(damaged_at(&folder.path().join("none"))?, None);
    assert_eq!(judge(folder.path(), &[])?, None);
    assert_eq!(judge(folder.path(), &[0; 4_096])?, None);
    assert_eq!(judge(folder.path(), b"something that is no log of SQLite at all")?, Some(0));
    Ok(())
}
