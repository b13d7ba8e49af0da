//! The store port of Everstep.
//!
//! [`Store`] is what the engine asks of a database, in the words of the domain. Each adapter is a crate
//! of its own; [`MemoryStore`] is the one that lives here, and `conformance` (feature `conformance`) is
//! the suite that every adapter passes. The store never interprets an event: it keeps events in order,
//! lets the primary key `(run_id, seq)` decide who appends, and writes the projections it is handed.

mod append;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod inspect;
mod memory;
mod records;
mod relay;
mod traits;

pub use append::{Append, AppendReply, RunAppend, StartClaim, Verdict};
pub use error::Error;
pub use inspect::{Backlog, Inspect, LastEvent, WakePage, WakeRows, WakeTable};
pub use memory::MemoryStore;
pub use records::{
    ClaimedTimers, DoubtFilter, DoubtRecord, Namespace, PageToken, RunFilter, RunRecord, RunTables,
    SessionRow, StartRecord,
};
pub use relay::{AskAnswer, AskOutcome, AskRow, AskState, AskWant, Relay};
pub use traits::{Catalog, Log, PAGE_BYTES_MAX, Sessions, Store, Sweep};
