//! The workflows of `examples/patterns` on real servers, workers and stores.

mod fanout;
mod order;
mod reminders;
mod transcode;
