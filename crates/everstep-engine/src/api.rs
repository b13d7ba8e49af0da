//! The engine as its callers see it.

use std::sync::Arc;
use std::time::Duration as StdDuration;

use everstep_core::{
    AskId, CommandBody, CommandId, Duration, Epoch, Event, Failure, NodeId, OpId, Payload, QueueKey,
    Rejection, Run, RunId, RunStatus, Seq, SessionId, StartRun, UpdateOutcome, WorkerCommit, WorkerInfo,
};
use everstep_dispatch::Dispatch;
use everstep_store::{self as store, Census, RunRecord, Store};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Answer, AskTarget, Candidate, CheckTarget, Checked, GivenStep, Query, Said, StepKey, StepOffer, StepSaid,
};

/// How a node behaves. The defaults suit production.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This process.
    pub node_id: NodeId,
    /// How long a worker's session lives without a heartbeat. Default 10 s.
    pub lease: Duration,
    /// How often the sweep looks for what was lost. Default 1 s.
    pub sweep_interval: StdDuration,
    /// How often it looks at how much waits, for the metrics. Default 15 s.
    pub look_interval: StdDuration,
    /// From when on a run that waits for a worker counts as one that waits for code. Default 5 s.
    pub waiting_age: Duration,
    /// How often it looks whether wake rows fit their runs. Default 60 s.
    pub scan_interval: StdDuration,
    /// Committer lanes: appends in flight at one time. Default: one for every two cores, 1 to 4.
    pub lanes: usize,
    /// Most appends in one batch. Default 256.
    pub batch_max: usize,
    /// Seed of run ids and workflow seeds; from the operating system's entropy unless a test says else.
    pub seed: u64,
    /// Told of runs that start and end here.
    pub observer: Option<Arc<dyn Observer>>,
}

/// Is told of what this node committed, after the commit. Must return at once.
pub trait Observer: std::fmt::Debug + Send + Sync + 'static {
    /// A run was started by this node.
    fn run_started(&self, run: &Run) {
        let _ = run;
    }

    /// A run ended by an append of this node: told once for each run, unless the node dies first.
    fn run_closed(&self, run: &Run) {
        let _ = run;
    }
}

/// One for every two cores, 1 to 4. A lane more spares a commit's wait where a core is idle meanwhile; where none
/// is, it only makes the batches smaller.
fn lanes() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, 4))
}

impl EngineConfig {
    /// The defaults, for a node with this id.
    pub fn new(node_id: NodeId) -> Self {
        Self {
            node_id,
            lease: Duration::from_secs(10),
            sweep_interval: StdDuration::from_secs(1),
            look_interval: StdDuration::from_secs(15),
            waiting_age: Duration::from_secs(5),
            scan_interval: StdDuration::from_secs(60),
            lanes: lanes(),
            batch_max: 256,
            seed: uuid::Uuid::new_v4().as_u64_pair().0,
            observer: None,
        }
    }
}

/// A call was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Refused by a rule; nothing was written.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// There is no such run.
    #[error("no run {0}")]
    RunNotFound(String),
    /// There is no such namespace.
    #[error("no namespace '{0}'")]
    NamespaceNotFound(String),
    /// The store failed. `OutcomeUnknown` means that the request may have been carried out: repeat it
    /// with the same request id.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Other requests kept winning the race for this run. Nothing was written.
    #[error("the run is busy: lost {attempts} races in a row")]
    Contention {
        /// Races lost.
        attempts: u32,
    },
    /// The node is shutting down. Nothing was written.
    #[error("the node is shutting down")]
    Stopping,
    /// The session token is malformed.
    #[error("the session token is not one of ours")]
    BadToken,
    /// The run's code refused to answer a question.
    #[error("{message}")]
    QueryFailed {
        /// Kind of the failure.
        kind: String,
        /// For a person.
        message: String,
    },
    /// The run's code does not agree to an update. Nothing was written.
    #[error("{message}")]
    UpdateRejected {
        /// Kind of the failure.
        kind: String,
        /// For a person.
        message: String,
    },
    /// The run has ended before its code had answered an update.
    #[error("the run ended ({0}) before it had answered the update")]
    UpdateAbandoned(RunStatus),
    /// No update of this id was accepted.
    #[error("the run has accepted no update '{0}'")]
    UpdateNotFound(String),
    /// Nobody who could answer a question was there in time.
    #[error(
        "no worker on queue '{}' that has the workflow type '{workflow_type}' and answers queries was connected in time",
        queue.task_queue
    )]
    NoWorker {
        /// Where it would have been.
        queue: QueueKey,
        /// What it would have had.
        workflow_type: String,
    },
    /// A worker was asked, and has not answered in time.
    #[error("the run's worker has not answered in time")]
    NoAnswer,
    /// No worker of the build is connected to this node.
    #[error(
        "no worker that checks histories{} in namespace '{namespace}' is connected to this node; start one with \
         EVERSTEP_CHECK_ONLY=1 at the address that you ask",
        if build_id.is_empty() { String::new() } else { format!(" with build '{build_id}'") }
    )]
    NoCandidate {
        /// Where it would work.
        namespace: String,
        /// Its build; empty for any that only checks.
        build_id: String,
    },
    /// The worker that checked a history is gone.
    #[error("the worker was lost while it checked a history")]
    CheckerLost,
    /// More questions wait than this node takes.
    #[error("too many questions wait for workers")]
    Overloaded,
}

/// Names a run in a request: by id, or the latest run of a workflow id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSelector {
    /// Isolation boundary: a run of another namespace is not found.
    pub namespace: String,
    /// The run.
    pub run_id: Option<RunId>,
    /// The business key; with `run_id`, they must belong together.
    pub workflow_id: Option<String>,
}

/// The answer to a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The run.
    pub run_id: RunId,
    /// False when it was there already.
    pub started: bool,
}

/// What somebody wants of a run's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The caller's id of the request; a second one with the same id is the same update.
    pub update_id: String,
    /// Name of the handler.
    pub name: String,
    /// What it gets.
    pub input: Payload,
    /// The id of the event.
    pub command_id: CommandId,
    /// Who asks.
    pub identity: String,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// With which status.
    pub status: RunStatus,
    /// What it returned; empty unless completed.
    pub result: Payload,
    /// Why it did not complete; `None` when completed or continued.
    pub failure: Option<Failure>,
    /// The run that goes on or tries again, if one does.
    pub successor: Option<RunId>,
}

/// A worker introduces itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hello {
    /// The worker's namespace.
    pub namespace: String,
    /// Queues that it takes runs from.
    pub task_queues: Vec<String>,
    /// Workflow types that it has.
    pub workflow_types: Vec<String>,
    /// It answers questions to the code of runs.
    pub asks: bool,
    /// It holds histories against its code when asked to.
    pub checks: bool,
    /// It does nothing else, and takes no runs.
    pub check_only: bool,
    /// Types whose runs stay with its build.
    pub pinned_types: Vec<String>,
    /// Builds whose runs its code goes on with.
    pub continues: Vec<String>,
    /// Who it is.
    pub worker: WorkerInfo,
    /// Runs that it takes at one time.
    pub run_slots: u32,
    /// The queued steps that it runs; `None` for a worker that does not know what they are.
    pub steps: Option<StepOffer>,
    /// The session to take up again.
    pub resume: Option<SessionId>,
    /// What it still holds of that session.
    pub held: Vec<HeldRun>,
}

/// A run that a reconnecting worker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldRun {
    /// The run.
    pub run_id: RunId,
    /// The worker's epoch.
    pub epoch: Epoch,
    /// Last event that it has applied.
    pub seen: Seq,
}

/// From a worker to the engine.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkerIn {
    /// "I live."
    Heartbeat {
        /// Echoed in the acknowledgement.
        number: u64,
    },
    /// What a workflow did.
    Commit {
        /// The run.
        run_id: RunId,
        /// What it did.
        commit: WorkerCommit,
    },
    /// The worker lacks the prefix that an activation supposed.
    NeedHistory {
        /// The run.
        run_id: RunId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// The worker takes no more runs.
    Draining,
    /// What it says to a question.
    Answer {
        /// The question.
        ask: AskId,
        /// Last event that the code had applied.
        seq: Seq,
        /// What it said.
        said: Said,
    },
    /// It lets go of an attempt of a queued step.
    StepSaid {
        /// The attempt.
        key: StepKey,
        /// Why.
        said: StepSaid,
        /// How far it was.
        details: Option<Payload>,
    },
    /// An attempt of a queued step lives.
    StepBeat {
        /// The attempt.
        key: StepKey,
        /// How far it is.
        details: Option<Payload>,
    },
    /// What it takes of queued steps from here on.
    Limits {
        /// Attempts at one time.
        slots: u32,
        /// Attempts that begin in a second; 0 for no limit.
        per_second: f64,
    },
    /// The worker has let go of everything.
    Goodbye,
}

/// From the engine to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkerOut {
    /// The session is open. Always first.
    Welcome {
        /// The session.
        session_id: SessionId,
        /// Its lease, from the last heartbeat's sending.
        lease: Duration,
        /// The session that Hello named goes on.
        resumed: bool,
    },
    /// The lease was extended.
    HeartbeatAck {
        /// From the heartbeat.
        number: u64,
    },
    /// Take this run.
    Activate {
        /// The run.
        run_id: RunId,
        /// The claim.
        epoch: Epoch,
        /// Its history, whole or from after `base` on. Shared, not copied.
        events: Arc<Vec<Event>>,
        /// The prefix that the worker is supposed to have: its last seq and that event's command.
        base: Option<(Seq, CommandId)>,
    },
    /// New events of a run that the worker holds.
    Events {
        /// The run.
        run_id: RunId,
        /// Its epoch.
        epoch: Epoch,
        /// The events; only those with a seq of at least `from` concern the worker.
        events: Arc<Vec<Event>>,
        /// First seq to send.
        from: Seq,
        /// Greatest commit number recorded in or before these.
        committed: u32,
    },
    /// A commit was refused.
    Rejected {
        /// The run.
        run_id: RunId,
        /// The sender's epoch.
        epoch: Epoch,
        /// The commit.
        number: u32,
        /// Why.
        rejection: Rejection,
    },
    /// Forget this run.
    Evict {
        /// The run.
        run_id: RunId,
        /// The epoch that is over.
        epoch: Epoch,
        /// For the worker's log.
        reason: &'static str,
    },
    /// Ask a run's code.
    Ask {
        /// Names the question.
        ask: AskId,
        /// The run.
        run_id: RunId,
        /// The worker's claim; 0 when it is not asked as the owner.
        epoch: Epoch,
        /// The answer is worth nothing before this event.
        at_least: Seq,
        /// With epoch 0: the whole history.
        events: Arc<Vec<Event>>,
        /// What is asked.
        query: Arc<Query>,
        /// How long somebody waits for the answer.
        wait: Duration,
    },
    /// Hold a history against the code.
    Check {
        /// Names the check.
        check: AskId,
        /// The run.
        run_id: RunId,
        /// Its whole history.
        events: Arc<Vec<Event>>,
        /// How long somebody waits for the answer.
        wait: Duration,
    },
    /// Run this attempt of a queued step.
    StepTask(Box<GivenStep>),
    /// Nobody wants an attempt of a queued step any more.
    StepCancel {
        /// The run.
        run_id: RunId,
        /// The step.
        step: OpId,
        /// The attempt.
        attempt: u32,
        /// It is over, whatever its worker says; otherwise its end still counts.
        gone: bool,
    },
    /// The store has this attempt as the worker's, and nobody here gave it out, or its end could not be recorded: does
    /// the worker have it? One that does not says [`StepSaid::Returned`](crate::StepSaid::Returned), one that has ended
    /// it says the end again. One that has left this stream says nothing, and may well run it.
    StepAsk(StepKey),
    /// What a worker said last about an attempt is settled.
    StepAck {
        /// The attempt.
        key: StepKey,
        /// Whether it counts.
        result: Result<(), Rejection>,
    },
    /// This node is going away.
    Drain,
    /// The session is over. Last message.
    SessionClosed {
        /// For the worker's log.
        reason: &'static str,
    },
}

/// One worker's two directions. Dropping it disconnects the worker; its session lives on until its lease
/// ends.
#[derive(Debug)]
pub struct WorkerLink {
    /// To the engine. Closed when the node has stopped.
    pub to_engine: WorkerSender,
    /// From the engine, in order; `recv_many` coalesces. Closed after the last message.
    pub from_engine: mpsc::Receiver<WorkerOut>,
}

/// The worker's end towards the engine; say [`WorkerSender::send`] for each message, in order.
#[derive(Debug)]
pub struct WorkerSender {
    pub(crate) link: u64,
    pub(crate) inputs: mpsc::Sender<crate::driver::Message>,
    /// Dropped with this value: tells the node that the worker is gone.
    pub(crate) _alive: oneshot::Sender<()>,
}

/// A run's tail as this node hears of it.
#[derive(Debug)]
pub struct RunWatch {
    pub(crate) inner: crate::hub::Watch,
}

/// Figures of a node, for metrics and readiness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Workers connected to this node.
    pub workers: usize,
    /// Runs in this node's memory.
    pub runs_loaded: usize,
    /// The store answered its last call.
    pub store_ok: bool,
    /// The store said a moment ago that its disk, memory or connections are used up.
    pub store_exhausted: bool,
    /// Dispatch reaches the other nodes (always true on a single node).
    pub dispatch_ok: bool,
    /// The node is shutting down.
    pub draining: bool,
    /// Events appended since start.
    pub events_appended: u64,
    /// Appends that lost their race, since start.
    pub conflicts: u64,
    /// Commits refused for an old epoch, since start.
    pub fenced: u64,
    /// Outcomes that had to be settled, since start.
    pub unknown_settled: u64,
    /// Runs started, since start.
    pub runs_started: u64,
    /// Runs closed, since start.
    pub runs_closed: u64,
    /// Tasks, timers, wakes and lost runs that only the sweep found, since start.
    pub healed: u64,
}

/// A running node. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(crate) shared: Arc<crate::driver::Shared>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts a node's tasks on the current tokio runtime.
    ///
    /// # Errors
    /// [`Error::Store`] when the store does not answer.
    pub async fn start(
        config: EngineConfig,
        store: Arc<dyn Store>,
        dispatch: Arc<dyn Dispatch>,
    ) -> Result<Self, Error> {
        crate::driver::start(config, store, dispatch).await
    }

    /// The store, for reads. Reads go straight to it; only writes go through the engine.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// What a namespace sets was changed in the store: runs that start here from now on get that. Other nodes look
    /// every few seconds.
    pub fn namespace_changed(&self, name: &str) {
        self.shared.forget_namespace(name);
    }

    /// Starts a run. Cancel safe: a started request is carried out even if the future is dropped.
    ///
    /// # Errors
    /// Every variant of [`Error`] but `RunNotFound` and `BadToken`.
    pub async fn start_run(&self, request: StartRun) -> Result<Started, Error> {
        crate::driver::start_run(&self.shared, request).await
    }

    /// Sends a signal, cancel or termination to a run. Cancel safe as [`Engine::start_run`].
    ///
    /// # Errors
    /// Every variant of [`Error`] but `BadToken`.
    pub async fn command(
        &self,
        run: RunId,
        id: CommandId,
        identity: String,
        body: CommandBody,
    ) -> Result<(), Error> {
        crate::driver::command(&self.shared, run, id, identity, body).await
    }

    /// The id of the run that a request names. Reads the store only when this node has not met the run lately.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub async fn find(&self, selector: &RunSelector) -> Result<RunId, Error> {
        crate::driver::find(&self.shared, selector).await
    }

    /// Finds the run that a request names, as it stands. Reads the store.
    ///
    /// # Errors
    /// [`Error::RunNotFound`], [`Error::Store`], [`Error::Rejected`] when the selector names nothing.
    pub async fn resolve(&self, selector: &RunSelector) -> Result<RunRecord, Error> {
        crate::driver::resolve(&self.shared, selector).await
    }

    /// Asks a run's code, and waits for the answer for at most `wait`. Nothing is written. Cancel safe: a question
    /// that nobody waits for any more is forgotten.
    ///
    /// # Errors
    /// [`Error::QueryFailed`], [`Error::NoWorker`], [`Error::NoAnswer`], [`Error::Overloaded`],
    /// [`Error::RunNotFound`], [`Error::Store`], [`Error::Stopping`].
    pub async fn ask(&self, target: AskTarget, query: Query, wait: StdDuration) -> Result<Answer, Error> {
        crate::driver::ask(&self.shared, target, query, wait).await
    }

    /// Holds a history against the code of a worker that is connected to this node. Nothing is written. Cancel safe.
    ///
    /// # Errors
    /// [`Error::NoCandidate`], [`Error::CheckerLost`], [`Error::NoAnswer`], [`Error::Stopping`].
    pub async fn check(
        &self,
        target: CheckTarget,
        (run, events): (RunId, Arc<Vec<Event>>),
        wait: StdDuration,
    ) -> Result<Checked, Error> {
        crate::driver::check(&self.shared, target, (run, events), wait).await
    }

    /// Builds were allowed in the store to go on with the runs of others: this node knows of it at once, the others
    /// within seconds.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn builds_changed(&self) -> Result<(), Error> {
        crate::driver::builds_changed(&self.shared).await
    }

    /// Who waits for which code, and who is there, on all nodes. Reads the store.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn census(&self) -> Result<Census, Error> {
        crate::driver::census(&self.shared).await
    }

    /// What the workers of a build have that are connected to this node; an empty build stands for all that only
    /// check.
    ///
    /// # Errors
    /// [`Error::NoCandidate`], [`Error::Stopping`].
    pub async fn candidate(&self, namespace: &str, build_id: &str) -> Result<Candidate, Error> {
        crate::driver::candidate(&self.shared, namespace, build_id).await
    }

    /// Asks a run's code whether it agrees to an update, and records that it did; waits for that for at most `wait`.
    /// Gives the event that says so, also when the update was accepted before. Cancel safe: what nobody waits for any
    /// more may be accepted or not; the same update again is the same.
    ///
    /// # Errors
    /// [`Error::UpdateRejected`], and what [`Engine::command`] and [`Engine::ask`] say.
    pub async fn update(&self, run: RunId, update: Update, wait: StdDuration) -> Result<Seq, Error> {
        crate::driver::update(&self.shared, run, update, wait).await
    }

    /// What the run's code answered an update that it accepted, looked for after an event; `None` when the wait was
    /// over first. Cancel safe.
    ///
    /// # Errors
    /// [`Error::UpdateNotFound`], [`Error::UpdateAbandoned`], [`Error::RunNotFound`], [`Error::Store`].
    pub async fn wait_update(
        &self,
        run: RunId,
        update_id: &str,
        after: Seq,
        wait: StdDuration,
    ) -> Result<Option<UpdateOutcome>, Error> {
        crate::driver::wait_update(&self.shared, run, update_id, after, wait).await
    }

    /// Waits until `run` is closed, at most `wait`; `None` when the wait was over first. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Stopping`].
    pub async fn wait_closed(&self, run: RunId, wait: StdDuration) -> Result<Option<Closed>, Error> {
        crate::hub::wait_closed(&self.shared, run, wait).await
    }

    /// Watches a run's tail.
    pub fn watch(&self, run: RunId) -> RunWatch {
        RunWatch { inner: self.shared.hub.watch(run) }
    }

    /// Connects a worker.
    ///
    /// # Errors
    /// [`Error::Stopping`]; [`Error::NamespaceNotFound`]; [`Error::Store`].
    pub async fn connect_worker(&self, hello: Hello) -> Result<WorkerLink, Error> {
        crate::driver::connect_worker(&self.shared, hello).await
    }

    /// Figures of this node.
    pub fn status(&self) -> NodeStatus {
        self.shared.status()
    }

    /// What this node's upkeep has found.
    pub fn upkeep(&self) -> crate::Upkeep {
        self.shared.upkeep()
    }

    /// Stops the node gracefully: tells the workers, finishes what is in flight (at most `grace`), ends
    /// the tasks. Afterwards every call answers [`Error::Stopping`].
    pub async fn shutdown(&self, grace: StdDuration) {
        crate::driver::shutdown(&self.shared, grace).await;
    }
}

impl WorkerSender {
    /// Hands a message to the engine; waits while the engine is behind. `Err` when the node has stopped.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub async fn send(&self, message: WorkerIn) -> Result<(), Error> {
        self.inputs
            .send(crate::driver::Message::Worker { link: self.link, message })
            .await
            .map_err(|_| Error::Stopping)
    }
}

impl RunWatch {
    /// Waits until the run has events after `seen`, or is closed; returns the tail as known, which may be
    /// less than what is in the store. Also returns after about a second without news when other nodes
    /// could have appended unheard. Cancel safe.
    pub async fn changed(&mut self, seen: Seq) -> Seq {
        self.inner.changed(seen).await
    }
}

/// The queues of a Hello.
pub(crate) fn queues_of(hello: &Hello) -> Vec<QueueKey> {
    hello
        .task_queues
        .iter()
        .map(|q| QueueKey { namespace: hello.namespace.clone(), task_queue: q.clone() })
        .collect()
}
