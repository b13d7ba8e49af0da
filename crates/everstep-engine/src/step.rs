//! Queued steps, as the engine's callers and its workers see them.

use everstep_core::{Duration, OpId, Payload, RunId, StepEnd, Timestamp, TraceContext};
use everstep_store::ClaimId;

/// Which queued steps a worker runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOffer {
    /// Names of the steps.
    pub types: Vec<String>,
    /// Attempts that it runs at one time.
    pub slots: u32,
    /// Attempts that it begins in a second; 0 for no limit.
    pub per_second: f64,
    /// What it holds of the session that it takes up again.
    pub held: Vec<StepKey>,
}

/// An attempt of a queued step under one claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepKey {
    /// The run.
    pub run_id: RunId,
    /// The step.
    pub step: OpId,
    /// The attempt.
    pub attempt: u32,
    /// The claim.
    pub claim: ClaimId,
}

/// An attempt that a worker is given.
#[derive(Clone, Debug, PartialEq)]
pub struct GivenStep {
    /// Which, and under which claim.
    pub key: StepKey,
    /// Name of the step.
    pub name: String,
    /// Its argument.
    pub input: Payload,
    /// What an earlier attempt last said.
    pub details: Payload,
    /// How long the attempt may run.
    pub start_to_close: Option<Duration>,
    /// How long it may be silent.
    pub heartbeat: Option<Duration>,
    /// The run's workflow.
    pub workflow_type: String,
    /// The run's business key.
    pub workflow_id: String,
    /// Queue that it was taken from.
    pub task_queue: String,
    /// Of the run.
    pub trace: TraceContext,
    /// When the step was scheduled.
    pub scheduled_at: Timestamp,
}

/// What a worker says about an attempt that it lets go of.
#[derive(Clone, Debug, PartialEq)]
pub enum StepSaid {
    /// It has ended, after running for so long.
    Ended(StepEnd, Duration),
    /// Somebody will complete it by its token.
    Deferred,
    /// Another worker may run it.
    Returned,
}
