//! What a run says about itself.

use super::*;
use crate::{Attribute, Finite, Notes, NotesChange, StartDefaults};

fn upsert(op: u32, attributes: &[(&str, Option<Attribute>)]) -> CommitCommand {
    let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let notes = Box::new(NotesChange { attributes, memo: BTreeMap::new() });
    CommitCommand::Upsert { op: OpId(op), notes }
}

fn memo(op: u32, name: &str, value: Option<Payload>) -> CommitCommand {
    let memo = BTreeMap::from([(name.to_owned(), value)]);
    CommitCommand::Upsert { op: OpId(op), notes: Box::new(NotesChange { attributes: BTreeMap::new(), memo }) }
}

pub(super) fn any_upsert() -> impl Strategy<Value = CommitCommand> {
    let value = prop_oneof![
        Just(None),
        any::<i64>().prop_map(|n| Some(Attribute::Int(n))),
        proptest::collection::vec("[ab]", 0..4).prop_map(|texts| Some(Attribute::Keywords(texts))),
        "[a-c]{0,2}".prop_map(|text| Some(Attribute::Keyword(text))),
        // More than there may be.
        Just(Some(Attribute::Keyword("x".repeat(limits::KEYWORD_BYTES_MAX + 1)))),
    ];
    let value = (1..10u32, 0..3u8, value);
    prop_oneof![
        4 => value.prop_map(|(op, name, value)| upsert(op, &[(&format!("a{name}"), value)])),
        1 => (1..10u32, any::<bool>()).prop_map(|(op, set)| memo(op, "m", set.then(|| Payload::json("1")))),
    ]
}

fn keywords(texts: &[&str]) -> Option<Attribute> {
    Some(Attribute::Keywords(texts.iter().map(|text| (*text).to_owned()).collect()))
}

fn noted() -> StartRun {
    let attributes = BTreeMap::from([("customer".to_owned(), Attribute::Keyword("acme".to_owned()))]);
    let memo = BTreeMap::from([("note".to_owned(), Payload::json("\"vip\""))]);
    StartRun { notes: Notes { memo, attributes }, ..request() }
}

#[test]
fn notes_are_what_was_said_last() {
    let mut world = World::of(&noted());
    world.send(attach(1, "b1"), at(1)).unwrap();
    assert_eq!(world.run.notes(), &noted().notes);
    assert_eq!(world.attributes, noted().notes.attributes, "a start is found by its attributes at once");
    let first = upsert(1, &[("left", Some(Attribute::Int(3))), ("customer", None)]);
    let second = upsert(2, &[("tags", keywords(&["b", "a", "b"]))]);
    let events = world.commit(vec![first, second, memo(3, "note", None), complete(4, 1)]).unwrap();
    let kinds: Vec<&str> = events.iter().map(|e| e.body.kind()).collect();
    let upserted = "AttributesUpserted";
    assert_eq!(kinds, [upserted, upserted, upserted, "StepCompleted"]);
    let notes = world.run.notes();
    assert!(notes.memo.is_empty());
    assert_eq!(notes.attributes.get("tags"), keywords(&["b", "a", "b"]).as_ref(), "shown as it was said");
    assert_eq!(world.attributes.get("tags"), keywords(&["b", "a"]).as_ref(), "found by each once");
    assert_eq!(world.attributes.len(), 2);
    assert_eq!(Notes::told(&world.history), *world.run.notes());
    world
        .commit(vec![CommitCommand::CompleteRun { result: Payload::default(), unconsumed: vec![] }])
        .unwrap();
    assert_eq!(world.attributes.len(), 2, "a closed run is found too");
    world.check();
}

#[test]
fn the_number_of_an_upsert_is_its_own() {
    let mut world = World::attached();
    let one = || upsert(1, &[("a", Some(Attribute::Int(1)))]);
    world.commit(vec![one()]).unwrap();
    let timer = |n| CommitCommand::StartTimer { timer: OpId(n), delay: Duration::ZERO };
    for commands in [
        vec![one()],
        vec![complete(1, 1)],
        vec![timer(1)],
        vec![upsert(0, &[])],
        vec![upsert(2, &[]), upsert(2, &[])],
        vec![upsert(2, &[]), complete(2, 1)],
        vec![upsert(2, &[]), timer(2)],
        vec![timer(2), upsert(2, &[])],
        vec![complete(2, 1), upsert(2, &[])],
    ] {
        let refused = world.commit(commands.clone());
        assert!(matches!(refused, Err(Rejection::InvalidCommands { .. })), "{commands:?}: {refused:?}");
    }
    world.check();
}

/// The whole commit gives way to the end of the run; what it would have started is not.
#[test]
fn a_run_that_says_too_much_fails() {
    let long = || Some(Attribute::Keyword("x".repeat(limits::KEYWORD_BYTES_MAX + 1)));
    let big = || Some(Payload::json("x".repeat(limits::MEMO_BYTES_MAX + 1)));
    let many: Vec<CommitCommand> =
        (1..=65).map(|n| upsert(n, &[(&format!("a{n}"), Some(Attribute::Bool(true)))])).collect();
    let next = || CommitCommand::ContinueAsNew(Box::default());
    for (commands, kind) in [
        (vec![complete(7, 1), upsert(1, &[("a", long())])], "LimitExceeded"),
        (vec![memo(1, "m", big()), next()], "LimitExceeded"),
        (many, "LimitExceeded"),
        (vec![upsert(1, &[("", Some(Attribute::Int(1)))])], "InvalidNotes"),
        (vec![upsert(1, &[("a", Some(Attribute::Keyword("\0".into())))])], "InvalidNotes"),
    ] {
        let mut world = World::attached();
        let events = world.commit(commands).unwrap();
        assert!(matches!(&events[..], [e] if matches!(&e.body, EventBody::RunFailed { .. })), "{events:?}");
        let failure = world.run.failure().unwrap();
        assert_eq!((failure.kind.as_str(), failure.non_retryable), (kind, true));
        world.check();
    }
    // What is within the limits, and what takes the place of something else, goes through.
    let mut world = World::attached();
    for op in 1..=2 {
        let whole = Payload::json("x".repeat(limits::MEMO_BYTES_MAX));
        assert_eq!(world.commit(vec![memo(op, "m", Some(whole))]).unwrap().len(), 1);
    }
    assert!(world.run.history_bytes() >= 2 * limits::MEMO_BYTES_MAX as u64, "notes fill the history too");
}

#[test]
fn what_follows_a_run_says_what_it_said() {
    let mut world = World::of(&StartRun {
        retry: Some(RetryPolicy { maximum_attempts: 2, ..RetryPolicy::default() }),
        ..noted()
    });
    world.send(attach(1, "b1"), at(1)).unwrap();
    let mut again = World::with(world.run.clone(), world.history.clone());
    let left = || upsert(1, &[("left", Some(Attribute::Int(1)))]);
    world.commit(vec![left(), CommitCommand::ContinueAsNew(Box::default())]).unwrap();
    again.commit(vec![left()]).unwrap();
    again
        .commit(vec![CommitCommand::FailRun { failure: Failure::new("Oops", ""), unconsumed: vec![] }])
        .unwrap();
    let said = |world: &World| world.next.as_ref().unwrap().start.notes.clone();
    assert_eq!(said(&again), *again.run.notes(), "a retry");
    assert_eq!(said(&again).attributes.len(), 2);
    assert!(said(&world).attributes.contains_key("customer"), "what it began with");
    assert_eq!(said(&world), *world.run.notes(), "also what it said in the commit that ended it");
}

#[test]
fn a_start_is_held_to_the_limits_and_to_its_notes() {
    let refused = |notes: Notes| {
        decide_start(&StartRun { notes, ..request() }, (run_id(), 7), None, None, at(0)).unwrap_err()
    };
    let attribute = |name: &str, value| Notes {
        attributes: BTreeMap::from([(name.to_owned(), value)]),
        ..Notes::default()
    };
    let over = |texts: Vec<String>| refused(attribute("a", Attribute::Keywords(texts)));
    assert!(matches!(over(vec![String::new(); 65]), Rejection::LimitExceeded { .. }));
    assert!(matches!(over(vec!["x".repeat(256)]), Rejection::LimitExceeded { .. }));
    assert!(matches!(refused(attribute("", Attribute::Int(1))), Rejection::InvalidId { .. }));
    let known = KnownRequest { run_id: run_id(), body_hash: start_body_hash(&noted()) };
    let start = |request: &StartRun| decide_start(request, (run_id(), 7), None, Some(known), at(0));
    assert!(matches!(start(&noted()), Ok(StartDecision::Existing(_))));
    assert!(matches!(start(&request()), Err(Rejection::IdempotencyMismatch { .. })));
    // What the namespace sets may change between a request and its repeat.
    let defaults = StartDefaults { run_timeout: Some(Duration::from_secs(1)), ..StartDefaults::default() };
    assert!(matches!(start(&StartRun { defaults, ..noted() }), Ok(StartDecision::Existing(_))));
    // A number is told from another by its bits.
    let float = |n| start_body_hash(&StartRun { notes: attribute("f", Attribute::Float(n)), ..request() });
    let number = |n| Finite::new(n).unwrap();
    assert_ne!(float(number(0.1)), float(number(0.1 + f64::EPSILON)));
    assert_eq!(float(number(0.0)), float(number(-0.0)), "minus zero is zero");
}

#[test]
fn a_namespace_sets_what_request_and_code_leave_open() {
    let policy = |max| RetryPolicy { maximum_attempts: max, ..RetryPolicy::default() };
    let defaults = StartDefaults {
        step_retry: Some(policy(1)),
        run_retry: Some(policy(2)),
        run_timeout: Some(Duration::from_secs(9)),
    };
    let silent = StartRun { run_timeout: None, defaults: defaults.clone(), ..request() };
    let mut world = World::of(&silent);
    assert_eq!(world.run.start().run_timeout, defaults.run_timeout);
    assert_eq!(world.run.start().retry, defaults.run_retry);
    world.send(attach(1, "b1"), at(1)).unwrap();
    let failing = |step, policy| {
        let mut command = fail(step, 1, RetryPolicy::default());
        if let CommitCommand::FailStep { policy: of_code, .. } = &mut command {
            *of_code = policy;
        }
        command
    };
    let events = world.commit(vec![failing(1, None), failing(2, Some(policy(3)))]).unwrap();
    let retried: Vec<bool> =
        events.iter().map(|e| matches!(&e.body, EventBody::StepFailed { retry_at: Some(_), .. })).collect();
    assert_eq!(retried, [false, true], "the code's own policy comes first");
    let said = StartRun { retry: Some(policy(5)), ..silent };
    let said = StartRun { run_timeout: Some(Duration::from_secs(1)), ..said };
    let world = World::of(&said);
    assert_eq!(world.run.start().run_timeout, Some(Duration::from_secs(1)));
    assert_eq!(world.run.start().retry, Some(policy(5)));
    world.check();
}
