//! The worker's side: a run that is held, its machine, and the commits on their way.

use std::collections::BTreeMap;

use everstep_core::{
    Actor, Command, CommandBody, CommandId, CommitCommand, Event, EventBody, OpId, Rejection, RunId,
    RunStatus, Seq, SessionId, WorkerCommit, limits,
};

use super::attempt::Attempt;
use super::doubt::{Look, given_up};
use super::{Coming, Engine, IDENTITY, later};
use crate::ctx::{Known, end_of};
use crate::machine::{Machine, Obstacle, Work};
use crate::testing::Error;

/// How long a run that only waits is kept.
const PARK_AFTER: u64 = 1_000_000;

/// A run that a worker holds.
pub(super) struct Held {
    pub(super) epoch: u32,
    pub(super) session: SessionId,
    pub(super) build_id: String,
    machine: Option<Machine>,
    seen: Seq,
    /// Number of the last commit.
    number: u32,
    unanswered: u32,
    /// Attempts that run.
    pub(super) running: BTreeMap<OpId, u32>,
    /// Guarded attempts that begin when their start is recorded.
    pub(super) starting: BTreeMap<OpId, Box<Attempt>>,
    /// Attempts that are due later, and when.
    pub(super) waiting: BTreeMap<OpId, i64>,
    /// The commit that lets go of the run is on its way.
    leaving: bool,
    /// The machine stands at an event that it cannot follow.
    given_up: bool,
    /// Messages on one stream keep their order: when the last one arrives, up and down.
    last_up: i64,
    last_down: i64,
    idle_since: Option<i64>,
}

impl Held {
    fn new(epoch: u32, session: SessionId, build_id: String) -> Self {
        Self {
            epoch,
            session,
            build_id,
            machine: None,
            seen: 0,
            number: 0,
            unanswered: 0,
            running: BTreeMap::new(),
            starting: BTreeMap::new(),
            waiting: BTreeMap::new(),
            leaving: false,
            given_up: false,
            last_up: 0,
            last_down: 0,
            idle_since: None,
        }
    }

    pub(super) fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }

    /// A probe has found that the attempt had no effect.
    pub(super) fn disprove(&mut self, step: OpId, attempt: u32) {
        if let Some(machine) = &mut self.machine {
            machine.disprove(step, attempt);
        }
    }

    /// The guarded attempt that may begin now, because this is the record of its start.
    fn guarded(&mut self, event: &Event) -> Option<Box<Attempt>> {
        match &event.body {
            EventBody::StepStarted { step, attempt, in_doubt: Some(_), .. } if event.epoch == self.epoch => {
                let starts = self.starting.get(step).is_some_and(|starting| starting.attempt == *attempt);
                if starts { self.starting.remove(step) } else { None }
            }
            // A person was faster: whatever is done here about the doubt counts for nothing.
            EventBody::StepResolved(resolved) => {
                self.starting.remove(&resolved.step);
                self.waiting.remove(&resolved.step);
                self.running.remove(&resolved.step);
                None
            }
            _ => None,
        }
    }

    fn apply(&mut self, event: &Event) -> Result<(), Obstacle> {
        self.seen = event.seq;
        self.machine.as_mut().map_or(Ok(()), |machine| machine.apply(event))
    }
}

impl Engine {
    /// The holder of a run under this epoch, if it is alive.
    pub(super) fn held(&mut self, run: RunId, epoch: u32) -> Option<&mut Held> {
        self.runs.get_mut(&run)?.held.as_mut().filter(|held| held.epoch == epoch)
    }

    /// A worker takes the run and replays it.
    pub(super) fn claim(&mut self, run: RunId) -> Result<(), Error> {
        let state = self.run(run)?;
        if !state.needs_worker() && state.status() != RunStatus::Blocked {
            return Ok(());
        }
        let Some((attach, workflow)) = self.suitable(run)? else { return Ok(()) };
        let (session, build_id) = (attach.session, attach.worker.build_id.clone());
        let mut command = self.command(CommandBody::Attach(attach));
        command.actor = Actor::System;
        self.request(run, &command)?;
        let Some(slot) = self.runs.get_mut(&run) else { return Ok(()) };
        if slot.run.owner().is_none_or(|owner| owner.session != session) {
            // It is blocked: worker after worker recorded nothing.
            return Ok(());
        }
        let mut held = Held::new(slot.run.epoch(), session, build_id);
        let start = slot.run.start();
        let at = slot.history.first().map_or(self.now, |first| first.at.as_micros());
        let at = everstep_core::Timestamp::from_micros(at);
        held.machine = Some(Machine::new(run, start, at, &workflow, Known::of(&slot.history)));
        let met = replay(&mut held, &slot.history);
        let epoch = held.epoch;
        slot.held = Some(held);
        if let Err(obstacle) = met {
            self.meet(run, epoch, obstacle);
        }
        self.go_on(run, epoch);
        Ok(())
    }

    /// The holder of a run, if it has one, will hear of its events.
    pub(super) fn tell_holder(&mut self, run: RunId) {
        let delay = self.faults.delay();
        let at = later(self.now, delay);
        let Some(held) = self.runs.get_mut(&run).and_then(|slot| slot.held.as_mut()) else { return };
        held.last_down = held.last_down.max(at);
        let (at, epoch) = (held.last_down, held.epoch);
        self.at(at, Coming::News { run, epoch });
    }

    /// The holder hears of all that it has not seen.
    pub(super) fn news(&mut self, run: RunId, epoch: u32) {
        let Some(slot) = self.runs.get_mut(&run) else { return };
        let Some(held) = slot.held.as_mut().filter(|held| held.epoch == epoch) else { return };
        let seen = usize::try_from(held.seen).unwrap_or(usize::MAX);
        let mut begun = Vec::new();
        for event in slot.history.iter().skip(seen) {
            let gone = matches!(event.body, EventBody::WorkerDetached { .. } | EventBody::RunBlocked(_));
            if gone || event.body.is_terminal() {
                slot.held = None;
                return;
            }
            if held.given_up {
                held.seen = event.seq;
                continue;
            }
            if let Err(obstacle) = held.apply(event) {
                self.meet(run, epoch, obstacle);
                return;
            }
            begun.extend(held.guarded(event));
        }
        for attempt in begun {
            self.run_attempt(run, epoch, attempt);
        }
        self.go_on(run, epoch);
    }

    /// The workflow cannot go on here: the run is blocked, or given back.
    fn meet(&mut self, run: RunId, epoch: u32, obstacle: Obstacle) {
        let Some(held) = self.held(run, epoch) else { return };
        let command = match obstacle {
            Obstacle::Blocked(mut blocked) => {
                blocked.build_id.clone_from(&held.build_id);
                CommitCommand::Block(blocked)
            }
            Obstacle::Panicked(reason) => CommitCommand::Release { reason },
        };
        held.given_up = true;
        held.leaving = true;
        self.commit(run, epoch, vec![command]);
    }

    /// Does what the workflow wants and nobody does yet.
    pub(super) fn go_on(&mut self, run: RunId, epoch: u32) {
        let Some(held) = self.held(run, epoch).filter(|held| !held.leaving) else { return };
        let work = held.machine.as_mut().map(Machine::take_work).unwrap_or_default();
        let mut commands = Vec::new();
        for work in work {
            match wanted(work) {
                Wanted::Attempt(attempt) => self.plan_attempt(run, epoch, attempt),
                Wanted::Look(look) => self.plan_look(run, epoch, look),
                Wanted::Commit(command) => commands.push(command),
                Wanted::End(command) => {
                    commands.push(command);
                    if let Some(held) = self.held(run, epoch) {
                        held.leaving = true;
                    }
                }
            }
        }
        self.commit(run, epoch, commands);
        self.watch_idle(run, epoch);
    }

    /// Sends what the holder did.
    pub(super) fn commit(&mut self, run: RunId, epoch: u32, mut commands: Vec<CommitCommand>) {
        while !commands.is_empty() {
            let rest = commands.split_off(commands.len().min(limits::COMMIT_COMMANDS_MAX));
            let at = later(self.now, self.faults.delay());
            let Some(held) = self.held(run, epoch) else { return };
            held.number += 1;
            held.unanswered += 1;
            held.last_up = held.last_up.max(at);
            let (at, number, seen) = (held.last_up, held.number, held.seen);
            let commit = WorkerCommit { epoch, number, seen, commands, ahead: None };
            self.at(at, Coming::Commit { run, commit });
            commands = rest;
        }
    }

    pub(super) fn commit_arrives(&mut self, run: RunId, commit: &WorkerCommit) -> Result<(), Error> {
        let epoch = commit.epoch;
        if self.runs.get(&run).is_some_and(|slot| slot.cut_off == Some(epoch)) {
            return Ok(());
        }
        let what = describe(&commit.commands);
        if self.held(run, epoch).is_some()
            && let Some(death) = self.faults.death()
        {
            self.die(run, death, &format!("before it records {what}"));
            if let Some(slot) = self.runs.get_mut(&run) {
                slot.cut_off = Some(epoch);
            }
            return Ok(());
        }
        let id = CommandId::of_worker(run, epoch, commit.number);
        let actor = Actor::Worker(IDENTITY.to_owned());
        let command = Command { id, actor, body: CommandBody::Commit(commit.clone()) };
        match self.request(run, &command) {
            Ok(()) => self.recorded(run, &command, &what),
            Err(Error::Refused(rejection)) => self.rejected(run, commit, rejection),
            Err(error) => Err(error),
        }
    }

    fn recorded(&mut self, run: RunId, command: &Command, what: &str) -> Result<(), Error> {
        let CommandBody::Commit(WorkerCommit { epoch, commands, .. }) = &command.body else { return Ok(()) };
        if !matches!(commands.first(), Some(CommitCommand::Release { .. })) {
            self.faults.progress();
        }
        if self.faults.hiccup() {
            // The answer was lost. A repeat is recognised, also when the run has ended by then.
            self.request(run, command)?;
        }
        let Some(held) = self.held(run, *epoch) else { return Ok(()) };
        held.unanswered = held.unanswered.saturating_sub(1);
        if self.run(run)?.owner().is_some()
            && let Some(death) = self.faults.death()
        {
            self.die(run, death, &format!("after it recorded {what}"));
        }
        Ok(())
    }

    fn rejected(&mut self, run: RunId, commit: &WorkerCommit, rejection: Rejection) -> Result<(), Error> {
        match rejection {
            Rejection::UnseenEvents { .. } => {
                // Something came while the run was being parked: it stays.
                let Some(held) = self.held(run, commit.epoch) else { return Ok(()) };
                held.unanswered = held.unanswered.saturating_sub(1);
                held.leaving = held.given_up;
                self.go_on(run, commit.epoch);
                Ok(())
            }
            Rejection::Fenced { .. } | Rejection::RunClosed { .. } => {
                if let Some(slot) = self.runs.get_mut(&run) {
                    slot.held.take_if(|held| held.epoch == commit.epoch);
                }
                Ok(())
            }
            refused => Err(Error::Refused(refused)),
        }
    }

    /// A run that only waits is looked at again a little later.
    fn watch_idle(&mut self, run: RunId, epoch: u32) {
        if !self.faults.parks() {
            return;
        }
        let now = self.now;
        let Some(held) = self.held(run, epoch) else { return };
        held.idle_since = None;
        if held.is_idle(now) {
            held.idle_since = Some(now);
            self.after(PARK_AFTER, Coming::Idle { run, epoch, since: now });
        }
    }

    /// Lets go of a run that has only waited since then.
    pub(super) fn park(&mut self, run: RunId, epoch: u32, since: i64) {
        let now = self.now;
        let Some(held) = self.held(run, epoch) else { return };
        if held.idle_since == Some(since) && held.is_idle(now) {
            held.leaving = true;
            self.commit(run, epoch, vec![CommitCommand::Park]);
        }
    }
}

impl Held {
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }

    fn is_idle(&self, now: i64) -> bool {
        let soon = later(now, PARK_AFTER);
        let waits = self.machine.as_ref().is_some_and(Machine::is_waiting);
        let attempt_soon = self.waiting.values().any(|&at| at <= soon);
        let under_way = !self.running.is_empty() || !self.starting.is_empty() || self.unanswered > 0;
        waits && !self.leaving && !under_way && !attempt_soon
    }
}

/// Applies the recorded history. From the last time that somebody let go of the run, events are news.
fn replay(held: &mut Held, history: &[Event]) -> Result<(), Obstacle> {
    let let_go = |e: &Event| matches!(e.body, EventBody::WorkerDetached { .. } | EventBody::RunBlocked(_));
    let replayed = history.iter().rposition(let_go).map_or(0, |i| i + 1);
    for (i, event) in history.iter().enumerate() {
        if i == replayed
            && let Some(machine) = &mut held.machine
        {
            machine.end_replay();
        }
        held.apply(event)?;
    }
    Ok(())
}

/// What a workflow wants done: run by the worker, or recorded.
enum Wanted {
    Attempt(Box<Attempt>),
    Look(Box<Look>),
    Commit(CommitCommand),
    /// Recorded, and nothing after it.
    End(CommitCommand),
}

fn wanted(work: Work) -> Wanted {
    match work {
        Work::Attempt { id, name, attempt, policy, timeout, not_before, guard, run } => {
            let attempt = Attempt { id, name, attempt, policy, timeout, not_before, guard, run };
            Wanted::Attempt(Box::new(attempt))
        }
        Work::Probe { id, name, attempt, timeout, run } => {
            Wanted::Look(Box::new(Look { id, name, attempt, timeout, run, looks: 0 }))
        }
        Work::GiveUp { id, name, attempt, failure } => Wanted::Commit(given_up(id, name, attempt, failure)),
        Work::StartTimer { id, delay } => {
            Wanted::Commit(CommitCommand::StartTimer { timer: id, delay: delay.into() })
        }
        Work::Command(command) => Wanted::Commit(*command),
        Work::CancelTimer { id } => Wanted::Commit(CommitCommand::CancelTimer { timer: id }),
        Work::MarkVersion { change_id, version } => {
            Wanted::Commit(CommitCommand::MarkVersion { change_id, version })
        }
        Work::Finish { outcome, unconsumed } => Wanted::End(end_of(outcome, unconsumed)),
    }
}

/// What a commit records, in a few words.
fn describe(commands: &[CommitCommand]) -> String {
    let word = |command: &CommitCommand| match command {
        CommitCommand::StartStep { step, name, attempt, .. } => {
            format!("the start of '{name}' {step}, attempt {attempt}")
        }
        CommitCommand::CompleteStep { step, name, attempt, .. }
        | CommitCommand::FailStep { step, name, attempt, .. } => {
            format!("the end of '{name}' {step}, attempt {attempt}")
        }
        CommitCommand::StartTimer { timer, .. } => format!("the start of timer {timer}"),
        CommitCommand::CancelTimer { timer } => format!("the cancel of timer {timer}"),
        CommitCommand::ScheduleStep(scheduled) => {
            format!("that '{}' {} is queued", scheduled.name, scheduled.step)
        }
        CommitCommand::CancelStep { step } => format!("the cancel of queued step {step}"),
        CommitCommand::StartChild(scheduled) => format!("the start of child {}", scheduled.child),
        CommitCommand::RequestExternal(requested) => format!("request {} to another run", requested.op),
        CommitCommand::Upsert { op, .. } => format!("what upsert {op} says about the run"),
        CommitCommand::CompleteUpdate { accepted, .. } => {
            format!("the end of the update that event {accepted} accepted")
        }
        CommitCommand::MarkVersion { change_id, version } => format!("version {version} of '{change_id}'"),
        CommitCommand::CompleteRun { .. }
        | CommitCommand::FailRun { .. }
        | CommitCommand::CancelRun { .. }
        | CommitCommand::ContinueAsNew(_) => "the end of the run".to_owned(),
        CommitCommand::Park => "that it lets go".to_owned(),
        CommitCommand::Release { .. } => "that it gives the run back".to_owned(),
        CommitCommand::Block(_) => "that the run is blocked".to_owned(),
    };
    commands.iter().map(word).collect::<Vec<_>>().join(", ")
}
