//! Which code runs wait for, and which is there.

use async_trait::async_trait;
use everstep_core::{Duration, QueueKey, RunId, RunRow, SessionId, TaskRow};
use everstep_store::{
    AllowedBuild, Builds, Census, Error, PageToken, QueueCensus, QueueWorker, RunFilter, RunWant,
    ServingGroup, WaitingGroup, WaitingType,
};
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::PostgresStore;
use crate::connect::InTime as _;
use crate::error::before;
use crate::reads::run_columns;
use crate::rows::run_row;
use crate::sessions::micros;

/// Wants as a claim is bound to them: fields that do not restrict are left out.
pub(crate) fn wants_json(wants: &[RunWant]) -> Value {
    let want = |want: &RunWant| {
        let RunWant { queue: QueueKey { namespace, task_queue }, workflow_types, builds, impatient } = want;
        let mut value = json!({
            "namespace": namespace, "task_queue": task_queue, "builds": builds, "impatient": impatient,
        });
        if !workflow_types.is_empty() {
            value["types"] = json!(workflow_types);
        }
        value
    };
    wants.iter().map(want).collect()
}

/// Runs that have one of these tasks and that match, newest first.
pub(crate) async fn waiting(
    store: &PostgresStore,
    tasks: &[TaskRow],
    filter: &RunFilter,
    page: Option<PageToken>,
    limit: usize,
) -> Result<Vec<RunRow>, Error> {
    let column = |of: fn(&TaskRow) -> &str| tasks.iter().map(of).collect::<Vec<&str>>();
    let statuses: Vec<&str> = filter.statuses.iter().map(|s| s.as_str()).collect();
    let rows = sqlx::query(concat!(
        "SELECT ",
        run_columns!(),
        " FROM tasks t JOIN runs r ON r.run_id = t.run_id
          WHERE r.namespace = $1 AND ($2::uuid IS NULL OR t.run_id < $2)
            AND (t.namespace, t.task_queue, t.workflow_type, t.build_id)
                IN (SELECT * FROM unnest($3::text[], $4::text[], $5::text[], $6::text[]))
            AND ($7::text IS NULL OR r.workflow_id = $7) AND ($8::text IS NULL OR r.workflow_type = $8)
            AND (cardinality($9::text[]) = 0 OR r.status = ANY ($9))
          ORDER BY t.run_id DESC LIMIT $10"
    ))
    .bind(&filter.namespace)
    .bind(page.map(|PageToken(run)| run.uuid()))
    .bind(column(|t| &t.queue.namespace))
    .bind(column(|t| &t.queue.task_queue))
    .bind(column(|t| &t.workflow_type))
    .bind(column(|t| &t.build_id))
    .bind(&filter.workflow_id)
    .bind(&filter.workflow_type)
    .bind(statuses)
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(&store.pool)
    .in_time(store.answer_limit)
    .await
    .map_err(before)?;
    rows.iter().map(run_row).collect()
}

fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// What waits in a queue, by the names that a statement counts.
async fn count_waiting(
    store: &PostgresStore,
    statement: &'static str,
    queue: &QueueKey,
    limit: i64,
) -> Result<Vec<WaitingType>, Error> {
    let counts: Vec<(String, i64)> = sqlx::query_as(statement)
        .bind(&queue.namespace)
        .bind(&queue.task_queue)
        .bind(limit)
        .fetch_all(&store.pool)
        .in_time(store.answer_limit)
        .await
        .map_err(before)?;
    Ok(counts.into_iter().map(|(name, n)| WaitingType { name, waiting: count(n) }).collect())
}

#[async_trait]
impl Builds for PostgresStore {
    async fn census(&self, age: Duration, limit: usize) -> Result<Census, Error> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // The pauses are those of the sweep's claims: 2, 4, 8, 16 and 32 seconds, then a minute each.
        let waiting: Vec<(String, String, String, String, i64, i64)> = sqlx::query_as(
            "SELECT namespace, task_queue, workflow_type, build_id, count(*), max(micros)
               FROM (SELECT namespace, task_queue, workflow_type, build_id,
                            ((extract(epoch FROM statement_timestamp() - next_claim_at)
                              + 2 ^ (least(claims, 5) + 1) - 1 + 60 * greatest(claims - 5, 0))
                             * 1000000)::bigint AS micros
                       FROM tasks) t
              WHERE micros >= $1
              GROUP BY namespace, task_queue, workflow_type, build_id
              ORDER BY count(*) DESC, namespace, task_queue, workflow_type, build_id LIMIT $2",
        )
        .bind(micros(age))
        .bind(limit)
        .fetch_all(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        let serving: Vec<(String, String, String, i64)> = sqlx::query_as(
            "SELECT namespace, build_id, serves, count(*) FROM sessions WHERE closed_at IS NULL
              GROUP BY namespace, build_id, serves
              ORDER BY count(*) DESC, namespace, build_id, serves LIMIT $1",
        )
        .bind(limit)
        .fetch_all(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        let waits = |(namespace, task_queue, workflow_type, build_id, runs, micros)| {
            let task = TaskRow { queue: QueueKey { namespace, task_queue }, workflow_type, build_id };
            WaitingGroup { task, runs: count(runs), oldest: Duration::from_micros(count(micros)) }
        };
        let serves = |(namespace, build_id, serves, workers): (String, String, String, i64)| ServingGroup {
            namespace,
            build_id,
            serves: serde_json::from_str(&serves).unwrap_or_default(),
            workers: count(workers),
        };
        Ok(Census {
            waiting: waiting.into_iter().map(waits).collect(),
            serving: serving.into_iter().map(serves).collect(),
            allowed: self.allowed_builds(usize::MAX).await?,
        })
    }

    async fn queue_census(&self, queue: &QueueKey, limit: usize) -> Result<QueueCensus, Error> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let workers: Vec<(Uuid, String, String, String)> = sqlx::query_as(
            "SELECT session_id, identity, build_id, serves FROM sessions
              WHERE closed_at IS NULL AND namespace = $1
                AND (serves::jsonb -> 'task_queues' ? $2 OR serves::jsonb #> '{steps,task_queues}' ? $2)
              ORDER BY identity COLLATE \"C\", session_id LIMIT $3",
        )
        .bind(&queue.namespace)
        .bind(&queue.task_queue)
        .bind(limit)
        .fetch_all(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        let worker = |(session, identity, build_id, serves): (Uuid, String, String, String)| QueueWorker {
            session: SessionId::from_uuid(session),
            identity,
            build_id,
            serves: serde_json::from_str(&serves).unwrap_or_default(),
        };
        let runs = "SELECT workflow_type, count(*) FROM tasks WHERE namespace = $1 AND task_queue = $2
                     GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT $3";
        let steps = "SELECT name, count(*) FROM step_tasks
                      WHERE namespace = $1 AND task_queue = $2 AND claim_id IS NULL AND NOT canceled
                        AND visible_at <= statement_timestamp()
                      GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT $3";
        let workers = workers.into_iter().map(worker).collect();
        let (runs, steps) =
            (count_waiting(self, runs, queue, limit), count_waiting(self, steps, queue, limit));
        Ok(QueueCensus { workers, runs: runs.await?, steps: steps.await? }.sorted())
    }

    async fn task_of(&self, run: RunId) -> Result<Option<TaskRow>, Error> {
        let row: Option<(String, String, String, String)> = sqlx::query_as(
            "SELECT namespace, task_queue, workflow_type, build_id FROM tasks WHERE run_id = $1",
        )
        .bind(run.uuid())
        .fetch_optional(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(row.map(|(namespace, task_queue, workflow_type, build_id)| TaskRow {
            queue: QueueKey { namespace, task_queue },
            workflow_type,
            build_id,
        }))
    }

    async fn allowed_builds(&self, limit: usize) -> Result<Vec<AllowedBuild>, Error> {
        let rows: Vec<(String, String, String, String)> = sqlx::query_as(
            "SELECT namespace, task_queue, build_id, continues FROM allowed_builds
              ORDER BY namespace COLLATE \"C\", task_queue COLLATE \"C\", build_id COLLATE \"C\", continues COLLATE \"C\"
              LIMIT $1",
        )
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        let allowed = |(namespace, task_queue, build_id, continues)| AllowedBuild {
            queue: QueueKey { namespace, task_queue },
            build_id,
            continues,
        };
        Ok(rows.into_iter().map(allowed).collect())
    }
}

pub(crate) async fn allow(connection: &mut PgConnection, allowed: &AllowedBuild) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO allowed_builds (namespace, task_queue, build_id, continues) VALUES ($1, $2, $3, $4)
         ON CONFLICT DO NOTHING",
    )
    .bind(&allowed.queue.namespace)
    .bind(&allowed.queue.task_queue)
    .bind(&allowed.build_id)
    .bind(&allowed.continues)
    .execute(connection)
    .await
    .map(drop)
}
