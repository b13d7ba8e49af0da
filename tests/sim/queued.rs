//! Queued steps by themselves: nodes that share a store and lose what it answers, and workers that run steps, die,
//! fall silent and come back. The runs are parked from the start; only their steps go on.
//!
//! What has to hold: an attempt runs once, whatever is lost; no more run at one time than the queue's limit; each end
//! in the log is that of an attempt that ran; and in the end every step has ended and no row is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use everstep_core::{
    Actor, Attach, Command, CommandBody, CommandId, CommitCommand, Duration, EventBody, Failure, NodeId,
    OpId, Payload, QueueKey, QueuedOptions, Run, RunId, SessionId, StartDecision, StartRun, StepEnd,
    StepScheduled, Timestamp, WorkerCommit, WorkerInfo, WriteBasis, decide, decide_start,
};
use everstep_dispatch::{Delivery, HintQueue, TaskHint};
use everstep_engine::node::{Input, Node, NodeConfig, Output, StepsIn, StepsOut};
use everstep_engine::{Hello, StepKey, StepOffer, StepSaid, WorkerIn, WorkerOut};
use everstep_store::{Append, AppendReply, QueueLimits, RunAppend, StartClaim, Steps as _, Verdict};
use everstep_tests::program::Dice;
use futures::FutureExt as _;
use uuid::Uuid;

use crate::faults::Rates;
use crate::store::SimStore;

const EPOCH_US: i64 = 1_700_000_000_000_000;
const LEASE: Duration = Duration::from_secs(5);
const HEAL_US: u64 = 60_000_000;
const END_US: u64 = 400_000_000;
const SEEDS: u64 = 60;
const STEPS: u32 = 6;
const LOOK_MAX: usize = 100;
const NODES: usize = 2;
const WORKERS: usize = 3;

/// What comes, for whom, and when.
enum Coming {
    ToNode { node: usize, life: u64, input: Box<Input> },
    Perform { node: usize, life: u64, output: Box<Output> },
    Reply { node: usize, life: u64, ticket: u64, reply: AppendReply },
    Late(Box<Append>),
    ToWorker { worker: usize, link: u64, message: Box<WorkerOut> },
    Connect { worker: usize, life: u64 },
    Heartbeat { worker: usize, link: u64 },
    Ran { worker: usize, life: u64, key: StepKey },
    Look { node: usize, life: u64 },
    Revive(usize),
    Chaos,
}

#[derive(Default)]
struct Place {
    node: Option<Node>,
    life: u64,
    pulls: BTreeSet<HintQueue>,
}

#[derive(Default)]
struct Worker {
    life: u64,
    node: usize,
    link: u64,
    session: Option<SessionId>,
    renewed_us: u64,
    beats: u64,
    running: BTreeSet<StepKey>,
    unacked: BTreeMap<StepKey, StepEnd>,
}

struct World {
    seed: u64,
    dice: Dice,
    rates: Rates,
    clock: Arc<AtomicI64>,
    store: SimStore,
    coming: BTreeMap<(u64, u64), Coming>,
    order: u64,
    us: u64,
    nodes: Vec<Place>,
    workers: Vec<Worker>,
    links: u64,
    arrivals: BTreeMap<(u64, bool), u64>,
    hints: Vec<TaskHint>,
    runs: Vec<RunId>,
    sessions: BTreeSet<SessionId>,
    /// How often each attempt ran.
    ran: BTreeMap<(RunId, OpId, u32), u32>,
    limit: usize,
}

fn fine<T, E: std::fmt::Debug>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error:?}"),
    }
}

fn queue() -> QueueKey {
    QueueKey { namespace: "default".to_owned(), task_queue: "video".to_owned() }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let rates = Rates { node_dies: 0.002, ..Rates::draw(&mut dice) };
        let clock = Arc::new(AtomicI64::new(EPOCH_US));
        let read = Arc::clone(&clock);
        let now = move || Timestamp::from_micros(read.load(Ordering::Relaxed));
        let store = SimStore::with_faults(now, dice.number(), rates);
        let limit = 2 + dice.below(4) as usize;
        let limits = QueueLimits { max_running: Some(limit as u32), ..QueueLimits::default() };
        let set = store.truth().set_queue_limits(&queue(), limits).now_or_never();
        assert!(matches!(set, Some(Ok(()))));
        let mut world = Self {
            seed,
            dice,
            rates,
            clock,
            store,
            coming: BTreeMap::new(),
            order: 0,
            us: 0,
            nodes: (0..NODES).map(|_| Place::default()).collect(),
            workers: (0..WORKERS).map(|_| Worker::default()).collect(),
            links: 0,
            arrivals: BTreeMap::new(),
            hints: Vec::new(),
            runs: Vec::new(),
            sessions: BTreeSet::new(),
            ran: BTreeMap::new(),
            limit,
        };
        (0..3).for_each(|n| world.begin_run(n));
        (0..NODES).for_each(|node| world.later(0, Coming::Revive(node)));
        (0..WORKERS).for_each(|worker| world.later(1_000, Coming::Connect { worker, life: 0 }));
        world.later(500_000, Coming::Chaos);
        world
    }

    /// A parked run whose workflow waits for its steps.
    fn begin_run(&mut self, n: u32) {
        let id = RunId::from_uuid(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0100 + u128::from(n)));
        let start = StartRun {
            namespace: "default".to_owned(),
            workflow_id: format!("run-{n}"),
            workflow_type: "order".to_owned(),
            task_queue: "default".to_owned(),
            request_id: format!("request-{n}"),
            ..StartRun::default()
        };
        let now = Timestamp::from_micros(EPOCH_US);
        let Ok(StartDecision::Start { event, .. }) = decide_start(&start, (id, 1), None, None, now) else {
            panic!("a start is fine")
        };
        let mut run = fine(Run::begin(id, &event));
        let mut events = vec![*event];
        let session = SessionId::from_uuid(Uuid::from_u128(7));
        let mut commands: Vec<CommitCommand> = (1..=STEPS).map(|step| self.schedule(step)).collect();
        commands.push(CommitCommand::Park);
        let commit = WorkerCommit { epoch: 1, number: 1, seen: 2, commands, ahead: None };
        for body in
            [CommandBody::Attach(Attach::by(session, WorkerInfo::default())), CommandBody::Commit(commit)]
        {
            let command = Command { id: CommandId::of_worker(id, 1, 1), actor: Actor::System, body };
            for event in fine(decide(&run, &command, now)).events {
                fine(run.apply(&event));
                events.push(event);
            }
        }
        let writes = WriteBasis::NEW.writes(&run, &events);
        let claim = StartClaim {
            namespace: start.namespace,
            workflow_id: start.workflow_id,
            expected: None,
            request_id: start.request_id,
            body_hash: [0; 32],
        };
        let append = RunAppend { run_id: id, start: Some(claim), events: Arc::new(events), writes };
        let reply = self.store.truth().append_sync(vec![Append::of(append)]);
        assert!(matches!(reply.verdicts[..], [Verdict::Committed]));
        self.runs.push(id);
    }

    fn schedule(&mut self, step: u32) -> CommitCommand {
        let secs = |n| Some(Duration::from_secs(n));
        let options = QueuedOptions {
            task_queue: queue().task_queue,
            priority: 1 + self.dice.below(5) as u8,
            start_to_close: self.dice.chance(0.3).then_some(Duration::from_secs(4)),
            schedule_to_start: if self.dice.chance(0.1) { secs(30) } else { None },
            ..QueuedOptions::default()
        };
        let (name, input) = ("transcode".to_owned(), Payload::json("1"));
        CommitCommand::ScheduleStep(Box::new(StepScheduled { step: OpId(step), name, input, options }))
    }

    fn later(&mut self, us: u64, coming: Coming) {
        self.order += 1;
        self.coming.insert((self.us + us, self.order), coming);
    }

    fn soon(&mut self, coming: Coming) {
        let us = 50 + self.dice.below(2_000);
        self.later(us, coming);
    }

    /// In order on each stream.
    fn arrives(&mut self, link: u64, up: bool, coming: Coming) {
        let soon = self.us + 50 + self.dice.below(2_000);
        let slow = if self.dice.chance(self.rates.link_slow) { self.dice.below(8_000_000) } else { 0 };
        let last = self.arrivals.entry((link, up)).or_default();
        *last = (soon + slow).max(*last + 1);
        let at = *last - self.us;
        self.later(at, coming);
    }

    fn feed(&mut self, node: usize, input: Input) {
        let life = self.nodes[node].life;
        self.soon(Coming::ToNode { node, life, input: Box::new(input) });
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.clock.load(Ordering::Relaxed))
    }

    fn play(&mut self) {
        while let Some(((us, _), coming)) = self.coming.pop_first() {
            if us > END_US {
                break;
            }
            if us >= HEAL_US && self.us < HEAL_US {
                self.store.heal();
                self.rates = Rates::default();
            }
            self.us = us;
            self.clock.store(EPOCH_US + us as i64, Ordering::Relaxed);
            self.happen(coming);
            let sessions: Vec<SessionId> = self.sessions.iter().copied().collect();
            let held = self.store.truth().claims_of_sync(&sessions).len();
            assert!(held <= self.limit, "seed {}: {held} run at one time, {} may", self.seed, self.limit);
        }
    }

    fn happen(&mut self, coming: Coming) {
        match coming {
            Coming::ToNode { node, life, input } if self.nodes[node].life == life => self.step(node, *input),
            Coming::Perform { node, life, output } if self.nodes[node].life == life => {
                self.ask(node, *output)
            }
            Coming::Reply { node, life, ticket, reply } if self.nodes[node].life == life => {
                let verdict = reply.verdicts.into_iter().next().unwrap_or(Verdict::Conflict);
                self.step(node, Input::Appended { ticket, verdict });
            }
            Coming::Late(append) => drop(self.store.commit(vec![*append])),
            Coming::ToWorker { worker, link, message } if self.workers[worker].link == link => {
                self.hear(worker, *message);
            }
            Coming::Connect { worker, life } if self.workers[worker].life == life => self.connect(worker),
            Coming::Heartbeat { worker, link } if self.workers[worker].link == link => self.heartbeat(worker),
            Coming::Ran { worker, life, key } if self.workers[worker].life == life => {
                self.finished(worker, key)
            }
            Coming::Look { node, life } if self.nodes[node].life == life => self.look(node),
            Coming::Revive(node) => self.revive(node),
            Coming::Chaos => self.chaos(),
            _ => {}
        }
    }

    fn revive(&mut self, node: usize) {
        let seed = self.dice.number();
        let place = &mut self.nodes[node];
        place.life += 1;
        place.pulls.clear();
        place.node = Some(Node::new(NodeConfig {
            node_id: NodeId::from_uuid(Uuid::from_u128(100 + node as u128)),
            lease: LEASE,
            shared: true,
            hints_shared: true,
            relays: false,
            seed,
        }));
        let life = place.life;
        self.soon(Coming::Look { node, life });
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node].node = None;
        self.nodes[node].life += 1;
        for worker in 0..WORKERS {
            if self.workers[worker].node == node && self.workers[worker].link != 0 {
                self.cut(worker);
            }
        }
        let back = 10_000 + self.dice.below(3_000_000);
        self.later(back, Coming::Revive(node));
    }

    fn cut(&mut self, worker: usize) {
        let Worker { node, link, life, .. } = self.workers[worker];
        self.workers[worker].link = 0;
        self.hang_up(node, link);
        self.soon(Coming::Connect { worker, life });
    }

    /// The node hears of the end of a stream after all that was said on it.
    fn hang_up(&mut self, node: usize, link: u64) {
        let (life, input) = (self.nodes[node].life, Box::new(Input::Disconnected { link }));
        self.arrives(link, true, Coming::ToNode { node, life, input });
    }

    fn chaos(&mut self) {
        if self.us >= HEAL_US {
            return;
        }
        for worker in 0..WORKERS {
            if self.dice.chance(0.05) {
                // The process dies with all that it runs, and another one takes its place.
                let (node, link) = (self.workers[worker].node, self.workers[worker].link);
                let life = self.workers[worker].life + 1;
                self.workers[worker] = Worker { life, ..Worker::default() };
                if link != 0 {
                    self.hang_up(node, link);
                }
                let back = self.dice.below(3_000_000);
                self.later(back, Coming::Connect { worker, life });
            } else if self.dice.chance(0.05) && self.workers[worker].link != 0 {
                self.cut(worker);
            }
        }
        self.later(300_000, Coming::Chaos);
    }

    fn step(&mut self, node: usize, input: Input) {
        let now = self.now();
        let Some(n) = &mut self.nodes[node].node else { return };
        let mut outputs = Vec::new();
        n.step(input, now, &mut outputs);
        for output in outputs {
            if self.dice.chance(self.rates.node_dies) {
                return self.kill(node);
            }
            self.perform(node, output);
        }
    }

    fn perform(&mut self, node: usize, output: Output) {
        let life = self.nodes[node].life;
        match output {
            Output::ToWorker { link, message } => {
                if let Some(worker) = self.workers.iter().position(|w| w.link == link) {
                    self.arrives(link, false, Coming::ToWorker { worker, link, message: Box::new(message) });
                }
            }
            Output::CloseLink { link } => {
                if let Some(worker) = self.workers.iter().position(|w| w.link == link) {
                    self.cut(worker);
                }
            }
            Output::Publish(hint) if !self.dice.chance(self.rates.hint_lost) => {
                self.hints.push(hint);
                self.deliver();
            }
            Output::Pull { queue, .. } => {
                self.nodes[node].pulls.insert(queue);
                self.deliver();
            }
            Output::Steps(StepsOut::WaitingAt { queue, at }) => {
                let input = Box::new(Input::Steps(StepsIn::Waiting(queue)));
                let wait = at.since(self.now()).as_micros();
                self.later(wait, Coming::ToNode { node, life, input });
            }
            Output::Steps(StepsOut::DueAt(at)) => {
                let wait = at.since(self.now()).as_micros().min(1_000_000);
                self.later(wait, Coming::Look { node, life });
            }
            Output::Append { delay, .. } | Output::Load { delay, .. } => {
                let wait = delay.as_micros() as u64 + 50 + self.dice.below(2_000);
                self.later(wait, Coming::Perform { node, life, output: Box::new(output) });
            }
            Output::OpenSession { .. }
            | Output::RenewSession { .. }
            | Output::CloseSession { .. }
            | Output::FindOwned { .. }
            | Output::Steps(_) => self.soon(Coming::Perform { node, life, output: Box::new(output) }),
            _ => {}
        }
    }

    fn deliver(&mut self) {
        while let Some((at, node)) = self.hints.iter().enumerate().find_map(|(at, hint)| {
            let wants = |p: &Place| p.node.is_some() && p.pulls.contains(&hint.place());
            Some((at, self.nodes.iter().position(wants)?))
        }) {
            let hint = self.hints.swap_remove(at);
            let queue = hint.place();
            self.nodes[node].pulls.remove(&queue);
            self.feed(
                node,
                Input::Delivered { queue, deliveries: vec![Delivery { hint, token: 1, attempt: 1 }] },
            );
        }
    }

    /// A question to the store, and its answer.
    fn ask(&mut self, node: usize, output: Output) {
        let life = self.nodes[node].life;
        let input = match output {
            Output::Append { ticket, append, .. } => {
                let settled = self.store.submit(append);
                if let Some(late) = settled.late {
                    let wait = self.dice.below(2_000_000);
                    self.later(wait, Coming::Late(Box::new(late)));
                }
                return self.soon(Coming::Reply { node, life, ticket, reply: settled.reply });
            }
            Output::Load { run, after, .. } => Input::Loaded {
                run,
                after,
                events: self.store.ask(|s| s.read_events_sync(run, after, usize::MAX)),
            },
            Output::OpenSession { link, session } => {
                self.sessions.insert(session.session_id);
                Input::SessionOpened { link, until: self.store.ask(|s| s.open_session_sync(&session)) }
            }
            Output::RenewSession { link, session, number, lease } => {
                let until = self.store.ask(|s| s.renew_session_sync(session, lease));
                Input::SessionRenewed { link, number, until }
            }
            Output::CloseSession { session } => {
                let _ = self.store.ask(|s| s.close_session_sync(session));
                return;
            }
            Output::FindOwned { link, session } => {
                Input::Owned { link, runs: self.store.ask(|s| s.owned_runs_sync(session, None, usize::MAX)) }
            }
            Output::Steps(steps) => match self.store.answer_steps(steps) {
                Some(input) => Input::Steps(input),
                None => return,
            },
            _ => return,
        };
        self.feed(node, input);
    }

    /// One pass of a node's sweep and step clock.
    fn look(&mut self, node: usize) {
        let life = self.nodes[node].life;
        if self.nodes[node].node.is_none() {
            return;
        }
        self.later(1_000_000, Coming::Look { node, life });
        let closed = self.store.ask(|s| s.close_expired_sessions_sync(LOOK_MAX));
        if let Some(closed) = closed.ok().filter(|closed| !closed.is_empty()) {
            self.feed(node, Input::SessionsClosed(closed));
        }
        if let Ok(lost) = self.store.ask(|s| s.lost_steps_sync(LOOK_MAX)) {
            self.feed(node, Input::Steps(StepsIn::Lost(lost)));
        }
        if let Ok(found) = self.store.ask(|s| s.due_steps_sync(LOOK_MAX, Duration::from_secs(2))) {
            self.feed(node, Input::Steps(StepsIn::Due(found.due)));
        }
        self.feed(node, Input::Steps(StepsIn::Look));
    }

    fn send(&mut self, worker: usize, message: WorkerIn) {
        let Worker { node, link, .. } = self.workers[worker];
        let (life, input) = (self.nodes[node].life, Box::new(Input::FromWorker { link, message }));
        self.arrives(link, true, Coming::ToNode { node, life, input });
    }

    fn connect(&mut self, worker: usize) {
        let alive: Vec<usize> = (0..NODES).filter(|n| self.nodes[*n].node.is_some()).collect();
        let life = self.workers[worker].life;
        if self.workers[worker].link != 0 {
            return;
        }
        if alive.is_empty() {
            return self.later(200_000, Coming::Connect { worker, life });
        }
        self.links += 1;
        let (node, link, us) = (alive[self.dice.below(alive.len() as u64) as usize], self.links, self.us);
        self.drop_late(worker);
        let w = &mut self.workers[worker];
        (w.node, w.link) = (node, link);
        let held = w.running.iter().chain(w.unacked.keys()).copied().collect();
        let offer = StepOffer { types: vec!["transcode".to_owned()], slots: 3, per_second: 0.0, held };
        let hello = Hello {
            namespace: "default".to_owned(),
            task_queues: vec![queue().task_queue],
            worker: WorkerInfo { identity: format!("w{worker}"), build_id: "A".to_owned() },
            steps: Some(offer),
            resume: w.session,
            ..Hello::default()
        };
        // The lease counts from when it was asked for.
        w.renewed_us = us;
        let (life, input) =
            (self.nodes[node].life, Box::new(Input::Connect { link, hello: Box::new(hello) }));
        self.arrives(link, true, Coming::ToNode { node, life, input });
        self.later(LEASE.as_micros() / 3, Coming::Heartbeat { worker, link });
    }

    /// A worker whose lease has run out lets go of everything.
    fn drop_late(&mut self, worker: usize) {
        let w = &mut self.workers[worker];
        if w.session.is_some() && self.us >= w.renewed_us + LEASE.as_micros() {
            w.session = None;
            w.running.clear();
            w.unacked.clear();
        }
    }

    fn heartbeat(&mut self, worker: usize) {
        self.drop_late(worker);
        let w = &mut self.workers[worker];
        if w.session.is_none() {
            return self.cut(worker);
        }
        w.beats += 1;
        let (number, link) = (w.beats, w.link);
        if !self.dice.chance(self.rates.heartbeat_lost) {
            self.workers[worker].renewed_us = self.us;
            self.send(worker, WorkerIn::Heartbeat { number });
        }
        self.later(LEASE.as_micros() / 3, Coming::Heartbeat { worker, link });
    }

    fn hear(&mut self, worker: usize, message: WorkerOut) {
        let w = &mut self.workers[worker];
        match message {
            WorkerOut::Welcome { session_id, resumed, .. } => {
                w.session = Some(session_id);
                if !resumed {
                    w.running.clear();
                    w.unacked.clear();
                }
                let again: Vec<(StepKey, StepEnd)> = w.unacked.iter().map(|(k, e)| (*k, e.clone())).collect();
                again.into_iter().for_each(|(key, end)| self.say(worker, key, end));
            }
            WorkerOut::StepTask(given) => {
                let times =
                    self.ran.entry((given.key.run_id, given.key.step, given.key.attempt)).or_default();
                *times += 1;
                assert!(*times == 1, "seed {}: {:?} runs twice", self.seed, given.key);
                w.running.insert(given.key);
                let (life, long) = (w.life, self.dice.chance(0.2));
                let takes = self.dice.below(if long { 8_000_000 } else { 500_000 });
                self.later(takes, Coming::Ran { worker, life, key: given.key });
            }
            WorkerOut::StepCancel { run_id, step, attempt, gone: true } => {
                w.running.retain(|k| (k.run_id, k.step, k.attempt) != (run_id, step, attempt));
            }
            WorkerOut::StepAsk(key) if !w.running.contains(&key) && !w.unacked.contains_key(&key) => {
                let said = StepSaid::Returned;
                self.send(worker, WorkerIn::StepSaid { key, said, details: None });
            }
            WorkerOut::StepAck { key, .. } => drop(w.unacked.remove(&key)),
            WorkerOut::SessionClosed { .. } => {
                w.session = None;
                w.running.clear();
                w.unacked.clear();
                self.cut(worker);
            }
            _ => {}
        }
    }

    fn finished(&mut self, worker: usize, key: StepKey) {
        self.drop_late(worker);
        if !self.workers[worker].running.remove(&key) {
            return;
        }
        let end = match self.dice.chance(0.2) {
            true => StepEnd::Failed(Failure::new("Flaky", "try again")),
            false => StepEnd::Completed(Payload::json(key.attempt.to_string())),
        };
        self.workers[worker].unacked.insert(key, end.clone());
        if self.workers[worker].link != 0 {
            self.say(worker, key, end);
        }
    }

    fn say(&mut self, worker: usize, key: StepKey, end: StepEnd) {
        let said = StepSaid::Ended(end, Duration::from_millis(1));
        self.send(worker, WorkerIn::StepSaid { key, said, details: None });
    }

    fn check(&self) -> (usize, usize) {
        let (mut ended, mut lost) = (0, 0);
        for id in &self.runs {
            let history = self.store.truth().read_events_sync(*id, 0, usize::MAX);
            let Some(run) = fine(Run::fold(*id, &history)) else { panic!("run {id} has no history") };
            let Some(tables) = self.store.truth().run_tables_sync(*id) else { panic!("run {id} has no row") };
            assert_eq!(run.projection(), tables.projection, "seed {}", self.seed);
            assert!(!run.has_queued_steps(), "seed {}: run {id} still has {:?}", self.seed, run.step_tasks());
            for event in &history {
                match &event.body {
                    EventBody::StepCompleted { step, attempt, .. } => {
                        ended += 1;
                        let ran = self.ran.contains_key(&(*id, *step, *attempt));
                        assert!(ran, "seed {}: attempt {attempt} of {step} of {id} never ran", self.seed);
                    }
                    EventBody::StepFailed { failure, retry_at, .. } => {
                        ended += usize::from(retry_at.is_none());
                        lost += usize::from(failure.kind == "WorkerLost");
                    }
                    _ => {}
                }
            }
        }
        assert_eq!(ended, self.runs.len() * STEPS as usize, "seed {}: each step ends once", self.seed);
        (ended, lost)
    }
}

/// The world of a seed; gives how many attempts were lost.
fn play(seed: u64) -> usize {
    let mut world = World::new(seed);
    world.play();
    world.check().1
}

#[test]
fn every_queued_step_ends_once_whatever_is_lost() {
    let lost: usize = (0..SEEDS).map(play).sum();
    // A world in which no worker was lost proves little.
    assert!(lost > 0);
}
