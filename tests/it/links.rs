//! Every link misbehaves, one fault at a time: between server and Postgres, server and NATS, worker or client
//! and server. What must hold is read from the database: histories without gaps, one end, no step twice.
//!
//! What is *not* here: many faults at once, and processes that die.

mod cancelled;
mod conflicts;
mod exhaustion;
mod leftovers;
mod messages;
mod partition;
mod replies;
mod silence;
mod truth;
mod unknown;
mod world;
