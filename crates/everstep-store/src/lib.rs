//! The store port of Everstep.
//!
//! [`Store`] is what the engine asks of a database, in the words of the domain. Each adapter is a crate
//! of its own; [`MemoryStore`] is the one that lives here, and `conformance` (feature `conformance`) is
//! the suite that every adapter passes. The store never interprets an event: it keeps events in order,
//! lets the primary key `(run_id, seq)` decide who appends, and writes the projections it is handed.

mod admin;
mod append;
mod attributes;
mod builds;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod inspect;
mod memory;
mod outbox;
mod records;
mod relay;
mod room;
mod serving;
mod steps;
mod stored;
mod traits;

pub use admin::{
    Admin, AdminRequest, Administered, Change, NamespaceChange, NamespaceSettings, REQUESTS_KEPT, to_declare,
};
pub use append::{Append, AppendReply, RunAppend, StartClaim, Verdict};
pub use attributes::{AttributeFilter, AttributeRow, AttributeValue, Comparison};
pub use builds::{AllowedBuild, Builds, Census, RunWant, Serves, ServingGroup, WaitingGroup};
pub use error::Error;
pub use inspect::{Backlog, Inspect, LastEvent, WakePage, WakeRows, WakeTable};
pub use memory::MemoryStore;
pub use outbox::Outbox;
pub use records::{
    ClaimedTimers, DoubtFilter, DoubtRecord, Namespace, PageToken, RunFilter, RunRecord, RunTables,
    SessionRow, StartRecord, WaitingFilter,
};
pub use relay::{AskAnswer, AskKind, AskOutcome, AskRow, AskState, AskWant, Relay};
pub use room::QueueRoom;
pub use serving::{QueueCensus, QueueWorker, ServesSteps, WaitingType};
pub use steps::{
    AttemptKey, Beat, BeatAnswer, ClaimId, ClaimKey, ClaimRow, DETAILS_BYTES_MAX, Due, DueSteps, QueueLimits,
    QueueRecord, StepClaim, StepClaims, StepClock, StepFilter, StepRecord, StepState, StepWant, Steps,
};
pub use stored::{stored_attribute, stored_beat, stored_limits, stored_number, stored_start};
pub use traits::{Catalog, HEAD_MAX, Head, Log, PAGE_BYTES_MAX, Sessions, Store, Sweep};
