//! What a worker may say about itself.

use everstep_proto::history;
use tonic::Code;
use tonic_types::StatusExt;

use super::*;

fn good() -> api::Hello {
    api::Hello {
        protocol_min: 1,
        protocol_max: 3,
        task_queues: vec!["default".to_owned()],
        workflow_types: vec!["summarize".to_owned()],
        worker: Some(history::WorkerInfo { identity: "me".to_owned(), build_id: "b1".to_owned() }),
        run_slots: 10,
        ..api::Hello::default()
    }
}

fn refused(hello: api::Hello) -> (Code, String, Vec<String>) {
    let status = check(hello).unwrap_err();
    let fields = status.get_details_bad_request().map(|b| b.field_violations).unwrap_or_default();
    let reason = status.get_details_error_info().unwrap().reason;
    (status.code(), reason, fields.into_iter().map(|v| v.field).collect())
}

#[test]
fn a_good_hello_is_taken() {
    let hello = check(good()).unwrap();
    assert_eq!((hello.namespace.as_str(), hello.run_slots, hello.resume), ("default", 10, None));
}

#[test]
fn what_a_worker_can_do_is_kept_and_unknown_words_do_not_matter() {
    assert!(!check(good()).unwrap().asks, "a worker of before is not asked");
    let words = |n| (0..n).map(|i| format!("word {i}")).chain(["asks".to_owned()]).collect();
    let hello = check(api::Hello { capabilities: words(99), ..good() }).unwrap();
    assert_eq!((hello.asks, hello.workflow_types), (true, vec!["summarize".to_owned()]));
    let (_, reason, fields) = refused(api::Hello { capabilities: words(100), ..good() });
    assert_eq!((reason.as_str(), fields), ("LIMIT_EXCEEDED", vec!["hello.capabilities".to_owned()]));
}

#[test]
fn an_empty_hello_names_every_missing_field() {
    let (code, _, fields) = refused(api::Hello::default());
    assert_eq!(code, Code::InvalidArgument);
    assert_eq!(fields, ["hello.protocol_min", "hello.task_queues", "hello.run_slots"]);
}

#[test]
fn another_protocol_is_refused() {
    let newer = api::Hello { protocol_min: 2, protocol_max: 4, ..good() };
    let (code, reason, _) = refused(newer);
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "UNSUPPORTED_PROTOCOL"));
    let upside_down = api::Hello { protocol_min: 2, protocol_max: 1, ..good() };
    assert_eq!(refused(upside_down).2, ["hello.protocol_min", "hello.protocol_max"]);
}

#[test]
fn too_much_is_refused() {
    let many = |n: usize| (0..n).map(|i| format!("q{i}")).collect::<Vec<_>>();
    let limit = |hello| {
        let (code, reason, fields) = refused(hello);
        assert_eq!((code, reason.as_str()), (Code::ResourceExhausted, "LIMIT_EXCEEDED"));
        fields
    };
    assert_eq!(limit(api::Hello { workflow_types: many(100_000), ..good() }), ["hello.workflow_types"]);
    assert_eq!(limit(api::Hello { task_queues: many(101), ..good() }), ["hello.task_queues"]);
    let long = "x".repeat(1 << 20);
    let worker = history::WorkerInfo { identity: long.clone(), build_id: String::new() };
    assert_eq!(limit(api::Hello { worker: Some(worker), ..good() }), ["hello.worker.identity"]);
    assert_eq!(refused(api::Hello { task_queues: vec![long], ..good() }).1, "INVALID_ID");
    assert_eq!(refused(api::Hello { run_slots: 100_001, ..good() }).2, ["hello.run_slots"]);
}

#[test]
fn tokens_and_held_runs_have_to_be_well_formed() {
    let token = api::Hello { session_token: "forged".to_owned(), ..good() };
    assert_eq!(refused(token).1, "INVALID_SESSION_TOKEN");
    let id = "01890a5d-ac96-774b-bcce-b302099a8057".to_owned();
    let run = |run_id: &str| api::HeldRun { run_id: run_id.to_owned(), epoch: 2, seen_seq: 9 };
    let held = api::Hello { held: vec![run(&id), run("x"), run("")], ..good() };
    assert_eq!(refused(held).2, ["hello.held[1].run_id", "hello.held[2].run_id"]);
    let resumed =
        api::Hello { session_token: format!("s1.{}", id.replace('-', "")), held: vec![run(&id)], ..good() };
    let hello = check(resumed).unwrap();
    assert_eq!(hello.resume, Some(id.parse().unwrap()));
    assert_eq!(hello.held, [HeldRun { run_id: id.parse().unwrap(), epoch: 2, seen: 9 }]);
}

#[test]
fn a_worker_that_only_checks_has_no_slots() {
    let hello = check(api::Hello { check_only: true, run_slots: 0, ..good() }).unwrap();
    assert!(hello.check_only && !hello.checks, "whether it can is another word");
    let hello = check(api::Hello {
        check_only: true,
        run_slots: 7,
        capabilities: vec!["checks".to_owned()],
        ..good()
    });
    let hello = hello.unwrap();
    assert_eq!((hello.run_slots, hello.checks, hello.asks), (0, true, false));
    assert_eq!(refused(api::Hello { run_slots: 0, ..good() }).2, ["hello.run_slots"]);
}

#[test]
fn builds_and_pinned_types_have_to_be_well_formed() {
    let words = |n: usize| (0..n).map(|i| format!("b{i}")).collect::<Vec<_>>();
    let hello = check(api::Hello {
        compatible_builds: words(100),
        pinned_workflow_types: vec!["summarize".to_owned()],
        ..good()
    });
    let hello = hello.unwrap();
    assert_eq!((hello.continues.len(), hello.pinned_types), (100, vec!["summarize".to_owned()]));
    let (_, reason, fields) = refused(api::Hello { compatible_builds: words(101), ..good() });
    assert_eq!((reason.as_str(), fields), ("LIMIT_EXCEEDED", vec!["hello.compatible_builds".to_owned()]));
    let bad = vec!["a\0b".to_owned(), "x".repeat(256)];
    let fields = refused(api::Hello { compatible_builds: bad, ..good() }).2;
    assert_eq!(fields, ["hello.compatible_builds[0]", "hello.compatible_builds[1]"]);
    let pinned = api::Hello { pinned_workflow_types: vec!["a".to_owned(), String::new()], ..good() };
    assert_eq!(refused(pinned).2, ["hello.pinned_workflow_types[1]"]);
    let many = api::Hello { pinned_workflow_types: words(1_001), ..good() };
    assert_eq!(refused(many).1, "LIMIT_EXCEEDED");
}
