//! What an operator asks.

use async_trait::async_trait;
use everstep_core::{Duration, RunId};
use everstep_store::{Backlog, Error, Inspect, LastEvent, WakePage, WakeRows, WakeTable};
use sqlx::sqlite::SqliteRow;

use crate::SqliteStore;
use crate::error::before_commit;
use crate::rows::{get, id_list, limit as sql_limit, run_id, run_status};

/// `?1` the run before the page, `?2` the rows of the page.
fn page_of(table: WakeTable) -> &'static str {
    match table {
        WakeTable::Tasks => "SELECT run_id, 1 FROM tasks WHERE run_id > ?1 ORDER BY run_id LIMIT ?2",
        WakeTable::Timers => "SELECT run_id, 1 FROM timers WHERE run_id > ?1 ORDER BY run_id LIMIT ?2",
        WakeTable::Wakes => "SELECT run_id, 1 FROM wakes WHERE run_id > ?1 ORDER BY run_id LIMIT ?2",
        WakeTable::Steps => "SELECT run_id, 1 FROM step_tasks WHERE run_id > ?1 ORDER BY run_id LIMIT ?2",
        WakeTable::Runs => {
            "SELECT run_id, status = 'running' AND owner IS NULL FROM runs WHERE run_id > ?1
              ORDER BY run_id LIMIT ?2"
        }
    }
}

#[async_trait]
impl Inspect for SqliteStore {
    async fn backlog(&self, limit: usize) -> Result<Backlog, Error> {
        // The pauses are those of the sweep's claims: 2, 4, 8, 16 and 32 seconds, then a minute each.
        let row = sqlx::query(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM runs WHERE status = 'blocked'
                                            ORDER BY namespace, task_queue, run_id LIMIT ?1)),
                    (SELECT max(?2 - next_claim_at
                                + 1000000 * ((2 << min(claims, 5)) - 1 + 60 * max(claims - 5, 0)))
                       FROM (SELECT next_claim_at, claims FROM tasks ORDER BY next_claim_at LIMIT ?1)),
                    o.untold, o.oldest
               FROM (SELECT count(*) AS untold,
                            max(?2 - next_at + 1000000 * ((2 << min(tries, 5)) - 1 + 60 * max(tries - 5, 0)))
                              AS oldest
                       FROM (SELECT next_at, tries FROM outbox ORDER BY next_at LIMIT ?1)) o",
        )
        .bind(sql_limit(limit))
        .bind(self.inner.clock.now().as_micros())
        .fetch_one(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        let count = |column: usize| Ok::<_, Error>(get::<i64>(&row, column)?.cast_unsigned());
        let age = |column: usize| {
            let micros = get::<Option<i64>>(&row, column)?;
            Ok::<_, Error>(micros.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0))))
        };
        Ok(Backlog { blocked: count(0)?, oldest_task: age(1)?, untold: count(2)?, oldest_untold: age(3)? })
    }

    async fn wake_page(
        &self,
        table: WakeTable,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<WakePage, Error> {
        let rows = sqlx::query(page_of(table))
            .bind(after.map(|run| run.as_bytes().to_vec()).unwrap_or_default())
            .bind(sql_limit(limit))
            .fetch_all(self.readers())
            .await
            .map_err(|e| before_commit(&e))?;
        let last = rows.last().filter(|_| rows.len() >= limit).map(|row| run_id(row, 0)).transpose()?;
        let mut runs = Vec::with_capacity(rows.len());
        for row in &rows {
            if get::<bool>(row, 1)? {
                runs.push(run_id(row, 0)?);
            }
        }
        runs.dedup();
        Ok(WakePage { runs, last })
    }

    async fn wake_rows(&self, runs: &[RunId]) -> Result<Vec<WakeRows>, Error> {
        // One statement, and so one instant.
        let rows = sqlx::query(
            "SELECT a.run_id, a.status, a.owner IS NOT NULL, a.task, a.timers, a.wakes, e.kind,
                    coalesce(e.attrs LIKE '%\"reason\":\"parked\"%', 0), a.delayed, a.steps
               FROM (SELECT i.run_id, r.status, r.owner,
                            EXISTS (SELECT 1 FROM tasks t WHERE t.run_id = i.run_id) AS task,
                            EXISTS (SELECT 1 FROM timers t WHERE t.run_id = i.run_id) AS timers,
                            EXISTS (SELECT 1 FROM timers t WHERE t.run_id = i.run_id AND t.kind = 'start') AS delayed,
                            EXISTS (SELECT 1 FROM step_tasks s WHERE s.run_id = i.run_id) AS steps,
                            EXISTS (SELECT 1 FROM wakes w WHERE w.run_id = i.run_id) AS wakes
                       FROM (SELECT unhex(value) AS run_id FROM json_each(?)) i
                       LEFT JOIN runs r ON r.run_id = i.run_id) a
               LEFT JOIN events e
                      ON a.status = 'running' AND a.owner IS NULL AND NOT a.task AND e.run_id = a.run_id
                     AND e.seq = (SELECT max(l.seq) FROM events l WHERE l.run_id = a.run_id)
              ORDER BY a.run_id",
        )
        .bind(id_list(runs.iter().map(|run| run.uuid())))
        .fetch_all(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        rows.iter().map(wake_rows).collect()
    }
}

fn wake_rows(row: &SqliteRow) -> Result<WakeRows, Error> {
    let parked: bool = get(row, 7)?;
    Ok(WakeRows {
        run: run_id(row, 0)?,
        status: get::<Option<String>>(row, 1)?.map(|word| run_status(&word)).transpose()?,
        owned: get(row, 2)?,
        task: get(row, 3)?,
        timers: get(row, 4)?,
        delayed: get(row, 8)?,
        steps: get(row, 9)?,
        wakes: get(row, 5)?,
        last: get::<Option<String>>(row, 6)?
            .map(|kind| LastEvent { parked: parked && kind == "WorkerDetached", kind }),
    })
}
