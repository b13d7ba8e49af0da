//! The trait and what it carries.

use async_trait::async_trait;
use everstep_core::{NodeId, QueueKey, RunId, Seq, TraceContext};
use serde::{Deserialize, Serialize};

/// What a task hint is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HintKind {
    /// The run needs a worker.
    #[default]
    Run,
    /// The run has a queued step that waits for one. The queue is looked at whatever the run: such a hint is a poke.
    Step,
}

/// Hints of one kind for one queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HintQueue {
    /// Which kind.
    pub kind: HintKind,
    /// Which queue.
    pub queue: QueueKey,
}

impl HintQueue {
    /// Runs of this queue that need a worker.
    pub fn runs(queue: QueueKey) -> Self {
        Self { kind: HintKind::Run, queue }
    }

    /// Queued steps of this queue.
    pub fn steps(queue: QueueKey) -> Self {
        Self { kind: HintKind::Step, queue }
    }
}

/// "This run needs a worker", or has a step that does. Ids and names of code only, never user data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskHint {
    /// The run.
    pub run_id: RunId,
    /// Where its worker would be found.
    pub queue: QueueKey,
    /// What needs the worker.
    pub kind: HintKind,
    /// What the worker has to have: the workflow type, or the step's name. Empty when that is not known.
    #[serde(default)]
    pub needs: String,
    /// The build that the run belongs to; empty for any.
    #[serde(default)]
    pub build_id: String,
    /// How many nodes have handed it on because none of their workers has that.
    #[serde(default)]
    pub passes: u32,
    /// Trace context of whoever caused this, carried in the message's headers.
    #[serde(skip)]
    pub trace: TraceContext,
}

impl TaskHint {
    /// A hint of which no more is known than its run and where it waits.
    pub fn new(run_id: RunId, HintQueue { kind, queue }: HintQueue) -> Self {
        let (needs, build_id) = (String::new(), String::new());
        Self { run_id, queue, kind, needs, build_id, passes: 0, trace: TraceContext::default() }
    }

    /// Where it waits.
    pub fn place(&self) -> HintQueue {
        HintQueue { kind: self.kind, queue: self.queue.clone() }
    }
}

/// "This run has events up to `tail`." Told to every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The run.
    pub run_id: RunId,
    /// Its last event, as far as the sender knows.
    pub tail: Seq,
    /// The run has ended.
    pub closed: bool,
    /// Who says so; a node skips its own.
    pub node: NodeId,
    /// A question about the run waits in the store.
    #[serde(default)]
    pub asked: bool,
}

/// A hint as it was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The hint.
    pub hint: TaskHint,
    /// What [`Dispatch::ack`] takes.
    pub token: u64,
    /// 1 for the first delivery, more for a repeated one.
    pub attempt: u64,
}

/// A dispatch call failed. The caller goes on: the sweep heals what is lost.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The messaging system cannot be reached.
    #[error("dispatch is unavailable: {0}")]
    Unavailable(String),
    /// It refused the message as such (too large, bad subject).
    #[error("dispatch refused the message: {0}")]
    Refused(String),
}

/// Hints between nodes.
#[async_trait]
pub trait Dispatch: Send + Sync + 'static {
    /// Offers a task to whichever node pulls from its queue first.
    ///
    /// # Errors
    /// Both variants of [`Error`]; the hint is then lost.
    async fn publish(&self, hint: TaskHint) -> Result<(), Error>;

    /// Waits for hints of `queue` and takes up to `max` of them. Cancel safe: a hint that was taken but
    /// not returned comes again.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; call again after a pause.
    async fn pull(&self, queue: &HintQueue, max: usize) -> Result<Vec<Delivery>, Error>;

    /// The hint was acted on and need not come again. Best effort.
    async fn ack(&self, token: u64);

    /// Tells every other node. Best effort.
    async fn notify(&self, notice: Notice);

    /// Waits for notices from other nodes. Cancel safe. Never returns when there are no other nodes.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; call again after a pause, and suppose that notices were lost.
    async fn notices(&self) -> Result<Vec<Notice>, Error>;

    /// True when hints can reach a node that is not this one.
    fn is_shared(&self) -> bool;

    /// True while the messaging system is reachable and, as far as is known, takes hints and gives them out.
    fn is_connected(&self) -> bool;
}
