//! The pure rules of Everstep.
//!
//! Three functions carry the product. [`decide`] turns a request that may be rejected into facts,
//! [`Run::apply`] folds a fact into state, and [`replay`] holds a workflow's next command against
//! what its history recorded. None of them reads a clock, draws a random number or performs IO: time
//! and ids come in from the edge. What is *not* here: storage, networking, dispatch, the SDK.

mod child;
mod command;
mod digest;
mod error;
mod event;
mod first;
mod ids;
pub mod limits;
mod notes;
mod payload;
mod projection;
mod queued;
pub mod replay;
mod retry;
mod run;
mod start;
mod time;
mod trace;

pub use child::{
    ChildClosed, ChildOutcome, ChildScheduled, ExternalAction, ExternalRequested, ExternalTarget, ParentClose,
};
pub use command::{
    Attach, Command, CommandBody, CommitCommand, Continuation, Detach, StartRun, WorkerCommit,
};
pub use digest::Digest;
pub use error::{HistoryError, Rejection};
pub use event::{
    Actor, BlockKind, Blocked, DetachReason, DoubtPolicy, Event, EventBody, Origin, ParentLink, Resolution,
    RunStarted, StepResolved, TimerKey, TimerKind, TraceContext, UpdateOutcome, WorkerInfo,
};
pub use first::FirstMessage;
pub use ids::{AskId, CommandId, Epoch, NodeId, OpId, RunId, Seq, SessionId, validate_name};
pub use notes::{Attribute, AttributeType, Finite, Notes, NotesChange};
pub use payload::{Failure, Payload};
pub use projection::{
    AttributeRows, Doubt, Projection, QueueKey, RunLink, RunRow, RunStatus, TaskRow, Timer, Write, WriteBasis,
};
pub use queued::{QueuedOptions, StepEnd, StepScheduled, StepTask, StepTimeout};
pub use retry::{RetryDecision, RetryPolicy};
pub use run::{ChildStart, ChildState, Outbound, ToRun};
pub use run::{Decision, Guard, HeardSignal, Owner, Run, StepState, Successor, decide};
pub use start::{
    ConflictPolicy, CurrentRun, KnownRequest, ReusePolicy, StartDecision, StartDefaults, decide_start,
    start_body_hash,
};
pub use time::{Duration, Timestamp};
pub use trace::{RunTrace, parse_traceparent};
