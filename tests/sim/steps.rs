//! Queued steps in the world: what nodes ask the store about them, what workers do with them, and what must hold of
//! each attempt.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{Actor, Duration, Event, EventBody, OpId, Payload, QueueKey, RunId, Timestamp};
use everstep_engine::node::{Input, StepsIn, StepsOut};
use everstep_engine::{StepKey, StepSaid, WorkerIn};
use everstep_store::{QueueLimits, Steps as _};
use everstep_tests::program::{Beat, Ends, Profile, QUEUED_STEP, QueuedStep};
use futures::FutureExt as _;

use crate::hands::result_of;
use crate::world::{Coming, HEAL_US, World};

const LOOK_MAX: usize = 500;
/// How long a step whose instant has come stays with the node that found it.
const DUE_CLAIM: Duration = Duration::from_secs(2);
/// The queue of every run, and of the queued steps that are served.
const QUEUE: &str = "default";

/// What is known of the attempts of queued steps.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    /// Those that have begun, and under which claim.
    begun: BTreeMap<(RunId, OpId, u32), StepKey>,
    /// What the attempts of a step have said about how far they are.
    said: BTreeMap<(RunId, OpId), BTreeSet<Beat>>,
    /// How many may run at one time in the queue of a namespace.
    limits: BTreeMap<&'static str, u32>,
}

impl Attempts {
    /// A worker said how an attempt ended: so it ran.
    pub(crate) fn check(&self, run: RunId, event: &Event) -> Result<(), String> {
        match &event.body {
            EventBody::StepFailed { step, attempt, name, .. }
                if name == QUEUED_STEP
                    && event.actor != Actor::System
                    && !self.begun.contains_key(&(run, *step, *attempt)) =>
            {
                Err(format!("attempt {attempt} of {step} failed, and never ran"))
            }
            _ => Ok(()),
        }
    }
}

fn queue(namespace: &str) -> QueueKey {
    QueueKey { namespace: namespace.to_owned(), task_queue: QUEUE.to_owned() }
}

impl World {
    /// Some queues have limits.
    pub(crate) fn limit_queue(&mut self, namespace: &'static str) {
        let limited = self.dice.chance(0.3);
        let max = 1 + self.dice.below(3) as u32;
        if limited {
            let limits = QueueLimits { max_running: Some(max), ..QueueLimits::default() };
            let set = self.store.truth().set_queue_limits(&queue(namespace), limits).now_or_never();
            assert!(matches!(set, Some(Ok(()))));
            self.attempts.limits.insert(namespace, max);
        }
    }

    /// A question about queued steps, and its answer.
    pub(crate) fn ask_steps(&mut self, node: usize, output: StepsOut) {
        let claims = matches!(output, StepsOut::Claim { .. });
        if let Some(input) = self.store.answer_steps(output) {
            self.feed(node, Input::Steps(input));
        }
        if claims {
            self.check_limits();
        }
    }

    fn check_limits(&self) {
        for (namespace, max) in &self.attempts.limits {
            let record = self.store.truth().queue(&queue(namespace)).now_or_never();
            let running = record.and_then(Result::ok).map_or(0, |record| record.running);
            if running > u64::from(*max) {
                self.fail(&format!("{running} steps of {namespace} run at one time, {max} may"));
            }
        }
    }

    /// Looks for queued steps whose instant has come.
    pub(crate) fn step_clock(&mut self, node: usize, life: u64) {
        let us = self.us();
        let seat = &mut self.nodes[node];
        if seat.life != life || seat.node.is_none() || seat.looks_at != us {
            return;
        }
        seat.looks_at = u64::MAX;
        let Ok(found) = self.store.ask(|s| s.due_steps_sync(LOOK_MAX, DUE_CLAIM)) else { return };
        self.node_learns(node, found.now);
        if !found.due.is_empty() {
            self.feed(node, Input::Steps(StepsIn::Due(found.due)));
        }
        // By the clock that said so: that of the node may be ahead of it, where it was set back.
        if let Some(next) = found.next {
            self.look_at_steps(node, us + next.since(found.now).as_micros());
        }
    }

    pub(crate) fn step_clock_at(&mut self, node: usize, at: Timestamp) {
        let at = self.us() + self.node_waits(node, at);
        self.look_at_steps(node, at);
    }

    /// Has the node look no later than that.
    pub(crate) fn look_at_steps(&mut self, node: usize, at: u64) {
        let seat = &mut self.nodes[node];
        if at < seat.looks_at {
            seat.looks_at = at;
            let life = seat.life;
            self.at(at, Coming::StepClock { node, life });
        }
    }

    /// Attempts whose worker's session is closed.
    pub(crate) fn find_lost_steps(&mut self, node: usize) {
        let lost = self.store.ask(|s| s.lost_steps_sync(LOOK_MAX));
        if let Some(lost) = lost.ok().filter(|lost| !lost.is_empty()) {
            self.feed(node, Input::Steps(StepsIn::Lost(lost)));
        }
    }

    /// An attempt begins: under one claim, once, with what an attempt before it has said.
    pub(crate) fn work_begins(&mut self, key: StepKey, queued: &QueuedStep, before: &Payload) {
        let StepKey { run_id: run, step, attempt, .. } = key;
        if let Some(first) = self.attempts.begun.insert((run, step, attempt), key) {
            self.fail(&format!("{run} {step} attempt {attempt} runs twice: {first:?} and {key:?}"));
        }
        let timed = queued.hangs();
        let sound = self.us() >= self.leases_unsound_until || self.us() >= HEAL_US;
        if let Some(watched) = self.watched.get(&run).filter(|w| sound && !timed && w.is_open()) {
            let now = watched.run.step_task(step).map(|task| task.attempt);
            if now != Some(attempt) {
                self.fail(&format!("{run} {step} attempt {attempt} runs when {now:?} is its turn"));
            }
        }
        if !before.is_none() {
            let said: Option<Beat> = serde_json::from_slice(&before.data).ok();
            let known = |beat: &Beat| {
                queued.is_resumed(attempt, beat)
                    && self.attempts.said.get(&(run, step)).is_some_and(|said| said.contains(beat))
            };
            if !said.as_ref().is_some_and(known) {
                self.fail(&format!(
                    "{run} {step} attempt {attempt} goes on from {said:?}, which nobody said"
                ));
            }
            self.totals.resumed += 1;
            if self.calm && said.map(|beat| beat.attempt) != Some(attempt - 1) {
                self.fail(&format!("{run} {step} attempt {attempt} does not go on where the last one was"));
            }
        } else if self.calm && queued.beats && attempt > 1 {
            self.fail(&format!("{run} {step} attempt {attempt} does not know where the last one was"));
        }
        self.totals.queued += 1;
        let ran = self.done.entry(run).or_default().steps.entry(step).or_default();
        ran.insert(queued.step.nonce.clone(), result_of(queued));
    }

    /// A worker runs an attempt, which ends after its step's time. One that hangs never ends, or just as its time runs
    /// out.
    pub(crate) fn works(&mut self, worker: usize, life: u64, key: StepKey, queued: &QueuedStep) {
        let hangs = queued.hangs() && queued.step.ends(key.attempt) == Ends::Flaky;
        let options = queued.options(Profile::Sim);
        let limit = options.start_to_close.or(options.heartbeat).filter(|_| hangs);
        let takes = match limit {
            Some(limit) if self.dice.chance(0.7) => limit.as_micros() + self.dice.below(4_000) - 2_000,
            Some(_) => return,
            None => queued.step.slow_us,
        };
        let at = (self.us() + takes).max(self.workers[worker].stalled_until);
        self.at(at, Coming::Worked { worker, life, key });
    }

    pub(crate) fn worked(&mut self, worker: usize, life: u64, key: StepKey) {
        if let Some(until) = self.stalled(worker) {
            return self.at(until, Coming::Worked { worker, life, key });
        }
        let now = self.us();
        let seat = &mut self.workers[worker];
        let Some(w) = seat.worker.as_mut().filter(|_| seat.life == life) else { return };
        if !w.is_late(now) {
            let acts = w.hands.worked(key);
            return self.act(worker, acts);
        }
        w.drop_all();
        if seat.link != 0 {
            self.cut(worker);
        }
    }

    /// What a worker says about how far an attempt is.
    pub(crate) fn note_said(&mut self, message: &WorkerIn) {
        let (key, details) = match message {
            WorkerIn::StepBeat { key, details } => (key, details),
            WorkerIn::StepSaid { key, details, said: StepSaid::Ended(..) } => (key, details),
            _ => return,
        };
        if let Some(beat) = details.as_ref().and_then(|d| serde_json::from_slice(&d.data).ok()) {
            self.attempts.said.entry((key.run_id, key.step)).or_default().insert(beat);
        }
    }
}
