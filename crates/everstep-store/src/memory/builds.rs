//! Which code runs wait for, and which is there.

use std::collections::BTreeMap;

use async_trait::async_trait;
use everstep_core::{Duration, QueueKey, RunId, TaskRow, Timestamp};

use super::inspect::waited;
use super::{MemoryStore, Tables, Task};
use crate::{
    AllowedBuild, Builds, Census, Error, QueueCensus, QueueWorker, RunWant, ServingGroup, WaitingGroup,
    WaitingType,
};

impl Tables {
    /// Sets a run's task.
    pub(super) fn set_task(&mut self, run: RunId, row: &TaskRow, next_claim_at: Timestamp) {
        self.tasks.insert(run, Task { row: row.clone(), claims: 0, next_claim_at });
    }
}

impl MemoryStore {
    /// [`Sweep::claim_tasks`](crate::Sweep::claim_tasks), at once.
    pub fn claim_tasks_sync(&self, wants: Option<&[RunWant]>, limit: usize) -> Vec<(RunId, TaskRow)> {
        let now = (self.clock)();
        let mut tables = self.lock();
        let due = |task: &Task| match wants {
            None => task.next_claim_at <= now,
            Some(wants) => wants.iter().any(|want| {
                let looked_at = want.impatient && task.claims > 0;
                want.fits(&task.row) && (task.next_claim_at <= now || looked_at)
            }),
        };
        let due = tables.tasks.iter().filter(|(_, task)| due(task));
        let mut due: Vec<(Timestamp, RunId)> = due.map(|(run, task)| (task.next_claim_at, *run)).collect();
        due.sort_unstable();
        due.truncate(limit);
        due.into_iter()
            .filter_map(|(_, run)| {
                let task = tables.tasks.get_mut(&run)?;
                task.claims += 1;
                task.next_claim_at = now.after(Duration::from_secs((1u64 << task.claims.min(6)).min(60)));
                Some((run, task.row.clone()))
            })
            .collect()
    }

    /// [`Builds::census`], at once.
    pub fn census_sync(&self, age: Duration, limit: usize) -> Census {
        let now = (self.clock)();
        let tables = self.lock();
        let mut waiting: BTreeMap<TaskRow, (u64, Duration)> = BTreeMap::new();
        for task in tables.tasks.values() {
            let overdue = now.as_micros().saturating_sub(task.next_claim_at.as_micros());
            let waited = waited(overdue, task.claims);
            if waited >= age {
                let group = waiting.entry(task.row.clone()).or_default();
                *group = (group.0 + 1, group.1.max(waited));
            }
        }
        let mut serving: BTreeMap<_, u64> = BTreeMap::new();
        for (row, _, closed) in tables.sessions.values() {
            if !closed {
                let key = (row.namespace.clone(), row.build_id.clone(), row.serves.clone());
                *serving.entry(key).or_default() += 1;
            }
        }
        let waits = |(task, (runs, oldest))| WaitingGroup { task, runs, oldest };
        let mut waiting: Vec<WaitingGroup> = waiting.into_iter().map(waits).collect();
        waiting.sort_by_key(|group| std::cmp::Reverse(group.runs));
        waiting.truncate(limit);
        let serves =
            |((namespace, build_id, serves), workers)| ServingGroup { namespace, build_id, serves, workers };
        let mut serving: Vec<ServingGroup> = serving.into_iter().map(serves).collect();
        serving.sort_by_key(|group| std::cmp::Reverse(group.workers));
        serving.truncate(limit);
        Census { waiting, serving, allowed: tables.allowed.iter().cloned().collect() }
    }

    /// [`Builds::queue_census`], at once.
    pub fn queue_census_sync(&self, queue: &QueueKey, limit: usize) -> QueueCensus {
        let now = (self.clock)();
        let tables = self.lock();
        let open = tables.sessions.iter().filter(|(_, (_, _, closed))| !closed);
        let here = open.filter(|(_, (row, _, _))| {
            row.namespace == queue.namespace && row.serves.is_for(&queue.task_queue)
        });
        let worker = |(&session, (row, _, _)): (_, &(crate::SessionRow, _, _))| QueueWorker {
            session,
            identity: row.identity.clone(),
            build_id: row.build_id.clone(),
            serves: row.serves.clone(),
        };
        let mut runs: BTreeMap<&str, u64> = BTreeMap::new();
        for task in tables.tasks.values().filter(|task| task.row.queue == *queue) {
            *runs.entry(&task.row.workflow_type).or_default() += 1;
        }
        let most = |counts: BTreeMap<&str, u64>| {
            let waits = |(name, waiting): (&str, u64)| WaitingType { name: name.to_owned(), waiting };
            let mut all: Vec<WaitingType> = counts.into_iter().map(waits).collect();
            all.sort_by_key(|waits| std::cmp::Reverse(waits.waiting));
            all.truncate(limit);
            all
        };
        let workers = here.map(worker).collect();
        let steps = most(tables.steps.waiting_names(queue, now));
        let mut census = QueueCensus { workers, runs: most(runs), steps }.sorted();
        census.workers.truncate(limit);
        census
    }

    /// [`Builds::task_of`], at once.
    pub fn task_of_sync(&self, run: RunId) -> Option<TaskRow> {
        self.lock().tasks.get(&run).map(|task| task.row.clone())
    }

    /// [`Builds::allowed_builds`], at once.
    pub fn allowed_builds_sync(&self, limit: usize) -> Vec<AllowedBuild> {
        self.lock().allowed.iter().take(limit).cloned().collect()
    }
}

#[async_trait]
impl Builds for MemoryStore {
    async fn census(&self, age: Duration, limit: usize) -> Result<Census, Error> {
        Ok(self.census_sync(age, limit))
    }

    async fn queue_census(&self, queue: &QueueKey, limit: usize) -> Result<QueueCensus, Error> {
        Ok(self.queue_census_sync(queue, limit))
    }

    async fn task_of(&self, run: RunId) -> Result<Option<TaskRow>, Error> {
        Ok(self.task_of_sync(run))
    }

    async fn allowed_builds(&self, limit: usize) -> Result<Vec<AllowedBuild>, Error> {
        Ok(self.allowed_builds_sync(limit))
    }
}
