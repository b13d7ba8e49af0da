//! Runs that follow runs: what goes along, what does not, and when.

use super::*;
use crate::{Continuation, HeardSignal};

fn retrying(attempts: u32) -> World {
    let retry = RetryPolicy { maximum_attempts: attempts, ..RetryPolicy::default() };
    World::of(&StartRun { retry: Some(retry), ..request() })
}

fn signal(id: &str) -> CommandBody {
    CommandBody::Signal { name: "go".into(), signal_id: id.into(), input: Payload::json("1") }
}

fn next(unconsumed: Vec<Seq>) -> CommitCommand {
    let input = Payload::json("[2]");
    CommitCommand::ContinueAsNew(Box::new(Continuation { input, unconsumed, ..Continuation::default() }))
}

fn fail_run(failure: Failure) -> CommitCommand {
    CommitCommand::FailRun { failure, unconsumed: Vec::new() }
}

fn oops() -> CommitCommand {
    fail_run(Failure::new("Oops", "no"))
}

impl World {
    /// Commits as a worker that has seen only some of the history.
    fn commit_after(&mut self, seen: Seq, commands: Vec<CommitCommand>) -> Result<Vec<Event>, Rejection> {
        let (epoch, number) = (self.run.epoch(), self.run.committed() + 1);
        self.send(CommandBody::Commit(WorkerCommit { epoch, number, seen, commands, ahead: None }), at(1))
    }

    /// The run that follows, in a world of its own.
    fn follow(&self) -> Self {
        let next = self.next.as_deref().expect("a run follows");
        let history = next.events(&self.history).expect("what it carries is there");
        let run = Run::fold(next.run_id, &history).unwrap().unwrap();
        Self::with(run, history)
    }
}

fn signals_of(world: &World) -> Vec<&str> {
    let ids = world.history.iter().filter_map(|e| match &e.body {
        EventBody::SignalReceived { signal_id, .. } => Some(signal_id.as_str()),
        _ => None,
    });
    ids.collect()
}

#[test]
fn a_workflow_goes_on_with_what_it_did_not_take() {
    let mut world = World::attached();
    for id in ["taken", "left", "unseen"] {
        world.send(signal(id), at(1)).unwrap();
    }
    let events = world.commit_after(4, vec![next(vec![4])]).unwrap();
    assert!(
        matches!(&events[..], [Event { body: EventBody::RunContinued { carried, .. }, .. }] if *carried == [4, 5]),
        "{events:?}"
    );
    world.check();
    assert_eq!(world.run.status(), RunStatus::Continued);

    let mut new = world.follow();
    assert_eq!(signals_of(&new), ["left", "unseen"]);
    let start = new.run.start();
    assert_eq!((start.input.clone(), start.workflow_type.as_str()), (Payload::json("[2]"), "order"));
    assert_eq!(start.workflow_id, world.run.start().workflow_id);
    assert_eq!((start.origin.previous, start.origin.first), (Some(run_id()), Some(run_id())));
    assert_eq!(start.run_timeout, world.run.start().run_timeout);
    assert_ne!(start.seed, world.run.start().seed);
    assert!(new.run.needs_worker());
    assert_eq!(Some(new.run.id()), world.run.successor());

    for id in ["taken", "left", "unseen"] {
        assert_eq!(new.send(signal(id), at(2)).unwrap(), [], "{id} was received before");
    }
    let other =
        CommandBody::Signal { name: "go".into(), signal_id: "taken".into(), input: Payload::json("2") };
    assert!(matches!(new.send(other, at(2)), Err(Rejection::IdempotencyMismatch { .. })));
    assert_eq!(new.send(signal("fresh"), at(2)).unwrap().len(), 1);
    new.check();
}

#[test]
fn a_signal_that_was_taken_is_remembered_for_a_while_along_the_chain() {
    let mut world = World::attached();
    world.send(signal("taken"), at(1)).unwrap();
    world.commit(vec![next(Vec::new())]).unwrap();
    let mut second = world.follow();
    second.send(attach(1, "b1"), at(2)).unwrap();
    second.commit(vec![next(Vec::new())]).unwrap();
    let mut third = second.follow();
    assert_eq!(third.send(signal("taken"), at(3)).unwrap(), []);
    assert_eq!(third.run.first(), run_id());

    third.send(attach(1, "b1"), at(600)).unwrap();
    let (epoch, number, seen) = (third.run.epoch(), 1, third.run.seq());
    let commands = vec![next(Vec::new())];
    let late = WorkerCommit { epoch, number, seen, commands, ahead: None };
    third.send(CommandBody::Commit(late), at(602)).unwrap();
    assert_eq!(third.follow().run.start().origin.heard, [], "ten minutes are over");
}

#[test]
fn what_is_remembered_is_bounded_and_the_newest() {
    let mut world = World::attached();
    for n in 0..limits::HEARD_MAX + 5 {
        world.send(signal(&format!("s{n:05}")), at(1 + n as i64 / 100)).unwrap();
    }
    let seen = world.run.seq();
    let commit = WorkerCommit { epoch: 1, number: 1, seen, commands: vec![next(Vec::new())], ahead: None };
    world.send(CommandBody::Commit(commit), at(20)).unwrap();
    let heard = world.follow().run.start().origin.heard.clone();
    assert_eq!(heard.len(), limits::HEARD_MAX);
    assert!(heard.iter().all(|h: &HeardSignal| h.signal_id.as_str() >= "s00000"), "in order of id");
    assert!(heard.windows(2).all(|w| w[0].signal_id < w[1].signal_id));
    assert_eq!(heard.last().unwrap().signal_id, format!("s{:05}", limits::HEARD_MAX + 4));
}

#[test]
fn a_request_to_stop_goes_along() {
    let mut world = World::attached();
    world.send(CommandBody::Cancel { reason: "enough".into() }, at(1)).unwrap();
    world.commit_after(2, vec![next(Vec::new())]).unwrap();
    let new = world.follow();
    let kinds: Vec<&str> = new.history.iter().map(|e| e.body.kind()).collect();
    assert_eq!(kinds, ["RunStarted", "CancelRequested"]);
    assert!(new.run.row().cancel_requested);
}

#[test]
fn what_was_not_a_signal_cannot_be_left_over() {
    let mut world = World::attached();
    world.send(signal("a"), at(1)).unwrap();
    for wrong in [vec![2], vec![3, 3], vec![4], vec![0]] {
        let refused = world.commit(vec![next(wrong.clone())]);
        assert!(matches!(refused, Err(Rejection::InvalidCommands { .. })), "{wrong:?}: {refused:?}");
    }
    let unseen = world.commit_after(2, vec![next(vec![3])]);
    assert!(matches!(unseen, Err(Rejection::InvalidCommands { .. })), "{unseen:?}");
    let named = |workflow_type: &str, run_timeout| {
        let workflow_type = workflow_type.to_owned();
        CommitCommand::ContinueAsNew(Box::new(Continuation {
            workflow_type,
            run_timeout,
            ..Continuation::default()
        }))
    };
    assert!(matches!(world.commit(vec![named("a\0b", None)]), Err(Rejection::InvalidId { .. })));
    let zero = world.commit(vec![named("", Some(Duration::ZERO))]);
    assert!(matches!(zero, Err(Rejection::InvalidArgument { .. })), "{zero:?}");
    world.check();
}

#[test]
fn a_repeat_of_the_last_commit_starts_nothing() {
    let mut world = World::attached();
    let commit = WorkerCommit { epoch: 1, number: 1, seen: 2, commands: vec![next(Vec::new())], ahead: None };
    world.send(CommandBody::Commit(commit.clone()), at(2)).unwrap();
    let again = world.command(CommandBody::Commit(commit));
    let decision = decide(&world.run, &again, at(3)).unwrap();
    assert_eq!((decision.events, decision.follows), (Vec::new(), None));
    let closed = world.send(signal("late"), at(3));
    let successor = world.run.successor();
    assert_eq!(closed, Err(Rejection::RunClosed { status: RunStatus::Continued, successor }));
    assert!(successor.is_some());
}

#[test]
fn a_failed_run_is_tried_again_after_its_backoff_with_all_its_signals() {
    let mut world = retrying(3);
    world.send(attach(1, "b1"), at(1)).unwrap();
    world.send(signal("a"), at(1)).unwrap();
    let unconsumed = vec![3];
    let failure = Failure::new("Oops", "no");
    let events = world.commit(vec![CommitCommand::FailRun { failure, unconsumed }]).unwrap();
    assert!(
        matches!(&events[0].body, EventBody::RunFailed { retried_by: Some(_), unconsumed, .. } if unconsumed.is_empty())
    );
    world.check();
    assert_eq!(world.run.status(), RunStatus::Failed);

    let mut second = world.follow();
    assert_eq!((second.run.attempt(), signals_of(&second)), (2, vec!["a"]));
    assert_eq!(second.run.start().input, world.run.start().input);
    let due = second.run.timer(TimerKey::START).unwrap();
    assert!(due > at(1) && due <= at(2), "{due}");
    assert!(!second.run.needs_worker());
    second.send(signal("b"), at(1)).unwrap();
    assert!(!second.run.needs_worker(), "a signal does not wake it");
    assert_eq!(second.send(attach(1, "b1"), at(1)), Err(Rejection::NotRunnable));
    let fire = CommandBody::FireTimer { timer: TimerKey::START };
    assert_eq!(second.send(fire.clone(), at(1)), Err(Rejection::NotDue));
    second.send(fire, at(2)).unwrap();
    assert!(second.run.needs_worker());
    second.check();

    second.send(attach(1, "b1"), at(2)).unwrap();
    second.commit(vec![oops()]).unwrap();
    let mut third = second.follow();
    assert_eq!((third.run.attempt(), signals_of(&third)), (3, vec!["a", "b"]));
    assert_eq!(third.run.first(), run_id());
    third.send(CommandBody::FireTimer { timer: TimerKey::START }, at(60)).unwrap();
    third.send(attach(1, "b1"), at(60)).unwrap();
    let events = third.commit(vec![oops()]).unwrap();
    assert!(
        matches!(&events[0].body, EventBody::RunFailed { retried_by: None, .. }),
        "three attempts in all"
    );
    assert!(third.next.is_none());
}

#[test]
fn some_ends_are_not_tried_again() {
    let ended = |world: &World| world.run.status().is_closed() && world.run.successor().is_none();
    let begun = || {
        let mut world = retrying(0);
        world.send(attach(1, "b1"), at(1)).unwrap();
        world
    };
    let mut world = begun();
    world.commit(vec![fail_run(Failure::new("Oops", "no").non_retryable())]).unwrap();
    assert!(ended(&world), "a final failure");
    let mut world = begun();
    world.send(CommandBody::Cancel { reason: String::new() }, at(1)).unwrap();
    world.commit(vec![oops()]).unwrap();
    assert!(ended(&world), "it was asked to stop");
    let mut world = begun();
    world.send(CommandBody::Terminate { reason: String::new() }, at(1)).unwrap();
    assert!(ended(&world), "it was stopped");
    let mut world = begun();
    world.commit(vec![CommitCommand::CancelRun { details: String::new() }]).unwrap();
    assert!(ended(&world), "it stopped by itself");
    let mut world = World::attached();
    world.commit(vec![oops()]).unwrap();
    assert!(ended(&world), "nobody wants it");
}

#[test]
fn a_run_that_outlives_its_timeout_is_tried_again_and_lives_from_its_start() {
    let mut world = retrying(2);
    world.send(CommandBody::FireTimer { timer: TimerKey::RUN_TIMEOUT }, at(3_600)).unwrap();
    world.check();
    assert_eq!(world.run.status(), RunStatus::TimedOut);
    let second = world.follow();
    let start = second.run.timer(TimerKey::START).unwrap();
    let timeout = second.run.timer(TimerKey::RUN_TIMEOUT).unwrap();
    assert_eq!(timeout, start.after(Duration::from_secs(3_600)));
}

#[test]
fn continuing_begins_the_count_of_attempts_anew() {
    let mut world = retrying(2);
    world.send(attach(1, "b1"), at(1)).unwrap();
    world.commit(vec![oops()]).unwrap();
    let mut second = world.follow();
    second.send(CommandBody::FireTimer { timer: TimerKey::START }, at(60)).unwrap();
    second.send(attach(1, "b1"), at(60)).unwrap();
    second.commit(vec![next(Vec::new())]).unwrap();
    let third = second.follow();
    assert_eq!(third.run.attempt(), 1);
    assert_eq!(third.run.start().retry, world.run.start().retry);
}

#[test]
fn a_delayed_run_that_is_to_stop_stops_at_once() {
    let mut world = World::of(&StartRun { start_delay: Some(Duration::from_secs(60)), ..request() });
    assert!(!world.run.needs_worker());
    assert_eq!(world.task, None);
    assert_eq!(world.timers.get(&TimerKey::START), Some(&at(60)));
    let cancel = world.command(CommandBody::Cancel { reason: "no need".into() });
    let events = world.send_command(&cancel, at(1)).unwrap();
    let kinds: Vec<&str> = events.iter().map(|e| e.body.kind()).collect();
    assert_eq!(kinds, ["CancelRequested", "RunCanceled"]);
    assert_eq!(world.run.status(), RunStatus::Canceled);
    assert_eq!(world.send_command(&cancel, at(2)).unwrap(), [], "a repeat");
    world.check();
}

#[test]
fn starts_that_differ_in_delay_or_retry_are_different_requests() {
    let with = |start_delay, retry| start_body_hash(&StartRun { start_delay, retry, ..request() });
    let policy = |maximum_attempts| Some(RetryPolicy { maximum_attempts, ..RetryPolicy::default() });
    let hashes = [
        with(None, None),
        with(Some(Duration::from_secs(1)), None),
        with(Some(Duration::from_secs(2)), None),
        with(None, policy(1)),
        with(None, policy(2)),
        with(Some(Duration::from_secs(1)), policy(2)),
    ];
    for (i, a) in hashes.iter().enumerate() {
        assert!(hashes.iter().skip(i + 1).all(|b| a != b), "{i}");
    }
}
