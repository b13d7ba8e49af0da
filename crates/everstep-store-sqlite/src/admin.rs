//! Administrative changes, each with its request in one transaction.

use std::collections::BTreeMap;

use async_trait::async_trait;
use everstep_core::{AttributeType, Timestamp};
use everstep_store::{
    Admin, AdminRequest, Administered, Change, Error, NamespaceChange, NamespaceSettings, REQUESTS_KEPT,
    stored_attribute, to_declare,
};
use sqlx::{Row, SqliteConnection};

use crate::SqliteStore;
use crate::error::before_commit;
use crate::{builds, queues};

/// What the database said, or that it holds what nobody writes.
type Made = Result<Result<Administered, Error>, sqlx::Error>;

#[async_trait]
impl Admin for SqliteStore {
    async fn administer(
        &self,
        change: &Change,
        request: Option<&AdminRequest>,
    ) -> Result<Administered, Error> {
        let (change, request, now) = (change.clone(), request.cloned(), self.inner.clock.now());
        self.writer()?.transact(move |connection| Box::pin(once(connection, change, request, now))).await?
    }

    async fn search_attributes(&self, namespace: &str) -> Result<BTreeMap<String, AttributeType>, Error> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT name, type FROM search_attributes WHERE namespace = ?")
                .bind(namespace)
                .fetch_all(self.readers())
                .await
                .map_err(|e| before_commit(&e))?;
        rows.into_iter().map(stored_attribute).collect()
    }
}

/// A request is noted last, so that what is refused leaves nothing behind; nobody else writes meanwhile.
async fn once(
    connection: &mut SqliteConnection,
    change: Change,
    request: Option<AdminRequest>,
    now: Timestamp,
) -> Made {
    if let Some(request) = &request
        && let Some(repeat) = repeated(connection, &change, request, now).await?
    {
        return Ok(Ok(repeat));
    }
    let made = make(connection, &change, now).await?;
    if let (Some(AdminRequest { request_id, body_hash }), Ok(Administered::Done)) = (&request, &made) {
        sqlx::query(
            "INSERT INTO requests (namespace, kind, request_id, body_hash, at) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(change.namespace())
        .bind(change.kind())
        .bind(request_id)
        .bind(&body_hash[..])
        .bind(now.as_micros())
        .execute(connection)
        .await?;
    }
    Ok(made)
}

async fn repeated(
    connection: &mut SqliteConnection,
    change: &Change,
    request: &AdminRequest,
    now: Timestamp,
) -> Result<Option<Administered>, sqlx::Error> {
    let kept = i64::try_from(REQUESTS_KEPT.as_micros()).unwrap_or(i64::MAX);
    sqlx::query("DELETE FROM requests WHERE at <= ?")
        .bind(now.as_micros().saturating_sub(kept))
        .execute(&mut *connection)
        .await?;
    let known: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT body_hash FROM requests WHERE namespace = ? AND kind = ? AND request_id = ?",
    )
    .bind(change.namespace())
    .bind(change.kind())
    .bind(&request.request_id)
    .fetch_optional(connection)
    .await?;
    Ok(known.map(
        |known| {
            if known == request.body_hash { Administered::Again } else { Administered::OtherRequest }
        },
    ))
}

async fn make(connection: &mut SqliteConnection, change: &Change, now: Timestamp) -> Made {
    match change {
        Change::CreateNamespace { name, description } => {
            let done = sqlx::query(
                "INSERT INTO namespaces (name, description, created_at) VALUES (?, ?, ?)
                     ON CONFLICT (name) DO NOTHING",
            )
            .bind(name)
            .bind(description)
            .bind(now.as_micros())
            .execute(connection)
            .await?;
            Ok(Ok(if done.rows_affected() > 0 { Administered::Done } else { Administered::Exists }))
        }
        Change::UpdateNamespace { name, change } => update_namespace(connection, name, change).await,
        Change::AddSearchAttributes { namespace, attributes } => {
            add_attributes(connection, namespace, attributes).await
        }
        Change::SetQueueLimits { queue, limits } => {
            if !is_known(connection, &queue.namespace).await? {
                return Ok(Ok(Administered::NoNamespace));
            }
            queues::set_limits(connection, queue.clone(), *limits, now).await?;
            Ok(Ok(Administered::Done))
        }
        Change::AllowBuild(allowed) => {
            if !is_known(connection, &allowed.queue.namespace).await? {
                return Ok(Ok(Administered::NoNamespace));
            }
            builds::allow(connection, allowed.clone()).await?;
            Ok(Ok(Administered::Done))
        }
    }
}

async fn is_known(connection: &mut SqliteConnection, namespace: &str) -> Result<bool, sqlx::Error> {
    let found = sqlx::query("SELECT 1 FROM namespaces WHERE name = ?")
        .bind(namespace)
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

async fn update_namespace(connection: &mut SqliteConnection, name: &str, change: &NamespaceChange) -> Made {
    let row = sqlx::query("SELECT settings FROM namespaces WHERE name = ?")
        .bind(name)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return Ok(Ok(Administered::NoNamespace)) };
    let settings = match NamespaceSettings::from_text(name, row.try_get(0)?) {
        Ok(settings) => change.applied(&settings),
        Err(damaged) => return Ok(Err(damaged)),
    };
    sqlx::query("UPDATE namespaces SET settings = ?, description = coalesce(?, description) WHERE name = ?")
        .bind(settings.to_text())
        .bind(change.description.as_deref())
        .bind(name)
        .execute(connection)
        .await?;
    Ok(Ok(Administered::Done))
}

async fn add_attributes(
    connection: &mut SqliteConnection,
    namespace: &str,
    attributes: &BTreeMap<String, AttributeType>,
) -> Made {
    if !is_known(connection, namespace).await? {
        return Ok(Ok(Administered::NoNamespace));
    }
    let known: Vec<(String, String)> =
        sqlx::query_as("SELECT name, type FROM search_attributes WHERE namespace = ?")
            .bind(namespace)
            .fetch_all(&mut *connection)
            .await?;
    let known = match known.into_iter().map(stored_attribute).collect() {
        Ok(known) => known,
        Err(damaged) => return Ok(Err(damaged)),
    };
    let new = match to_declare(&known, attributes) {
        Ok(new) => new,
        Err(refused) => return Ok(Ok(refused)),
    };
    for (name, kind) in new {
        sqlx::query("INSERT INTO search_attributes (namespace, name, type) VALUES (?, ?, ?)")
            .bind(namespace)
            .bind(name)
            .bind(kind.as_str())
            .execute(&mut *connection)
            .await?;
    }
    Ok(Ok(Administered::Done))
}
