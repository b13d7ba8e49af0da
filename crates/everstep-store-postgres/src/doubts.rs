//! Reading attempts in doubt.

use chrono::{DateTime, Utc};
use everstep_core::{Doubt, DoubtPolicy, OpId, RunId};
use everstep_store::{DoubtFilter, DoubtRecord, Error};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::PostgresStore;
use crate::connect::InTime as _;
use crate::error::before;
use crate::rows::from_db;

/// Those of one run, sorted.
pub(crate) async fn of_run(store: &PostgresStore, run: RunId) -> Result<Vec<Doubt>, Error> {
    let rows = sqlx::query(
        "SELECT step_id, attempt, name, policy, since FROM doubts WHERE run_id = $1 ORDER BY step_id",
    )
    .bind(run.uuid())
    .fetch_all(&store.pool)
    .in_time(store.answer_limit)
    .await
    .map_err(before)?;
    rows.iter().map(doubt).collect()
}

pub(crate) async fn list(
    store: &PostgresStore,
    filter: &DoubtFilter,
    after: Option<(RunId, OpId)>,
    limit: i64,
) -> Result<Vec<DoubtRecord>, Error> {
    let rows = sqlx::query(
        "SELECT d.step_id, d.attempt, d.name, d.policy, d.since, d.run_id, r.workflow_id, r.task_queue
           FROM doubts d JOIN runs r ON r.run_id = d.run_id
          WHERE r.namespace = $1 AND ($2::uuid IS NULL OR d.run_id = $2)
            AND ($3::uuid IS NULL OR (d.run_id, d.step_id) > ($3, $4::bigint))
          ORDER BY d.run_id, d.step_id LIMIT $5",
    )
    .bind(&filter.namespace)
    .bind(filter.run.map(RunId::uuid))
    .bind(after.map(|(run, _)| run.uuid()))
    .bind(after.map(|(_, step)| i64::from(step.0)))
    .bind(limit)
    .fetch_all(&store.pool)
    .in_time(store.answer_limit)
    .await
    .map_err(before)?;
    let record = |row: &PgRow| {
        Ok(DoubtRecord {
            run_id: RunId::from_uuid(row.try_get::<Uuid, _>(5).map_err(before)?),
            workflow_id: row.try_get(6).map_err(before)?,
            task_queue: row.try_get(7).map_err(before)?,
            doubt: doubt(row)?,
        })
    };
    rows.iter().map(record).collect()
}

pub(crate) async fn count(store: &PostgresStore) -> Result<u64, Error> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM doubts")
        .fetch_one(&store.pool)
        .in_time(store.answer_limit)
        .await
        .map_err(before)?;
    Ok(count.cast_unsigned())
}

/// Of the columns step_id, attempt, name, policy and since.
fn doubt(row: &PgRow) -> Result<Doubt, Error> {
    let number = |column: usize| {
        let number: i64 = row.try_get(column).map_err(before)?;
        u32::try_from(number).map_err(|_| Error::Corrupt(format!("a step in doubt has the number {number}")))
    };
    let policy: String = row.try_get(3).map_err(before)?;
    let since: DateTime<Utc> = row.try_get(4).map_err(before)?;
    Ok(Doubt {
        step: OpId(number(0)?),
        attempt: number(1)?,
        name: row.try_get(2).map_err(before)?,
        policy: DoubtPolicy::parse(&policy)
            .ok_or_else(|| Error::Corrupt(format!("a step in doubt has the policy {policy:?}")))?,
        since: from_db(since),
    })
}
