//! Faults that Everstep's own tests plan: failpoints beside every durable boundary, and planted bugs that
//! prove the checks able to fail.
//!
//! Without the features `failpoints` and `planted-bugs` every call here is a constant that the compiler
//! removes, and the names of points and bugs are not in the binary. A release never has either feature.
//!
//! A process is told its failpoints in `EVERSTEP_FAILPOINTS`, for example
//! `append.after_commit=abort@2;timer.claimed=sleep(3000)@1`: which point, what to do, at which hit. Every hit
//! is a line in the file that `EVERSTEP_FAILPOINTS_LOG` names, without which there are no failpoints.
//! `EVERSTEP_PLANTED_BUG` names one bug.
//!
//! What is *not* here: faults that come from outside (killed processes, broken links), which need no help of
//! the program.

mod bug;
mod point;

pub use bug::{Bug, planted};
#[cfg(feature = "planted-bugs")]
pub use bug::{Planted, plant};
pub use point::{Injected, POINTS, at};

/// Whether failpoints are compiled in.
pub const ENABLED: bool = cfg!(feature = "failpoints");
