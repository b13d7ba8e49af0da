//! What happens to a node, and what it wants done, that is about queued steps.

use everstep_core::{Payload, QueueKey, SessionId, Timestamp};
use everstep_store::{self as store, AttemptKey, BeatAnswer, ClaimRow, Due, StepClaims, StepWant};

use crate::StepKey;

/// What happens to a node that is about queued steps.
#[derive(Debug)]
pub enum StepsIn {
    /// The answer to [`StepsOut::Claim`].
    Claimed {
        /// The stream.
        link: u64,
        /// The queue.
        queue: QueueKey,
        /// From the output.
        max: usize,
        /// What was claimed.
        claims: Result<StepClaims, store::Error>,
    },
    /// Attempts whose worker's session is closed.
    Lost(Vec<AttemptKey>),
    /// Queued steps whose instant has come.
    Due(Vec<(AttemptKey, Due)>),
    /// The answer to [`StepsOut::Beat`].
    Beaten {
        /// The stream.
        link: u64,
        /// The attempt.
        key: StepKey,
        /// From the output.
        last: bool,
        /// The answer.
        answer: Result<BeatAnswer, store::Error>,
    },
    /// The answer to [`StepsOut::LetGo`].
    LetGo {
        /// The stream.
        link: u64,
        /// The attempt.
        key: StepKey,
        /// From the output.
        deferred: bool,
        /// Whether the claim was still there.
        done: Result<bool, store::Error>,
    },
    /// The answer to [`StepsOut::Find`].
    Found {
        /// From the output.
        sessions: Vec<SessionId>,
        /// From the output.
        since: Timestamp,
        /// What they have.
        rows: Result<Vec<ClaimRow>, store::Error>,
    },
    /// Something may wait in this queue.
    Waiting(QueueKey),
    /// Look whether the workers have what they were given.
    Look,
}

/// What a node wants done that is about queued steps.
#[derive(Debug)]
pub enum StepsOut {
    /// Claim up to `max` attempts for a worker.
    Claim {
        /// The stream.
        link: u64,
        /// What it would take.
        want: StepWant,
        /// How many.
        max: usize,
    },
    /// End a claim without an end of the attempt.
    LetGo {
        /// The stream.
        link: u64,
        /// The attempt.
        key: StepKey,
        /// It will be completed by its token; otherwise it was not begun.
        deferred: bool,
    },
    /// Pass a sign of life on.
    Beat {
        /// The stream.
        link: u64,
        /// The attempt.
        key: StepKey,
        /// How far it is.
        details: Option<Payload>,
        /// The end of the attempt waits for this.
        last: bool,
    },
    /// Find what sessions have.
    Find {
        /// The sessions.
        sessions: Vec<SessionId>,
        /// Now.
        since: Timestamp,
    },
    /// Look for steps whose instant has come no later than this.
    DueAt(Timestamp),
    /// Say [`StepsIn::Waiting`] then.
    WaitingAt {
        /// The queue.
        queue: QueueKey,
        /// When.
        at: Timestamp,
    },
}
