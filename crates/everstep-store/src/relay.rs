//! Questions on their way from one node to another: rows about the present, which may be lost at any time.

use async_trait::async_trait;
use everstep_core::{AskId, Duration, Payload, QueueKey, RunId, Seq};

use crate::Error;

/// A question about a run that no worker of the asking node can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskRow {
    /// Names the question.
    pub ask: AskId,
    /// The run.
    pub run_id: RunId,
    /// Where workers are that could answer.
    pub queue: QueueKey,
    /// Which code they need.
    pub workflow_type: String,
    /// The build that had the run last; empty for none.
    pub build_id: String,
    /// The answer is worth nothing before this event.
    pub at_least: Seq,
    /// What is asked.
    pub kind: AskKind,
    /// Name of the handler.
    pub name: String,
    /// Its input.
    pub input: Payload,
    /// How long its asker still waits.
    pub wait: Duration,
}

/// What a run's code is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskKind {
    /// For a value.
    Query,
    /// Whether it agrees to an update. What it says is a value without content, or a refusal.
    Update,
}

impl AskKind {
    /// The stable word used in SQL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Update => "update",
        }
    }

    /// The kind whose word is `text`.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Query, Self::Update].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskAnswer {
    /// The code had applied the history up to here.
    pub seq: Seq,
    /// What it said.
    pub outcome: AskOutcome,
}

/// What a run's code said to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskOutcome {
    /// A value.
    Value(Payload),
    /// No.
    Refused {
        /// Kind of the failure.
        kind: String,
        /// For a person.
        message: String,
    },
}

/// Which questions somebody can answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AskWant {
    /// Of runs of this namespace,
    pub namespace: String,
    /// on one of these queues,
    pub task_queues: Vec<String>,
    /// and of one of these types.
    pub workflow_types: Vec<String>,
}

/// What the asker finds where it put its question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskState {
    /// Nothing: it was never there, or is lost.
    Absent,
    /// No answer yet.
    Open,
    /// The answer.
    Answered(AskAnswer),
}

/// Where nodes that share a log leave each other questions. Nothing here is worth keeping over a restart.
#[async_trait]
pub trait Relay: Send + Sync + 'static {
    /// Leaves a question; nothing happens when it is there already. Rows that have waited in vain go at the same time.
    ///
    /// # Errors
    /// [`Error::Unavailable`], as all methods of this trait.
    async fn put_ask(&self, ask: &AskRow) -> Result<(), Error>;

    /// Claims up to `limit` open questions for `claim`, oldest first: until then no other call returns them. What
    /// comes back says how long its asker waits from now on.
    async fn claim_asks(&self, want: &AskWant, claim: Duration, limit: usize) -> Result<Vec<AskRow>, Error>;

    /// Leaves the answer; `false` when there is one, or nobody waits any more.
    async fn answer_ask(&self, ask: AskId, answer: &AskAnswer) -> Result<bool, Error>;

    /// Looks for the answer.
    async fn look_at_ask(&self, ask: AskId) -> Result<AskState, Error>;

    /// Nobody waits any more.
    async fn delete_ask(&self, ask: AskId) -> Result<(), Error>;
}
