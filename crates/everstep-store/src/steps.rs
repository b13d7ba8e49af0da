//! Queued steps: which worker has which attempt. Rows about the present, beside the log: the number of the attempt
//! in the log decides whether what a worker says about it still counts.

mod clock;

use std::fmt;

use async_trait::async_trait;
use everstep_core::{
    Duration, Event, OpId, Payload, QueueKey, RunId, RunStarted, SessionId, StepTask, StepTimeout, Timestamp,
};
use uuid::Uuid;

pub use clock::StepClock;

use crate::Error;

/// Most bytes of details of a heartbeat that a caller may keep.
pub const DETAILS_BYTES_MAX: usize = 64 * 1024;

/// One claiming of attempts: a worker shows it with everything that it says about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId(Uuid);

impl ClaimId {
    /// Wraps a UUID.
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The UUID.
    pub const fn uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for ClaimId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// What a worker would take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepWant {
    /// For this session,
    pub session: SessionId,
    /// from this queue,
    pub queue: QueueKey,
    /// attempts of steps with these names.
    pub types: Vec<String>,
    /// Names the claim; new for every call.
    pub claim: ClaimId,
}

/// An attempt that was claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepClaim {
    /// The run.
    pub run: RunId,
    /// The claim that it has.
    pub claim: ClaimId,
    /// The step.
    pub task: StepTask,
    /// What an earlier attempt last said of how far it was.
    pub details: Payload,
    /// The event that scheduled the step: it brings the input.
    pub event: Event,
    /// How the run began, without its input.
    pub start: RunStarted,
}

/// What a claim gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepClaims {
    /// The attempts, those first that are to be served first.
    pub claims: Vec<StepClaim>,
    /// Set when a limit of the queue may have stood in the way of more: when it is worth to ask again.
    pub again: Option<Timestamp>,
}

/// An attempt as somebody has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimKey {
    /// The run.
    pub run: RunId,
    /// The step.
    pub step: OpId,
    /// The claim.
    pub claim: ClaimId,
}

/// A sign of life of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The attempt.
    pub key: ClaimKey,
    /// How far it is; `None` keeps what was said before. At most [`DETAILS_BYTES_MAX`].
    pub details: Option<Payload>,
}

/// What a sign of life is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeatAnswer {
    /// Go on.
    Going,
    /// Nobody wants the step any more; its end still counts.
    Canceled,
    /// The attempt is over, or somebody else's.
    Gone,
}

/// An attempt that a session has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimRow {
    /// The session.
    pub session: SessionId,
    /// The claim.
    pub key: ClaimKey,
    /// The attempt's number.
    pub attempt: u32,
    /// Since when.
    pub claimed_at: Timestamp,
    /// The workflow does not want the step any more.
    pub canceled: bool,
}

/// An attempt of a queued step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptKey {
    /// The run.
    pub run: RunId,
    /// The step.
    pub step: OpId,
    /// The attempt, from 1.
    pub attempt: u32,
}

/// What an instant of a queued step means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Due {
    /// A worker of this queue may take the attempt, and none has yet.
    Visible(QueueKey),
    /// A time has run out.
    Timeout(StepTimeout),
}

/// Queued steps whose instant has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DueSteps {
    /// Which, and what it means. Nobody else is told of them for a while.
    pub due: Vec<(AttemptKey, Due)>,
    /// When the next one is due, if one is.
    pub next: Option<Timestamp>,
    /// Database time.
    pub now: Timestamp,
}

/// How fast a queue's steps may be run, on all workers together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueueLimits {
    /// Attempts at one time.
    pub max_running: Option<u32>,
    /// Attempts that begin in a second. More than zero.
    pub max_per_second: Option<f64>,
    /// Attempts that may begin at once after a quiet time, at least 1.
    pub burst: u32,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { max_running: None, max_per_second: None, burst: 1 }
    }
}

impl QueueLimits {
    /// True when nothing is limited.
    pub fn is_none(&self) -> bool {
        self.max_running.is_none() && self.max_per_second.is_none()
    }
}

/// A queue as it stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueRecord {
    /// Its name.
    pub task_queue: String,
    /// What may run.
    pub limits: QueueLimits,
    /// Attempts that a worker may take.
    pub waiting: u64,
    /// Attempts that a worker has, or that are completed by their token.
    pub running: u64,
    /// Steps whose next attempt's instant has not come, or that wait for a person.
    pub later: u64,
    /// Since when the attempt waits that waits longest.
    pub oldest_waiting: Option<Timestamp>,
    /// Runs that wait for a worker.
    pub runs_waiting: u64,
}

/// How a queued step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepState {
    /// It waits for a worker, or for the instant of its next attempt.
    Queued,
    /// A worker has the attempt, or it is completed by its token.
    Running,
}

/// Which queued steps to list. Those whose attempt is in doubt are not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepFilter {
    /// Of this namespace.
    pub namespace: String,
    /// Of this run only.
    pub run: Option<RunId>,
    /// Of this queue only.
    pub task_queue: Option<String>,
    /// That stand like this only.
    pub state: Option<StepState>,
}

/// A queued step, with the run that it belongs to and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRecord {
    /// The run.
    pub run: RunId,
    /// The caller's business key.
    pub workflow_id: String,
    /// The step.
    pub task: StepTask,
    /// How it stands.
    pub state: StepState,
    /// Who has the attempt; `None` too for one that is completed by its token.
    pub session: Option<SessionId>,
    /// Since when somebody has it.
    pub claimed_at: Option<Timestamp>,
    /// When the attempt last gave a sign of life.
    pub beat_at: Option<Timestamp>,
}

/// Who runs which attempt of a queued step. All but [`Steps::claim_steps`] compare and set single rows; no call
/// touches the log.
#[async_trait]
pub trait Steps: Send + Sync + 'static {
    /// Claims up to `limit` attempts that nobody has, whose instant has come and whose time to be taken has not run
    /// out, of steps that are not canceled: by priority, then the oldest first, and as the queue's limits allow. Each
    /// comes with its input, so ask for few at a time. A session that is closed gets none.
    ///
    /// # Errors
    /// [`Error::Unavailable`], as all methods of this trait.
    async fn claim_steps(&self, want: &StepWant, limit: usize) -> Result<StepClaims, Error>;

    /// Gives back an attempt that was never begun: anybody may claim it again under the same number. `false` when
    /// the claim is over, as for the methods below.
    async fn return_step(&self, key: ClaimKey) -> Result<bool, Error>;

    /// The attempt goes on without its session: it will be completed by its token.
    async fn defer_step(&self, key: ClaimKey) -> Result<bool, Error>;

    /// Signs of life, with an answer each, in order.
    async fn beat_steps(&self, beats: &[Beat]) -> Result<Vec<BeatAnswer>, Error>;

    /// A sign of life from whoever knows the attempt's token.
    async fn beat_by_token(
        &self,
        attempt: AttemptKey,
        details: Option<&Payload>,
    ) -> Result<BeatAnswer, Error>;

    /// What the sessions have.
    async fn claims_of(&self, sessions: &[SessionId]) -> Result<Vec<ClaimRow>, Error>;

    /// Up to `limit` attempts whose session is closed or unknown.
    async fn lost_steps(&self, limit: usize) -> Result<Vec<AttemptKey>, Error>;

    /// Up to `limit` queued steps whose instant has come. No other call returns them for `claim`; one that only
    /// waits for a worker is returned less and less often, at least once in a minute.
    async fn due_steps(&self, limit: usize, claim: Duration) -> Result<DueSteps, Error>;

    /// Sets what a queue's steps may do from here on.
    async fn set_queue_limits(&self, queue: &QueueKey, limits: QueueLimits) -> Result<(), Error>;

    /// A queue as it stands.
    async fn queue(&self, queue: &QueueKey) -> Result<QueueRecord, Error>;

    /// Queues of a namespace in which something waits or runs, or that have a limit, by name, at most `limit`,
    /// strictly after `after`.
    async fn queues(&self, namespace: &str, after: &str, limit: usize) -> Result<Vec<QueueRecord>, Error>;

    /// Queued steps that match, by run and step, at most `limit`, strictly after `after`.
    async fn list_steps(
        &self,
        filter: &StepFilter,
        after: Option<(RunId, OpId)>,
        limit: usize,
    ) -> Result<Vec<StepRecord>, Error>;

    /// What task tokens are signed with: the same on every node, for as long as the database lives.
    async fn deployment_secret(&self) -> Result<[u8; 32], Error>;
}
