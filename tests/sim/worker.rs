//! The worker's side of the stream, as a model: leases, attempts, commits, parking.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use everstep_core::{
    Actor, AskId, CommandId, CommitCommand, DetachReason, Duration, Epoch, Event, EventBody, Failure, OpId,
    Payload, Rejection, RunId, Seq, SessionId, Timestamp, WorkerCommit,
};
use everstep_engine::{HeldRun, Query, Said, StepKey, WorkerIn, WorkerOut};
use everstep_tests::program::{Build, Ends, FLAKY, Program, QueuedStep, REFUSED, Source, agrees};

use crate::hands::Hands;
use crate::model::{Attempt, Model, Obstacle, Work};
use crate::world::MARGIN_US;

/// A step that runs longer than this shows as started.
const SHOW_STARTED_US: u64 = 20_000;
/// Longest time since an event, by which the database's clock is reckoned.
const RECKON_US: u64 = 5_000_000;

/// A run that a worker holds.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) epoch: Epoch,
    program: Arc<Program>,
    model: Model,
    seen: Seq,
    number: u32,
    unacked: Vec<WorkerCommit>,
    /// Attempts that run, and when they show as started.
    running: BTreeMap<OpId, (Attempt, Option<u64>)>,
    /// Guarded attempts whose start is on its way to the log.
    starting: BTreeMap<OpId, Attempt>,
    /// Attempts that wait for their instant, or for the lease: those have no row that would wake a parked run.
    waiting: BTreeMap<OpId, Waiting>,
    /// The end of a step that the model knows before it is recorded.
    ahead: Option<Ahead>,
    /// Questions that wait until the run knows enough, how much that is, and what its code says.
    asks: Vec<(AskId, Seq, Said)>,
    /// Others have told the run something.
    called: bool,
    idle_since: Option<u64>,
    leaving: bool,
    given_up: bool,
    /// Database time of the last event, and when it came.
    clock: Option<(i64, u64)>,
}

/// A step's end that was applied as this event, and what waits for its record.
#[derive(Debug)]
struct Ahead {
    number: u32,
    event: Event,
    end: CommitCommand,
    attempts: Vec<Attempt>,
}

/// An attempt that cannot begin yet.
#[derive(Debug)]
struct Waiting {
    at_us: u64,
    attempt: Attempt,
    for_lease: bool,
    /// Its start is durable.
    started: bool,
}

/// What a worker wants of the world.
#[derive(Debug)]
pub(crate) enum Act {
    Send(WorkerIn),
    /// Run an attempt, which ends after its step's time.
    Execute {
        run: RunId,
        epoch: Epoch,
        attempt: Attempt,
    },
    /// Look at the run again then.
    Later {
        run: RunId,
        epoch: Epoch,
        at_us: u64,
    },
    /// Run an attempt of a queued step, which goes on from what one before it has said.
    Work {
        key: StepKey,
        queued: Box<QueuedStep>,
        before: Payload,
    },
    /// Connect again, with whatever session is left.
    Reconnect,
}

/// One worker process.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) build: Build,
    pub(crate) park_after_us: u64,
    pub(crate) session: Option<SessionId>,
    pub(crate) runs: BTreeMap<RunId, Held>,
    pub(crate) hands: Hands,
    pub(crate) lease_us: u64,
    /// When the heartbeat was sent that was acknowledged last.
    pub(crate) renewed_us: u64,
    pub(crate) sent: BTreeMap<u64, u64>,
    pub(crate) connected_us: u64,
    /// Greeted on the present stream: until then nothing is said, because what is unanswered goes first.
    pub(crate) welcomed: bool,
}

impl Worker {
    pub(crate) fn new(build: Build, park_after_us: u64, step_slots: u32) -> Self {
        Self {
            build,
            park_after_us,
            session: None,
            runs: BTreeMap::new(),
            hands: Hands::new(step_slots),
            lease_us: 0,
            renewed_us: 0,
            sent: BTreeMap::new(),
            connected_us: 0,
            welcomed: false,
        }
    }

    pub(crate) fn build_id(&self) -> &'static str {
        match self.build {
            Build::A => "A",
            Build::B => "B",
        }
    }

    fn may_start(&self, now_us: u64) -> bool {
        self.session.is_some() && now_us + MARGIN_US < self.renewed_us + self.lease_us
    }

    pub(crate) fn held(&self) -> Vec<HeldRun> {
        let held = |(&run_id, h): (&RunId, &Held)| HeldRun { run_id, epoch: h.epoch, seen: h.seen };
        self.runs.iter().map(held).collect()
    }

    pub(crate) fn drop_all(&mut self) {
        self.runs.clear();
        self.hands.clear();
        self.session = None;
        self.sent.clear();
    }

    fn welcome(&mut self, session: SessionId, lease: Duration, resumed: bool, now_us: u64) -> Vec<Act> {
        self.lease_us = lease.as_micros();
        if !resumed {
            self.drop_all();
        }
        self.session = Some(session);
        self.welcomed = true;
        self.renewed_us = self.connected_us;
        let again = |(&run_id, h): (&RunId, &Held)| -> Vec<Act> {
            let send = |c: &WorkerCommit| Act::Send(WorkerIn::Commit { run_id, commit: c.clone() });
            h.unacked.iter().map(send).collect()
        };
        let mut acts: Vec<Act> = self.runs.iter().flat_map(again).collect();
        acts.extend(self.hands.resumed());
        let runs: Vec<RunId> = self.runs.keys().copied().collect();
        acts.extend(runs.into_iter().flat_map(|run| self.go_on(run, now_us)));
        acts
    }

    pub(crate) fn hear(&mut self, message: WorkerOut, now_us: u64) -> Vec<Act> {
        match message {
            WorkerOut::Welcome { session_id, lease, resumed } => {
                self.welcome(session_id, lease, resumed, now_us)
            }
            WorkerOut::HeartbeatAck { number } => {
                if let Some(at) = self.sent.remove(&number) {
                    self.renewed_us = self.renewed_us.max(at);
                }
                Vec::new()
            }
            WorkerOut::Activate { run_id, epoch, events, base } => {
                assert!(base.is_none());
                let mut acts = self.activate(run_id, epoch, &events, now_us);
                acts.extend(self.go_on(run_id, now_us));
                acts
            }
            WorkerOut::Events { run_id, epoch, events, from, committed } => {
                let news = events.iter().filter(|e| e.seq >= from);
                let mut acts = self.events((run_id, epoch), news, committed, now_us);
                acts.extend(self.go_on(run_id, now_us));
                acts.extend(self.answer(run_id));
                acts
            }
            WorkerOut::Rejected { run_id, epoch, rejection, number } => {
                self.rejected((run_id, epoch), &rejection, number, now_us)
            }
            WorkerOut::Evict { run_id, epoch, .. } => {
                if self.runs.get(&run_id).is_some_and(|h| h.epoch == epoch) {
                    self.runs.remove(&run_id);
                }
                Vec::new()
            }
            // Whether the code agrees follows from the update's id, whoever has the run.
            WorkerOut::Ask { ask, epoch: 0, events, query, .. } => {
                let seq = events.last().map_or(0, |last| last.seq);
                vec![Act::Send(WorkerIn::Answer { ask, seq, said: said_to(&query) })]
            }
            WorkerOut::Ask { ask, run_id, epoch, at_least, query, .. } => {
                match self.runs.get_mut(&run_id).filter(|h| h.epoch == epoch && !h.given_up) {
                    Some(held) => held.asks.push((ask, at_least, said_to(&query))),
                    None => {
                        let said = Said::Gone("it has left this worker".to_owned());
                        return vec![Act::Send(WorkerIn::Answer { ask, seq: 0, said })];
                    }
                }
                self.answer(run_id)
            }
            WorkerOut::Check { .. } => unreachable!("these workers do not say that they check"),
            message @ (WorkerOut::StepTask(_)
            | WorkerOut::StepCancel { .. }
            | WorkerOut::StepAsk(_)
            | WorkerOut::StepAck { .. }) => {
                let may_start = self.may_start(now_us);
                self.hands.hear(message, may_start)
            }
            WorkerOut::Drain => Vec::new(),
            WorkerOut::SessionClosed { .. } => {
                self.drop_all();
                vec![Act::Reconnect]
            }
        }
    }

    fn rejected(
        &mut self,
        (run_id, epoch): (RunId, Epoch),
        rejection: &Rejection,
        number: u32,
        now_us: u64,
    ) -> Vec<Act> {
        let Some(held) = self.runs.get_mut(&run_id).filter(|h| h.epoch == epoch) else { return Vec::new() };
        if matches!(rejection, Rejection::UnseenEvents { .. }) {
            held.unacked.retain(|c| c.number != number);
            if let Some(ahead) = held.ahead.take_if(|ahead| ahead.number == number) {
                held.given_up = true;
                held.leaving = true;
                let reason = "other news came first".to_owned();
                return held.commit(run_id, vec![ahead.end, CommitCommand::Release { reason }]);
            }
            held.leaving = held.given_up;
            held.idle_since = None;
            // Instants that came meanwhile were not looked at.
            return self.look(run_id, now_us);
        }
        assert!(!matches!(rejection, Rejection::InvalidCommands { .. }), "run {run_id}: {rejection}");
        self.runs.remove(&run_id);
        Vec::new()
    }

    fn activate(&mut self, run_id: RunId, epoch: Epoch, history: &[Event], now_us: u64) -> Vec<Act> {
        if self.runs.get(&run_id).is_some_and(|h| h.epoch >= epoch) {
            return Vec::new();
        }
        let Some(program) = history.first().and_then(program_of) else {
            panic!("a history begins with its start")
        };
        let held = Held {
            epoch,
            model: Model::new(Arc::clone(&program), self.build, history),
            program,
            seen: 0,
            number: 0,
            unacked: Vec::new(),
            running: BTreeMap::new(),
            starting: BTreeMap::new(),
            waiting: BTreeMap::new(),
            ahead: None,
            asks: Vec::new(),
            called: false,
            idle_since: None,
            leaving: false,
            given_up: false,
            clock: None,
        };
        self.runs.insert(run_id, held);
        self.replay(run_id, history, now_us)
    }

    /// Applies a whole history, also where it says that an earlier owner let go.
    fn replay(&mut self, run_id: RunId, history: &[Event], now_us: u64) -> Vec<Act> {
        let Some(held) = self.runs.get_mut(&run_id) else { return Vec::new() };
        for event in history {
            assert_eq!(event.seq, held.seen + 1, "run {run_id}: an activation has a gap");
            if let Err(obstacle) = held.apply(event, now_us) {
                return self.give_up(run_id, obstacle);
            }
        }
        if held.model.has_begun() {
            return self.give_up(run_id, Obstacle::Panicked("a guarded attempt is under way".to_owned()));
        }
        Vec::new()
    }

    fn events<'a>(
        &mut self,
        (run_id, epoch): (RunId, Epoch),
        events: impl Iterator<Item = &'a Event>,
        committed: u32,
        now_us: u64,
    ) -> Vec<Act> {
        let Some(held) = self.runs.get_mut(&run_id).filter(|h| h.epoch == epoch) else { return Vec::new() };
        held.unacked.retain(|c| c.number > committed);
        let (mut recorded, mut started) = (Vec::new(), Vec::new());
        for event in events {
            if event.seq <= held.seen {
                continue;
            }
            assert!(
                event.seq == held.seen + 1 || held.given_up,
                "run {run_id}: the stream has a gap: {} after {}",
                event.seq,
                held.seen
            );
            let detached = matches!(event.body, EventBody::WorkerDetached { .. } | EventBody::RunBlocked(_));
            if detached || event.body.is_terminal() {
                self.runs.remove(&run_id);
                return Vec::new();
            }
            if let Some(ahead) = held.ahead.take_if(|ahead| ahead.event.seq == event.seq) {
                if ahead.event.body == event.body && ahead.event.at == event.at {
                    held.seen = event.seq;
                    recorded.extend(ahead.attempts);
                    continue;
                }
                held.given_up = true;
                held.leaving = true;
                held.ahead = Some(ahead);
            }
            if held.given_up {
                continue;
            }
            if let Err(obstacle) = held.apply(event, now_us) {
                return self.give_up(run_id, obstacle);
            }
            started.extend(held.note_guarded(event));
        }
        if let Some(ahead) = held.ahead.take_if(|ahead| ahead.number <= committed) {
            let other = format!("{:?} is recorded otherwise than told", ahead.end);
            return self.give_up(run_id, Obstacle::Panicked(other));
        }
        let mut acts = Vec::new();
        for attempt in recorded {
            acts.extend(self.begin(run_id, attempt, now_us));
        }
        for attempt in started {
            acts.extend(self.begin_started(run_id, attempt, now_us));
        }
        acts
    }

    /// The code cannot go on here: the run is given back, or blocked.
    fn give_up(&mut self, run_id: RunId, obstacle: Obstacle) -> Vec<Act> {
        let build_id = self.build_id().to_owned();
        let Some(held) = self.runs.get_mut(&run_id) else { return Vec::new() };
        held.given_up = true;
        held.leaving = true;
        held.running.clear();
        held.starting.clear();
        held.waiting.clear();
        let command = match obstacle {
            Obstacle::Panicked(reason) => CommitCommand::Release { reason },
            Obstacle::Blocked(mut blocked) => {
                blocked.build_id = build_id;
                CommitCommand::Block(blocked)
            }
        };
        held.commit(run_id, vec![command])
    }

    /// An instant that the worker waits for has come.
    pub(crate) fn look(&mut self, run_id: RunId, now_us: u64) -> Vec<Act> {
        let Some(held) = self.runs.get_mut(&run_id).filter(|h| !h.leaving) else { return Vec::new() };
        let mut commands = Vec::new();
        for (attempt, show_at) in held.running.values_mut() {
            if show_at.is_some_and(|at| at <= now_us) {
                *show_at = None;
                let (step, name) = (attempt.id, attempt.name.clone());
                commands.push(CommitCommand::StartStep {
                    step,
                    name,
                    attempt: attempt.attempt,
                    in_doubt: None,
                });
            }
        }
        let mut acts = held.commit(run_id, commands);
        let due: Vec<OpId> =
            held.waiting.iter().filter(|(_, w)| w.at_us <= now_us).map(|(id, _)| *id).collect();
        for id in due {
            let waited = self.runs.get_mut(&run_id).and_then(|h| h.waiting.remove(&id));
            if let Some(waited) = waited {
                acts.extend(match waited.started {
                    true => self.begin_started(run_id, waited.attempt, now_us),
                    false => self.begin(run_id, waited.attempt, now_us),
                });
            }
        }
        acts.extend(self.go_on(run_id, now_us));
        acts
    }

    /// Does whatever the run's workflow wants and is not done or on its way.
    fn go_on(&mut self, run_id: RunId, now_us: u64) -> Vec<Act> {
        let may_start = self.may_start(now_us);
        let Some(held) = self.runs.get_mut(&run_id).filter(|h| !h.leaving) else { return Vec::new() };
        let mut acts = Vec::new();
        let (commands, attempts) = held.wanted(may_start, now_us);
        for attempt in attempts {
            acts.extend(self.begin(run_id, attempt, now_us));
        }
        let park_after = self.park_after_us;
        if let Some(held) = self.runs.get_mut(&run_id) {
            acts.extend(held.commit(run_id, commands));
            acts.extend(held.leave_if_idle(run_id, park_after, now_us));
        }
        acts
    }

    /// Answers questions of a run from what is recorded of it.
    fn answer(&mut self, run: RunId) -> Vec<Act> {
        let Some(held) = self.runs.get_mut(&run).filter(|h| !h.given_up && h.ahead.is_none()) else {
            return Vec::new();
        };
        let seq = held.seen;
        let (ready, waiting): (Vec<_>, Vec<_>) =
            held.asks.drain(..).partition(|(_, at_least, _)| *at_least <= seq);
        held.asks = waiting;
        held.called |= !ready.is_empty();
        let answer = |(ask, _, said)| Act::Send(WorkerIn::Answer { ask, seq, said });
        ready.into_iter().map(answer).collect()
    }

    fn begin(&mut self, run: RunId, attempt: Attempt, now_us: u64) -> Vec<Act> {
        let may_start = self.may_start(now_us);
        let Some(held) = self.runs.get_mut(&run) else { return Vec::new() };
        let epoch = held.epoch;
        let due_us = held.until(attempt.not_before.map_or(0, |at| at.as_micros()), now_us);
        if due_us > 0 || !may_start {
            let at_us = now_us + if due_us > 0 { due_us } else { self.lease_us.max(1_000) / 10 };
            let for_lease = due_us == 0;
            held.waiting.insert(attempt.id, Waiting { at_us, attempt, for_lease, started: false });
            return vec![Act::Later { run, epoch, at_us }];
        }
        if attempt.guard.is_some() {
            let start = held.start_of(attempt);
            return held.commit(run, vec![start]);
        }
        self.execute(run, attempt, now_us)
    }

    /// The start of a guarded attempt is durable.
    fn begin_started(&mut self, run: RunId, attempt: Attempt, now_us: u64) -> Vec<Act> {
        if self.may_start(now_us) {
            return self.execute(run, attempt, now_us);
        }
        let at_us = now_us + self.lease_us.max(1_000) / 10;
        let Some(held) = self.runs.get_mut(&run) else { return Vec::new() };
        let epoch = held.epoch;
        held.waiting.insert(attempt.id, Waiting { at_us, attempt, for_lease: true, started: true });
        vec![Act::Later { run, epoch, at_us }]
    }

    fn execute(&mut self, run: RunId, attempt: Attempt, now_us: u64) -> Vec<Act> {
        let Some(held) = self.runs.get_mut(&run) else { return Vec::new() };
        let epoch = held.epoch;
        let mut acts = Vec::new();
        let slow = attempt.step.slow_us > SHOW_STARTED_US && attempt.guard.is_none();
        let show_at = slow.then_some(now_us + SHOW_STARTED_US);
        acts.extend(show_at.map(|at_us| Act::Later { run, epoch, at_us }));
        held.running.insert(attempt.id, (attempt.clone(), show_at));
        acts.push(Act::Execute { run, epoch, attempt });
        acts
    }

    /// What it holds may be somebody else's already.
    pub(crate) fn is_late(&self, now_us: u64) -> bool {
        self.session.is_some() && now_us >= self.renewed_us + self.lease_us
    }

    /// An attempt has ended.
    pub(crate) fn executed(&mut self, run: RunId, epoch: Epoch, attempt: &Attempt, now_us: u64) -> Vec<Act> {
        let may_start = self.may_start(now_us);
        let Some(held) = self.runs.get_mut(&run).filter(|h| h.epoch == epoch) else { return Vec::new() };
        if held.running.remove(&attempt.id).is_none() || held.leaving {
            return Vec::new();
        }
        let policy = Some(held.program.source.profile.retry_policy());
        let (step, name, attempt_number) = (attempt.id, attempt.name.clone(), attempt.attempt);
        let elapsed = Duration::from_micros(attempt.step.slow_us);
        let fail = |failure| CommitCommand::FailStep {
            step,
            name: name.clone(),
            attempt: attempt_number,
            elapsed,
            failure,
            policy,
        };
        let command = match attempt.step.ends(attempt_number) {
            Ends::Flaky => fail(Failure::new(FLAKY, "as planned")),
            Ends::Refused => fail(Failure::new(REFUSED, attempt.step.nonce.clone()).non_retryable()),
            Ends::Well => {
                let result = result_of(attempt);
                CommitCommand::CompleteStep {
                    step,
                    name: name.clone(),
                    attempt: attempt_number,
                    elapsed,
                    result,
                }
            }
        };
        let ahead = matches!(command, CommitCommand::CompleteStep { .. });
        let mut acts = match held.may_go_ahead(now_us).filter(|_| ahead && self.welcomed) {
            Some(at) => match held.go_ahead(run, command, at, (may_start, now_us)) {
                Ok(acts) => acts,
                Err((mut acts, obstacle)) => {
                    acts.extend(self.give_up(run, obstacle));
                    return acts;
                }
            },
            None => held.commit(run, vec![command]),
        };
        acts.extend(self.go_on(run, now_us));
        acts
    }
}

impl Held {
    fn apply(&mut self, event: &Event, now_us: u64) -> Result<(), Obstacle> {
        self.seen = event.seq;
        self.clock = Some((event.at.as_micros(), now_us));
        self.called |=
            matches!(event.body, EventBody::SignalReceived { .. } | EventBody::CancelRequested { .. });
        self.called |= matches!(event.body, EventBody::StepResolved(_) | EventBody::UpdateAccepted { .. });
        self.model.apply(event)
    }

    /// A guarded attempt whose start is recorded now; and what a person has made needless is forgotten.
    fn note_guarded(&mut self, event: &Event) -> Option<Attempt> {
        match &event.body {
            EventBody::StepStarted { step, attempt, in_doubt: Some(_), .. } if event.epoch == self.epoch => {
                let this = self.starting.get(step).is_some_and(|a| a.attempt == *attempt);
                this.then(|| self.starting.remove(step)).flatten()
            }
            EventBody::StepResolved(said) => {
                self.starting.remove(&said.step);
                self.waiting.remove(&said.step);
                None
            }
            _ => None,
        }
    }

    fn start_of(&mut self, attempt: Attempt) -> CommitCommand {
        let (step, name, number) = (attempt.id, attempt.name.clone(), attempt.attempt);
        let in_doubt = attempt.guard;
        self.starting.insert(step, attempt);
        CommitCommand::StartStep { step, name, attempt: number, in_doubt }
    }

    /// What the model wants and nobody does yet: to be recorded, and to be run.
    fn wanted(&mut self, may_start: bool, now_us: u64) -> (Vec<CommitCommand>, Vec<Attempt>) {
        let (mut commands, mut attempts) = (Vec::new(), Vec::new());
        for work in self.model.take_work() {
            match work {
                Work::Command(command) => commands.push(command),
                Work::Finish(command) => {
                    self.leaving = true;
                    commands.push(command);
                }
                Work::Attempt(attempt) => {
                    let due_us = self.until(attempt.not_before.map_or(0, |at| at.as_micros()), now_us);
                    if attempt.guard.is_some() && may_start && due_us == 0 {
                        commands.push(self.start_of(attempt));
                    } else {
                        attempts.push(attempt);
                    }
                }
            }
        }
        (commands, attempts)
    }

    /// The instant under which a step's end can be told before it is recorded.
    fn may_go_ahead(&self, now_us: u64) -> Option<Timestamp> {
        let (last, heard) = self.clock?;
        let since = now_us - heard;
        let begins = !self.waiting.is_empty() || !self.starting.is_empty();
        let quiet = self.running.is_empty() && !begins && self.unacked.is_empty();
        let awaits = self.model.awaits_others();
        let calm = !self.called && !awaits && !self.leaving && since < RECKON_US && self.ahead.is_none();
        (quiet && calm)
            .then(|| Timestamp::from_micros(last).after(Duration::from_micros(since - since / 1_000)))
    }

    fn go_ahead(
        &mut self,
        run: RunId,
        end: CommitCommand,
        at: Timestamp,
        (may_start, now_us): (bool, u64),
    ) -> Result<Vec<Act>, (Vec<Act>, Obstacle)> {
        let CommitCommand::CompleteStep { step, name, attempt, elapsed, result } = end.clone() else {
            return Ok(self.commit(run, vec![end]));
        };
        let event = Event {
            seq: self.seen + 1,
            at,
            epoch: self.epoch,
            command_id: CommandId::of_worker(run, self.epoch, self.number + 1),
            actor: Actor::System,
            body: EventBody::StepCompleted { step, name, attempt, elapsed, result },
        };
        if let Err(obstacle) = self.model.apply(&event) {
            return Err((self.commit(run, vec![end]), obstacle));
        }
        let (more, attempts) = self.wanted(may_start, now_us);
        let commands = std::iter::once(end.clone()).chain(more).collect();
        self.ahead = Some(Ahead { number: self.number + 1, event, end, attempts });
        Ok(self.commit_at(run, commands, Some(at)))
    }

    /// How long until an instant of database time, judged by the last event's.
    fn until(&self, at_micros: i64, now_us: u64) -> u64 {
        let Some((db, here)) = self.clock else { return 0 };
        let left = u64::try_from(at_micros.saturating_sub(db)).unwrap_or(0);
        left.saturating_sub(now_us.saturating_sub(here))
    }

    fn leave_if_idle(&mut self, run: RunId, park_after_us: u64, now_us: u64) -> Vec<Act> {
        let soon = now_us + park_after_us;
        let attempt_soon = self.waiting.values().any(|w| w.at_us <= soon || w.for_lease);
        let busy = !self.running.is_empty() || !self.unacked.is_empty() || !self.starting.is_empty();
        if self.leaving || !self.model.is_waiting() || busy || attempt_soon {
            self.idle_since = None;
            return Vec::new();
        }
        let since = *self.idle_since.get_or_insert(now_us);
        if now_us >= since + park_after_us {
            self.idle_since = None;
            self.leaving = true;
            return self.commit(run, vec![CommitCommand::Park]);
        }
        vec![Act::Later { run, epoch: self.epoch, at_us: since + park_after_us }]
    }

    fn commit(&mut self, run_id: RunId, commands: Vec<CommitCommand>) -> Vec<Act> {
        self.commit_at(run_id, commands, None)
    }

    fn commit_at(
        &mut self,
        run_id: RunId,
        commands: Vec<CommitCommand>,
        ahead: Option<Timestamp>,
    ) -> Vec<Act> {
        if commands.is_empty() {
            return Vec::new();
        }
        self.number += 1;
        let commit =
            WorkerCommit { epoch: self.epoch, number: self.number, seen: self.seen, commands, ahead };
        self.unacked.push(commit.clone());
        vec![Act::Send(WorkerIn::Commit { run_id, commit })]
    }
}

/// What the code says to an update.
fn said_to(query: &Query) -> Said {
    let id: String = serde_json::from_slice(&query.input.data).unwrap_or_default();
    match agrees(&id) {
        true => Said::Passed,
        false => Said::Refused { kind: REFUSED.to_owned(), message: "as planned".to_owned() },
    }
}

/// What an attempt that ends well returns.
pub(crate) fn result_of(attempt: &Attempt) -> Payload {
    Payload::json(serde_json::Value::from(attempt.step.result()).to_string())
}

/// The program that a run's first event names.
pub(crate) fn program_of(first: &Event) -> Option<Arc<Program>> {
    let EventBody::RunStarted(start) = &first.body else { return None };
    let source: Source = serde_json::from_slice(&start.input.data).ok()?;
    // To generate one takes longer than to follow a short history of it.
    let made = || Arc::new(source.program());
    let place = (source.seed, source.generation);
    Some(PROGRAMS.with_borrow_mut(|known| Arc::clone(known.entry(place).or_insert_with(made))))
}

thread_local! {
    /// The programs of the world that is played on this thread.
    static PROGRAMS: RefCell<BTreeMap<(u64, u8), Arc<Program>>> = const { RefCell::new(BTreeMap::new()) };
}

/// Forgets the programs of the world before.
pub(crate) fn forget_programs() {
    PROGRAMS.with_borrow_mut(BTreeMap::clear);
}

/// True when the event says that a worker let go because the workflow only waits.
pub(crate) fn is_parked(event: &Event) -> bool {
    matches!(event.body, EventBody::WorkerDetached { reason: DetachReason::Parked })
}
