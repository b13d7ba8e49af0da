//! Which code runs wait for: what a look for tasks wants, what open sessions serve, and which builds may go on with
//! the runs of others.

use std::collections::BTreeSet;

use async_trait::async_trait;
use everstep_core::{Duration, QueueKey, RunId, TaskRow};
use serde::{Deserialize, Serialize};

use crate::{Error, QueueCensus, ServesSteps};

/// Tasks that a worker can take.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunWant {
    /// Of this queue.
    pub queue: QueueKey,
    /// Of these types; empty for any. A task that names no type is of any.
    pub workflow_types: Vec<String>,
    /// Builds whose runs it may take, besides those of no build.
    pub builds: Vec<String>,
    /// Also tasks that were looked at before and whose next look is not due: there was nobody for them then.
    pub impatient: bool,
}

impl RunWant {
    /// Of a queue, all that belongs to no build.
    pub fn of_queue(queue: QueueKey) -> Self {
        Self { queue, workflow_types: Vec::new(), builds: Vec::new(), impatient: false }
    }

    /// Whether it wants a task.
    pub fn fits(&self, task: &TaskRow) -> bool {
        let any = self.workflow_types.is_empty() || task.workflow_type.is_empty();
        self.queue == task.queue
            && (any || self.workflow_types.contains(&task.workflow_type))
            && (task.build_id.is_empty() || self.builds.contains(&task.build_id))
    }
}

/// What a worker's session is there for. Kept with the session, for those who look for runs that nobody is there for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Serves {
    /// Queues that it takes runs from; none when it only checks.
    #[serde(default)]
    pub task_queues: Vec<String>,
    /// Types that it has; empty for any.
    #[serde(default)]
    pub workflow_types: Vec<String>,
    /// Builds that its code continues.
    #[serde(default)]
    pub continues: Vec<String>,
    /// Runs that it holds at one time.
    #[serde(default)]
    pub run_slots: u32,
    /// Queued steps that it runs, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<ServesSteps>,
}

/// Somebody has said that a build may go on with the runs of another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AllowedBuild {
    /// For runs of this queue.
    pub queue: QueueKey,
    /// The build that may.
    pub build_id: String,
    /// The one whose runs they are.
    pub continues: String,
}

/// Sessions that are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServingGroup {
    /// Isolation boundary.
    pub namespace: String,
    /// Which code.
    pub build_id: String,
    /// What they are there for.
    pub serves: Serves,
    /// How many they are.
    pub workers: u64,
}

/// Tasks that are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaitingGroup {
    /// What they need.
    pub task: TaskRow,
    /// How many they are.
    pub runs: u64,
    /// How long the oldest of them has waited, at least.
    pub oldest: Duration,
}

/// Who waits, and who is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Tasks older than was asked for, in groups.
    pub waiting: Vec<WaitingGroup>,
    /// Open sessions, in groups.
    pub serving: Vec<ServingGroup>,
    /// What was allowed.
    pub allowed: Vec<AllowedBuild>,
}

impl Census {
    /// The groups that no open session is there for.
    pub fn unserved(&self) -> Vec<&WaitingGroup> {
        self.waiting
            .iter()
            .filter(|group| !self.serving.iter().any(|s| self.serves(s, &group.task)))
            .collect()
    }

    fn serves(&self, session: &ServingGroup, task: &TaskRow) -> bool {
        let ServingGroup { namespace, build_id, serves, .. } = session;
        let here = *namespace == task.queue.namespace && serves.task_queues.contains(&task.queue.task_queue);
        let any = serves.workflow_types.is_empty() || task.workflow_type.is_empty();
        let allowed = || {
            let allowed = AllowedBuild {
                queue: task.queue.clone(),
                build_id: build_id.clone(),
                continues: task.build_id.clone(),
            };
            self.allowed.contains(&allowed)
        };
        here && (any || serves.workflow_types.contains(&task.workflow_type))
            && (task.build_id.is_empty()
                || *build_id == task.build_id
                || serves.continues.contains(&task.build_id)
                || allowed())
    }

    /// Builds that there are workers of, each once.
    pub fn builds(&self, namespace: &str) -> BTreeSet<&str> {
        self.serving.iter().filter(|s| s.namespace == namespace).map(|s| s.build_id.as_str()).collect()
    }
}

/// What is known of builds.
#[async_trait]
pub trait Builds: Send + Sync + 'static {
    /// Who has waited for `age` at least, and who is there, in at most `limit` groups each.
    ///
    /// # Errors
    /// [`Error::Unavailable`], as all methods of this trait.
    async fn census(&self, age: Duration, limit: usize) -> Result<Census, Error>;

    /// Who is there for a queue, and what waits in it, in at most `limit` rows each.
    async fn queue_census(&self, queue: &QueueKey, limit: usize) -> Result<QueueCensus, Error>;

    /// The task of a run, if it needs a worker.
    async fn task_of(&self, run: RunId) -> Result<Option<TaskRow>, Error>;

    /// All that was allowed, at most `limit`, in order.
    async fn allowed_builds(&self, limit: usize) -> Result<Vec<AllowedBuild>, Error>;
}

#[cfg(test)]
mod tests;
