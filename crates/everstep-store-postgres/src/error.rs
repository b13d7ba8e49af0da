//! What each failure of Postgres means for the caller.

use everstep_store::Error;

/// A failure before the statement was sent: nothing was done.
pub(crate) fn before(error: sqlx::Error) -> Error {
    match by_state(&error) {
        Some(known) => known,
        None => Error::Unavailable(error.to_string()),
    }
}

/// A failure after the statement was sent. Each statement is its own transaction, so a connection that
/// broke may have broken behind the commit.
pub(crate) fn after(error: sqlx::Error) -> Error {
    match by_state(&error) {
        Some(known) => known,
        None => Error::OutcomeUnknown(error.to_string()),
    }
}

fn by_state(error: &sqlx::Error) -> Option<Error> {
    let sqlx::Error::Database(database) = error else {
        return match error {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => {
                Some(Error::Unavailable(error.to_string()))
            }
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. } => Some(Error::Corrupt(error.to_string())),
            sqlx::Error::Encode(_) => Some(Error::Refused(error.to_string())),
            _ => None,
        };
    };
    let text = database.message().to_owned();
    let code = database.code().unwrap_or_default().into_owned();
    Some(match code.as_str() {
        "40001" | "40P01" => Error::Contention(text),
        // The statement was ended before it could commit.
        "57014" | "55P03" | "25P03" => Error::Unavailable(text),
        // The backend was ended; it may have been behind its commit.
        "57P01" | "57P02" | "57P03" | "57P05" => Error::OutcomeUnknown(text),
        // A standby, or a database made read-only.
        "25006" => Error::Unavailable(text),
        // Our own fault: a connection in a failed transaction must never be given out.
        "25P02" => Error::Refused(text),
        "23505" => Error::Corrupt(format!("a later event of an append stands already: {text}")),
        "3D000" => Error::Refused(format!("{text}; create it first")),
        "3F000" | "42P01" | "42703" | "42883" => Error::Schema(format!("{text}; run everstep migrate")),
        "28000" | "28P01" | "42501" => Error::Refused(text),
        _ if code.starts_with("53") => Error::Exhausted(text),
        _ if code.starts_with("08") => Error::OutcomeUnknown(text),
        _ => Error::Refused(format!("{text} ({code})")),
    })
}
