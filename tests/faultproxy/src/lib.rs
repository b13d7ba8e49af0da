//! A proxy between two parts of Everstep that a test can make misbehave.
//!
//! One [`Proxy`] per link, on 127.0.0.1. It starts as a plain relay; rules make it delay, throttle, hold back,
//! swallow, reset or refuse, and by protocol: lose the answer of one SQL statement, double one NATS message, end
//! a gRPC call between its headers and its trailers. Rules are added and removed while traffic flows, through a
//! [`Handle`] or from another process through a unix socket ([`Proxy::listen`], [`Remote`]). Chances are drawn
//! from a seed, by connection and direction. Each rule counts how often it really struck, so that a test can
//! refuse to pass when its fault never happened.
//!
//! What is *not* here: TLS, and anything that outlives a test. The proxy never connects to anything but its one
//! upstream.

mod connection;
mod control;
mod grpc;
mod nats;
mod pace;
mod postgres;
mod proxy;
mod rule;
mod table;
mod unit;

#[cfg(test)]
mod tests;

pub use control::{Command, Remote, Reply};
pub use proxy::{Handle, Proxy};
pub use rule::{Direction, Fault, GrpcPoint, Mode, NatsFault, Rule, Scope, When};
pub use table::Count;
