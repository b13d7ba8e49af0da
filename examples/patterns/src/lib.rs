//! Patterns of durable workflows, one a module: the workflow, and tests that show what it survives.

pub mod cart;
pub mod changed;
pub mod fanout;
pub mod order;
pub mod reminders;
pub mod transcode;
