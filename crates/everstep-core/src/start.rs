//! Starting a run: the one decision that has no log yet to stand on.

use sha2::{Digest, Sha256};

use crate::run::{check_payload, cut};
use crate::{
    Actor, CommandId, Event, EventBody, Rejection, RunId, RunStarted, RunStatus, StartRun, Timestamp, limits,
    validate_name,
};

/// What to do when a closed run holds the workflow id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReusePolicy {
    /// Start a new run.
    #[default]
    Allow,
    /// Start a new run unless the last one completed.
    AllowIfNotCompleted,
    /// Refuse.
    Reject,
}

/// What to do when an open run holds the workflow id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConflictPolicy {
    /// Refuse.
    #[default]
    Fail,
    /// Answer with the open run.
    UseExisting,
    /// Terminate the open run and start the new one, both or neither.
    TerminateExisting,
}

/// The run that holds a workflow id now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CurrentRun {
    /// Which.
    pub run_id: RunId,
    /// How it stands.
    pub status: RunStatus,
}

/// What an earlier request with the same id started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownRequest {
    /// The run.
    pub run_id: RunId,
    /// Hash of that request's body.
    pub body_hash: [u8; 32],
}

/// What a start leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartDecision {
    /// Append this first event, claiming the workflow id from `expected`.
    Start {
        /// `RunStarted`, seq 1.
        event: Box<Event>,
        /// The run that must still hold the workflow id, if any did.
        expected: Option<RunId>,
        /// The open run to terminate in the same append.
        terminate: Option<RunId>,
    },
    /// That run is the answer; nothing is written.
    Existing(RunId),
}

/// Decides a start, given who holds the workflow id and what the request id started before.
///
/// `run_id` and `seed` are made by the caller. With `None` for both lookups this is the optimistic
/// answer; the claim on the workflow id refuses the append if it was wrong.
///
/// # Errors
/// [`Rejection`]; nothing was started.
pub fn decide_start(
    request: &StartRun,
    (run_id, seed): (RunId, u64),
    current: Option<CurrentRun>,
    known: Option<KnownRequest>,
    now: Timestamp,
) -> Result<StartDecision, Rejection> {
    validate(request)?;
    if let Some(known) = known {
        if known.body_hash != start_body_hash(request) {
            return Err(Rejection::IdempotencyMismatch { run_id: known.run_id });
        }
        return Ok(StartDecision::Existing(known.run_id));
    }
    let mut terminate = None;
    if let Some(CurrentRun { run_id: holder, status }) = current {
        let taken = |policy| Err(Rejection::AlreadyStarted { run_id: holder, status, policy });
        if status.is_closed() {
            match request.reuse {
                ReusePolicy::Allow => {}
                ReusePolicy::AllowIfNotCompleted if status != RunStatus::Completed => {}
                ReusePolicy::AllowIfNotCompleted | ReusePolicy::Reject => return taken("reuse"),
            }
        } else {
            match request.conflict {
                ConflictPolicy::Fail => return taken("conflict"),
                ConflictPolicy::UseExisting => return Ok(StartDecision::Existing(holder)),
                ConflictPolicy::TerminateExisting => terminate = Some(holder),
            }
        }
    }
    let event = Event {
        seq: 1,
        at: now,
        epoch: 0,
        command_id: CommandId::from_uuid(run_id.uuid()),
        actor: Actor::Client(request.identity.clone()),
        body: EventBody::RunStarted(Box::new(RunStarted {
            namespace: request.namespace.clone(),
            workflow_id: request.workflow_id.clone(),
            workflow_type: request.workflow_type.clone(),
            task_queue: request.task_queue.clone(),
            input: request.input.clone(),
            request_id: request.request_id.clone(),
            run_timeout: request.run_timeout,
            seed,
            trace: request.trace.clone(),
        })),
    };
    Ok(StartDecision::Start { event: Box::new(event), expected: current.map(|c| c.run_id), terminate })
}

/// Hash of everything in a start request that makes it the same request, without the request id itself,
/// the trace and the caller's identity.
pub fn start_body_hash(request: &StartRun) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    field(request.workflow_type.as_bytes());
    field(request.task_queue.as_bytes());
    field(request.input.encoding.as_bytes());
    field(&request.input.data);
    field(&request.run_timeout.map_or(0, |t| t.as_micros()).to_be_bytes());
    field(&[request.reuse as u8, request.conflict as u8]);
    hash.finalize().into()
}

fn validate(request: &StartRun) -> Result<(), Rejection> {
    validate_name("namespace", &request.namespace)?;
    validate_name("workflow_id", &request.workflow_id)?;
    validate_name("workflow_type", &request.workflow_type)?;
    validate_name("task_queue", &request.task_queue)?;
    validate_name("request_id", &request.request_id)?;
    check_payload("input", &request.input)?;
    if cut(&request.identity) != request.identity || request.identity.len() > limits::NAME_BYTES_MAX {
        let problem = "must be at most 255 bytes without NUL".to_owned();
        return Err(Rejection::InvalidArgument { field: "identity", problem });
    }
    match request.run_timeout {
        Some(t) if t.as_micros() == 0 || t > limits::DURATION_MAX => Err(Rejection::InvalidArgument {
            field: "run_timeout",
            problem: "must be more than zero and at most 100 years".to_owned(),
        }),
        _ => Ok(()),
    }
}
