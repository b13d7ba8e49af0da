//! Who is there for one queue, and what waits in it with nobody to run it.

use everstep_core::SessionId;
use serde::{Deserialize, Serialize};

use crate::Serves;

/// What a worker's session is there for, of queued steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServesSteps {
    /// Queues that it takes them from.
    pub task_queues: Vec<String>,
    /// Names of the steps that it has.
    pub names: Vec<String>,
    /// Attempts that it ran at one time when it came.
    pub slots: u32,
}

/// An open session that serves a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueWorker {
    /// Its id.
    pub session: SessionId,
    /// Which worker.
    pub identity: String,
    /// Which code it runs.
    pub build_id: String,
    /// What it is there for.
    pub serves: Serves,
}

/// Things of one kind that wait for a worker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaitingType {
    /// The workflow type, or the step's name; empty for a run that any worker may have.
    pub name: String,
    /// How many there are.
    pub waiting: u64,
}

/// A queue, with who serves it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueCensus {
    /// Who takes runs or queued steps from it, by identity and id.
    pub workers: Vec<QueueWorker>,
    /// Runs that wait for a worker, by type.
    pub runs: Vec<WaitingType>,
    /// Queued steps that a worker may take, by name.
    pub steps: Vec<WaitingType>,
}

impl QueueCensus {
    /// Puts everything in order.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.workers.sort_by(|a, b| (&a.identity, a.session).cmp(&(&b.identity, b.session)));
        self.runs.sort();
        self.steps.sort();
        self
    }

    /// Types of runs that wait, and that no worker of the queue has. One that has the type may still be of another
    /// build than a run needs.
    pub fn runs_without_worker(&self, task_queue: &str) -> Vec<&WaitingType> {
        let has = |serves: &Serves, name: &String| {
            let any = name.is_empty() || serves.workflow_types.is_empty();
            let here = serves.task_queues.iter().any(|queue| queue == task_queue);
            here && (any || serves.workflow_types.contains(name))
        };
        let nobody = |waits: &&WaitingType| !self.workers.iter().any(|w| has(&w.serves, &waits.name));
        self.runs.iter().filter(nobody).collect()
    }

    /// Names of queued steps that wait, and that no worker of the queue has.
    pub fn steps_without_worker(&self, task_queue: &str) -> Vec<&WaitingType> {
        let has = |serves: &Serves, name: &String| {
            let steps = serves.steps.iter().filter(|s| s.task_queues.iter().any(|queue| queue == task_queue));
            steps.into_iter().any(|steps| steps.names.contains(name))
        };
        let nobody = |waits: &&WaitingType| !self.workers.iter().any(|w| has(&w.serves, &waits.name));
        self.steps.iter().filter(nobody).collect()
    }
}

impl Serves {
    /// Whether it takes runs or queued steps from a queue.
    pub fn is_for(&self, task_queue: &str) -> bool {
        let of_steps = self.steps.iter().flat_map(|steps| &steps.task_queues);
        self.task_queues.iter().chain(of_steps).any(|queue| queue == task_queue)
    }
}
