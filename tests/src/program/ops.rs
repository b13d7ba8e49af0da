//! What others do for a program, or ask of it: queued steps, messages to other runs, updates.

use everstep_core::{Duration, QueuedOptions, RetryPolicy};
use serde::{Deserialize, Serialize};

use super::{Doubt, FLAKY, Profile, Program, REFUSED, Source, Step, failure_line, step_line};

/// The name of every queued step.
pub const QUEUED_STEP: &str = "work";
/// A queue that no worker serves.
pub const UNSERVED_QUEUE: &str = "unserved";
/// The name of every update.
pub const UPDATE_NAME: &str = "ask";
/// The search attribute that upserts set.
pub const UPSERTED: &str = "n";
/// Kind of the failure of a queued step whose time has run out.
pub const STEP_TIMEOUT: &str = "StepTimeout";
/// Kind of the failure of a message to a run that is not there.
pub const RUN_NOT_FOUND: &str = "RunNotFound";
/// Kind of the failure of a message to a run that has ended.
pub const RUN_CLOSED: &str = "RunClosed";
/// Kind of the failure of a child that was asked to stop, and did.
pub const CANCELED: &str = "Canceled";

/// A step that any worker with room runs: the input of [`QUEUED_STEP`], too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedStep {
    /// What its attempts do, counted like those of a step: also one that was lost has had its number.
    pub step: Step,
    /// What becomes of attempts that do not end well.
    pub course: Course,
    /// Each attempt says how far it is, with a [`Beat`], and expects what one before it has said.
    pub beats: bool,
    /// What follows when an attempt is lost; `None` for the next one.
    pub doubt: Option<Doubt>,
    /// 1 is served first.
    pub priority: u8,
}

/// What becomes of the attempts of a queued step that do not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Course {
    /// They say that they fail.
    Said,
    /// They never end: what is not done in time is ended.
    Silent,
    /// They never end, and do not say that they live.
    Faint,
    /// They say that they fail, and there are no more than so many.
    Exhausted {
        /// How many.
        attempts: u32,
    },
    /// There are none: no worker serves its queue, until its time runs out.
    Unserved {
        /// That of the whole step; else that of the attempt.
        in_all: bool,
    },
}

/// What an attempt of a queued step says about how far it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Beat {
    /// Of the step.
    pub nonce: String,
    /// The attempt.
    pub attempt: u32,
}

/// A child that is told something, and waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tell {
    /// Its name in the program.
    pub nonce: String,
    /// What the child is generated from: it waits for each signal that its own program names, or to be stopped.
    pub source: Source,
    /// How it is found.
    pub by: By,
    /// It is sent one more signal when it has ended.
    pub late: bool,
}

/// How another run is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// By its run id.
    Run,
    /// By its workflow id.
    Workflow,
}

impl QueuedStep {
    /// Where and when it runs.
    pub fn options(&self, profile: Profile) -> QueuedOptions {
        let (patience, unserved) = match profile {
            Profile::Sim => (Duration::from_secs(2), Duration::from_secs(3)),
            Profile::Chaos => (Duration::from_millis(1_000), Duration::from_millis(400)),
        };
        let mut options = QueuedOptions {
            priority: self.priority,
            retry: profile.retry_policy(),
            in_doubt: self.doubt.map(Doubt::policy),
            ..QueuedOptions::default()
        };
        match self.course {
            Course::Said => {}
            Course::Silent => options.start_to_close = Some(patience),
            Course::Faint => options.heartbeat = Some(patience),
            Course::Exhausted { attempts } => {
                options.retry = RetryPolicy { maximum_attempts: attempts, ..options.retry };
            }
            Course::Unserved { in_all } => {
                UNSERVED_QUEUE.clone_into(&mut options.task_queue);
                let time =
                    if in_all { &mut options.schedule_to_close } else { &mut options.schedule_to_start };
                *time = Some(unserved);
            }
        }
        options
    }

    /// Attempts that do not end well do not end at all.
    pub fn hangs(&self) -> bool {
        matches!(self.course, Course::Silent | Course::Faint)
    }

    /// Whether workers ever run an attempt of it.
    pub fn is_served(&self) -> bool {
        !matches!(self.course, Course::Unserved { .. })
    }

    /// Attempts that it needs at least to end.
    pub fn attempts_min(&self) -> u32 {
        match (self.course, self.doubt) {
            (Course::Exhausted { attempts }, _) => attempts,
            // Nobody has it; a person may end it with any attempt, and so may a policy that gives up.
            (Course::Unserved { .. }, _) | (_, Some(Doubt::AskHuman | Doubt::Fail)) => 1,
            (Course::Said | Course::Silent | Course::Faint, _) => self.step.fails + 1,
        }
    }

    /// The line that it gives, unless it is given up in doubt.
    pub fn line(&self) -> String {
        match self.course {
            Course::Exhausted { .. } => failure_line(FLAKY, ""),
            Course::Unserved { .. } => failure_line(STEP_TIMEOUT, ""),
            Course::Said | Course::Silent | Course::Faint if self.step.refused => {
                failure_line(REFUSED, &self.step.nonce)
            }
            Course::Said | Course::Silent | Course::Faint => step_line(&self.step.result()),
        }
    }

    /// What its attempt with this number says about how far it is.
    pub fn beat(&self, attempt: u32) -> Beat {
        Beat { nonce: self.step.nonce.clone(), attempt }
    }

    /// Whether that is what an attempt before this one has said.
    pub fn is_resumed(&self, attempt: u32, before: &Beat) -> bool {
        before.nonce == self.step.nonce && before.attempt < attempt
    }
}

impl Tell {
    /// The workflow id of the child, where it is found by that.
    pub fn workflow_id(&self) -> String {
        format!("told/{}", self.nonce)
    }
}

/// Whether the code agrees to the update with this id.
pub fn agrees(update_id: &str) -> bool {
    !update_id.starts_with("no-")
}

/// What the code answers to an update: which, and the line of the step that it took.
pub fn update_answer(id: &str, step: Option<&str>) -> String {
    step.map_or_else(|| id.to_owned(), |line| format!("{id}: {line}"))
}

/// The line of an update that was waited for.
pub fn update_line(id: &str) -> String {
    format!("update {id}")
}

/// The line of a message that did not arrive.
pub fn untold_line(nonce: &str, kind: &str) -> String {
    format!("told {nonce} {kind}")
}

/// The workflow id of nobody.
pub fn nobody(nonce: &str) -> String {
    format!("nobody/{nonce}")
}

impl Program {
    /// The step that the handler of an update takes; `None` for one that answers at once.
    pub fn update_step(&self, update_id: &str) -> Option<&Step> {
        fn find<'a>(ops: &'a [super::Op], update_id: &str) -> Option<&'a Step> {
            ops.iter().find_map(|op| match op {
                super::Op::Update { id, step } if id == update_id => step.as_ref(),
                super::Op::Parallel(parts) => parts.iter().find_map(|part| find(part, update_id)),
                _ => None,
            })
        }
        find(&self.ops, update_id)
    }
}
