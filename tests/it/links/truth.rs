//! What the database says in the end, asked past every proxy.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

use super::world::STEPS;

/// The database, reached directly.
#[derive(Clone, Debug)]
pub(crate) struct Truth {
    pub(crate) pool: PgPool,
}

/// What there is of one run.
#[derive(Debug, Default)]
pub(crate) struct History {
    kinds: Vec<String>,
    completed: BTreeMap<i32, u32>,
    epochs: Vec<i32>,
}

impl Truth {
    pub(crate) async fn of(url: &str) -> anyhow::Result<Self> {
        // Two, so that a test can count sessions while it waits for something else.
        Ok(Self { pool: PgPoolOptions::new().max_connections(2).connect(url).await? })
    }

    /// One number.
    pub(crate) async fn count(&self, sql: &'static str) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar(sql).fetch_one(&self.pool).await?)
    }

    /// Waits until a number is at least this; the test's own deadline bounds it.
    pub(crate) async fn wait(&self, sql: &'static str, at_least: i64) -> anyhow::Result<()> {
        let mut looks = tokio::time::interval(std::time::Duration::from_millis(20));
        loop {
            looks.tick().await;
            if self.count(sql).await? >= at_least {
                return Ok(());
            }
        }
    }

    /// Checks the histories of errands, and that there are so many: beside [`Truth::check_order`], each has
    /// completed its steps, has its signal once (INV-29), and its timer has fired once (INV-34).
    pub(crate) async fn check(&self, runs: usize) -> anyhow::Result<()> {
        let histories = self.check_order().await?;
        ensure!(histories.len() == runs, "{} runs in the log instead of {runs}", histories.len());
        for (run, history) in &histories {
            history.check_errand().with_context(|| format!("run {run}: {:?}", history.kinds))?;
        }
        Ok(())
    }

    /// Checks all histories, whose runs must have ended: each without a gap (INV-01), with one end that is its
    /// last event (INV-05), no step completed twice (INV-17), and epochs that never fall (INV-11). Nothing waits
    /// for a run that has ended (INV-25).
    pub(crate) async fn check_order(&self) -> anyhow::Result<BTreeMap<Uuid, History>> {
        let rows: Vec<(Uuid, i64, String, Option<i32>, i32)> =
            sqlx::query_as("SELECT run_id, seq, kind, step_id, epoch FROM events ORDER BY run_id, seq")
                .fetch_all(&self.pool)
                .await?;
        let mut histories: BTreeMap<Uuid, History> = BTreeMap::new();
        for (run, seq, kind, step, epoch) in rows {
            let history = histories.entry(run).or_default();
            let due = i64::try_from(history.kinds.len())? + 1;
            ensure!(seq == due, "run {run} has event {seq} where {due} is due (INV-01)");
            if kind == "StepCompleted" {
                let step = step.with_context(|| format!("run {run}: event {seq} names no step"))?;
                *history.completed.entry(step).or_default() += 1;
            }
            history.kinds.push(kind);
            history.epochs.push(epoch);
        }
        for (run, history) in &histories {
            history.check_order().with_context(|| format!("run {run}: {:?}", history.kinds))?;
        }
        let open = self.count("SELECT count(*) FROM runs WHERE closed_at IS NULL").await?;
        ensure!(open == 0, "{open} runs are open in the table of runs");
        let left = "SELECT (SELECT count(*) FROM tasks) + (SELECT count(*) FROM timers)";
        ensure!(self.count(left).await? == 0, "tasks or timers of closed runs are left (INV-25)");
        Ok(histories)
    }
}

impl History {
    fn check_order(&self) -> anyhow::Result<()> {
        let ends = ["RunCompleted", "RunFailed", "RunCanceled", "RunTerminated"];
        let is_end = |kind: &String| ends.contains(&kind.as_str());
        let ended = self.kinds.iter().filter(|kind| is_end(kind)).count();
        ensure!(
            ended == 1 && self.kinds.last().is_some_and(is_end),
            "{ended} ends, or not at the end (INV-05)"
        );
        ensure!(self.kinds.first().is_some_and(|k| k == "RunStarted"), "it begins otherwise (INV-01)");
        ensure!(self.completed.values().all(|&n| n == 1), "steps completed: {:?} (INV-17)", self.completed);
        ensure!(self.epochs.is_sorted(), "epochs {:?} (INV-11)", self.epochs);
        Ok(())
    }

    fn check_errand(&self) -> anyhow::Result<()> {
        ensure!(self.completed.len() == STEPS, "steps completed: {:?}", self.completed);
        for once in ["RunCompleted", "SignalReceived", "TimerFired"] {
            let times = self.kinds.iter().filter(|kind| *kind == once).count();
            ensure!(times == 1, "{once}: {times} times");
        }
        Ok(())
    }
}

/// Which attempts began, told by the steps themselves.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    pub(crate) begun: Vec<(Uuid, String, u32, u32)>,
}

impl Journal {
    /// No attempt of a step began twice under one claim (INV-18).
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let mut seen = BTreeSet::new();
        for entry in &self.begun {
            ensure!(seen.insert(entry), "{entry:?} (run, step, attempt, epoch) began twice (INV-18)");
        }
        Ok(())
    }
}
