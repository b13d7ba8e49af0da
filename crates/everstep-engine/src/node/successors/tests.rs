//! A run's end and the start of the next one, with everything that may come between.

use std::sync::Arc;

use everstep_core::{
    Actor, Command, CommandBody, CommandId, CommitCommand, Continuation, Duration, Epoch, EventBody, Failure,
    NodeId, Payload, RetryPolicy, RunId, RunStatus, Seq, SessionId, StartRun, TimerKey, Timestamp,
    WorkerCommit, WorkerInfo,
};
use everstep_store::{Append, Error as StoreError, MemoryStore, Verdict};
use uuid::Uuid;

use crate::node::{Input, Node, NodeConfig, Output};
use crate::{Hello, WorkerIn, WorkerOut};

const LINK: u64 = 5;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + secs * 1_000_000)
}

/// A node on a store, which keeps back what it is told to.
struct Bench {
    node: Node,
    store: Arc<MemoryStore>,
    now: Timestamp,
    out: Vec<Output>,
    /// Appends wait here for their verdict.
    held: Option<Vec<(u64, Append)>>,
    reads: usize,
}

impl Bench {
    fn on(store: &Arc<MemoryStore>, seed: u64) -> Self {
        let config = NodeConfig {
            node_id: NodeId::from_uuid(Uuid::from_u128(seed.into())),
            lease: Duration::from_secs(10),
            shared: true,
            hints_shared: true,
            relays: false,
            seed,
        };
        let (node, store) = (Node::new(config), Arc::clone(store));
        Self { node, store, now: at(0), out: Vec::new(), held: None, reads: 0 }
    }

    fn step(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut out = Vec::new();
            self.node.step(input, self.now, &mut out);
            for output in out {
                match output {
                    Output::Append { ticket, append, .. } => match &mut self.held {
                        Some(held) => held.push((ticket, append)),
                        None => inputs.push(self.commit(ticket, append)),
                    },
                    Output::Load { run, after, .. } => {
                        self.reads += 1;
                        let events = Ok(self.store.read_events_sync(run, after, usize::MAX));
                        inputs.push(Input::Loaded { run, after, events });
                    }
                    other => self.out.push(other),
                }
            }
        }
    }

    fn commit(&self, ticket: u64, append: Append) -> Input {
        let verdict = self.store.append_sync(vec![append]).verdicts.pop().expect("a verdict for each append");
        Input::Appended { ticket, verdict }
    }

    fn worker(&mut self, slots: u32) {
        let hello = Hello {
            namespace: "default".to_owned(),
            task_queues: vec!["q".to_owned()],
            workflow_types: vec!["count".to_owned()],
            worker: WorkerInfo { identity: "w".to_owned(), build_id: "b1".to_owned() },
            run_slots: slots,
            ..Hello::default()
        };
        self.step(Input::Connect { link: LINK, hello: Box::new(hello) });
        self.step(Input::SessionOpened { link: LINK, until: Ok(Some(Timestamp::MAX)) });
    }

    fn start(&mut self, retry: Option<RetryPolicy>) -> RunId {
        let start = StartRun {
            namespace: "default".to_owned(),
            workflow_id: "w".to_owned(),
            workflow_type: "count".to_owned(),
            task_queue: "q".to_owned(),
            request_id: "r".to_owned(),
            retry,
            ..StartRun::default()
        };
        self.step(Input::Start { request: 1, start: Box::new(start) });
        let started = self.out.iter().find_map(|o| match o {
            Output::Started { result: Ok(started), .. } => Some(started.run_id),
            _ => None,
        });
        started.expect("the run is started")
    }

    fn signal(&mut self, run: RunId, id: &str) {
        let (name, signal_id, input) = ("go".to_owned(), id.to_owned(), Payload::json("1"));
        let id = CommandId::from_uuid(Uuid::from_u128(1_000 + id.len() as u128));
        let body = CommandBody::Signal { name, signal_id, input };
        self.step(Input::Command { request: 2, run, id, identity: String::new(), body });
    }

    /// The owner's next commit, over what it has seen.
    fn commits(&mut self, run_id: RunId, seen: Seq, command: CommitCommand) {
        let commit = WorkerCommit { epoch: 1, number: 1, seen, commands: vec![command], ahead: None };
        self.step(Input::FromWorker { link: LINK, message: WorkerIn::Commit { run_id, commit } });
    }

    fn status(&self, run: RunId) -> Option<RunStatus> {
        self.store.run_tables_sync(run).map(|tables| tables.projection.row.status)
    }

    fn successor(&self, run: RunId) -> Option<RunId> {
        self.store.run_tables_sync(run)?.projection.link?.successor
    }

    fn kinds(&self, run: RunId) -> Vec<String> {
        let events = self.store.read_events_sync(run, 0, usize::MAX);
        events.iter().map(|e| e.body.kind().to_owned()).collect()
    }

    /// What the worker was given to run, in order.
    fn activated(&self) -> Vec<(RunId, Epoch)> {
        let given = |output: &Output| match output {
            Output::ToWorker { message: WorkerOut::Activate { run_id, epoch, .. }, .. } => {
                Some((*run_id, *epoch))
            }
            _ => None,
        };
        self.out.iter().filter_map(given).collect()
    }

    /// Commits what is held, and gives the verdict that the node hears.
    fn release(&mut self, verdict: impl FnOnce(Verdict) -> Verdict) {
        let held = self.held.take().expect("appends are held");
        let [(ticket, append)] = held.try_into().expect("one append is held");
        let Input::Appended { verdict: real, .. } = self.commit(ticket, append) else { return };
        self.step(Input::Appended { ticket, verdict: verdict(real) });
    }
}

fn store() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new(|| at(0)))
}

fn next(unconsumed: Vec<Seq>) -> CommitCommand {
    CommitCommand::ContinueAsNew(Box::new(Continuation { unconsumed, ..Continuation::default() }))
}

fn fail() -> CommitCommand {
    CommitCommand::FailRun { failure: Failure::new("Oops", "no"), unconsumed: Vec::new() }
}

#[test]
fn the_same_worker_goes_on_at_once_in_the_room_of_the_old_run() {
    let mut bench = Bench::on(&store(), 1);
    bench.worker(1);
    let old = bench.start(None);
    bench.commits(old, 2, next(Vec::new()));
    let new = bench.successor(old).expect("a run follows");
    assert_eq!(bench.status(old), Some(RunStatus::Continued));
    assert_eq!(bench.activated(), [(old, 1), (new, 1)]);
    assert_eq!(bench.kinds(new), ["RunStarted", "WorkerAttached"]);
    assert_eq!(bench.reads, 0, "nothing is carried, so nothing is read");
    let found = bench.store.find_start_sync("default", "w", "r");
    assert_eq!(found.current, Some((new, RunStatus::Running)), "the workflow id is the new run's");
    bench.commits(new, 2, CommitCommand::CompleteRun { result: Payload::json("1"), unconsumed: Vec::new() });
    assert_eq!(bench.status(new), Some(RunStatus::Completed));
}

#[test]
fn what_is_carried_is_read_when_it_is_not_at_hand() {
    let mut bench = Bench::on(&store(), 1);
    bench.worker(1);
    let old = bench.start(None);
    bench.signal(old, "a");
    bench.signal(old, "bb");
    bench.commits(old, 3, next(vec![3]));
    let new = bench.successor(old).expect("a run follows");
    assert_eq!(bench.kinds(new), ["RunStarted", "SignalReceived", "SignalReceived", "WorkerAttached"]);
    assert_eq!(bench.reads, 1, "the whole history, once");
    assert_eq!(bench.activated(), [(old, 1), (new, 1)]);
}

#[test]
fn a_signal_that_comes_first_goes_along() {
    let store = store();
    let (mut bench, mut other) = (Bench::on(&store, 1), Bench::on(&store, 2));
    bench.worker(1);
    let old = bench.start(None);
    bench.held = Some(Vec::new());
    bench.commits(old, 2, next(Vec::new()));
    other.signal(old, "first");
    bench.release(|verdict| {
        assert!(matches!(verdict, Verdict::Conflict), "{verdict:?}");
        verdict
    });
    let new = bench.successor(old).expect("a run follows");
    assert_eq!(bench.kinds(new), ["RunStarted", "SignalReceived", "WorkerAttached"]);
    assert_eq!(bench.activated(), [(old, 1), (new, 1)]);
    let refused = |o: &Output| matches!(o, Output::Done { result: Err(_), .. });
    other.signal(old, "second!");
    assert!(other.out.iter().any(refused), "{:?}", other.out);
}

#[test]
fn an_answer_that_was_lost_starts_nothing_twice() {
    let mut bench = Bench::on(&store(), 1);
    bench.worker(1);
    let old = bench.start(None);
    bench.held = Some(Vec::new());
    bench.commits(old, 2, next(Vec::new()));
    bench.release(|_| Verdict::Failed(StoreError::OutcomeUnknown("cut".to_owned())));
    let new = bench.successor(old).expect("a run follows");
    assert_eq!(bench.activated(), [(old, 1), (new, 1)], "the worker that it was started for hears of it");
    assert_eq!(bench.kinds(old), ["RunStarted", "WorkerAttached", "RunContinued"]);
    assert_eq!(bench.kinds(new), ["RunStarted", "WorkerAttached"]);
    assert_eq!(bench.store.run_ids_sync().len(), 2);
}

#[test]
fn a_run_that_went_on_before_the_answer_is_not_given_out_again() {
    let mut bench = Bench::on(&store(), 1);
    bench.worker(2);
    let old = bench.start(None);
    bench.held = Some(Vec::new());
    bench.commits(old, 2, next(Vec::new()));
    let [(ticket, append)] = bench.held.take().and_then(|held| held.try_into().ok()).expect("one append");
    let committed = bench.commit(ticket, append);
    // The answer is late. A client has the new run read, its worker parks it, and it is let go.
    let new = bench.successor(old).expect("a run follows");
    bench.signal(new, "a");
    assert_eq!(bench.activated(), [(old, 1), (new, 1)]);
    bench.commits(new, 3, CommitCommand::Park);
    bench.step(committed);
    assert_eq!(bench.activated(), [(old, 1), (new, 1)]);
    assert_eq!(bench.kinds(new), ["RunStarted", "WorkerAttached", "SignalReceived", "WorkerDetached"]);
}

#[test]
fn a_node_that_dies_before_the_commit_leaves_the_old_run_to_the_next() {
    let store = store();
    let mut bench = Bench::on(&store, 1);
    bench.worker(1);
    let old = bench.start(None);
    bench.held = Some(Vec::new());
    bench.commits(old, 2, next(Vec::new()));
    drop(bench);
    let mut other = Bench::on(&store, 2);
    assert_eq!((other.status(old), store.run_ids_sync().len()), (Some(RunStatus::Running), 1));
    let owner = store.run_tables_sync(old).and_then(|t| t.projection.row.owner).expect("it has an owner");
    other.worker(1);
    other.step(Input::RunsLost(vec![(old, owner)]));
    let commit = WorkerCommit { epoch: 2, number: 1, seen: 4, commands: vec![next(Vec::new())], ahead: None };
    other.step(Input::FromWorker { link: LINK, message: WorkerIn::Commit { run_id: old, commit } });
    let new = other.successor(old).expect("a run follows");
    assert_eq!(other.activated(), [(old, 2), (new, 1)]);
}

#[test]
fn a_node_that_dies_after_the_commit_leaves_the_new_run_to_the_next() {
    let store = store();
    let mut bench = Bench::on(&store, 1);
    bench.worker(1);
    let old = bench.start(None);
    bench.held = Some(Vec::new());
    bench.commits(old, 2, next(Vec::new()));
    let [(ticket, append)] = bench.held.take().and_then(|held| held.try_into().ok()).expect("one append");
    let Input::Appended { verdict: Verdict::Committed, .. } = bench.commit(ticket, append) else {
        panic!("it is committed")
    };
    drop(bench);
    let mut other = Bench::on(&store, 2);
    let new = other.successor(old).expect("a run follows");
    let owner: SessionId =
        store.run_tables_sync(new).and_then(|t| t.projection.row.owner).expect("it was started for a worker");
    other.worker(1);
    other.step(Input::RunsLost(vec![(new, owner)]));
    assert_eq!(other.activated(), [(new, 2)]);
    assert_eq!(other.status(old), Some(RunStatus::Continued));
}

#[test]
fn the_next_attempt_waits_for_its_instant_and_is_given_the_signals_again() {
    let mut bench = Bench::on(&store(), 1);
    bench.worker(1);
    let old = bench.start(Some(RetryPolicy { maximum_attempts: 2, ..RetryPolicy::default() }));
    bench.signal(old, "a");
    bench.commits(old, 3, fail());
    let new = bench.successor(old).expect("another attempt follows");
    assert_eq!(bench.status(old), Some(RunStatus::Failed));
    assert_eq!(bench.kinds(new), ["RunStarted", "SignalReceived"]);
    assert!(!bench.activated().iter().any(|(run, _)| *run == new));
    let tables = bench.store.run_tables_sync(new).expect("it is there");
    let (timers, task) = (tables.projection.timers, tables.projection.task);
    assert_eq!(timers.iter().map(|t| t.key).collect::<Vec<_>>(), [TimerKey::START]);
    assert!(task.is_none());
    let due = timers[0].fire_at;
    assert!(due > at(0) && due <= at(1));
    assert!(bench.out.iter().any(|o| matches!(o, Output::TimersAt(instant) if *instant == due)));
    bench.now = at(0);
    bench.step(Input::TimersDue(vec![(new, TimerKey::START)]));
    assert_eq!(bench.kinds(new).len(), 2, "too early");
    bench.now = at(2);
    bench.step(Input::TimersDue(vec![(new, TimerKey::START)]));
    assert_eq!(bench.kinds(new)[2..], ["TimerFired", "WorkerAttached"]);
    assert_eq!(bench.activated(), [(old, 1), (new, 1)]);
    bench.commits(new, 4, fail());
    assert_eq!((bench.status(new), bench.successor(new)), (Some(RunStatus::Failed), None));
}

#[test]
fn a_run_that_times_out_without_a_worker_is_tried_again() {
    let mut bench = Bench::on(&store(), 1);
    let start = StartRun {
        namespace: "default".to_owned(),
        workflow_id: "w".to_owned(),
        workflow_type: "count".to_owned(),
        task_queue: "q".to_owned(),
        request_id: "r".to_owned(),
        run_timeout: Some(Duration::from_secs(5)),
        retry: Some(RetryPolicy::default()),
        ..StartRun::default()
    };
    bench.step(Input::Start { request: 1, start: Box::new(start) });
    let old = bench.store.run_ids_sync()[0];
    bench.signal(old, "a");
    bench.now = at(6);
    bench.step(Input::TimersDue(vec![(old, TimerKey::RUN_TIMEOUT)]));
    let new = bench.successor(old).expect("another attempt follows");
    assert_eq!(bench.status(old), Some(RunStatus::TimedOut));
    assert_eq!(bench.kinds(new), ["RunStarted", "SignalReceived"]);
    let started = bench.store.read_events_sync(new, 0, 1);
    let [everstep_core::Event { actor, body: EventBody::RunStarted(started), .. }] = &started[..] else {
        panic!("{started:?}")
    };
    assert_eq!((actor, started.origin.attempt), (&Actor::Run(old), 2));
}

#[test]
fn who_is_to_stop_a_run_that_goes_on_is_told_where() {
    let mut bench = Bench::on(&store(), 1);
    bench.worker(1);
    let old = bench.start(None);
    bench.commits(old, 2, next(Vec::new()));
    let new = bench.successor(old);
    let body = CommandBody::Terminate { reason: String::new() };
    let command = Command { id: CommandId::from_uuid(Uuid::from_u128(9)), actor: Actor::System, body };
    let (id, body) = (command.id, command.body);
    bench.step(Input::Command { request: 3, run: old, id, identity: String::new(), body });
    let answer = bench.out.iter().find_map(|o| match o {
        Output::Done { request: 3, result: Err(crate::Error::Rejected(rejection)) } => {
            Some(rejection.clone())
        }
        _ => None,
    });
    let closed = everstep_core::Rejection::RunClosed { status: RunStatus::Continued, successor: new };
    assert_eq!(answer, Some(closed));
}
