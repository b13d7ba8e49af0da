//! Guarded steps: what is in doubt when, and who may say what about it.

use super::*;

fn kinds(events: &[Event]) -> Vec<&str> {
    events.iter().map(|e| e.body.kind()).collect()
}

fn lose(world: &mut World) -> Vec<Event> {
    let session = world.run.owner().unwrap().session;
    world.send(CommandBody::Detach(Detach { session, refused: None }), at(2)).unwrap()
}

/// A run whose guarded step 1 is in doubt, and that nobody owns.
fn doubtful() -> World {
    let mut world = World::attached();
    world.commit(vec![guard_step(1, 1, DoubtPolicy::AskHuman)]).unwrap();
    lose(&mut world);
    world
}

fn said(resolution: Resolution) -> CommandBody {
    resolve(1, 1, resolution)
}

fn done() -> Resolution {
    Resolution::Completed(Payload::json("3"))
}

#[test]
fn the_start_of_a_guarded_step_is_an_event_of_its_own() {
    let mut world = World::attached();
    let events = world.commit(vec![guard_step(1, 1, DoubtPolicy::Fail), complete(1, 1)]).unwrap();
    assert_eq!(kinds(&events), ["StepStarted", "StepCompleted"]);
    assert_eq!(kinds(&lose(&mut world)), ["WorkerDetached"], "what ended is not in doubt");
    world.check();
}

#[test]
fn each_way_to_lose_the_owner_puts_what_runs_in_doubt() {
    let release = || CommitCommand::Release { reason: String::new() };
    type Way<'a> = (&'a str, &'a dyn Fn(&mut World) -> Vec<Event>);
    let ways: [Way<'_>; 4] = [
        ("lost", &lose),
        ("released", &|w| w.commit(vec![release()]).unwrap()),
        ("blocked", &|w| w.commit(vec![blocked("b1")]).unwrap()),
        ("begun and released", &|w| {
            let begun = guard_step(3, 1, DoubtPolicy::Retry);
            w.commit(vec![complete(2, 1), begun, release()]).unwrap()
        }),
    ];
    for (way, lose) in ways {
        let mut world = World::attached();
        world.commit(vec![guard_step(1, 1, DoubtPolicy::AskHuman), start_step(2, 1)]).unwrap();
        let events = lose(&mut world);
        let doubts: Vec<(u32, u32)> = world.run.doubts().iter().map(|d| (d.step.0, d.attempt)).collect();
        let expected = if way == "begun and released" { vec![(1, 1), (3, 1)] } else { vec![(1, 1)] };
        assert_eq!(doubts, expected, "{way}: {events:?}");
        let last = events.last().unwrap().body.kind();
        assert!(
            ["WorkerDetached", "RunBlocked"].contains(&last),
            "{way}: the doubt comes before the end of the claim"
        );
        world.check();
    }
}

#[test]
fn a_run_is_not_parked_over_a_guarded_attempt() {
    let mut world = World::attached();
    let begun = guard_step(1, 1, DoubtPolicy::Retry);
    for commands in [vec![begun.clone(), CommitCommand::Park], vec![begun], vec![CommitCommand::Park]] {
        let parks = commands.contains(&CommitCommand::Park);
        assert_eq!(world.commit(commands).is_err(), parks);
    }
    assert_eq!(kinds(&world.commit(vec![complete(1, 1), CommitCommand::Park]).unwrap()).len(), 2);
    world.check();
}

#[test]
fn an_attempt_follows_only_one_whose_end_is_known() {
    let mut world = World::attached();
    world.commit(vec![guard_step(1, 1, DoubtPolicy::Retry)]).unwrap();
    for command in [
        guard_step(1, 1, DoubtPolicy::Retry),
        guard_step(1, 2, DoubtPolicy::Retry),
        start_step(1, 2),
        complete(1, 2),
        fail(1, 2, RetryPolicy::default()),
    ] {
        let refused = world.commit(vec![command.clone()]);
        assert!(matches!(refused, Err(Rejection::InvalidCommands { .. })), "{command:?}: {refused:?}");
    }
    world.commit(vec![fail(1, 1, RetryPolicy::default())]).unwrap();
    world.commit(vec![guard_step(1, 2, DoubtPolicy::Retry)]).unwrap();
    lose(&mut world);
    assert_eq!(world.run.doubts()[0].attempt, 2);
    world.check();
}

#[test]
fn the_next_owner_ends_a_doubt_as_its_code_says() {
    let ends: [(&str, CommitCommand); 4] = [
        ("the next attempt", guard_step(1, 2, DoubtPolicy::Retry)),
        ("the next attempt, not guarded any more", start_step(1, 2)),
        ("found done", complete(1, 1)),
        ("given up", fail(1, 1, RetryPolicy::none())),
    ];
    for (way, command) in ends {
        let mut world = doubtful();
        assert!(world.run.needs_worker());
        world.send(attach(2, "b1"), at(3)).unwrap();
        assert!(world.commit(vec![guard_step(1, 1, DoubtPolicy::Retry)]).is_err(), "{way}: it began once");
        assert!(world.run.has_doubts());
        world.commit(vec![command]).unwrap();
        assert!(!world.run.has_doubts(), "{way}");
        world.check();
    }
}

#[test]
fn a_person_ends_a_doubt_and_wakes_the_run() {
    for resolution in [done(), Resolution::Failed(Failure::new("Lost", "no trace")), Resolution::Retry] {
        let mut world = doubtful();
        world.send(attach(2, "b1"), at(3)).unwrap();
        world.commit(vec![CommitCommand::Park]).unwrap();
        assert!(!world.run.needs_worker());
        let wrong = world.send(resolve(1, 2, resolution.clone()), at(4));
        assert_eq!(wrong, Err(Rejection::StepNotInDoubt { step: OpId(1), attempt: 2 }));
        let events = world.send(resolve(1, 0, resolution.clone()), at(4)).unwrap();
        assert_eq!(kinds(&events), ["StepResolved"]);
        assert!(world.run.needs_worker() && !world.run.has_doubts());
        assert_eq!(world.run.step(OpId(1)).is_some(), resolution == Resolution::Retry);
        assert!(world.send(said(resolution), at(5)).is_err(), "it is no doubt any more");
        world.check();
    }
}

#[test]
fn a_request_to_resolve_is_carried_out_once() {
    let mut world = doubtful();
    let first = world.command(said(Resolution::Retry));
    assert_eq!(world.send_command(&first, at(3)).unwrap().len(), 1);
    world.send(attach(2, "b1"), at(4)).unwrap();
    world.commit(vec![guard_step(1, 2, DoubtPolicy::AskHuman)]).unwrap();
    lose(&mut world);
    // In doubt again, and the first answer is heard once more: it was about the attempt before.
    let mut again = |body| world.send_command(&Command { body, ..first.clone() }, at(5));
    assert_eq!(again(said(Resolution::Retry)).unwrap(), []);
    assert_eq!(again(resolve(1, 0, Resolution::Retry)).unwrap(), []);
    let mismatch = Err(Rejection::IdempotencyMismatch { run_id: run_id() });
    assert_eq!(again(said(done())), mismatch);
    assert_eq!(again(resolve(1, 2, Resolution::Retry)), mismatch);
    world.send(CommandBody::Terminate { reason: String::new() }, at(6)).unwrap();
    let mut again = |body| world.send_command(&Command { body, ..first.clone() }, at(7));
    assert_eq!(again(said(Resolution::Retry)).unwrap(), [], "also when the run has ended");
    assert_eq!(again(said(done())), mismatch);
    assert!(matches!(world.send(said(done()), at(7)), Err(Rejection::RunClosed { .. })));
    world.check();
}

#[test]
fn what_the_owner_did_about_a_step_that_a_person_ended_counts_for_nothing() {
    for resolution in [done(), Resolution::Retry] {
        let mut world = doubtful();
        world.send(attach(2, "b1"), at(3)).unwrap();
        let seen = world.run.seq();
        world.send(said(resolution.clone()), at(4)).unwrap();
        let mut number = 0;
        for command in [complete(1, 1), guard_step(1, 2, DoubtPolicy::Retry), fail(1, 1, RetryPolicy::none())]
        {
            number += 1;
            let timer = CommitCommand::StartTimer { timer: OpId(number + 4), delay: Duration::from_secs(1) };
            let commands = vec![command, timer];
            let commit = WorkerCommit { epoch: 2, number, seen, commands, ahead: None };
            let events = world.send(CommandBody::Commit(commit), at(5)).unwrap();
            assert_eq!(kinds(&events), ["TimerStarted"], "only what is not about the step");
        }
        // Once it has heard of it, what it says is judged again.
        let late = world.commit(vec![complete(1, 1)]);
        assert!(matches!(late, Err(Rejection::InvalidCommands { .. })), "{late:?}");
        assert_eq!(world.commit(vec![complete(1, 2)]).is_ok(), resolution == Resolution::Retry);
        world.check();
    }
}
