//! Queued steps: attempts that any worker of a task queue may run, and what the store keeps about them.

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Digester};
use crate::{DoubtPolicy, Duration, Failure, OpId, Payload, QueueKey, RetryPolicy, Seq, Timestamp};

/// The workflow asked for a step that a worker of a task queue runs. Its first attempt may be claimed at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepScheduled {
    /// The step.
    pub step: OpId,
    /// Its name: what a worker registers.
    pub name: String,
    /// Argument of the step.
    pub input: Payload,
    /// Where it runs, when, and how often.
    pub options: QueuedOptions,
}

/// Where and when a queued step runs, and what follows when it does not end well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedOptions {
    /// Queue whose workers run it. In a command it may be empty, for the run's own.
    pub task_queue: String,
    /// 1 is served first, 5 last.
    pub priority: u8,
    /// How long an attempt may wait for a worker.
    pub schedule_to_start: Option<Duration>,
    /// How long an attempt may run.
    pub start_to_close: Option<Duration>,
    /// How long the step may take in all.
    pub schedule_to_close: Option<Duration>,
    /// How long a running attempt may be silent.
    pub heartbeat: Option<Duration>,
    /// When and how often it is tried again.
    pub retry: RetryPolicy,
    /// Set for a step whose attempts are in doubt when they are lost. Never [`DoubtPolicy::Verify`]: there is no
    /// probe.
    pub in_doubt: Option<DoubtPolicy>,
}

impl Default for QueuedOptions {
    fn default() -> Self {
        Self {
            task_queue: String::new(),
            priority: Self::PRIORITY_DEFAULT,
            schedule_to_start: None,
            start_to_close: None,
            schedule_to_close: None,
            heartbeat: None,
            retry: RetryPolicy::default(),
            in_doubt: None,
        }
    }
}

impl QueuedOptions {
    /// The priority of a step whose code names none.
    pub const PRIORITY_DEFAULT: u8 = 3;
    /// Served last.
    pub const PRIORITY_LAST: u8 = 5;
}

/// How an attempt of a queued step ended, as its worker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepEnd {
    /// Well, with this result.
    Completed(Payload),
    /// With this failure.
    Failed(Failure),
    /// It stopped because it was asked to; with what it said about it.
    Canceled(String),
}

/// Which time of a queued step ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepTimeout {
    /// No worker took the attempt in time.
    ScheduleToStart,
    /// The attempt ran for too long.
    StartToClose,
    /// The step took too long in all.
    ScheduleToClose,
    /// The attempt was silent for too long.
    Heartbeat,
    /// The cancel of the step was asked for, and no worker had the attempt.
    Canceled,
}

impl StepTimeout {
    /// The word in the details of a `StepTimeout` failure.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ScheduleToStart => "schedule_to_start",
            Self::StartToClose => "start_to_close",
            Self::ScheduleToClose => "schedule_to_close",
            Self::Heartbeat => "heartbeat",
            Self::Canceled => "canceled",
        }
    }
}

/// A queued step that has not ended, as the log knows it: what the table of step tasks holds for it, but for who
/// has the attempt and what it last said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTask {
    /// The step.
    pub step: OpId,
    /// Its name.
    pub name: String,
    /// The attempt that is waiting or running, from 1.
    pub attempt: u32,
    /// Where its worker is found.
    pub queue: QueueKey,
    /// 1 is served first, 5 last.
    pub priority: u8,
    /// The event that scheduled it: it holds the input.
    pub scheduled: Seq,
    /// From when on a worker may take the attempt; [`StepTask::HELD`] while the attempt before is in doubt.
    pub visible_at: Timestamp,
    /// Until when a worker has to take the attempt.
    pub start_by: Option<Timestamp>,
    /// Until when the step has to end.
    pub close_by: Option<Timestamp>,
    /// How long the attempt may run.
    pub start_to_close: Option<Duration>,
    /// How long it may be silent.
    pub heartbeat: Option<Duration>,
    /// The workflow does not want it any more.
    pub canceled: bool,
}

impl StepTask {
    /// Never, until a person has said what became of the attempt.
    pub const HELD: Timestamp = Timestamp::MAX;
}

/// What an end says, as it is recorded: tells a repeat from another end of the same attempt.
pub(crate) fn digest_of_result(result: &Payload) -> Digest {
    Digester::of("completed").payload(result).finish()
}

/// As [`digest_of_result`], of a failure.
pub(crate) fn digest_of_failure(failure: &Failure) -> Digest {
    Digester::of("failed").failure(failure).finish()
}
