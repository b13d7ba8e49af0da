//! Questions about runs and namespaces.

use async_trait::async_trait;
use everstep_core::{Notes, OpId, Projection, QueueKey, RunId, RunRow};
use everstep_store::{
    Catalog, DoubtFilter, DoubtRecord, Error, Namespace, NamespaceSettings, PageToken, RunFilter, RunRecord,
    RunTables, StartRecord,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, SqliteConnection};
use uuid::Uuid;

use crate::SqliteStore;
use crate::attributes;
use crate::builds::{self, task_row};
use crate::doubts;
use crate::error::before_commit;
use crate::outbox;
use crate::rows::{
    get, id_list, instant, limit as sql_limit, run_columns, run_id, run_row, run_status, timer,
};
use crate::steps::{task as step_task, task_columns};

#[async_trait]
impl Catalog for SqliteStore {
    async fn get_run(&self, run: RunId) -> Result<Option<RunRecord>, Error> {
        let row = sqlx::query(concat!(
            "SELECT ",
            run_columns!(),
            ", (SELECT max(seq) FROM events e WHERE e.run_id = r.run_id) FROM runs r WHERE r.run_id = ?"
        ))
        .bind(run.uuid())
        .fetch_optional(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        let Some(row) = row else { return Ok(None) };
        let tail_seq = get::<Option<i64>>(&row, 14)?.unwrap_or(0).cast_unsigned();
        Ok(Some(RunRecord { row: run_row(&row)?, tail_seq }))
    }

    async fn find_start(
        &self,
        namespace: &str,
        workflow_id: &str,
        request_id: &str,
    ) -> Result<StartRecord, Error> {
        let row = sqlx::query(
            "SELECT w.run_id, r.status, q.run_id, q.body_hash
               FROM (SELECT 1)
               LEFT JOIN workflow_ids w ON w.namespace = ?1 AND w.workflow_id = ?2
               LEFT JOIN runs r ON r.run_id = w.run_id
               LEFT JOIN start_requests q
                      ON q.namespace = ?1 AND q.workflow_id = ?2 AND q.request_id = ?3",
        )
        .bind(namespace)
        .bind(workflow_id)
        .bind(request_id)
        .fetch_one(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        start_record(&row)
    }

    async fn list_runs(
        &self,
        filter: &RunFilter,
        page: Option<PageToken>,
        limit: usize,
    ) -> Result<Vec<RunRow>, Error> {
        if filter.waiting.is_none() && !filter.attributes.is_empty() {
            return attributes::list(self.readers(), filter, page, sql_limit(limit)).await;
        }
        if let Some(waiting) = &filter.waiting {
            return builds::waiting(self, &waiting.tasks, filter, page, limit).await;
        }
        if let Some(parent) = filter.parent {
            return outbox::children(self, parent, filter, page, limit).await;
        }
        let statuses = (!filter.statuses.is_empty()).then(|| {
            let words: Vec<String> = filter.statuses.iter().map(|s| format!("\"{s}\"")).collect();
            format!("[{}]", words.join(","))
        });
        let before = page.map(|PageToken(run)| run.uuid());
        let rows = if let Some(workflow_id) = &filter.workflow_id {
            // Every run of a workflow id was started by a request for it.
            sqlx::query(concat!(
                "SELECT ",
                run_columns!(),
                " FROM runs r
                 WHERE r.run_id IN (SELECT q.run_id FROM start_requests q
                                     WHERE q.namespace = ?1 AND q.workflow_id = ?2)
                   AND (?3 IS NULL OR r.workflow_type = ?3)
                   AND (?4 IS NULL OR r.status IN (SELECT value FROM json_each(?4)))
                   AND (?5 IS NULL OR r.run_id < ?5)
                 ORDER BY r.run_id DESC
                 LIMIT ?6"
            ))
            .bind(&filter.namespace)
            .bind(workflow_id)
            .bind(&filter.workflow_type)
            .bind(statuses)
            .bind(before)
            .bind(sql_limit(limit))
            .fetch_all(self.readers())
            .await
        } else {
            sqlx::query(concat!(
                "SELECT ",
                run_columns!(),
                " FROM runs r
                 WHERE r.namespace = ?1
                   AND (?2 IS NULL OR r.workflow_type = ?2)
                   AND (?3 IS NULL OR r.status IN (SELECT value FROM json_each(?3)))
                   AND r.run_id < ?4
                 ORDER BY r.run_id DESC
                 LIMIT ?5"
            ))
            .bind(&filter.namespace)
            .bind(&filter.workflow_type)
            .bind(statuses)
            // One byte string that is greater than every id, so that the index bounds the search.
            .bind(before.map_or(vec![0xff; 17], |run| run.as_bytes().to_vec()))
            .bind(sql_limit(limit))
            .fetch_all(self.readers())
            .await
        };
        rows.map_err(|e| before_commit(&e))?.iter().map(run_row).collect()
    }

    async fn closed_among(&self, runs: &[RunId]) -> Result<Vec<RunId>, Error> {
        let rows = sqlx::query(
            "SELECT run_id FROM runs
              WHERE run_id IN (SELECT unhex(value) FROM json_each(?))
                AND status NOT IN ('running', 'blocked')",
        )
        .bind(id_list(runs.iter().map(|run| run.uuid())))
        .fetch_all(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        rows.iter().map(|row| run_id(row, 0)).collect()
    }

    async fn run_notes(&self, run: RunId) -> Result<Notes, Error> {
        attributes::notes(self.readers(), run).await
    }

    async fn run_tables(&self, run: RunId) -> Result<Option<RunTables>, Error> {
        let readers = self.readers().clone();
        // In a task of its own: a reader that went back to the pool inside a transaction would see the
        // past for ever.
        let task = tokio::spawn(async move {
            let mut connection = readers.acquire().await.map_err(|e| before_commit(&e))?;
            let mut snapshot = connection.begin().await.map_err(|e| before_commit(&e))?;
            let tables = read_tables(&mut snapshot, run).await;
            snapshot.rollback().await.map_err(|e| before_commit(&e))?;
            tables
        });
        task.await.unwrap_or_else(|e| Err(Error::Unavailable(format!("the reading task ended early: {e}"))))
    }

    async fn list_doubts(
        &self,
        filter: &DoubtFilter,
        after: Option<(RunId, OpId)>,
        limit: usize,
    ) -> Result<Vec<DoubtRecord>, Error> {
        doubts::list(self.readers(), filter, after, sql_limit(limit)).await
    }

    async fn count_doubts(&self) -> Result<u64, Error> {
        doubts::count(self.readers()).await
    }

    async fn create_namespace(&self, name: &str, description: &str) -> Result<bool, Error> {
        let (name, description) = (name.to_owned(), description.to_owned());
        let now = self.inner.clock.now().as_micros();
        self.writer()?
            .transact(move |connection| {
                Box::pin(async move {
                    let done = sqlx::query(
                        "INSERT INTO namespaces (name, description, created_at) VALUES (?, ?, ?)
                             ON CONFLICT (name) DO NOTHING",
                    )
                    .bind(name)
                    .bind(description)
                    .bind(now)
                    .execute(connection)
                    .await?;
                    Ok(done.rows_affected() > 0)
                })
            })
            .await
    }

    async fn get_namespace(&self, name: &str) -> Result<Option<Namespace>, Error> {
        let row =
            sqlx::query("SELECT name, description, created_at, settings FROM namespaces WHERE name = ?")
                .bind(name)
                .fetch_optional(self.readers())
                .await
                .map_err(|e| before_commit(&e))?;
        row.as_ref().map(namespace).transpose()
    }

    async fn list_namespaces(&self, after: &str, limit: usize) -> Result<Vec<Namespace>, Error> {
        let rows = sqlx::query(
            "SELECT name, description, created_at, settings FROM namespaces WHERE name > ? ORDER BY name LIMIT ?",
        )
        .bind(after)
        .bind(sql_limit(limit))
        .fetch_all(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        rows.iter().map(namespace).collect()
    }
}

fn namespace(row: &SqliteRow) -> Result<Namespace, Error> {
    let name: String = get(row, 0)?;
    let settings = NamespaceSettings::from_text(&name, &get::<String>(row, 3)?)?;
    Ok(Namespace { name, description: get(row, 1)?, created_at: instant(row, 2)?, settings })
}

fn start_record(row: &SqliteRow) -> Result<StartRecord, Error> {
    let current = match (get::<Option<Uuid>>(row, 0)?, get::<Option<String>>(row, 1)?) {
        (None, _) => None,
        (Some(run), Some(status)) => Some((RunId::from_uuid(run), run_status(&status)?)),
        (Some(run), None) => {
            return Err(Error::Corrupt(format!("run {run} holds a workflow id and has no row")));
        }
    };
    let request = match (get::<Option<Uuid>>(row, 2)?, get::<Option<Vec<u8>>>(row, 3)?) {
        (Some(run), Some(hash)) => {
            let hash =
                hash.try_into().map_err(|_| Error::Corrupt(format!("run {run} has a short body hash")))?;
            Some((RunId::from_uuid(run), hash))
        }
        _ => None,
    };
    Ok(StartRecord { current, request })
}

async fn read_tables(connection: &mut SqliteConnection, run: RunId) -> Result<Option<RunTables>, Error> {
    let all = async |sql: &'static str, connection: &mut SqliteConnection| {
        sqlx::query(sql).bind(run.uuid()).fetch_all(connection).await.map_err(|e| before_commit(&e))
    };
    let rows =
        all(concat!("SELECT ", run_columns!(), " FROM runs r WHERE r.run_id = ?"), &mut *connection).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let row = run_row(row)?;
    let timers = all("SELECT kind, id, fire_at FROM timers WHERE run_id = ?", &mut *connection).await?;
    let mut timers = timers.iter().map(|row| timer(row, 0)).collect::<Result<Vec<_>, _>>()?;
    timers.sort_unstable();
    let task = all(
        "SELECT namespace, task_queue, workflow_type, build_id FROM tasks WHERE run_id = ?",
        &mut *connection,
    )
    .await?;
    let task = task.first().map(|row| task_row(row, 0)).transpose()?;
    let wakes = all("SELECT seq FROM wakes WHERE run_id = ? ORDER BY seq", &mut *connection).await?;
    let wakes =
        wakes.iter().map(|row| get::<i64>(row, 0).map(i64::cast_unsigned)).collect::<Result<_, _>>()?;
    let doubts = all(
        "SELECT step_id, attempt, name, policy, since FROM doubts WHERE run_id = ? ORDER BY step_id",
        &mut *connection,
    )
    .await?;
    let doubts = doubts.iter().map(doubts::doubt).collect::<Result<_, _>>()?;
    let attributes = all(
        "SELECT name, n, type, text_value, int_value, number_value, time_value
           FROM run_attributes WHERE run_id = ? ORDER BY name, n",
        &mut *connection,
    )
    .await?;
    let attributes = attributes::collect(run, &attributes)?;
    let link = all(
        "SELECT run_id, parent_run_id, parent_op, previous_run_id, first_run_id, successor_run_id, attempt
           FROM run_links WHERE run_id = ?",
        &mut *connection,
    )
    .await?;
    let link = link.first().map(|row| outbox::link(row).map(|(_, link)| link)).transpose()?;
    let steps = all(
        concat!("SELECT ", task_columns!(), " FROM step_tasks t WHERE t.run_id = ? ORDER BY t.step_id"),
        &mut *connection,
    )
    .await?;
    let steps = steps.iter().map(|row| step_task(row, 0)).collect::<Result<_, _>>()?;
    Ok(Some(RunTables {
        projection: Projection { row, timers, task, doubts, steps, link, attributes },
        wakes,
    }))
}

/// A queue, of the columns namespace and task_queue from `first` on.
pub(crate) fn queue_key(row: &SqliteRow, first: usize) -> Result<QueueKey, Error> {
    Ok(QueueKey { namespace: get(row, first)?, task_queue: get(row, first + 1)? })
}
