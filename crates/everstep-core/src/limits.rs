//! Every limit the core enforces, in one place.

use crate::Duration;

/// Longest name or id, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Largest single payload, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Longest failure or reason text that is kept, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Events in a history from which on the run shows a warning.
pub const HISTORY_EVENTS_WARN: u64 = 40_960;
/// Events in a history at which the run is stopped as failed with kind `HistoryTooLarge`.
pub const HISTORY_EVENTS_MAX: u64 = 51_200;
/// Payload bytes in a history from which on the run shows a warning.
pub const HISTORY_BYTES_WARN: u64 = 40 * 1024 * 1024;
/// Payload bytes in a history at which the run is stopped.
pub const HISTORY_BYTES_MAX: u64 = 50 * 1024 * 1024;
/// Commands in one commit of a worker.
pub const COMMIT_COMMANDS_MAX: usize = 1_000;
/// Signals that a run may have received over its life.
pub const SIGNALS_MAX: usize = 10_000;
/// Changes of its code that a run may have marked.
pub const CHANGES_MAX: usize = 1_000;
/// Longest timer, timeout or retry interval: 100 years.
pub const DURATION_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3_600);
/// How far a worker's reckoning of database time may be ahead of the node's: a node that waits for its database lags.
pub const AHEAD_MAX: Duration = Duration::from_secs(10);
/// Attaches in a row in which the owner recorded nothing, after which a run is blocked as poison.
pub const FRUITLESS_ATTACHES_MAX: u32 = 5;
