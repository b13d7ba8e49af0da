//! Which code runs wait for, and which is there.

use async_trait::async_trait;
use everstep_core::{Duration, QueueKey, RunId, RunRow, TaskRow};
use everstep_store::{
    AllowedBuild, Builds, Census, Error, PageToken, QueueCensus, QueueWorker, RunFilter, RunWant,
    ServingGroup, WaitingGroup, WaitingType,
};
use serde_json::{Value, json};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use crate::SqliteStore;
use crate::catalog::queue_key;
use crate::error::before_commit;
use crate::rows::{get, limit as sql_limit, run_columns, run_row, session_id};

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

/// A task, of the columns namespace, task_queue, workflow_type and build_id from `first` on.
pub(crate) fn task_row(row: &SqliteRow, first: usize) -> Result<TaskRow, Error> {
    let (workflow_type, build_id) = (get(row, first + 2)?, get(row, first + 3)?);
    Ok(TaskRow { queue: queue_key(row, first)?, workflow_type, build_id })
}

/// Runs that have one of these tasks and that match, newest first.
pub(crate) async fn waiting(
    store: &SqliteStore,
    tasks: &[TaskRow],
    filter: &RunFilter,
    page: Option<PageToken>,
    limit: usize,
) -> Result<Vec<RunRow>, Error> {
    let task = |t: &TaskRow| json!([t.queue.namespace, t.queue.task_queue, t.workflow_type, t.build_id]);
    let tasks: Value = tasks.iter().map(task).collect();
    let statuses: Vec<&str> = filter.statuses.iter().map(|s| s.as_str()).collect();
    let rows = sqlx::query(concat!(
        "SELECT ",
        run_columns!(),
        " FROM tasks t JOIN runs r ON r.run_id = t.run_id
          WHERE r.namespace = ?1 AND (?2 IS NULL OR t.run_id < ?2)
            AND (t.namespace, t.task_queue, t.workflow_type, t.build_id)
                IN (SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?3))
            AND (?4 IS NULL OR r.workflow_id = ?4) AND (?5 IS NULL OR r.workflow_type = ?5)
            AND (?6 = '[]' OR r.status IN (SELECT value FROM json_each(?6)))
          ORDER BY t.run_id DESC LIMIT ?7"
    ))
    .bind(&filter.namespace)
    .bind(page.map(|PageToken(run)| run.uuid()))
    .bind(tasks.to_string())
    .bind(&filter.workflow_id)
    .bind(&filter.workflow_type)
    .bind(json!(statuses).to_string())
    .bind(sql_limit(limit))
    .fetch_all(store.readers())
    .await
    .map_err(|e| before_commit(&e))?;
    rows.iter().map(run_row).collect()
}

fn count(row: &SqliteRow, column: usize) -> Result<u64, Error> {
    Ok(u64::try_from(get::<i64>(row, column)?).unwrap_or(0))
}

/// What waits in a queue, by the names that a statement counts.
async fn count_waiting(
    store: &SqliteStore,
    statement: sqlx::query::Query<'_, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>,
) -> Result<Vec<WaitingType>, Error> {
    let counts = statement.fetch_all(store.readers()).await.map_err(|e| before_commit(&e))?;
    counts.iter().map(|row| Ok(WaitingType { name: get(row, 0)?, waiting: count(row, 1)? })).collect()
}

#[async_trait]
impl Builds for SqliteStore {
    async fn census(&self, age: Duration, limit: usize) -> Result<Census, Error> {
        // The pauses are those of the sweep's claims: 2, 4, 8, 16 and 32 seconds, then a minute each.
        let waiting = sqlx::query(
            "SELECT namespace, task_queue, workflow_type, build_id, count(*), max(micros)
               FROM (SELECT namespace, task_queue, workflow_type, build_id,
                            ?1 - next_claim_at
                                + 1000000 * ((2 << min(claims, 5)) - 1 + 60 * max(claims - 5, 0)) AS micros
                       FROM tasks)
              WHERE micros >= ?2
              GROUP BY namespace, task_queue, workflow_type, build_id
              ORDER BY count(*) DESC, namespace, task_queue, workflow_type, build_id LIMIT ?3",
        )
        .bind(self.inner.clock.now().as_micros())
        .bind(i64::try_from(age.as_micros()).unwrap_or(i64::MAX))
        .bind(sql_limit(limit))
        .fetch_all(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        let serving = sqlx::query(
            "SELECT namespace, build_id, serves, count(*) FROM sessions WHERE closed_at IS NULL
              GROUP BY namespace, build_id, serves
              ORDER BY count(*) DESC, namespace, build_id, serves LIMIT ?",
        )
        .bind(sql_limit(limit))
        .fetch_all(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        let waits = |row: &SqliteRow| {
            let oldest = Duration::from_micros(count(row, 5)?);
            Ok(WaitingGroup { task: task_row(row, 0)?, runs: count(row, 4)?, oldest })
        };
        let serves = |row: &SqliteRow| {
            Ok(ServingGroup {
                namespace: get(row, 0)?,
                build_id: get(row, 1)?,
                serves: serde_json::from_str(&get::<String>(row, 2)?).unwrap_or_default(),
                workers: count(row, 3)?,
            })
        };
        Ok(Census {
            waiting: waiting.iter().map(waits).collect::<Result<_, Error>>()?,
            serving: serving.iter().map(serves).collect::<Result<_, Error>>()?,
            allowed: self.allowed_builds(usize::MAX).await?,
        })
    }

    async fn queue_census(&self, queue: &QueueKey, limit: usize) -> Result<QueueCensus, Error> {
        let workers = sqlx::query(
            "SELECT session_id, identity, build_id, serves FROM sessions
              WHERE closed_at IS NULL AND namespace = ?1
                AND (EXISTS (SELECT 1 FROM json_each(serves, '$.task_queues') WHERE value = ?2)
                     OR EXISTS (SELECT 1 FROM json_each(serves, '$.steps.task_queues') WHERE value = ?2))
              ORDER BY identity, session_id LIMIT ?3",
        )
        .bind(&queue.namespace)
        .bind(&queue.task_queue)
        .bind(sql_limit(limit))
        .fetch_all(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        let worker = |row: &SqliteRow| {
            Ok(QueueWorker {
                session: session_id(row, 0)?,
                identity: get(row, 1)?,
                build_id: get(row, 2)?,
                serves: serde_json::from_str(&get::<String>(row, 3)?).unwrap_or_default(),
            })
        };
        let of_queue = |statement: &'static str| {
            let statement = sqlx::query(statement).bind(&queue.namespace).bind(&queue.task_queue);
            statement.bind(sql_limit(limit))
        };
        let runs = of_queue(
            "SELECT workflow_type, count(*) FROM tasks WHERE namespace = ?1 AND task_queue = ?2
              GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?3",
        );
        let steps = of_queue(
            "SELECT name, count(*) FROM step_tasks
              WHERE namespace = ?1 AND task_queue = ?2 AND claim_id IS NULL AND NOT canceled AND visible_at <= ?4
              GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?3",
        );
        let steps = steps.bind(self.inner.clock.now().as_micros());
        let workers = workers.iter().map(worker).collect::<Result<_, Error>>()?;
        let (runs, steps) = (count_waiting(self, runs), count_waiting(self, steps));
        Ok(QueueCensus { workers, runs: runs.await?, steps: steps.await? }.sorted())
    }

    async fn task_of(&self, run: RunId) -> Result<Option<TaskRow>, Error> {
        let row =
            sqlx::query("SELECT namespace, task_queue, workflow_type, build_id FROM tasks WHERE run_id = ?")
                .bind(run.uuid())
                .fetch_optional(self.readers())
                .await
                .map_err(|e| before_commit(&e))?;
        row.as_ref().map(|row| task_row(row, 0)).transpose()
    }

    async fn allowed_builds(&self, limit: usize) -> Result<Vec<AllowedBuild>, Error> {
        let rows = sqlx::query(
            "SELECT namespace, task_queue, build_id, continues FROM allowed_builds
              ORDER BY namespace, task_queue, build_id, continues LIMIT ?",
        )
        .bind(sql_limit(limit))
        .fetch_all(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        let allowed = |row: &SqliteRow| {
            Ok(AllowedBuild { queue: queue_key(row, 0)?, build_id: get(row, 2)?, continues: get(row, 3)? })
        };
        rows.iter().map(allowed).collect()
    }
}

pub(crate) async fn allow(
    connection: &mut SqliteConnection,
    allowed: AllowedBuild,
) -> Result<(), sqlx::Error> {
    let AllowedBuild { queue: QueueKey { namespace, task_queue }, build_id, continues } = allowed;
    sqlx::query(
        "INSERT INTO allowed_builds (namespace, task_queue, build_id, continues)
         VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(namespace)
    .bind(task_queue)
    .bind(build_id)
    .bind(continues)
    .execute(connection)
    .await
    .map(drop)
}
