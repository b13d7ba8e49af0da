//! Leases.

use async_trait::async_trait;
use everstep_core::{Duration, RunId, SessionId, Timestamp};
use everstep_store::{Error, SessionRow, Sessions};
use sqlx::Row;
use uuid::Uuid;

use crate::SqliteStore;
use crate::error::before_commit;
use crate::rows::{limit as sql_limit, run_id};

#[async_trait]
impl Sessions for SqliteStore {
    async fn open_session(&self, session: &SessionRow) -> Result<Option<Timestamp>, Error> {
        let session = session.clone();
        let now = self.inner.clock.now();
        let lease_until = now.after(session.lease);
        let opened = self
            .writer()?
            .transact(move |connection| {
                Box::pin(async move {
                    let done = sqlx::query(
                        "INSERT INTO sessions (session_id, node_id, namespace, identity, build_id, lease_until,
                                               opened_at, serves) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
                             ON CONFLICT (session_id) DO UPDATE SET
                                 node_id = excluded.node_id, identity = excluded.identity,
                                 build_id = excluded.build_id, serves = excluded.serves,
                                 lease_until = excluded.lease_until
                               WHERE closed_at IS NULL AND namespace = excluded.namespace",
                    )
                    .bind(session.session_id.uuid())
                    .bind(session.node_id.uuid())
                    .bind(session.namespace)
                    .bind(session.identity)
                    .bind(session.build_id)
                    .bind(lease_until.as_micros())
                    .bind(now.as_micros())
                    .bind(serde_json::json!(session.serves).to_string())
                    .execute(connection)
                    .await?;
                    Ok(done.rows_affected() > 0)
                })
            })
            .await?;
        Ok(opened.then_some(lease_until))
    }

    async fn renew_session(&self, session: SessionId, lease: Duration) -> Result<Option<Timestamp>, Error> {
        let lease_until = self.inner.clock.now().after(lease);
        let renewed = self
            .writer()?
            .transact(move |connection| {
                Box::pin(async move {
                    let done = sqlx::query(
                        "UPDATE sessions SET lease_until = ? WHERE session_id = ? AND closed_at IS NULL",
                    )
                    .bind(lease_until.as_micros())
                    .bind(session.uuid())
                    .execute(connection)
                    .await?;
                    Ok(done.rows_affected() > 0)
                })
            })
            .await?;
        Ok(renewed.then_some(lease_until))
    }

    async fn close_session(&self, session: SessionId) -> Result<bool, Error> {
        let now = self.inner.clock.now();
        self.writer()?
            .transact(move |connection| {
                Box::pin(async move {
                    let done = sqlx::query(
                        "UPDATE sessions SET closed_at = ? WHERE session_id = ? AND closed_at IS NULL",
                    )
                    .bind(now.as_micros())
                    .bind(session.uuid())
                    .execute(connection)
                    .await?;
                    Ok(done.rows_affected() > 0)
                })
            })
            .await
    }

    async fn close_expired_sessions(&self, limit: usize) -> Result<Vec<SessionId>, Error> {
        let now = self.inner.clock.now();
        self.writer()?
            .transact(move |connection| {
                Box::pin(async move {
                    let rows = sqlx::query(
                        "UPDATE sessions SET closed_at = ?1
                          WHERE session_id IN (SELECT session_id FROM sessions
                                                WHERE closed_at IS NULL AND lease_until < ?1
                                                ORDER BY session_id LIMIT ?2)
                         RETURNING session_id",
                    )
                    .bind(now.as_micros())
                    .bind(sql_limit(limit))
                    .fetch_all(connection)
                    .await?;
                    rows.iter().map(|row| row.try_get::<Uuid, _>(0).map(SessionId::from_uuid)).collect()
                })
            })
            .await
    }

    async fn owned_runs(
        &self,
        session: SessionId,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunId>, Error> {
        let rows = sqlx::query(
            "SELECT run_id FROM runs
              WHERE owner = ? AND run_id > ? AND status IN ('running', 'blocked')
              ORDER BY run_id LIMIT ?",
        )
        .bind(session.uuid())
        .bind(after.map(|run| run.as_bytes().to_vec()).unwrap_or_default())
        .bind(sql_limit(limit))
        .fetch_all(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        rows.iter().map(|row| run_id(row, 0)).collect()
    }
}
