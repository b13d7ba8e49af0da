//! Driving a node: performing its outputs over the ports, and feeding back what came of them.

mod asks;
mod builds;
mod checks;
mod claims;
mod figures;
mod namespaces;
mod outbox;
mod perform;
mod pulses;
mod reads;
mod scan;
mod steps;
mod tasks;
mod updates;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration as StdDuration;

use everstep_core::{AskId, Command, CommandBody, CommandId, RunId, Seq, StartRun, Timestamp};
use everstep_dispatch::Dispatch;
use everstep_store::{self as store, Append, RunRecord, Store, Verdict};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

pub(crate) use asks::ask;
pub(crate) use builds::{builds_changed, census};
pub(crate) use checks::{candidate, check};
pub(crate) use reads::read_all;
pub(crate) use updates::{update, wait_update};

use crate::api::WorkerSender;
use crate::clock::DbClock;
use crate::hub::Hub;
use crate::node::{Input, Node, NodeConfig, StepsIn};
use crate::{
    Answer, AskTarget, Candidate, Checked, Engine, EngineConfig, Error, Hello, NodeStatus, Query,
    RunSelector, Started, WorkerIn, WorkerLink, WorkerOut,
};

/// Requests waiting for the node at most; more wait with their callers.
const REQUESTS_MAX: usize = 4_096;
/// Messages waiting for one worker's stream at most; a worker that does not read is cut off.
const LINK_MAX: usize = 32_768;
/// Events read in one page.
const PAGE: usize = 1_000;

/// From outside the node.
#[derive(Debug)]
pub(crate) enum Message {
    Worker {
        link: u64,
        message: WorkerIn,
    },
    Start {
        start: Box<StartRun>,
        reply: oneshot::Sender<Result<Started, Error>>,
    },
    Command {
        run: RunId,
        id: CommandId,
        identity: String,
        body: CommandBody,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    Update {
        ask: AskId,
        run: RunId,
        command: Box<Command>,
        until: Instant,
        reply: oneshot::Sender<Result<Seq, Error>>,
    },
    Ask {
        ask: AskId,
        target: AskTarget,
        query: Query,
        until: Instant,
        reply: oneshot::Sender<Result<Answer, Error>>,
    },
    Check(Box<checks::CheckRequest>),
    Candidate {
        namespace: String,
        build_id: String,
        reply: oneshot::Sender<Option<Candidate>>,
    },
    Connect {
        link: u64,
        hello: Hello,
        to_worker: mpsc::Sender<WorkerOut>,
    },
    /// Behind everything that the worker said before.
    Disconnected {
        link: u64,
    },
}

/// From the node's own tasks.
#[derive(Debug)]
pub(crate) enum Internal {
    Input(Box<Input>),
    Verdicts(Vec<(u64, Verdict)>),
    Sweep,
    Drain,
}

/// What the handle and the tasks of a node share.
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) dispatch: Arc<dyn Dispatch>,
    pub(crate) hub: Hub,
    pub(crate) config: EngineConfig,
    clock: DbClock,
    requests: mpsc::Sender<Message>,
    internal: mpsc::UnboundedSender<Internal>,
    lanes: Vec<mpsc::UnboundedSender<(u64, Append)>>,
    status: Mutex<NodeStatus>,
    figures: figures::Figures,
    next_link: AtomicU64,
    namespaces: Mutex<namespaces::Seen>,
    timers: Timers,
    claims: claims::Claims,
    step_clock: Timers,
    pulses: pulses::Pulses,
    heard: mpsc::UnboundedSender<(RunId, Seq)>,
    loads: mpsc::UnboundedSender<(RunId, Seq)>,
    stopping: AtomicBool,
    /// True once the node's tasks have to end.
    stop: watch::Sender<bool>,
    /// True once nothing is in flight any more, while draining.
    idle: watch::Sender<bool>,
}

/// When to look for due timers next.
#[derive(Debug)]
struct Timers {
    earliest: Mutex<Timestamp>,
    changed: Notify,
}

impl Shared {
    /// Figures of the node.
    pub(crate) fn status(&self) -> NodeStatus {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.store_ok = self.figures.store_ok();
        status.store_exhausted = self.figures.store_exhausted();
        status.dispatch_ok = self.dispatch.is_connected();
        status.draining |= self.stopping.load(Ordering::Relaxed);
        status
    }

    /// What the upkeep has found.
    pub(crate) fn upkeep(&self) -> crate::Upkeep {
        self.figures.upkeep()
    }

    fn feed(&self, input: Input) {
        // The node is gone only when everything is.
        let _ = self.internal.send(Internal::Input(Box::new(input)));
    }

    /// Notes whether the store answers, for readiness.
    fn saw<T>(&self, result: &Result<T, store::Error>) {
        self.figures.saw(result.as_ref().err());
    }

    /// Runs `work` beside the node until it is done or the node stops.
    fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let mut stop = self.stop.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = stop.wait_for(|s| *s) => {}
                () = work => {}
            }
        });
    }
}

/// See [`Engine::start`].
pub(crate) async fn start(
    config: EngineConfig,
    store: Arc<dyn Store>,
    dispatch: Arc<dyn Dispatch>,
) -> Result<Engine, Error> {
    let now = store.now().await?;
    let others = dispatch.is_shared() || store.is_shared();
    let (requests, request_rx) = mpsc::channel(REQUESTS_MAX);
    let (internal, internal_rx) = mpsc::unbounded_channel();
    let (lanes, lane_rxs): (Vec<_>, Vec<_>) =
        (0..config.lanes.max(1)).map(|_| mpsc::unbounded_channel()).unzip();
    let (heard, heard_rx) = mpsc::unbounded_channel();
    let (loads, load_rx) = mpsc::unbounded_channel();
    let node = Node::new(NodeConfig {
        node_id: config.node_id,
        lease: config.lease,
        shared: others,
        hints_shared: dispatch.is_shared(),
        relays: others && store.relay().is_some(),
        seed: config.seed,
    });
    let shared = Arc::new(Shared {
        hub: Hub::new(others),
        clock: DbClock::new(now),
        requests,
        internal,
        lanes,
        status: Mutex::default(),
        figures: figures::Figures::new(),
        next_link: AtomicU64::new(1),
        namespaces: Mutex::default(),
        heard,
        loads,
        timers: Timers::new(),
        claims: claims::Claims::default(),
        step_clock: Timers::new(),
        pulses: pulses::Pulses::default(),
        stopping: AtomicBool::new(false),
        stop: watch::channel(false).0,
        idle: watch::channel(false).0,
        store,
        dispatch,
        config,
    });
    for lane in lane_rxs {
        tokio::spawn(tasks::lane(Arc::clone(&shared), lane));
    }
    shared.spawn(reads::loads(Arc::clone(&shared), load_rx));
    shared.spawn(outbox::deletes(Arc::clone(&shared), heard_rx));
    shared.spawn(tasks::timers(Arc::clone(&shared)));
    shared.spawn(steps::clock(Arc::clone(&shared)));
    shared.spawn(pulses::pass_on(Arc::clone(&shared)));
    shared.spawn(tasks::sweeps(Arc::clone(&shared)));
    shared.spawn(crate::hub::looks(Arc::clone(&shared)));
    shared.spawn(tasks::notices(Arc::clone(&shared)));
    shared.spawn(figures::pulse(Arc::clone(&shared)));
    shared.spawn(figures::backlogs(Arc::clone(&shared)));
    shared.spawn(builds::looks(Arc::clone(&shared)));
    shared.spawn(scan::scans(Arc::clone(&shared)));
    tokio::spawn(drive(Arc::clone(&shared), node, request_rx, internal_rx));
    Ok(Engine { shared })
}

/// What the driver keeps beside the node.
struct Driver {
    shared: Arc<Shared>,
    node: Node,
    starts: HashMap<u64, oneshot::Sender<Result<Started, Error>>>,
    commands: HashMap<u64, oneshot::Sender<Result<(), Error>>>,
    updates: HashMap<u64, oneshot::Sender<Result<Seq, Error>>>,
    asks: HashMap<AskId, oneshot::Sender<Result<Answer, Error>>>,
    checks: HashMap<AskId, oneshot::Sender<Result<Checked, Error>>>,
    /// Questions that were left for other nodes; dropped when nobody waits for them.
    relays: HashMap<AskId, oneshot::Sender<()>>,
    links: HashMap<u64, mpsc::Sender<WorkerOut>>,
    next_request: u64,
    sweeping: Arc<AtomicBool>,
}

async fn drive(
    shared: Arc<Shared>,
    node: Node,
    mut requests: mpsc::Receiver<Message>,
    mut internal: mpsc::UnboundedReceiver<Internal>,
) {
    let mut stop = shared.stop.subscribe();
    let mut driver = Driver {
        shared: Arc::clone(&shared),
        node,
        starts: HashMap::new(),
        commands: HashMap::new(),
        updates: HashMap::new(),
        asks: HashMap::new(),
        checks: HashMap::new(),
        relays: HashMap::new(),
        links: HashMap::new(),
        next_request: 0,
        sweeping: Arc::default(),
    };
    let (mut outside, mut inside) = (Vec::new(), Vec::new());
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s) => break,
            _ = internal.recv_many(&mut inside, 512) => {}
            _ = requests.recv_many(&mut outside, 512) => {}
        }
        for message in inside.drain(..) {
            driver.internal(message);
        }
        for message in outside.drain(..) {
            driver.message(message);
        }
        driver.publish_status();
    }
}

impl Driver {
    fn internal(&mut self, message: Internal) {
        match message {
            Internal::Input(input) => self.step(*input),
            Internal::Verdicts(verdicts) => {
                for (ticket, verdict) in verdicts {
                    self.step(Input::Appended { ticket, verdict });
                }
            }
            Internal::Sweep => self.sweep(),
            Internal::Drain => self.step(Input::Drain),
        }
    }

    fn message(&mut self, message: Message) {
        self.next_request += 1;
        let request = self.next_request;
        match message {
            Message::Worker { link, message } => {
                if self.links.contains_key(&link) {
                    self.step(Input::FromWorker { link, message });
                }
            }
            Message::Start { start, reply } => {
                self.starts.insert(request, reply);
                self.step(Input::Start { request, start });
            }
            Message::Command { run, id, identity, body, reply } => {
                self.commands.insert(request, reply);
                self.step(Input::Command { request, run, id, identity, body });
            }
            Message::Update { ask, run, command, until, reply } => {
                self.update(request, (ask, run, command), until, reply);
            }
            Message::Ask { ask, target, query, until, reply } => {
                self.asked(ask, (target, query), until, reply);
            }
            Message::Check(request) => self.check(*request),
            Message::Candidate { namespace, build_id, reply } => {
                let _ = reply.send(self.node.candidate(&namespace, &build_id));
            }
            Message::Disconnected { link } => self.disconnect(link),
            Message::Connect { link, hello, to_worker } => {
                self.links.insert(link, to_worker);
                self.step(Input::Connect { link, hello: Box::new(hello) });
            }
        }
    }

    fn step(&mut self, input: Input) {
        let mut outputs = Vec::new();
        self.node.step(input, self.shared.clock.now(), &mut outputs);
        for output in outputs {
            self.perform(output);
        }
    }

    fn sweep(&mut self) {
        // A sweep that takes longer than its interval is not overtaken by the next.
        if !self.sweeping.swap(true, Ordering::AcqRel) {
            self.step(Input::Steps(StepsIn::Look));
            let (runs, room) = (self.node.run_wants(), self.node.credit());
            let now = self.shared.clock.now();
            let (wants, telling) = (self.node.ask_wants(), self.node.telling(now));
            let done = Arc::clone(&self.sweeping);
            let shared = Arc::clone(&self.shared);
            self.shared.spawn(async move {
                outbox::hold(&shared, &telling).await;
                tasks::sweep_once(&shared, &runs, room).await;
                asks::find(&shared, wants).await;
                done.store(false, Ordering::Release);
            });
        }
        let gone: Vec<u64> =
            self.links.iter().filter(|(_, tx)| tx.is_closed()).map(|(&link, _)| link).collect();
        for link in gone {
            self.disconnect(link);
        }
    }

    fn disconnect(&mut self, link: u64) {
        self.links.remove(&link);
        self.step(Input::Disconnected { link });
    }

    fn publish_status(&self) {
        let status = self.node.status();
        if status.draining {
            self.shared.idle.send_replace(self.node.is_idle() && status.workers == 0);
        }
        *self.shared.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// See [`Engine::start_run`].
pub(crate) async fn start_run(shared: &Shared, start: StartRun) -> Result<Started, Error> {
    if shared.stopping.load(Ordering::Relaxed) {
        return Err(Error::Stopping);
    }
    let defaults = shared.defaults_of(&start.namespace).await?;
    let start = StartRun { defaults, ..start };
    let (reply, answer) = oneshot::channel();
    shared
        .requests
        .send(Message::Start { start: Box::new(start), reply })
        .await
        .map_err(|_| Error::Stopping)?;
    let result = answer.await.map_err(|_| Error::Stopping)?;
    before_reply().await?;
    result
}

/// The failpoint between a durable append and the answer to its caller.
async fn before_reply() -> Result<(), Error> {
    let unknown = |e: everstep_fault::Injected| store::Error::OutcomeUnknown(e.to_string());
    everstep_fault::at("reply.before").await.map_err(|e| unknown(e).into())
}

/// See [`Engine::command`].
pub(crate) async fn command(
    shared: &Shared,
    run: RunId,
    id: CommandId,
    identity: String,
    body: CommandBody,
) -> Result<(), Error> {
    if shared.stopping.load(Ordering::Relaxed) {
        return Err(Error::Stopping);
    }
    let (reply, answer) = oneshot::channel();
    let message = Message::Command { run, id, identity, body, reply };
    shared.requests.send(message).await.map_err(|_| Error::Stopping)?;
    let result = answer.await.map_err(|_| Error::Stopping)?;
    before_reply().await?;
    result
}

/// See [`Engine::resolve`].
pub(crate) async fn resolve(shared: &Shared, selector: &RunSelector) -> Result<RunRecord, Error> {
    let name = || match (&selector.run_id, &selector.workflow_id) {
        (Some(run), _) => run.to_string(),
        (None, Some(workflow)) => format!("with workflow id '{workflow}'"),
        (None, None) => "(none named)".to_owned(),
    };
    let run_id = match (&selector.run_id, &selector.workflow_id) {
        (Some(run), _) => Some(*run),
        (None, Some(workflow)) => {
            let found = shared.store.find_start(&selector.namespace, workflow, "").await?;
            found.current.map(|(run, _)| run)
        }
        (None, None) => {
            let problem = "needs a run_id or a workflow_id".to_owned();
            return Err(everstep_core::Rejection::InvalidArgument { field: "run", problem }.into());
        }
    };
    let Some(run_id) = run_id else { return Err(Error::RunNotFound(name())) };
    let record = shared.store.get_run(run_id).await?;
    // A run of another namespace is as absent as one that never was.
    let record = record
        .filter(|r| r.row.namespace == selector.namespace)
        .filter(|r| selector.workflow_id.as_ref().is_none_or(|w| *w == r.row.workflow_id))
        .ok_or_else(|| Error::RunNotFound(name()))?;
    shared.hub.named(run_id, &record.row.namespace, &record.row.workflow_id);
    Ok(record)
}

/// See [`Engine::find`].
pub(crate) async fn find(shared: &Shared, selector: &RunSelector) -> Result<RunId, Error> {
    let workflow_id = selector.workflow_id.as_deref();
    match selector.run_id {
        Some(run) if shared.hub.is_named(run, &selector.namespace, workflow_id) => Ok(run),
        _ => Ok(resolve(shared, selector).await?.row.run_id),
    }
}

/// See [`Engine::connect_worker`].
pub(crate) async fn connect_worker(shared: &Arc<Shared>, hello: Hello) -> Result<WorkerLink, Error> {
    if shared.stopping.load(Ordering::Relaxed) {
        return Err(Error::Stopping);
    }
    shared.check_namespace(&hello.namespace).await?;
    let link = shared.next_link.fetch_add(1, Ordering::Relaxed);
    let (to_worker, from_engine) = mpsc::channel(LINK_MAX);
    let connect = Message::Connect { link, hello, to_worker };
    shared.requests.send(connect).await.map_err(|_| Error::Stopping)?;
    let (alive, gone) = oneshot::channel::<()>();
    let requests = shared.requests.clone();
    shared.spawn(async move {
        // Ends with an error when the worker's end is dropped, which is the news.
        let _ = gone.await;
        let _ = requests.send(Message::Disconnected { link }).await;
    });
    let to_engine = WorkerSender { link, inputs: shared.requests.clone(), _alive: alive };
    Ok(WorkerLink { to_engine, from_engine })
}

/// See [`Engine::shutdown`].
pub(crate) async fn shutdown(shared: &Shared, grace: StdDuration) {
    if !shared.stopping.swap(true, Ordering::AcqRel) {
        let _ = shared.internal.send(Internal::Drain);
        let mut idle = shared.idle.subscribe();
        // When the grace is over, what is in flight is settled by whoever comes next.
        let _ = tokio::time::timeout(grace, idle.wait_for(|i| *i)).await;
    }
    shared.stop.send_replace(true);
}
