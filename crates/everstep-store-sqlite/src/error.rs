//! SQLite's errors by what the engine must do about them.

use everstep_core::RunId;
use everstep_proto::row::RowError;
use everstep_store::Error;

// Primary result codes, as SQLite numbers them.
const PERM: i32 = 3;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const NOMEM: i32 = 7;
const READONLY: i32 = 8;
const IOERR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const CONSTRAINT: i32 = 19;
const AUTH: i32 = 23;
const NOTADB: i32 = 26;

/// The error of a statement before COMMIT, or of a read: nothing was written.
pub(crate) fn before_commit(e: &sqlx::Error) -> Error {
    let text = e.to_string();
    match e {
        sqlx::Error::Database(_) => match primary_code(e) {
            Some(BUSY | LOCKED) => {
                Error::Unavailable(format!("another program has locked the database: {text}"))
            }
            Some(FULL | NOMEM) => Error::Exhausted(text),
            Some(CORRUPT | NOTADB) => Error::Corrupt(text),
            Some(PERM | READONLY | IOERR | CANTOPEN | AUTH) => Error::Unavailable(text),
            _ => Error::Refused(text),
        },
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Error::Unavailable(text),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::RowNotFound => {
            Error::Corrupt(text)
        }
        _ => Error::Refused(text),
    }
}

/// The error of COMMIT itself: it may or may not be durable.
pub(crate) fn at_commit(e: &sqlx::Error) -> Error {
    Error::OutcomeUnknown(e.to_string())
}

/// True when a row stood where the statement wanted to put one.
pub(crate) fn is_constraint(e: &sqlx::Error) -> bool {
    primary_code(e) == Some(CONSTRAINT)
}

/// A stored row that is no event.
pub(crate) fn unreadable(run: RunId, e: &RowError) -> Error {
    let source = std::error::Error::source(e).map(|s| format!(": {s}")).unwrap_or_default();
    Error::Corrupt(format!("run {run}: {e}{source}"))
}

fn primary_code(e: &sqlx::Error) -> Option<i32> {
    let code = e.as_database_error()?.code()?;
    // An extended code carries its primary one in the low byte.
    code.parse::<i32>().ok().map(|code| code & 0xff)
}
