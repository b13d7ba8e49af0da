//! What an operator is told about the tables: how much waits, and whether the wake rows fit their runs.

use async_trait::async_trait;
use everstep_core::{Duration, RunId, RunStatus};

use crate::Error;

/// How much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Blocked runs, as far as they were counted.
    pub blocked: u64,
    /// How long the oldest task has waited for a worker, at least: the grace before its first look and the pauses
    /// between its looks are all that is kept of its age. `None` when no run waits for one.
    pub oldest_task: Option<Duration>,
    /// Events that others have perhaps not heard of, as far as they were counted.
    pub untold: u64,
    /// How long the oldest of them has waited, at least: as with tasks. What a node is telling others of just now
    /// counts as young. `None` when there is none.
    pub oldest_untold: Option<Duration>,
}

/// A table to be gone through by run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WakeTable {
    /// Runs that need a worker.
    Tasks,
    /// Instants that runs wait for.
    Timers,
    /// Owners to be told of news.
    Wakes,
    /// Queued steps that have not ended.
    Steps,
    /// Runs; a page names those that are running and that nobody owns.
    Runs,
}

impl WakeTable {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Tasks, Self::Timers, Self::Wakes, Self::Steps, Self::Runs];
}

/// Part of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WakePage {
    /// Runs in it, in order of id, each once.
    pub runs: Vec<RunId>,
    /// The run of its last row, where the next page begins. `None` when this was the last page.
    pub last: Option<RunId>,
}

/// What is there to wake a run, and how the run stands: all of one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WakeRows {
    /// The run.
    pub run: RunId,
    /// How it stands; `None` when it has no row.
    pub status: Option<RunStatus>,
    /// A worker's session has it.
    pub owned: bool,
    /// It has a task.
    pub task: bool,
    /// It has a timer at least.
    pub timers: bool,
    /// One of them is its start: it is delayed, and needs no worker before.
    pub delayed: bool,
    /// It has a wake at least.
    pub wakes: bool,
    /// It has a queued step at least.
    pub steps: bool,
    /// Of a run that is running, that nobody owns and that has no task: how its history ends.
    pub last: Option<LastEvent>,
}

impl WakeRows {
    /// Why this cannot be: the wake rows are not those that the run's state calls for, as far as that can be told
    /// without its history. `None` when they may be.
    ///
    /// A run that waits for a signal alone has no wake row and needs none. What its history says beyond its end is
    /// left to `everstep admin rebuild --check`: whether a retry or a timer lacks its row.
    pub fn misfit(&self) -> Option<&'static str> {
        let Some(status) = self.status else {
            return self.has_any().then_some("wake rows of a run that has no row");
        };
        match (status, self.owned) {
            (status, _) if status.is_closed() => self.has_any().then_some("wake rows of a closed run"),
            (RunStatus::Blocked, _) if self.task => Some("a task of a blocked run"),
            (_, true) if self.task => Some("a task of a run that a worker has"),
            (_, false) if self.wakes => Some("wakes of a run that no worker has"),
            (RunStatus::Running, false) if !self.task && !self.delayed && self.wants_worker() => {
                Some("no task of a run that needs a worker")
            }
            _ => None,
        }
    }

    fn has_any(&self) -> bool {
        self.task || self.timers || self.wakes || self.steps
    }

    /// Its history ends with something that its worker has to see, or with the loss of its worker. Kinds that this
    /// version does not know change nothing.
    fn wants_worker(&self) -> bool {
        self.last.as_ref().is_some_and(|last| match last.kind.as_str() {
            "WorkerDetached" => !last.parked,
            // Of a step that ran elsewhere: with an owner there would be nothing to look at.
            "StepCompleted" => true,
            "RunStarted" | "TimerFired" | "SignalReceived" | "CancelRequested" | "RunUnblocked" => true,
            _ => false,
        })
    }
}

/// As much of an event as tells whether its run needs a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastEvent {
    /// Its kind, such as `WorkerDetached`.
    pub kind: String,
    /// Its worker let go of the run because there was nothing to do.
    pub parked: bool,
}

/// Questions of an operator. Nothing here decides and nothing is written; every answer costs no more than its
/// limit, however many runs there are.
#[async_trait]
pub trait Inspect: Send + Sync + 'static {
    /// How much waits, counting at most `limit` blocked runs, and looking at the `limit` tasks, and events that others
    /// have perhaps not heard of, whose next look is due first.
    ///
    /// # Errors
    /// [`Error::Unavailable`], as all methods of this trait.
    async fn backlog(&self, limit: usize) -> Result<Backlog, Error>;

    /// The next `limit` rows of a table, of runs strictly after `after`, in order of id. What a run has beyond the
    /// page is passed over: the page names the run.
    async fn wake_page(
        &self,
        table: WakeTable,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<WakePage, Error>;

    /// What there is to wake each of `runs`, in order of id.
    async fn wake_rows(&self, runs: &[RunId]) -> Result<Vec<WakeRows>, Error>;
}

#[cfg(test)]
mod tests;
