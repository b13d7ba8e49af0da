//! A program's progress, told from its history alone: the SDK's machine as a model.
//!
//! Events go in one by one, each followed by one look at every branch that waits; what the workflow wants
//! comes out. The order in which operations are built, which arm of a race wins and what is dropped with
//! the others follow the SDK's rules, but share no code with it. The check of the history against the code is
//! the core's own.

mod commands;
mod updates;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::Location;
use std::sync::Arc;

use everstep_core::replay::{OpKind, Replay};
use everstep_core::{
    BlockKind, Blocked, CommitCommand, Continuation, DoubtPolicy, Duration, Event, EventBody, Failure, OpId,
    Payload, Resolution, RetryPolicy, Seq, TimerKind, Timestamp,
};
use everstep_tests::program::{
    self, Build, Doubt, End, IN_DOUBT, Op, POISON, Program, Step, UNCAUGHT, Wish, failure_line, signal_line,
    sleep_line, step_line, update_line, version_line, won_line,
};

use commands::{CommandOp, Telling};
use updates::Updates;

/// An attempt that the workflow wants.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) id: OpId,
    pub(crate) step: Arc<Step>,
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) not_before: Option<Timestamp>,
    /// Set for a guarded step: its start has to be durable first.
    pub(crate) guard: Option<DoubtPolicy>,
}

/// Something that a workflow wants done.
#[derive(Debug)]
pub(crate) enum Work {
    Attempt(Attempt),
    Command(CommitCommand),
    /// The last command there is.
    Finish(CommitCommand),
}

/// Why a workflow cannot go on in this build.
#[derive(Clone, Debug)]
pub(crate) enum Obstacle {
    Blocked(Box<Blocked>),
    Panicked(String),
}

/// What a branch waits for.
#[derive(Debug)]
pub(crate) enum Waits {
    Step(OpId),
    Timer(OpId),
    Signal(String),
    Child(OpId),
    /// A child's start, which is told.
    Start(OpId),
    Queued(OpId),
    External(OpId),
    Update(String),
}

enum Operation {
    Step(StepOp),
    Timer(TimerOp),
    Command(Box<CommandOp>),
}

struct StepOp {
    step: Arc<Step>,
    name: String,
    dropped: bool,
    recorded: u32,
    retry_at: Option<Timestamp>,
    line: Option<String>,
    in_flight: bool,
    guard: Option<Doubt>,
    /// A guarded attempt is recorded as begun only.
    begun: bool,
    doubt: Option<u32>,
}

struct TimerOp {
    us: u64,
    /// The activation in which it was built; `None` once nobody ever wanted it.
    built: Option<u64>,
    canceled: bool,
    emitted: bool,
    started: bool,
    fired: bool,
    cancel_emitted: bool,
}

/// A sequence of ops on its way.
struct Sequence {
    left: VecDeque<Op>,
    current: Option<Part>,
    lines: Vec<String>,
}

enum Part {
    Step(OpId),
    Sleep(OpId, String),
    Child(OpId, String),
    Queued(OpId),
    Tell(Box<Telling>),
    Nobody(OpId, String),
    Update(String),
    /// Nothing to wait for, and nothing to show.
    Said,
    Signal(String),
    Parallel(Vec<(Sequence, bool)>),
    Race(Vec<Sequence>),
    /// The step of a version that has one more.
    Version(OpId),
    /// A version that has nothing more.
    Unchanged,
    Never,
}

impl Sequence {
    fn new(ops: Vec<Op>) -> Self {
        Self { left: ops.into(), current: None, lines: Vec::new() }
    }
}

/// What all sequences of a run share.
struct Core {
    program: Arc<Program>,
    build: Build,
    replay: Replay,
    operations: Vec<Operation>,
    fresh: Vec<OpId>,
    signals: BTreeMap<String, VecDeque<(Seq, String)>>,
    cancel_requested: bool,
    activation: u64,
    versions: Versions,
    /// Updates that were carried out, by id.
    updated: BTreeSet<String>,
}

/// What a history says about versions, and what was chosen since.
#[derive(Default)]
struct Versions {
    known: BTreeMap<String, u32>,
    /// The greatest operation that it speaks of.
    last: u32,
    fresh: Vec<CommitCommand>,
}

/// One run of a program in one build.
pub(crate) struct Model {
    core: Core,
    body: Option<Sequence>,
    /// Ops of the top level that are done.
    done: usize,
    finish: Option<CommitCommand>,
    updates: Updates,
    obstacle: Option<Obstacle>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("done", &self.done)
            .field("waits", &self.waits())
            .finish_non_exhaustive()
    }
}

impl Model {
    /// A run whose history is known to be this one. Apply it.
    pub(crate) fn new(program: Arc<Program>, build: Build, history: &[Event]) -> Self {
        let body = Some(Sequence::new(program.ops.clone()));
        let core = Core {
            program,
            build,
            replay: Replay::default(),
            operations: Vec::new(),
            fresh: Vec::new(),
            signals: BTreeMap::new(),
            cancel_requested: false,
            activation: 0,
            versions: Versions::of(history),
            updated: BTreeSet::new(),
        };
        Self { core, body, done: 0, finish: None, updates: Updates::default(), obstacle: None }
    }

    /// The workflow waits for something that only a later event brings.
    pub(crate) fn is_waiting(&self) -> bool {
        self.body.is_some() && self.obstacle.is_none()
    }

    /// One event, one activation.
    pub(crate) fn apply(&mut self, event: &Event) -> Result<(), Obstacle> {
        if let Some(obstacle) = &self.obstacle {
            return Err(obstacle.clone());
        }
        let applied = match self.core.replay.check(event) {
            Err(mismatch) => Err(Obstacle::Blocked(Box::new(Blocked {
                kind: BlockKind::Nondeterminism,
                at_seq: mismatch.seq,
                expected: mismatch.expected,
                produced: mismatch.produced,
                source: String::new(),
                hint: "deploy the other build".to_owned(),
                build_id: String::new(),
            }))),
            Ok(()) => {
                self.core.activation += 1;
                self.core.note(event);
                self.core.note_command(&event.body);
                self.updates.note(event, self.body.is_some());
                self.poll()
            }
        };
        self.obstacle = applied.as_ref().err().cloned();
        applied
    }

    /// The body first, then what updates do, for as long as one may wait for the other.
    fn poll(&mut self) -> Result<(), Obstacle> {
        loop {
            self.poll_body()?;
            if self.body.is_none() {
                self.updates.drop_all(&mut self.core);
                return Ok(());
            }
            if !self.updates.poll(&mut self.core) {
                return Ok(());
            }
        }
    }

    fn poll_body(&mut self) -> Result<(), Obstacle> {
        let Some(mut body) = self.body.take() else { return Ok(()) };
        let program = Arc::clone(&self.core.program);
        loop {
            // The top level looks for its poison before each op, as the interpreter does.
            if body.current.is_none() && program.is_poisoned(self.core.build, self.done) {
                self.core.drop_sequence(&body);
                return Err(Obstacle::Panicked(POISON.to_owned()));
            }
            if !self.core.poll_one(&mut body) {
                break;
            }
            self.done += 1;
        }
        let ended = self.done == program.ops.len() && body.current.is_none();
        if ended && program.wish == Wish::Nothing {
            let end = match program.end {
                End::Output => {
                    let result = Payload::json(serde_json::Value::from(body.lines).to_string());
                    CommitCommand::CompleteRun { result, unconsumed: Vec::new() }
                }
                End::Uncaught => CommitCommand::FailRun {
                    failure: Failure::new(UNCAUGHT, "as planned"),
                    unconsumed: Vec::new(),
                },
                End::Continue => CommitCommand::ContinueAsNew(Box::new(Continuation {
                    input: Payload::json(serde_json::to_vec(&program.source.next()).unwrap_or_default()),
                    ..Continuation::default()
                })),
            };
            self.finish = Some(end);
        } else if program.wish == Wish::Cancel && self.core.cancel_requested {
            self.core.drop_sequence(&body);
            self.finish = Some(CommitCommand::CancelRun { details: "as asked".to_owned() });
        } else {
            self.body = Some(body);
        }
        Ok(())
    }

    /// What the workflow wants done and nobody does yet.
    pub(crate) fn take_work(&mut self) -> Vec<Work> {
        let mut fresh = std::mem::take(&mut self.core.fresh);
        fresh.sort_unstable();
        fresh.dedup();
        let operations = &mut self.core.operations;
        let marks = std::mem::take(&mut self.core.versions.fresh);
        let mut work: Vec<Work> = marks.into_iter().map(Work::Command).collect();
        work.extend(fresh.into_iter().filter_map(|id| work_of(id, &mut operations[id.0 as usize - 1])));
        work.extend(self.updates.take_answers());
        // What is left over is told as of the last event that was applied, which may be one after the end.
        let unconsumed = self.core.unconsumed();
        work.extend(self.finish.take().map(|end| Work::Finish(leaving(end, unconsumed))));
        work
    }

    /// Everything that a branch waits for now.
    pub(crate) fn waits(&self) -> Vec<Waits> {
        let mut all = Vec::new();
        if let Some(body) = &self.body {
            waits_of(body, &mut all);
        }
        all.extend(self.updates.waits());
        // Of what is awaited together, some may have ended.
        all.retain(|waits| !matches!(waits, Waits::External(op) if self.core.has_ended(*op)));
        all
    }

    /// Others carry something out for the code, and its end comes from them.
    pub(crate) fn awaits_others(&self) -> bool {
        let awaited = |op: &Operation| matches!(op, Operation::Command(op) if op.is_awaited());
        !self.updates.is_empty() || self.core.operations.iter().any(awaited)
    }

    /// Whether an update was carried out.
    pub(crate) fn has_updated(&self, id: &str) -> bool {
        self.core.updated.contains(id)
    }

    /// A guarded attempt is recorded as begun, and nobody says how it stands.
    pub(crate) fn has_begun(&self) -> bool {
        self.core.operations.iter().any(|op| matches!(op, Operation::Step(step) if step.begun))
    }

    /// Whether a signal of this name is there that nobody has taken.
    pub(crate) fn has_signal(&self, name: &str) -> bool {
        self.core.signals.get(name).is_some_and(|s| !s.is_empty())
    }
}

impl Core {
    fn note(&mut self, event: &Event) {
        match &event.body {
            EventBody::StepStarted { step, attempt, in_doubt, .. } => {
                if let Some(op) = self.step(*step) {
                    op.recorded = op.recorded.max(*attempt);
                    (op.begun, op.doubt, op.retry_at) = (in_doubt.is_some(), None, None);
                }
            }
            EventBody::StepInDoubt { step, attempt, .. } => {
                if let Some(op) = self.step(*step) {
                    op.recorded = op.recorded.max(*attempt);
                    (op.begun, op.doubt, op.in_flight) = (false, Some(*attempt), false);
                }
                self.fresh.push(*step);
            }
            EventBody::StepResolved(said) => {
                if let Some(op) = self.step(said.step) {
                    (op.doubt, op.in_flight) = (None, false);
                    op.line = match &said.resolution {
                        Resolution::Completed(result) => Some(line_of(result)),
                        Resolution::Failed(failure) => Some(failure_line(&failure.kind, &failure.message)),
                        Resolution::Retry => None,
                    };
                }
                self.fresh.push(said.step);
            }
            EventBody::VersionMarked { change_id, version } => {
                self.versions.known.insert(change_id.clone(), *version);
            }
            EventBody::StepCompleted { step, attempt, result, .. } => {
                if let Some(op) = self.step(*step) {
                    op.recorded = op.recorded.max(*attempt);
                    (op.begun, op.doubt) = (false, None);
                    op.line = Some(line_of(result));
                }
            }
            EventBody::StepFailed { step, attempt, failure, retry_at, .. } => {
                if let Some(op) = self.step(*step) {
                    op.recorded = op.recorded.max(*attempt);
                    (op.begun, op.doubt) = (false, None);
                    op.in_flight = false;
                    op.retry_at = *retry_at;
                    if retry_at.is_none() {
                        op.line = Some(failure_line(&failure.kind, &failure.message));
                    }
                }
                self.fresh.push(*step);
            }
            EventBody::TimerStarted { timer, .. } => self.timer(*timer, |op| op.started = true),
            EventBody::TimerFired { timer } if timer.kind == TimerKind::Timer => {
                self.timer(OpId(timer.id), |op| op.fired = true);
            }
            // It was due by the database's clock, whatever this worker makes of that.
            EventBody::TimerFired { timer } if timer.kind == TimerKind::Retry => {
                if let Some(op) = self.step(OpId(timer.id)) {
                    op.retry_at = None;
                }
            }
            EventBody::TimerCanceled { timer } => self.timer(*timer, |op| op.cancel_emitted = true),
            EventBody::SignalReceived { name, input, .. } => {
                let id = serde_json::from_slice(&input.data).unwrap_or_else(|e| e.to_string());
                self.signals.entry(name.clone()).or_default().push_back((event.seq, id));
            }
            EventBody::CancelRequested { .. } => self.cancel_requested = true,
            _ => {}
        }
    }

    fn step(&mut self, id: OpId) -> Option<&mut StepOp> {
        match self.operations.get_mut((id.0 as usize).checked_sub(1)?) {
            Some(Operation::Step(step)) => Some(step),
            _ => None,
        }
    }

    fn timer(&mut self, id: OpId, change: impl FnOnce(&mut TimerOp)) {
        let at = (id.0 as usize).wrapping_sub(1);
        if let Some(Operation::Timer(timer)) = self.operations.get_mut(at) {
            change(timer);
        }
    }

    fn unconsumed(&self) -> Vec<Seq> {
        let mut all: Vec<Seq> = self.signals.values().flatten().map(|(seq, _)| *seq).collect();
        all.sort_unstable();
        all
    }

    /// Begins the next op of a sequence if there is none, and looks at it. True when an op has ended.
    fn poll_one(&mut self, sequence: &mut Sequence) -> bool {
        let mut part = match sequence.current.take() {
            Some(part) => part,
            None => match sequence.left.pop_front() {
                Some(op) => self.begin(op),
                None => return false,
            },
        };
        match self.poll_part(&mut part) {
            Some(lines) => {
                sequence.lines.extend(lines);
                true
            }
            None => {
                sequence.current = Some(part);
                false
            }
        }
    }

    fn poll_sequence(&mut self, sequence: &mut Sequence) -> bool {
        while self.poll_one(sequence) {}
        sequence.current.is_none()
    }

    fn begin(&mut self, op: Op) -> Part {
        match op {
            Op::Step(step) => Part::Step(self.begin_step(step, None)),
            Op::Guarded { step, doubt } => Part::Step(self.begin_step(step, Some(doubt))),
            Op::Version { change, step } => {
                if self.build == Build::B && self.version(change) == 1 {
                    Part::Version(self.begin_step(step, None))
                } else {
                    Part::Unchanged
                }
            }
            Op::Sleep { nonce, us } => {
                let id = self.replay.build(OpKind::Timer, Location::caller());
                let built = Some(self.activation);
                self.operations.push(Operation::Timer(TimerOp {
                    us,
                    built,
                    canceled: false,
                    emitted: false,
                    started: false,
                    fired: false,
                    cancel_emitted: false,
                }));
                self.fresh.push(id);
                Part::Sleep(id, nonce)
            }
            Op::Child { nonce, source, abandoned } => {
                Part::Child(self.begin_child((source, ""), abandoned, false), nonce)
            }
            Op::Queued(queued) => Part::Queued(self.begin_queued(&queued)),
            Op::Tell(tell) => Part::Tell(Box::new(self.begin_tell(tell))),
            Op::TellNobody { nonce } => Part::Nobody(self.begin_nobody(&nonce), nonce),
            Op::Update { id, .. } => Part::Update(id),
            Op::Upsert { n } => {
                self.begin_upsert(n);
                Part::Said
            }
            Op::Signal { name, .. } => Part::Signal(name),
            Op::Parallel(branches) => {
                Part::Parallel(branches.into_iter().map(|ops| (Sequence::new(ops), false)).collect())
            }
            Op::Race(arms) => Part::Race(arms.into_iter().map(Sequence::new).collect()),
            Op::Never => Part::Never,
        }
    }

    fn begin_step(&mut self, step: Step, guard: Option<Doubt>) -> OpId {
        let name = self.program.step_name(&step, self.build);
        let id = self.replay.build(OpKind::Step(name.clone()), Location::caller());
        self.operations.push(Operation::Step(StepOp {
            step: Arc::new(step),
            name,
            dropped: false,
            recorded: 0,
            retry_at: None,
            line: None,
            in_flight: false,
            guard,
            begun: false,
            doubt: None,
        }));
        self.fresh.push(id);
        id
    }

    /// A marked version stays; code that the history has passed goes on as before the change.
    fn version(&mut self, change_id: String) -> u32 {
        if let Some(version) = self.versions.known.get(&change_id) {
            return *version;
        }
        let version = u32::from(self.versions.last as usize <= self.replay.len());
        if version == 1 {
            self.versions.fresh.push(CommitCommand::MarkVersion { change_id: change_id.clone(), version });
        }
        self.versions.known.insert(change_id, version);
        version
    }

    fn poll_part(&mut self, part: &mut Part) -> Option<Vec<String>> {
        match part {
            Part::Step(id) => {
                let line = self.step(*id)?.line.clone()?;
                Some(vec![line])
            }
            Part::Version(id) => {
                let line = self.step(*id)?.line.clone()?;
                Some(vec![version_line(1), line])
            }
            Part::Unchanged => Some(vec![version_line(0)]),
            Part::Child(id, nonce) => Some(vec![self.child_line(*id, nonce)?]),
            Part::Queued(id) => Some(vec![self.queued_line(*id)?]),
            Part::Tell(telling) => self.poll_tell(telling),
            Part::Nobody(id, nonce) => Some(self.untold_line(*id, nonce)?.into_iter().collect()),
            Part::Update(id) => self.updated.contains(id).then(|| vec![update_line(id)]),
            Part::Said => Some(Vec::new()),
            Part::Sleep(id, nonce) => match &self.operations[id.0 as usize - 1] {
                Operation::Timer(timer) if timer.fired => Some(vec![sleep_line(nonce)]),
                _ => None,
            },
            Part::Signal(name) => {
                let (_, id) = self.signals.get_mut(name)?.pop_front()?;
                Some(vec![signal_line(&id)])
            }
            Part::Parallel(branches) => {
                let mut all = true;
                for (branch, ended) in branches.iter_mut() {
                    *ended = *ended || self.poll_sequence(branch);
                    all &= *ended;
                }
                all.then(|| branches.iter_mut().flat_map(|(b, _)| std::mem::take(&mut b.lines)).collect())
            }
            Part::Race(arms) => {
                let won = arms.iter_mut().position(|arm| self.poll_sequence(arm))?;
                let mut lines = vec![won_line(won)];
                lines.append(&mut arms[won].lines);
                arms.iter().for_each(|arm| self.drop_sequence(arm));
                Some(lines)
            }
            Part::Never => None,
        }
    }

    /// Nobody waits for what the sequence holds any more.
    fn drop_sequence(&mut self, sequence: &Sequence) {
        match &sequence.current {
            Some(Part::Step(id) | Part::Version(id)) => self.drop_step(*id),
            Some(Part::Child(id, _) | Part::Queued(id) | Part::Nobody(id, _)) => self.drop_command(*id),
            Some(Part::Tell(telling)) => telling.ops().for_each(|id| self.drop_command(id)),
            Some(Part::Sleep(id, _)) => self.drop_timer(*id),
            Some(Part::Parallel(branches)) => branches.iter().for_each(|(b, _)| self.drop_sequence(b)),
            Some(Part::Race(arms)) => arms.iter().for_each(|arm| self.drop_sequence(arm)),
            Some(Part::Signal(_) | Part::Update(_) | Part::Said | Part::Unchanged | Part::Never) | None => {}
        }
    }

    fn drop_step(&mut self, id: OpId) {
        if let Some(step) = self.step(id) {
            step.dropped = true;
        }
    }

    fn drop_timer(&mut self, id: OpId) {
        let activation = self.activation;
        let mut tell = false;
        self.timer(id, |timer| {
            if timer.fired || timer.built.is_none() {
                return;
            }
            timer.canceled = true;
            if timer.built == Some(activation) {
                // Built and dropped between two events: nobody ever asked for it.
                timer.built = None;
            } else {
                tell = true;
            }
        });
        if tell {
            self.fresh.push(id);
        }
    }
}

impl Versions {
    fn of(history: &[Event]) -> Self {
        let mut versions = Self::default();
        for event in history {
            if let EventBody::VersionMarked { change_id, version } = &event.body {
                versions.known.insert(change_id.clone(), *version);
            }
            let op = match &event.body {
                EventBody::StepStarted { step, .. }
                | EventBody::StepInDoubt { step, .. }
                | EventBody::StepCompleted { step, .. }
                | EventBody::StepFailed { step, .. } => step.0,
                EventBody::StepResolved(said) => said.step.0,
                EventBody::TimerStarted { timer, .. } | EventBody::TimerCanceled { timer } => timer.0,
                EventBody::TimerFired { timer } => timer.id,
                EventBody::ChildScheduled(scheduled) => scheduled.child.0,
                EventBody::ChildClosed(closed) => closed.child.0,
                EventBody::ChildStarted { child, .. } => child.0,
                EventBody::StepScheduled(scheduled) => scheduled.step.0,
                EventBody::StepCancelRequested { step } => step.0,
                EventBody::ExternalRequested(requested) => requested.op.0,
                EventBody::ExternalResolved { op, .. } | EventBody::AttributesUpserted { op, .. } => op.0,
                _ => 0,
            };
            versions.last = versions.last.max(op);
        }
        versions
    }
}

fn line_of(result: &Payload) -> String {
    let text: Result<String, _> = serde_json::from_slice(&result.data);
    text.map_or_else(|e| e.to_string(), |text| step_line(&text))
}

fn work_of(id: OpId, operation: &mut Operation) -> Option<Work> {
    match operation {
        Operation::Step(op) => {
            if op.in_flight || op.line.is_some() || op.dropped {
                return None;
            }
            match (op.doubt, op.guard) {
                (Some(_), Some(Doubt::AskHuman)) => return None,
                (Some(attempt), Some(Doubt::Fail)) => {
                    op.in_flight = true;
                    return Some(Work::Command(CommitCommand::FailStep {
                        step: id,
                        name: op.name.clone(),
                        attempt,
                        elapsed: Duration::ZERO,
                        failure: Failure::new(IN_DOUBT, "").non_retryable(),
                        policy: Some(RetryPolicy::none()),
                    }));
                }
                (None, _) | (Some(_), Some(Doubt::Retry) | None) => {}
            }
            op.in_flight = true;
            Some(Work::Attempt(Attempt {
                id,
                step: Arc::clone(&op.step),
                name: op.name.clone(),
                attempt: op.recorded + 1,
                not_before: op.retry_at,
                guard: op.guard.map(Doubt::policy),
            }))
        }
        Operation::Command(op) => op.next().map(Work::Command),
        Operation::Timer(op) => {
            op.built?;
            if op.canceled {
                if !(op.started || op.emitted) || op.fired || op.cancel_emitted {
                    return None;
                }
                op.cancel_emitted = true;
                return Some(Work::Command(CommitCommand::CancelTimer { timer: id }));
            }
            if op.started || op.emitted || op.fired {
                return None;
            }
            op.emitted = true;
            let delay = Duration::from_micros(op.us);
            Some(Work::Command(CommitCommand::StartTimer { timer: id, delay }))
        }
    }
}

fn waits_of(sequence: &Sequence, all: &mut Vec<Waits>) {
    match &sequence.current {
        Some(Part::Step(id) | Part::Version(id)) => all.push(Waits::Step(*id)),
        Some(Part::Sleep(id, _)) => all.push(Waits::Timer(*id)),
        Some(Part::Child(id, _)) => all.push(Waits::Child(*id)),
        Some(Part::Queued(id)) => all.push(Waits::Queued(*id)),
        Some(Part::Tell(telling)) => all.extend(telling.waits()),
        Some(Part::Nobody(id, _)) => all.push(Waits::External(*id)),
        Some(Part::Update(id)) => all.push(Waits::Update(id.clone())),
        Some(Part::Signal(name)) => all.push(Waits::Signal(name.clone())),
        Some(Part::Parallel(branches)) => {
            branches.iter().filter(|(_, ended)| !ended).for_each(|(b, _)| waits_of(b, all));
        }
        Some(Part::Race(arms)) => arms.iter().for_each(|arm| waits_of(arm, all)),
        Some(Part::Said | Part::Unchanged | Part::Never) | None => {}
    }
}

/// The end, with the signals that are left over.
fn leaving(mut end: CommitCommand, left: Vec<Seq>) -> CommitCommand {
    match &mut end {
        CommitCommand::CompleteRun { unconsumed, .. } | CommitCommand::FailRun { unconsumed, .. } => {
            *unconsumed = left;
        }
        CommitCommand::ContinueAsNew(next) => next.unconsumed = left,
        _ => {}
    }
    end
}

/// How a run ended, in the words of the prediction; `None` while it is open.
pub(crate) fn ended(last: &EventBody) -> Option<program::Outcome> {
    Some(match last {
        EventBody::RunCompleted { result, .. } => {
            let lines: Vec<String> = serde_json::from_slice(&result.data).unwrap_or_default();
            program::Outcome::Completed { output_sha256: program::output_sha256(&lines) }
        }
        EventBody::RunFailed { failure, .. } => {
            program::Outcome::Failed { failure_kind: failure.kind.clone() }
        }
        EventBody::RunCanceled { .. } => program::Outcome::Canceled,
        EventBody::RunTerminated { .. } => program::Outcome::Terminated,
        EventBody::RunContinued { .. } => program::Outcome::Continued,
        EventBody::RunTimedOut { .. } => program::Outcome::Failed { failure_kind: "RunTimeout".to_owned() },
        _ => return None,
    })
}
