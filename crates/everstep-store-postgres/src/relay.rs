//! Questions between nodes: rows of a table without a write-ahead log, which a crash of the database empties.

use async_trait::async_trait;
use bytes::Bytes;
use everstep_core::{AskId, Duration, Payload, QueueKey, RunId};
use everstep_store::{AskAnswer, AskKind, AskOutcome, AskRow, AskState, AskWant, Error, Relay};
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::PostgresStore;
use crate::connect::InTime as _;
use crate::error::before;
use crate::sessions::micros;

fn ask_row(row: &PgRow) -> Result<AskRow, sqlx::Error> {
    Ok(AskRow {
        ask: AskId::from_uuid(row.try_get(0)?),
        run_id: RunId::from_uuid(row.try_get(1)?),
        queue: QueueKey { namespace: row.try_get(2)?, task_queue: row.try_get(3)? },
        workflow_type: row.try_get(4)?,
        build_id: row.try_get(5)?,
        at_least: u64::try_from(row.try_get::<i64, _>(6)?).unwrap_or(0),
        kind: AskKind::parse(row.try_get(11)?).unwrap_or(AskKind::Query),
        name: row.try_get(7)?,
        input: Payload { encoding: row.try_get(8)?, data: Bytes::from(row.try_get::<Vec<u8>, _>(9)?) },
        wait: Duration::from_micros(u64::try_from(row.try_get::<i64, _>(10)?).unwrap_or(0)),
    })
}

fn answer(row: &PgRow) -> Result<AskState, sqlx::Error> {
    let Some(seq) = row.try_get::<Option<i64>, _>(0)? else { return Ok(AskState::Open) };
    let kind: Option<String> = row.try_get(1)?;
    let outcome = match kind {
        Some(kind) => AskOutcome::Refused { kind, message: row.try_get(2)? },
        None => AskOutcome::Value(Payload {
            encoding: row.try_get(3)?,
            data: Bytes::from(row.try_get::<Vec<u8>, _>(4)?),
        }),
    };
    Ok(AskState::Answered(AskAnswer { seq: u64::try_from(seq).unwrap_or(0), outcome }))
}

#[async_trait]
impl Relay for PostgresStore {
    async fn put_ask(&self, ask: &AskRow) -> Result<(), Error> {
        sqlx::query(
            "WITH late AS (DELETE FROM asks WHERE expires_at < statement_timestamp())
             INSERT INTO asks (ask_id, run_id, namespace, task_queue, workflow_type, build_id, at_least, kind, name,
                               encoding, input, put_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $12, $8, $9, $10, clock_timestamp(),
                     clock_timestamp() + $11 * interval '1 microsecond')
             ON CONFLICT DO NOTHING",
        )
        .bind(ask.ask.uuid())
        .bind(ask.run_id.uuid())
        .bind(&ask.queue.namespace)
        .bind(&ask.queue.task_queue)
        .bind(&ask.workflow_type)
        .bind(&ask.build_id)
        .bind(i64::try_from(ask.at_least).unwrap_or(i64::MAX))
        .bind(&ask.name)
        .bind(&ask.input.encoding)
        .bind(&ask.input.data[..])
        .bind(micros(ask.wait))
        .bind(ask.kind.as_str())
        .execute(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(())
    }

    async fn claim_asks(&self, want: &AskWant, claim: Duration, limit: usize) -> Result<Vec<AskRow>, Error> {
        let rows = sqlx::query(
            "WITH open AS (
                 SELECT ask_id FROM asks
                  WHERE namespace = $1 AND task_queue = ANY($2) AND workflow_type = ANY($3) AND seq IS NULL
                    AND kind IN ('query', 'update')
                    AND expires_at > statement_timestamp()
                    AND (claimed_until IS NULL OR claimed_until < statement_timestamp())
                  ORDER BY put_at LIMIT $4 FOR UPDATE SKIP LOCKED)
             UPDATE asks a SET claimed_until = clock_timestamp() + $5 * interval '1 microsecond'
              WHERE a.ask_id = ANY (ARRAY(SELECT ask_id FROM open))
             RETURNING a.ask_id, a.run_id, a.namespace, a.task_queue, a.workflow_type, a.build_id, a.at_least, a.name,
                       a.encoding, a.input,
                       (extract(epoch FROM a.expires_at - clock_timestamp()) * 1000000)::bigint,
                       a.kind",
        )
        .bind(&want.namespace)
        .bind(&want.task_queues)
        .bind(&want.workflow_types)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind(micros(claim))
        .fetch_all(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        rows.iter().map(|row| ask_row(row).map_err(before)).collect()
    }

    async fn answer_ask(&self, ask: AskId, answer: &AskAnswer) -> Result<bool, Error> {
        let (kind, message, value) = match &answer.outcome {
            AskOutcome::Value(value) => (None, None, Some(value)),
            AskOutcome::Refused { kind, message } => (Some(kind), Some(message), None),
        };
        let done = sqlx::query(
            "UPDATE asks SET seq = $2, failure_kind = $3, failure_message = $4, answer_encoding = $5, answer = $6
              WHERE ask_id = $1 AND seq IS NULL",
        )
        .bind(ask.uuid())
        .bind(i64::try_from(answer.seq).unwrap_or(i64::MAX))
        .bind(kind)
        .bind(message)
        .bind(value.map(|value| &value.encoding))
        .bind(value.map(|value| &value.data[..]))
        .execute(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(done.rows_affected() > 0)
    }

    async fn look_at_ask(&self, ask: AskId) -> Result<AskState, Error> {
        let row = sqlx::query(
            "SELECT seq, failure_kind, failure_message, answer_encoding, answer FROM asks WHERE ask_id = $1",
        )
        .bind(ask.uuid())
        .fetch_optional(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        row.map_or(Ok(AskState::Absent), |row| answer(&row).map_err(before))
    }

    async fn delete_ask(&self, ask: AskId) -> Result<(), Error> {
        sqlx::query("DELETE FROM asks WHERE ask_id = $1")
            .bind(ask.uuid())
            .execute(&self.pool)
            .in_time(self.answer_limit)
            .await
            .map_err(before)?;
        Ok(())
    }
}
