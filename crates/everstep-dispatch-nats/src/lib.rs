//! Everstep dispatch over NATS.
//!
//! Task hints travel through a JetStream work-queue stream, one subject and one pull consumer per queue;
//! notices travel over core NATS. NATS holds no truth: the stream may be deleted, its directory wiped and
//! the server restarted at any time. What was in it is lost (the engine's sweep publishes it again), and
//! [`NatsDispatch`] makes the stream and the consumers anew by itself.
//!
//! What is *not* here: any decision about runs, and any user data in a message.

mod address;
mod connection;
mod dispatch;
#[cfg(test)]
mod fuzz;
mod health;
mod in_flight;
mod message;
mod notices;
mod options;
mod queue;
mod spans;
mod stream;
mod subject;

pub use dispatch::NatsDispatch;
pub use options::NatsOptions;
