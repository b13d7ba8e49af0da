//! Rows of this schema as the values of the port.

use bytes::Bytes;
use everstep_core::{Event, RunId, RunRow, RunStatus, SessionId, Timer, TimerKey, TimerKind, Timestamp};
use everstep_proto::row::EventRow;
use everstep_store::Error;
use sha2::{Digest, Sha256};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use crate::error::{before_commit, unreadable};

/// Payloads longer than this stand in a table of their own.
pub(crate) const INLINE_BYTES_MAX: usize = 32 * 1024;

/// What a stored payload is found by.
pub(crate) type Hash = [u8; 32];

pub(crate) fn hash_of(data: &[u8]) -> Hash {
    Sha256::digest(data).into()
}

/// The columns that [`event`] reads, of `events e LEFT JOIN payloads p`.
macro_rules! event_columns {
    () => {
        "e.seq, e.epoch, e.command_id, e.kind, e.step, e.step_id, e.attempt, e.at, e.actor, e.attrs, \
         e.encoding, coalesce(e.payload, p.data) AS data, e.payload_hash"
    };
}
pub(crate) use event_columns;

/// An event, its payload in place.
pub(crate) fn event(run: RunId, row: &SqliteRow) -> Result<Event, Error> {
    let corrupt = |text: String| Error::Corrupt(format!("run {run}: {text}"));
    let read = || -> Result<(EventRow, Option<Vec<u8>>), sqlx::Error> {
        let event = EventRow {
            run_id: run.uuid(),
            seq: row.try_get(0)?,
            epoch: row.try_get(1)?,
            command_id: row.try_get(2)?,
            kind: row.try_get(3)?,
            step: row.try_get(4)?,
            step_id: row.try_get(5)?,
            attempt: row.try_get(6)?,
            at_micros: row.try_get(7)?,
            actor: row.try_get(8)?,
            attrs: row.try_get(9)?,
            encoding: row.try_get(10)?,
            payload: row.try_get::<Option<Vec<u8>>, _>(11)?.map(Bytes::from),
        };
        Ok((event, row.try_get(12)?))
    };
    let (event, hash) = read().map_err(|e| corrupt(e.to_string()))?;
    if let Some(hash) = hash {
        let data = event.payload.as_deref();
        if data.is_none_or(|data| hash_of(data)[..] != hash[..]) {
            return Err(corrupt(format!("the payload of event {} is missing or damaged", event.seq)));
        }
    }
    event.decode().map_err(|e| unreadable(run, &e))
}

/// The columns that [`run_row`] reads, in its order, of `runs r`.
macro_rules! run_columns {
    () => {
        "r.run_id, r.namespace, r.workflow_id, r.workflow_type, r.task_queue, r.status, r.owner, r.epoch, \
         r.build_id, r.blocked, r.cancel_requested, r.started_at, r.closed_at, r.last_seq"
    };
}
pub(crate) use run_columns;

/// How a run stands.
pub(crate) fn run_row(row: &SqliteRow) -> Result<RunRow, Error> {
    let status: String = get(row, 5)?;
    Ok(RunRow {
        run_id: run_id(row, 0)?,
        namespace: get(row, 1)?,
        workflow_id: get(row, 2)?,
        workflow_type: get(row, 3)?,
        task_queue: get(row, 4)?,
        status: run_status(&status)?,
        owner: get::<Option<Uuid>>(row, 6)?.map(SessionId::from_uuid),
        epoch: get::<i32>(row, 7)?.cast_unsigned(),
        build_id: get(row, 8)?,
        blocked: get(row, 9)?,
        cancel_requested: get(row, 10)?,
        started_at: instant(row, 11)?,
        closed_at: get::<Option<i64>>(row, 12)?.map(Timestamp::from_micros),
        last_seq: get::<i64>(row, 13)?.cast_unsigned(),
    })
}

pub(crate) fn run_status(text: &str) -> Result<RunStatus, Error> {
    RunStatus::parse(text).ok_or_else(|| Error::Corrupt(format!("a run has the status {text:?}")))
}

/// A timer, of the columns kind, id and fire_at from `first` on.
pub(crate) fn timer(row: &SqliteRow, first: usize) -> Result<Timer, Error> {
    Ok(Timer { key: timer_key(row, first)?, fire_at: instant(row, first + 2)? })
}

/// A timer's key, of the columns kind and id from `first` on.
pub(crate) fn timer_key(row: &SqliteRow, first: usize) -> Result<TimerKey, Error> {
    let (kind, id): (String, i64) = (get(row, first)?, get(row, first + 1)?);
    let key = TimerKind::parse(&kind).zip(u32::try_from(id).ok());
    let (kind, id) = key.ok_or_else(|| Error::Corrupt(format!("a timer has the key {kind:?} {id}")))?;
    Ok(TimerKey { kind, id })
}

pub(crate) fn run_id(row: &SqliteRow, column: usize) -> Result<RunId, Error> {
    get(row, column).map(RunId::from_uuid)
}

pub(crate) fn session_id(row: &SqliteRow, column: usize) -> Result<SessionId, Error> {
    get(row, column).map(SessionId::from_uuid)
}

pub(crate) fn instant(row: &SqliteRow, column: usize) -> Result<Timestamp, Error> {
    get(row, column).map(Timestamp::from_micros)
}

/// One column; what cannot be read as its type is corrupt.
pub(crate) fn get<'r, T>(row: &'r SqliteRow, column: usize) -> Result<T, Error>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(column).map_err(|e| before_commit(&e))
}

/// Ids as a JSON array of hexadecimal strings, for `unhex(value) … json_each(?)`.
pub(crate) fn id_list(ids: impl Iterator<Item = Uuid>) -> String {
    let quoted: Vec<String> = ids.map(|id| format!("\"{}\"", id.simple())).collect();
    format!("[{}]", quoted.join(","))
}

/// A limit as SQL wants it.
pub(crate) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
