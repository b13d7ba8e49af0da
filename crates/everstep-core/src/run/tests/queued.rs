//! Queued steps: which attempt there is, and how each of its ends is judged.

use super::*;
use crate::{QueuedOptions, StepEnd, StepScheduled, StepTimeout, limits};

pub(super) fn schedule(step: u32, options: QueuedOptions) -> CommitCommand {
    let (name, input) = ("q".to_owned(), Payload::json("1"));
    CommitCommand::ScheduleStep(Box::new(StepScheduled { step: OpId(step), name, input, options }))
}

pub(super) fn cancel(step: u32) -> CommitCommand {
    CommitCommand::CancelStep { step: OpId(step) }
}

pub(super) fn finish(step: u32, attempt: u32, kind: u8) -> CommandBody {
    let end = match kind {
        0 => StepEnd::Completed(Payload::json("5")),
        1 => StepEnd::Completed(Payload::json("6")),
        2 => StepEnd::Failed(Failure::new("Oops", "no")),
        3 => StepEnd::Failed(Failure::new("WorkerLost", "says the step").non_retryable()),
        _ => StepEnd::Canceled("undone".into()),
    };
    CommandBody::FinishStep { step: OpId(step), attempt, elapsed: Duration::from_millis(1), end }
}

pub(super) const TIMEOUTS: [StepTimeout; 5] = [
    StepTimeout::ScheduleToStart,
    StepTimeout::StartToClose,
    StepTimeout::ScheduleToClose,
    StepTimeout::Heartbeat,
    StepTimeout::Canceled,
];

pub(super) fn expire(step: u32, attempt: u32, timeout: StepTimeout) -> CommandBody {
    CommandBody::ExpireStep { step: OpId(step), attempt, timeout }
}

pub(super) fn lose(step: u32, attempt: u32) -> CommandBody {
    CommandBody::LoseStep { step: OpId(step), attempt }
}

fn secs(n: u64) -> Option<Duration> {
    Some(Duration::from_secs(n))
}

/// Options with every time set, and one with none of them, guarded or not.
pub(super) fn any_options() -> impl Strategy<Value = QueuedOptions> {
    let guard = prop_oneof![Just(None), (0..4usize).prop_map(|n| Some(DoubtPolicy::ALL[n]))];
    (any::<bool>(), 0..7u8, guard, 0..3u32).prop_map(|(timed, priority, in_doubt, maximum_attempts)| {
        let times = |n| if timed { secs(n) } else { None };
        QueuedOptions {
            priority,
            in_doubt,
            schedule_to_start: times(60),
            start_to_close: times(120),
            schedule_to_close: times(600),
            heartbeat: times(30),
            retry: RetryPolicy { maximum_attempts, ..RetryPolicy::default() },
            ..QueuedOptions::default()
        }
    })
}

/// A run whose workflow waits for one queued step.
fn queued(options: QueuedOptions) -> World {
    let mut world = World::attached();
    world.commit(vec![schedule(1, options)]).unwrap();
    world.check();
    world
}

fn task(world: &World) -> StepTask {
    let steps = world.run.projection().steps;
    assert_eq!(steps.len(), 1, "{steps:?}");
    steps.into_iter().next().unwrap()
}

fn kinds(events: &[Event]) -> Vec<&str> {
    events.iter().map(|e| e.body.kind()).collect()
}

/// Kind of the failure that a single event records, and whether there is another attempt.
fn failed(events: &[Event]) -> (&str, Option<Timestamp>) {
    match events {
        [Event { body: EventBody::StepFailed { failure, retry_at, .. }, .. }] => (&failure.kind, *retry_at),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_step_is_scheduled_on_the_queue_of_its_run_and_completed_by_anybody() {
    let mut world = queued(QueuedOptions::default());
    let task = task(&world);
    assert_eq!((task.queue.task_queue.as_str(), task.attempt, task.scheduled), ("default", 1, 3));
    assert_eq!((task.visible_at, task.start_by, task.close_by), (at(1), None, None));
    world.commit(vec![CommitCommand::Park]).unwrap();
    let events = world.send(finish(1, 1, 0), at(5)).unwrap();
    assert_eq!(kinds(&events), ["StepCompleted"]);
    assert!(world.run.needs_worker(), "a parked run is woken by the end of its step");
    assert!(world.steps.is_empty());
    world.check();
}

#[test]
fn an_end_is_recorded_once_and_another_end_of_the_same_attempt_is_a_conflict() {
    let mut world = queued(QueuedOptions::default());
    world.send(finish(1, 1, 0), at(5)).unwrap();
    assert_eq!(world.send(finish(1, 1, 0), at(6)), Ok(vec![]), "the answer was lost, and it is said again");
    let conflict = Err(Rejection::ResultConflict { step: OpId(1), attempt: 1 });
    assert_eq!(world.send(finish(1, 1, 1), at(6)), conflict);
    assert_eq!(world.send(finish(1, 1, 2), at(6)), conflict);
    assert_eq!(
        world.send(finish(1, 2, 0), at(6)),
        Err(Rejection::StaleAttempt { step: OpId(1), attempt: 2 })
    );
    assert_eq!(world.send(finish(2, 1, 0), at(6)), Err(Rejection::StepNotFound { step: OpId(2) }));
    world.commit(vec![CommitCommand::CancelRun { details: String::new() }]).unwrap();
    assert_eq!(world.send(finish(1, 1, 0), at(7)), Ok(vec![]), "also when the run has ended since");
    assert!(matches!(world.send(finish(1, 1, 1), at(7)), Err(Rejection::RunClosed { .. })));
    world.check();
}

#[test]
fn a_failed_attempt_is_followed_by_the_next_one_until_the_policy_ends_it() {
    let retry = RetryPolicy { maximum_attempts: 2, ..RetryPolicy::default() };
    let mut world = queued(QueuedOptions { retry, ..QueuedOptions::default() });
    let events = world.send(finish(1, 1, 2), at(5)).unwrap();
    let (_, retry_at) = failed(&events);
    let task = task(&world);
    assert_eq!((task.attempt, Some(task.visible_at)), (2, retry_at));
    assert!(
        !world.run.needs_worker() && world.timers.len() == 1,
        "only the run's own timeout: {:?}",
        world.timers
    );
    assert_eq!(world.send(finish(1, 1, 2), at(6)), Ok(vec![]), "said again");
    assert_eq!(
        world.send(finish(1, 1, 0), at(6)),
        Err(Rejection::StaleAttempt { step: OpId(1), attempt: 1 })
    );
    assert_eq!(failed(&world.send(finish(1, 2, 2), at(9)).unwrap()), ("Oops", None));
    assert!(world.steps.is_empty());
    world.check();
}

#[test]
fn a_lost_worker_is_replaced_at_once_and_does_not_count_as_a_failure() {
    let retry = RetryPolicy { maximum_attempts: 2, ..RetryPolicy::default() };
    let mut world = queued(QueuedOptions { retry, ..QueuedOptions::default() });
    for attempt in 1..5 {
        let now = at(10 + i64::from(attempt));
        assert_eq!(failed(&world.send(lose(1, attempt), now).unwrap()), ("WorkerLost", Some(now)));
        assert_eq!(world.send(lose(1, attempt), now), Ok(vec![]), "two nodes may find the same loss");
    }
    assert!(failed(&world.send(finish(1, 5, 2), at(20)).unwrap()).1.is_some(), "the first that counts");
    assert!(failed(&world.send(finish(1, 6, 2), at(30)).unwrap()).1.is_none(), "the second");
    world.check();
}

#[test]
fn a_step_that_says_worker_lost_itself_is_a_failure_like_any_other() {
    let retry = RetryPolicy { maximum_attempts: 1, ..RetryPolicy::default() };
    let mut world = queued(QueuedOptions { retry, ..QueuedOptions::default() });
    let end = StepEnd::Failed(Failure::new("WorkerLost", "says the step"));
    let body = CommandBody::FinishStep { step: OpId(1), attempt: 1, elapsed: Duration::ZERO, end };
    assert_eq!(failed(&world.send(body, at(5)).unwrap()), ("WorkerLost", None));
    world.check();
}

#[test]
fn each_time_runs_out_at_its_own_instant() {
    let options = QueuedOptions {
        schedule_to_start: secs(60),
        start_to_close: secs(120),
        schedule_to_close: secs(600),
        heartbeat: secs(30),
        ..QueuedOptions::default()
    };
    for (timeout, after, ends) in [
        (StepTimeout::ScheduleToStart, 60, true),
        (StepTimeout::StartToClose, 120, false),
        (StepTimeout::ScheduleToClose, 600, true),
        (StepTimeout::Heartbeat, 30, false),
    ] {
        let mut world = queued(options.clone());
        assert_eq!(world.send(expire(1, 1, timeout), at(after)), Err(Rejection::NotDue), "{timeout:?}");
        assert_eq!(world.send(expire(1, 2, timeout), at(9_000)), Ok(vec![]), "of another attempt");
        let events = world.send(expire(1, 1, timeout), at(1 + after)).unwrap();
        let (kind, retry_at) = failed(&events);
        assert_eq!((kind, retry_at.is_none()), ("StepTimeout", ends), "{timeout:?}");
        let details = &world.run.projection().steps;
        assert_eq!(details.is_empty(), ends);
        let EventBody::StepFailed { failure, .. } = &events[0].body else { panic!() };
        let said = format!(r#"{{"timeout":"{}"}}"#, timeout.as_str());
        assert_eq!(&failure.details.data[..], said.as_bytes());
        // The worker that comes too late is told that its attempt is over, whatever it says.
        assert_eq!(
            world.send(finish(1, 1, 0), at(700)),
            Err(Rejection::StaleAttempt { step: OpId(1), attempt: 1 }),
            "{timeout:?}"
        );
        world.check();
    }
}

#[test]
fn a_time_that_was_not_set_never_runs_out() {
    let mut world = queued(QueuedOptions::default());
    for timeout in TIMEOUTS {
        assert_eq!(world.send(expire(1, 1, timeout), at(1_000_000)), Ok(vec![]), "{timeout:?}");
    }
    assert_eq!(world.send(expire(7, 1, StepTimeout::Canceled), at(1)), Ok(vec![]), "no such step");
}

#[test]
fn there_is_no_attempt_after_the_time_of_the_whole_step() {
    let retry = RetryPolicy { initial_interval: Duration::from_secs(50), ..RetryPolicy::default() };
    let mut world = queued(QueuedOptions { retry, schedule_to_close: secs(60), ..QueuedOptions::default() });
    assert!(failed(&world.send(finish(1, 1, 2), at(2)).unwrap()).1.is_some());
    assert_eq!(failed(&world.send(finish(1, 2, 2), at(49)).unwrap()), ("Oops", None));
    world.check();
}

#[test]
fn a_canceled_step_ends_in_each_of_its_ways_and_is_not_tried_again() {
    for (body, kind) in [
        (finish(1, 1, 4), "Canceled"),
        (finish(1, 1, 2), "Oops"),
        (lose(1, 1), "WorkerLost"),
        (expire(1, 1, StepTimeout::Canceled), "Canceled"),
        (expire(1, 1, StepTimeout::Heartbeat), "StepTimeout"),
    ] {
        let mut world = queued(QueuedOptions { heartbeat: secs(1), ..QueuedOptions::default() });
        assert_eq!(kinds(&world.commit(vec![cancel(1)]).unwrap()), ["StepCancelRequested"]);
        assert_eq!(world.commit(vec![cancel(1)]), Ok(vec![]), "asked for once");
        assert!(task(&world).canceled);
        assert_eq!(failed(&world.send(body, at(100)).unwrap()), (kind, None));
        assert_eq!(world.commit(vec![cancel(1)]), Ok(vec![]), "and not after its end");
        world.check();
    }
    let mut world = queued(QueuedOptions::default());
    world.commit(vec![cancel(1)]).unwrap();
    assert_eq!(kinds(&world.send(finish(1, 1, 0), at(9)).unwrap()), ["StepCompleted"], "it was faster");
    let mut world = World::attached();
    let both = world.commit(vec![schedule(1, QueuedOptions::default()), cancel(1), cancel(1)]).unwrap();
    assert_eq!(kinds(&both), ["StepScheduled", "StepCancelRequested"]);
    assert!(matches!(world.commit(vec![cancel(2)]), Err(Rejection::InvalidCommands { .. })));
    world.check();
}

#[test]
fn a_lost_attempt_of_a_guarded_step_is_in_doubt_until_a_person_or_its_worker_speaks() {
    let guarded =
        |policy| QueuedOptions { in_doubt: Some(policy), heartbeat: secs(1), ..QueuedOptions::default() };
    for loss in [lose(1, 1), expire(1, 1, StepTimeout::Heartbeat)] {
        let mut world = queued(guarded(DoubtPolicy::AskHuman));
        assert_eq!(kinds(&world.send(loss.clone(), at(9)).unwrap()), ["StepInDoubt"]);
        assert_eq!(world.doubts.len(), 1);
        assert_eq!(task(&world).visible_at, StepTask::HELD, "no worker is given it");
        for silent in
            [loss, lose(1, 1), expire(1, 1, StepTimeout::Heartbeat), expire(1, 1, StepTimeout::Canceled)]
        {
            assert_eq!(world.send(silent, at(10)), Ok(vec![]));
        }
        world.check();
        world.send(resolve(1, 1, Resolution::Retry), at(11)).unwrap();
        let again = task(&world);
        assert_eq!((again.attempt, again.visible_at, world.doubts.len()), (2, at(11), 0));
        world.check();
        world.send(lose(1, 2), at(12)).unwrap();
        assert_eq!(
            kinds(&world.send(finish(1, 2, 0), at(13)).unwrap()),
            ["StepCompleted"],
            "its worker lives"
        );
        assert!(world.doubts.is_empty() && world.steps.is_empty());
        world.check();

        let mut world = queued(guarded(DoubtPolicy::Fail));
        let events = world.send(lose(1, 1), at(9)).unwrap();
        assert_eq!(failed(&events), ("InDoubt", None));
        let mut world = queued(guarded(DoubtPolicy::Retry));
        assert!(failed(&world.send(lose(1, 1), at(9)).unwrap()).1.is_some());
    }
}

#[test]
fn a_person_ends_a_queued_step_in_doubt() {
    for resolution in
        [Resolution::Completed(Payload::json("5")), Resolution::Failed(Failure::new("Lost", "by hand"))]
    {
        let mut world =
            queued(QueuedOptions { in_doubt: Some(DoubtPolicy::AskHuman), ..QueuedOptions::default() });
        world.commit(vec![CommitCommand::Park]).unwrap();
        assert!(matches!(
            world.send(resolve(1, 1, resolution.clone()), at(5)),
            Err(Rejection::StepNotInDoubt { .. })
        ));
        world.send(lose(1, 1), at(9)).unwrap();
        assert!(!world.run.needs_worker(), "the workflow has nothing to do about it");
        world.send(resolve(1, 0, resolution), at(10)).unwrap();
        assert!(world.run.needs_worker() && world.steps.is_empty() && world.doubts.is_empty());
        world.check();
    }
}

#[test]
fn the_time_of_the_whole_step_ends_a_doubt_too() {
    let mut world = queued(QueuedOptions {
        in_doubt: Some(DoubtPolicy::AskHuman),
        schedule_to_close: secs(60),
        ..QueuedOptions::default()
    });
    world.send(lose(1, 1), at(9)).unwrap();
    assert!(task(&world).close_by.is_some());
    assert_eq!(failed(&world.send(expire(1, 1, StepTimeout::ScheduleToClose), at(61)).unwrap()).1, None);
    assert!(world.doubts.is_empty());
    world.check();
}

#[test]
fn the_end_of_the_run_takes_its_queued_steps_along() {
    let mut world =
        queued(QueuedOptions { in_doubt: Some(DoubtPolicy::AskHuman), ..QueuedOptions::default() });
    world.commit(vec![schedule(2, QueuedOptions::default())]).unwrap();
    world.send(lose(1, 1), at(9)).unwrap();
    world.send(CommandBody::Terminate { reason: String::new() }, at(10)).unwrap();
    assert!(world.steps.is_empty() && world.doubts.is_empty());
    for late in [lose(2, 1), expire(2, 1, StepTimeout::Heartbeat)] {
        assert_eq!(world.send(late, at(11)), Ok(vec![]));
    }
    assert!(matches!(world.send(finish(2, 1, 0), at(11)), Err(Rejection::RunClosed { .. })));
    world.check();
}

#[test]
fn a_number_is_a_queued_step_for_ever_or_never() {
    let plain = QueuedOptions::default;
    for others in [
        vec![complete(1, 1)],
        vec![start_step(1, 1)],
        vec![CommitCommand::StartTimer { timer: OpId(1), delay: Duration::from_secs(1) }],
        vec![schedule(1, plain())],
    ] {
        let mut world = World::attached();
        world.commit(others.clone()).unwrap();
        let refused = |r| matches!(r, Err(Rejection::InvalidCommands { .. }));
        assert!(refused(world.commit(vec![schedule(1, plain())])), "{others:?}");
        let mut both = others.clone();
        both.push(schedule(1, plain()));
        assert!(refused(World::attached().commit(both)), "{others:?} in the same commit");
        let mut both = vec![schedule(1, plain())];
        both.extend(others.clone());
        assert!(refused(World::attached().commit(both)), "{others:?} after it in the same commit");
        let mut world = queued(plain());
        assert!(refused(world.commit(others.clone())), "{others:?} after it");
        world.send(finish(1, 1, 0), at(9)).unwrap();
        assert!(refused(world.commit(others)), "and after its end");
    }
}

#[test]
fn what_a_step_asks_for_is_checked() {
    let plain = QueuedOptions::default;
    for (options, field) in [
        (QueuedOptions { priority: 0, ..plain() }, "priority"),
        (QueuedOptions { priority: 6, ..plain() }, "priority"),
        (QueuedOptions { heartbeat: secs(0), ..plain() }, "heartbeat"),
        (
            QueuedOptions { schedule_to_start: Some(Duration::from_micros(u64::MAX)), ..plain() },
            "schedule_to_start",
        ),
        (QueuedOptions { in_doubt: Some(DoubtPolicy::Verify), ..plain() }, "in_doubt"),
    ] {
        match World::attached().commit(vec![schedule(1, options)]) {
            Err(Rejection::InvalidArgument { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    let named = QueuedOptions { task_queue: "a b\0".into(), ..plain() };
    assert!(matches!(World::attached().commit(vec![schedule(1, named)]), Err(Rejection::InvalidId { .. })));
    assert!(matches!(
        World::attached().commit(vec![schedule(0, plain())]),
        Err(Rejection::InvalidCommands { .. })
    ));
}

#[test]
fn too_many_at_a_time_end_the_run_in_a_way_that_says_so() {
    let mut world = World::attached();
    let max = limits::QUEUED_STEPS_MAX as u32;
    for first in (1..=max).step_by(limits::COMMIT_COMMANDS_MAX) {
        let some = (first..first + limits::COMMIT_COMMANDS_MAX as u32)
            .map(|n| schedule(n, QueuedOptions::default()));
        world.commit(some.collect()).unwrap();
    }
    assert_eq!(world.steps.len(), limits::QUEUED_STEPS_MAX);
    world.send(finish(1, 1, 0), at(2)).unwrap();
    world.commit(vec![schedule(max + 1, QueuedOptions::default())]).unwrap();
    world.commit(vec![schedule(max + 2, QueuedOptions::default())]).unwrap();
    assert_eq!(world.run.failure().unwrap().kind, "LimitExceeded");
    assert!(world.steps.is_empty());
    world.check();
}

#[test]
fn an_end_that_the_history_has_no_room_for_ends_the_run() {
    let mut world = World::attached();
    let all = (1..=30).map(|n| schedule(n, QueuedOptions::default())).collect();
    world.commit(all).unwrap();
    for step in 1..=30 {
        let result = Payload::json(vec![b'1'; limits::PAYLOAD_BYTES_MAX]);
        let (elapsed, end) = (Duration::ZERO, StepEnd::Completed(result));
        let _ = world.send(CommandBody::FinishStep { step: OpId(step), attempt: 1, elapsed, end }, at(2));
    }
    assert_eq!(world.run.failure().unwrap().kind, "HistoryTooLarge");
    world.check();
}
