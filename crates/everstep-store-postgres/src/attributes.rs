//! Search attributes of runs, read, and lists that are filtered by them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use everstep_core::{Attribute, AttributeType, Finite, Notes, RunId, RunRow};
use everstep_store::{
    AttributeFilter, AttributeRow, AttributeValue, Comparison, Error, PageToken, RunFilter,
};
use sqlx::postgres::{PgRow, Postgres};
use sqlx::{QueryBuilder, Row};

use crate::PostgresStore;
use crate::connect::InTime as _;
use crate::error::before;
use crate::rows::{event, from_db, run_row, to_db};

/// Those of one run.
pub(crate) async fn of_run(store: &PostgresStore, run: RunId) -> Result<BTreeMap<String, Attribute>, Error> {
    let rows = sqlx::query(
        "SELECT name, n, type, text_value, int_value, number_value, time_value
           FROM run_attributes WHERE run_id = $1 ORDER BY name, n",
    )
    .bind(run.uuid())
    .fetch_all(&store.pool)
    .in_time(store.answer_limit)
    .await
    .map_err(before)?;
    let damaged = || Error::Corrupt(format!("run {run} has search attributes that nobody writes"));
    let read = |row: &PgRow| -> Result<Option<AttributeRow>, sqlx::Error> {
        let number: Option<f64> = row.try_get(5)?;
        let at: Option<DateTime<Utc>> = row.try_get(6)?;
        let value = if let Some(text) = row.try_get(3)? {
            AttributeValue::Text(text)
        } else if let Some(number) = row.try_get(4)? {
            AttributeValue::Int(number)
        } else if let Some(number) = number.and_then(Finite::new) {
            AttributeValue::Number(number)
        } else if let Some(at) = at {
            AttributeValue::Time(from_db(at))
        } else {
            AttributeValue::None
        };
        let kind = AttributeType::parse(row.try_get(2)?);
        Ok(kind.map(|kind| AttributeRow { name: String::new(), n: 0, kind, value }))
    };
    let mut read_rows = Vec::with_capacity(rows.len());
    for row in &rows {
        let (name, n) = (row.try_get(0).map_err(before)?, row.try_get(1).map_err(before)?);
        let rest = read(row).map_err(before)?.ok_or_else(damaged)?;
        read_rows.push(AttributeRow { name, n, ..rest });
    }
    AttributeRow::collect(read_rows).ok_or_else(damaged)
}

/// What a run says about itself. The input of its start is none of it, and is not read.
pub(crate) async fn notes(store: &PostgresStore, run: RunId) -> Result<Notes, Error> {
    let rows = sqlx::query(
        "SELECT seq, at, epoch, step_id, attempt, command_id, kind, step, actor, attrs, NULL::text, NULL::bytea,
                NULL::bytea
           FROM events WHERE run_id = $1 AND kind = ANY($2) ORDER BY seq",
    )
    .bind(run.uuid())
    .bind(&Notes::KINDS[..])
    .fetch_all(&store.pool)
    .in_time(store.answer_limit)
    .await
    .map_err(before)?;
    let events = rows.iter().map(|row| event(run, row)).collect::<Result<Vec<_>, Error>>()?;
    Ok(Notes::told(&events))
}

/// Runs that match a filter with attributes, newest first. `columns` are those that [`run_row`] reads.
pub(crate) async fn list(
    store: &PostgresStore,
    columns: &str,
    filter: &RunFilter,
    page: Option<PageToken>,
    limit: i64,
) -> Result<Vec<RunRow>, Error> {
    let mut query = list_query(columns, filter, page, limit);
    let rows = query.build().fetch_all(&store.pool).in_time(store.answer_limit).await.map_err(before)?;
    rows.iter().map(run_row).collect()
}

fn list_query(
    columns: &str,
    filter: &RunFilter,
    page: Option<PageToken>,
    limit: i64,
) -> QueryBuilder<Postgres> {
    let RunFilter { namespace, workflow_id, workflow_type, statuses, parent, attributes, waiting: _ } =
        filter;
    let mut query = QueryBuilder::new("SELECT ");
    query.push(columns).push(" FROM runs r WHERE r.namespace = ").push_bind(namespace.clone());
    if let Some(page) = page {
        query.push(" AND r.run_id < ").push_bind(page.0.uuid());
    }
    if let Some(workflow_id) = workflow_id {
        query.push(" AND r.workflow_id = ").push_bind(workflow_id.clone());
        query.push(" AND r.run_id IN (SELECT q.run_id FROM start_requests q WHERE q.namespace = ");
        query.push_bind(namespace.clone()).push(" AND q.workflow_id = ").push_bind(workflow_id.clone());
        query.push(")");
    }
    if let Some(parent) = parent {
        query.push(" AND r.run_id IN (SELECT l.run_id FROM run_links l WHERE l.parent_run_id = ");
        query.push_bind(parent.uuid()).push(")");
    }
    if let Some(workflow_type) = workflow_type {
        query.push(" AND r.workflow_type = ").push_bind(workflow_type.clone());
    }
    if !statuses.is_empty() {
        let statuses: Vec<&'static str> = statuses.iter().map(|s| s.as_str()).collect();
        query.push(" AND r.status = ANY(").push_bind(statuses).push(")");
    }
    for attribute in attributes {
        push_filter(&mut query, namespace, attribute);
    }
    query.push(" ORDER BY r.run_id DESC LIMIT ").push_bind(limit);
    query
}

/// What is not the value is there, and not as the value.
fn push_filter(query: &mut QueryBuilder<Postgres>, namespace: &str, filter: &AttributeFilter) {
    let AttributeFilter { name, op, value } = filter;
    let kind = value.kind().as_str();
    let exists = |query: &mut QueryBuilder<Postgres>| {
        query.push(" (SELECT 1 FROM run_attributes a WHERE a.run_id = r.run_id AND a.namespace = ");
        query.push_bind(namespace.to_owned()).push(" AND a.name = ").push_bind(name.clone());
        query.push(" AND a.type = ").push_bind(kind);
    };
    if *op == Comparison::Ne {
        query.push(" AND EXISTS");
        exists(query);
        query.push(") AND NOT EXISTS");
    } else {
        query.push(" AND EXISTS");
    }
    exists(query);
    let op = if *op == Comparison::Ne { Comparison::Eq } else { *op };
    // A list stands for the one keyword to look for.
    for row in AttributeRow::of(name, value).into_iter().take(1) {
        query.push(" AND a.").push(row.value.column()).push(" ").push(op.as_sql()).push(" ");
        match row.value {
            AttributeValue::Text(text) => query.push_bind(text),
            AttributeValue::Int(number) => query.push_bind(number),
            AttributeValue::Number(number) => query.push_bind(number.get()),
            AttributeValue::Time(at) => query.push_bind(to_db(at)),
            AttributeValue::None => query.push("NULL"),
        };
    }
    query.push(")");
}
