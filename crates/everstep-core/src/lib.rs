//! The pure rules of Everstep.
//!
//! Three functions carry the product. [`decide`] turns a request that may be rejected into facts,
//! [`Run::apply`] folds a fact into state, and [`replay`] holds a workflow's next command against
//! what its history recorded. None of them reads a clock, draws a random number or performs IO: time
//! and ids come in from the edge. What is *not* here: storage, networking, dispatch, the SDK.

mod command;
mod digest;
mod error;
mod event;
mod ids;
pub mod limits;
mod payload;
mod projection;
pub mod replay;
mod retry;
mod run;
mod start;
mod time;
mod trace;

pub use command::{Attach, Command, CommandBody, CommitCommand, Detach, StartRun, WorkerCommit};
pub use digest::Digest;
pub use error::{HistoryError, Rejection};
pub use event::{
    Actor, BlockKind, Blocked, DetachReason, DoubtPolicy, Event, EventBody, Resolution, RunStarted,
    StepResolved, TimerKey, TimerKind, TraceContext, WorkerInfo,
};
pub use ids::{AskId, CommandId, Epoch, NodeId, OpId, RunId, Seq, SessionId, validate_name};
pub use payload::{Failure, Payload};
pub use projection::{Doubt, Projection, QueueKey, RunRow, RunStatus, Timer, Write, WriteBasis};
pub use retry::{RetryDecision, RetryPolicy};
pub use run::{Decision, Guard, Owner, Run, StepState, decide};
pub use start::{
    ConflictPolicy, CurrentRun, KnownRequest, ReusePolicy, StartDecision, decide_start, start_body_hash,
};
pub use time::{Duration, Timestamp};
pub use trace::{RunTrace, parse_traceparent};
