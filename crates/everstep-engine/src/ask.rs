//! Questions to the code of runs, as the engine's callers and its workers see them.

use everstep_core::{Blocked, Payload, QueueKey, RunId, Seq};
use everstep_store::{AskKind, RunRecord};

/// Something is asked of a run's code, by the name of its handler. Nothing is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// For a value, or whether it agrees to an update.
    pub kind: AskKind,
    /// The handler.
    pub name: String,
    /// What it gets.
    pub input: Payload,
}

/// Which run is asked, and which workers can speak for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskTarget {
    /// The run.
    pub run_id: RunId,
    /// The queue of its workers.
    pub queue: QueueKey,
    /// The code that they need.
    pub workflow_type: String,
    /// The build that had it last; empty for none.
    pub build_id: String,
    /// Its last event when it was asked: an answer that knows less is none.
    pub tail: Seq,
}

impl AskTarget {
    /// The run as the store describes it: read after the question came.
    pub fn of(record: &RunRecord) -> Self {
        let row = &record.row;
        Self {
            run_id: row.run_id,
            queue: QueueKey { namespace: row.namespace.clone(), task_queue: row.task_queue.clone() },
            workflow_type: row.workflow_type.clone(),
            build_id: row.build_id.clone(),
            tail: record.tail_seq,
        }
    }
}

/// What the run's code answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The value.
    pub value: Payload,
    /// The event after which it holds.
    pub seq: Seq,
}

/// What a worker says to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A value.
    Value(Payload),
    /// The code, or its handler, refuses.
    Refused {
        /// Kind of the failure.
        kind: String,
        /// For a person.
        message: String,
    },
    /// The worker's code does not fit the run's history.
    Mismatch(Box<Blocked>),
    /// The worker's code does what the whole history says, or agrees to an update.
    Passed,
    /// The worker lets go of the run, or cannot answer now; for the log.
    Gone(String),
}

/// What a mismatch says to a person who asked something else.
pub(crate) fn unfit(blocked: &Blocked) -> String {
    let Blocked { build_id, at_seq, expected, produced, .. } = blocked;
    format!(
        "the code of build '{build_id}' does not fit the run's history at event {at_seq}: recorded was {expected}, the \
         code has {produced}"
    )
}
