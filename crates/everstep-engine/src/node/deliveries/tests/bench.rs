//! Nodes on one store, whose clock and whose appends a test has in its hands.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use everstep_core::{
    CommitCommand, Duration, Epoch, NodeId, RunId, RunStatus, Seq, StartRun, Timestamp, WorkerCommit,
    WorkerInfo,
};
use everstep_store::{Append, Error as StoreError, MemoryStore, Verdict};
use uuid::Uuid;

use crate::node::{Input, Node, NodeConfig, OUTBOX_CLAIM_MAX, Output};
use crate::{Hello, WorkerIn};

const LINK: u64 = 5;

/// The database's clock.
#[derive(Clone, Debug)]
pub(super) struct Clock(Arc<AtomicI64>);

impl Clock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::Relaxed))
    }

    pub(super) fn pass_millis(&self, millis: i64) {
        self.0.fetch_add(millis * 1_000, Ordering::Relaxed);
    }

    pub(super) fn pass_secs(&self, secs: i64) {
        self.pass_millis(secs * 1_000);
    }
}

/// A store, and its clock.
pub(super) fn shared_store() -> (Arc<MemoryStore>, Clock) {
    let clock = Clock(Arc::new(AtomicI64::new(1_700_000_000_000_000)));
    let its = clock.clone();
    (Arc::new(MemoryStore::new(move || its.now())), clock)
}

/// A node, which is answered at once unless a test keeps the answer back.
pub(super) struct Bench {
    pub(super) node: Node,
    pub(super) store: Arc<MemoryStore>,
    clock: Clock,
    /// Appends wait here while they are held.
    held: Option<VecDeque<(u64, Append)>>,
    /// Appends of these runs are never answered.
    pub(super) held_runs: BTreeSet<RunId>,
    /// Nothing is deleted from the outbox but by appends.
    pub(super) keeps_outbox: bool,
    /// Histories that were read for what they have to tell.
    pub(super) reads: usize,
    /// The store refuses this run's appends for good.
    pub(super) refused: Option<RunId>,
}

impl Bench {
    pub(super) fn on(store: &Arc<MemoryStore>, clock: &Clock, seed: u64) -> Self {
        let config = NodeConfig {
            node_id: NodeId::from_uuid(Uuid::from_u128(seed.into())),
            lease: Duration::from_secs(10),
            shared: true,
            hints_shared: true,
            relays: false,
            seed,
        };
        let (node, store, clock) = (Node::new(config), Arc::clone(store), clock.clone());
        let (held_runs, keeps_outbox) = (BTreeSet::new(), false);
        Self { node, store, clock, held: None, held_runs, keeps_outbox, reads: 0, refused: None }
    }

    fn step(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut out = Vec::new();
            self.node.step(input, self.clock.now(), &mut out);
            inputs.extend(out.into_iter().filter_map(|output| self.perform(output)));
        }
    }

    fn perform(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Append { ticket, append, .. } => self.append(ticket, append),
            Output::Load { run, after, .. } => {
                let events = Ok(self.store.read_events_sync(run, after, usize::MAX));
                Some(Input::Loaded { run, after, events })
            }
            Output::LoadSource { run, seqs } => {
                self.reads += 1;
                let events = Ok(self.store.read_events_sync(run, 0, usize::MAX));
                Some(Input::SourceLoaded { run, seqs, events })
            }
            Output::FindStart { ticket, namespace, workflow_id, request_id } => {
                let record = Ok(self.store.find_start_sync(&namespace, &workflow_id, &request_id));
                Some(Input::StartFound { ticket, record })
            }
            Output::OutboxDone(..) if self.keeps_outbox => None,
            Output::OutboxDone(run, seq) => {
                self.store.delete_outbox_sync(&[(run, seq)]);
                None
            }
            _ => None,
        }
    }

    fn append(&mut self, ticket: u64, append: Append) -> Option<Input> {
        let run = append.run.run_id;
        if self.refused == Some(run) {
            let verdict = Verdict::Failed(StoreError::Refused("no".to_owned()));
            return Some(Input::Appended { ticket, verdict });
        }
        if self.held_runs.contains(&run) {
            return None;
        }
        match &mut self.held {
            Some(held) => {
                held.push_back((ticket, append));
                None
            }
            None => Some(self.answer(ticket, append)),
        }
    }

    fn answer(&self, ticket: u64, append: Append) -> Input {
        let verdict = self.store.append_sync(vec![append]).verdicts.pop().expect("a verdict for each append");
        Input::Appended { ticket, verdict }
    }

    /// A worker with room for all.
    pub(super) fn worker(&mut self) {
        let hello = Hello {
            namespace: "default".to_owned(),
            task_queues: vec!["q".to_owned()],
            workflow_types: vec!["t".to_owned()],
            worker: WorkerInfo { identity: "w".to_owned(), build_id: "b1".to_owned() },
            run_slots: 10_000,
            ..Hello::default()
        };
        self.step(Input::Connect { link: LINK, hello: Box::new(hello) });
        self.step(Input::SessionOpened { link: LINK, until: Ok(Some(Timestamp::MAX)) });
    }

    pub(super) fn start(&mut self, workflow_id: &str) -> RunId {
        let start = StartRun {
            namespace: "default".to_owned(),
            workflow_id: workflow_id.to_owned(),
            workflow_type: "t".to_owned(),
            task_queue: "q".to_owned(),
            request_id: workflow_id.to_owned(),
            ..StartRun::default()
        };
        self.step(Input::Start { request: 1, start: Box::new(start) });
        let found = self.store.find_start_sync("default", workflow_id, "");
        found.current.expect("the run is started").0
    }

    /// The owner's next commit, over all that there is.
    pub(super) fn commit(&mut self, run_id: RunId, commands: Vec<CommitCommand>) {
        let events = self.store.read_events_sync(run_id, 0, usize::MAX);
        let run = everstep_core::Run::fold(run_id, &events).expect("a history").expect("a run");
        let (epoch, number): (Epoch, u32) = (run.epoch(), run.committed() + 1);
        let commit = WorkerCommit { epoch, number, seen: run.seq(), commands, ahead: None };
        self.step(Input::FromWorker { link: LINK, message: WorkerIn::Commit { run_id, commit } });
    }

    /// A commit that is durable, and from then on nothing is.
    pub(super) fn commit_and_hold(&mut self, run: RunId, commands: Vec<CommitCommand>) {
        self.held = Some(VecDeque::new());
        self.commit(run, commands);
        self.release_one();
    }

    /// Appends that wait.
    pub(super) fn held(&self) -> &VecDeque<(u64, Append)> {
        self.held.as_ref().expect("appends are held")
    }

    /// Commits the first append that waits.
    pub(super) fn release_one(&mut self) {
        let first = self.held.as_mut().and_then(VecDeque::pop_front);
        let (ticket, append) = first.expect("an append waits");
        let answer = self.answer(ticket, append);
        self.step(answer);
    }

    /// The session of the run's owner is closed.
    pub(super) fn lose(&mut self, run: RunId) {
        let owner = self.store.run_tables_sync(run).and_then(|t| t.projection.row.owner);
        self.step(Input::RunsLost(vec![(run, owner.expect("it has an owner"))]));
    }

    /// What the node keeps to itself.
    pub(super) fn telling(&self) -> Vec<(RunId, Seq)> {
        self.node.telling(self.clock.now())
    }

    /// A look of the sweep, as far as it is about the outbox; gives what it found.
    pub(super) fn sweep(&mut self) -> Vec<(RunId, Vec<Seq>)> {
        self.store.hold_outbox_sync(&self.telling(), Duration::from_secs(3));
        let found = self.store.claim_outbox_sync(100, OUTBOX_CLAIM_MAX);
        if !found.is_empty() {
            self.step(Input::OutboxFound(found.clone()));
        }
        found
    }

    pub(super) fn status(&self, run: RunId) -> Option<RunStatus> {
        self.store.run_tables_sync(run).map(|tables| tables.projection.row.status)
    }

    pub(super) fn successor(&self, run: RunId) -> Option<RunId> {
        self.store.run_tables_sync(run)?.projection.link?.successor
    }

    pub(super) fn kinds(&self, run: RunId) -> Vec<String> {
        let events = self.store.read_events_sync(run, 0, usize::MAX);
        events.iter().map(|e| e.body.kind().to_owned()).collect()
    }
}
