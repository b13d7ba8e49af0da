//! What the sweep looks for.

use async_trait::async_trait;
use everstep_core::{Duration, NodeId, QueueKey, RunId, Seq, SessionId, TaskRow, TimerKey, Timestamp};
use everstep_store::{ClaimedTimers, Error, RunWant, Sweep};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use crate::SqliteStore;
use crate::builds::{task_row, wants_json};
use crate::error::before_commit;
use crate::projection::{WAKES_DELETED, bind_seq, write_rows};
use crate::rows::{get, id_list, instant, limit as sql_limit, run_id, session_id, timer_key};

#[async_trait]
impl Sweep for SqliteStore {
    async fn claim_timers(&self, limit: usize, claim: Duration) -> Result<ClaimedTimers, Error> {
        let now = self.inner.clock.now();
        let (rows, next) = self
            .writer()?
            .transact(move |connection| Box::pin(claim_timers(connection, now, limit, claim)))
            .await?;
        let due = rows.iter().map(|row| Ok((run_id(row, 0)?, timer_key(row, 1)?)));
        let late = rows.iter().map(|row| Ok(now.since(instant(row, 3)?)));
        Ok(ClaimedTimers {
            due: due.collect::<Result<_, Error>>()?,
            late: late.collect::<Result<_, Error>>()?,
            next: next.map(Timestamp::from_micros),
            now,
        })
    }

    async fn renew_timers(
        &self,
        timers: &[(RunId, TimerKey)],
        claim: Duration,
    ) -> Result<Vec<(RunId, TimerKey)>, Error> {
        let until = self.inner.clock.now().after(claim);
        let keys =
            timers.iter().map(|(run, key)| (run.uuid().simple().to_string(), key.kind.as_str(), key.id));
        let keys = serde_json::json!(keys.collect::<Vec<_>>()).to_string();
        let rows = self
            .writer()?
            .transact(move |connection| {
                let renew = sqlx::query(
                    "UPDATE timers SET claimed_until = ?1
                      WHERE claimed_until IS NOT NULL
                        AND (run_id, kind, id) IN
                            (SELECT unhex(value ->> 0), value ->> 1, value ->> 2 FROM json_each(?2))
                     RETURNING run_id, kind, id",
                );
                Box::pin(renew.bind(until.as_micros()).bind(keys).fetch_all(connection))
            })
            .await?;
        rows.iter().map(|row| Ok((run_id(row, 0)?, timer_key(row, 1)?))).collect()
    }

    async fn claim_tasks(
        &self,
        wants: Option<&[RunWant]>,
        limit: usize,
    ) -> Result<Vec<(RunId, TaskRow)>, Error> {
        let wants = wants.map(|wants| wants_json(wants).to_string());
        let now = self.inner.clock.now();
        let rows = self
            .writer()?
            .transact(move |connection| Box::pin(claim_tasks(connection, now, wants, limit)))
            .await?;
        rows.iter().map(|row| Ok((run_id(row, 0)?, task_row(row, 1)?))).collect()
    }

    async fn lost_runs(&self, limit: usize) -> Result<Vec<(RunId, SessionId)>, Error> {
        // From one owner to the next in the index: there are few, however many runs there are.
        let rows = sqlx::query(
            "WITH RECURSIVE owners(owner) AS (
                 SELECT (SELECT owner FROM runs WHERE owner IS NOT NULL ORDER BY owner LIMIT 1)
                 UNION ALL
                 SELECT (SELECT r.owner FROM runs r WHERE r.owner > o.owner ORDER BY r.owner LIMIT 1)
                   FROM owners o WHERE o.owner IS NOT NULL)
             SELECT r.run_id, r.owner
               FROM owners o
               JOIN runs r ON r.owner = o.owner
              WHERE r.status IN ('running', 'blocked')
                AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = o.owner AND s.closed_at IS NULL)
              ORDER BY r.run_id LIMIT ?",
        )
        .bind(sql_limit(limit))
        .fetch_all(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        rows.iter().map(|row| Ok((run_id(row, 0)?, session_id(row, 1)?))).collect()
    }

    async fn stale_wakes(
        &self,
        node: NodeId,
        age: Duration,
        limit: usize,
    ) -> Result<Vec<(RunId, Seq)>, Error> {
        let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        let rows = sqlx::query(
            "SELECT w.run_id, max(w.seq)
               FROM wakes w
               JOIN runs r ON r.run_id = w.run_id
               JOIN sessions s ON s.session_id = r.owner
              WHERE s.node_id = ? AND s.closed_at IS NULL AND w.created_at < ?
              GROUP BY w.run_id ORDER BY w.run_id LIMIT ?",
        )
        .bind(node.uuid())
        .bind(self.inner.clock.now().as_micros().saturating_sub(age))
        .bind(sql_limit(limit))
        .fetch_all(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        rows.iter().map(|row| Ok((run_id(row, 0)?, get::<i64>(row, 1)?.cast_unsigned()))).collect()
    }

    async fn delete_wakes(&self, seen: &[(RunId, Seq)]) -> Result<(), Error> {
        let seen = seen.to_vec();
        self.writer()?
            .transact(move |connection| {
                Box::pin(async move { write_rows(connection, &WAKES_DELETED, &seen, bind_seq).await })
            })
            .await
    }

    async fn blocked_runs(
        &self,
        queue: &QueueKey,
        build_id: &str,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunId>, Error> {
        let rows = sqlx::query(
            "SELECT run_id FROM runs
              WHERE status = 'blocked' AND namespace = ? AND task_queue = ? AND run_id > ? AND build_id <> ?
              ORDER BY run_id LIMIT ?",
        )
        .bind(&queue.namespace)
        .bind(&queue.task_queue)
        .bind(after.map(|run| run.as_bytes().to_vec()).unwrap_or_default())
        .bind(build_id)
        .bind(sql_limit(limit))
        .fetch_all(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        rows.iter().map(|row| run_id(row, 0)).collect()
    }
}

/// The claimed rows, and when the next unclaimed timer is due.
async fn claim_timers(
    connection: &mut SqliteConnection,
    now: Timestamp,
    limit: usize,
    claim: Duration,
) -> Result<(Vec<SqliteRow>, Option<i64>), sqlx::Error> {
    let due = sqlx::query(
        "SELECT run_id, kind, id, fire_at FROM timers
          WHERE fire_at <= ?1 AND (claimed_until IS NULL OR claimed_until < ?1)
          ORDER BY fire_at, run_id, kind, id LIMIT ?2",
    )
    .bind(now.as_micros())
    .bind(sql_limit(limit))
    .fetch_all(&mut *connection)
    .await?;
    if !due.is_empty() {
        let mut keys = Vec::with_capacity(due.len());
        for row in &due {
            let run: uuid::Uuid = row.try_get(0)?;
            let (kind, id): (String, i64) = (row.try_get(1)?, row.try_get(2)?);
            keys.push((run.simple().to_string(), kind, id));
        }
        sqlx::query(
            "UPDATE timers SET claimed_until = ?1
              WHERE (run_id, kind, id) IN
                    (SELECT unhex(value ->> 0), value ->> 1, value ->> 2 FROM json_each(?2))",
        )
        .bind(now.after(claim).as_micros())
        .bind(serde_json::json!(keys).to_string())
        .execute(&mut *connection)
        .await?;
    }
    let next = sqlx::query_scalar(
        "SELECT fire_at FROM timers
          WHERE fire_at > ?1 AND (claimed_until IS NULL OR claimed_until < ?1)
          ORDER BY fire_at LIMIT 1",
    )
    .bind(now.as_micros())
    .fetch_optional(connection)
    .await?;
    Ok((due, next))
}

/// The claimed rows. `wants` is a JSON array.
async fn claim_tasks(
    connection: &mut SqliteConnection,
    now: Timestamp,
    wants: Option<String>,
    limit: usize,
) -> Result<Vec<SqliteRow>, sqlx::Error> {
    let due = sqlx::query(
        "SELECT run_id, namespace, task_queue, workflow_type, build_id FROM tasks t
          WHERE (next_claim_at <= ?1 AND ?2 IS NULL)
             OR ((next_claim_at <= ?1 OR claims > 0) AND EXISTS (
                 SELECT 1 FROM json_each(?2) w
                  WHERE w.value ->> 'namespace' = t.namespace AND w.value ->> 'task_queue' = t.task_queue
                    AND (w.value -> 'types' IS NULL OR t.workflow_type = ''
                         OR t.workflow_type IN (SELECT value FROM json_each(w.value, '$.types')))
                    AND (t.build_id = '' OR t.build_id IN (SELECT value FROM json_each(w.value, '$.builds')))
                    AND (w.value ->> 'impatient' OR t.next_claim_at <= ?1)))
          ORDER BY next_claim_at, run_id LIMIT ?3",
    )
    .bind(now.as_micros())
    .bind(wants)
    .bind(sql_limit(limit))
    .fetch_all(&mut *connection)
    .await?;
    if !due.is_empty() {
        let ids = due.iter().map(|row| row.try_get(0)).collect::<Result<Vec<uuid::Uuid>, _>>()?;
        sqlx::query(
            "UPDATE tasks SET claims = claims + 1,
                    next_claim_at = ?1 + 1000000 * min(60, 1 << min(claims + 1, 6))
              WHERE run_id IN (SELECT unhex(value) FROM json_each(?2))",
        )
        .bind(now.as_micros())
        .bind(id_list(ids.into_iter()))
        .execute(connection)
        .await?;
    }
    Ok(due)
}
