//! The Postgres adapter of the Everstep store.
//!
//! Appends of many runs are one statement, and so one round trip and one commit; the primary key of `events`
//! decides who appended. Nothing rests on an isolation level above READ COMMITTED, and nothing here reads
//! from a standby. What is *not* here: the meaning of an event.

mod admin;
mod append;
mod appenders;
mod attributes;
mod builds;
mod connect;
mod doubts;
mod error;
mod heads;
mod inspect;
mod outbox;
mod queues;
mod reads;
mod relay;
mod rows;
mod sessions;
mod sql;
mod statement;
mod steps;
mod sweep;

pub use connect::{MigrationReport, PostgresOptions, PostgresStore, check, migrate};
