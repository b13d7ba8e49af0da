//! What no worker of ours sends: refused as a whole, and the run goes on as if nothing had been said.

use super::child::start_child;
use super::*;

/// The commit is refused, with a text that names `part`, and the run is as it was.
#[track_caller]
fn refused(world: &mut World, command: CommitCommand, part: &str) {
    let (before, shown) = (world.run.clone(), format!("{command:?}"));
    let error = world.commit(vec![command]).expect_err(&shown);
    assert!(error.to_string().contains(part), "{error} does not say '{part}' of {shown}");
    assert_eq!(world.run, before);
}

fn odd() -> Payload {
    Payload { encoding: "js\0n".into(), data: "1".into() }
}

#[test]
fn an_encoding_that_no_database_takes_is_refused_wherever_it_stands() {
    let mut world = World::attached();
    let cause = Failure { details: odd(), ..Failure::new("Io", "reset") };
    let failure = Failure { cause: Some(Box::new(cause)), ..Failure::new("Oops", "no") };
    let result = CommitCommand::CompleteRun { result: odd(), unconsumed: Vec::new() };
    refused(&mut world, result, "encoding");
    refused(&mut world, CommitCommand::FailRun { failure, unconsumed: Vec::new() }, "encoding");
    let input = CommandBody::Signal { name: "go".into(), signal_id: "s".into(), input: odd() };
    assert!(matches!(world.send(input, at(1)), Err(Rejection::InvalidArgument { field: "input", .. })));
    let start = StartRun { input: odd(), ..request() };
    let start = decide_start(&start, (run_id(), 7), None, None, at(0));
    assert!(matches!(start, Err(Rejection::InvalidArgument { field: "input", .. })), "{start:?}");
}

#[test]
fn the_details_of_a_cause_are_as_large_as_any_payload() {
    let mut world = World::attached();
    let details = Payload { encoding: "json".into(), data: vec![0; limits::PAYLOAD_BYTES_MAX + 1].into() };
    let cause = Failure { details, ..Failure::new("Io", "reset") };
    let failure = Failure { cause: Some(Box::new(cause)), ..Failure::new("Oops", "no") };
    refused(&mut world, CommitCommand::FailRun { failure, unconsumed: Vec::new() }, "failure.details");
}

#[test]
fn what_a_run_leaves_unconsumed_are_signals_that_its_code_has_seen() {
    for unconsumed in [vec![1], vec![3, 3], vec![4, 3], vec![u64::MAX], vec![2]] {
        let mut world = World::attached();
        for id in ["a", "b"] {
            let input = Payload::json("1");
            let signal = CommandBody::Signal { name: "go".into(), signal_id: id.into(), input };
            world.send(signal, at(1)).unwrap();
        }
        let (result, failure) = (Payload::json("1"), Failure::new("Oops", "no"));
        let end = CommitCommand::CompleteRun { result: result.clone(), unconsumed: unconsumed.clone() };
        refused(&mut world, end, "unconsumed");
        refused(&mut world, CommitCommand::FailRun { failure, unconsumed }, "unconsumed");
        world.commit(vec![CommitCommand::CompleteRun { result, unconsumed: vec![3, 4] }]).unwrap();
        world.check();
    }
}

#[test]
fn a_build_that_no_worker_can_have_blocks_nothing() {
    for build in ["b\0", &"b".repeat(256)] {
        let mut world = World::attached();
        refused(&mut world, blocked(build), "build_id");
    }
}

#[test]
fn a_child_lives_for_some_time() {
    for timeout in [Duration::ZERO, Duration::from_micros(u64::MAX)] {
        let mut world = World::attached();
        let CommitCommand::StartChild(mut child) = start_child(1, ParentClose::Terminate, false) else {
            panic!()
        };
        child.run_timeout = Some(timeout);
        refused(&mut world, CommitCommand::StartChild(child), "run_timeout");
    }
}

#[test]
fn a_retry_policy_names_kinds_that_failures_can_have() {
    let policy = |kinds: Vec<String>| RetryPolicy { non_retryable_kinds: kinds, ..RetryPolicy::default() };
    let mut world = World::attached();
    for kind in ["Io\0".to_owned(), "k".repeat(256)] {
        refused(&mut world, fail(1, 1, policy(vec![kind])), "non_retryable_kinds");
    }
    refused(&mut world, fail(1, 1, policy(vec!["k".into(); 1_001])), "1000");
    world.commit(vec![fail(1, 1, policy(vec!["k".repeat(255); 1_000]))]).unwrap();
}
