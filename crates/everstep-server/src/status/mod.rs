//! The one place where errors become gRPC statuses: canonical code, `google.rpc.ErrorInfo` with a reason of
//! [`REASONS`](crate::REASONS), and `BadRequest` where a field is to blame.
//!
//! What the caller sent is echoed escaped and cut; what the database said stays in the server's log.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use everstep_core::Rejection;
use everstep_engine::Error as EngineError;
use everstep_proto::{InvalidKind, InvalidMessage};
use everstep_store::Error as StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::reason::{self, DOMAIN, Reason};

/// Most bytes of a caller's own text in an answer.
const ECHO_BYTES_MAX: usize = 200;
/// Most field violations in one answer: the rest would not help, and the headers have room for 16 KiB.
const VIOLATIONS_MAX: usize = 20;

/// A status with a reason.
pub(crate) fn of(reason: Reason, message: impl Into<String>) -> Status {
    with_metadata(reason, message, [])
}

/// A status with a reason, and what programs may want to know beside it.
pub(crate) fn with_metadata<const N: usize>(
    reason: Reason,
    message: impl Into<String>,
    metadata: [(&str, String); N],
) -> Status {
    let metadata: HashMap<String, String> = metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let mut details = ErrorDetails::new();
    details.set_error_info(reason.word, DOMAIN, metadata);
    if let Some(pause) = pause(reason) {
        details.set_retry_info(Some(pause));
    }
    Status::with_error_details(reason.code, message, details)
}

/// How long to wait before trying again, where that helps.
fn pause(reason: Reason) -> Option<Duration> {
    match reason {
        reason::CONTENTION => Some(Duration::from_millis(100)),
        reason::STORE_UNAVAILABLE
        | reason::OUTCOME_UNKNOWN
        | reason::OVERLOADED
        | reason::REQUEST_BYTES_EXHAUSTED
        | reason::NODE_STOPPING => Some(Duration::from_secs(1)),
        _ => None,
    }
}

/// The status of a refusal by the core.
pub(crate) fn of_rejection(rejection: &Rejection) -> Status {
    let reason = reason_of(rejection);
    let message = rejection.to_string();
    match rejection {
        Rejection::InvalidId { field, problem } => of_violations(vec![violation(*field, reason, *problem)]),
        Rejection::InvalidArgument { field, problem } => {
            of_violations(vec![violation(*field, reason, problem.clone())])
        }
        Rejection::LimitExceeded { what, actual, limit } => with_metadata(
            reason,
            message,
            [("what", (*what).to_owned()), ("actual", actual.to_string()), ("limit", limit.to_string())],
        ),
        Rejection::RunClosed { status, successor } => {
            let status = ("status", status.to_string());
            match successor {
                Some(run) => with_metadata(reason, message, [status, ("successor", run.to_string())]),
                None => with_metadata(reason, message, [status]),
            }
        }
        Rejection::AlreadyStarted { run_id, status, policy } => with_metadata(
            reason,
            message,
            [
                ("run_id", run_id.to_string()),
                ("status", status.to_string()),
                ("policy", (*policy).to_owned()),
            ],
        ),
        Rejection::IdempotencyMismatch { run_id } => {
            with_metadata(reason, message, [("run_id", run_id.to_string())])
        }
        Rejection::Fenced { current, sent } => {
            with_metadata(reason, message, [("current", current.to_string()), ("sent", sent.to_string())])
        }
        Rejection::StepNotFound { step } => with_metadata(reason, message, [("step_id", step.0.to_string())]),
        Rejection::StaleAttempt { step, attempt }
        | Rejection::ResultConflict { step, attempt }
        | Rejection::StepNotInDoubt { step, attempt } => with_metadata(
            reason,
            message,
            [("step_id", step.0.to_string()), ("attempt", attempt.to_string())],
        ),
        Rejection::AlreadyAttached { .. }
        | Rejection::WrongBuild { .. }
        | Rejection::NotRunnable
        | Rejection::UnseenEvents { .. }
        | Rejection::NotDue
        | Rejection::InvalidCommands { .. } => of(reason, message),
    }
}

/// The reason of a refusal by the core, also for workers' streams.
pub(crate) fn reason_of(rejection: &Rejection) -> Reason {
    match rejection {
        Rejection::InvalidId { .. } => reason::INVALID_ID,
        Rejection::InvalidArgument { .. } => reason::INVALID_ARGUMENT,
        Rejection::LimitExceeded { .. } => reason::LIMIT_EXCEEDED,
        Rejection::RunClosed { .. } => reason::RUN_CLOSED,
        Rejection::AlreadyStarted { .. } => reason::RUN_ALREADY_EXISTS,
        Rejection::IdempotencyMismatch { .. } => reason::IDEMPOTENCY_MISMATCH,
        Rejection::Fenced { .. } => reason::FENCED,
        Rejection::AlreadyAttached { .. } => reason::RUN_ALREADY_ATTACHED,
        Rejection::NotRunnable => reason::RUN_NOT_RUNNABLE,
        Rejection::WrongBuild { .. } => reason::WRONG_BUILD,
        Rejection::UnseenEvents { .. } => reason::UNSEEN_EVENTS,
        Rejection::NotDue => reason::TIMER_NOT_DUE,
        Rejection::StepNotInDoubt { .. } => reason::STEP_NOT_IN_DOUBT,
        Rejection::StepNotFound { .. } => reason::STEP_NOT_FOUND,
        Rejection::StaleAttempt { .. } => reason::STALE_ATTEMPT,
        Rejection::ResultConflict { .. } => reason::RESULT_CONFLICT,
        Rejection::InvalidCommands { .. } => reason::INVALID_COMMANDS,
    }
}

/// The status of a call that the engine did not carry out.
pub(crate) fn of_engine(error: &EngineError) -> Status {
    match error {
        EngineError::Rejected(rejection) => of_rejection(rejection),
        EngineError::RunNotFound(run) => {
            with_metadata(reason::RUN_NOT_FOUND, format!("no run {}", echo(run)), [("run", echo(run))])
        }
        EngineError::NamespaceNotFound(name) => namespace_not_found(name),
        EngineError::Store(error) => of_store(error),
        EngineError::Contention { .. } => of(reason::CONTENTION, error.to_string()),
        EngineError::Stopping => stopping(),
        EngineError::QueryFailed { kind, message } => {
            with_metadata(reason::QUERY_FAILED, format!("{kind}: {message}"), [("kind", kind.clone())])
        }
        EngineError::UpdateRejected { kind, message } => {
            with_metadata(reason::UPDATE_REJECTED, format!("{kind}: {message}"), [("kind", kind.clone())])
        }
        EngineError::UpdateAbandoned(status) => {
            with_metadata(reason::UPDATE_ABANDONED, error.to_string(), [("status", status.to_string())])
        }
        EngineError::UpdateNotFound(id) => with_metadata(
            reason::UPDATE_NOT_FOUND,
            format!("no update {}", echo(id)),
            [("update_id", echo(id))],
        ),
        EngineError::NoWorker { queue, workflow_type } => with_metadata(
            reason::NO_WORKER,
            error.to_string(),
            [("task_queue", queue.task_queue.clone()), ("workflow_type", workflow_type.clone())],
        ),
        EngineError::NoCandidate { build_id, .. } => {
            with_metadata(reason::NO_WORKER, error.to_string(), [("build_id", build_id.clone())])
        }
        EngineError::CheckerLost => of(reason::NO_WORKER, error.to_string()),
        EngineError::NoAnswer => of(reason::DEADLINE_EXCEEDED, error.to_string()),
        EngineError::Overloaded => of(reason::OVERLOADED, error.to_string()),
        EngineError::BadToken => of(reason::INVALID_SESSION_TOKEN, error.to_string()),
    }
}

/// The status of a failed store call. What the database said goes to the log only.
pub(crate) fn of_store(error: &StoreError) -> Status {
    let (reason, message) = match error {
        StoreError::Unavailable(_) => {
            (reason::STORE_UNAVAILABLE, "the store is unavailable; nothing was written")
        }
        StoreError::OutcomeUnknown(_) => (
            reason::OUTCOME_UNKNOWN,
            "the outcome of the commit is unknown; repeat it with the same request id",
        ),
        StoreError::Contention(_) => (reason::CONTENTION, "contention in the store; nothing was written"),
        StoreError::Exhausted(_) => {
            (reason::STORE_EXHAUSTED, "the store is out of resources; nothing was written")
        }
        StoreError::Corrupt(_) => (reason::STORE_CORRUPT, "stored data are corrupt; see the server's log"),
        StoreError::Schema(_) => {
            (reason::STORE_UNAVAILABLE, "the database's schema does not fit this server; see its log")
        }
        StoreError::Refused(_) => (reason::INTERNAL, "the store refused the request; see the server's log"),
    };
    tracing::warn!(error = %error, reason = reason.word, "store call failed");
    of(reason, message)
}

/// The status of a message that is not a core value.
pub(crate) fn of_invalid(error: InvalidMessage) -> Status {
    of_violations(vec![violation_of(error)])
}

/// The violation in a message that is not a core value.
pub(crate) fn violation_of(error: InvalidMessage) -> FieldViolation {
    let InvalidMessage { field, problem, kind } = error;
    let reason = match kind {
        InvalidKind::Id => reason::INVALID_ID,
        InvalidKind::UnknownEnum => reason::UNKNOWN_ENUM,
        InvalidKind::Duration => reason::INVALID_DURATION,
        InvalidKind::Timestamp => reason::INVALID_TIMESTAMP,
        InvalidKind::Limit => reason::LIMIT_EXCEEDED,
        InvalidKind::Missing | InvalidKind::Value => reason::INVALID_ARGUMENT,
    };
    violation(field, reason, problem)
}

/// One bad field.
pub(crate) fn violation(
    field: impl Into<String>,
    reason: Reason,
    problem: impl Into<String>,
) -> FieldViolation {
    // Part of a field's name may be the caller's: the key of a map. Headers have little room.
    let field = echo(&field.into());
    FieldViolation { reason: reason.word.to_owned(), ..FieldViolation::new(field, problem) }
}

/// The status of a request with bad fields: their common reason, or `INVALID_ARGUMENT` when they differ.
pub(crate) fn of_violations(mut violations: Vec<FieldViolation>) -> Status {
    let common = crate::REASONS.iter().find(|r| violations.iter().all(|v| v.reason == r.word));
    let reason = common.copied().unwrap_or(reason::INVALID_ARGUMENT);
    let total = violations.len();
    violations.truncate(VIOLATIONS_MAX);
    let listed: Vec<String> =
        violations.iter().take(3).map(|v| format!("{} {}", v.field, v.description)).collect();
    let mut message = listed.join("; ");
    if total > listed.len() {
        message.push_str(&format!("; and {} more", total - listed.len()));
    }
    let mut details = ErrorDetails::with_bad_request(violations);
    details.set_error_info(reason.word, DOMAIN, HashMap::<String, String>::new());
    Status::with_error_details(reason.code, message, details)
}

/// The node is shutting down.
pub(crate) fn stopping() -> Status {
    of(reason::NODE_STOPPING, "the node is shutting down")
}

/// There is no such namespace.
pub(crate) fn namespace_not_found(name: &str) -> Status {
    let message = format!("no namespace '{}'", echo(name));
    with_metadata(reason::NAMESPACE_NOT_FOUND, message, [("namespace", echo(name))])
}

/// A task of the server's own died. The cause is in the log.
pub(crate) fn internal(what: &str, cause: &dyn Display) -> Status {
    tracing::error!(%cause, "{what}");
    of(reason::INTERNAL, format!("{what}; see the server's log"))
}

/// What the framework answered in our stead, said in our words: a message that it could not decode, or that
/// is too large. `None` when its answer stands.
pub(crate) fn of_framework(status: &Status) -> Option<Status> {
    if !status.details().is_empty() {
        return None;
    }
    match status.code() {
        // Every status of ours has details, so these are the codec's: bytes that are no message.
        Code::Internal => {
            Some(of(reason::INVALID_MESSAGE, format!("cannot read the message: {}", echo(status.message()))))
        }
        Code::OutOfRange | Code::ResourceExhausted => {
            Some(of(reason::LIMIT_EXCEEDED, echo(status.message())))
        }
        _ => None,
    }
}

/// What the caller sent, safe to show: escaped, and cut to 200 bytes.
pub(crate) fn echo(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        // Letters of any script are shown; whatever could move the cursor or hide text is not.
        let visible = c.is_alphanumeric() || c.is_ascii_graphic() || c == ' ';
        let piece = if visible { c.to_string() } else { c.escape_unicode().to_string() };
        if shown.len() + piece.len() > ECHO_BYTES_MAX - '…'.len_utf8() {
            shown.push('…');
            break;
        }
        shown.push_str(&piece);
    }
    shown
}
