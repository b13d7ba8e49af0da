//! Testing workflows without a server: an engine in memory with a clock of its own.
//!
//! [`TestEnv`] runs workflows on the rules of the product (the same decisions, the same fold, the same replay)
//! in virtual time: a month of sleeps takes milliseconds. Steps run for real unless a [`Mock`] stands in for
//! them, and every execution is kept, in order, as an [`Effect`].
//!
//! [`simulate`] plays a [`Scenario`] again and again, each time with other crashes, delays, repeats and jumps of
//! the clock, all of them drawn from one seed. [`Replayer`] holds stored histories against the code of today.
//!
//! The guide with examples is `docs/testing.md`. What is *not* here: the network and databases. Steps run one after the other, whatever the workflow awaits at once: a step that waits for
//! another one's doing waits for ever.

mod builds;
mod effects;
mod engine;
mod env;
mod error;
mod faults;
mod history;
mod mock;
mod queued;
mod replayer;
mod scenario;
mod simulate;
mod updates;
mod with_start;

pub use effects::{Effect, Effects};
pub use env::TestEnv;
pub use error::Error;
pub use everstep_core::{Event, EventBody, Rejection, Resolution};
pub use history::{History, Unreadable};
pub use mock::Mock;
pub(crate) use replayer::check as check_history;
pub use replayer::{Difference, ReplayError, Replayer};
pub use scenario::Scenario;
pub use simulate::{Outcome, Report, Simulation, SimulationFailed, simulate};
