//! Updates: accepted at the prefix that was looked at, answered once, recognised when they are repeated.

use super::*;
use crate::limits;

fn accepted(world: &mut World, id: &str) -> Seq {
    let seen = world.run.seq();
    let events = world.send(accept_update(id, seen), at(2)).unwrap();
    assert_eq!(events.len(), 1);
    assert!(matches!(&events[0].body, EventBody::UpdateAccepted { update_id, .. } if update_id == id));
    events[0].seq
}

fn open(world: &World) -> Vec<(Seq, String)> {
    world.run.open_updates().map(|(seq, id)| (seq, id.to_owned())).collect()
}

#[test]
fn an_update_is_accepted_right_after_what_its_code_had_seen_or_not_at_all() {
    let mut world = World::attached();
    let seen = world.run.seq();
    let signal = CommandBody::Signal { name: "go".into(), signal_id: "s".into(), input: Payload::json("1") };
    world.send(signal, at(2)).unwrap();
    let late = world.send(accept_update("u", seen), at(2));
    assert_eq!(late, Err(Rejection::UnseenEvents { seen, tail: seen + 1 }));
    let early = world.send(accept_update("u", seen + 2), at(2));
    assert_eq!(early, Err(Rejection::UnseenEvents { seen: seen + 2, tail: seen + 1 }));
    assert_eq!(accepted(&mut world, "u"), seen + 2);
    assert_eq!(open(&world), [(seen + 2, "u".to_owned())]);
    world.check();
}

#[test]
fn the_same_update_again_is_nothing_new_and_another_under_its_id_is_refused() {
    let mut world = World::attached();
    let seq = accepted(&mut world, "u");
    assert_eq!(world.send(accept_update("u", 0), at(3)), Ok(vec![]), "whatever was seen");
    let other = CommandBody::AcceptUpdate {
        update_id: "u".into(),
        name: "add".into(),
        input: Payload::json("2"),
        seen: world.run.seq(),
    };
    let mismatch = Err(Rejection::IdempotencyMismatch { run_id: run_id() });
    assert_eq!(world.send(other.clone(), at(3)), mismatch);
    world.commit(vec![complete_update(seq, true)]).unwrap();
    assert_eq!(world.send(accept_update("u", 0), at(3)), Ok(vec![]));
    let end = CommitCommand::CompleteRun { result: Payload::json("1"), unconsumed: vec![] };
    world.commit(vec![end]).unwrap();
    assert_eq!(world.send(accept_update("u", 0), at(3)), Ok(vec![]), "also after the end");
    assert_eq!(world.send(other, at(3)), mismatch);
    let new = world.send(accept_update("v", world.run.seq()), at(3));
    assert_eq!(new, Err(Rejection::RunClosed { status: RunStatus::Completed, successor: None }));
    world.check();
}

#[test]
fn an_update_is_answered_once() {
    let mut world = World::attached();
    let seq = accepted(&mut world, "u");
    for wrong in [
        vec![complete_update(seq - 1, true)],
        vec![complete_update(seq + 1, true)],
        vec![complete_update(seq, true), complete_update(seq, true)],
    ] {
        assert!(matches!(world.commit(wrong), Err(Rejection::InvalidCommands { .. })));
    }
    let events = world.commit(vec![complete_update(seq, false)]).unwrap();
    assert!(matches!(&events[0].body, EventBody::UpdateCompleted { accepted, update_id, .. }
            if *accepted == seq && update_id == "u"));
    assert!(open(&world).is_empty());
    assert!(matches!(world.commit(vec![complete_update(seq, true)]), Err(Rejection::InvalidCommands { .. })));
    world.check();
}

#[test]
fn an_update_wakes_a_parked_run() {
    let mut world = World::attached();
    world.commit(vec![CommitCommand::Park]).unwrap();
    assert!(!world.run.needs_worker());
    accepted(&mut world, "u");
    assert!(world.run.needs_worker());
    world.check();
}

#[test]
fn a_run_works_on_so_many_updates_and_takes_so_many() {
    let mut world = World::attached();
    let mut last = 0;
    for n in 0..limits::UPDATES_OPEN_MAX {
        last = accepted(&mut world, &format!("u{n}"));
    }
    let refused = |world: &mut World| match world.send(accept_update("more", world.run.seq()), at(3)) {
        Err(Rejection::LimitExceeded { what, limit, .. }) => (what, limit),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&mut world), ("updates that the run works on", limits::UPDATES_OPEN_MAX as u64));
    world.commit(vec![complete_update(last, true)]).unwrap();
    for n in limits::UPDATES_OPEN_MAX..limits::UPDATES_MAX {
        let seq = accepted(&mut world, &format!("u{n}"));
        world.commit(vec![complete_update(seq, true)]).unwrap();
    }
    assert_eq!(refused(&mut world), ("updates of the run", limits::UPDATES_MAX as u64));
}
