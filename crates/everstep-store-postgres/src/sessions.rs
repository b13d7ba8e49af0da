//! Leases: each change is a compare-and-set on one row, by the database's clock.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use everstep_core::{Duration, RunId, SessionId, Timestamp};
use everstep_store::{Error, SessionRow, Sessions};
use uuid::Uuid;

use crate::PostgresStore;
use crate::connect::InTime as _;
use crate::error::before;
use crate::rows::from_db;

pub(crate) fn micros(d: Duration) -> i64 {
    i64::try_from(d.as_micros()).unwrap_or(i64::MAX)
}

#[async_trait]
impl Sessions for PostgresStore {
    async fn open_session(&self, session: &SessionRow) -> Result<Option<Timestamp>, Error> {
        let until: Option<DateTime<Utc>> = sqlx::query_scalar(
            "INSERT INTO sessions AS s (session_id, node_id, namespace, identity, build_id, serves, opened_at, lease_until)
             VALUES ($1, $2, $3, $4, $5, $7, clock_timestamp(), clock_timestamp() + $6 * interval '1 microsecond')
             ON CONFLICT (session_id) DO UPDATE
                SET node_id = excluded.node_id, identity = excluded.identity,
                    build_id = excluded.build_id, serves = excluded.serves, lease_until = excluded.lease_until
              WHERE s.closed_at IS NULL AND s.namespace = excluded.namespace
             RETURNING lease_until",
        )
        .bind(session.session_id.uuid())
        .bind(session.node_id.uuid())
        .bind(&session.namespace)
        .bind(&session.identity)
        .bind(&session.build_id)
        .bind(micros(session.lease))
        .bind(serde_json::json!(session.serves).to_string())
        .fetch_optional(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(until.map(from_db))
    }

    async fn renew_session(&self, session: SessionId, lease: Duration) -> Result<Option<Timestamp>, Error> {
        let until: Option<DateTime<Utc>> = sqlx::query_scalar(
            "UPDATE sessions SET lease_until = clock_timestamp() + $2 * interval '1 microsecond'
              WHERE session_id = $1 AND closed_at IS NULL RETURNING lease_until",
        )
        .bind(session.uuid())
        .bind(micros(lease))
        .fetch_optional(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(until.map(from_db))
    }

    async fn close_session(&self, session: SessionId) -> Result<bool, Error> {
        let done = sqlx::query(
            "UPDATE sessions SET closed_at = clock_timestamp() WHERE session_id = $1 AND closed_at IS NULL",
        )
        .bind(session.uuid())
        .execute(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(done.rows_affected() > 0)
    }

    async fn close_expired_sessions(&self, limit: usize) -> Result<Vec<SessionId>, Error> {
        let closed: Vec<Uuid> = sqlx::query_scalar(
            "UPDATE sessions SET closed_at = clock_timestamp()
              WHERE closed_at IS NULL AND lease_until < clock_timestamp()
                AND session_id IN (SELECT session_id FROM sessions
                                    WHERE closed_at IS NULL AND lease_until < clock_timestamp()
                                    ORDER BY session_id LIMIT $1 FOR UPDATE SKIP LOCKED)
             RETURNING session_id",
        )
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(closed.into_iter().map(SessionId::from_uuid).collect())
    }

    async fn owned_runs(
        &self,
        session: SessionId,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunId>, Error> {
        let runs: Vec<Uuid> = sqlx::query_scalar(
            "SELECT run_id FROM runs WHERE owner = $1 AND closed_at IS NULL AND ($2::uuid IS NULL OR run_id > $2) ORDER BY run_id LIMIT $3",
        )
        .bind(session.uuid())
        .bind(after.map(|r| r.uuid()))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(runs.into_iter().map(RunId::from_uuid).collect())
    }
}
