//! Each error has its code and reason, and the documentation lists exactly the reasons that exist.

use everstep_core::{RunId, RunStatus};
use tonic::metadata::MetadataMap;

use super::*;
use crate::REASONS;

const DOCUMENT: &str = include_str!("../../../../docs/errors.md");

fn run() -> RunId {
    "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap()
}

fn info(status: &Status) -> (Code, String) {
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.domain, DOMAIN);
    (status.code(), info.reason)
}

fn code_name(code: Code) -> String {
    // `FailedPrecondition` in Rust is FAILED_PRECONDITION in every other place.
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

#[test]
fn the_document_lists_exactly_the_reasons() {
    let rows: Vec<Vec<&str>> = DOCUMENT
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    let expected: Vec<Vec<String>> = REASONS
        .iter()
        .map(|r| {
            vec![format!("`{}`", r.word), code_name(r.code), r.meaning.to_owned(), r.what_to_do.to_owned()]
        })
        .collect();
    for row in &rows {
        assert!(
            expected.iter().any(|e| e == row),
            "docs/errors.md has a row that is not in the table: {row:?}"
        );
    }
    for row in &expected {
        assert!(rows.iter().any(|r| r == row), "docs/errors.md lacks this row: | {} |", row.join(" | "));
    }
    assert_eq!(rows.len(), expected.len(), "docs/errors.md lists a reason twice");
}

#[test]
fn the_table_is_sorted_and_without_doubles() {
    let words: Vec<&str> = REASONS.iter().map(|r| r.word).collect();
    assert!(words.is_sorted_by(|a, b| a < b), "{words:?}");
}

#[test]
fn rejections_have_their_codes() {
    let cases = [
        (
            Rejection::InvalidId { field: "name", problem: "must not be empty" },
            Code::InvalidArgument,
            "INVALID_ID",
        ),
        (
            Rejection::InvalidArgument { field: "identity", problem: "too long".to_owned() },
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
        ),
        (
            Rejection::LimitExceeded { what: "input", actual: 9, limit: 8 },
            Code::ResourceExhausted,
            "LIMIT_EXCEEDED",
        ),
        (
            Rejection::RunClosed { status: RunStatus::Failed, successor: None },
            Code::FailedPrecondition,
            "RUN_CLOSED",
        ),
        (
            Rejection::AlreadyStarted { run_id: run(), status: RunStatus::Running, policy: "conflict" },
            Code::AlreadyExists,
            "RUN_ALREADY_EXISTS",
        ),
        (Rejection::IdempotencyMismatch { run_id: run() }, Code::InvalidArgument, "IDEMPOTENCY_MISMATCH"),
        (Rejection::Fenced { current: 3, sent: 2 }, Code::FailedPrecondition, "FENCED"),
        (Rejection::AlreadyAttached { epoch: 2 }, Code::FailedPrecondition, "RUN_ALREADY_ATTACHED"),
        (Rejection::NotRunnable, Code::FailedPrecondition, "RUN_NOT_RUNNABLE"),
        (Rejection::UnseenEvents { seen: 1, tail: 2 }, Code::FailedPrecondition, "UNSEEN_EVENTS"),
        (Rejection::NotDue, Code::FailedPrecondition, "TIMER_NOT_DUE"),
        (
            Rejection::InvalidCommands { problem: "step #1 has ended already".to_owned() },
            Code::InvalidArgument,
            "INVALID_COMMANDS",
        ),
    ];
    for (rejection, code, reason) in cases {
        let status = of_engine(&EngineError::Rejected(rejection.clone()));
        assert_eq!(info(&status), (code, reason.to_owned()));
        assert_eq!(reason_of(&rejection).word, reason);
    }
}

#[test]
fn a_taken_workflow_id_names_its_run() {
    let status = of_rejection(&Rejection::AlreadyStarted {
        run_id: run(),
        status: RunStatus::Running,
        policy: "conflict",
    });
    let metadata = status.get_details_error_info().unwrap().metadata;
    assert_eq!(metadata["run_id"], run().to_string());
    assert_eq!(metadata["status"], "running");
}

#[test]
fn store_errors_keep_their_secrets() {
    let secret = || "postgres://user:hunter2@db".to_owned();
    let cases = [
        (StoreError::Unavailable(secret()), Code::Unavailable, "STORE_UNAVAILABLE"),
        (StoreError::OutcomeUnknown(secret()), Code::Unavailable, "OUTCOME_UNKNOWN"),
        (StoreError::Contention(secret()), Code::Aborted, "CONTENTION"),
        (StoreError::Exhausted(secret()), Code::ResourceExhausted, "STORE_EXHAUSTED"),
        (StoreError::Corrupt(secret()), Code::DataLoss, "STORE_CORRUPT"),
        (StoreError::Schema(secret()), Code::Unavailable, "STORE_UNAVAILABLE"),
        (StoreError::Refused(secret()), Code::Internal, "INTERNAL"),
    ];
    for (error, code, reason) in cases {
        let status = of_engine(&EngineError::Store(error));
        assert_eq!(info(&status), (code, reason.to_owned()));
        assert!(!status.message().contains("hunter2"), "{}", status.message());
    }
    assert!(of_store(&StoreError::Unavailable(secret())).get_details_retry_info().is_some());
}

#[test]
fn the_engines_other_errors_have_their_codes() {
    let cases = [
        (EngineError::RunNotFound("r".to_owned()), Code::NotFound, "RUN_NOT_FOUND"),
        (EngineError::NamespaceNotFound("n".to_owned()), Code::NotFound, "NAMESPACE_NOT_FOUND"),
        (EngineError::Contention { attempts: 9 }, Code::Aborted, "CONTENTION"),
        (EngineError::Stopping, Code::Unavailable, "NODE_STOPPING"),
        (EngineError::BadToken, Code::InvalidArgument, "INVALID_SESSION_TOKEN"),
        (EngineError::NoAnswer, Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (EngineError::Overloaded, Code::Unavailable, "OVERLOADED"),
    ];
    for (error, code, reason) in cases {
        assert_eq!(info(&of_engine(&error)), (code, reason.to_owned()));
    }
}

#[test]
fn a_query_that_failed_says_how_and_one_without_a_worker_says_which() {
    let failed = EngineError::QueryFailed { kind: "Busy".to_owned(), message: "not now".to_owned() };
    let failed = of_engine(&failed);
    assert_eq!(info(&failed), (Code::FailedPrecondition, "QUERY_FAILED".to_owned()));
    assert_eq!(failed.message(), "Busy: not now");
    let queue = everstep_core::QueueKey { namespace: "n".to_owned(), task_queue: "q".to_owned() };
    let none = of_engine(&EngineError::NoWorker { queue, workflow_type: "t".to_owned() });
    assert_eq!(info(&none), (Code::Unavailable, "NO_WORKER".to_owned()));
    let known = none.get_details_error_info().unwrap().metadata;
    assert_eq!((known["task_queue"].as_str(), known["workflow_type"].as_str()), ("q", "t"));
}

#[test]
fn violations_of_one_kind_keep_their_reason() {
    let id = || violation("a", reason::INVALID_ID, "must not be empty");
    let duration = || violation("b", reason::INVALID_DURATION, "must not be negative");
    assert_eq!(info(&of_violations(vec![id(), id()])).1, "INVALID_ID");
    let mixed = of_violations(vec![id(), duration()]);
    assert_eq!(info(&mixed), (Code::InvalidArgument, "INVALID_ARGUMENT".to_owned()));
    let listed = mixed.get_details_bad_request().unwrap().field_violations;
    let listed: Vec<(&str, &str)> = listed.iter().map(|v| (v.field.as_str(), v.reason.as_str())).collect();
    assert_eq!(listed, [("a", "INVALID_ID"), ("b", "INVALID_DURATION")]);
    assert_eq!(mixed.message(), "a must not be empty; b must not be negative");
}

#[test]
fn a_thousand_violations_fit_into_the_headers() {
    let many = (0..1_000).map(|i| violation(format!("queues[{i}]"), reason::INVALID_ID, "x".repeat(100)));
    let mut metadata = MetadataMap::new().into_headers();
    of_violations(many.collect()).add_header(&mut metadata).unwrap();
    let size: usize = metadata.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    assert!(size < 8 * 1024, "{size} bytes");
}

#[test]
fn what_is_echoed_is_escaped_and_short() {
    assert_eq!(echo("order 42"), "order 42");
    assert_eq!(echo("a\u{1b}[31m\u{202e}\n\0"), "a\\u{1b}[31m\\u{202e}\\u{a}\\u{0}");
    for long in ["x".repeat(10_000), "\u{202e}".repeat(10_000), "ü".repeat(10_000)] {
        let shown = echo(&long);
        assert!(shown.len() <= ECHO_BYTES_MAX && shown.ends_with('…'), "{} bytes", shown.len());
    }
}

#[test]
fn the_frameworks_answers_get_our_words() {
    let reworded = |status| of_framework(&status).map(|s| info(&s));
    let invalid = Some((Code::InvalidArgument, "INVALID_MESSAGE".to_owned()));
    let large = Some((Code::ResourceExhausted, "LIMIT_EXCEEDED".to_owned()));
    assert_eq!(reworded(Status::internal("failed to decode Protobuf message")), invalid);
    assert_eq!(reworded(Status::out_of_range("found 9 bytes, the limit is: 8 bytes")), large);
    assert_eq!(reworded(Status::unimplemented("")), None);
    assert_eq!(reworded(of(reason::INTERNAL, "ours")), None);
}
