//! One server node as a value.
//!
//! [`Node::step`] takes one input and the present database time, and pushes what is to be done onto a
//! list of outputs. Whoever drives it performs the outputs and feeds back their results; losing any
//! output except an append's result costs latency, never truth. Nothing here waits, spawns or reads a
//! clock.

mod asks;
mod builds;
mod checks;
mod deliveries;
mod hints;
mod ids;
mod outage;
mod planted;
mod sessions;
mod slot;
mod starts;
mod steps;
mod successors;
mod updates;
mod with_start;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Duration as StdDuration;

use everstep_core::{
    Actor, AskId, Command, CommandBody, CommandId, Duration, NodeId, QueueKey, Run, RunId, Seq, SessionId,
    StartRun, TaskRow, TimerKey, Timestamp,
};
use everstep_dispatch::{Delivery, HintQueue, Notice, TaskHint};
use everstep_store::{
    self as store, AllowedBuild, Append, AskAnswer, AskRow, AskWant, SessionRow, StartRecord, Verdict,
};

use crate::{
    Answer, AskTarget, CheckTarget, Checked, Error, Hello, NodeStatus, Query, Started, WorkerIn, WorkerOut,
};
use asks::Asks;
use checks::Checks;
use deliveries::Deliveries;
pub use deliveries::OUTBOX_CLAIM_MAX;
use hints::Pulls;
use ids::IdSource;
use outage::Outage;
use sessions::Session;
use slot::{Job, Slot};
use starts::StartJob;
use steps::Steps;
pub(crate) use steps::beat;
pub use steps::{StepsIn, StepsOut};
use updates::Updates;

/// What happens to a node.
#[derive(Debug)]
pub enum Input {
    /// A client wants a run. Answered by [`Output::Started`].
    Start {
        /// Names the request in its answer.
        request: u64,
        /// The request.
        start: Box<StartRun>,
    },
    /// A client wants something of a run. Answered by [`Output::Done`].
    Command {
        /// Names the request in its answer.
        request: u64,
        /// The run.
        run: RunId,
        /// The command's id.
        id: CommandId,
        /// Who asks.
        identity: String,
        /// What for.
        body: CommandBody,
    },
    /// A client wants a run's code to agree to an update. Answered by [`Output::Accepted`], or [`Output::Done`] when it
    /// is refused.
    Update {
        /// Names the request in its answer.
        request: u64,
        /// Names the question to the code; its end is told with [`Input::AskOver`].
        ask: AskId,
        /// The run.
        run: RunId,
        /// To record that it was accepted.
        command: Box<Command>,
        /// How long the client waits.
        wait: Duration,
    },
    /// An [`Output::HoldFor`] has passed.
    HoldOver {
        /// The run.
        run: RunId,
        /// From the output.
        request: u64,
    },
    /// A worker's stream has opened.
    Connect {
        /// Names the stream.
        link: u64,
        /// What the worker said.
        hello: Box<Hello>,
    },
    /// A worker says something.
    FromWorker {
        /// Its stream.
        link: u64,
        /// What.
        message: WorkerIn,
    },
    /// A worker's stream is gone; its session lives on.
    Disconnected {
        /// The stream.
        link: u64,
    },
    /// The verdict of an [`Output::Append`].
    Appended {
        /// From the output.
        ticket: u64,
        /// The verdict.
        verdict: Verdict,
    },
    /// The answer to an [`Output::Load`].
    Loaded {
        /// The run.
        run: RunId,
        /// From the output.
        after: Seq,
        /// All events after `after`.
        events: Result<Vec<everstep_core::Event>, store::Error>,
    },
    /// The answer to an [`Output::LoadForStart`].
    LoadedForStart {
        /// From the output.
        ticket: u64,
        /// The whole history.
        events: Result<Vec<everstep_core::Event>, store::Error>,
    },
    /// The answer to an [`Output::FindStart`].
    StartFound {
        /// From the output.
        ticket: u64,
        /// What is known.
        record: Result<StartRecord, store::Error>,
    },
    /// The answer to an [`Output::OpenSession`].
    SessionOpened {
        /// The stream.
        link: u64,
        /// The end of the lease, or `None` when the session is closed.
        until: Result<Option<Timestamp>, store::Error>,
    },
    /// The answer to an [`Output::RenewSession`].
    SessionRenewed {
        /// The stream.
        link: u64,
        /// The heartbeat's number.
        number: u64,
        /// The end of the lease, or `None` when the session is closed.
        until: Result<Option<Timestamp>, store::Error>,
    },
    /// Runs that a resumed session owns: the answer to an [`Output::FindOwned`].
    Owned {
        /// The stream.
        link: u64,
        /// The runs.
        runs: Result<Vec<RunId>, store::Error>,
    },
    /// Blocked runs that other code may free: the answer to an [`Output::FindBlocked`].
    Blocked {
        /// The runs.
        runs: Vec<RunId>,
    },
    /// Task hints: the answer to an [`Output::Pull`]; empty when the pull failed.
    Delivered {
        /// The queue.
        queue: HintQueue,
        /// The hints.
        deliveries: Vec<Delivery>,
    },
    /// Another node has news of a run.
    Noticed(Notice),
    /// Timers that are due.
    TimersDue(Vec<(RunId, TimerKey)>),
    /// Tasks that the sweep found waiting.
    TasksFound(Vec<(RunId, TaskRow)>),
    /// Open runs whose owner session is closed.
    RunsLost(Vec<(RunId, SessionId)>),
    /// Wakes that the owner, connected here, has not seen.
    WakesStale(Vec<(RunId, Seq)>),
    /// Sessions that were closed because their lease had ended.
    SessionsClosed(Vec<SessionId>),
    /// A client asks a run's code. Answered by [`Output::Answered`].
    Ask {
        /// Names the question.
        ask: AskId,
        /// Which run.
        target: AskTarget,
        /// What.
        query: Query,
        /// How long the client waits.
        wait: Duration,
    },
    /// Nobody waits for the answer any longer.
    AskOver(AskId),
    /// The answer to an [`Output::LoadForAsk`].
    LoadedForAsk {
        /// From the output.
        ask: AskId,
        /// The whole history.
        events: Result<Vec<everstep_core::Event>, store::Error>,
    },
    /// Questions of other nodes that were claimed for this one.
    AsksFound(Vec<AskRow>),
    /// What another node's worker said to an [`Output::RelayAsk`].
    AskRelayed {
        /// The question.
        ask: AskId,
        /// The answer.
        answer: AskAnswer,
    },
    /// Somebody wants a history held against a worker's code. Answered by [`Output::Checked`].
    Check {
        /// Names the check.
        check: AskId,
        /// Whose code.
        target: CheckTarget,
        /// The run.
        run: RunId,
        /// Its history.
        events: Arc<Vec<everstep_core::Event>>,
        /// How long the caller waits.
        wait: Duration,
    },
    /// Nobody waits for a check any longer.
    CheckOver(AskId),
    /// What is about queued steps.
    Steps(StepsIn),
    /// Events that other runs have perhaps not heard of, each run's in order.
    OutboxFound(Vec<(RunId, Vec<Seq>)>),
    /// The answer to an [`Output::LoadSource`].
    SourceLoaded {
        /// The run.
        run: RunId,
        /// From the output.
        seqs: Vec<Seq>,
        /// Its whole history.
        events: Result<Vec<everstep_core::Event>, store::Error>,
    },
    /// The answer to an [`Output::FindTarget`].
    TargetFound {
        /// From the output.
        flight: u64,
        /// The run that holds the workflow id, if one does.
        run: Result<Option<RunId>, store::Error>,
    },
    /// Builds that may go on with the runs of others.
    AllowedBuilds(Vec<AllowedBuild>),
    /// The node is going away: no new work.
    Drain,
}

/// What a node wants done.
#[derive(Debug)]
pub enum Output {
    /// Answer a start.
    Started {
        /// The request.
        request: u64,
        /// The answer.
        result: Result<Started, Error>,
    },
    /// Answer a command.
    Done {
        /// The request.
        request: u64,
        /// The answer.
        result: Result<(), Error>,
    },
    /// Answer an update: the run's code has agreed to it.
    Accepted {
        /// The request.
        request: u64,
        /// The event that says so.
        seq: Seq,
    },
    /// Say [`Input::HoldOver`] after `wait`.
    HoldFor {
        /// The run.
        run: RunId,
        /// Goes with the input.
        request: u64,
        /// How long.
        wait: Duration,
    },
    /// Append; feed the verdict back. Never lost while the node lives.
    Append {
        /// Names the append.
        ticket: u64,
        /// What to append.
        append: Append,
        /// How long to wait first.
        delay: StdDuration,
    },
    /// Read all events of a run after a seq.
    Load {
        /// The run.
        run: RunId,
        /// Where to begin.
        after: Seq,
        /// How long to wait first.
        delay: StdDuration,
    },
    /// Read the whole history of a run that a start wants to terminate.
    LoadForStart {
        /// Names the start.
        ticket: u64,
        /// The run.
        run: RunId,
    },
    /// Look up who holds a workflow id.
    FindStart {
        /// Names the start.
        ticket: u64,
        /// Isolation boundary.
        namespace: String,
        /// The business key.
        workflow_id: String,
        /// The request.
        request_id: String,
    },
    /// Send a worker a message.
    ToWorker {
        /// The stream.
        link: u64,
        /// The message.
        message: WorkerOut,
    },
    /// Close a stream after what was sent.
    CloseLink {
        /// The stream.
        link: u64,
    },
    /// Open (or move here) a session.
    OpenSession {
        /// The stream.
        link: u64,
        /// The session.
        session: SessionRow,
    },
    /// Extend a lease.
    RenewSession {
        /// The stream.
        link: u64,
        /// The session.
        session: SessionId,
        /// The heartbeat's number.
        number: u64,
        /// The lease.
        lease: Duration,
    },
    /// Close a session, then look for the runs that it owned.
    CloseSession {
        /// The session.
        session: SessionId,
    },
    /// Find what a resumed session owns.
    FindOwned {
        /// The stream.
        link: u64,
        /// The session.
        session: SessionId,
    },
    /// Find blocked runs that a newly connected build may free.
    FindBlocked {
        /// The queue.
        queue: QueueKey,
        /// The build.
        build_id: String,
    },
    /// Offer a task to other nodes.
    Publish(TaskHint),
    /// Ask for up to `max` task hints.
    Pull {
        /// The queue.
        queue: HintQueue,
        /// How many.
        max: usize,
    },
    /// A hint was acted on.
    Ack(u64),
    /// Tell the other nodes.
    Notify(Notice),
    /// Delete wakes that their owner has seen.
    DeleteWakes(Vec<(RunId, Seq)>),
    /// A timer was set: look for due timers no later than this.
    TimersAt(Timestamp),
    /// The run is in this node's memory, open.
    Opened(RunId),
    /// The run has left this node's memory.
    Dropped(RunId),
    /// Events were appended or heard of.
    Tail(RunId, Seq),
    /// A run was started here.
    RunStarted(Box<Run>),
    /// A run ended by an append of this node.
    RunClosed(Box<Run>),
    /// Another node ended a run.
    ClosedElsewhere(RunId, Seq),
    /// Answer a question.
    Answered {
        /// The question.
        ask: AskId,
        /// The answer.
        result: Result<Answer, Error>,
    },
    /// Answer a check.
    Checked {
        /// The check.
        check: AskId,
        /// The answer.
        result: Result<Checked, Error>,
    },
    /// Read the whole history of a run that is asked.
    LoadForAsk {
        /// The question.
        ask: AskId,
        /// The run.
        run: RunId,
    },
    /// Read the whole history of a run that others have to hear of.
    LoadSource {
        /// The run.
        run: RunId,
        /// The events that others have to hear of.
        seqs: Vec<Seq>,
    },
    /// Find the run that holds a workflow id.
    FindTarget {
        /// Names what is to be told to it.
        flight: u64,
        /// Isolation boundary.
        namespace: String,
        /// The business key.
        workflow_id: String,
    },
    /// Others have heard of this event.
    OutboxDone(RunId, Seq),
    /// Leave a question for other nodes, tell them, and watch for the answer until [`Output::RelayOver`].
    RelayAsk(Box<AskRow>),
    /// Nobody waits for other nodes' answer any longer.
    RelayOver(AskId),
    /// Look for questions of other nodes.
    FindAsks(Vec<AskWant>),
    /// What is about queued steps.
    Steps(StepsOut),
    /// Answer another node's question.
    AnswerAsk {
        /// The question.
        ask: AskId,
        /// The run.
        run: RunId,
        /// The answer.
        answer: AskAnswer,
    },
}

/// What a node is told once.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Who it is.
    pub node_id: NodeId,
    /// Lease of its sessions.
    pub lease: Duration,
    /// Other nodes share its database.
    pub shared: bool,
    /// Hints reach the other nodes.
    pub hints_shared: bool,
    /// Questions can be left for the other nodes.
    pub relays: bool,
    /// Seed of its ids.
    pub seed: u64,
}

/// Ids are random enough to be their own hash; a fixed hasher keeps the node deterministic.
#[derive(Debug, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = (self.0.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
}

pub(crate) type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// One server node. See the module's documentation.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    ids: IdSource,
    now: Timestamp,
    out: Vec<Output>,
    slots: IdMap<RunId, Slot>,
    /// Runs by the ticket of their append in flight.
    tickets: IdMap<u64, RunId>,
    starts: BTreeMap<u64, StartJob>,
    /// Runs whose start, with the end of the run before, waits for its answer; true when the log was seen to hold one.
    successors: IdMap<RunId, bool>,
    next_ticket: u64,
    /// Open sessions that are connected here, by stream.
    sessions: BTreeMap<u64, Session>,
    links: BTreeMap<SessionId, u64>,
    /// Streams whose session is being opened.
    opening: BTreeMap<u64, Hello>,
    /// Those of them that take up a session again.
    resumed: BTreeSet<u64>,
    pulls: Pulls,
    asks: Asks,
    steps: Steps,
    updates: Updates,
    checks: Checks,
    /// What operators allow.
    allowed: BTreeSet<AllowedBuild>,
    deliveries: Deliveries,
    draining: bool,
    /// Of leases.
    renewals: Outage,
    status: NodeStatus,
    planted: planted::Planted,
}

impl Node {
    /// A node that has done nothing yet.
    pub fn new(config: NodeConfig) -> Self {
        Self {
            ids: IdSource::new(config.seed),
            config,
            now: Timestamp::default(),
            out: Vec::new(),
            slots: IdMap::default(),
            tickets: IdMap::default(),
            starts: BTreeMap::new(),
            successors: IdMap::default(),
            next_ticket: 0,
            sessions: BTreeMap::new(),
            links: BTreeMap::new(),
            opening: BTreeMap::new(),
            resumed: BTreeSet::new(),
            pulls: Pulls::default(),
            asks: Asks::default(),
            steps: Steps::default(),
            updates: Updates::default(),
            checks: Checks::default(),
            allowed: BTreeSet::new(),
            deliveries: Deliveries::default(),
            draining: false,
            renewals: Outage::default(),
            status: NodeStatus::default(),
            planted: planted::Planted::default(),
        }
    }

    /// Takes one input at database time `now` and appends to `outputs` what is to be done.
    pub fn step(&mut self, input: Input, now: Timestamp, outputs: &mut Vec<Output>) {
        self.now = self.now.max(now);
        match input {
            Input::Start { request, start } => self.start(request, start),
            Input::Command { request, run, id, identity, body } => {
                let command = Command { id, actor: Actor::Client(identity), body };
                self.add_job(run, Job::of_client(request, command));
            }
            Input::Update { request, ask, run, command, wait } => {
                self.update((request, ask), run, *command, wait);
            }
            Input::HoldOver { run, request } => self.hold_over(run, request),
            Input::Connect { link, hello } => self.connect(link, *hello),
            Input::FromWorker { link, message } => self.worker_says(link, message),
            Input::Disconnected { link } => self.disconnected(link),
            Input::Appended { ticket, verdict } => self.appended(ticket, verdict),
            Input::Loaded { run, after, events } => self.loaded(run, after, events),
            Input::LoadedForStart { ticket, events } => self.loaded_for_start(ticket, events),
            Input::StartFound { ticket, record } => self.start_found(ticket, record),
            Input::SessionOpened { link, until } => self.session_opened(link, until),
            Input::SessionRenewed { link, number, until } => self.session_renewed(link, number, until),
            Input::Owned { link, runs } => self.owned(link, runs),
            Input::Blocked { runs } => runs.into_iter().for_each(|run| self.add_job(run, Job::offer())),
            Input::Delivered { queue, deliveries } => self.hints(queue, deliveries),
            Input::Noticed(notice) => self.noticed(notice),
            Input::TimersDue(due) => {
                due.into_iter()
                    .for_each(|(run, timer)| self.add_job(run, Job::Fire { timer, verified: false }));
            }
            Input::TasksFound(tasks) => self.tasks_found(tasks),
            Input::RunsLost(lost) => {
                for (run, session) in lost {
                    self.status.healed += 1;
                    self.add_job(run, Job::Lose { session, refused: None, verified: false });
                }
            }
            Input::WakesStale(wakes) => self.wakes_stale(wakes),
            Input::SessionsClosed(closed) => self.sessions_closed(&closed),
            Input::Ask { ask, target, query, wait } => self.ask(ask, target, query, wait),
            Input::AskOver(ask) => self.ask_over(ask),
            Input::LoadedForAsk { ask, events } => self.loaded_for_ask(ask, events),
            Input::AsksFound(rows) => self.asks_found(rows),
            Input::AskRelayed { ask, answer } => self.ask_relayed(ask, answer),
            Input::Check { check, target, run, events, wait } => {
                self.check(check, target, (run, events), wait);
            }
            Input::CheckOver(check) => self.check_over(check),
            Input::Steps(input) => self.steps_in(input),
            Input::OutboxFound(found) => self.outbox_found(found),
            Input::SourceLoaded { run, seqs, events } => self.source_loaded(run, &seqs, events),
            Input::TargetFound { flight, run } => self.target_found(flight, run),
            Input::AllowedBuilds(allowed) => self.allowed_builds(allowed),
            Input::Drain => self.drain(),
        }
        self.tell_ready();
        self.pull();
        self.forget_updates();
        outputs.append(&mut self.out);
    }

    /// Figures of this node; the driver adds what it knows.
    pub fn status(&self) -> NodeStatus {
        NodeStatus {
            workers: self.sessions.len(),
            runs_loaded: self.slots.len(),
            draining: self.draining,
            ..self.status.clone()
        }
    }

    /// True when nothing is being written or read.
    pub fn is_idle(&self) -> bool {
        self.starts.is_empty() && self.deliveries.is_empty() && self.slots.values().all(Slot::is_idle)
    }

    /// The queues that workers connected here take runs from, with room for at least one more.
    pub fn queues_with_credit(&self) -> Vec<QueueKey> {
        let mut queues: Vec<QueueKey> = self
            .sessions
            .values()
            .filter(|s| s.credit() > 0)
            .flat_map(|s| s.queues.iter().cloned())
            .collect();
        queues.sort();
        queues.dedup();
        queues
    }

    /// Runs that the workers connected here can still take.
    pub fn credit(&self) -> usize {
        self.sessions.values().map(Session::credit).sum()
    }

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn drain(&mut self) {
        self.draining = true;
        for &link in self.sessions.keys() {
            self.out.push(Output::ToWorker { link, message: WorkerOut::Drain });
        }
        self.stop_waiting_asks();
    }
}
