//! Runs in memory: requests are decided by the core, what follows is scheduled on a virtual clock.
//!
//! One thing happens at a time. Whatever takes time (a message, an attempt, a timer) is an entry of one queue,
//! ordered by instant and then by when it was put there, so that the same plan of faults takes the same way.

mod attempt;
mod builds;
mod children;
mod doubt;
mod queued;
mod starts;
mod succession;
mod worker;

use std::collections::BTreeMap;

use everstep_core::{
    Actor, Command, CommandBody, CommandId, CommitCommand, Decision, Event, EventBody, KnownRequest, OpId,
    Rejection, Resolution, Run, RunId, Seq, SessionId, TimerKey, TimerKind, Timestamp, WorkerCommit, Write,
    WriteBasis, decide,
};
use uuid::Uuid;

use self::attempt::{Attempt, Ended};
use self::builds::Builds;
use self::doubt::Look;
use self::queued::{Queued, Turn, Which};
use self::worker::Held;
use super::faults::{Death, Faults};
use super::{Effect, Effects, Error, History, Mock};

/// 2026-01-01T00:00:00Z.
const FIRST_INSTANT: i64 = 1_767_225_600_000_000;
const NAMESPACE: &str = "default";
const QUEUE: &str = "default";
/// Who asks, and who works, in histories.
const IDENTITY: &str = "test";

/// Every run of an environment, the clock, and what is still to come.
pub(super) struct Engine {
    pub(super) builds: Builds,
    pub(super) mocks: BTreeMap<String, Mock>,
    pub(super) queued: Queued,
    /// Steps without a mock fail.
    pub(super) mocked_only: bool,
    pub(super) faults: Faults,
    /// Microseconds since 1970, by the clock that never jumps.
    now: i64,
    /// What the clock of the database is ahead of that.
    skew: i64,
    runs: BTreeMap<RunId, Slot>,
    /// What the requests of callers started, by workflow id and request id.
    starts: BTreeMap<(String, String), KnownRequest>,
    coming: BTreeMap<(i64, u64), Coming>,
    /// Entries made so far: those of one instant come in this order.
    order: u64,
    /// When the last thing is told that others have to hear of a run.
    telling: BTreeMap<RunId, i64>,
    /// Ids made so far.
    made: u64,
    effects: Vec<Effect>,
}

/// One run.
struct Slot {
    run: Run,
    history: Vec<Event>,
    held: Option<Held>,
    /// A holder that stalls: what it has begun goes on.
    stalled: Option<u32>,
    /// What this holder sent and has not arrived is lost.
    cut_off: Option<u32>,
}

/// Something that will happen.
enum Coming {
    /// Somebody asks the run for something.
    Asked { run: RunId, command: Command },
    /// The run looks for a worker.
    Claim { run: RunId },
    /// An instant of the run's has come.
    Timer { run: RunId, timer: TimerKey },
    /// A commit arrives.
    Commit { run: RunId, commit: WorkerCommit },
    /// The holder hears of new events.
    News { run: RunId, epoch: u32 },
    /// An attempt is due.
    Begin { run: RunId, epoch: u32, attempt: Box<Attempt> },
    /// An attempt does what it does.
    Effect { run: RunId, epoch: u32, attempt: Box<Attempt> },
    /// An attempt has run for so long that it shows.
    Show { run: RunId, epoch: u32, start: CommitCommand },
    /// An attempt has ended.
    End { run: RunId, epoch: u32, ended: Box<Ended> },
    /// A probe asks about an attempt in doubt.
    Look { run: RunId, epoch: u32, look: Box<Look> },
    /// Others have to hear of an event of the run.
    Tell { run: RunId, seq: Seq },
    /// A person says what became of the attempts that wait for one.
    Person { run: RunId },
    /// Something happens to an attempt of a queued step.
    Queued { which: Which, turn: Turn },
    /// The holder looks whether the run still only waits.
    Idle { run: RunId, epoch: u32, since: i64 },
}

impl Engine {
    pub(super) fn new() -> Self {
        Self {
            builds: Builds::default(),
            mocks: BTreeMap::new(),
            queued: Queued::default(),
            mocked_only: false,
            faults: Faults::none(),
            now: FIRST_INSTANT,
            skew: 0,
            runs: BTreeMap::new(),
            starts: BTreeMap::new(),
            coming: BTreeMap::new(),
            order: 0,
            telling: BTreeMap::new(),
            made: 0,
            effects: Vec::new(),
        }
    }

    pub(super) fn set_now(&mut self, now: i64) {
        self.now = now;
    }

    /// The time that events carry.
    pub(super) fn time(&self) -> Timestamp {
        Timestamp::from_micros(self.now + self.skew)
    }

    /// The clock that never jumps.
    pub(super) fn now(&self) -> i64 {
        self.now
    }

    pub(super) fn run(&self, run: RunId) -> Result<&Run, Error> {
        self.runs.get(&run).map(|slot| &slot.run).ok_or(Error::UnknownRun(run))
    }

    pub(super) fn history(&self, run: RunId) -> Result<History, Error> {
        let slot = self.runs.get(&run).ok_or(Error::UnknownRun(run))?;
        Ok(History::new(run, slot.history.clone()))
    }

    pub(super) fn effects(&self) -> Effects {
        let mut effects: Effects = self.effects.iter().cloned().collect();
        effects.mark_recorded(self.runs.iter().map(|(&run, slot)| (run, slot.history.as_slice())));
        effects
    }

    /// A request of a caller.
    pub(super) fn command(&mut self, body: CommandBody) -> Command {
        let id = CommandId::from_uuid(self.new_id());
        Command { id, actor: Actor::Client(IDENTITY.to_owned()), body }
    }

    /// An id that nothing else has.
    pub(super) fn new_id(&mut self) -> Uuid {
        self.made += 1;
        Uuid::from_u128(0x8000_0000_0000_0000_0000 | u128::from(self.made))
    }

    fn run_id(&mut self) -> RunId {
        self.made += 1;
        let millis = u128::from((self.now / 1_000).cast_unsigned());
        // A UUIDv7, as the server makes them: the time, then what tells it apart.
        RunId::from_uuid(Uuid::from_u128((millis << 80) | (0x7000_8000 << 48) | u128::from(self.made)))
    }

    fn session_id(&mut self) -> SessionId {
        SessionId::from_uuid(self.new_id())
    }

    /// Decides a request, and schedules what follows from it.
    pub(super) fn request(&mut self, run: RunId, command: &Command) -> Result<(), Error> {
        let time = self.time();
        let slot = self.runs.get_mut(&run).ok_or(Error::UnknownRun(run))?;
        let Decision { events, follows } = decide(&slot.run, command, time)?;
        if events.is_empty() {
            return Ok(());
        }
        let basis = WriteBasis::of(&slot.run);
        for event in &events {
            slot.run.apply(event)?;
        }
        let writes = basis.writes(&slot.run, &events);
        let in_doubt = events.iter().any(|e| matches!(e.body, EventBody::StepInDoubt { .. }));
        slot.history.extend(events);
        self.follow(run, writes);
        if let Some(next) = follows {
            self.succeed(run, &next)?;
        }
        if in_doubt {
            self.call_person(run);
        }
        self.tell_holder(run);
        Ok(())
    }

    /// What a store would write is what has to happen later.
    fn follow(&mut self, run: RunId, writes: Vec<Write>) {
        for write in writes {
            match write {
                Write::TimerSet(timer) => {
                    let at = timer.fire_at.as_micros().saturating_sub(self.skew).max(self.now);
                    self.at(at, Coming::Timer { run, timer: timer.key });
                }
                Write::TaskSet(_) => {
                    let delay = self.faults.delay();
                    self.after(delay, Coming::Claim { run });
                }
                Write::StepTaskSet(task) => self.plan_queued(run, &task),
                Write::OutboxSet { seq } => self.plan_telling(run, seq),
                _ => {}
            }
        }
    }

    fn at(&mut self, at: i64, coming: Coming) {
        self.order += 1;
        self.coming.insert((at.max(self.now), self.order), coming);
    }

    fn after(&mut self, micros: u64, coming: Coming) {
        self.at(later(self.now, micros), coming);
    }

    /// Lets everything happen that is due within `micros` from now, and moves the clock there.
    pub(super) async fn advance(&mut self, micros: u64) -> Result<(), Error> {
        let end = later(self.now, micros);
        while self.coming.first_key_value().is_some_and(|((at, _), _)| *at <= end) {
            self.turn().await?;
        }
        self.now = end;
        Ok(())
    }

    /// Lets the next thing happen, whenever that is. False when nothing is left.
    pub(super) async fn turn(&mut self) -> Result<bool, Error> {
        let Some(((at, _), coming)) = self.coming.pop_first() else { return Ok(false) };
        self.now = at;
        if let Some(by) = self.faults.jump() {
            self.jump(by);
        }
        match coming {
            Coming::Asked { run, command } => self.asked(run, &command)?,
            Coming::Claim { run } => self.claim(run)?,
            Coming::Timer { run, timer } => self.fire(run, timer)?,
            Coming::Commit { run, commit } => self.commit_arrives(run, &commit)?,
            Coming::News { run, epoch } => self.news(run, epoch),
            Coming::Begin { run, epoch, attempt } => self.begin(run, epoch, attempt),
            Coming::Effect { run, epoch, attempt } => self.effect(run, epoch, *attempt).await,
            Coming::Show { run, epoch, start } => self.show(run, epoch, start),
            Coming::End { run, epoch, ended } => self.attempt_ended(run, epoch, *ended),
            Coming::Look { run, epoch, look } => self.look(run, epoch, look).await,
            Coming::Person { run } => self.person(run)?,
            Coming::Tell { run, seq } => self.tell_others(run, seq)?,
            Coming::Queued { which, turn } => self.queued_turn(which, turn).await?,
            Coming::Idle { run, epoch, since } => self.park(run, epoch, since),
        }
        Ok(true)
    }

    /// A planned message comes; a run that has ended refuses it, as it does in life.
    fn asked(&mut self, run: RunId, command: &Command) -> Result<(), Error> {
        match self.request(run, command) {
            // Who names the workflow id means the run that goes on.
            Err(Error::Refused(Rejection::RunClosed { successor: Some(next), .. })) => {
                self.asked(next, command)
            }
            Err(Error::Refused(Rejection::RunClosed { .. })) => Ok(()),
            other => other,
        }
    }

    fn fire(&mut self, run: RunId, timer: TimerKey) -> Result<(), Error> {
        let Some(due) = self.runs.get(&run).and_then(|slot| slot.run.timer(timer)) else { return Ok(()) };
        let at = due.as_micros().saturating_sub(self.skew);
        if at > self.now {
            // The clock of the database went back meanwhile.
            self.at(at, Coming::Timer { run, timer });
            return Ok(());
        }
        let mut command = self.command(CommandBody::FireTimer { timer });
        command.actor = Actor::System;
        self.request(run, &command)?;
        let left = self.faults.parks() && self.run(run)?.timer(timer).is_some();
        if timer.kind == TimerKind::Retry && left {
            // Its owner begins the attempt by itself; should it let go before that, the run has to be woken.
            self.after(1_000_000, Coming::Timer { run, timer });
        }
        Ok(())
    }

    /// The clock of the database jumps: what waits for it is due sooner, or later.
    fn jump(&mut self, by: i64) {
        self.skew += by;
        let text = format!("the database's clock jumps by {:.3} s", by as f64 / 1e6);
        self.tell(text);
        if by < 0 {
            // Timers that come too early are put off when they come.
            return;
        }
        let coming = std::mem::take(&mut self.coming);
        for ((at, order), entry) in coming {
            let timer = matches!(entry, Coming::Timer { .. });
            let at = if timer { at.saturating_sub(by).max(self.now) } else { at };
            self.coming.insert((at, order), entry);
        }
    }

    fn tell(&mut self, text: String) {
        let at = super::effects::instant(self.time());
        self.faults.tell(format!("{at}  {text}"));
    }

    /// Says what became of the attempt of a step that is in doubt.
    pub(super) fn resolve_step(
        &mut self,
        run: RunId,
        step: &str,
        resolution: Resolution,
    ) -> Result<(), Error> {
        let doubt = self.run(run)?.doubts().into_iter().find(|doubt| doubt.name == step);
        let which = doubt.map_or((OpId(0), 0), |doubt| (doubt.step, doubt.attempt));
        self.resolve(run, which, resolution)
    }

    /// The holder of a run dies, and is found to be dead later.
    fn die(&mut self, run: RunId, death: Death, place: &str) {
        let lease = self.faults.lease();
        let Some(slot) = self.runs.get_mut(&run) else { return };
        let Some(held) = slot.held.take() else { return };
        if death == Death::Stalled {
            slot.stalled = Some(held.epoch);
        }
        let word = if death == Death::Killed { "is killed" } else { "stalls until its lease is over" };
        self.tell(format!("the worker of epoch {} {word} {place}", held.epoch));
        let mut command =
            self.command(CommandBody::Detach(everstep_core::Detach { session: held.session, refused: None }));
        command.actor = Actor::System;
        self.after(lease, Coming::Asked { run, command });
    }

    /// Every worker dies now, and is found to be dead at once.
    pub(super) fn crash(&mut self) {
        let runs: Vec<RunId> = self.runs.keys().copied().collect();
        for run in runs {
            self.die(run, Death::Killed, "by the test");
        }
    }
}

/// An instant so many microseconds later.
fn later(at: i64, micros: u64) -> i64 {
    at.saturating_add(i64::try_from(micros).unwrap_or(i64::MAX))
}
