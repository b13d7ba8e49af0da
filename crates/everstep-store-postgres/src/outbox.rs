//! What runs have to hear of each other, and which runs belong together.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use everstep_core::{Duration, OpId, RunId, RunLink, RunRow, Seq};
use everstep_store::{Error, Outbox, PageToken, RunFilter};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::PostgresStore;
use crate::connect::InTime as _;
use crate::error::before;
use crate::reads::run_columns;
use crate::rows::run_row;

#[async_trait]
impl Outbox for PostgresStore {
    async fn claim_outbox(&self, runs: usize, rows: usize) -> Result<Vec<(RunId, Vec<Seq>)>, Error> {
        // The first row of a run stands for it. Whoever claimed or held the rows meanwhile has changed their time, and
        // the lock is only taken on what is as it was seen.
        let rows = sqlx::query(
            "WITH due AS MATERIALIZED (
                 SELECT d.run_id, f.next_at
                   FROM (SELECT DISTINCT run_id FROM outbox WHERE next_at <= statement_timestamp()) d
                  CROSS JOIN LATERAL (
                        SELECT next_at FROM outbox WHERE run_id = d.run_id ORDER BY seq LIMIT 1) f
                  WHERE f.next_at <= statement_timestamp()
                  ORDER BY 2, 1 LIMIT $1),
             picked AS MATERIALIZED (
                 SELECT o.run_id, o.seq, o.next_at
                   FROM due d
                  CROSS JOIN LATERAL (
                        SELECT run_id, seq, next_at FROM outbox WHERE run_id = d.run_id ORDER BY seq LIMIT $2) o
                  ORDER BY d.next_at, o.run_id, o.seq LIMIT $2),
             held AS MATERIALIZED (
                 SELECT o.run_id, o.seq FROM outbox o
                   JOIN picked p ON p.run_id = o.run_id AND p.seq = o.seq AND p.next_at = o.next_at
                  ORDER BY o.run_id, o.seq FOR UPDATE OF o SKIP LOCKED)
             UPDATE outbox o
                SET tries = o.tries + 1,
                    next_at = clock_timestamp() + least(60, 1 << least(o.tries + 1, 6)) * interval '1 second'
               FROM held h
              WHERE o.run_id = h.run_id AND o.seq = h.seq
             RETURNING o.run_id, o.seq",
        )
        .bind(i64::try_from(runs).unwrap_or(i64::MAX))
        .bind(i64::try_from(rows).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        let mut runs: BTreeMap<RunId, BTreeSet<Seq>> = BTreeMap::new();
        for row in &rows {
            let run = RunId::from_uuid(row.try_get(0).map_err(before)?);
            let seq: i64 = row.try_get(1).map_err(before)?;
            runs.entry(run).or_default().insert(seq.cast_unsigned());
        }
        Ok(runs.into_iter().map(|(run, seqs)| (run, seqs.into_iter().collect())).collect())
    }

    async fn hold_outbox(&self, held: &[(RunId, Seq)], hold: Duration) -> Result<(), Error> {
        let (runs, seqs): (Vec<Uuid>, Vec<i64>) =
            held.iter().map(|(run, seq)| (run.uuid(), seq.cast_signed())).unzip();
        // Whoever has a row locked is deleting or claiming it: there is nothing to wait for.
        sqlx::query(
            "WITH held AS MATERIALIZED (
                 SELECT o.run_id, o.seq FROM outbox o
                   JOIN unnest($1::uuid[], $2::bigint[]) AS h(run_id, seq) ON h.run_id = o.run_id AND h.seq = o.seq
                  WHERE o.next_at < clock_timestamp() + ($3 / 2) * interval '1 microsecond'
                  ORDER BY o.run_id, o.seq FOR UPDATE OF o SKIP LOCKED)
             UPDATE outbox o SET next_at = clock_timestamp() + $3 * interval '1 microsecond'
               FROM held h
              WHERE o.run_id = h.run_id AND o.seq = h.seq",
        )
        .bind(runs)
        .bind(seqs)
        .bind(hold.as_micros().cast_signed())
        .execute(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(())
    }

    async fn delete_outbox(&self, heard: &[(RunId, Seq)]) -> Result<(), Error> {
        let (runs, seqs): (Vec<Uuid>, Vec<i64>) =
            heard.iter().map(|(run, seq)| (run.uuid(), seq.cast_signed())).unzip();
        sqlx::query(
            "DELETE FROM outbox o USING unnest($1::uuid[], $2::bigint[]) AS d(run_id, seq)
              WHERE o.run_id = d.run_id AND o.seq = d.seq",
        )
        .bind(runs)
        .bind(seqs)
        .execute(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(())
    }

    async fn run_links(&self, runs: &[RunId]) -> Result<Vec<(RunId, RunLink)>, Error> {
        let runs: Vec<Uuid> = runs.iter().map(|run| run.uuid()).collect();
        let rows = sqlx::query(
            "SELECT run_id, parent_run_id, parent_op, previous_run_id, first_run_id, successor_run_id, attempt
               FROM run_links WHERE run_id = ANY ($1) ORDER BY run_id",
        )
        .bind(runs)
        .fetch_all(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        rows.iter().map(link).collect()
    }
}

/// Runs that another run's workflow started and that match, newest first.
pub(crate) async fn children(
    store: &PostgresStore,
    parent: RunId,
    filter: &RunFilter,
    page: Option<PageToken>,
    limit: usize,
) -> Result<Vec<RunRow>, Error> {
    let statuses: Vec<&str> = filter.statuses.iter().map(|s| s.as_str()).collect();
    let rows = sqlx::query(concat!(
        "SELECT ",
        run_columns!(),
        " FROM run_links l JOIN runs r ON r.run_id = l.run_id
          WHERE l.parent_run_id = $1 AND r.namespace = $2 AND ($3::uuid IS NULL OR l.run_id < $3)
            AND ($4::text IS NULL OR r.workflow_id = $4) AND ($5::text IS NULL OR r.workflow_type = $5)
            AND (cardinality($6::text[]) = 0 OR r.status = ANY ($6))
          ORDER BY l.run_id DESC LIMIT $7"
    ))
    .bind(parent.uuid())
    .bind(&filter.namespace)
    .bind(page.map(|PageToken(run)| run.uuid()))
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

fn link(row: &PgRow) -> Result<(RunId, RunLink), Error> {
    let id = |column: usize| -> Result<Option<RunId>, Error> {
        Ok(row.try_get::<Option<Uuid>, _>(column).map_err(before)?.map(RunId::from_uuid))
    };
    let number = |number: i64| {
        u32::try_from(number).map_err(|_| Error::Corrupt(format!("a link of a run has the number {number}")))
    };
    let op: Option<i64> = row.try_get(2).map_err(before)?;
    let parent = match (id(1)?, op) {
        (Some(run), Some(op)) => Some((run, OpId(number(op)?))),
        _ => None,
    };
    let (previous, first, successor) = (id(3)?, id(4)?, id(5)?);
    let attempt = number(row.try_get(6).map_err(before)?)?;
    let run = RunId::from_uuid(row.try_get(0).map_err(before)?);
    Ok((run, RunLink { parent, previous, first, successor, attempt }))
}
