//! The edge: turns what a request says into core values, and collects everything that is wrong with it.
//!
//! What needs a run or the log to judge is the core's and is not repeated here.

#[cfg(test)]
mod tests;
mod values;

use std::time::Duration as StdDuration;

use everstep_core::{Duration, Payload, Rejection, RunId, WorkerInfo, limits, validate_name};
use everstep_engine::RunSelector;
use everstep_proto::wire::{decode_duration, decode_payload, parse_id};
use everstep_proto::{InvalidMessage, api, history};
use tonic::Status;
use tonic_types::FieldViolation;
use uuid::Uuid;

use crate::reason::{self, Reason};
use crate::status;

/// The namespace and task queue of a request that names none.
const DEFAULT_NAME: &str = "default";
/// Most entries on a page.
const PAGE_SIZE_MAX: i32 = 1_000;
/// Entries on a page when the request does not say.
const PAGE_SIZE_DEFAULT: usize = 100;
/// Longest wait for a result.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Wait for a result when the request does not say.
const WAIT_DEFAULT: StdDuration = StdDuration::from_secs(20);

/// What is wrong with a request, as far as it has been looked at.
#[derive(Debug, Default)]
pub(crate) struct Check {
    violations: Vec<FieldViolation>,
}

impl Check {
    /// Ends the look: the request is fine, or every bad field is named.
    pub(crate) fn finish(self) -> Result<(), Status> {
        if self.violations.is_empty() { Ok(()) } else { Err(status::of_violations(self.violations)) }
    }

    /// Notes a bad field.
    pub(crate) fn refuse(&mut self, field: impl Into<String>, reason: Reason, problem: impl Into<String>) {
        self.violations.push(status::violation(field, reason, problem));
    }

    /// What `look` finds wrong stands in the message that the field `outer` holds.
    pub(crate) fn within<T>(&mut self, outer: &str, look: impl FnOnce(&mut Self) -> T) -> T {
        let mut inner = Self::default();
        let seen = look(&mut inner);
        let placed = |v: FieldViolation| FieldViolation { field: format!("{outer}.{}", v.field), ..v };
        self.violations.extend(inner.violations.into_iter().map(placed));
        seen
    }

    /// Notes a field that is not a core value; gives the value that is.
    pub(crate) fn take<T: Default>(&mut self, read: Result<T, InvalidMessage>) -> T {
        read.unwrap_or_else(|error| {
            self.violations.push(status::violation_of(error));
            T::default()
        })
    }

    /// A name or id that must be there.
    pub(crate) fn name(&mut self, field: impl Into<String>, text: String) -> String {
        if let Err(Rejection::InvalidId { problem, .. }) = validate_name("", &text) {
            self.refuse(field, reason::INVALID_ID, problem);
        }
        text
    }

    /// A name that is "default" when it is empty.
    pub(crate) fn name_or_default(&mut self, field: impl Into<String>, text: String) -> String {
        if text.is_empty() { DEFAULT_NAME.to_owned() } else { self.name(field, text) }
    }

    /// An id that the server makes up when it is empty.
    pub(crate) fn id_or_new(&mut self, field: impl Into<String>, text: String) -> String {
        if text.is_empty() { Uuid::new_v4().to_string() } else { self.name(field, text) }
    }

    /// The caller's id of an administrative request; it may be empty, for a call of its own.
    pub(crate) fn request_id(&mut self, text: String) -> String {
        if text.is_empty() { text } else { self.name("request_id", text) }
    }

    /// Text for people, of at most `max` bytes.
    pub(crate) fn text(&mut self, field: impl Into<String>, text: String, max: usize) -> String {
        if text.len() > max {
            let problem = format!("is {} bytes long, more than the limit of {max}", text.len());
            self.refuse(field, reason::LIMIT_EXCEEDED, problem);
        } else if text.contains('\0') {
            self.refuse(field, reason::INVALID_ARGUMENT, "must not contain NUL");
        }
        text
    }

    /// Who asks.
    pub(crate) fn identity(&mut self, field: impl Into<String>, text: String) -> String {
        self.text(field, text, limits::NAME_BYTES_MAX)
    }

    /// What a worker says about itself.
    pub(crate) fn worker(&mut self, worker: WorkerInfo) -> WorkerInfo {
        let WorkerInfo { identity, build_id } = worker;
        WorkerInfo {
            identity: self.identity("hello.worker.identity", identity),
            build_id: self.text("hello.worker.build_id", build_id, limits::NAME_BYTES_MAX),
        }
    }

    /// A user's bytes.
    pub(crate) fn payload(&mut self, field: &str, wire: Option<history::Payload>) -> Payload {
        self.bytes(field, decode_payload(wire))
    }

    fn bytes(&mut self, field: &str, payload: Payload) -> Payload {
        let size = payload.data.len();
        if size > limits::PAYLOAD_BYTES_MAX {
            let problem =
                format!("is {size} bytes long, more than the limit of {}", limits::PAYLOAD_BYTES_MAX);
            self.refuse(format!("{field}.data"), reason::LIMIT_EXCEEDED, problem);
        }
        let encoding = self.text(format!("{field}.encoding"), payload.encoding, limits::NAME_BYTES_MAX);
        if encoding.is_empty() && size > 0 {
            self.refuse(
                format!("{field}.encoding"),
                reason::INVALID_ARGUMENT,
                "must be set when there is data",
            );
        }
        Payload { encoding, data: payload.data }
    }

    /// The longest life of a run.
    pub(crate) fn run_timeout(
        &mut self,
        field: &str,
        wire: Option<prost_types::Duration>,
    ) -> Option<Duration> {
        let timeout = self.take(decode_duration(field, wire?));
        if timeout == Duration::ZERO && self.violations.iter().all(|v| v.field != field) {
            self.refuse(
                field,
                reason::INVALID_DURATION,
                "must be more than zero; leave it unset for no limit",
            );
        }
        Some(timeout)
    }

    /// How long to wait for a result.
    pub(crate) fn wait(&mut self, field: &str, wire: Option<prost_types::Duration>) -> StdDuration {
        let Some(wire) = wire else { return WAIT_DEFAULT };
        let wait = self.take(decode_duration(field, wire));
        if wait > WAIT_MAX {
            self.refuse(field, reason::INVALID_DURATION, "must not be longer than 60 s");
        }
        wait.to_std()
    }

    /// How many entries to put on a page.
    pub(crate) fn page_size(&mut self, size: i32) -> usize {
        match usize::try_from(size) {
            Ok(0) => PAGE_SIZE_DEFAULT,
            Ok(size_given) if size <= PAGE_SIZE_MAX => size_given,
            _ => {
                self.refuse("page_size", reason::INVALID_ARGUMENT, format!("must be 0 to {PAGE_SIZE_MAX}"));
                PAGE_SIZE_DEFAULT
            }
        }
    }

    /// The run that a request names, in its field `run`.
    pub(crate) fn run(&mut self, wire: Option<api::RunRef>) -> RunSelector {
        let api::RunRef { namespace, run_id, workflow_id } = wire.unwrap_or_default();
        if run_id.is_empty() && workflow_id.is_empty() {
            let problem =
                "must name a run: set run.run_id, or run.workflow_id for the latest run of a workflow id";
            self.refuse("run", reason::INVALID_ARGUMENT, problem);
        }
        let namespace = self.name_or_default("run.namespace", namespace);
        let workflow_id = (!workflow_id.is_empty()).then(|| self.name("run.workflow_id", workflow_id));
        let run_id = if run_id.is_empty() {
            None
        } else {
            self.take(parse_id::<RunId>("run.run_id", &run_id).map(Some))
        };
        RunSelector { namespace, run_id, workflow_id }
    }
}
