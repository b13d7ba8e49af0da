//! What the requests of `StepService` say, as core values.

use everstep_core::{CommandBody, OpId, Resolution, RunId};
use everstep_proto::wire::{decode_resolution, parse_id};
use everstep_proto::{InvalidKind, InvalidMessage, api};
use everstep_store::DoubtFilter;
use tonic::Status;

use crate::check::Check;
use crate::runs::request::{REASON_BYTES_MAX, RunCall};
use crate::{page, reason};

type List = (DoubtFilter, Option<(RunId, OpId)>, usize);

/// Reads a list: the filter, where the page begins, and its size.
pub(super) fn list(request: api::ListStepsRequest) -> Result<List, Status> {
    let api::ListStepsRequest { namespace, state, run_id, page_size, page_token } = request;
    let mut check = Check::default();
    let namespace = check.name_or_default("namespace", namespace);
    // Steps that are in doubt are all that there are.
    if api::StepState::try_from(state).is_err() {
        let problem = format!("has the unknown value {state}");
        check.take::<()>(Err(InvalidMessage::new(InvalidKind::UnknownEnum, "state", problem)));
    }
    let run = if run_id.is_empty() { None } else { check.take(parse_id("run_id", &run_id).map(Some)) };
    let size = check.page_size(page_size);
    check.finish()?;
    let filter = DoubtFilter { namespace, run };
    let after = page::steps_page(&filter, &page_token)?;
    Ok((filter, after, size))
}

/// Reads what somebody says about an attempt in doubt.
pub(super) fn resolve(request: api::ResolveStepRequest) -> Result<(RunCall, CommandBody), Status> {
    let api::ResolveStepRequest { run, step_id, attempt, resolution, note, request_id, identity } = request;
    let mut check = Check::default();
    let call = RunCall::read(&mut check, run, request_id, identity, "resolve");
    if step_id == 0 {
        check.refuse("step_id", reason::INVALID_ARGUMENT, "must be given; steps count from 1");
    }
    let resolution: Option<Resolution> = check.take(decode_resolution(resolution).map(Some));
    let note = check.text("note", note, REASON_BYTES_MAX);
    check.finish()?;
    let resolution = resolution.unwrap_or(Resolution::Retry);
    Ok((call, CommandBody::ResolveStep { step: OpId(step_id), attempt, resolution, note }))
}
