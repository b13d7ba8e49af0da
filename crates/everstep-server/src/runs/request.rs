//! What the requests of `RunService` say, as core values.

use std::time::Duration;

use everstep_core::{CommandBody, CommandId, RunId, RunStatus, StartRun, TraceContext};
use everstep_engine::RunSelector;
use everstep_proto::api;
use everstep_proto::wire::{conflict_policy, decode_duration, decode_run_status, parse_id, reuse_policy};
use everstep_store::RunFilter;
use sha2::{Digest, Sha256};
use tonic::Status;
use uuid::{Builder, Variant, Version};

use crate::check::Check;

/// Longest description or reason that is taken at all; what the core keeps of it is shorter.
pub(crate) const REASON_BYTES_MAX: usize = 1 << 20;
/// More status filters than there are statuses make no sense.
const STATUSES_MAX: usize = 100;

/// Reads a start. Empty ids are made up here.
///
/// Gives the start, and how long its caller wants to wait for the end of the run.
pub(super) fn start(
    check: &mut Check,
    request: api::StartRunRequest,
    trace: TraceContext,
) -> (StartRun, Duration) {
    let api::StartRunRequest {
        namespace,
        workflow_id,
        workflow_type,
        task_queue,
        input,
        request_id,
        run_timeout,
        reuse_policy: reuse,
        conflict_policy: conflict,
        identity,
        wait,
        start_delay,
        retry_policy,
        memo,
        search_attributes,
    } = request;
    let wait = wait.map_or(Duration::ZERO, |wait| check.wait("wait", Some(wait)));
    let start = StartRun {
        namespace: check.name_or_default("namespace", namespace),
        workflow_id: check.id_or_new("workflow_id", workflow_id),
        workflow_type: check.name("workflow_type", workflow_type),
        task_queue: check.name_or_default("task_queue", task_queue),
        input: check.payload("input", input),
        request_id: check.id_or_new("request_id", request_id),
        run_timeout: check.run_timeout("run_timeout", run_timeout),
        start_delay: start_delay
            .map(|delay| check.take(decode_duration("start_delay", delay)))
            .filter(|delay| *delay > everstep_core::Duration::ZERO),
        retry: retry_policy.and_then(|policy| check.policy("retry_policy", policy)),
        reuse: check.take(reuse_policy("reuse_policy", reuse)),
        conflict: check.take(conflict_policy("conflict_policy", conflict)),
        trace,
        identity: check.identity("identity", identity),
        notes: check.notes((search_attributes, memo)),
        ..StartRun::default()
    };
    (start, wait)
}

/// Reads a list: the filter without attributes, where the page begins, and its size.
pub(super) fn list(request: api::ListRunsRequest) -> Result<(RunFilter, String, usize), Status> {
    let api::ListRunsRequest {
        namespace,
        workflow_id,
        workflow_type,
        statuses,
        page_size,
        page_token,
        parent_run_id,
        waits_for_build,
        attribute_filters: _,
    } = request;
    let mut check = Check::default();
    let namespace = check.name_or_default("namespace", namespace);
    let mut given = |field: &str, text: String| (!text.is_empty()).then(|| check.name(field, text));
    let workflow_id = given("workflow_id", workflow_id);
    let workflow_type = given("workflow_type", workflow_type);
    let parent = if parent_run_id.is_empty() {
        None
    } else {
        check.take(parse_id::<RunId>("parent_run_id", &parent_run_id).map(Some))
    };
    // Kept by the caller, who says what it leads to.
    check.text("waits_for_build", waits_for_build, everstep_core::limits::NAME_BYTES_MAX);
    let size = check.page_size(page_size);
    if statuses.len() > STATUSES_MAX {
        let problem = format!("has {} entries, more than the limit of {STATUSES_MAX}", statuses.len());
        check.refuse("statuses", crate::reason::LIMIT_EXCEEDED, problem);
    }
    let mut wanted: Vec<RunStatus> = Vec::new();
    for (i, status) in statuses.into_iter().take(STATUSES_MAX).enumerate() {
        wanted.extend(check.take(decode_run_status(&format!("statuses[{i}]"), status).map(Some)));
    }
    wanted.sort_unstable();
    wanted.dedup();
    check.finish()?;
    let filter =
        RunFilter { namespace, workflow_id, workflow_type, statuses: wanted, parent, ..RunFilter::default() };
    Ok((filter, page_token, size))
}

/// A request to an existing run.
#[derive(Debug)]
pub(crate) struct RunCall {
    pub(crate) run: RunSelector,
    pub(crate) request_id: String,
    pub(crate) identity: String,
    kind: &'static str,
}

impl RunCall {
    /// What is known of it already.
    pub(super) fn new(run: RunSelector, request_id: String, identity: String, kind: &'static str) -> Self {
        Self { run, request_id, identity, kind }
    }

    /// Reads what every such request has.
    pub(crate) fn read(
        check: &mut Check,
        run: Option<api::RunRef>,
        request_id: String,
        identity: String,
        kind: &'static str,
    ) -> Self {
        Self {
            run: check.run(run),
            request_id: check.id_or_new("request_id", request_id),
            identity: check.identity("identity", identity),
            kind,
        }
    }

    /// The id of the request's events: it follows from the request id, so that a repeat is recognised.
    pub(crate) fn command_id(&self, run: RunId) -> CommandId {
        let mut hash = Sha256::new();
        hash.update(run.as_bytes());
        hash.update(self.kind.as_bytes());
        hash.update([0]);
        hash.update(self.request_id.as_bytes());
        let digest: [u8; 32] = hash.finalize().into();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        // Not the version of a worker's commits, so that no request id can pass for one.
        let id = Builder::from_bytes(bytes).with_variant(Variant::RFC4122).with_version(Version::Sha1);
        CommandId::from_uuid(id.into_uuid())
    }
}

/// Reads a signal.
pub(super) fn signal(request: api::SignalRunRequest) -> Result<(RunCall, CommandBody), Status> {
    let api::SignalRunRequest { run, name, input, request_id, identity } = request;
    let mut check = Check::default();
    let call = RunCall::read(&mut check, run, request_id, identity, "signal");
    let name = check.name("name", name);
    let input = check.payload("input", input);
    check.finish()?;
    let signal_id = call.request_id.clone();
    Ok((call, CommandBody::Signal { name, signal_id, input }))
}

/// Reads a cancel request.
pub(super) fn cancel(request: api::CancelRunRequest) -> Result<(RunCall, CommandBody), Status> {
    let api::CancelRunRequest { run, reason, request_id, identity } = request;
    let mut check = Check::default();
    let call = RunCall::read(&mut check, run, request_id, identity, "cancel");
    let reason = check.text("reason", reason, REASON_BYTES_MAX);
    check.finish()?;
    Ok((call, CommandBody::Cancel { reason }))
}

/// Reads a termination.
pub(super) fn terminate(request: api::TerminateRunRequest) -> Result<(RunCall, CommandBody), Status> {
    let api::TerminateRunRequest { run, reason, request_id, identity } = request;
    let mut check = Check::default();
    let call = RunCall::read(&mut check, run, request_id, identity, "terminate");
    let reason = check.text("reason", reason, REASON_BYTES_MAX);
    check.finish()?;
    Ok((call, CommandBody::Terminate { reason }))
}

#[cfg(test)]
mod tests;
