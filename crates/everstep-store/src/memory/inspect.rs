//! What an operator asks of the in-memory store.

use async_trait::async_trait;
use everstep_core::{DetachReason, Duration, EventBody, RunId, RunStatus, Seq, TimerKey, Timestamp};

use super::{MemoryStore, Tables};
use crate::{Backlog, Error, Inspect, LastEvent, WakePage, WakeRows, WakeTable};

/// How long a row has waited that was due for its next look `overdue_micros` ago: see [`Backlog::oldest_task`].
pub(super) fn waited(overdue_micros: i64, claims: u32) -> Duration {
    let pauses: u64 = 1 + (1..=claims).map(|n| (1u64 << n.min(6)).min(60)).sum::<u64>();
    let pauses = i64::try_from(pauses.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
    Duration::from_micros(u64::try_from(overdue_micros.saturating_add(pauses)).unwrap_or(0))
}

impl MemoryStore {
    /// [`Inspect::backlog`], at once.
    pub fn backlog_sync(&self, limit: usize) -> Backlog {
        let now = (self.clock)();
        let tables = self.lock();
        let blocked = tables.runs.values().filter(|r| r.status == RunStatus::Blocked).take(limit).count();
        let first = |rows: &mut dyn Iterator<Item = (Timestamp, u32)>| {
            let mut rows: Vec<_> = rows.collect();
            rows.sort_unstable();
            rows.truncate(limit);
            rows
        };
        let wait =
            |(due, looks): &(Timestamp, u32)| waited(now.as_micros().saturating_sub(due.as_micros()), *looks);
        let tasks = first(&mut tables.tasks.values().map(|t| (t.next_claim_at, t.claims)));
        let untold = first(&mut tables.between.untold());
        Backlog {
            blocked: blocked as u64,
            oldest_task: tasks.iter().map(wait).max(),
            untold: untold.len() as u64,
            oldest_untold: untold.iter().map(wait).max(),
        }
    }

    /// [`Inspect::wake_page`], at once.
    pub fn wake_page_sync(&self, table: WakeTable, after: Option<RunId>, limit: usize) -> WakePage {
        let tables = self.lock();
        let rows: Vec<RunId> = match table {
            WakeTable::Tasks => tables.tasks.keys().copied().collect(),
            WakeTable::Timers => tables.timers.keys().map(|(run, _)| *run).collect(),
            WakeTable::Wakes => tables.wakes.keys().map(|(run, _)| *run).collect(),
            WakeTable::Steps => tables.steps.runs(),
            WakeTable::Runs => tables.runs.keys().copied().collect(),
        };
        let page: Vec<RunId> = rows.into_iter().filter(|run| Some(*run) > after).take(limit).collect();
        let last = page.last().copied().filter(|_| page.len() == limit);
        let idle = |run: &RunId| {
            tables.runs.get(run).is_some_and(|r| r.status == RunStatus::Running && r.owner.is_none())
        };
        let mut runs: Vec<RunId> =
            page.into_iter().filter(|run| table != WakeTable::Runs || idle(run)).collect();
        runs.dedup();
        WakePage { runs, last }
    }

    /// [`Inspect::wake_rows`], at once.
    pub fn wake_rows_sync(&self, runs: &[RunId]) -> Vec<WakeRows> {
        let tables = self.lock();
        let mut runs = runs.to_vec();
        runs.sort_unstable();
        runs.into_iter().map(|run| tables.wake_rows(run)).collect()
    }
}

impl Tables {
    fn wake_rows(&self, run: RunId) -> WakeRows {
        let row = self.runs.get(&run);
        let task = self.tasks.contains_key(&run);
        let first = TimerKey { kind: everstep_core::TimerKind::Timer, id: 0 };
        let timers = self.timers.range((run, first)..).next().is_some_and(|((r, _), _)| *r == run);
        let last_start = TimerKey { id: u32::MAX, ..TimerKey::START };
        let wakes = self.wakes.range((run, 0)..=(run, Seq::MAX)).next().is_some();
        let idle = row.is_some_and(|r| r.status == RunStatus::Running && r.owner.is_none()) && !task;
        let last = self.events.get(&run).and_then(|events| events.last()).filter(|_| idle);
        WakeRows {
            run,
            status: row.map(|r| r.status),
            owned: row.is_some_and(|r| r.owner.is_some()),
            task,
            timers,
            delayed: self.timers.range((run, TimerKey::START)..=(run, last_start)).next().is_some(),
            wakes,
            steps: !self.steps.of_run(run).is_empty(),
            last: last.map(|event| LastEvent {
                kind: event.body.kind().to_owned(),
                parked: matches!(event.body, EventBody::WorkerDetached { reason: DetachReason::Parked }),
            }),
        }
    }
}

#[async_trait]
impl Inspect for MemoryStore {
    async fn backlog(&self, limit: usize) -> Result<Backlog, Error> {
        Ok(self.backlog_sync(limit))
    }

    async fn wake_page(
        &self,
        table: WakeTable,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<WakePage, Error> {
        Ok(self.wake_page_sync(table, after, limit))
    }

    async fn wake_rows(&self, runs: &[RunId]) -> Result<Vec<WakeRows>, Error> {
        Ok(self.wake_rows_sync(runs))
    }
}
