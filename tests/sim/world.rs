//! The world of one seed: its clocks, its queue of things to come, its clients, and what is done when they come.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use everstep_core::{
    CommandBody, CommandId, Doubt, DoubtPolicy, Duration, Epoch, NodeId, OpId, Resolution, RunId, Seq,
    Timestamp,
};
use everstep_dispatch::TaskHint;
use everstep_engine::node::{Input, Output};
use everstep_engine::{StepKey, WorkerOut};
use everstep_store::{Append, AppendReply};
use everstep_tests::program::{Build, Dice, Profile, Source};
use uuid::Uuid;

use crate::check::{Done, Watched};
use crate::client::{Ask, Client};
use crate::faults::Rates;
use crate::model::Attempt;
use crate::nodes::NodeSeat;
use crate::steps::Attempts;
use crate::store::SimStore;
use crate::updates::Updates;
use crate::verdict::Totals;
use crate::worker;
use crate::workers::WorkerSeat;

/// Database time of the world's beginning, in microseconds.
pub(crate) const EPOCH_US: i64 = 1_700_000_000_000_000;
pub(crate) const LEASE: Duration = Duration::from_secs(6);
/// Microseconds before the lease's end in which a worker starts nothing.
pub(crate) const MARGIN_US: u64 = 600_000;
/// Faults stop here.
pub(crate) const HEAL_US: u64 = 60_000_000;
/// From then on, an operator looks after blocked runs so often.
const OPERATOR_US: u64 = 15_000_000;
/// So often somebody looks after steps in doubt.
const RESOLVE_US: u64 = 4_000_000;
/// Every run has to be closed by then.
const END_US: u64 = 600_000_000;
/// How long a world goes on when all runs have ended: what comes late must change nothing.
const GRACE_US: u64 = 3_000_000;
/// A world that does this much makes no progress.
const STEPS_MAX: u64 = 600_000;
/// The database's clock is never further from where it began than this.
const CLOCK_OFF_MAX_US: i64 = 10_000_000;
/// The share of worlds in which nothing goes wrong.
const CALM: f64 = 0.14;
const NAMESPACES: [&str; 2] = ["default", "other"];

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Coming {
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
    WorkerReads {
        worker: usize,
    },
    Executed {
        worker: usize,
        life: u64,
        run: RunId,
        epoch: Epoch,
        attempt: Attempt,
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
        build: Build,
    },
    /// A client asks, and comes back if it is not done then.
    Client {
        client: usize,
    },
    /// A client asks at once, because its run does something now.
    Impatient {
        client: usize,
    },
    /// An append reaches the store, also one of a node that is gone.
    Commit {
        node: usize,
        life: u64,
        ticket: u64,
        append: Box<Append>,
    },
    Appended {
        node: usize,
        life: u64,
        ticket: u64,
        reply: AppendReply,
    },
    LateCommit {
        append: Box<Append>,
    },
    /// A question reaches the store.
    Ask {
        node: usize,
        life: u64,
        output: Box<Output>,
    },
    Hint {
        node: usize,
        hint: TaskHint,
    },
    /// The database's clock may be set.
    SetClock,
    /// Blocked runs get other code.
    Operator,
    /// A person looks after steps in doubt.
    Resolve,
    /// Somebody wants something of some run's code.
    Update,
    /// An attempt of a queued step ends.
    Worked {
        worker: usize,
        life: u64,
        key: StepKey,
    },
    /// A node looks for queued steps whose instant has come.
    StepClock {
        node: usize,
        life: u64,
    },
    Heal,
}

/// Where the story of a world goes.
#[derive(Clone, Debug, Default)]
pub(crate) enum Trace {
    #[default]
    Off,
    Loud,
    Keep(Rc<RefCell<Vec<String>>>),
}

/// One seed's world.
pub(crate) struct World {
    pub(crate) seed: u64,
    trace: Trace,
    pub(crate) dice: Dice,
    pub(crate) rates: Rates,
    /// Nothing goes wrong here: whatever is done has to be done without anything being found again.
    pub(crate) calm: bool,
    /// Nodes look for what was lost.
    pub(crate) sweeps: bool,
    /// Microseconds since the beginning, which no clock in the world can turn back.
    now: u64,
    /// The database's clock.
    db: Arc<AtomicI64>,
    db_off: i64,
    db_off_max: i64,
    /// Until then, leases have ended early because the database's clock was set forward.
    pub(crate) leases_unsound_until: u64,
    pub(crate) store: SimStore,
    coming: BTreeMap<(u64, u64), Coming>,
    order: u64,
    pub(crate) hints_shared: bool,
    pub(crate) nodes: Vec<NodeSeat>,
    pub(crate) workers: Vec<WorkerSeat>,
    pub(crate) clients: Vec<Client>,
    pub(crate) hints: Vec<(usize, TaskHint)>,
    /// When the last message on a stream arrives, each way: streams keep order.
    pub(crate) arrivals: BTreeMap<(u64, bool), u64>,
    pub(crate) next_link: u64,
    next_request: u64,
    pub(crate) asked: BTreeMap<u64, (usize, Ask)>,
    /// What a person has said of a step in doubt and was not answered yet.
    pub(crate) resolving: BTreeMap<u64, (RunId, CommandId)>,
    pub(crate) executions: BTreeSet<(RunId, OpId, u32, Epoch)>,
    pub(crate) executed: BTreeMap<(RunId, OpId), u64>,
    pub(crate) done: BTreeMap<RunId, Done>,
    /// The last event that each owner has been sent.
    pub(crate) told: BTreeMap<(RunId, Epoch), Seq>,
    pub(crate) watched: BTreeMap<RunId, Watched>,
    over_since: Option<u64>,
    pub(crate) updates: Updates,
    pub(crate) attempts: Attempts,
    pub(crate) totals: Totals,
}

impl World {
    pub(crate) fn new(seed: u64, trace: Trace) -> Self {
        worker::forget_programs();
        let mut dice = Dice::new(seed);
        let drawn = Rates::draw(&mut dice);
        let calm = dice.chance(CALM);
        let rates = if calm { Rates::default() } else { drawn };
        let db = Arc::new(AtomicI64::new(EPOCH_US));
        let clock = Arc::clone(&db);
        let read = move || Timestamp::from_micros(clock.load(Ordering::Relaxed));
        let store = SimStore::with_faults(read, dice.number(), rates);
        let mut world = Self {
            seed,
            trace,
            rates,
            calm,
            sweeps: true,
            now: 0,
            db,
            db_off: 0,
            db_off_max: 0,
            leases_unsound_until: 0,
            store,
            coming: BTreeMap::new(),
            order: 0,
            hints_shared: false,
            nodes: Vec::new(),
            workers: Vec::new(),
            clients: Vec::new(),
            hints: Vec::new(),
            arrivals: BTreeMap::new(),
            next_link: 0,
            next_request: 0,
            asked: BTreeMap::new(),
            resolving: BTreeMap::new(),
            executions: BTreeSet::new(),
            executed: BTreeMap::new(),
            done: BTreeMap::new(),
            told: BTreeMap::new(),
            watched: BTreeMap::new(),
            over_since: None,
            updates: Updates::default(),
            attempts: Attempts::default(),
            totals: Totals::default(),
            dice,
        };
        world.people();
        world
    }

    /// Nodes, workers and clients, as the seed has them.
    fn people(&mut self) {
        let nodes = 1 + self.dice.below(3) as usize;
        // Where all goes well, nothing waits for a sweep: half of these worlds have none.
        self.sweeps = !self.dice.chance(0.5) || !self.calm;
        self.hints_shared = (self.dice.chance(0.75) || self.calm) && nodes > 1;
        for i in 0..nodes {
            let id = NodeId::from_uuid(Uuid::from_u128(0xa000 + i as u128));
            self.nodes.push(NodeSeat::new(id));
            self.at(0, Coming::ReviveNode { node: i });
        }
        let namespaces = if self.dice.chance(0.6) { 2 } else { 1 };
        for namespace in &NAMESPACES[..namespaces] {
            self.limit_queue(namespace);
            for i in 0..1 + self.dice.below(4 - namespaces as u64) {
                let park_after_us = self.dice.below(3) * 500_000;
                let slots = self.slots(i == 0);
                self.workers.push(WorkerSeat::new(namespace, park_after_us, slots));
                let worker = self.workers.len() - 1;
                let build = if self.dice.chance(0.2) || self.calm { Build::B } else { Build::A };
                self.at(10, Coming::ReviveWorker { worker, build });
            }
        }
        for i in 0..1 + self.dice.below(6) as usize {
            let (program, wish_after) = (self.dice.number() >> 1, self.dice.below(100));
            let namespace = NAMESPACES[i % namespaces];
            let mut source = Source { seed: program, profile: Profile::Sim, generation: 0 };
            if self.calm && i == 0 && self.dice.chance(0.5) {
                source = source.widened();
            }
            self.clients.push(Client::new(namespace, i / namespaces, source, wish_after));
            let first = self.dice.below(20_000_000);
            self.at(first, Coming::Client { client: i });
        }
        self.at(1_000_000, Coming::SetClock);
        self.at(HEAL_US, Coming::Heal);
        self.at(HEAL_US + 1_000_000, Coming::Operator);
        self.at(RESOLVE_US, Coming::Resolve);
        // Not everywhere: an update also wakes runs that nothing else would.
        if self.dice.chance(0.5) {
            self.at(RESOLVE_US, Coming::Update);
        }
    }

    /// How many runs a worker takes at one time, and how many queued steps.
    fn slots(&mut self, first: bool) -> (u32, u32) {
        let steps = 1 + self.dice.below(4) as u32;
        let (no_runs, no_steps) = (self.dice.chance(0.2), self.dice.chance(0.4));
        // What waits for room is found by the sweep as well as by whoever makes it: where all goes well there is room.
        let runs = if self.calm { 200 } else { 4 };
        match first {
            true => (runs, steps),
            false if no_runs => (0, steps),
            false => (runs, if no_steps { 0 } else { steps }),
        }
    }

    pub(crate) fn us(&self) -> u64 {
        self.now
    }

    /// The greatest that the database's clock can have shown so far.
    pub(crate) fn db_max(&self) -> Timestamp {
        Timestamp::from_micros(EPOCH_US + self.now as i64 + self.db_off_max)
    }

    fn tick(&mut self, now: u64) {
        self.now = now;
        self.db.store(EPOCH_US + now as i64 + self.db_off, Ordering::Relaxed);
    }

    pub(crate) fn at(&mut self, at_us: u64, coming: Coming) {
        self.order += 1;
        self.coming.insert((at_us.max(self.us()), self.order), coming);
    }

    pub(crate) fn soon(&mut self, coming: Coming) {
        let delay = 50 + self.dice.below(2_000);
        self.at(self.us() + delay, coming);
    }

    pub(crate) fn hit(&mut self, rate: f64) -> bool {
        // Drawn in any case, so that what follows does not depend on the rates.
        let chance = self.dice.chance(rate);
        chance && self.us() < HEAL_US
    }

    pub(crate) fn fail(&self, problem: &str) -> ! {
        panic!("seed {}: at {:.6} s: {problem}", self.seed, self.us() as f64 / 1e6)
    }

    fn tell(&self, line: impl FnOnce() -> String) {
        let at = || format!("{:>12.6} ", self.us() as f64 / 1e6);
        match &self.trace {
            Trace::Off => {}
            Trace::Loud => eprintln!("{}{}", at(), line()),
            Trace::Keep(lines) => lines.borrow_mut().push(at() + &line()),
        }
    }

    /// Plays the world to its end.
    pub(crate) fn play(mut self) -> Totals {
        let mut steps = 0;
        while let Some(((at, _), coming)) = self.coming.pop_first() {
            self.tick(at);
            self.tell(|| format!("{coming:?}"));
            self.happen(coming);
            self.check_new_events();
            steps += 1;
            if self.is_over() {
                let since = *self.over_since.get_or_insert(at);
                if at > since + GRACE_US {
                    break;
                }
            }
            if at > END_US || steps > STEPS_MAX {
                self.fail(&format!("runs are stuck: {}", self.stuck().join("\n")));
            }
        }
        self.check_end();
        self.totals
    }

    fn happen(&mut self, coming: Coming) {
        match coming {
            Coming::ToNode { node, life, input } => {
                if self.nodes[node].life == life {
                    self.step_node(node, *input);
                }
            }
            Coming::Sweep { node, life } => self.sweep(node, life),
            Coming::Timers { node, life } => self.timers(node, life),
            Coming::ReviveNode { node } => self.revive_node(node),
            Coming::Commit { node, life, ticket, append } => self.commit(node, life, ticket, *append),
            Coming::Appended { node, life, ticket, reply } => self.appended(node, life, ticket, reply),
            Coming::LateCommit { append } => {
                self.store.commit(vec![*append]);
            }
            Coming::Ask { node, life, output } => {
                if self.nodes[node].life == life {
                    self.ask(node, *output);
                }
            }
            Coming::Hint { node, hint } => {
                self.hints.push((node, hint));
                self.deliver_hints();
            }
            Coming::ToWorker { worker, link, message } => self.worker_told(worker, link, message),
            Coming::WorkerReads { worker } => self.worker_reads(worker),
            Coming::Executed { worker, life, run, epoch, attempt } => {
                self.attempt_ended((worker, life), (run, epoch), attempt);
            }
            Coming::Look { worker, life, run, epoch } => self.worker_looks((worker, life), (run, epoch)),
            Coming::Connect { worker, life } => self.connect(worker, life),
            Coming::Heartbeat { worker, link } => self.heartbeat(worker, link),
            Coming::ReviveWorker { worker, build } => self.revive_worker(worker, build),
            Coming::Client { client } => self.client(client),
            Coming::Impatient { client } => self.client_asks(client),
            Coming::SetClock => self.set_clock(),
            Coming::Operator => self.operator(),
            Coming::Resolve => self.resolve(),
            Coming::Update => self.somebody_updates(),
            Coming::Worked { worker, life, key } => self.worked(worker, life, key),
            Coming::StepClock { node, life } => self.step_clock(node, life),
            Coming::Heal => self.store.heal(),
        }
    }

    /// The database's host sets its clock by some seconds, forward or back.
    fn set_clock(&mut self) {
        if self.hit(self.rates.clock_set) {
            let by = self.dice.below(10_000_000) as i64 - 5_000_000;
            self.db_off = (self.db_off + by).clamp(-CLOCK_OFF_MAX_US, CLOCK_OFF_MAX_US);
            self.db_off_max = self.db_off_max.max(self.db_off);
            self.totals.clocks_set += 1;
            if by > 0 {
                self.leases_unsound_until = self.us() + LEASE.as_micros();
            }
            self.tick(self.now);
            self.tell(|| format!("the database's clock is off by {} us", self.db_off));
        }
        if self.us() < HEAL_US {
            self.at(self.us() + 1_000_000, Coming::SetClock);
        }
    }

    /// Somebody looks after blocked runs: the workers of their namespace get the other build.
    fn operator(&mut self) {
        self.at(self.us() + OPERATOR_US, Coming::Operator);
        for namespace in NAMESPACES {
            let blocked: Vec<Build> = self
                .watched
                .values()
                .filter(|w| w.blocked.is_some() && w.run.start().namespace == namespace && w.is_open())
                .map(|w| Build::of(&w.run.row().build_id))
                .collect();
            if blocked.is_empty() {
                continue;
            }
            let build = match blocked[self.dice.below(blocked.len() as u64) as usize] {
                Build::A => Build::B,
                Build::B => Build::A,
            };
            self.totals.deploys += 1;
            self.deploy(namespace, build);
        }
    }

    /// Somebody says what became of steps in doubt, also of some that their code would see to.
    fn resolve(&mut self) {
        self.at(self.us() + RESOLVE_US, Coming::Resolve);
        let alive = self.alive();
        let open: Vec<(RunId, Doubt)> = self
            .watched
            .iter()
            .flat_map(|(run, watched)| watched.run.doubts().into_iter().map(|doubt| (*run, doubt)))
            .collect();
        for (run, doubt) in open {
            let asked = doubt.policy == DoubtPolicy::AskHuman;
            if alive.is_empty() || !self.dice.chance(if asked { 0.7 } else { 0.3 }) {
                continue;
            }
            let known = self.done.get(&run).and_then(|done| done.steps.get(&doubt.step));
            // Nobody can know the result of what never ran; and who says one says what the step would have.
            let result = known.filter(|_| asked && self.dice.chance(0.5)).and_then(|ran| ran.values().next());
            let result = result.cloned();
            let resolution = match result.filter(|_| !self.is_refused(run, &doubt)) {
                Some(result) => Resolution::Completed(result),
                None => Resolution::Retry,
            };
            let node = alive[self.dice.below(alive.len() as u64) as usize];
            self.next_request += 1;
            let request = self.next_request;
            let id = CommandId::from_uuid(Uuid::from_u128(u128::from(request) | (0xd0b7 << 100)));
            let attempt = if self.dice.chance(0.5) { doubt.attempt } else { 0 };
            let (step, note) = (doubt.step, "sim".to_owned());
            let body = CommandBody::ResolveStep { step, attempt, resolution, note };
            self.resolving.insert(request, (run, id));
            self.feed(node, Input::Command { request, run, id, identity: "sim".into(), body });
        }
    }

    fn is_refused(&self, run: RunId, doubt: &Doubt) -> bool {
        self.watched.get(&run).is_some_and(|watched| watched.is_refused(doubt))
    }

    fn client(&mut self, client: usize) {
        let again = self.us() + 500_000 + self.dice.below(3_000_000);
        if !self.clients[client].is_done() {
            self.at(again, Coming::Client { client });
            self.client_asks(client);
        }
    }

    /// A client whose run is busy may choose that moment.
    pub(crate) fn tempt_client(&mut self, run: RunId, within_us: u64) {
        let Some(client) = self.clients.iter().position(|c| c.run == Some(run) && !c.is_done()) else {
            return;
        };
        if self.dice.chance(if self.clients[client].is_eager() { 0.6 } else { 0.2 }) {
            let at = self.us() + self.dice.below(within_us + 6_000);
            self.at(at, Coming::Impatient { client });
        }
    }

    fn client_asks(&mut self, client: usize) {
        let alive = self.alive();
        let known = self.clients[client].present_run().and_then(|run| self.watched.get(&run));
        // It waits for the end of the run, too, and hears that its workflow goes on.
        if let Some(next) = known.and_then(|watched| watched.run.successor()) {
            self.clients[client].goes_on_in(next);
        }
        self.clients[client].take_turns();
        let ask = self.clients[client].ask();
        // One question at a time: an unanswered one is asked again, of whoever is there.
        self.asked.retain(|_, (c, _)| *c != client);
        if alive.is_empty() {
            return;
        }
        let node = alive[self.dice.below(alive.len() as u64) as usize];
        self.next_request += 1;
        let request = self.next_request;
        let input = match ask.clone() {
            Ask::Start(start) => Input::Start { request, start },
            Ask::Command { run, id, body } => {
                Input::Command { request, run, id, identity: "sim".into(), body }
            }
            Ask::Update { run, id } => return self.client_updates(client, node, (run, id)),
            Ask::Nothing => return,
        };
        if self.hit(self.rates.client_dies) {
            self.totals.clients_died += 1;
            self.clients[client].die();
        } else {
            self.asked.insert(request, (client, ask));
        }
        self.feed(node, input);
    }

    /// The number of a new request.
    pub(crate) fn request(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }

    fn is_over(&self) -> bool {
        self.watched.len() >= self.clients.len()
            && self.watched.values().all(|w| !w.is_open())
            && self.clients.iter().all(Client::is_done)
            && self.store.truth().outbox_sync().is_empty()
    }
}
