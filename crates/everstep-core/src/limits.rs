//! Every limit the core enforces, in one place.

use crate::Duration;

/// Longest name or id, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Largest single payload, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Kinds of failures that a retry policy may name; each of them is at most [`NAME_BYTES_MAX`] long.
pub const RETRY_KINDS_MAX: usize = 1_000;
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
/// Queued steps of a run that have not ended, at a time.
pub const QUEUED_STEPS_MAX: usize = 10_000;
/// Events in a history from which on a workflow should continue as new. Workflows decide by it, so it never changes.
pub const CONTINUE_EVENTS: u64 = 10_000;
/// Payload bytes in a history from which on a workflow should continue as new. It never changes either.
pub const CONTINUE_BYTES: u64 = 10 * 1024 * 1024;
/// How long the runs of a chain remember a signal that one of them took, so that its sender may repeat it.
pub const HEARD_FOR: Duration = Duration::from_secs(10 * 60);
/// Signals that are remembered like that, the newest first.
pub const HEARD_MAX: usize = 1_000;
/// Updates that a run may have accepted over its life.
pub const UPDATES_MAX: usize = 2_000;
/// Updates that a run may work on at one time.
pub const UPDATES_OPEN_MAX: usize = 100;
/// Children of a run that have not ended, at a time.
pub const CHILDREN_OPEN_MAX: usize = 10_000;
/// Generations of children below a run that is nobody's child.
pub const GENERATIONS_MAX: u32 = 64;
/// Changes of its code that a run may have marked.
pub const CHANGES_MAX: usize = 1_000;
/// Search attributes of a run.
pub const ATTRIBUTES_MAX: usize = 64;
/// Longest keyword that stands alone, in bytes.
pub const KEYWORD_BYTES_MAX: usize = 1_024;
/// Keywords in a list; each of them is at most [`NAME_BYTES_MAX`] long.
pub const KEYWORDS_MAX: usize = 64;
/// Entries in a run's memo.
pub const MEMO_ENTRIES_MAX: usize = 64;
/// Bytes in a run's memo, all entries together.
pub const MEMO_BYTES_MAX: usize = 256 * 1024;
/// Search attributes that a namespace may declare.
pub const DECLARED_ATTRIBUTES_MAX: usize = 100;
/// Longest timer, timeout or retry interval: 100 years.
pub const DURATION_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3_600);
/// How far a worker's reckoning of database time may be ahead of the node's: a node that waits for its database lags.
pub const AHEAD_MAX: Duration = Duration::from_secs(10);
/// Attaches in a row in which the owner recorded nothing, after which a run is blocked as poison.
pub const FRUITLESS_ATTACHES_MAX: u32 = 5;
