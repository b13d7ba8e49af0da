//! What an operator asks. Scalar subqueries and LIMITs where a join would say the same: a join may be planned as a
//! walk over everything, and these are asked for as long as a node lives.

use async_trait::async_trait;
use everstep_core::{Duration, RunId, RunStatus};
use everstep_store::{Backlog, Error, Inspect, LastEvent, WakePage, WakeRows, WakeTable};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::PostgresStore;
use crate::connect::InTime as _;
use crate::error::before;

fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// `$1` the run before the page, `$2` the rows of the page.
fn page_of(table: WakeTable) -> &'static str {
    match table {
        WakeTable::Tasks => "SELECT run_id, true FROM tasks WHERE run_id > $1 ORDER BY run_id LIMIT $2",
        WakeTable::Timers => "SELECT run_id, true FROM timers WHERE run_id > $1 ORDER BY run_id LIMIT $2",
        WakeTable::Wakes => "SELECT run_id, true FROM wakes WHERE run_id > $1 ORDER BY run_id LIMIT $2",
        WakeTable::Steps => "SELECT run_id, true FROM step_tasks WHERE run_id > $1 ORDER BY run_id LIMIT $2",
        WakeTable::Runs => {
            "SELECT run_id, status = 'running' AND owner IS NULL FROM runs WHERE run_id > $1
              ORDER BY run_id LIMIT $2"
        }
    }
}

#[async_trait]
impl Inspect for PostgresStore {
    async fn backlog(&self, limit: usize) -> Result<Backlog, Error> {
        // The pauses are those of the sweep's claims: 2, 4, 8, 16 and 32 seconds, then a minute each.
        let row = sqlx::query(
            "SELECT (SELECT count(*) FROM (
                        SELECT 1 FROM runs WHERE status = 'blocked'
                         ORDER BY namespace, task_queue, run_id LIMIT $1) b),
                    (SELECT (max(extract(epoch FROM statement_timestamp() - next_claim_at)
                                 + 2 ^ (least(claims, 5) + 1) - 1 + 60 * greatest(claims - 5, 0))
                             * 1000000)::bigint
                       FROM (SELECT next_claim_at, claims FROM tasks ORDER BY next_claim_at LIMIT $1) t),
                    o.untold, o.oldest
               FROM (SELECT count(*) AS untold,
                            (max(extract(epoch FROM statement_timestamp() - next_at)
                                 + 2 ^ (least(tries, 5) + 1) - 1 + 60 * greatest(tries - 5, 0))
                             * 1000000)::bigint AS oldest
                       FROM (SELECT next_at, tries FROM outbox ORDER BY next_at LIMIT $1) t) o",
        )
        .bind(limit_of(limit))
        .fetch_one(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        let count = |column: usize| -> Result<u64, Error> {
            Ok(row.try_get::<i64, _>(column).map_err(before)?.try_into().unwrap_or(0))
        };
        let age = |column: usize| -> Result<Option<Duration>, Error> {
            let micros: Option<i64> = row.try_get(column).map_err(before)?;
            Ok(micros.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0))))
        };
        Ok(Backlog { blocked: count(0)?, oldest_task: age(1)?, untold: count(2)?, oldest_untold: age(3)? })
    }

    async fn wake_page(
        &self,
        table: WakeTable,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<WakePage, Error> {
        let rows: Vec<(Uuid, bool)> = sqlx::query_as(page_of(table))
            .bind(after.map_or(Uuid::nil(), |run| run.uuid()))
            .bind(limit_of(limit))
            .fetch_all(&self.pool)
            .in_time(self.answer_limit)
            .await
            .map_err(before)?;
        let last = rows.last().filter(|_| rows.len() >= limit).map(|(run, _)| RunId::from_uuid(*run));
        let mut runs: Vec<RunId> =
            rows.into_iter().filter(|(_, named)| *named).map(|(run, _)| RunId::from_uuid(run)).collect();
        runs.dedup();
        Ok(WakePage { runs, last })
    }

    async fn wake_rows(&self, runs: &[RunId]) -> Result<Vec<WakeRows>, Error> {
        // One statement, and so one instant.
        let rows = sqlx::query(
            "SELECT a.run_id, r.status, r.owner IS NOT NULL, a.task, a.timers, a.wakes, e.kind,
                    coalesce(e.attrs LIKE '%\"reason\":\"parked\"%', false), a.delayed, a.steps
               FROM (SELECT i.run_id,
                            (SELECT true FROM tasks t WHERE t.run_id = i.run_id LIMIT 1) IS NOT NULL AS task,
                            (SELECT true FROM timers t WHERE t.run_id = i.run_id LIMIT 1) IS NOT NULL AS timers,
                            (SELECT true FROM timers t
                              WHERE t.run_id = i.run_id AND t.kind = 'start' LIMIT 1) IS NOT NULL AS delayed,
                            (SELECT true FROM step_tasks s WHERE s.run_id = i.run_id LIMIT 1) IS NOT NULL AS steps,
                            (SELECT true FROM wakes w WHERE w.run_id = i.run_id LIMIT 1) IS NOT NULL AS wakes
                       FROM unnest($1::uuid[]) AS i(run_id) OFFSET 0) a
               LEFT JOIN LATERAL (
                    SELECT status, owner FROM runs WHERE run_id = a.run_id LIMIT 1) r ON true
               LEFT JOIN LATERAL (
                    SELECT kind, attrs FROM events
                     WHERE run_id = a.run_id AND r.status = 'running' AND r.owner IS NULL AND NOT a.task
                     ORDER BY seq DESC LIMIT 1) e ON true
              ORDER BY a.run_id",
        )
        .bind(runs.iter().map(|run| run.uuid()).collect::<Vec<Uuid>>())
        .fetch_all(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        rows.iter().map(wake_rows).collect()
    }
}

fn wake_rows(row: &PgRow) -> Result<WakeRows, Error> {
    let read = || -> Result<(WakeRows, Option<String>), sqlx::Error> {
        let (kind, parked): (Option<String>, bool) = (row.try_get(6)?, row.try_get(7)?);
        let rows = WakeRows {
            run: RunId::from_uuid(row.try_get(0)?),
            status: None,
            owned: row.try_get(2)?,
            task: row.try_get(3)?,
            timers: row.try_get(4)?,
            delayed: row.try_get(8)?,
            steps: row.try_get(9)?,
            wakes: row.try_get(5)?,
            last: kind.map(|kind| LastEvent { parked: parked && kind == "WorkerDetached", kind }),
        };
        Ok((rows, row.try_get(1)?))
    };
    let (rows, status) = read().map_err(before)?;
    let unknown = |word: &str| Error::Corrupt(format!("run {}: unknown status '{word}'", rows.run));
    let status = status.map(|word| RunStatus::parse(&word).ok_or_else(|| unknown(&word))).transpose()?;
    Ok(WakeRows { status, ..rows })
}
