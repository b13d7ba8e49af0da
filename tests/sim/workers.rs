//! The world's workers: their streams, and what a seed does to their processes.

use std::collections::VecDeque;

use everstep_core::{Epoch, EventBody, RunId, WorkerInfo};
use everstep_engine::node::Input;
use everstep_engine::{Hello, WorkerIn, WorkerOut};
use everstep_tests::program::{Build, WORKFLOW_TYPE};

use crate::model::Attempt;
use crate::worker::{Act, Worker, result_of};
use crate::world::{Coming, HEAL_US, LEASE, World};

/// How long a worker waits to be greeted.
const WELCOME_US: u64 = 1_500_000;

/// A place for a worker, and the process that fills it now.
pub(crate) struct WorkerSeat {
    namespace: &'static str,
    park_after_us: u64,
    /// Runs that it takes at one time; 0 for one that runs queued steps only.
    run_slots: u32,
    step_slots: u32,
    pub(crate) worker: Option<Worker>,
    /// Counts processes: what was meant for an earlier one reaches nobody.
    pub(crate) life: u64,
    pub(crate) node: usize,
    /// Its stream, or 0.
    pub(crate) link: u64,
    pub(crate) stalled_until: u64,
    /// When it goes on, it reads its socket this much later than it looks at its own affairs.
    reads_after: u64,
    inbox: VecDeque<(u64, WorkerOut)>,
}

impl WorkerSeat {
    pub(crate) fn new(namespace: &'static str, park_after_us: u64, slots: (u32, u32)) -> Self {
        let (run_slots, step_slots) = slots;
        Self {
            namespace,
            park_after_us,
            run_slots,
            step_slots,
            worker: None,
            life: 0,
            node: 0,
            link: 0,
            stalled_until: 0,
            reads_after: 0,
            inbox: VecDeque::new(),
        }
    }

    fn has_code(&self) -> bool {
        self.run_slots > 0
    }
}

impl World {
    pub(crate) fn revive_worker(&mut self, worker: usize, build: Build) {
        let seat = &mut self.workers[worker];
        seat.worker = Some(Worker::new(build, seat.park_after_us, seat.step_slots));
        let life = seat.life;
        self.soon(Coming::Connect { worker, life });
    }

    /// When a stopped process goes on, if it is stopped now.
    pub(crate) fn stalled(&self, worker: usize) -> Option<u64> {
        let until = self.workers[worker].stalled_until;
        (until > self.us()).then_some(until)
    }

    /// A message has reached the worker's host; the process reads it when it can.
    pub(crate) fn worker_told(&mut self, worker: usize, link: u64, message: WorkerOut) {
        self.workers[worker].inbox.push_back((link, message));
        self.worker_reads(worker);
    }

    /// Reads one message, the oldest. There is one call for each, so that a stop in between changes no order.
    pub(crate) fn worker_reads(&mut self, worker: usize) {
        let now = self.us();
        let seat = &mut self.workers[worker];
        let from = seat.stalled_until + seat.reads_after;
        if from > now {
            return self.at(from, Coming::WorkerReads { worker });
        }
        let Some((link, message)) = seat.inbox.pop_front() else { return };
        if seat.link == link {
            let acts = seat.worker.as_mut().map(|w| w.hear(message, now)).unwrap_or_default();
            self.act(worker, acts);
        }
    }

    pub(crate) fn attempt_ended(
        &mut self,
        (worker, life): (usize, u64),
        (run, epoch): (RunId, Epoch),
        attempt: Attempt,
    ) {
        if let Some(until) = self.stalled(worker) {
            return self.at(until, Coming::Executed { worker, life, run, epoch, attempt });
        }
        let now = self.us();
        let seat = &mut self.workers[worker];
        if seat.life == life {
            let ended = seat.worker.as_mut().map(|w| w.executed(run, epoch, &attempt, now));
            self.act(worker, ended.unwrap_or_default());
        }
    }

    pub(crate) fn worker_looks(&mut self, (worker, life): (usize, u64), (run, epoch): (RunId, Epoch)) {
        if let Some(until) = self.stalled(worker) {
            return self.at(until, Coming::Look { worker, life, run, epoch });
        }
        let now = self.us();
        let seat = &mut self.workers[worker];
        let holds = |w: &Worker| w.runs.get(&run).is_some_and(|h| h.epoch == epoch);
        if seat.life == life {
            let acts = seat.worker.as_mut().filter(|w| holds(w)).map(|w| w.look(run, now));
            self.act(worker, acts.unwrap_or_default());
        }
    }

    /// The worker's stream breaks; both sides notice.
    pub(crate) fn cut(&mut self, worker: usize) {
        let seat = &mut self.workers[worker];
        let (node, link, life) = (seat.node, seat.link, seat.life);
        seat.link = 0;
        self.feed(node, Input::Disconnected { link });
        self.soon(Coming::Connect { worker, life });
    }

    pub(crate) fn connect(&mut self, worker: usize, life: u64) {
        if self.workers[worker].life != life {
            return;
        }
        let alive = self.alive();
        if alive.is_empty() {
            let again = self.us() + 200_000;
            return self.at(again, Coming::Connect { worker, life });
        }
        let node = alive[self.dice.below(alive.len() as u64) as usize];
        let (link, now) = (self.next_link + 1, self.us());
        let seat = &mut self.workers[worker];
        let has_code = seat.has_code();
        let Some(w) = &mut seat.worker else { return };
        if seat.link != 0 {
            return;
        }
        self.next_link = link;
        w.connected_us = now;
        w.welcomed = false;
        if w.is_late(now) {
            w.drop_all();
        }
        let hello = Hello {
            namespace: seat.namespace.to_owned(),
            task_queues: vec!["default".to_owned()],
            workflow_types: has_code.then(|| WORKFLOW_TYPE.to_owned()).into_iter().collect(),
            asks: has_code,
            worker: WorkerInfo { identity: format!("w{worker}"), build_id: w.build_id().to_owned() },
            run_slots: seat.run_slots,
            steps: w.hands.offer(),
            resume: w.session,
            held: w.held(),
            ..Hello::default()
        };
        (seat.node, seat.link) = (node, link);
        for held in &hello.held {
            self.note_told(held.run_id, held.epoch, held.seen);
        }
        self.send_up(worker, Input::Connect { link, hello: Box::new(hello) });
        self.at(now + LEASE.as_micros() / 3, Coming::Heartbeat { worker, link });
    }

    /// A worker's message to its node: in order, a little later.
    fn send_up(&mut self, worker: usize, input: Input) {
        let (node, link) = (self.workers[worker].node, self.workers[worker].link);
        if self.hit(self.rates.link_slow) {
            self.totals.links_slow += 1;
            let at = self.us() + self.dice.below(12_000_000);
            let last = self.arrivals.entry((link, true)).or_default();
            *last = at.max(*last);
        }
        let at = self.arrival(link, true);
        let life = self.nodes[node].life;
        self.at(at, Coming::ToNode { node, life, input: Box::new(input) });
    }

    pub(crate) fn arrival(&mut self, link: u64, up: bool) -> u64 {
        let soon = self.us() + 50 + self.dice.below(2_000);
        let last = self.arrivals.entry((link, up)).or_default();
        *last = soon.max(*last + 1);
        *last
    }

    pub(crate) fn heartbeat(&mut self, worker: usize, link: u64) {
        let now = self.us();
        if self.workers[worker].link != link {
            return;
        }
        if let Some(until) = self.stalled(worker) {
            return self.at(until, Coming::Heartbeat { worker, link });
        }
        let lost = self.hit(self.rates.heartbeat_lost);
        let Some(w) = &mut self.workers[worker].worker else { return };
        let over = w.is_late(now);
        if over {
            w.drop_all();
        }
        // Somebody else may be quicker to greet it; its Hello arrives all the same.
        let ignored = !w.welcomed && now > w.connected_us + WELCOME_US;
        if over || ignored {
            return self.cut(worker);
        }
        self.at(now + LEASE.as_micros() / 3, Coming::Heartbeat { worker, link });
        if lost {
            self.totals.heartbeats_lost += 1;
            return;
        }
        if let Some(w) = &mut self.workers[worker].worker {
            w.sent.insert(now, now);
        }
        self.send_up(worker, Input::FromWorker { link, message: WorkerIn::Heartbeat { number: now } });
    }

    /// The process ends; another one, of `build`, takes its place after a while.
    fn kill_worker(&mut self, worker: usize, build: Build) {
        let back = self.us() + self.dice.below(4_000_000);
        let seat = &mut self.workers[worker];
        seat.worker = None;
        seat.life += 1;
        seat.stalled_until = 0;
        let (node, link) = (seat.node, seat.link);
        seat.link = 0;
        self.feed(node, Input::Disconnected { link });
        self.at(back, Coming::ReviveWorker { worker, build });
    }

    /// Every worker of a namespace comes back with another build, some after a word of goodbye.
    pub(crate) fn deploy(&mut self, namespace: &str, build: Build) {
        for worker in 0..self.workers.len() {
            let seat = &self.workers[worker];
            if seat.namespace != namespace || seat.worker.is_none() {
                continue;
            }
            let link = seat.link;
            if link != 0 && self.dice.chance(0.5) {
                self.send_up(worker, Input::FromWorker { link, message: WorkerIn::Goodbye });
            }
            self.kill_worker(worker, build);
        }
    }

    pub(crate) fn act(&mut self, worker: usize, acts: Vec<Act>) {
        for act in acts {
            if self.misfortune(worker) {
                return;
            }
            let life = self.workers[worker].life;
            match act {
                Act::Send(message) => {
                    let seat = &self.workers[worker];
                    let link = seat.link;
                    if link != 0 && seat.worker.as_ref().is_some_and(|w| w.welcomed) {
                        self.note_asked(&message);
                        self.note_agreed(&message);
                        self.note_said(&message);
                        self.send_up(worker, Input::FromWorker { link, message });
                    }
                }
                Act::Execute { run, epoch, attempt } => {
                    self.execute(run, epoch, &attempt);
                    self.tempt_client(run, attempt.step.slow_us);
                    let at = (self.us() + attempt.step.slow_us).max(self.workers[worker].stalled_until);
                    self.at(at, Coming::Executed { worker, life, run, epoch, attempt });
                }
                Act::Work { key, queued, before } => {
                    self.work_begins(key, &queued, &before);
                    self.works(worker, life, key, &queued);
                }
                Act::Later { run, epoch, at_us } => self.at(at_us, Coming::Look { worker, life, run, epoch }),
                Act::Reconnect => {
                    self.workers[worker].link = 0;
                    self.soon(Coming::Connect { worker, life });
                }
            }
        }
    }

    /// What can happen to a worker between any two things that it does. True when that was its end.
    fn misfortune(&mut self, worker: usize) -> bool {
        if self.hit(self.rates.worker_dies) {
            self.totals.workers_died += 1;
            let old = self.workers[worker].worker.as_ref().map_or(Build::A, |w| w.build);
            let build = match (old, self.hit(self.rates.build_changes)) {
                (Build::A, true) | (Build::B, false) => Build::B,
                (Build::B, true) | (Build::A, false) => Build::A,
            };
            self.kill_worker(worker, build);
            return true;
        }
        if self.hit(self.rates.worker_stalls) {
            self.totals.workers_stalled += 1;
            // A stopped process stays stopped: nothing that comes later may overtake what it has not read.
            let until = self.us() + self.dice.below(12_000_000);
            let reads_after = self.dice.below(4_000);
            let seat = &mut self.workers[worker];
            if until > seat.stalled_until {
                (seat.stalled_until, seat.reads_after) = (until, reads_after);
            }
        }
        if self.hit(self.rates.link_cut) && self.workers[worker].link != 0 {
            self.totals.links_cut += 1;
            self.cut(worker);
        }
        false
    }

    fn note_asked(&mut self, message: &WorkerIn) {
        let WorkerIn::Commit { run_id, commit } = message else { return };
        for command in &commit.commands {
            if let everstep_core::CommitCommand::StartTimer { timer, delay } = command {
                self.done.entry(*run_id).or_default().timers.insert(*timer, delay.as_micros());
            }
        }
    }

    /// The start of a guarded attempt stands in the log.
    fn is_durable(&self, run: RunId, epoch: Epoch, wanted: &Attempt) -> bool {
        let history = self.store.truth().read_events_sync(run, 0, usize::MAX);
        history.iter().filter(|e| e.epoch == epoch).any(|e| match &e.body {
            EventBody::StepStarted { step, attempt, in_doubt: Some(_), .. } => {
                (*step, *attempt) == (wanted.id, wanted.attempt)
            }
            _ => false,
        })
    }

    /// The effect itself: this is what must not happen once its result is recorded.
    fn execute(&mut self, run: RunId, epoch: Epoch, attempt: &Attempt) {
        let (id, number) = (attempt.id, attempt.attempt);
        // Leases are counted by the database's clock. Setting it forward ends them early, which is said in the
        // operator's manual; nothing else may.
        let sound = self.us() >= self.leases_unsound_until || self.us() >= HEAL_US;
        if sound && self.watched.get(&run).is_some_and(|w| w.ended.contains_key(&id)) {
            self.fail(&format!("{run} {id} runs after its end was recorded"));
        }
        if !self.executions.insert((run, id, number, epoch)) {
            self.fail(&format!("{run} {id} attempt {number} runs twice under epoch {epoch}"));
        }
        if attempt.guard.is_some() && !self.is_durable(run, epoch, attempt) {
            self.fail(&format!(
                "{run} {id} attempt {number} is guarded, and runs before its start is recorded"
            ));
        }
        *self.executed.entry((run, id)).or_default() += 1;
        let nonce = attempt.step.nonce.clone();
        let versioned = self.watched.get(&run).is_some_and(|w| w.is_versioned());
        let ran = self.done.entry(run).or_default().steps.entry(id).or_default();
        if let Some(before) = ran.keys().find(|before| !versioned && **before != nonce) {
            let before = before.clone();
            self.fail(&format!("{run} {id} was {before} and is {nonce}"));
        }
        ran.insert(nonce, result_of(attempt));
    }
}
