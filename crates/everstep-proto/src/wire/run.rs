//! Runs, their status, and the request that starts one.

use std::collections::BTreeMap;

use everstep_core::{ConflictPolicy, ReusePolicy, RunLink, RunRow, RunStatus, StartRun};

use super::{
    InvalidKind, InvalidMessage, encode_duration, encode_notes, encode_payload, encode_recorded_policy,
    encode_timestamp, succession,
};
use crate::api;

/// A status as the wire has it.
pub fn encode_run_status(status: RunStatus) -> api::RunStatus {
    match status {
        RunStatus::Running => api::RunStatus::Running,
        RunStatus::Blocked => api::RunStatus::Blocked,
        RunStatus::Completed => api::RunStatus::Completed,
        RunStatus::Failed => api::RunStatus::Failed,
        RunStatus::Canceled => api::RunStatus::Canceled,
        RunStatus::Terminated => api::RunStatus::Terminated,
        RunStatus::TimedOut => api::RunStatus::TimedOut,
        RunStatus::Continued => api::RunStatus::Continued,
    }
}

/// Reads a status.
///
/// # Errors
/// [`InvalidKind::UnknownEnum`], also for the unspecified one.
pub fn decode_run_status(field: &str, wire: i32) -> Result<RunStatus, InvalidMessage> {
    match api::RunStatus::try_from(wire) {
        Ok(api::RunStatus::Running) => Ok(RunStatus::Running),
        Ok(api::RunStatus::Blocked) => Ok(RunStatus::Blocked),
        Ok(api::RunStatus::Completed) => Ok(RunStatus::Completed),
        Ok(api::RunStatus::Failed) => Ok(RunStatus::Failed),
        Ok(api::RunStatus::Canceled) => Ok(RunStatus::Canceled),
        Ok(api::RunStatus::Terminated) => Ok(RunStatus::Terminated),
        Ok(api::RunStatus::TimedOut) => Ok(RunStatus::TimedOut),
        Ok(api::RunStatus::Continued) => Ok(RunStatus::Continued),
        Ok(api::RunStatus::Unspecified) | Err(_) => Err(unknown(field, wire)),
    }
}

/// Reads a reuse policy; unspecified is [`ReusePolicy::Allow`].
///
/// # Errors
/// [`InvalidKind::UnknownEnum`].
pub fn reuse_policy(field: &str, wire: i32) -> Result<ReusePolicy, InvalidMessage> {
    match api::ReusePolicy::try_from(wire) {
        Ok(api::ReusePolicy::Unspecified | api::ReusePolicy::Allow) => Ok(ReusePolicy::Allow),
        Ok(api::ReusePolicy::AllowIfNotCompleted) => Ok(ReusePolicy::AllowIfNotCompleted),
        Ok(api::ReusePolicy::Reject) => Ok(ReusePolicy::Reject),
        Err(_) => Err(unknown(field, wire)),
    }
}

/// Reads a conflict policy; unspecified is [`ConflictPolicy::Fail`].
///
/// # Errors
/// [`InvalidKind::UnknownEnum`].
pub fn conflict_policy(field: &str, wire: i32) -> Result<ConflictPolicy, InvalidMessage> {
    match api::ConflictPolicy::try_from(wire) {
        Ok(api::ConflictPolicy::Unspecified | api::ConflictPolicy::Fail) => Ok(ConflictPolicy::Fail),
        Ok(api::ConflictPolicy::UseExisting) => Ok(ConflictPolicy::UseExisting),
        Ok(api::ConflictPolicy::TerminateExisting) => Ok(ConflictPolicy::TerminateExisting),
        Err(_) => Err(unknown(field, wire)),
    }
}

/// A run as lists show it; what only `GetRun` fills in is left empty.
pub fn encode_run(row: &RunRow) -> api::Run {
    let RunRow {
        run_id,
        namespace,
        workflow_id,
        workflow_type,
        task_queue,
        status,
        owner,
        epoch,
        build_id,
        blocked,
        cancel_requested,
        started_at,
        closed_at,
        last_seq: _,
    } = row;
    api::Run {
        run_id: run_id.to_string(),
        namespace: namespace.clone(),
        workflow_id: workflow_id.clone(),
        workflow_type: workflow_type.clone(),
        task_queue: task_queue.clone(),
        status: encode_run_status(*status).into(),
        started_at: Some(encode_timestamp(*started_at)),
        closed_at: closed_at.map(encode_timestamp),
        attached: owner.is_some(),
        epoch: *epoch,
        build_id: build_id.clone(),
        blocked_reason: blocked.clone(),
        cancel_requested: *cancel_requested,
        history_events: 0,
        history_warning: false,
        waits_for_build: String::new(),
        parent_run_id: String::new(),
        previous_run_id: String::new(),
        first_run_id: String::new(),
        successor_run_id: String::new(),
        attempt: 0,
        search_attributes: BTreeMap::new(),
        memo: BTreeMap::new(),
        in_doubt_steps: Vec::new(),
    }
}

/// Adds which runs it is linked to.
pub fn encode_link(run: &mut api::Run, link: &RunLink) {
    let RunLink { parent, previous, first, successor, attempt } = link;
    run.parent_run_id = succession::encode_link(parent.map(|(parent, _)| parent));
    run.previous_run_id = succession::encode_link(*previous);
    run.first_run_id = succession::encode_link(*first);
    run.successor_run_id = succession::encode_link(*successor);
    run.attempt = *attempt;
}

/// A start request as the wire has it. The trace travels in the call's metadata, see [`crate::trace`].
pub fn encode_start_run(start: &StartRun) -> api::StartRunRequest {
    let StartRun {
        namespace,
        workflow_id,
        workflow_type,
        task_queue,
        input,
        request_id,
        run_timeout,
        start_delay,
        retry,
        reuse,
        conflict,
        trace: _,
        identity,
        origin: _,
        notes,
        first: _,
        defaults: _,
    } = start;
    let (search_attributes, memo) = encode_notes(notes);
    api::StartRunRequest {
        namespace: namespace.clone(),
        workflow_id: workflow_id.clone(),
        workflow_type: workflow_type.clone(),
        task_queue: task_queue.clone(),
        input: Some(encode_payload(input)),
        request_id: request_id.clone(),
        run_timeout: run_timeout.map(encode_duration),
        reuse_policy: match reuse {
            ReusePolicy::Allow => api::ReusePolicy::Allow,
            ReusePolicy::AllowIfNotCompleted => api::ReusePolicy::AllowIfNotCompleted,
            ReusePolicy::Reject => api::ReusePolicy::Reject,
        }
        .into(),
        conflict_policy: match conflict {
            ConflictPolicy::Fail => api::ConflictPolicy::Fail,
            ConflictPolicy::UseExisting => api::ConflictPolicy::UseExisting,
            ConflictPolicy::TerminateExisting => api::ConflictPolicy::TerminateExisting,
        }
        .into(),
        identity: identity.clone(),
        wait: None,
        memo,
        search_attributes,
        start_delay: start_delay.map(encode_duration),
        retry_policy: retry.as_ref().map(encode_recorded_policy),
    }
}

fn unknown(field: &str, wire: i32) -> InvalidMessage {
    InvalidMessage::new(InvalidKind::UnknownEnum, field, format!("has the unknown value {wire}"))
}
