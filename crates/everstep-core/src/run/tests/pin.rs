//! Runs that belong to a build.

use super::*;

fn claim(session: u128, build: &str, pinned: bool, compatible: &[&str]) -> CommandBody {
    CommandBody::Attach(Attach {
        pinned,
        compatible: compatible.iter().map(|&b| b.to_owned()).collect(),
        ..Attach::by(SessionId::from_uuid(id(session)), worker(build))
    })
}

/// A run that a pinning worker of build `1` had and lost.
fn pinned() -> World {
    let mut world = World::new();
    world.send(claim(1, "1", true, &[]), at(1)).unwrap();
    lose(&mut world);
    world
}

fn lose(world: &mut World) {
    let session = world.run.owner().unwrap().session;
    world.send(CommandBody::Detach(Detach { session, refused: None }), at(2)).unwrap();
}

fn wrong(wants: &str, has: &str) -> Result<Vec<Event>, Rejection> {
    Err(Rejection::WrongBuild { wants: wants.to_owned(), has: has.to_owned() })
}

#[test]
fn only_its_build_and_one_that_continues_it_may_claim_a_pinned_run() {
    for (may, build, compatible) in [
        (true, "1", &[][..]),
        (true, "2", &["0", "1"]),
        (false, "2", &[]),
        (false, "2", &["0", "2"]),
        (false, "", &[]),
    ] {
        for pins in [false, true] {
            let mut world = pinned();
            assert_eq!(world.run.task().build_id, "1");
            let claimed = world.send(claim(2, build, pins, compatible), at(3));
            if !may {
                assert_eq!(claimed, wrong("1", build), "{compatible:?}");
                assert_eq!(world.run.pin(), Some("1"), "a refusal changes nothing");
            } else {
                claimed.unwrap();
                assert_eq!(world.run.pin(), pins.then_some(build), "the last owner decides");
                lose(&mut world);
                assert_eq!(world.run.task().build_id, if pins { build } else { "" });
            }
            world.check();
        }
    }
}

#[test]
fn a_run_that_is_not_pinned_goes_to_any_build() {
    let mut world = World::attached();
    lose(&mut world);
    world.send(claim(2, "b2", false, &[]), at(3)).unwrap();
    assert_eq!(world.run.pin(), None);
    world.check();
}

#[test]
fn a_blocked_run_that_is_pinned_is_freed_by_a_build_that_continues_it_only() {
    let mut world = World::new();
    world.send(claim(1, "1", true, &[]), at(1)).unwrap();
    let blocked = Blocked {
        kind: BlockKind::Nondeterminism,
        at_seq: 2,
        expected: "a".into(),
        produced: "b".into(),
        source: String::new(),
        hint: String::new(),
        build_id: "1".into(),
    };
    world.commit(vec![CommitCommand::Block(Box::new(blocked))]).unwrap();
    assert_eq!(world.send(claim(2, "2", false, &[]), at(2)), wrong("1", "2"));
    assert_eq!(
        world.send(claim(2, "1", true, &[]), at(2)),
        Err(Rejection::NotRunnable),
        "the same code again"
    );
    let events = world.send(claim(2, "2", true, &["1"]), at(2)).unwrap();
    assert_eq!(events.iter().map(|e| e.body.kind()).collect::<Vec<_>>(), ["RunUnblocked", "WorkerAttached"]);
    assert_eq!(world.run.pin(), Some("2"));
    world.check();
}
