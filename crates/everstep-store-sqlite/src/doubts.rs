//! Reading attempts in doubt.

use everstep_core::{Doubt, DoubtPolicy, OpId, RunId};
use everstep_store::{DoubtFilter, DoubtRecord, Error};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use uuid::Uuid;

use crate::error::before_commit;
use crate::rows::{get, instant};

pub(crate) async fn list(
    pool: &SqlitePool,
    filter: &DoubtFilter,
    after: Option<(RunId, OpId)>,
    limit: i64,
) -> Result<Vec<DoubtRecord>, Error> {
    let rows = sqlx::query(
        "SELECT d.step_id, d.attempt, d.name, d.policy, d.since, d.run_id, r.workflow_id, r.task_queue
           FROM doubts d JOIN runs r ON r.run_id = d.run_id
          WHERE r.namespace = ?1 AND (?2 IS NULL OR d.run_id = ?2)
            AND (?3 IS NULL OR (d.run_id, d.step_id) > (?3, ?4))
          ORDER BY d.run_id, d.step_id LIMIT ?5",
    )
    .bind(&filter.namespace)
    .bind(filter.run.map(RunId::uuid))
    .bind(after.map(|(run, _)| run.uuid()))
    .bind(after.map(|(_, step)| i64::from(step.0)))
    .bind(limit)
    .fetch_all(pool)
    .await
    .map_err(|e| before_commit(&e))?;
    let record = |row: &SqliteRow| {
        Ok(DoubtRecord {
            run_id: RunId::from_uuid(get::<Uuid>(row, 5)?),
            workflow_id: get(row, 6)?,
            task_queue: get(row, 7)?,
            doubt: doubt(row)?,
        })
    };
    rows.iter().map(record).collect()
}

pub(crate) async fn count(pool: &SqlitePool) -> Result<u64, Error> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM doubts")
        .fetch_one(pool)
        .await
        .map_err(|e| before_commit(&e))?;
    Ok(count.cast_unsigned())
}

/// Of the columns step_id, attempt, name, policy and since.
pub(crate) fn doubt(row: &SqliteRow) -> Result<Doubt, Error> {
    let number = |column: usize| {
        let number: i64 = get(row, column)?;
        u32::try_from(number).map_err(|_| Error::Corrupt(format!("a step in doubt has the number {number}")))
    };
    let policy: String = get(row, 3)?;
    Ok(Doubt {
        step: OpId(number(0)?),
        attempt: number(1)?,
        name: get(row, 2)?,
        policy: DoubtPolicy::parse(&policy)
            .ok_or_else(|| Error::Corrupt(format!("a step in doubt has the policy {policy:?}")))?,
        since: instant(row, 4)?,
    })
}
