//! Starting a run: the one decision that has no log yet to stand on.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::run::{check_payload, cut};
use crate::{
    Actor, Attribute, CommandId, Duration, Event, EventBody, FirstMessage, Notes, ParentLink, Payload,
    Rejection, RetryPolicy, RunId, RunStarted, RunStatus, StartRun, Timestamp, limits, validate_name,
};

/// What to do when a closed run holds the workflow id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

/// What a run gets where the request that starts it is silent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartDefaults {
    /// The policy of steps whose code sets none.
    pub step_retry: Option<RetryPolicy>,
    /// Whether and when a new run tries again after this one has failed.
    pub run_retry: Option<RetryPolicy>,
    /// Longest life of the run.
    pub run_timeout: Option<Duration>,
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
        actor: match &request.origin.parent {
            Some(parent) => Actor::Run(parent.run_id),
            None => Actor::Client(request.identity.clone()),
        },
        body: EventBody::RunStarted(Box::new(RunStarted {
            namespace: request.namespace.clone(),
            workflow_id: request.workflow_id.clone(),
            workflow_type: request.workflow_type.clone(),
            task_queue: request.task_queue.clone(),
            input: request.input.clone(),
            request_id: request.request_id.clone(),
            run_timeout: request.run_timeout.or(request.defaults.run_timeout),
            seed,
            start_at: request.start_delay.filter(|d| *d > Duration::ZERO).map(|d| now.after(d)),
            retry: request.retry.as_ref().or(request.defaults.run_retry.as_ref()).cloned(),
            trace: request.trace.clone(),
            origin: request.origin.clone(),
            step_retry: request.defaults.step_retry.clone(),
            notes: request.notes.clone(),
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
    // What a request may say since it was first hashed stands behind the rest, and only if it is said.
    if request.start_delay.is_some() || request.retry.is_some() {
        field(&request.start_delay.map_or(0, |d| d.as_micros()).to_be_bytes());
    }
    if let Some(policy) = &request.retry {
        let RetryPolicy {
            initial_interval,
            backoff_coefficient,
            maximum_interval,
            maximum_attempts,
            non_retryable_kinds,
        } = policy;
        field(&initial_interval.as_micros().to_be_bytes());
        field(&backoff_coefficient.to_bits().to_be_bytes());
        field(&maximum_interval.as_micros().to_be_bytes());
        field(&maximum_attempts.to_be_bytes());
        non_retryable_kinds.iter().for_each(|kind| field(kind.as_bytes()));
    }
    if let Some(first) = &request.first {
        first.hash(&mut field);
    }
    if !request.notes.is_empty() {
        hash_notes(&mut field, &request.notes);
    }
    hash.finalize().into()
}

fn hash_notes(field: &mut impl FnMut(&[u8]), notes: &Notes) {
    field(b"notes");
    field(&(notes.memo.len() as u64).to_be_bytes());
    for (name, Payload { encoding, data }) in &notes.memo {
        field(name.as_bytes());
        field(encoding.as_bytes());
        field(data);
    }
    for (name, attribute) in &notes.attributes {
        field(name.as_bytes());
        field(attribute.kind().as_str().as_bytes());
        match attribute {
            Attribute::Keyword(text) => field(text.as_bytes()),
            Attribute::Keywords(texts) => {
                field(&(texts.len() as u64).to_be_bytes());
                texts.iter().for_each(|text| field(text.as_bytes()));
            }
            Attribute::Int(number) => field(&number.to_be_bytes()),
            Attribute::Float(number) => field(&number.get().to_bits().to_be_bytes()),
            Attribute::Bool(flag) => field(&[u8::from(*flag)]),
            Attribute::Time(at) => field(&at.as_micros().to_be_bytes()),
        }
    }
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
    if request.start_delay.is_some_and(|d| d > limits::DURATION_MAX) {
        let problem = "must be at most 100 years".to_owned();
        return Err(Rejection::InvalidArgument { field: "start_delay", problem });
    }
    if let Some(policy) = &request.retry {
        policy.validate()?;
    }
    request.notes.check()?;
    check_generation(request.origin.parent.as_ref())?;
    request.first.iter().try_for_each(FirstMessage::validate)?;
    check_run_timeout(request.run_timeout)
}

/// A workflow that starts itself as its own child would never come to an end.
fn check_generation(parent: Option<&ParentLink>) -> Result<(), Rejection> {
    let generation = parent.map_or(0, |parent| u64::from(parent.above) + 1);
    let limit = u64::from(limits::GENERATIONS_MAX);
    if generation > limit {
        // Who reads it is the author of the workflow.
        let what = "the child's generation (let one run start them all, or continue as new instead)";
        return Err(Rejection::LimitExceeded { what, actual: generation, limit });
    }
    Ok(())
}

/// A run lives for some time, if there is a limit.
pub(crate) fn check_run_timeout(timeout: Option<Duration>) -> Result<(), Rejection> {
    match timeout {
        Some(t) if t.as_micros() == 0 || t > limits::DURATION_MAX => Err(Rejection::InvalidArgument {
            field: "run_timeout",
            problem: "must be more than zero and at most 100 years".to_owned(),
        }),
        _ => Ok(()),
    }
}
