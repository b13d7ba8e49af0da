//! Histories held against the code of a worker, as the engine's callers see it. Nothing is written.

use std::collections::BTreeSet;

use everstep_core::Blocked;

/// Whose code is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckTarget {
    /// The worker's namespace.
    pub namespace: String,
    /// Its build; empty for any worker that only checks.
    pub build_id: String,
    /// The workflow type that it needs.
    pub workflow_type: String,
}

/// What the workers of a build that are connected to this node have, taken together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Where they would take runs from.
    pub task_queues: BTreeSet<String>,
    /// The code that they have.
    pub workflow_types: BTreeSet<String>,
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// The code does what the history says.
    Passed,
    /// It does not, from this event on.
    Mismatch(Box<Blocked>),
    /// The worker could not tell; why.
    Skipped(String),
}
