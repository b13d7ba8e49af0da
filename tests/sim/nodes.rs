//! The world's nodes: what is done with what they want, by a driver that a seed makes slow or kills.

use std::collections::BTreeMap;

use everstep_core::{
    CommandBody, CommandId, Duration, Epoch, EventBody, NodeId, Rejection, RunId, Seq, Timestamp,
};
use everstep_dispatch::{Delivery, HintQueue, Notice, TaskHint};
use everstep_engine::node::{Input, Node, NodeConfig, OUTBOX_CLAIM_MAX, Output, StepsIn, StepsOut};
use everstep_engine::{Error as EngineError, Started, WorkerOut};
use everstep_store::{Append, AppendReply, Error, Verdict};

use crate::client::{self, Ask};
use crate::world::{Coming, EPOCH_US, LEASE, World};

const SWEEP_US: u64 = 1_000_000;
/// How long a claimed timer stays with the node that claimed it.
const TIMER_CLAIM: Duration = Duration::from_secs(2);
/// Wakes younger than this are left to the notices.
const WAKE_AGE: Duration = Duration::from_secs(1);
const LOOK_MAX: usize = 500;
/// How long what a node is telling others of is left to it.
const HOLD: Duration = Duration::from_secs(3);

/// A place for a node, and the process that fills it now.
pub(crate) struct NodeSeat {
    pub(crate) node: Option<Node>,
    id: NodeId,
    /// Counts processes: what was meant for an earlier one reaches nobody.
    pub(crate) life: u64,
    pulls: BTreeMap<HintQueue, usize>,
    clock: NodeClock,
    /// When it looks at queued steps next.
    pub(crate) looks_at: u64,
}

/// Database time as the driver of a node extrapolates it.
#[derive(Clone, Copy, Debug, Default)]
struct NodeClock {
    base: Timestamp,
    at_us: u64,
    last: Timestamp,
}

impl NodeClock {
    fn learn(&mut self, now: Timestamp, at_us: u64) {
        *self = Self { base: now, at_us, last: self.last.max(now) };
    }

    fn now(&mut self, us: u64) -> Timestamp {
        let now = self.base.after(Duration::from_micros(us.saturating_sub(self.at_us)));
        self.last = self.last.max(now);
        self.last
    }
}

impl NodeSeat {
    pub(crate) fn new(id: NodeId) -> Self {
        Self {
            node: None,
            id,
            life: 0,
            pulls: BTreeMap::new(),
            clock: NodeClock::default(),
            looks_at: u64::MAX,
        }
    }
}

impl World {
    pub(crate) fn alive(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&n| self.nodes[n].node.is_some()).collect()
    }

    fn db_now(&self) -> Timestamp {
        self.store.truth().append_sync(Vec::new()).now.unwrap_or(Timestamp::from_micros(EPOCH_US))
    }

    pub(crate) fn revive_node(&mut self, node: usize) {
        let seed = self.dice.number();
        let (shared, hints_shared) = (self.nodes.len() > 1, self.hints_shared);
        let (db, us) = (self.db_now(), self.us());
        let seat = &mut self.nodes[node];
        seat.life += 1;
        seat.pulls.clear();
        seat.looks_at = u64::MAX;
        seat.clock = NodeClock { base: db, at_us: us, last: db };
        seat.node = Some(Node::new(NodeConfig {
            node_id: seat.id,
            lease: LEASE,
            shared,
            hints_shared,
            relays: false,
            seed,
        }));
        let life = seat.life;
        if self.sweeps {
            self.soon(Coming::Sweep { node, life });
        }
        self.soon(Coming::Timers { node, life });
        self.look_at_steps(node, us);
    }

    fn kill_node(&mut self, node: usize) {
        let Some(dead) = self.nodes[node].node.take() else { return };
        self.count_node(&dead);
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

    fn count_node(&mut self, node: &Node) {
        let status = node.status();
        self.totals.conflicts += status.conflicts;
        self.totals.fenced += status.fenced;
        self.totals.unknown_settled += status.unknown_settled;
        self.totals.healed += status.healed;
        if self.calm && status.healed > 0 {
            self.fail(&format!("nothing went wrong, and the sweep has healed {}", status.healed));
        }
    }

    /// A node hears from the database what time it is.
    pub(crate) fn node_learns(&mut self, node: usize, now: Timestamp) {
        let us = self.us();
        self.nodes[node].clock.learn(now, us);
    }

    /// How long it is, by a node's clock, until an instant.
    pub(crate) fn node_waits(&mut self, node: usize, at: Timestamp) -> u64 {
        let us = self.us();
        at.since(self.nodes[node].clock.now(us)).as_micros()
    }

    pub(crate) fn count_nodes(&mut self) {
        for node in 0..self.nodes.len() {
            if let Some(alive) = self.nodes[node].node.take() {
                self.count_node(&alive);
            }
        }
    }

    pub(crate) fn feed(&mut self, node: usize, input: Input) {
        let life = self.nodes[node].life;
        self.soon(Coming::ToNode { node, life, input: Box::new(input) });
    }

    pub(crate) fn step_node(&mut self, node: usize, input: Input) {
        let us = self.us();
        let seat = &mut self.nodes[node];
        let now = seat.clock.now(us);
        let Some(n) = &mut seat.node else { return };
        let mut outputs = Vec::new();
        n.step(input, now, &mut outputs);
        for output in outputs {
            if self.hit(self.rates.node_dies) {
                return self.kill_node(node);
            }
            self.perform(node, output);
        }
    }

    fn perform(&mut self, node: usize, output: Output) {
        let life = self.nodes[node].life;
        match output {
            Output::Started { request, result } => self.started(request, result),
            Output::Done { request, result } => self.command_done(request, result),
            Output::Accepted { request, seq } => self.update_accepted(request, seq),
            Output::HoldFor { run, request, wait } => {
                let input = Box::new(Input::HoldOver { run, request });
                self.at(self.us() + wait.as_micros(), Coming::ToNode { node, life, input });
            }
            Output::Append { ticket, append, delay } => {
                let at = self.us() + delay.as_micros() as u64 + 50 + self.dice.below(2_000);
                self.at(at, Coming::Commit { node, life, ticket, append: Box::new(append) });
            }
            Output::ToWorker { link, message } => {
                self.check_told(&message);
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
            Output::Load { delay, .. } => {
                let at = self.us() + delay.as_micros() as u64 + 50 + self.dice.below(2_000);
                self.at(at, Coming::Ask { node, life, output: Box::new(output) });
            }
            Output::Publish(hint) => self.publish(node, &hint),
            Output::Pull { queue, max } => {
                self.nodes[node].pulls.insert(queue, max);
                self.deliver_hints();
            }
            Output::Notify(notice) => self.notify(node, notice),
            Output::TimersAt(at) => {
                let at = self.us() + self.node_waits(node, at);
                self.at(at, Coming::Timers { node, life });
            }
            Output::Steps(StepsOut::DueAt(at)) => self.step_clock_at(node, at),
            Output::Steps(StepsOut::WaitingAt { queue, at }) => {
                let input = Box::new(Input::Steps(StepsIn::Waiting(queue)));
                let at = self.us() + self.node_waits(node, at);
                self.at(at, Coming::ToNode { node, life, input });
            }
            Output::Ack(_)
            | Output::Opened(_)
            | Output::Dropped(_)
            | Output::Tail(..)
            | Output::RunStarted(_)
            | Output::RunClosed(_)
            | Output::ClosedElsewhere(..) => {}
            question => self.soon(Coming::Ask { node, life, output: Box::new(question) }),
        }
    }

    /// What a person was told of a step in doubt.
    fn resolved(&mut self, run: RunId, id: CommandId, result: &Result<(), EngineError>) {
        let history = self.store.truth().read_events_sync(run, 0, usize::MAX);
        let said = history.iter().any(|e| e.command_id == id && matches!(e.body, EventBody::StepResolved(_)));
        match result {
            Ok(()) if !said => {
                self.fail(&format!("a step of run {run} was resolved, and the log says nothing"))
            }
            // The code was faster, or the run has ended.
            Err(EngineError::Rejected(Rejection::StepNotInDoubt { .. } | Rejection::RunClosed { .. }))
                if said =>
            {
                self.fail(&format!("a step of run {run} was resolved, and somebody was told otherwise"));
            }
            _ => {}
        }
    }

    fn started(&mut self, request: u64, result: Result<Started, EngineError>) {
        let Some((client, Ask::Start(_))) = self.asked.remove(&request) else { return };
        if let Ok(started) = &result {
            let run = started.run_id;
            let Some(first) = self.store.truth().read_events_sync(run, 0, 1).pop() else {
                self.fail(&format!("start of run {run} was acknowledged and is not in the log"));
            };
            if let Err(problem) = self.clients[client].owns(&first) {
                self.fail(&format!("run {run}: {problem}"));
            }
        }
        if let Err(problem) = self.clients[client].started(result) {
            self.fail(&problem);
        }
    }

    /// What was acknowledged stands in the log of the run, or of one before it in its chain.
    fn is_recorded(&self, run: RunId, body: &CommandBody) -> bool {
        let mut next = Some(run);
        while let Some(run) = next {
            let history = self.store.truth().read_events_sync(run, 0, usize::MAX);
            if client::is_recorded(body, &history) {
                return true;
            }
            next = self.watched.get(&run).and_then(|watched| watched.run.start().origin.previous);
        }
        false
    }

    fn command_done(&mut self, request: u64, result: Result<(), EngineError>) {
        if let Some((run, id)) = self.resolving.remove(&request) {
            return self.resolved(run, id, &result);
        }
        if self.update_refused(request, &result) {
            return;
        }
        let Some((client, Ask::Command { run, body, .. })) = self.asked.remove(&request) else { return };
        if result.is_ok() && !self.is_recorded(run, &body) {
            self.fail(&format!("{body:?} of run {run} was acknowledged and is not in the log"));
        }
        if let Err(problem) = self.clients[client].answered((run, &body), result) {
            self.fail(&format!("run {run}: {problem}"));
        }
    }

    /// What a worker is told of stands in the log, and a worker that sends what it should is never told that it
    /// did not.
    fn check_told(&mut self, message: &WorkerOut) {
        let (run, epoch, events) = match message {
            WorkerOut::Activate { run_id, epoch, events, .. }
            | WorkerOut::Events { run_id, epoch, events, .. } => (*run_id, *epoch, events),
            WorkerOut::Rejected { run_id, rejection: Rejection::InvalidCommands { problem }, .. } => {
                self.fail(&format!("a good commit to run {run_id} was refused: {problem}"));
            }
            _ => return,
        };
        let Some(last) = events.last() else { return };
        let recorded = self.store.truth().read_events_sync(run, last.seq - 1, 1);
        if recorded.first() != Some(last) {
            self.fail(&format!(
                "a worker is told of event {} of run {run}, which is not in the log",
                last.seq
            ));
        }
        self.note_told(run, epoch, last.seq);
    }

    /// The owner under that epoch has been sent all events up to `seq`.
    pub(crate) fn note_told(&mut self, run: RunId, epoch: Epoch, seq: Seq) {
        let told = self.told.entry((run, epoch)).or_default();
        *told = seq.max(*told);
    }

    /// A wake is a promise that the owner will be told: it goes only when that is kept, or void.
    fn check_wake_kept(&self, run: RunId, seq: Seq) {
        let Some(watched) = self.watched.get(&run).filter(|w| w.run.owner().is_some()) else { return };
        let told = self.told.get(&(run, watched.run.epoch())).copied().unwrap_or(0);
        if told.max(watched.attached_at) < seq {
            self.fail(&format!(
                "the wake for event {seq} of run {run} is deleted, its owner was told up to {told}"
            ));
        }
    }

    pub(crate) fn commit(&mut self, node: usize, life: u64, ticket: u64, append: Append) {
        let settled = self.store.submit(append);
        if let Some(late) = settled.late {
            let at = self.us() + self.dice.below(2_000_000);
            self.at(at, Coming::LateCommit { append: Box::new(late) });
        }
        let slow = if self.hit(self.rates.reply_slow) { self.dice.below(4_000_000) } else { 0 };
        let at = self.us() + slow + 50 + self.dice.below(2_000);
        self.at(at, Coming::Appended { node, life, ticket, reply: settled.reply });
    }

    pub(crate) fn appended(&mut self, node: usize, life: u64, ticket: u64, reply: AppendReply) {
        let us = self.us();
        let seat = &mut self.nodes[node];
        if seat.life != life {
            return;
        }
        if let Some(now) = reply.now {
            seat.clock.learn(now, us);
        }
        let unheard = Verdict::Failed(Error::OutcomeUnknown("sim".into()));
        let verdict = reply.verdicts.into_iter().next().unwrap_or(unheard);
        self.step_node(node, Input::Appended { ticket, verdict });
    }

    /// A question to the store, and its answer.
    pub(crate) fn ask(&mut self, node: usize, output: Output) {
        let input = match output {
            Output::Steps(steps) => return self.ask_steps(node, steps),
            Output::Load { run, after, .. } => {
                let events = self.load(run, after);
                Input::Loaded { run, after, events }
            }
            Output::LoadForAsk { ask, run } => Input::LoadedForAsk { ask, events: self.load(run, 0) },
            Output::LoadForStart { ticket, run } => {
                Input::LoadedForStart { ticket, events: self.load(run, 0) }
            }
            Output::FindStart { ticket, namespace, workflow_id, request_id } => {
                let record = self.store.ask(|s| s.find_start_sync(&namespace, &workflow_id, &request_id));
                Input::StartFound { ticket, record }
            }
            Output::OpenSession { link, session } => {
                let until = self.store.ask(|s| s.open_session_sync(&session));
                Input::SessionOpened { link, until }
            }
            Output::RenewSession { link, session, number, lease } => {
                let until = self.store.ask(|s| s.renew_session_sync(session, lease));
                Input::SessionRenewed { link, number, until }
            }
            Output::CloseSession { session } => {
                let _ = self.store.ask(|s| s.close_session_sync(session));
                self.find_lost_steps(node);
                let Ok(lost) = self.store.ask(|s| s.lost_runs_sync(LOOK_MAX)) else { return };
                Input::RunsLost(lost)
            }
            Output::FindOwned { link, session } => {
                let runs = self.store.ask(|s| s.owned_runs_sync(session, None, usize::MAX));
                Input::Owned { link, runs }
            }
            Output::FindBlocked { queue, build_id } => {
                let blocked = self.store.ask(|s| s.blocked_runs_sync(&queue, &build_id, None, 1_000));
                let Ok(runs) = blocked else { return };
                Input::Blocked { runs }
            }
            Output::LoadSource { run, seqs } => {
                let events = self.load(run, 0);
                self.totals.swept += u64::from(events.is_ok());
                Input::SourceLoaded { run, seqs, events }
            }
            Output::FindTarget { flight, namespace, workflow_id } => {
                let found = self.store.ask(|s| s.find_start_sync(&namespace, &workflow_id, ""));
                Input::TargetFound { flight, run: found.map(|found| found.current.map(|(run, _)| run)) }
            }
            Output::OutboxDone(run, seq) => {
                let _ = self.store.ask(|s| s.delete_outbox_sync(&[(run, seq)]));
                return;
            }
            Output::DeleteWakes(seen) => {
                seen.iter().for_each(|(run, seq)| self.check_wake_kept(*run, *seq));
                let _ = self.store.ask(|s| s.delete_wakes_sync(&seen));
                return;
            }
            other => self.fail(&format!("an output that nobody performs: {other:?}")),
        };
        self.feed(node, input);
    }

    fn load(&self, run: RunId, after: u64) -> Result<Vec<everstep_core::Event>, Error> {
        self.store.ask(|s| s.read_events_sync(run, after, usize::MAX))
    }

    fn notify(&mut self, node: usize, notice: Notice) {
        if !self.hints_shared {
            return;
        }
        for other in (0..self.nodes.len()).filter(|&n| n != node) {
            if self.hit(self.rates.hint_lost) {
                self.totals.hints_lost += 1;
            } else {
                self.feed(other, Input::Noticed(notice));
            }
        }
    }

    fn publish(&mut self, node: usize, hint: &TaskHint) {
        if self.hit(self.rates.hint_lost) {
            self.totals.hints_lost += 1;
            return;
        }
        let copies = if self.hit(self.rates.hint_doubled) { 5 } else { 1 };
        for _ in 0..copies {
            let late = if self.hit(self.rates.hint_late) { self.dice.below(30_000_000) } else { 0 };
            let at = self.us() + late + self.dice.below(2_000);
            self.at(at, Coming::Hint { node, hint: hint.clone() });
        }
    }

    /// Gives waiting hints to nodes that ask for them, in no order.
    pub(crate) fn deliver_hints(&mut self) {
        loop {
            let mut pairs = Vec::new();
            for (i, (from, hint)) in self.hints.iter().enumerate() {
                for n in 0..self.nodes.len() {
                    let seat = &self.nodes[n];
                    let reachable = self.hints_shared || n == *from;
                    if reachable && seat.node.is_some() && seat.pulls.contains_key(&hint.place()) {
                        pairs.push((i, n));
                    }
                }
            }
            if pairs.is_empty() {
                return;
            }
            let (i, node) = pairs[self.dice.below(pairs.len() as u64) as usize];
            let (_, hint) = self.hints.swap_remove(i);
            self.nodes[node].pulls.remove(&hint.place());
            let queue = hint.place();
            let deliveries = vec![Delivery { hint, token: 1, attempt: 1 }];
            self.feed(node, Input::Delivered { queue, deliveries });
        }
    }

    /// One pass of a node's sweep.
    pub(crate) fn sweep(&mut self, node: usize, life: u64) {
        if self.nodes[node].life != life {
            return;
        }
        let id = self.nodes[node].id;
        let us = self.us();
        let now = self.nodes[node].clock.now(us);
        let Some(n) = &mut self.nodes[node].node else { return };
        let (wants, telling) = (n.run_wants(), n.telling(now));
        let next = us + SWEEP_US;
        self.at(next, Coming::Sweep { node, life });
        if !self.calm {
            self.at(next, Coming::Timers { node, life });
            self.look_at_steps(node, next);
        }
        // Without the store nothing else of this pass can work either.
        let Ok(closed) = self.store.ask(|s| s.close_expired_sessions_sync(LOOK_MAX)) else { return };
        self.find_lost_steps(node);
        let mut found = vec![Input::Steps(StepsIn::Look)];
        if !closed.is_empty() {
            found.push(Input::SessionsClosed(closed));
        }
        found.extend(self.store.ask(|s| s.lost_runs_sync(LOOK_MAX)).ok().map(Input::RunsLost));
        if !wants.is_empty() {
            let tasks = self.store.ask(|s| s.claim_tasks_sync(Some(&wants), LOOK_MAX));
            found.extend(tasks.ok().map(Input::TasksFound));
        }
        if self.hints_shared {
            found.extend(self.store.ask(|s| s.claim_tasks_sync(None, LOOK_MAX)).ok().map(Input::TasksFound));
        }
        let _ = self.store.ask(|s| s.hold_outbox_sync(&telling, HOLD));
        let outbox = self.store.ask(|s| s.claim_outbox_sync(LOOK_MAX, OUTBOX_CLAIM_MAX));
        found.extend(outbox.ok().map(Input::OutboxFound));
        if self.nodes.len() > 1 {
            let wakes = self.store.ask(|s| s.stale_wakes_sync(id, WAKE_AGE, LOOK_MAX));
            found.extend(wakes.ok().map(Input::WakesStale));
        }
        for input in found {
            let nothing = match &input {
                Input::RunsLost(lost) => lost.is_empty(),
                Input::TasksFound(tasks) => tasks.is_empty(),
                Input::OutboxFound(found) => found.is_empty(),
                Input::WakesStale(wakes) => wakes.is_empty(),
                _ => false,
            };
            if !nothing {
                self.feed(node, input);
            }
        }
    }

    pub(crate) fn timers(&mut self, node: usize, life: u64) {
        if self.nodes[node].life != life || self.nodes[node].node.is_none() {
            return;
        }
        let Ok(claimed) = self.store.ask(|s| s.claim_timers_sync(LOOK_MAX, TIMER_CLAIM)) else { return };
        let us = self.us();
        self.nodes[node].clock.learn(claimed.now, us);
        if !claimed.due.is_empty() {
            self.feed(node, Input::TimersDue(claimed.due));
        }
    }
}
