//! Queues: their limits, how they stand, and the queued steps in them.

use chrono::{DateTime, Utc};
use everstep_core::{OpId, QueueKey, RunId, SessionId};
use everstep_store::{
    Error, QueueLimits, QueueRecord, QueueRoom, StepClaims, StepFilter, StepRecord, StepState, StepWant,
    stored_limits,
};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};
use uuid::Uuid;

use crate::PostgresStore;
use crate::connect::InTime as _;
use crate::error::before;
use crate::rows::from_db;
use crate::steps::{claim, task, task_columns};

fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// Claims as the limits of the queue allow; nothing when it has none. Claims of the same queue wait for each other:
/// the second one counts what the first one took.
pub(crate) async fn within_limits(
    connection: &mut PgConnection,
    want: &StepWant,
    limit: usize,
) -> Result<StepClaims, Error> {
    let mut transaction = connection.begin().await.map_err(before)?;
    type Row = (Option<i64>, Option<f64>, i64, f64, DateTime<Utc>);
    let row: Option<Row> = sqlx::query_as(
        "SELECT max_running, max_per_second, burst,
                least(burst, tokens + coalesce(max_per_second, 0)
                             * greatest(0, extract(epoch FROM clock_timestamp() - refilled_at)))::float8,
                clock_timestamp()
           FROM queue_limits WHERE namespace = $1 AND task_queue = $2 FOR UPDATE",
    )
    .bind(&want.queue.namespace)
    .bind(&want.queue.task_queue)
    .fetch_optional(&mut *transaction)
    .await
    .map_err(before)?;
    let Some((max_running, max_per_second, burst, tokens, now)) = row else {
        return Ok(StepClaims::default());
    };
    let limits = stored_limits(max_running, max_per_second, burst);
    let mut room = QueueRoom::by_rate(&limits, tokens, from_db(now));
    if let Some(max) = limits.max_running {
        // A statement of its own: it has to see what was claimed before the row above was free.
        let running: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM step_tasks WHERE namespace = $1 AND task_queue = $2 AND claim_id IS NOT NULL",
        )
        .bind(&want.queue.namespace)
        .bind(&want.queue.task_queue)
        .fetch_one(&mut *transaction)
        .await
        .map_err(before)?;
        room = room.by_count(max, usize::try_from(running).unwrap_or(usize::MAX), from_db(now));
    }
    let claims = claim(&mut transaction, want, limit.min(room.free), true).await?;
    sqlx::query(
        "UPDATE queue_limits SET tokens = $3, refilled_at = $4 WHERE namespace = $1 AND task_queue = $2",
    )
    .bind(&want.queue.namespace)
    .bind(&want.queue.task_queue)
    .bind(tokens - claims.len() as f64)
    .bind(now)
    .execute(&mut *transaction)
    .await
    .map_err(before)?;
    transaction.commit().await.map_err(before)?;
    let again = room.again_after(limit, claims.len());
    Ok(StepClaims { claims, again })
}

pub(crate) async fn set_limits(
    connection: &mut PgConnection,
    queue: &QueueKey,
    limits: QueueLimits,
) -> Result<(), sqlx::Error> {
    let query = if limits.is_none() {
        sqlx::query("DELETE FROM queue_limits WHERE namespace = $1 AND task_queue = $2")
            .bind(&queue.namespace)
            .bind(&queue.task_queue)
    } else {
        sqlx::query(
            "INSERT INTO queue_limits AS l (namespace, task_queue, max_running, max_per_second, burst, tokens,
                                            refilled_at)
             VALUES ($1, $2, $3, $4, $5, $5, clock_timestamp())
             ON CONFLICT (namespace, task_queue) DO UPDATE
                SET max_running = excluded.max_running, max_per_second = excluded.max_per_second,
                    burst = excluded.burst, tokens = least(l.tokens, excluded.burst)",
        )
        .bind(&queue.namespace)
        .bind(&queue.task_queue)
        .bind(limits.max_running.map(i64::from))
        .bind(limits.max_per_second)
        .bind(i64::from(limits.burst))
    };
    query.execute(connection).await.map(drop)
}

/// From one name to the next, so that it does not matter how much waits in each queue.
pub(crate) async fn names(
    store: &PostgresStore,
    namespace: &str,
    after: &str,
    limit: i64,
) -> Result<Vec<String>, Error> {
    sqlx::query_scalar(
        "SELECT task_queue FROM (
             SELECT task_queue FROM step_tasks WHERE namespace = $1
              UNION SELECT task_queue FROM tasks WHERE namespace = $1
              UNION SELECT task_queue FROM queue_limits WHERE namespace = $1) q
          WHERE task_queue COLLATE \"C\" > $2 ORDER BY task_queue COLLATE \"C\" LIMIT $3",
    )
    .bind(namespace)
    .bind(after)
    .bind(limit)
    .fetch_all(&store.pool)
    .in_time(store.answer_limit)
    .await
    .map_err(before)
}

/// The queues as they stand, in the order of their names.
pub(crate) async fn records(
    store: &PostgresStore,
    namespace: &str,
    names: &[String],
) -> Result<Vec<QueueRecord>, Error> {
    let rows = sqlx::query(
        "SELECT n.task_queue, l.max_running, l.max_per_second, coalesce(l.burst, 1),
                s.running, s.later, s.waiting, s.oldest,
                (SELECT count(*) FROM tasks t WHERE t.namespace = $1 AND t.task_queue = n.task_queue)
           FROM unnest($2::text[]) WITH ORDINALITY AS n(task_queue, place)
           LEFT JOIN queue_limits l ON l.namespace = $1 AND l.task_queue = n.task_queue
          CROSS JOIN LATERAL (
                SELECT count(*) FILTER (WHERE claim_id IS NOT NULL) AS running,
                       count(*) FILTER (WHERE claim_id IS NULL AND visible_at > statement_timestamp()) AS later,
                       count(*) FILTER (WHERE claim_id IS NULL AND visible_at <= statement_timestamp()) AS waiting,
                       min(visible_at) FILTER (WHERE claim_id IS NULL AND visible_at <= statement_timestamp()) AS oldest
                  FROM step_tasks t WHERE t.namespace = $1 AND t.task_queue = n.task_queue) s
          ORDER BY n.place",
    )
    .bind(namespace)
    .bind(names)
    .fetch_all(&store.pool)
    .in_time(store.answer_limit)
    .await
    .map_err(before)?;
    let record = |row: &PgRow| -> Result<QueueRecord, sqlx::Error> {
        Ok(QueueRecord {
            task_queue: row.try_get(0)?,
            limits: stored_limits(row.try_get(1)?, row.try_get(2)?, row.try_get(3)?),
            running: count(row.try_get(4)?),
            later: count(row.try_get(5)?),
            waiting: count(row.try_get(6)?),
            oldest_waiting: row.try_get::<Option<DateTime<Utc>>, _>(7)?.map(from_db),
            runs_waiting: count(row.try_get(8)?),
        })
    };
    rows.iter().map(record).collect::<Result<_, _>>().map_err(before)
}

pub(crate) async fn list(
    store: &PostgresStore,
    filter: &StepFilter,
    after: Option<(RunId, OpId)>,
    limit: i64,
) -> Result<Vec<StepRecord>, Error> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        task_columns!(),
        ", t.run_id, r.workflow_id, t.claim_id, t.session, t.claimed_at, t.beat_at
           FROM step_tasks t JOIN runs r ON r.run_id = t.run_id
          WHERE t.namespace = $1 AND ($2::uuid IS NULL OR t.run_id = $2)
            AND ($3::text IS NULL OR t.task_queue = $3)
            AND ($4::bool IS NULL OR (t.claim_id IS NOT NULL) = $4)
            AND (t.claim_id IS NOT NULL OR t.visible_at < '9999-12-31T23:59:59.999999Z')
            AND ($5::uuid IS NULL OR (t.run_id, t.step_id) > ($5, $6::bigint))
          ORDER BY t.run_id, t.step_id LIMIT $7"
    ))
    .bind(&filter.namespace)
    .bind(filter.run.map(RunId::uuid))
    .bind(&filter.task_queue)
    .bind(filter.state.map(|state| state == StepState::Running))
    .bind(after.map(|(run, _)| run.uuid()))
    .bind(after.map(|(_, step)| i64::from(step.0)))
    .bind(limit)
    .fetch_all(&store.pool)
    .in_time(store.answer_limit)
    .await
    .map_err(before)?;
    let record = |row: &PgRow| {
        let read = || -> Result<_, sqlx::Error> {
            let claimed = row.try_get::<Option<Uuid>, _>(15)?.is_some();
            let at = |n: usize| row.try_get::<Option<DateTime<Utc>>, _>(n).map(|at| at.map(from_db));
            Ok((
                RunId::from_uuid(row.try_get(13)?),
                row.try_get(14)?,
                if claimed { StepState::Running } else { StepState::Queued },
                row.try_get::<Option<Uuid>, _>(16)?.map(SessionId::from_uuid),
                (at(17)?, at(18)?),
            ))
        };
        let (run, workflow_id, state, session, (claimed_at, beat_at)) = read().map_err(before)?;
        Ok(StepRecord { run, workflow_id, task: task(row, 0)?, state, session, claimed_at, beat_at })
    };
    rows.iter().map(record).collect()
}
