//! The log and the catalog, read.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use everstep_core::{
    Event, Notes, OpId, Projection, QueueKey, RunId, RunRow, RunStatus, Seq, TaskRow, Timer, TimerKey,
    TimerKind, Timestamp,
};
use everstep_store::{
    Append, AppendReply, Catalog, DoubtFilter, DoubtRecord, Error, Head, Log, Namespace, NamespaceSettings,
    Outbox as _, PAGE_BYTES_MAX, PageToken, Relay, RunFilter, RunRecord, RunTables, StartRecord,
};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::PostgresStore;
use crate::connect::InTime as _;
use crate::error::before;
use crate::rows::{event, from_db, run_row};
use crate::{attributes, builds, doubts, outbox, steps};

macro_rules! run_columns {
    () => {
        "r.run_id, r.namespace, r.workflow_id, r.workflow_type, r.task_queue, r.status, r.owner, r.epoch, r.build_id, \
         r.blocked, r.cancel_requested, r.started_at, r.closed_at, r.last_seq"
    };
}
pub(crate) use run_columns;

/// The rest of a list, after its columns: `$1` namespace, `$2` page, `$3` workflow id, `$4` type, `$5` statuses.
macro_rules! list_tail {
    ($workflow_id:expr) => {
        concat!(
            " FROM runs r WHERE r.namespace = $1 AND ($2::uuid IS NULL OR r.run_id < $2) AND ",
            $workflow_id,
            " AND ($4::text IS NULL OR r.workflow_type = $4)
               AND (cardinality($5::text[]) = 0 OR r.status = ANY($5))
             ORDER BY r.run_id DESC LIMIT $6"
        )
    };
}

fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

#[async_trait]
impl Log for PostgresStore {
    fn is_shared(&self) -> bool {
        true
    }

    fn relay(&self) -> Option<&dyn Relay> {
        Some(self)
    }

    async fn append(&self, batch: Vec<Append>) -> AppendReply {
        self.append_batch(batch).await
    }

    async fn read_events(&self, run: RunId, after: Seq, limit: usize) -> Result<Vec<Event>, Error> {
        let rows = sqlx::query(
            // A length is known without its bytes: those of events beyond the page are never read.
            "SELECT e.seq, e.at, e.epoch, e.step_id, e.attempt, e.command_id, e.kind, e.step, e.actor, e.attrs,
                    e.encoding, e.data, e.payload_hash
               FROM (SELECT page.*, coalesce(page.payload, p.data) AS data,
                            sum(coalesce(octet_length(page.payload), octet_length(p.data), 0)
                                + CASE page.kind WHEN 'AttributesUpserted' THEN octet_length(page.attrs) ELSE 0 END)
                                OVER (ORDER BY page.seq) AS bytes
                       FROM (SELECT * FROM events WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3) page
                       LEFT JOIN payloads p ON p.run_id = $1 AND p.hash = page.payload_hash) e
              WHERE e.bytes <= $4 OR e.seq = $2 + 1
              ORDER BY e.seq",
        )
        .bind(run.uuid())
        .bind(i64::try_from(after).unwrap_or(i64::MAX - 1))
        .bind(limit_of(limit))
        .bind(limit_of(PAGE_BYTES_MAX))
        .fetch_all(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        rows.iter().map(|row| event(run, row)).collect()
    }

    async fn read_heads(&self, runs: &[(RunId, Seq)]) -> Vec<Result<Head, Error>> {
        match self.heads(runs).await {
            Ok(heads) => heads,
            Err(error) => runs.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn now(&self) -> Result<Timestamp, Error> {
        let now: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()")
            .fetch_one(&self.pool)
            .in_time(self.answer_limit)
            .await
            .map_err(before)?;
        Ok(from_db(now))
    }
}

fn namespace(row: &PgRow) -> Result<Namespace, Error> {
    let read = || -> Result<Namespace, sqlx::Error> {
        Ok(Namespace {
            name: row.try_get(0)?,
            description: row.try_get(1)?,
            created_at: from_db(row.try_get(2)?),
            settings: NamespaceSettings::default(),
        })
    };
    let namespace = read().map_err(before)?;
    let settings = NamespaceSettings::from_text(&namespace.name, row.try_get(3).map_err(before)?)?;
    Ok(Namespace { settings, ..namespace })
}

#[async_trait]
impl Catalog for PostgresStore {
    async fn get_run(&self, run: RunId) -> Result<Option<RunRecord>, Error> {
        let row = sqlx::query(concat!(
            "SELECT ",
            run_columns!(),
            ", (SELECT max(seq) FROM events e WHERE e.run_id = $1) FROM runs r WHERE r.run_id = $1"
        ))
        .bind(run.uuid())
        .fetch_optional(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        let Some(row) = row else { return Ok(None) };
        let tail: Option<i64> = row.try_get(14).map_err(before)?;
        let tail_seq = tail.and_then(|t| u64::try_from(t).ok()).unwrap_or(0);
        Ok(Some(RunRecord { row: run_row(&row)?, tail_seq }))
    }

    async fn find_start(
        &self,
        namespace: &str,
        workflow_id: &str,
        request_id: &str,
    ) -> Result<StartRecord, Error> {
        let row = sqlx::query(
            "SELECT r.run_id, r.status, s.run_id, s.body_hash
               FROM (SELECT 1) one
               LEFT JOIN workflow_ids w ON w.namespace = $1 AND w.workflow_id = $2
               LEFT JOIN runs r ON r.run_id = w.run_id
               LEFT JOIN start_requests s ON s.namespace = $1 AND s.workflow_id = $2 AND s.request_id = $3",
        )
        .bind(namespace)
        .bind(workflow_id)
        .bind(request_id)
        .fetch_one(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        type Found = (Option<Uuid>, Option<String>, Option<Uuid>, Option<Vec<u8>>);
        let read = || -> Result<Found, sqlx::Error> {
            Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
        };
        let (run, status, requested, hash) = read().map_err(before)?;
        let status = status.as_deref().and_then(RunStatus::parse);
        let hash = hash.and_then(|h| <[u8; 32]>::try_from(h).ok());
        Ok(StartRecord {
            current: run.zip(status).map(|(run, status)| (RunId::from_uuid(run), status)),
            request: requested.zip(hash).map(|(run, hash)| (RunId::from_uuid(run), hash)),
        })
    }

    async fn list_runs(
        &self,
        filter: &RunFilter,
        page: Option<PageToken>,
        limit: usize,
    ) -> Result<Vec<RunRow>, Error> {
        if filter.waiting.is_none() && !filter.attributes.is_empty() {
            return attributes::list(self, run_columns!(), filter, page, limit_of(limit)).await;
        }
        if let Some(waiting) = &filter.waiting {
            return builds::waiting(self, &waiting.tasks, filter, page, limit).await;
        }
        if let Some(parent) = filter.parent {
            return outbox::children(self, parent, filter, page, limit).await;
        }
        let statuses: Vec<&str> = filter.statuses.iter().map(|s| s.as_str()).collect();
        // Every run of a workflow id was started by a request for it; `runs` has no index of its own for that.
        let text = match &filter.workflow_id {
            None => concat!("SELECT ", run_columns!(), list_tail!("$3::text IS NULL")),
            Some(_) => concat!(
                "SELECT ",
                run_columns!(),
                list_tail!(
                    "r.workflow_id = $3 AND r.run_id IN (SELECT q.run_id FROM start_requests q \
                      WHERE q.namespace = $1 AND q.workflow_id = $3)"
                )
            ),
        };
        let rows = sqlx::query(text)
            .bind(&filter.namespace)
            .bind(page.map(|p| p.0.uuid()))
            .bind(&filter.workflow_id)
            .bind(&filter.workflow_type)
            .bind(statuses)
            .bind(limit_of(limit))
            .fetch_all(&self.pool)
            .in_time(self.answer_limit)
            .await
            .map_err(before)?;
        rows.iter().map(run_row).collect()
    }

    async fn closed_among(&self, runs: &[RunId]) -> Result<Vec<RunId>, Error> {
        let runs: Vec<Uuid> = runs.iter().map(|r| r.uuid()).collect();
        let closed: Vec<Uuid> = sqlx::query_scalar(
            "SELECT run_id FROM runs WHERE run_id = ANY($1) AND closed_at IS NOT NULL ORDER BY run_id",
        )
        .bind(runs)
        .fetch_all(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(closed.into_iter().map(RunId::from_uuid).collect())
    }

    async fn run_notes(&self, run: RunId) -> Result<Notes, Error> {
        attributes::notes(self, run).await
    }

    async fn run_tables(&self, run: RunId) -> Result<Option<RunTables>, Error> {
        let Some(record) = self.get_run(run).await? else { return Ok(None) };
        let id = run.uuid();
        let timers: Vec<(String, i64, DateTime<Utc>)> =
            sqlx::query_as("SELECT kind, id, fire_at FROM timers WHERE run_id = $1")
                .bind(id)
                .fetch_all(&self.pool)
                .in_time(self.answer_limit)
                .await
                .map_err(before)?;
        let mut timers: Vec<Timer> = timers
            .into_iter()
            .map(|(kind, id, fire_at)| {
                let unknown = || Error::Corrupt(format!("run {run}: unknown timer {kind} {id}"));
                let kind = TimerKind::parse(&kind).ok_or_else(unknown)?;
                let id = u32::try_from(id).map_err(|_| unknown())?;
                Ok(Timer { key: TimerKey { kind, id }, fire_at: from_db(fire_at) })
            })
            .collect::<Result<_, Error>>()?;
        timers.sort_unstable();
        let task: Option<(String, String, String, String)> = sqlx::query_as(
            "SELECT namespace, task_queue, workflow_type, build_id FROM tasks WHERE run_id = $1",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        let wakes: Vec<i64> = sqlx::query_scalar("SELECT seq FROM wakes WHERE run_id = $1 ORDER BY seq")
            .bind(id)
            .fetch_all(&self.pool)
            .in_time(self.answer_limit)
            .await
            .map_err(before)?;
        let doubts = doubts::of_run(self, run).await?;
        let steps = steps::of_run(self, run).await?;
        let attributes = attributes::of_run(self, run).await?;
        let link = self.run_links(&[run]).await?.pop().map(|(_, link)| link);
        let task = task.map(|(namespace, task_queue, workflow_type, build_id)| TaskRow {
            queue: QueueKey { namespace, task_queue },
            workflow_type,
            build_id,
        });
        Ok(Some(RunTables {
            projection: Projection { row: record.row, timers, task, doubts, steps, link, attributes },
            wakes: wakes.into_iter().filter_map(|s| u64::try_from(s).ok()).collect(),
        }))
    }

    async fn list_doubts(
        &self,
        filter: &DoubtFilter,
        after: Option<(RunId, OpId)>,
        limit: usize,
    ) -> Result<Vec<DoubtRecord>, Error> {
        doubts::list(self, filter, after, limit_of(limit)).await
    }

    async fn count_doubts(&self) -> Result<u64, Error> {
        doubts::count(self).await
    }

    async fn create_namespace(&self, name: &str, description: &str) -> Result<bool, Error> {
        let done = sqlx::query(
            "INSERT INTO namespaces (name, description, created_at) VALUES ($1, $2, clock_timestamp())
             ON CONFLICT DO NOTHING",
        )
        .bind(name)
        .bind(description)
        .execute(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(done.rows_affected() > 0)
    }

    async fn get_namespace(&self, name: &str) -> Result<Option<Namespace>, Error> {
        let row =
            sqlx::query("SELECT name, description, created_at, settings FROM namespaces WHERE name = $1")
                .bind(name)
                .fetch_optional(&self.pool)
                .in_time(self.answer_limit)
                .await
                .map_err(before)?;
        row.as_ref().map(namespace).transpose()
    }

    async fn list_namespaces(&self, after: &str, limit: usize) -> Result<Vec<Namespace>, Error> {
        let rows = sqlx::query(
            "SELECT name, description, created_at, settings FROM namespaces WHERE name COLLATE \"C\" > $1
              ORDER BY name COLLATE \"C\" LIMIT $2",
        )
        .bind(after)
        .bind(limit_of(limit))
        .fetch_all(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        rows.iter().map(namespace).collect()
    }
}
