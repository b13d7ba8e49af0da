//! The dispatch port of Everstep.
//!
//! [`Dispatch`] carries two kinds of hints between nodes: "this run, or a step of it, needs a worker" (a [`TaskHint`],
//! for one taker) and "this run has new events" (a [`Notice`], for everyone). Neither is truth: a lost hint
//! costs latency, a doubled or late one costs a look at the log. [`InProcess`] is the implementation for
//! one node; `conformance` (feature `conformance`) is the suite that every adapter passes.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod in_process;
mod port;

pub use in_process::InProcess;
pub use port::{Delivery, Dispatch, Error, HintKind, HintQueue, Notice, TaskHint};
