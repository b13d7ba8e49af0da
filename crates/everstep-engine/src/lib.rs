//! The shell around the Everstep core.
//!
//! [`node::Node`] is one server node as a value: it takes inputs (requests, worker messages, store
//! replies, the time) and returns outputs (appends, loads, frames, replies). It performs no IO, reads no
//! clock and spawns nothing, so a simulation can step many of them under one virtual clock.
//! [`Engine`] is the handle of a running node: its driver performs the outputs over a store and a
//! dispatch port. What is *not* here: SQL, NATS, gRPC; and no rule about what a run may do, which is the
//! core's.

mod api;
mod ask;
mod check;
mod clock;
mod driver;
mod hub;
pub mod node;
mod step;
mod upkeep;

pub use api::{
    Closed, Engine, EngineConfig, Error, HeldRun, Hello, NodeStatus, Observer, RunSelector, RunWatch,
    Started, Update, WorkerIn, WorkerLink, WorkerOut, WorkerSender,
};
pub use ask::{Answer, AskTarget, Query, Said};
pub use check::{Candidate, CheckTarget, Checked};
pub use everstep_store::AskKind;
pub use step::{GivenStep, StepKey, StepOffer, StepSaid};
pub use upkeep::{LATENESS_MILLIS, Lateness, Upkeep};
