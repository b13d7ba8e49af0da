//! Which code runs wait for, and which is there.

use std::collections::BTreeMap;

use async_trait::async_trait;
use everstep_core::{Duration, RunId, TaskRow, Timestamp};

use super::inspect::waited;
use super::{MemoryStore, Tables, Task};
use crate::{AllowedBuild, Builds, Census, Error, RunWant, ServingGroup, WaitingGroup};

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

    async fn task_of(&self, run: RunId) -> Result<Option<TaskRow>, Error> {
        Ok(self.task_of_sync(run))
    }

    async fn allowed_builds(&self, limit: usize) -> Result<Vec<AllowedBuild>, Error> {
        Ok(self.allowed_builds_sync(limit))
    }
}
