//! The SQLite adapter of the Everstep store: the embedded default, one file, one process.
//!
//! One connection carries every write; short-lived readers stand beside it (WAL). The process that has the
//! file open is its only writer, held by a lock file, so a write transaction may look first and then write
//! what it saw to be free; the primary key of `events` is still what arbitrates. Write transactions run in
//! tasks of their own, so that a caller who goes away cannot cut one in half. An error at COMMIT is an
//! unknown outcome: the connection is thrown away, and the log is asked. Only one for want of room is none: what does
//! not fit is not there.

mod admin;
mod append;
mod attributes;
mod backup;
mod builds;
mod catalog;
mod clock;
mod doubts;
mod error;
mod inspect;
mod lock;
mod log;
mod open;
mod outbox;
mod projection;
mod queues;
mod rows;
mod sessions;
mod sql;
mod steps;
mod sweep;
#[cfg(test)]
mod tests;
mod wal;
mod writer;

pub use backup::back_up;
pub use open::SqliteStore;
