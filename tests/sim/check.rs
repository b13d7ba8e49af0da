//! What must hold of one run, told from its events and the tables beside them, event by event.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use everstep_core::{
    Actor, Attribute, BlockKind, Doubt, DoubtPolicy, Event, EventBody, OpId, Payload, Resolution, Run, RunId,
    Seq, TimerKey, TimerKind, Timestamp,
};
use everstep_store::RunTables;
use everstep_tests::program::{
    Build, Code, Course, Op, Outcome, Prediction, Program, QueuedStep, UPSERTED, Wish, update_answer,
};

use crate::client::Client;
use crate::model::{self, Model, Waits};
use crate::worker;

/// Kind of the failure of an attempt whose worker is gone.
pub(crate) const WORKER_LOST: &str = "WorkerLost";

/// What workers did for a run: what they reported is what may be recorded.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// What was executed as each step: its nonce, and its result if it ends well. It is one, but where a version was
    /// chosen and its worker lost before anything that follows from that was recorded.
    pub(crate) steps: BTreeMap<OpId, BTreeMap<String, Payload>>,
    /// Delays of the timers that were asked for.
    pub(crate) timers: BTreeMap<OpId, u64>,
}

/// A run as its events have told it so far.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) run: Run,
    program: Arc<Program>,
    prediction: OnceCell<Prediction>,
    /// Steps that have ended, by the number in their names.
    pub(crate) ended: BTreeMap<OpId, String>,
    queued: BTreeMap<OpId, QueuedState>,
    signals: Vec<String>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) blocked: Option<BlockKind>,
    /// The event of the last claim: whoever made it is sent all before that at once.
    pub(crate) attached_at: Seq,
}

/// A queued step, as its events have told it so far.
#[derive(Debug)]
struct QueuedState {
    queued: QueuedStep,
    /// Attempts that have ended.
    ends: BTreeSet<u32>,
    /// Those of them that count.
    failures: u32,
}

/// What an event is held against.
pub(crate) struct Facts<'a> {
    pub(crate) done: Option<&'a Done>,
    /// The greatest that the database's clock has shown.
    pub(crate) now_max: Timestamp,
}

impl Watched {
    pub(crate) fn new(id: RunId, first: &Event) -> Result<Self, String> {
        let run = Run::begin(id, first).map_err(|e| e.to_string())?;
        let program = worker::program_of(first).ok_or("the start names no program")?;
        Ok(Self {
            run,
            program,
            prediction: OnceCell::new(),
            ended: BTreeMap::new(),
            queued: BTreeMap::new(),
            signals: Vec::new(),
            outcome: None,
            blocked: None,
            attached_at: 0,
        })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.outcome.is_none()
    }

    /// One event after the first.
    pub(crate) fn apply(&mut self, event: &Event, facts: &Facts<'_>) -> Result<(), String> {
        if event.at > facts.now_max {
            return Err(format!("event {} is from the future", event.seq));
        }
        let due = match &event.body {
            EventBody::TimerFired { timer } => Some(self.run.timer(*timer)),
            _ => None,
        };
        if let EventBody::VersionMarked { change_id, version } = &event.body
            && self.run.version(change_id).is_some()
        {
            return Err(format!("change {change_id} was marked again, as {version}"));
        }
        // Gap-free, one start, epochs rise by claims, the end is last: the fold refuses all else.
        self.run.apply(event).map_err(|e| e.to_string())?;
        self.outcome = model::ended(&event.body);
        self.note_queued(event)?;
        match &event.body {
            EventBody::StepCompleted { step, name, result, .. } => {
                reported(facts, *step, result)?;
                self.end_step(*step, name)
            }
            EventBody::StepResolved(said) => match &said.resolution {
                Resolution::Completed(result) => {
                    reported(facts, said.step, result)?;
                    self.end_step(said.step, &said.name)
                }
                Resolution::Failed(_) => self.end_step(said.step, &said.name),
                Resolution::Retry => Ok(()),
            },
            EventBody::StepFailed { step, name, retry_at: None, .. } => self.end_step(*step, name),
            EventBody::SignalReceived { signal_id, .. } => {
                if self.signals.contains(signal_id) {
                    return Err(format!("signal {signal_id} was recorded twice"));
                }
                self.signals.push(signal_id.clone());
                Ok(())
            }
            EventBody::TimerStarted { timer, fire_at } => {
                let asked = facts.done.and_then(|d| d.timers.get(timer)).copied();
                if asked.is_none_or(|us| fire_at.as_micros() - event.at.as_micros() != us as i64) {
                    return Err(format!(
                        "timer {timer} was asked for with {asked:?} us, and is set otherwise"
                    ));
                }
                Ok(())
            }
            EventBody::TimerFired { timer } => fired(*timer, due.flatten(), facts),
            EventBody::WorkerAttached { .. } => {
                self.attached_at = event.seq;
                Ok(())
            }
            EventBody::RunBlocked(blocked) => self.block(blocked.kind),
            EventBody::RunUnblocked { .. } => {
                self.blocked = None;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// An attempt ends once, and no more fail than may.
    fn note_queued(&mut self, event: &Event) -> Result<(), String> {
        let (step, attempt, counts) = match &event.body {
            EventBody::StepScheduled(scheduled) => {
                let queued = serde_json::from_slice(&scheduled.input.data).map_err(|e| e.to_string())?;
                let state = QueuedState { queued, ends: BTreeSet::new(), failures: 0 };
                let twice = self.queued.insert(scheduled.step, state).is_some();
                return if twice { Err(format!("{} was scheduled twice", scheduled.step)) } else { Ok(()) };
            }
            EventBody::StepCompleted { step, attempt, .. } => (*step, *attempt, false),
            EventBody::StepFailed { step, attempt, failure, .. } => {
                let lost = event.actor == Actor::System && failure.kind == WORKER_LOST;
                (*step, *attempt, !lost)
            }
            EventBody::StepResolved(said) => (said.step, said.attempt, false),
            _ => return Ok(()),
        };
        let Some(state) = self.queued.get_mut(&step) else { return Ok(()) };
        if !state.ends.insert(attempt) {
            return Err(format!("attempt {attempt} of {step} ended twice"));
        }
        state.failures += u32::from(counts);
        match state.queued.course {
            Course::Exhausted { attempts } if state.failures > attempts => {
                Err(format!("{} attempts of {step} have failed, and there are {attempts}", state.failures))
            }
            _ => Ok(()),
        }
    }

    /// What the code answers to an update.
    pub(crate) fn update_answer(&self, id: &str) -> Payload {
        let planned = self.prediction().updates.iter().find(|planned| planned.id == id);
        let answer = planned.map_or_else(|| update_answer(id, None), |planned| planned.answer.clone());
        Payload::json(serde_json::Value::from(answer).to_string())
    }

    /// The updates that its program waits for.
    pub(crate) fn planned_updates(&self) -> Vec<String> {
        self.prediction().updates.iter().map(|planned| planned.id.clone()).collect()
    }

    fn end_step(&mut self, step: OpId, name: &str) -> Result<(), String> {
        match self.ended.insert(step, number_of(name).to_owned()) {
            None => Ok(()),
            Some(_) => Err(format!("step {step} ended twice")),
        }
    }

    fn block(&mut self, kind: BlockKind) -> Result<(), String> {
        self.blocked = Some(kind);
        match (kind, &self.program.code) {
            (BlockKind::Nondeterminism, Code::Renamed { .. }) | (BlockKind::Poison, _) => Ok(()),
            (BlockKind::Nondeterminism, _) if self.is_versioned() => Ok(()),
            (kind, code) => Err(format!("blocked for {kind:?}, but the builds differ in {code:?}")),
        }
    }

    /// What its program says of itself.
    fn prediction(&self) -> &Prediction {
        self.prediction.get_or_init(|| self.program.predict())
    }

    /// How its program says that it ends.
    pub(crate) fn predicted(&self) -> Outcome {
        self.prediction().outcome.clone()
    }

    /// Whether the step in doubt ends in a final failure.
    pub(crate) fn is_refused(&self, doubt: &Doubt) -> bool {
        if let Some(state) = self.queued.get(&doubt.step) {
            return state.queued.step.refused;
        }
        let name = doubt.name.as_str();
        fn refused(program: &Program, ops: &[Op], name: &str) -> bool {
            ops.iter().any(|op| match op {
                Op::Guarded { step, .. } => step.refused && program.step_name(step, Build::A) == name,
                Op::Parallel(parts) | Op::Race(parts) => {
                    parts.iter().any(|part| refused(program, part, name))
                }
                _ => false,
            })
        }
        refused(&self.program, &self.program.ops, name)
    }

    pub(crate) fn is_versioned(&self) -> bool {
        self.program.ops.iter().any(|op| matches!(op, Op::Version { .. }))
    }

    /// The tables beside the log say what the log says.
    pub(crate) fn tables(&self, tables: Option<&RunTables>) -> Result<(), String> {
        let tables = tables.ok_or("events without a row")?;
        let folded = self.run.projection();
        if tables.projection.row.owner.is_none() && !tables.wakes.is_empty() {
            return Err(format!("nobody owns it, and it has wakes: {:?}", tables.wakes));
        }
        if folded == tables.projection {
            return Ok(());
        }
        Err(format!("projection differs: fold {folded:?}, tables {:?}", tables.projection))
    }

    /// What its code waits for, as far as it follows the history.
    pub(crate) fn waits(&self, history: &[Event]) -> Vec<Waits> {
        let mut model = Model::new(Arc::clone(&self.program), Build::of(&self.run.row().build_id), history);
        let _ = history.iter().try_for_each(|event| model.apply(event));
        model.waits()
    }

    /// A parked run waits only for what will come: a timer or retry with a row, or a signal.
    pub(crate) fn parked(&self, history: &[Event], tables: &RunTables) -> Result<(), String> {
        let row = &tables.projection;
        let mut model = Model::new(Arc::clone(&self.program), Build::of(&row.row.build_id), history);
        for event in history {
            if model.apply(event).is_err() {
                return Err("parked although the code cannot follow its history".to_owned());
            }
        }
        let timer = |key: TimerKey| row.timers.iter().any(|t| t.key == key);
        for waits in model.waits() {
            let comes = match &waits {
                Waits::Step(id) => {
                    let asked = |d: &Doubt| d.step == *id && d.policy == DoubtPolicy::AskHuman;
                    timer(TimerKey::retry(*id)) || row.doubts.iter().any(asked)
                }
                Waits::Timer(id) => timer(TimerKey::timer(*id)),
                Waits::Signal(name) => !model.has_signal(name),
                Waits::Child(id) | Waits::Start(id) => self.run.child(*id).is_some_and(|child| !child.closed),
                Waits::Queued(id) => row.steps.iter().any(|step| step.step == *id),
                Waits::External(id) => is_requested(history, *id),
                // Somebody asks for it, sooner or later.
                Waits::Update(id) => !model.has_updated(id),
            };
            // A retry whose instant has come woke the run, and is gone.
            if !comes && row.task.is_none() {
                return Err(format!("parked, and nothing will bring {waits:?}"));
            }
        }
        Ok(())
    }

    /// The run ended as its client's program predicts.
    pub(crate) fn check_end(
        &self,
        (client, part): (&Client, usize),
        done: &Done,
        history: &[Event],
    ) -> Result<(), String> {
        let ended = self.outcome.as_ref().ok_or("it is still open")?;
        let (program, prediction) = client.parts.get(part).ok_or("a run more than there are programs")?;
        if !prediction.outcome.admits(ended) {
            return Err(format!("ended as {ended:?}, predicted was {:?}", prediction.outcome));
        }
        let start = self.run.start();
        if start.namespace != client.namespace || *self.program != **program {
            return Err(format!("it is the run of somebody else: {start:?}"));
        }
        for planned in &prediction.steps {
            let of_nonce = |(id, ran): (&OpId, &BTreeMap<String, Payload>)| {
                let number = planned.nonce.rsplit('.').next();
                let ended = self.ended.get(id).map(String::as_str) == number;
                (ran.contains_key(&planned.nonce) && ended).then_some(*id)
            };
            let ends: Vec<OpId> = done.steps.iter().filter_map(of_nonce).collect();
            if ends.len() > 1 || (planned.required && ends.is_empty()) {
                return Err(format!("step {} ended {} times", planned.nonce, ends.len()));
            }
            let attempt = ends.first().map(|id| last_attempt(history, *id));
            if attempt.is_some_and(|attempt| attempt < planned.attempts_min) {
                return Err(format!("step {} ended with attempt {attempt:?}", planned.nonce));
            }
        }
        self.check_queued(prediction)?;
        self.check_updates(prediction, history)?;
        let said = self.run.notes().attributes.get(UPSERTED);
        if let (Wish::Nothing, Some(n)) = (self.program.wish, prediction.upserts.last())
            && said != Some(&Attribute::Int(*n))
        {
            return Err(format!("it said {n} of itself last, and shows {said:?}"));
        }
        self.check_signals(client)
    }

    fn check_queued(&self, prediction: &Prediction) -> Result<(), String> {
        for planned in &prediction.queued {
            let nonce = &planned.queued.step.nonce;
            let found: Vec<_> =
                self.queued.iter().filter(|(_, state)| state.queued.step.nonce == *nonce).collect();
            let ended = found.iter().filter(|(id, _)| self.ended.contains_key(id)).count();
            if found.len() > 1 || (planned.required && ended != 1) {
                return Err(format!(
                    "queued step {nonce} was scheduled {} times, and ended {ended}",
                    found.len()
                ));
            }
            let last = found.first().and_then(|(_, state)| state.ends.last().copied());
            let attempts_min = planned.queued.attempts_min();
            if planned.required && last.is_none_or(|last| last < attempts_min) {
                return Err(format!("queued step {nonce} ended with attempt {last:?}, not {attempts_min}"));
            }
        }
        Ok(())
    }

    fn check_updates(&self, prediction: &Prediction, history: &[Event]) -> Result<(), String> {
        for planned in &prediction.updates {
            let count = |is: fn(&EventBody) -> Option<&String>| {
                history.iter().filter(|event| is(&event.body) == Some(&planned.id)).count()
            };
            let accepted = count(|body| match body {
                EventBody::UpdateAccepted { update_id, .. } => Some(update_id),
                _ => None,
            });
            let answered = count(|body| match body {
                EventBody::UpdateCompleted { update_id, .. } => Some(update_id),
                _ => None,
            });
            let once = (accepted, answered) == (1, 1);
            if accepted > 1 || answered > accepted || (planned.required && !once) {
                let id = &planned.id;
                return Err(format!(
                    "update {id} was accepted {accepted} times, and answered {answered} times"
                ));
            }
        }
        Ok(())
    }

    /// What is there was sent, in the order in which it was sent.
    fn check_signals(&self, client: &Client) -> Result<(), String> {
        let planned = &client.signals;
        let order: Option<Vec<usize>> =
            self.signals.iter().map(|id| planned.iter().position(|p| p.id == *id)).collect();
        let order = order.ok_or_else(|| format!("signals of nobody: {:?}", self.signals))?;
        if !order.is_sorted() {
            return Err(format!("signals were sent one after the other and stand as {order:?}"));
        }
        Ok(())
    }

    /// Signals that this run had and did not give to the next one.
    pub(crate) fn kept(&self, history: &[Event]) -> Vec<String> {
        let carried = history.last().map(|last| match &last.body {
            EventBody::RunContinued { carried, .. } => carried.as_slice(),
            _ => &[],
        });
        let kept = history.iter().filter(|event| !carried.is_some_and(|c| c.contains(&event.seq)));
        kept.filter_map(|event| match &event.body {
            EventBody::SignalReceived { signal_id, .. } => Some(signal_id.clone()),
            _ => None,
        })
        .collect()
    }
}

/// The number in the name of a step, which is also the end of its nonce.
fn number_of(name: &str) -> &str {
    name.rsplit('-').next().unwrap_or(name)
}

/// A request to another run has no answer yet.
fn is_requested(history: &[Event], id: OpId) -> bool {
    let count = |is: fn(&EventBody) -> Option<OpId>| {
        history.iter().filter(|event| is(&event.body) == Some(id)).count()
    };
    let requested = count(|body| match body {
        EventBody::ExternalRequested(requested) => Some(requested.op),
        _ => None,
    });
    let resolved = count(|body| match body {
        EventBody::ExternalResolved { op, .. } => Some(*op),
        _ => None,
    });
    (requested, resolved) == (1, 0)
}

/// What is recorded as a step's result was its result.
fn reported(facts: &Facts<'_>, step: OpId, result: &Payload) -> Result<(), String> {
    let Some(ran) = facts.done.and_then(|d| d.steps.get(&step)) else {
        return Err(format!("step {step} never ran"));
    };
    match ran.values().any(|reported| reported == result) {
        true => Ok(()),
        false => Err(format!("the result of step {step} is not what was reported")),
    }
}

fn fired(timer: TimerKey, due: Option<Timestamp>, facts: &Facts<'_>) -> Result<(), String> {
    match (timer.kind, due) {
        (_, None) => Err(format!("timer {timer:?} fired, and was not pending")),
        (TimerKind::Timer | TimerKind::Retry, Some(due)) if facts.now_max < due => {
            Err(format!("timer {timer:?} fired early"))
        }
        _ => Ok(()),
    }
}

fn last_attempt(history: &[Event], id: OpId) -> u32 {
    let attempts = history.iter().filter_map(|event| match &event.body {
        EventBody::StepCompleted { step, attempt, .. } | EventBody::StepFailed { step, attempt, .. } => {
            (*step == id).then_some(*attempt)
        }
        EventBody::StepResolved(said) => (said.step == id).then_some(said.attempt),
        _ => None,
    });
    attempts.max().unwrap_or(0)
}
