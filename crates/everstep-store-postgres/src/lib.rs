//! The Postgres adapter of the Everstep store.
//!
//! It owns the schema (`migrations/postgres`), the connections and the one statement by which a batch of
//! appends becomes durable. It refuses a database that could lose what it acknowledged (`fsync=off`, a
//! standby) or that another version made. It never looks inside an event: `everstep_proto::row` says
//! how one becomes a row.

mod append;
mod catalog;
mod error;
mod log;
mod migrate;
mod pool;
mod sessions;
mod store;
mod sweep;
mod target;
mod values;

pub use migrate::{MigrationReport, migrate};
pub use store::{PostgresOptions, PostgresStore};

#[cfg(test)]
mod tests;
