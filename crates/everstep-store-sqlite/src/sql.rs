//! Statements over many rows at once.
//!
//! Each statement costs a hop to the connection's thread and back, so rows go in together. A statement's
//! text depends on the number of rows alone: few texts exist, and each is prepared once.

use std::sync::{Arc, OnceLock};

use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, Encode, SqlSafeStr, SqlStr, Sqlite, Type};

/// Most rows in one statement.
pub(crate) const ROWS_MAX: usize = 32;

/// A statement whose text repeats one piece per row.
pub(crate) struct ManyRows {
    head: &'static str,
    row: &'static str,
    separator: &'static str,
    tail: &'static str,
    texts: [OnceLock<Arc<str>>; ROWS_MAX],
}

impl ManyRows {
    /// `head`, then `row` once per row with commas between, then `tail`.
    pub(crate) const fn new(head: &'static str, row: &'static str, tail: &'static str) -> Self {
        Self { head, row, separator: ",", tail, texts: [const { OnceLock::new() }; ROWS_MAX] }
    }

    /// `statement` once per row; it ends with a semicolon.
    pub(crate) const fn repeated(statement: &'static str) -> Self {
        let texts = [const { OnceLock::new() }; ROWS_MAX];
        Self { head: "", row: statement, separator: "", tail: "", texts }
    }

    /// The text for `rows` rows, of which there are 1 to [`ROWS_MAX`].
    pub(crate) fn text(&self, rows: usize) -> SqlStr {
        let text = self.texts[rows - 1].get_or_init(|| {
            let body = vec![self.row; rows].join(self.separator);
            format!("{}{body}{}", self.head, self.tail).into()
        });
        // Put together from constants of this crate; every value is bound.
        AssertSqlSafe(Arc::clone(text)).into_sql_str()
    }
}

/// The values of a statement, in order.
#[derive(Default)]
pub(crate) struct Values {
    values: SqliteArguments,
    /// The first value that could not be encoded.
    error: Option<sqlx::Error>,
}

impl Values {
    pub(crate) fn push<'t, T: Encode<'t, Sqlite> + Type<Sqlite>>(&mut self, value: T) {
        if let Err(e) = self.values.add(value) {
            self.error.get_or_insert(sqlx::Error::Encode(e));
        }
    }

    pub(crate) fn finish(self) -> Result<SqliteArguments, sqlx::Error> {
        match self.error {
            None => Ok(self.values),
            Some(e) => Err(e),
        }
    }
}
