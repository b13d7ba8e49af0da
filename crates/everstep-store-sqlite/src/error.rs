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

/// The error of COMMIT itself: it may or may not be durable, unless there was no room for it. What makes a
/// transaction valid is the last that is written of it, so one that did not fit is not there.
pub(crate) fn at_commit(e: &sqlx::Error) -> Error {
    if is_full(e) { Error::Exhausted(e.to_string()) } else { Error::OutcomeUnknown(e.to_string()) }
}

/// True when the disk has no room.
pub(crate) fn is_full(e: &sqlx::Error) -> bool {
    primary_code(e) == Some(FULL)
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

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::error::Error as StdError;

    use sqlx::error::{DatabaseError, ErrorKind};

    use super::*;

    /// What SQLite says with a code.
    #[derive(Debug)]
    struct Code(i32);

    impl std::fmt::Display for Code {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "code {}", self.0)
        }
    }

    impl StdError for Code {}

    impl DatabaseError for Code {
        fn message(&self) -> &str {
            "as told"
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.to_string().into())
        }

        fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    #[test]
    fn only_what_did_not_fit_is_known_not_to_be_committed() {
        let at = |code| at_commit(&sqlx::Error::Database(Box::new(Code(code))));
        assert!(matches!(at(FULL), Error::Exhausted(_)));
        // A write or sync that fails may have reached the disk all the same; 1034 is IOERR_FSYNC.
        for code in [BUSY, NOMEM, IOERR, 1_034, CORRUPT, CONSTRAINT] {
            assert!(matches!(at(code), Error::OutcomeUnknown(_)), "{code}");
        }
        assert!(matches!(at_commit(&sqlx::Error::WorkerCrashed), Error::OutcomeUnknown(_)));
    }
}
