//! What the requests of `StepService` say, as core values.

use everstep_core::{CommandBody, OpId, Payload, Resolution, RunId, StepEnd};
use everstep_proto::api::resolve_step_request::Resolution as Said;
use everstep_proto::wire::parse_id;
use everstep_proto::{InvalidKind, InvalidMessage, api, history};
use everstep_store::DETAILS_BYTES_MAX;
use tonic::Status;

use super::Question;
use crate::check::Check;
use crate::runs::request::{REASON_BYTES_MAX, RunCall};
use crate::{page, reason};

type List = (Question, Option<(RunId, OpId)>, usize);

/// Reads a list: the filter, where the page begins, and its size.
pub(super) fn list(request: api::ListStepsRequest) -> Result<List, Status> {
    let api::ListStepsRequest { namespace, state, task_queue, run_id, page_size, page_token } = request;
    let mut check = Check::default();
    let namespace = check.name_or_default("namespace", namespace);
    let state = api::StepState::try_from(state).unwrap_or_else(|_| {
        let problem = format!("has the unknown value {state}");
        check.take::<()>(Err(InvalidMessage::new(InvalidKind::UnknownEnum, "state", problem)));
        api::StepState::Unspecified
    });
    let task_queue = (!task_queue.is_empty()).then(|| check.name("task_queue", task_queue));
    let run = if run_id.is_empty() { None } else { check.take(parse_id("run_id", &run_id).map(Some)) };
    let size = check.page_size(page_size);
    check.finish()?;
    let question = Question { namespace, run, task_queue, state };
    let after = page::steps_page(&question, &page_token)?;
    Ok((question, after, size))
}

/// Reads what somebody says about an attempt in doubt.
pub(super) fn resolve(request: api::ResolveStepRequest) -> Result<(RunCall, CommandBody), Status> {
    let api::ResolveStepRequest { run, step_id, attempt, resolution, note, request_id, identity } = request;
    let mut check = Check::default();
    let call = RunCall::read(&mut check, run, request_id, identity, "resolve");
    if step_id == 0 {
        check.refuse("step_id", reason::INVALID_ARGUMENT, "must be given; steps count from 1");
    }
    let resolution = what_became(&mut check, resolution);
    let note = check.text("note", note, REASON_BYTES_MAX);
    check.finish()?;
    Ok((call, CommandBody::ResolveStep { step: OpId(step_id), attempt, resolution, note }))
}

fn what_became(check: &mut Check, wire: Option<Said>) -> Resolution {
    match wire {
        Some(Said::Completed(result)) => Resolution::Completed(check.payload("completed", Some(result))),
        Some(Said::Failed(failure)) => {
            let failure = check.failure("failed", Some(failure));
            failure.map_or(Resolution::Retry, Resolution::Failed)
        }
        Some(Said::Retry(history::RetryStep {})) => Resolution::Retry,
        None => {
            let problem = "must be set: completed, failed or retry";
            check.refuse("resolution", reason::INVALID_ARGUMENT, problem);
            Resolution::Retry
        }
    }
}

/// Somebody ends an attempt by its token.
pub(super) struct Finish {
    pub(super) token: String,
    pub(super) end: StepEnd,
    pub(super) request_id: String,
    pub(super) identity: String,
}

/// Reads a good end.
pub(super) fn complete(request: api::CompleteStepRequest) -> Result<Finish, Status> {
    let api::CompleteStepRequest { task_token, result, request_id, identity } = request;
    let mut check = Check::default();
    let end = StepEnd::Completed(check.payload("result", result));
    finish(check, task_token, end, (request_id, identity))
}

/// Reads a failure.
pub(super) fn fail(request: api::FailStepRequest) -> Result<Finish, Status> {
    let api::FailStepRequest { task_token, failure, request_id, identity } = request;
    let mut check = Check::default();
    let failure = check.failure("failure", failure);
    let end = StepEnd::Failed(failure.unwrap_or_else(|| everstep_core::Failure::new("", "")));
    finish(check, task_token, end, (request_id, identity))
}

fn finish(
    mut check: Check,
    token: String,
    end: StepEnd,
    (request_id, identity): (String, String),
) -> Result<Finish, Status> {
    let request_id = check.id_or_new("request_id", request_id);
    let identity = check.identity("identity", identity);
    check.finish()?;
    Ok(Finish { token, end, request_id, identity })
}

/// Reads a sign of life.
pub(super) fn heartbeat(request: api::HeartbeatStepRequest) -> Result<(String, Option<Payload>), Status> {
    let api::HeartbeatStepRequest { task_token, details } = request;
    let mut check = Check::default();
    let details = details.map(|details| check.payload("details", Some(details)));
    if let Some(size) = details.as_ref().map(|d| d.data.len()).filter(|size| *size > DETAILS_BYTES_MAX) {
        let problem = format!("is {size} bytes long, more than the limit of {DETAILS_BYTES_MAX}");
        check.refuse("details.data", reason::LIMIT_EXCEEDED, problem);
    }
    check.finish()?;
    Ok((task_token, details))
}
