//! Queues: their limits, how they stand, and the queued steps in them.

use everstep_core::{OpId, QueueKey, RunId, SessionId, StepTask, Timestamp};
use everstep_store::{
    Error, QueueLimits, QueueRecord, QueueRoom, StepFilter, StepRecord, StepState, stored_limits,
};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use crate::error::before_commit;
use crate::rows::{get, run_id};
use crate::steps::{maybe, task, task_columns};

/// What the limits of a queue leave, and what is in its bucket now; `None` when it has no limits.
pub(crate) type Room = (QueueRoom, Option<f64>);

fn limits_of(row: &SqliteRow, first: usize) -> Result<QueueLimits, sqlx::Error> {
    Ok(stored_limits(row.try_get(first)?, row.try_get(first + 1)?, row.try_get(first + 2)?))
}

pub(crate) async fn room(
    c: &mut SqliteConnection,
    queue: &QueueKey,
    now: Timestamp,
) -> Result<Room, sqlx::Error> {
    let row = sqlx::query(
        "SELECT max_running, max_per_second, burst, tokens, refilled_at FROM queue_limits
          WHERE namespace = ? AND task_queue = ?",
    )
    .bind(&queue.namespace)
    .bind(&queue.task_queue)
    .fetch_optional(&mut *c)
    .await?;
    let Some(row) = row else { return Ok((QueueRoom::ENDLESS, None)) };
    let limits = limits_of(&row, 0)?;
    let mut tokens: f64 = row.try_get(3)?;
    if let Some(rate) = limits.max_per_second {
        let since = now.since(Timestamp::from_micros(row.try_get(4)?));
        tokens = (tokens + since.as_secs_f64() * rate).min(f64::from(limits.burst));
    }
    let mut room = QueueRoom::by_rate(&limits, tokens, now);
    if let Some(max) = limits.max_running {
        let running: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM step_tasks WHERE namespace = ? AND task_queue = ? AND claim_id IS NOT NULL",
        )
        .bind(&queue.namespace)
        .bind(&queue.task_queue)
        .fetch_one(c)
        .await?;
        room = room.by_count(max, usize::try_from(running).unwrap_or(usize::MAX), now);
    }
    Ok((room, Some(tokens)))
}

/// Writes what is left in the bucket.
pub(crate) async fn take(
    c: &mut SqliteConnection,
    queue: &QueueKey,
    tokens: f64,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE queue_limits SET tokens = ?, refilled_at = ? WHERE namespace = ? AND task_queue = ?")
        .bind(tokens)
        .bind(now.as_micros())
        .bind(&queue.namespace)
        .bind(&queue.task_queue)
        .execute(c)
        .await?;
    Ok(())
}

pub(crate) async fn set_limits(
    c: &mut SqliteConnection,
    queue: QueueKey,
    limits: QueueLimits,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let query = if limits.is_none() {
        sqlx::query("DELETE FROM queue_limits WHERE namespace = ? AND task_queue = ?")
            .bind(queue.namespace)
            .bind(queue.task_queue)
    } else {
        sqlx::query(
            "INSERT INTO queue_limits (namespace, task_queue, max_running, max_per_second, burst, tokens, refilled_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6)
             ON CONFLICT (namespace, task_queue) DO UPDATE
                SET max_running = excluded.max_running, max_per_second = excluded.max_per_second,
                    burst = excluded.burst, tokens = min(queue_limits.tokens, excluded.burst)",
        )
        .bind(queue.namespace)
        .bind(queue.task_queue)
        .bind(limits.max_running.map(i64::from))
        .bind(limits.max_per_second)
        .bind(i64::from(limits.burst))
        .bind(now.as_micros())
    };
    query.execute(c).await?;
    Ok(())
}

pub(crate) async fn names(
    pool: &SqlitePool,
    namespace: &str,
    after: &str,
    limit: i64,
) -> Result<Vec<String>, Error> {
    sqlx::query_scalar(
        "SELECT task_queue FROM (
             SELECT task_queue FROM step_tasks WHERE namespace = ?1
              UNION SELECT task_queue FROM tasks WHERE namespace = ?1
              UNION SELECT task_queue FROM queue_limits WHERE namespace = ?1)
          WHERE task_queue > ?2 ORDER BY task_queue LIMIT ?3",
    )
    .bind(namespace)
    .bind(after)
    .bind(limit)
    .fetch_all(pool)
    .await
    .map_err(|e| before_commit(&e))
}

pub(crate) async fn record(
    pool: &SqlitePool,
    queue: &QueueKey,
    now: Timestamp,
) -> Result<QueueRecord, Error> {
    let row = sqlx::query(
        "SELECT l.max_running, l.max_per_second, coalesce(l.burst, 1),
                count(s.step_id) FILTER (WHERE s.claim_id IS NOT NULL),
                count(s.step_id) FILTER (WHERE s.claim_id IS NULL AND s.visible_at > ?3),
                count(s.step_id) FILTER (WHERE s.claim_id IS NULL AND s.visible_at <= ?3),
                min(s.visible_at) FILTER (WHERE s.claim_id IS NULL AND s.visible_at <= ?3),
                (SELECT count(*) FROM tasks t WHERE t.namespace = ?1 AND t.task_queue = ?2)
           FROM (SELECT 1)
           LEFT JOIN queue_limits l ON l.namespace = ?1 AND l.task_queue = ?2
           LEFT JOIN step_tasks s ON s.namespace = ?1 AND s.task_queue = ?2",
    )
    .bind(&queue.namespace)
    .bind(&queue.task_queue)
    .bind(now.as_micros())
    .fetch_one(pool)
    .await
    .map_err(|e| before_commit(&e))?;
    let count = |column: usize| get::<i64>(&row, column).map(i64::cast_unsigned);
    Ok(QueueRecord {
        task_queue: queue.task_queue.clone(),
        limits: limits_of(&row, 0).map_err(|e| before_commit(&e))?,
        running: count(3)?,
        later: count(4)?,
        waiting: count(5)?,
        oldest_waiting: maybe(&row, 6)?,
        runs_waiting: count(7)?,
    })
}

pub(crate) async fn list(
    pool: &SqlitePool,
    filter: &StepFilter,
    after: Option<(RunId, OpId)>,
    limit: i64,
) -> Result<Vec<StepRecord>, Error> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        task_columns!(),
        ", t.run_id, r.workflow_id, t.claim_id, t.session, t.claimed_at, t.beat_at
           FROM step_tasks t JOIN runs r ON r.run_id = t.run_id
          WHERE t.namespace = ?1 AND (?2 IS NULL OR t.run_id = ?2) AND (?3 IS NULL OR t.task_queue = ?3)
            AND (?4 IS NULL OR (t.claim_id IS NOT NULL) = ?4) AND (t.claim_id IS NOT NULL OR t.visible_at < ?8)
            AND (?5 IS NULL OR (t.run_id, t.step_id) > (?5, ?6))
          ORDER BY t.run_id, t.step_id LIMIT ?7"
    ))
    .bind(&filter.namespace)
    .bind(filter.run.map(RunId::uuid))
    .bind(&filter.task_queue)
    .bind(filter.state.map(|state| state == StepState::Running))
    .bind(after.map(|(run, _)| run.uuid()))
    .bind(after.map(|(_, step)| i64::from(step.0)))
    .bind(limit)
    .bind(StepTask::HELD.as_micros())
    .fetch_all(pool)
    .await
    .map_err(|e| before_commit(&e))?;
    let record = |row: &SqliteRow| {
        let claimed = get::<Option<Uuid>>(row, 15)?.is_some();
        Ok(StepRecord {
            run: run_id(row, 13)?,
            workflow_id: get(row, 14)?,
            task: task(row, 0)?,
            state: if claimed { StepState::Running } else { StepState::Queued },
            session: get::<Option<Uuid>>(row, 16)?.map(SessionId::from_uuid),
            claimed_at: maybe(row, 17)?,
            beat_at: maybe(row, 18)?,
        })
    };
    rows.iter().map(record).collect()
}
