//! Rows of this schema as the values of the port.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use everstep_core::{Event, RunId, RunRow, RunStatus, SessionId, Timestamp};
use everstep_proto::row::EventRow;
use everstep_store::Error;
use sha2::{Digest, Sha256};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::error::before;

/// Payloads longer than this stand in a table of their own.
pub(crate) const INLINE_BYTES_MAX: usize = 32 * 1024;

pub(crate) fn hash_of(data: &[u8]) -> Vec<u8> {
    Sha256::digest(data).to_vec()
}

pub(crate) fn to_db(at: Timestamp) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(at.as_micros()).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

pub(crate) fn from_db(at: DateTime<Utc>) -> Timestamp {
    Timestamp::from_micros(at.timestamp_micros())
}

/// An event, its payload in place.
pub(crate) fn event(run: RunId, row: &PgRow) -> Result<Event, Error> {
    let corrupt = |text: String| Error::Corrupt(format!("run {run}: {text}"));
    let read = || -> Result<(EventRow, Option<Vec<u8>>), sqlx::Error> {
        let event = EventRow {
            run_id: run.uuid(),
            seq: row.try_get(0)?,
            at_micros: row.try_get::<DateTime<Utc>, _>(1)?.timestamp_micros(),
            epoch: row.try_get(2)?,
            step_id: row.try_get(3)?,
            attempt: row.try_get(4)?,
            command_id: row.try_get(5)?,
            kind: row.try_get(6)?,
            step: row.try_get(7)?,
            actor: row.try_get(8)?,
            attrs: row.try_get(9)?,
            encoding: row.try_get(10)?,
            payload: row.try_get::<Option<Vec<u8>>, _>(11)?.map(Bytes::from),
        };
        Ok((event, row.try_get(12)?))
    };
    let (event, hash) = read().map_err(|e| corrupt(e.to_string()))?;
    if let Some(hash) = hash
        && event.payload.as_deref().is_none_or(|data| hash_of(data) != hash)
    {
        return Err(corrupt(format!("the payload of event {} is missing or damaged", event.seq)));
    }
    event.decode().map_err(|e| corrupt(e.to_string()))
}

/// A run's row.
pub(crate) fn run_row(row: &PgRow) -> Result<RunRow, Error> {
    let read = || -> Result<(RunRow, String), sqlx::Error> {
        let status: String = row.try_get(5)?;
        let closed_at: Option<DateTime<Utc>> = row.try_get(12)?;
        let run = RunRow {
            run_id: RunId::from_uuid(row.try_get(0)?),
            namespace: row.try_get(1)?,
            workflow_id: row.try_get(2)?,
            workflow_type: row.try_get(3)?,
            task_queue: row.try_get(4)?,
            status: RunStatus::Running,
            owner: row.try_get::<Option<Uuid>, _>(6)?.map(SessionId::from_uuid),
            epoch: u32::try_from(row.try_get::<i32, _>(7)?).unwrap_or(0),
            build_id: row.try_get(8)?,
            blocked: row.try_get(9)?,
            cancel_requested: row.try_get(10)?,
            started_at: from_db(row.try_get(11)?),
            closed_at: closed_at.map(from_db),
            last_seq: u64::try_from(row.try_get::<i64, _>(13)?).unwrap_or(0),
        };
        Ok((run, status))
    };
    let (run, status) = read().map_err(before)?;
    let status = RunStatus::parse(&status)
        .ok_or_else(|| Error::Corrupt(format!("run {}: unknown status '{status}'", run.run_id)))?;
    Ok(RunRow { status, ..run })
}
