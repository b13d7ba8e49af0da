//! What the edge lets through, and that it names every field that it does not.

use tonic::Code;
use tonic_types::StatusExt;

use super::*;

/// The fields and reasons of a refusal.
fn refused<T>(look: impl FnOnce(&mut Check) -> T) -> Vec<(String, String)> {
    let mut check = Check::default();
    look(&mut check);
    let Err(status) = check.finish() else { return Vec::new() };
    assert!(matches!(status.code(), Code::InvalidArgument | Code::ResourceExhausted), "{status:?}");
    let listed = status.get_details_bad_request().unwrap().field_violations;
    listed.into_iter().map(|v| (v.field, v.reason)).collect()
}

fn one<T>(look: impl FnOnce(&mut Check) -> T) -> Option<(String, String)> {
    let mut all = refused(look);
    assert!(all.len() <= 1, "{all:?}");
    all.pop()
}

fn named(field: &str, reason: Reason) -> Option<(String, String)> {
    Some((field.to_owned(), reason.word.to_owned()))
}

#[test]
fn bad_ids_are_refused() {
    let long = "x".repeat(256);
    for id in ["", &long, "a\0", "a\nb", "../x", "%00", "\u{202e}abc", " a", "a ", "naïve"] {
        let seen = one(|c| c.name("workflow_id", id.to_owned()));
        assert_eq!(seen, named("workflow_id", reason::INVALID_ID), "{id:?}");
    }
    for id in ["a", &"x".repeat(255), "order/42 @ 7:30", "ORDER-1", "a.b"] {
        assert_eq!(one(|c| c.name("workflow_id", id.to_owned())), None, "{id:?}");
    }
}

#[test]
fn empty_names_get_their_defaults() {
    let mut check = Check::default();
    assert_eq!(check.name_or_default("namespace", String::new()), "default");
    let made = check.id_or_new("request_id", String::new());
    assert!(Uuid::try_parse(&made).is_ok());
    assert_ne!(made, check.id_or_new("request_id", String::new()));
    assert!(check.finish().is_ok());
}

#[test]
fn payloads_have_a_limit() {
    let payload = |encoding: &str, size: usize| {
        Some(history::Payload { encoding: encoding.to_owned(), data: vec![0; size].into() })
    };
    let limit = limits::PAYLOAD_BYTES_MAX;
    assert_eq!(one(|c| c.payload("input", None)), None);
    assert_eq!(one(|c| c.payload("input", payload("json", limit))), None);
    assert_eq!(
        one(|c| c.payload("input", payload("json", limit + 1))),
        named("input.data", reason::LIMIT_EXCEEDED)
    );
    let long = "e".repeat(256);
    assert_eq!(
        one(|c| c.payload("input", payload(&long, 1))),
        named("input.encoding", reason::LIMIT_EXCEEDED)
    );
    assert_eq!(
        one(|c| c.payload("input", payload("", 1))),
        named("input.encoding", reason::INVALID_ARGUMENT)
    );
}

#[test]
fn durations_out_of_range_are_refused() {
    let of = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let bad = named("run_timeout", reason::INVALID_DURATION);
    for wire in [of(-1, 0), of(0, 0), of(0, 2_000_000_000), of(10_000 * 366 * 86_400, 0)] {
        assert_eq!(one(|c| c.run_timeout("run_timeout", wire)), bad, "{wire:?}");
    }
    assert_eq!(one(|c| c.run_timeout("run_timeout", None)), None);
    assert_eq!(one(|c| c.run_timeout("run_timeout", of(1, 0))), None);
    assert_eq!(one(|c| c.wait("wait", of(61, 0))), named("wait", reason::INVALID_DURATION));
    assert_eq!(one(|c| c.wait("wait", of(-1, 0))), named("wait", reason::INVALID_DURATION));
    let mut check = Check::default();
    assert_eq!(check.wait("wait", of(0, 0)), StdDuration::ZERO);
    assert_eq!(check.wait("wait", None), WAIT_DEFAULT);
}

#[test]
fn page_sizes_out_of_range_are_refused() {
    for size in [-1, 1_001, i32::MAX, i32::MIN] {
        assert_eq!(one(|c| c.page_size(size)), named("page_size", reason::INVALID_ARGUMENT), "{size}");
    }
    let mut check = Check::default();
    assert_eq!([check.page_size(0), check.page_size(1), check.page_size(1_000)], [100, 1, 1_000]);
}

#[test]
fn a_run_has_to_be_named() {
    let of = |run_id: &str, workflow_id: &str| {
        Some(api::RunRef {
            run_id: run_id.to_owned(),
            workflow_id: workflow_id.to_owned(),
            ..api::RunRef::default()
        })
    };
    assert_eq!(one(|c| c.run(None)), named("run", reason::INVALID_ARGUMENT));
    assert_eq!(one(|c| c.run(of("", ""))), named("run", reason::INVALID_ARGUMENT));
    assert_eq!(one(|c| c.run(of("42", ""))), named("run.run_id", reason::INVALID_ID));
    assert_eq!(refused(|c| c.run(of("42", ".."))).len(), 2);
    assert_eq!(one(|c| c.run(of("01890a5d-ac96-774b-bcce-b302099a8057", "order"))), None);
}

#[test]
fn every_bad_field_is_named() {
    let all = refused(|c| {
        c.name("name", String::new());
        c.page_size(-1);
        c.identity("identity", "x".repeat(256));
        c.identity("worker.identity", "\0".to_owned());
    });
    let fields: Vec<&str> = all.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["name", "page_size", "identity", "worker.identity"]);
}
