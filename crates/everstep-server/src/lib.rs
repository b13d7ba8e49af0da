//! The Everstep server: the gRPC services over an engine, and the HTTP endpoints beside them, on one port.
//!
//! It translates and never decides: a request is checked for form, handed to the engine, and the answer put
//! into the contract's words. What is *not* here: rules about runs (the core's), storage, and the set-up of
//! span export (the CLI's).

mod administer;
mod attributes;
mod builds;
mod check;
mod error;
mod http;
mod metrics;
mod namespaces;
mod page;
mod queues;
mod reason;
mod rpc;
mod runs;
mod serve;
mod spans;
mod status;
mod steps;
mod worker;

pub use error::Error;
pub use reason::{DOMAIN, REASONS, Reason};
pub use serve::{ConnectionLimits, Server, ServerOptions, raise_open_files};
pub use spans::{RunSpans, SpanIds};
