//! Properties of decide and apply over random commands, and tables for single rules.

mod annotate;
mod child;
mod doubt;
mod pin;
mod queued;
mod refused;
mod repeat;
mod succession;
mod update;
mod versions;

use std::collections::BTreeSet;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{
    Actor, Attach, Attribute, BlockKind, Blocked, Command, CommandBody, CommitCommand, ConflictPolicy,
    Continuation, CurrentRun, Detach, DetachReason, Doubt, DoubtPolicy, Duration, EventBody, KnownRequest,
    Outbound, ParentClose, Rejection, Resolution, RetryDecision, RetryPolicy, ReusePolicy, RunLink,
    StartDecision, StartRun, StepTask, TaskRow, ToRun, TraceContext, UpdateOutcome, WorkerCommit, Write,
    WriteBasis, decide_start, start_body_hash,
};

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn run_id() -> RunId {
    RunId::from_uuid(id(0x0190_0000_0000_7000_8000_0000_0000_0001))
}

fn request() -> StartRun {
    StartRun {
        namespace: "default".into(),
        workflow_id: "order/1".into(),
        workflow_type: "order".into(),
        task_queue: "default".into(),
        input: Payload::json("{}"),
        request_id: "r1".into(),
        run_timeout: Some(Duration::from_secs(3_600)),
        reuse: ReusePolicy::Allow,
        conflict: ConflictPolicy::Fail,
        trace: TraceContext::default(),
        identity: "tester".into(),
        ..StartRun::default()
    }
}

fn at(secs: i64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + secs * 1_000_000)
}

fn started(request: &StartRun) -> (Run, Vec<Event>) {
    match decide_start(request, (run_id(), 7), None, None, at(0)) {
        Ok(StartDecision::Start { event, .. }) => (Run::begin(run_id(), &event).unwrap(), vec![*event]),
        other => panic!("{other:?}"),
    }
}

fn worker(build: &str) -> WorkerInfo {
    WorkerInfo { identity: "w".into(), build_id: build.into() }
}

fn attach(session: u128, build: &str) -> CommandBody {
    CommandBody::Attach(Attach::by(SessionId::from_uuid(id(session)), worker(build)))
}

/// A run with its history and a model of the projection tables that only sees writes.
struct World {
    run: Run,
    history: Vec<Event>,
    row: RunRow,
    timers: BTreeMap<TimerKey, Timestamp>,
    task: Option<TaskRow>,
    doubts: BTreeMap<OpId, Doubt>,
    steps: BTreeMap<OpId, StepTask>,
    attributes: BTreeMap<String, Attribute>,
    link: Option<RunLink>,
    /// Events that others have to hear of and have not, and what they had to hear when each was recorded.
    outbox: BTreeSet<Seq>,
    told: BTreeMap<Seq, Vec<Outbound>>,
    commands: u128,
    /// The run that follows.
    next: Option<Box<Successor>>,
}

impl World {
    fn new() -> Self {
        Self::of(&request())
    }

    fn of(request: &StartRun) -> Self {
        let (run, history) = started(request);
        Self::with(run, history)
    }

    /// A run of which all this is recorded.
    fn with(run: Run, history: Vec<Event>) -> Self {
        let mut world = Self {
            row: run.row(),
            run,
            history,
            timers: BTreeMap::new(),
            task: None,
            doubts: BTreeMap::new(),
            steps: BTreeMap::new(),
            attributes: BTreeMap::new(),
            link: None,
            outbox: BTreeSet::new(),
            told: BTreeMap::new(),
            commands: 1_000,
            next: None,
        };
        let events = world.history.clone();
        let writes = WriteBasis::NEW.writes(&world.run, &events);
        world.write(writes);
        world
    }

    fn write(&mut self, writes: Vec<Write>) {
        for write in writes {
            match write {
                Write::Run(row) => self.row = *row,
                Write::TimerSet(t) => {
                    self.timers.insert(t.key, t.fire_at);
                }
                Write::TimerDeleted(key) => {
                    self.timers.remove(&key);
                }
                Write::TimersCleared => self.timers.clear(),
                Write::TaskSet(task) => self.task = Some(task),
                Write::TaskDeleted => self.task = None,
                Write::DoubtSet(doubt) => {
                    self.doubts.insert(doubt.step, *doubt);
                }
                Write::DoubtDeleted(step) => {
                    self.doubts.remove(&step);
                }
                Write::DoubtsCleared => self.doubts.clear(),
                Write::StepTaskSet(task) => {
                    self.steps.insert(task.step, *task);
                }
                Write::StepTaskDeleted(step) => {
                    self.steps.remove(&step);
                }
                Write::StepTasksCleared => self.steps.clear(),
                Write::AttributesSet(rows) => self.attributes = rows.attributes,
                Write::LinkSet(link) => self.link = Some(*link),
                Write::OutboxSet { seq } => drop(self.outbox.insert(seq)),
                Write::OutboxDeleted { seq } => drop(self.outbox.remove(&seq)),
                Write::WakeSet { .. } | Write::WakesDeleted { .. } => panic!("the core writes no wakes"),
            }
        }
    }

    fn command(&mut self, body: CommandBody) -> Command {
        self.commands += 1;
        let id = match &body {
            CommandBody::Commit(c) => CommandId::of_worker(self.run.id(), c.epoch, c.number),
            _ => CommandId::from_uuid(id(self.commands)),
        };
        let actor = match &body {
            CommandBody::FinishStep { .. } => Actor::Worker("w".into()),
            _ => Actor::System,
        };
        Command { id, actor, body }
    }

    fn send(&mut self, body: CommandBody, now: Timestamp) -> Result<Vec<Event>, Rejection> {
        let command = self.command(body);
        self.send_command(&command, now)
    }

    fn send_command(&mut self, command: &Command, now: Timestamp) -> Result<Vec<Event>, Rejection> {
        let basis = WriteBasis::of(&self.run);
        let Decision { events, follows } = decide(&self.run, command, now)?;
        self.next = self.next.take().or(follows);
        for event in &events {
            self.run.apply(event).unwrap();
        }
        let writes = basis.writes(&self.run, &events);
        let told = events.iter().map(|e| (e.seq, self.run.outbound(e)));
        self.told.extend(told.filter(|(_, told)| !told.is_empty()));
        self.history.extend(events.iter().cloned());
        self.write(writes);
        Ok(events)
    }

    fn commit(&mut self, commands: Vec<CommitCommand>) -> Result<Vec<Event>, Rejection> {
        let (epoch, number, seen) = (self.run.epoch(), self.run.committed() + 1, self.run.seq());
        self.send(CommandBody::Commit(WorkerCommit { epoch, number, seen, commands, ahead: None }), at(1))
    }

    fn attached() -> Self {
        let mut world = Self::new();
        world.send(attach(1, "b1"), at(1)).unwrap();
        world
    }

    fn check(&self) {
        let folded = Run::fold(self.run.id(), &self.history).unwrap().unwrap();
        assert_eq!(folded, self.run, "fold(history) = live state");
        let p = self.run.projection();
        assert_eq!(p.row, self.row, "row = fold");
        assert_eq!(
            p.timers.iter().map(|t| (t.key, t.fire_at)).collect::<BTreeMap<_, _>>(),
            self.timers,
            "timers = fold"
        );
        assert_eq!(p.task, self.task, "task = fold");
        assert_eq!(p.doubts, self.doubts.values().cloned().collect::<Vec<_>>(), "doubts = fold");
        assert_eq!(self.run.has_doubts(), !p.doubts.is_empty());
        assert_eq!(p.steps, self.steps.values().cloned().collect::<Vec<_>>(), "queued steps = fold");
        assert_eq!(p.attributes, self.attributes, "attributes = fold");
        assert_eq!(p.link, self.link, "links = fold");
        assert_eq!(self.run.successor(), self.next.as_ref().map(|next| next.run_id), "who follows");
        if let Some(next) = &self.next {
            let events = next.events(&self.history).expect("what it carries is in the history");
            let new = Run::fold(next.run_id, &events).unwrap().unwrap();
            assert!(!new.status().is_closed() && new.start().workflow_id == self.run.start().workflow_id);
        }
        self.check_outbox();
        for (i, event) in self.history.iter().enumerate() {
            assert_eq!(event.seq, i as u64 + 1, "no gap");
        }
        let ends = self.history.iter().filter(|e| e.body.is_terminal()).count();
        assert!(
            ends <= 1 && (ends == 0 || self.history.last().unwrap().body.is_terminal()),
            "terminal is last"
        );
        assert!(self.history.windows(2).all(|w| w[0].epoch <= w[1].epoch), "epochs never fall");
    }
}

impl World {
    /// What others have to hear of an event stays what it was, until they have heard it.
    fn check_outbox(&self) {
        for event in &self.history {
            let now = self.run.outbound(event);
            assert_eq!(self.run.has_outbound(event), !now.is_empty(), "{event:?}");
            let then = self.told.get(&event.seq);
            let early = |told: &[Outbound]| {
                told.iter()
                    .cloned()
                    .map(|o| match o {
                        Outbound::ToRun(to) => Outbound::ToRun(Box::new(ToRun { early: false, ..*to })),
                        start => start,
                    })
                    .collect::<Vec<_>>()
            };
            match then {
                Some(then) if !now.is_empty() => assert_eq!(early(then), early(&now)),
                Some(_) => {}
                None => assert!(now.is_empty(), "{event:?}"),
            }
        }
    }
}

fn complete(step: u32, attempt: u32) -> CommitCommand {
    CommitCommand::CompleteStep {
        step: OpId(step),
        name: "s".into(),
        attempt,
        elapsed: Duration::from_millis(1),
        result: Payload::json("1"),
    }
}

fn fail(step: u32, attempt: u32, policy: RetryPolicy) -> CommitCommand {
    let policy = Some(policy);
    CommitCommand::FailStep {
        step: OpId(step),
        name: "s".into(),
        attempt,
        elapsed: Duration::from_millis(1),
        failure: Failure::new("Oops", "no"),
        policy,
    }
}

fn start_step(step: u32, attempt: u32) -> CommitCommand {
    CommitCommand::StartStep { step: OpId(step), name: "s".into(), attempt, in_doubt: None }
}

fn guard_step(step: u32, attempt: u32, policy: DoubtPolicy) -> CommitCommand {
    CommitCommand::StartStep { step: OpId(step), name: "s".into(), attempt, in_doubt: Some(policy) }
}

fn resolve(step: u32, attempt: u32, resolution: Resolution) -> CommandBody {
    CommandBody::ResolveStep { step: OpId(step), attempt, resolution, note: "looked".into() }
}

fn accept_update(id: &str, seen: Seq) -> CommandBody {
    let (update_id, name) = (id.to_owned(), "add".to_owned());
    CommandBody::AcceptUpdate { update_id, name, input: Payload::json("1"), seen }
}

fn complete_update(accepted: Seq, well: bool) -> CommitCommand {
    let outcome = if well {
        UpdateOutcome::Completed(Payload::json("2"))
    } else {
        UpdateOutcome::Failed(Failure::new("Oops", "no"))
    };
    CommitCommand::CompleteUpdate { accepted, outcome }
}

fn blocked(build: &str) -> CommitCommand {
    CommitCommand::Block(Box::new(Blocked {
        kind: BlockKind::Nondeterminism,
        at_seq: 3,
        expected: "step 'a' #1".into(),
        produced: "step 'b' #1".into(),
        source: "src/lib.rs:1".into(),
        hint: "fix it".into(),
        build_id: build.into(),
    }))
}

fn any_commit() -> impl Strategy<Value = CommitCommand> {
    let step = 1..6u32;
    prop_oneof![
        4 => (step.clone(), 1..4u32).prop_map(|(s, a)| start_step(s, a)),
        4 => (step.clone(), 1..4u32).prop_map(|(s, a)| guard_step(s, a, DoubtPolicy::AskHuman)),
        6 => (step.clone(), 1..4u32).prop_map(|(s, a)| complete(s, a)),
        4 => (step.clone(), 1..4u32, 1..4u32).prop_map(|(s, a, max)| {
            fail(s, a, RetryPolicy { maximum_attempts: max, ..RetryPolicy::default() })
        }),
        4 => (step.clone(), 0..100u64).prop_map(|(t, d)| CommitCommand::StartTimer {
            timer: OpId(t),
            delay: Duration::from_secs(d),
        }),
        2 => step.prop_map(|t| CommitCommand::CancelTimer { timer: OpId(t) }),
        2 => (1..3u8, 0..2u32).prop_map(|(change, version)| CommitCommand::MarkVersion {
            change_id: format!("c{change}"),
            version,
        }),
        2 => (1..12u64, any::<bool>()).prop_map(|(accepted, well)| complete_update(accepted, well)),
        3 => (1..8u32, 0..3usize, any::<bool>()).prop_map(|(op, policy, report)| {
            child::start_child(op, ParentClose::ALL[policy], report)
        }),
        2 => (1..8u32, any::<bool>()).prop_map(|(op, signal)| child::request_external(op, signal)),
        6 => (1..6u32, queued::any_options()).prop_map(|(op, options)| queued::schedule(op, options)),
        2 => (1..6u32).prop_map(queued::cancel),
        3 => annotate::any_upsert(),
        2 => Just(CommitCommand::Park),
        1 => Just(CommitCommand::Release { reason: String::new() }),
        1 => Just(blocked("b1")),
        1 => Just(CommitCommand::CompleteRun { result: Payload::json("2"), unconsumed: vec![] }),
        1 => Just(CommitCommand::FailRun { failure: Failure::new("Oops", "no"), unconsumed: vec![] }),
        1 => proptest::collection::btree_set(2..9u64, 0..2).prop_map(|unconsumed| {
            let unconsumed = unconsumed.into_iter().collect();
            CommitCommand::ContinueAsNew(Box::new(Continuation { unconsumed, ..Continuation::default() }))
        }),
        1 => Just(CommitCommand::CancelRun { details: String::new() }),
    ]
}

#[derive(Clone, Debug)]
enum Action {
    Body(CommandBody),
    Commit { stale: bool, commands: Vec<CommitCommand>, ahead: Option<i64> },
    Lose,
    Repeat,
}

fn any_action() -> impl Strategy<Value = Action> {
    let timer = (0..4u8, 0..6u32).prop_map(|(kind, id)| match kind {
        0 => TimerKey::timer(OpId(id)),
        1 => TimerKey::retry(OpId(id)),
        2 => TimerKey::START,
        _ => TimerKey::RUN_TIMEOUT,
    });
    prop_oneof![
        4 => (1..4u128, 1..3u8).prop_map(|(s, b)| Action::Body(attach(s, &format!("b{b}")))),
        2 => (1..4u128, 1..3u8, any::<bool>(), any::<bool>()).prop_map(|(s, b, pinned, all)| {
            let claim = Attach::by(SessionId::from_uuid(id(s)), worker(&format!("b{b}")));
            let compatible = if all { vec!["b1".to_owned(), "b2".to_owned()] } else { Vec::new() };
            Action::Body(CommandBody::Attach(Attach { pinned, compatible, ..claim }))
        }),
        8 => (proptest::bool::weighted(0.1), proptest::collection::vec(any_commit(), 1..4),
              proptest::option::of(-1..2i64))
            .prop_map(|(stale, commands, ahead)| Action::Commit { stale, commands, ahead }),
        2 => (0..4u8).prop_map(|n| Action::Body(CommandBody::Signal {
            name: "go".into(),
            signal_id: format!("s{n}"),
            input: Payload::json("{}"),
        })),
        3 => (0..4u8, 1..12u64).prop_map(|(n, seen)| Action::Body(accept_update(&format!("u{n}"), seen))),
        3 => timer.prop_map(|timer| Action::Body(CommandBody::FireTimer { timer })),
        2 => (1..6u32, 0..3u32, 0..3u8).prop_map(|(step, attempt, kind)| Action::Body(resolve(
            step,
            attempt,
            match kind {
                0 => Resolution::Completed(Payload::json("3")),
                1 => Resolution::Failed(Failure::new("Lost", "by hand")),
                _ => Resolution::Retry,
            },
        ))),
        3 => (1..8u32, 2..16u64, 0..3u8).prop_map(|(op, seq, kind)| {
            Action::Body(child::child_closed(op, seq, kind))
        }),
        1 => (1..8u32, 2..16u64).prop_map(|(op, seq)| {
            Action::Body(CommandBody::ChildStarted { child: OpId(op), scheduled: seq })
        }),
        2 => (1..8u32, 2..16u64, any::<bool>()).prop_map(|(op, seq, well)| {
            let failure = (!well).then(|| Failure::new("RunClosed", "it is"));
            Action::Body(CommandBody::ResolveExternal { op: OpId(op), requested: seq, failure })
        }),
        5 => (1..6u32, 1..4u32, 0..5u8).prop_map(|(op, n, kind)| Action::Body(queued::finish(op, n, kind))),
        4 => (1..6u32, 1..4u32, 0..5usize).prop_map(|(op, n, which)| {
            Action::Body(queued::expire(op, n, queued::TIMEOUTS[which]))
        }),
        3 => (1..6u32, 1..4u32).prop_map(|(op, n)| Action::Body(queued::lose(op, n))),
        1 => Just(Action::Body(CommandBody::Cancel { reason: "stop".into() })),
        1 => Just(Action::Lose),
        1 => Just(Action::Repeat),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_history_folds_to_the_live_state_and_its_projections(
        actions in proptest::collection::vec(any_action(), 1..60),
        step_secs in 0..200i64,
        delayed in any::<bool>(),
        retried in any::<bool>(),
    ) {
        let mut world = World::of(&StartRun {
            start_delay: delayed.then(|| Duration::from_secs(300)),
            retry: retried.then(RetryPolicy::default),
            ..request()
        });
        let mut last: Option<Command> = None;
        let mut reached = Timestamp::default();
        for (i, action) in actions.into_iter().enumerate() {
            let now = at(i as i64 * step_secs);
            let body = match action {
                Action::Body(body) => body,
                Action::Commit { stale, commands, ahead } => CommandBody::Commit(WorkerCommit {
                    epoch: world.run.epoch().saturating_sub(u32::from(stale)),
                    number: world.run.committed() + 1,
                    seen: world.run.seq(),
                    commands,
                    ahead: ahead.map(|secs| Timestamp::from_micros(now.as_micros() + secs * 1_000_000)),
                }),
                Action::Lose => match world.run.owner() {
                    Some(owner) => CommandBody::Detach(Detach { session: owner.session, refused: None }),
                    None => continue,
                },
                Action::Repeat => {
                    if let Some(command) = &last {
                        let before = world.run.clone();
                        if let Ok(events) = world.send_command(&command.clone(), now) {
                            let claims = matches!(command.body, CommandBody::Attach(_));
                            prop_assert!(events.is_empty() || claims, "a repeat happened twice: {events:?}");
                            if !claims {
                                prop_assert_eq!(&before, &world.run);
                            }
                        }
                    }
                    continue;
                }
            };
            let was_closed = world.run.status().is_closed();
            let command = world.command(body);
            let before = world.run.clone();
            match world.send_command(&command, now) {
                Ok(events) => {
                    prop_assert!(events.iter().all(|e| e.at >= reached), "time falls: {events:?}");
                    reached = events.last().map_or(reached, |e| e.at);
                    prop_assert!(!was_closed || events.is_empty(), "terminal absorbs");
                    last = Some(command);
                }
                Err(_) => prop_assert_eq!(&before, &world.run, "a rejection changes nothing"),
            }
            world.check();
        }
    }
}

#[test]
fn a_started_and_finished_step_folds_into_one_event() {
    let mut world = World::attached();
    let events = world.commit(vec![start_step(1, 1), complete(1, 1)]).unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].body.kind(), "StepCompleted");
    world.check();
}

#[test]
fn a_step_ends_once() {
    let mut world = World::attached();
    world.commit(vec![complete(1, 1)]).unwrap();
    assert!(matches!(world.commit(vec![complete(1, 2)]), Err(Rejection::InvalidCommands { .. })));
    assert!(matches!(world.commit(vec![start_step(1, 2)]), Err(Rejection::InvalidCommands { .. })));
}

#[test]
fn an_old_epoch_is_fenced_and_a_resent_commit_is_not_recorded_twice() {
    let mut world = World::attached();
    let commit = WorkerCommit { epoch: 1, number: 1, seen: 2, commands: vec![complete(1, 1)], ahead: None };
    assert_eq!(world.send(CommandBody::Commit(commit.clone()), at(2)).unwrap().len(), 1);
    assert_eq!(world.send(CommandBody::Commit(commit.clone()), at(2)).unwrap().len(), 0);
    let owner = world.run.owner().unwrap().session;
    world.send(CommandBody::Detach(Detach { session: owner, refused: None }), at(3)).unwrap();
    world.send(attach(2, "b1"), at(3)).unwrap();
    let fenced = Err(Rejection::Fenced { current: 2, sent: 1 });
    assert_eq!(world.send(CommandBody::Commit(commit), at(4)), fenced);
    world.check();
}

#[test]
fn what_was_told_before_the_record_is_recorded_at_its_place_and_with_its_time_or_refused() {
    let ahead = |number, seen, at, commands| {
        CommandBody::Commit(WorkerCommit { epoch: 1, number, seen, commands, ahead: Some(at) })
    };
    let end = || CommitCommand::CompleteRun { result: Payload::json("1"), unconsumed: Vec::new() };
    let mut world = World::attached();
    let early = ahead(1, 2, at(0), vec![complete(1, 1)]);
    assert!(
        matches!(world.send(early, at(5)), Err(Rejection::InvalidCommands { .. })),
        "before the last event"
    );
    let future = ahead(1, 2, at(16), vec![complete(1, 1)]);
    assert!(
        matches!(world.send(future, at(5)), Err(Rejection::InvalidCommands { .. })),
        "no clock is that wrong"
    );
    let other = ahead(1, 2, at(4), vec![start_step(1, 1)]);
    assert!(matches!(world.send(other, at(5)), Err(Rejection::InvalidCommands { .. })), "not a step's end");

    let signal = CommandBody::Signal { name: "go".into(), signal_id: "s".into(), input: Payload::json("1") };
    world.send(signal, at(3)).unwrap();
    let beaten = world.send(ahead(1, 2, at(4), vec![complete(1, 1), end()]), at(5));
    assert_eq!(beaten, Err(Rejection::UnseenEvents { seen: 2, tail: 3 }));

    let timer = CommitCommand::StartTimer { timer: OpId(2), delay: Duration::from_secs(60) };
    let events = world.send(ahead(1, 3, at(4), vec![complete(1, 1), timer]), at(5)).unwrap();
    assert!(events.iter().all(|e| e.at == at(4)), "{events:?}");
    assert!(
        matches!(events[1].body, EventBody::TimerStarted { fire_at, .. } if fire_at == at(64)),
        "a timer counts from what the workflow takes for now: {events:?}"
    );
    let events = world.send(ahead(2, 5, at(6), vec![complete(3, 1), end()]), at(5)).unwrap();
    assert_eq!((events[0].seq, events[0].at, events.len()), (6, at(6), 2), "a node's clock may lag");
    world.check();
}

#[test]
fn time_never_falls_along_a_history() {
    let mut world = World::attached();
    let signal =
        |id: &str| CommandBody::Signal { name: "go".into(), signal_id: id.into(), input: Payload::json("1") };
    let first = world.send(signal("a"), at(9)).unwrap();
    let second = world.send(signal("b"), at(7)).unwrap();
    assert_eq!((first[0].at, second[0].at), (at(9), at(9)), "the second node's clock is behind");
}

#[test]
fn a_failed_attempt_sets_a_durable_timer_that_wakes_only_a_run_without_an_owner() {
    let mut world = World::attached();
    world.commit(vec![fail(1, 1, RetryPolicy::default())]).unwrap();
    let due = world.run.timer(TimerKey::retry(OpId(1))).unwrap();
    assert!(due > at(1) && due <= at(2));
    let fire = CommandBody::FireTimer { timer: TimerKey::retry(OpId(1)) };
    assert_eq!(world.send(fire.clone(), at(1)), Err(Rejection::NotDue));
    assert_eq!(world.send(fire.clone(), at(10)).unwrap().len(), 0, "its owner is awake");
    world.commit(vec![CommitCommand::Park]).unwrap();
    assert!(!world.run.needs_worker());
    assert_eq!(world.send(fire, at(10)).unwrap().len(), 1);
    assert!(world.run.needs_worker());
    world.check();
}

#[test]
fn attempts_end_by_policy_or_by_kind() {
    let mut world = World::attached();
    let twice = RetryPolicy { maximum_attempts: 2, ..RetryPolicy::default() };
    world.commit(vec![fail(1, 1, twice.clone())]).unwrap();
    let events = world.commit(vec![fail(1, 2, twice)]).unwrap();
    assert!(matches!(events[0].body, EventBody::StepFailed { retry_at: None, .. }));
    let never = RetryPolicy { non_retryable_kinds: vec!["Oops".into()], ..RetryPolicy::default() };
    let events = world.commit(vec![fail(2, 1, never)]).unwrap();
    assert!(matches!(events[0].body, EventBody::StepFailed { retry_at: None, .. }));
}

#[test]
fn parking_over_unseen_events_is_refused() {
    let mut world = World::attached();
    let signal = CommandBody::Signal { name: "go".into(), signal_id: "1".into(), input: Payload::default() };
    world.send(signal, at(1)).unwrap();
    let park =
        WorkerCommit { epoch: 1, number: 1, seen: 2, commands: vec![CommitCommand::Park], ahead: None };
    let refused = Err(Rejection::UnseenEvents { seen: 2, tail: 3 });
    assert_eq!(world.send(CommandBody::Commit(park), at(1)), refused);
    world.commit(vec![CommitCommand::Park]).unwrap();
    assert!(world.run.owner().is_none() && !world.run.needs_worker());
}

#[test]
fn a_blocked_run_goes_on_with_another_build_only() {
    let mut world = World::attached();
    world.commit(vec![blocked("b1")]).unwrap();
    assert_eq!(world.run.status(), RunStatus::Blocked);
    assert!(world.row.blocked.contains("expected step 'a' #1; got step 'b' #1; at src/lib.rs:1"));
    assert_eq!(world.send(attach(2, "b1"), at(2)), Err(Rejection::NotRunnable));
    let events = world.send(attach(2, "b2"), at(2)).unwrap();
    assert_eq!(events.iter().map(|e| e.body.kind()).collect::<Vec<_>>(), ["RunUnblocked", "WorkerAttached"]);
    world.check();
}

#[test]
fn five_fruitless_attaches_block_the_run_as_poison() {
    let mut world = World::new();
    for n in 0..5 {
        world.send(attach(n + 1, "b1"), at(1)).unwrap();
        let owner = world.run.owner().unwrap().session;
        world.send(CommandBody::Detach(Detach { session: owner, refused: None }), at(1)).unwrap();
    }
    let events = world.send(attach(9, "b1"), at(2)).unwrap();
    assert_eq!(events.iter().map(|e| e.body.kind()).collect::<Vec<_>>(), ["RunBlocked"]);
    world.check();
}

#[test]
fn a_panicking_worker_counts_as_fruitless() {
    let mut world = World::new();
    for n in 0..5 {
        world.send(attach(n + 1, "b1"), at(1)).unwrap();
        let reason = "panicked: boom".to_owned();
        world.commit(vec![CommitCommand::Release { reason }]).unwrap();
    }
    let events = world.send(attach(9, "b1"), at(2)).unwrap();
    match &events[0].body {
        EventBody::RunBlocked(b) => assert!(b.produced.contains("boom"), "{b:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_history_at_its_limit_ends_the_run_and_says_so() {
    let mut world = World::attached();
    let big = |step| CommitCommand::CompleteStep {
        step: OpId(step),
        name: "s".into(),
        attempt: 1,
        elapsed: Duration::ZERO,
        result: Payload { encoding: "raw".into(), data: vec![0; limits::PAYLOAD_BYTES_MAX].into() },
    };
    for step in 1..=30 {
        world.commit(vec![big(step)]).unwrap();
        if world.run.status().is_closed() {
            assert!(world.run.failure().unwrap().kind == "HistoryTooLarge");
            return world.check();
        }
    }
    panic!("60 MiB of history were accepted");
}

#[test]
fn the_run_timeout_ends_the_run_when_it_is_due() {
    let mut world = World::attached();
    let fire = CommandBody::FireTimer { timer: TimerKey::RUN_TIMEOUT };
    assert_eq!(world.send(fire.clone(), at(3_599)), Err(Rejection::NotDue));
    world.send(fire, at(3_600)).unwrap();
    assert_eq!(world.run.status(), RunStatus::TimedOut);
    assert!(world.timers.is_empty());
    world.check();
}

#[test]
fn start_policies() {
    let current = |status| Some(CurrentRun { run_id: RunId::from_uuid(id(5)), status });
    let check = |reuse, conflict, status, expect: &str| {
        let request = StartRun { reuse, conflict, ..request() };
        let got = match decide_start(&request, (run_id(), 1), current(status), None, at(0)) {
            Ok(StartDecision::Start { terminate: None, .. }) => "start",
            Ok(StartDecision::Start { .. }) => "terminate and start",
            Ok(StartDecision::Existing(_)) => "existing",
            Err(Rejection::AlreadyStarted { policy, .. }) => policy,
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(got, expect, "{reuse:?} {conflict:?} {status}");
    };
    use ConflictPolicy::{Fail, TerminateExisting, UseExisting};
    check(ReusePolicy::Allow, Fail, RunStatus::Completed, "start");
    check(ReusePolicy::AllowIfNotCompleted, Fail, RunStatus::Completed, "reuse");
    check(ReusePolicy::AllowIfNotCompleted, Fail, RunStatus::Failed, "start");
    check(ReusePolicy::Reject, Fail, RunStatus::Terminated, "reuse");
    check(ReusePolicy::Reject, Fail, RunStatus::Running, "conflict");
    check(ReusePolicy::Allow, UseExisting, RunStatus::Blocked, "existing");
    check(ReusePolicy::Allow, TerminateExisting, RunStatus::Running, "terminate and start");
}

#[test]
fn a_request_id_answers_once_and_for_one_body() {
    let known = KnownRequest { run_id: RunId::from_uuid(id(5)), body_hash: start_body_hash(&request()) };
    let again = decide_start(&request(), (run_id(), 1), None, Some(known), at(0));
    assert_eq!(again, Ok(StartDecision::Existing(known.run_id)));
    let other = StartRun { input: Payload::json("[]"), ..request() };
    let refused = Err(Rejection::IdempotencyMismatch { run_id: known.run_id });
    assert_eq!(decide_start(&other, (run_id(), 1), None, Some(known), at(0)), refused);
}

#[test]
fn names_that_would_hurt_somebody_are_refused() {
    for bad in ["", " a", "a ", "a\0b", "a\nb", "../x", "a%00", "\u{202e}x", "é", &"x".repeat(256)] {
        assert!(matches!(crate::validate_name("id", bad), Err(Rejection::InvalidId { .. })), "{bad:?}");
    }
    for good in ["a", "order/2026-11-21", "A b", "x@y.z", &"x".repeat(255)] {
        assert_eq!(crate::validate_name("id", good), Ok(()), "{good:?}");
    }
}

#[test]
fn worker_commit_ids_can_be_read_back() {
    let command = CommandId::of_worker(run_id(), 3, 17);
    assert_eq!(command.worker_commit(run_id()), Some((3, 17)));
    assert_eq!(CommandId::from_uuid(id(9)).worker_commit(run_id()), None);
}

#[test]
fn retry_delays_grow_to_their_maximum_and_repeat_exactly() {
    let policy = RetryPolicy::default();
    let delay = |n| match policy.after_failure(n, &Failure::new("x", ""), 42) {
        RetryDecision::After(d) => d,
        RetryDecision::Final => panic!(),
    };
    assert_eq!(delay(3), delay(3));
    assert!(delay(1) > Duration::from_millis(899) && delay(1) <= Duration::from_secs(1));
    assert!(delay(1_000_000) <= Duration::from_secs(60) && delay(1_000_000) >= Duration::from_secs(54));
    for bad in [f64::NAN, f64::INFINITY, 0.5] {
        assert!(RetryPolicy { backoff_coefficient: bad, ..RetryPolicy::default() }.validate().is_err());
    }
}

#[test]
fn a_corrupt_history_is_refused() {
    let world = World::attached();
    let mut gap = world.history.clone();
    gap[1].seq = 3;
    assert!(matches!(Run::fold(run_id(), &gap), Err(crate::HistoryError::Gap { last: 1, actual: 3 })));
    let mut epoch = world.history.clone();
    epoch[1].epoch = 0;
    assert!(matches!(Run::fold(run_id(), &epoch), Err(crate::HistoryError::Epoch { .. })));
    let lost = EventBody::WorkerDetached { reason: DetachReason::Lost };
    assert_eq!(lost.kind(), "WorkerDetached");
}
