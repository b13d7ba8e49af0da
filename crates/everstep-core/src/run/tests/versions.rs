//! What a run marks about the versions of its code.

use super::*;

fn mark(change: &str, version: u32) -> CommitCommand {
    CommitCommand::MarkVersion { change_id: change.to_owned(), version }
}

#[test]
fn the_first_version_that_is_marked_stays() {
    let mut world = World::attached();
    let events = world.commit(vec![mark("fee", 1), mark("fee", 1), complete(1, 1)]).unwrap();
    assert_eq!(events.iter().map(|e| e.body.kind()).collect::<Vec<_>>(), ["VersionMarked", "StepCompleted"]);
    assert_eq!(world.run.version("fee"), Some(1));
    assert_eq!(world.commit(vec![mark("fee", 1)]).unwrap(), [], "the same again is nothing new");
    assert!(matches!(world.commit(vec![mark("fee", 2)]), Err(Rejection::InvalidCommands { .. })));
    let both = vec![mark("tax", 1), mark("tax", 2)];
    assert!(matches!(world.commit(both), Err(Rejection::InvalidCommands { .. })));
    assert_eq!(world.run.version("tax"), None, "a commit is recorded whole or not at all");
    assert!(matches!(world.commit(vec![mark("", 1)]), Err(Rejection::InvalidId { field: "change_id", .. })));
    world.check();
}

#[test]
fn a_run_has_so_many_changes_and_no_more() {
    let mut world = World::attached();
    let all: Vec<CommitCommand> = (0..limits::CHANGES_MAX).map(|n| mark(&n.to_string(), 1)).collect();
    for some in all.chunks(limits::COMMIT_COMMANDS_MAX / 2) {
        world.commit(some.to_vec()).unwrap();
    }
    assert!(matches!(world.commit(vec![mark("more", 1)]), Err(Rejection::LimitExceeded { .. })));
    assert_eq!(world.commit(vec![mark("7", 1)]).unwrap(), []);
}
