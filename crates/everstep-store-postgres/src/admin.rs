//! Administrative changes, each with its request in one transaction.

use std::collections::BTreeMap;

use async_trait::async_trait;
use everstep_core::AttributeType;
use everstep_store::{
    Admin, AdminRequest, Administered, Change, Error, NamespaceChange, NamespaceSettings, REQUESTS_KEPT,
    stored_attribute, to_declare,
};
use sqlx::Row;
use sqlx::postgres::PgConnection;

use crate::PostgresStore;
use crate::connect::InTime as _;
use crate::error::{after, before};
use crate::sessions::micros;
use crate::{builds, queues};

#[async_trait]
impl Admin for PostgresStore {
    async fn administer(
        &self,
        change: &Change,
        request: Option<&AdminRequest>,
    ) -> Result<Administered, Error> {
        let (store, change, request) = (self.clone(), change.clone(), request.cloned());
        // In a task of its own: a caller that hangs up leaves no transaction half done.
        let task = tokio::spawn(async move {
            let mut transaction = store.pool.begin().in_time(store.answer_limit).await.map_err(before)?;
            let made = admit_and_make(&mut transaction, &change, request.as_ref());
            let done = made.in_time(store.answer_limit).await.map_err(before)?;
            let done = done?;
            if done == Administered::Done {
                transaction.commit().in_time(store.answer_limit).await.map_err(after)?;
            } else {
                transaction.rollback().in_time(store.answer_limit).await.map_err(before)?;
            }
            Ok(done)
        });
        task.await
            .unwrap_or_else(|e| Err(Error::OutcomeUnknown(format!("the writing task ended early: {e}"))))
    }

    async fn search_attributes(&self, namespace: &str) -> Result<BTreeMap<String, AttributeType>, Error> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT name, type FROM search_attributes WHERE namespace = $1")
                .bind(namespace)
                .fetch_all(&self.pool)
                .in_time(self.answer_limit)
                .await
                .map_err(before)?;
        rows.into_iter().map(stored_attribute).collect()
    }
}

async fn admit_and_make(
    connection: &mut PgConnection,
    change: &Change,
    request: Option<&AdminRequest>,
) -> Result<Result<Administered, Error>, sqlx::Error> {
    if let Some(request) = request
        && let Some(repeat) = admit(connection, change, request).await?
    {
        return Ok(Ok(repeat));
    }
    make(connection, change).await
}

/// Notes the request; what became of it when it is known. Two at one time wait for each other at the key.
async fn admit(
    connection: &mut PgConnection,
    change: &Change,
    request: &AdminRequest,
) -> Result<Option<Administered>, sqlx::Error> {
    let AdminRequest { request_id, body_hash } = request;
    sqlx::query("DELETE FROM requests WHERE at <= clock_timestamp() - $1 * interval '1 microsecond'")
        .bind(micros(REQUESTS_KEPT))
        .execute(&mut *connection)
        .await?;
    let noted = sqlx::query(
        "INSERT INTO requests (namespace, kind, request_id, body_hash, at)
         VALUES ($1, $2, $3, $4, clock_timestamp()) ON CONFLICT DO NOTHING",
    )
    .bind(change.namespace())
    .bind(change.kind())
    .bind(request_id)
    .bind(&body_hash[..])
    .execute(&mut *connection)
    .await?;
    if noted.rows_affected() > 0 {
        return Ok(None);
    }
    let known: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT body_hash FROM requests WHERE namespace = $1 AND kind = $2 AND request_id = $3",
    )
    .bind(change.namespace())
    .bind(change.kind())
    .bind(request_id)
    .fetch_optional(&mut *connection)
    .await?;
    let same = known.is_some_and(|known| known == body_hash);
    Ok(Some(if same { Administered::Again } else { Administered::OtherRequest }))
}

async fn make(
    connection: &mut PgConnection,
    change: &Change,
) -> Result<Result<Administered, Error>, sqlx::Error> {
    match change {
        Change::CreateNamespace { name, description } => {
            let done = sqlx::query(
                "INSERT INTO namespaces (name, description, created_at) VALUES ($1, $2, clock_timestamp())
                 ON CONFLICT DO NOTHING",
            )
            .bind(name)
            .bind(description)
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
            queues::set_limits(connection, queue, *limits).await?;
            Ok(Ok(Administered::Done))
        }
        Change::AllowBuild(allowed) => {
            if !is_known(connection, &allowed.queue.namespace).await? {
                return Ok(Ok(Administered::NoNamespace));
            }
            builds::allow(connection, allowed).await?;
            Ok(Ok(Administered::Done))
        }
    }
}

async fn is_known(connection: &mut PgConnection, namespace: &str) -> Result<bool, sqlx::Error> {
    let found = sqlx::query("SELECT 1 FROM namespaces WHERE name = $1")
        .bind(namespace)
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

async fn update_namespace(
    connection: &mut PgConnection,
    name: &str,
    change: &NamespaceChange,
) -> Result<Result<Administered, Error>, sqlx::Error> {
    let row = sqlx::query("SELECT settings FROM namespaces WHERE name = $1 FOR UPDATE")
        .bind(name)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return Ok(Ok(Administered::NoNamespace)) };
    let settings = match NamespaceSettings::from_text(name, row.try_get(0)?) {
        Ok(settings) => change.applied(&settings),
        Err(damaged) => return Ok(Err(damaged)),
    };
    sqlx::query(
        "UPDATE namespaces SET settings = $2, description = coalesce($3, description) WHERE name = $1",
    )
    .bind(name)
    .bind(settings.to_text())
    .bind(change.description.as_deref())
    .execute(connection)
    .await?;
    Ok(Ok(Administered::Done))
}

async fn add_attributes(
    connection: &mut PgConnection,
    namespace: &str,
    attributes: &BTreeMap<String, AttributeType>,
) -> Result<Result<Administered, Error>, sqlx::Error> {
    // Whoever adds holds the namespace's row, so that two together do not go beyond the limit.
    let found = sqlx::query("SELECT 1 FROM namespaces WHERE name = $1 FOR UPDATE")
        .bind(namespace)
        .fetch_optional(&mut *connection)
        .await?;
    if found.is_none() {
        return Ok(Ok(Administered::NoNamespace));
    }
    let known: Vec<(String, String)> =
        sqlx::query_as("SELECT name, type FROM search_attributes WHERE namespace = $1")
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
    let (names, kinds): (Vec<String>, Vec<&str>) =
        new.into_iter().map(|(name, kind)| (name, kind.as_str())).unzip();
    sqlx::query(
        "INSERT INTO search_attributes (namespace, name, type)
         SELECT $1, s.* FROM unnest($2::text[], $3::text[]) AS s(name, type)",
    )
    .bind(namespace)
    .bind(names)
    .bind(kinds)
    .execute(connection)
    .await?;
    Ok(Ok(Administered::Done))
}
