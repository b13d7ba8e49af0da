//! Rows that the store gives and takes besides events.

use everstep_core::{
    Doubt, Duration, NodeId, Projection, RunId, RunRow, RunStatus, Seq, SessionId, TaskRow, TimerKey,
    Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::Serves;

use crate::{AttributeFilter, NamespaceSettings};

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// When it was made (database time).
    pub created_at: Timestamp,
    /// What its runs get where request and code are silent.
    #[serde(default)]
    pub settings: NamespaceSettings,
}

/// A run as `GetRun` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    /// Its row.
    pub row: RunRow,
    /// Its last event.
    pub tail_seq: Seq,
}

/// Which runs to list. Empty fields do not filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Isolation boundary; always given.
    pub namespace: String,
    /// One workflow id.
    pub workflow_id: Option<String>,
    /// One workflow type.
    pub workflow_type: Option<String>,
    /// Any of these; empty for all.
    pub statuses: Vec<RunStatus>,
    /// Only runs that this one's workflow started.
    pub parent: Option<RunId>,
    /// All of these hold.
    pub attributes: Vec<AttributeFilter>,
    /// Only runs that wait so; the parent and attributes are not looked at then.
    pub waiting: Option<WaitingFilter>,
}

/// Runs that wait for code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitingFilter {
    /// For which, as it was asked for.
    pub build: String,
    /// They have one of these tasks.
    pub tasks: Vec<TaskRow>,
}

/// Where a page of runs begins: strictly before this run, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageToken(pub RunId);

/// A worker's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRow {
    /// Its id.
    pub session_id: SessionId,
    /// The node that the worker is connected to.
    pub node_id: NodeId,
    /// The worker's namespace.
    pub namespace: String,
    /// Which worker.
    pub identity: String,
    /// Which code it runs.
    pub build_id: String,
    /// What it is there for.
    pub serves: Serves,
    /// How long the lease lasts from each renewal.
    pub lease: Duration,
}

/// What is known about a start request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartRecord {
    /// The latest run of the workflow id, with its status.
    pub current: Option<(RunId, RunStatus)>,
    /// The run that this request id started, with the hash of that request's body.
    pub request: Option<(RunId, [u8; 32])>,
}

/// Timers that are due, claimed for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimedTimers {
    /// Due and claimed.
    pub due: Vec<(RunId, TimerKey)>,
    /// How late each of them is claimed, in the same order.
    pub late: Vec<Duration>,
    /// When the next unclaimed timer is due, if there is one.
    pub next: Option<Timestamp>,
    /// Database time of the claim.
    pub now: Timestamp,
}

/// Which attempts in doubt to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DoubtFilter {
    /// Of this namespace.
    pub namespace: String,
    /// Of this run only.
    pub run: Option<RunId>,
}

/// An attempt in doubt, with the run that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoubtRecord {
    /// The run.
    pub run_id: RunId,
    /// The caller's business key.
    pub workflow_id: String,
    /// Queue whose workers run it.
    pub task_queue: String,
    /// The attempt.
    pub doubt: Doubt,
}

/// Everything the tables beside the log hold about one run, for export and for `rebuild --check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTables {
    /// Row, timers, task and doubts.
    pub projection: Projection,
    /// Wakes waiting for the owner.
    pub wakes: Vec<Seq>,
}
