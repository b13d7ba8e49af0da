//! The world of one seed: its clock, its queue of things to come, its nodes, workers, clients and faults.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use everstep_core::{Duration, Epoch, Event, NodeId, OpId, QueueKey, RunId, SessionId, Timestamp};
use everstep_dispatch::{Delivery, TaskHint};
use everstep_engine::node::{Input, Node, NodeConfig, Output};
use everstep_engine::{Hello, WorkerIn, WorkerOut};
use everstep_store::{Append, Error, MemoryStore, Verdict};
use uuid::Uuid;

use crate::check;
use crate::client::{Ask, Client};
use crate::faults::{Dice, Rates};
use crate::verdict::Totals;
use crate::worker::{Act, Worker};

/// Database time of the world's beginning, in microseconds.
const EPOCH_US: i64 = 1_700_000_000_000_000;
const SWEEP_US: u64 = 1_000_000;
const LEASE: Duration = Duration::from_secs(6);
/// Faults stop here.
const HEAL_US: u64 = 60_000_000;
/// From then on, workers come back with another build so often.
const DEPLOY_US: u64 = 30_000_000;
/// Every run has to be closed by then.
const END_US: u64 = 400_000_000;
/// A world that does this much makes no progress.
const STEPS_MAX: u64 = 600_000;

pub(crate) fn from_db(at: Timestamp) -> u64 {
    u64::try_from(at.as_micros() - EPOCH_US).unwrap_or(0)
}

/// Something that will happen.
#[derive(Debug)]
enum Coming {
    ToNode {
        node: usize,
        life: u64,
        input: Box<Input>,
    },
    ToWorker {
        worker: usize,
        link: u64,
        message: WorkerOut,
    },
    Executed {
        worker: usize,
        life: u64,
        run: RunId,
        epoch: Epoch,
        step: OpId,
        attempt: u32,
        fails: bool,
    },
    Look {
        worker: usize,
        life: u64,
        run: RunId,
        epoch: Epoch,
    },
    Connect {
        worker: usize,
        life: u64,
    },
    Heartbeat {
        worker: usize,
        link: u64,
    },
    Sweep {
        node: usize,
        life: u64,
    },
    Timers {
        node: usize,
        life: u64,
    },
    ReviveNode {
        node: usize,
    },
    ReviveWorker {
        worker: usize,
    },
    Client {
        client: usize,
    },
    LateCommit {
        append: Box<Append>,
    },
    Hint {
        hint: TaskHint,
    },
    /// Every worker comes back with another build: what was blocked as poison is tried again.
    Deploy,
}

struct NodeSeat {
    node: Option<Node>,
    id: NodeId,
    life: u64,
    pulls: BTreeMap<QueueKey, usize>,
}

struct WorkerSeat {
    worker: Option<Worker>,
    life: u64,
    node: usize,
    link: u64,
    stalled_until: u64,
}

/// One seed's world.
pub(crate) struct World {
    pub(crate) seed: u64,
    loud: bool,
    dice: Dice,
    rates: Rates,
    now: Arc<AtomicU64>,
    pub(crate) store: Arc<MemoryStore>,
    coming: BTreeMap<(u64, u64), Coming>,
    order: u64,
    nodes: Vec<NodeSeat>,
    workers: Vec<WorkerSeat>,
    pub(crate) clients: Vec<Client>,
    hints: VecDeque<TaskHint>,
    /// When the last message on a stream arrives, each way: streams keep order.
    arrivals: BTreeMap<(u64, bool), u64>,
    next_link: u64,
    next_request: u64,
    asked: BTreeMap<u64, (usize, bool)>,
    executions: BTreeSet<(RunId, OpId, u32, Epoch)>,
    pub(crate) executed: BTreeMap<(RunId, OpId), u64>,
    pub(crate) checked: BTreeMap<RunId, usize>,
    pub(crate) totals: Totals,
}

impl World {
    pub(crate) fn new(seed: u64, loud: bool) -> Self {
        let mut dice = Dice::new(seed);
        let rates = Rates::draw(&mut dice);
        let now = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&now);
        let store = MemoryStore::new(move || {
            Timestamp::from_micros(EPOCH_US + i64::try_from(clock.load(Ordering::Relaxed)).unwrap_or(0))
        });
        let mut world = Self {
            seed,
            loud,
            rates,
            now,
            store: Arc::new(store),
            coming: BTreeMap::new(),
            order: 0,
            nodes: Vec::new(),
            workers: Vec::new(),
            clients: Vec::new(),
            hints: VecDeque::new(),
            arrivals: BTreeMap::new(),
            next_link: 0,
            next_request: 0,
            asked: BTreeMap::new(),
            executions: BTreeSet::new(),
            executed: BTreeMap::new(),
            checked: BTreeMap::new(),
            totals: Totals::default(),
            dice,
        };
        for i in 0..1 + world.dice.below(3) as usize {
            let id = NodeId::from_uuid(Uuid::from_u128(0xa000 + i as u128));
            world.nodes.push(NodeSeat { node: None, id, life: 0, pulls: BTreeMap::new() });
            world.at(0, Coming::ReviveNode { node: i });
        }
        for i in 0..1 + world.dice.below(3) as usize {
            world.workers.push(WorkerSeat { worker: None, life: 0, node: 0, link: 0, stalled_until: 0 });
            world.at(10, Coming::ReviveWorker { worker: i });
        }
        for n in 0..3 {
            world.at(HEAL_US + n * DEPLOY_US, Coming::Deploy);
        }
        for i in 0..1 + world.dice.below(6) as usize {
            let (program, fate) = (world.dice.number() >> 1, world.dice.below(8));
            world.clients.push(Client::new(i, program, fate == 0, fate == 1));
            let first = world.dice.below(20_000_000);
            world.at(first, Coming::Client { client: i });
        }
        world
    }

    fn us(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    pub(crate) fn db(&self) -> Timestamp {
        Timestamp::from_micros(EPOCH_US + i64::try_from(self.us()).unwrap_or(0))
    }

    fn at(&mut self, at_us: u64, coming: Coming) {
        self.order += 1;
        self.coming.insert((at_us.max(self.us()), self.order), coming);
    }

    fn soon(&mut self, coming: Coming) {
        let delay = 100 + self.dice.below(3_000);
        self.at(self.us() + delay, coming);
    }

    fn healed(&self) -> bool {
        self.us() >= HEAL_US
    }

    fn hit(&mut self, rate: f64) -> bool {
        // Drawn in any case, so that what follows does not depend on the rates.
        let chance = self.dice.chance(rate);
        chance && !self.healed()
    }

    /// Plays the world to its end.
    pub(crate) fn play(mut self) -> Totals {
        let mut steps = 0;
        while let Some(((at, _), coming)) = self.coming.pop_first() {
            self.now.store(at, Ordering::Relaxed);
            if self.loud {
                eprintln!("{:>12.6} {coming:?}", at as f64 / 1e6);
            }
            self.happen(coming);
            self.check_new_events();
            steps += 1;
            if self.is_over() {
                break;
            }
            if at > END_US || steps > STEPS_MAX {
                let seed = self.seed;
                panic!("seed {seed}: runs are stuck at {} s: {:?}", at / 1_000_000, self.stuck());
            }
        }
        self.check_end();
        let nodes = self.nodes.iter().filter_map(|n| n.node.as_ref()).map(Node::status);
        for status in nodes {
            self.totals.conflicts += status.conflicts;
            self.totals.fenced += status.fenced;
        }
        self.totals.re_executed = self.executed.values().map(|n| n - 1).sum();
        self.totals
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each thing that can come")]
    fn happen(&mut self, coming: Coming) {
        match coming {
            Coming::ToNode { node, life, input } => {
                if self.nodes[node].life == life {
                    self.step_node(node, *input);
                }
            }
            Coming::ToWorker { worker, link, message } => {
                let until = self.workers[worker].stalled_until;
                if until > self.us() {
                    // A stopped process reads its socket when it goes on.
                    return self.at(until, Coming::ToWorker { worker, link, message });
                }
                if self.workers[worker].link == link {
                    let now = self.us();
                    let acts = self.workers[worker]
                        .worker
                        .as_mut()
                        .map(|w| w.hear(message, now))
                        .unwrap_or_default();
                    self.act(worker, acts);
                }
            }
            Coming::Executed { worker, life, run, epoch, step, attempt, fails } => {
                let until = self.workers[worker].stalled_until;
                if until > self.us() {
                    let again = Coming::Executed { worker, life, run, epoch, step, attempt, fails };
                    return self.at(until, again);
                }
                if self.workers[worker].life == life {
                    let w = self.workers[worker].worker.as_mut();
                    let acts = w.map(|w| w.executed((run, epoch), step, attempt, fails)).unwrap_or_default();
                    self.act(worker, acts);
                }
            }
            Coming::Look { worker, life, run, epoch } => {
                let until = self.workers[worker].stalled_until;
                if until > self.us() {
                    return self.at(until, Coming::Look { worker, life, run, epoch });
                }
                if self.workers[worker].life == life {
                    let now = self.us();
                    let w = self.workers[worker].worker.as_mut();
                    let same = |w: &Worker| w.runs.get(&run).is_some_and(|h| h.epoch == epoch);
                    let acts = w.filter(|w| same(w)).map(|w| w.advance(run, now)).unwrap_or_default();
                    self.act(worker, acts);
                }
            }
            Coming::Connect { worker, life } => {
                if self.workers[worker].life == life {
                    self.connect(worker);
                }
            }
            Coming::Heartbeat { worker, link } => self.heartbeat(worker, link),
            Coming::Sweep { node, life } => self.sweep(node, life),
            Coming::Timers { node, life } => self.timers(node, life),
            Coming::ReviveNode { node } => self.revive_node(node),
            Coming::ReviveWorker { worker } => {
                let seat = &mut self.workers[worker];
                seat.worker = Some(Worker::default());
                let life = seat.life;
                self.soon(Coming::Connect { worker, life });
            }
            Coming::Client { client } => self.client(client),
            Coming::Deploy => {
                for worker in 0..self.workers.len() {
                    if self.workers[worker].link != 0 {
                        self.cut(worker);
                    }
                }
            }
            Coming::LateCommit { append } => {
                self.store.append_sync(vec![*append]);
            }
            Coming::Hint { hint } => {
                self.hints.push_back(hint);
                self.deliver_hints();
            }
        }
    }

    fn revive_node(&mut self, node: usize) {
        let seed = self.dice.number();
        let shared = self.nodes.len() > 1;
        let seat = &mut self.nodes[node];
        seat.life += 1;
        seat.pulls.clear();
        seat.node = Some(Node::new(NodeConfig {
            node_id: seat.id,
            lease: LEASE,
            shared,
            hints_shared: shared,
            seed,
        }));
        let life = seat.life;
        self.soon(Coming::Sweep { node, life });
        self.soon(Coming::Timers { node, life });
    }

    fn kill_node(&mut self, node: usize) {
        let Some(dead) = self.nodes[node].node.take() else { return };
        let status = dead.status();
        self.totals.conflicts += status.conflicts;
        self.totals.fenced += status.fenced;
        self.totals.nodes_died += 1;
        self.nodes[node].life += 1;
        for worker in 0..self.workers.len() {
            if self.workers[worker].node == node && self.workers[worker].link != 0 {
                self.cut(worker);
            }
        }
        let back = self.us() + 10_000 + self.dice.below(5_000_000);
        self.at(back, Coming::ReviveNode { node });
    }

    /// The worker's stream breaks; both sides notice.
    fn cut(&mut self, worker: usize) {
        let seat = &mut self.workers[worker];
        let (node, link, life) = (seat.node, seat.link, seat.life);
        seat.link = 0;
        let node_life = self.nodes[node].life;
        self.soon(Coming::ToNode { node, life: node_life, input: Box::new(Input::Disconnected { link }) });
        self.soon(Coming::Connect { worker, life });
    }

    fn connect(&mut self, worker: usize) {
        let alive: Vec<usize> = (0..self.nodes.len()).filter(|&n| self.nodes[n].node.is_some()).collect();
        let life = self.workers[worker].life;
        if alive.is_empty() {
            let again = self.us() + 200_000;
            return self.at(again, Coming::Connect { worker, life });
        }
        let node = alive[self.dice.below(alive.len() as u64) as usize];
        self.next_link += 1;
        let (link, now) = (self.next_link, self.us());
        let seat = &mut self.workers[worker];
        let Some(w) = &mut seat.worker else { return };
        if seat.link != 0 {
            return;
        }
        w.connected_us = now;
        w.welcomed = false;
        if w.session.is_some() && now >= w.renewed_us + w.lease_us {
            w.drop_all();
        }
        let hello = Hello {
            namespace: "default".into(),
            task_queues: vec!["default".into()],
            worker: everstep_core::WorkerInfo {
                identity: format!("w{worker}"),
                build_id: format!("build {}", now.saturating_sub(HEAL_US - DEPLOY_US) / DEPLOY_US),
            },
            run_slots: 4,
            resume: w.session,
            held: w.held(),
        };
        (seat.node, seat.link) = (node, link);
        self.send_up(worker, Input::Connect { link, hello });
        self.at(now + LEASE.as_micros() / 3, Coming::Heartbeat { worker, link });
    }

    /// A worker's message to its node: in order, a little later.
    fn send_up(&mut self, worker: usize, input: Input) {
        let (node, link) = (self.workers[worker].node, self.workers[worker].link);
        let at = self.arrival(link, true);
        let life = self.nodes[node].life;
        self.at(at, Coming::ToNode { node, life, input: Box::new(input) });
    }

    fn arrival(&mut self, link: u64, up: bool) -> u64 {
        let soon = self.us() + 50 + self.dice.below(2_000);
        let last = self.arrivals.entry((link, up)).or_default();
        *last = soon.max(*last + 1);
        *last
    }

    fn heartbeat(&mut self, worker: usize, link: u64) {
        let now = self.us();
        let seat = &mut self.workers[worker];
        if seat.link != link {
            return;
        }
        let Some(w) = &mut seat.worker else { return };
        if seat.stalled_until > now {
            let at = seat.stalled_until;
            return self.at(at, Coming::Heartbeat { worker, link });
        }
        if w.session.is_some() && now >= w.renewed_us + w.lease_us {
            w.drop_all();
            return self.cut(worker);
        }
        let number = now;
        w.sent.insert(number, now);
        self.send_up(worker, Input::FromWorker { link, message: WorkerIn::Heartbeat { number } });
        self.at(now + LEASE.as_micros() / 3, Coming::Heartbeat { worker, link });
    }

    fn act(&mut self, worker: usize, acts: Vec<Act>) {
        for act in acts {
            if self.hit(self.rates.worker_dies) {
                self.totals.workers_died += 1;
                let back = self.us() + self.dice.below(4_000_000);
                let seat = &mut self.workers[worker];
                seat.worker = None;
                seat.life += 1;
                let (node, link) = (seat.node, seat.link);
                seat.link = 0;
                let life = self.nodes[node].life;
                self.soon(Coming::ToNode { node, life, input: Box::new(Input::Disconnected { link }) });
                return self.at(back, Coming::ReviveWorker { worker });
            }
            if self.hit(self.rates.worker_stalls) {
                self.totals.workers_stalled += 1;
                // A stopped process stays stopped: nothing that comes later may overtake what it has not read.
                let until = self.us() + self.dice.below(12_000_000);
                let seat = &mut self.workers[worker];
                seat.stalled_until = seat.stalled_until.max(until);
            }
            if self.hit(self.rates.link_cut) && self.workers[worker].link != 0 {
                self.totals.links_cut += 1;
                self.cut(worker);
            }
            let life = self.workers[worker].life;
            match act {
                Act::Send(message) => {
                    let seat = &self.workers[worker];
                    let link = seat.link;
                    if link != 0 && seat.worker.as_ref().is_some_and(|w| w.welcomed) {
                        self.send_up(worker, Input::FromWorker { link, message });
                    }
                }
                Act::Execute { run, epoch, step, attempt, fails, after_us } => {
                    self.execute(run, epoch, step, attempt);
                    let at = (self.us() + after_us).max(self.workers[worker].stalled_until);
                    self.at(at, Coming::Executed { worker, life, run, epoch, step, attempt, fails });
                }
                Act::Later { run, epoch, at_us } => self.at(at_us, Coming::Look { worker, life, run, epoch }),
                Act::Reconnect => {
                    let seat = &mut self.workers[worker];
                    seat.link = 0;
                    self.soon(Coming::Connect { worker, life });
                }
            }
        }
    }

    /// The effect itself: this is what must not happen once its result is recorded.
    fn execute(&mut self, run: RunId, epoch: Epoch, step: OpId, attempt: u32) {
        let seed = self.seed;
        let history = self.store.read_events_sync(run, 0, usize::MAX);
        assert!(
            !check::step_ended(&history, step),
            "seed {seed}: {run} {step} runs after its end was recorded"
        );
        let first = self.executions.insert((run, step, attempt, epoch));
        assert!(first, "seed {seed}: {run} {step} attempt {attempt} runs twice under epoch {epoch}");
        *self.executed.entry((run, step)).or_default() += 1;
    }

    fn client(&mut self, client: usize) {
        let again = self.us() + 500_000 + self.dice.below(3_000_000);
        let alive: Vec<usize> = (0..self.nodes.len()).filter(|&n| self.nodes[n].node.is_some()).collect();
        let ask = self.clients[client].ask();
        if matches!(ask, Ask::Nothing) {
            return;
        }
        self.at(again, Coming::Client { client });
        // One question at a time: an unanswered one is asked again, of whoever is there.
        self.asked.retain(|_, (c, _)| *c != client);
        if alive.is_empty() {
            return;
        }
        let node = alive[self.dice.below(alive.len() as u64) as usize];
        self.next_request += 1;
        let request = self.next_request;
        let (input, is_start) = match ask {
            Ask::Start(start) => (Input::Start { request, start }, true),
            Ask::Command { run, id, body } => {
                (Input::Command { request, run, id, identity: "sim".into(), body }, false)
            }
            Ask::Nothing => return,
        };
        self.asked.insert(request, (client, is_start));
        let life = self.nodes[node].life;
        self.soon(Coming::ToNode { node, life, input: Box::new(input) });
    }

    fn step_node(&mut self, node: usize, input: Input) {
        let now = self.db();
        let Some(n) = &mut self.nodes[node].node else { return };
        let mut outputs = Vec::new();
        n.step(input, now, &mut outputs);
        for output in outputs {
            if self.hit(self.rates.node_dies) {
                return self.kill_node(node);
            }
            self.perform(node, output);
        }
    }

    fn feed(&mut self, node: usize, input: Input) {
        let life = self.nodes[node].life;
        self.soon(Coming::ToNode { node, life, input: Box::new(input) });
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each output")]
    fn perform(&mut self, node: usize, output: Output) {
        match output {
            Output::Started { request, result } => {
                if let Some((client, true)) = self.asked.remove(&request) {
                    self.clients[client].started(result);
                }
            }
            Output::Done { request, result } => {
                if let Some((client, false)) = self.asked.remove(&request) {
                    self.clients[client].answered(result);
                }
            }
            Output::Append { ticket, append, .. } => self.append(node, ticket, append),
            Output::Load { run, after, .. } => {
                let events = self.load(run, after);
                self.feed(node, Input::Loaded { run, after, events });
            }
            Output::LoadForStart { ticket, run } => {
                let events = self.load(run, 0);
                self.feed(node, Input::LoadedForStart { ticket, events });
            }
            Output::FindStart { ticket, namespace, workflow_id, request_id } => {
                let record = Ok(self.store.find_start_sync(&namespace, &workflow_id, &request_id));
                self.feed(node, Input::StartFound { ticket, record });
            }
            Output::ToWorker { link, message } => {
                if let Some(worker) = self.workers.iter().position(|w| w.link == link) {
                    let at = self.arrival(link, false);
                    self.at(at, Coming::ToWorker { worker, link, message });
                }
            }
            Output::CloseLink { link } => {
                if let Some(worker) = self.workers.iter().position(|w| w.link == link) {
                    self.cut(worker);
                }
            }
            Output::OpenSession { link, session } => {
                let until = Ok(self.store.open_session_sync(&session));
                self.feed(node, Input::SessionOpened { link, until });
            }
            Output::RenewSession { link, session, number, lease } => {
                let until = Ok(self.store.renew_session_sync(session, lease));
                self.feed(node, Input::SessionRenewed { link, number, until });
            }
            Output::CloseSession { session } => {
                self.store.close_session_sync(session);
            }
            Output::FindOwned { link, session } => {
                let runs = self.store.owned_runs_sync(session, None, usize::MAX);
                self.feed(node, Input::Owned { link, runs });
            }
            Output::FindBlocked { queue, build_id } => {
                let runs = self.store.blocked_runs_sync(&queue, &build_id, None, 1_000);
                self.feed(node, Input::Blocked { runs });
            }
            Output::Publish(hint) => self.publish(hint),
            Output::Pull { queue, max } => {
                self.nodes[node].pulls.insert(queue, max);
                self.deliver_hints();
            }
            Output::Notify(notice) => {
                for other in (0..self.nodes.len()).filter(|&n| n != node) {
                    if self.hit(self.rates.hint_lost) {
                        self.totals.hints_lost += 1;
                    } else {
                        self.feed(other, Input::Noticed(notice));
                    }
                }
            }
            Output::DeleteWakes(seen) => self.store.delete_wakes_sync(&seen),
            Output::TimersAt(at) => {
                let life = self.nodes[node].life;
                self.at(from_db(at), Coming::Timers { node, life });
            }
            Output::Ack(_)
            | Output::Opened(_)
            | Output::Dropped(_)
            | Output::Tail(..)
            | Output::RunStarted(_)
            | Output::RunClosed(_)
            | Output::ClosedElsewhere(..) => {}
        }
    }

    fn load(&mut self, run: RunId, after: u64) -> Result<Vec<Event>, Error> {
        if self.hit(self.rates.unavailable) {
            return Err(Error::Unavailable("sim".into()));
        }
        Ok(self.store.read_events_sync(run, after, usize::MAX))
    }

    fn append(&mut self, node: usize, ticket: u64, append: Append) {
        let unknown = || Verdict::Failed(Error::OutcomeUnknown("sim".into()));
        let verdict = if self.hit(self.rates.request_lost) {
            unknown()
        } else if self.hit(self.rates.unavailable) {
            Verdict::Failed(Error::Unavailable("sim".into()))
        } else if self.hit(self.rates.commit_late) {
            self.totals.commits_late += 1;
            let at = self.us() + self.dice.below(2_000_000);
            self.at(at, Coming::LateCommit { append: Box::new(append) });
            unknown()
        } else {
            let verdict = self.store.append_sync(vec![append]).verdicts.remove(0);
            if self.hit(self.rates.reply_lost) {
                self.totals.replies_lost += 1;
                unknown()
            } else {
                verdict
            }
        };
        self.feed(node, Input::Appended { ticket, verdict });
    }

    fn publish(&mut self, hint: TaskHint) {
        if self.hit(self.rates.hint_lost) {
            self.totals.hints_lost += 1;
            return;
        }
        let copies = if self.hit(self.rates.hint_doubled) { 3 } else { 1 };
        for _ in 0..copies {
            let late = if self.hit(self.rates.hint_late) { self.dice.below(15_000_000) } else { 0 };
            let at = self.us() + late + self.dice.below(2_000);
            self.at(at, Coming::Hint { hint: hint.clone() });
        }
    }

    fn deliver_hints(&mut self) {
        let mut waiting = std::mem::take(&mut self.hints);
        while let Some(hint) = waiting.pop_front() {
            let taker = (0..self.nodes.len())
                .filter(|&n| self.nodes[n].node.is_some() && self.nodes[n].pulls.contains_key(&hint.queue))
                .min_by_key(|&n| (n as u64 + self.order) % 3);
            let Some(node) = taker else {
                self.hints.push_back(hint);
                continue;
            };
            self.nodes[node].pulls.remove(&hint.queue);
            let queue = hint.queue.clone();
            let deliveries = vec![Delivery { hint, token: 1, attempt: 1 }];
            self.feed(node, Input::Delivered { queue, deliveries });
        }
    }

    fn sweep(&mut self, node: usize, life: u64) {
        if self.nodes[node].life != life {
            return;
        }
        let Some(n) = &self.nodes[node].node else { return };
        let queues = n.queues_with_credit();
        let closed: Vec<SessionId> = self.store.close_expired_sessions_sync(500);
        if !closed.is_empty() {
            self.feed(node, Input::SessionsClosed(closed));
        }
        let lost = self.store.lost_runs_sync(500);
        if !lost.is_empty() {
            self.feed(node, Input::RunsLost(lost));
        }
        let tasks = self.store.claim_tasks_sync(Some(&queues), 500);
        if !tasks.is_empty() {
            self.feed(node, Input::TasksFound(tasks));
        }
        if self.nodes.len() > 1 {
            let tasks = self.store.claim_tasks_sync(None, 500);
            if !tasks.is_empty() {
                self.feed(node, Input::TasksFound(tasks));
            }
            let wakes = self.store.stale_wakes_sync(self.nodes[node].id, Duration::from_secs(1), 500);
            if !wakes.is_empty() {
                self.feed(node, Input::WakesStale(wakes));
            }
        }
        let next = self.us() + SWEEP_US;
        self.at(next, Coming::Sweep { node, life });
        self.at(next, Coming::Timers { node, life });
    }

    fn timers(&mut self, node: usize, life: u64) {
        if self.nodes[node].life == life && self.nodes[node].node.is_some() {
            let claimed = self.store.claim_timers_sync(500, Duration::from_secs(10));
            if !claimed.due.is_empty() {
                self.feed(node, Input::TimersDue(claimed.due));
            }
        }
    }
}
