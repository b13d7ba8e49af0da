//! Search attributes of runs: written, read, and lists that are filtered by them.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use everstep_core::{Attribute, AttributeRows, AttributeType, Finite, Notes, RunId, RunRow, Timestamp};
use everstep_store::{
    AttributeFilter, AttributeRow, AttributeValue, Comparison, Error, PageToken, RunFilter,
};
use sqlx::sqlite::{Sqlite, SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, SqliteConnection};

use crate::error::before_commit;
use crate::projection::write_rows;
use crate::rows::{event, get, run_columns, run_row};
use crate::sql::{ManyRows, Values};

static CLEARED: ManyRows = ManyRows::new("DELETE FROM run_attributes WHERE run_id IN (", "?", ")");
static SET: ManyRows = ManyRows::new(
    "INSERT INTO run_attributes (run_id, name, n, namespace, type, text_value, int_value, number_value,
         time_value) VALUES ",
    "(?,?,?,?,?,?,?,?,?)",
    "",
);

/// Replaces those of the runs.
pub(crate) async fn write(
    connection: &mut SqliteConnection,
    attributes: &BTreeMap<RunId, &AttributeRows>,
) -> Result<(), sqlx::Error> {
    let runs: Vec<RunId> = attributes.keys().copied().collect();
    write_rows(connection, &CLEARED, &runs, |v, run| v.push(run.uuid())).await?;
    let mut rows: Vec<(RunId, &str, AttributeRow)> = Vec::new();
    for (run, of_run) in attributes {
        rows.extend(AttributeRow::all(of_run).into_iter().map(|row| (*run, of_run.namespace.as_str(), row)));
    }
    write_rows(connection, &SET, &rows, bind).await
}

fn bind(values: &mut Values, (run, namespace, row): &(RunId, &str, AttributeRow)) {
    let AttributeRow { name, n, kind, value } = row;
    values.push(run.uuid());
    values.push(name.as_str());
    values.push(*n);
    values.push(*namespace);
    values.push(kind.as_str());
    let (mut text, mut int, mut number, mut time) = (None, None, None, None);
    match value {
        AttributeValue::Text(value) => text = Some(value.as_str()),
        AttributeValue::Int(value) => int = Some(*value),
        AttributeValue::Number(value) => number = Some(value.get()),
        AttributeValue::Time(value) => time = Some(value.as_micros()),
        AttributeValue::None => {}
    }
    values.push(text);
    values.push(int);
    values.push(number);
    values.push(time);
}

/// Of the columns name, n, type and the four values, in order of name and n.
pub(crate) fn collect(run: RunId, rows: &[SqliteRow]) -> Result<BTreeMap<String, Attribute>, Error> {
    let damaged = || Error::Corrupt(format!("run {run} has search attributes that nobody writes"));
    let read = |row: &SqliteRow| {
        let value = if let Some(text) = get(row, 3)? {
            AttributeValue::Text(text)
        } else if let Some(number) = get(row, 4)? {
            AttributeValue::Int(number)
        } else if let Some(number) = get::<Option<f64>>(row, 5)?.and_then(Finite::new) {
            AttributeValue::Number(number)
        } else if let Some(micros) = get(row, 6)? {
            AttributeValue::Time(Timestamp::from_micros(micros))
        } else {
            AttributeValue::None
        };
        let kind = AttributeType::parse(&get::<String>(row, 2)?).ok_or_else(damaged)?;
        Ok(AttributeRow { name: get(row, 0)?, n: get(row, 1)?, kind, value })
    };
    let rows = rows.iter().map(read).collect::<Result<Vec<_>, Error>>()?;
    AttributeRow::collect(rows).ok_or_else(damaged)
}

/// What a run says about itself. The input of its start is none of it, and is not read.
pub(crate) async fn notes(pool: &SqlitePool, run: RunId) -> Result<Notes, Error> {
    let rows = sqlx::query(
        "SELECT seq, epoch, command_id, kind, step, step_id, attempt, at, actor, attrs, NULL, NULL, NULL
           FROM events WHERE run_id = ? AND kind IN (?, ?) ORDER BY seq",
    )
    .bind(run.uuid())
    .bind(Notes::KINDS[0])
    .bind(Notes::KINDS[1])
    .fetch_all(pool)
    .await
    .map_err(|e| before_commit(&e))?;
    let events = rows.iter().map(|row| event(run, row)).collect::<Result<Vec<_>, Error>>()?;
    Ok(Notes::told(&events))
}

/// Runs that match a filter with attributes, newest first.
pub(crate) async fn list(
    pool: &SqlitePool,
    filter: &RunFilter,
    page: Option<PageToken>,
    limit: i64,
) -> Result<Vec<RunRow>, Error> {
    let mut query = list_query(concat!("SELECT ", run_columns!()), filter, page, limit);
    let rows = query.build().fetch_all(pool).await.map_err(|e| before_commit(&e))?;
    rows.iter().map(run_row).collect()
}

/// A filter by a value drives the search where there is one: its index has the runs in order, so that a page costs
/// what it holds. Else what a filter finds is gathered once, and the runs are gone through in order.
fn list_query(head: &str, filter: &RunFilter, page: Option<PageToken>, limit: i64) -> QueryBuilder<Sqlite> {
    let RunFilter { namespace, workflow_id, workflow_type, statuses, parent, attributes, waiting: _ } =
        filter;
    let driver = attributes.iter().position(|filter| filter.op == Comparison::Eq);
    let mut query = QueryBuilder::new(head);
    let id = match driver.map(|index| &attributes[index]) {
        Some(driver) => {
            query.push(" FROM run_attributes d CROSS JOIN runs r ON r.run_id = d.run_id WHERE ");
            push_condition(&mut query, "d", namespace, driver, driver.op);
            query.push(" AND r.namespace = ").push_bind(namespace.clone());
            "d.run_id"
        }
        None => {
            query.push(" FROM runs r WHERE r.namespace = ").push_bind(namespace.clone());
            "r.run_id"
        }
    };
    // One byte string that is greater than every id, so that the index bounds the search.
    let before = page.map_or(vec![0xff; 17], |PageToken(run)| run.as_bytes().to_vec());
    query.push(" AND ").push(id).push(" < ").push_bind(before);
    if let Some(workflow_id) = workflow_id {
        query.push(" AND r.workflow_id = ").push_bind(workflow_id.clone());
    }
    if let Some(parent) = parent {
        query.push(" AND r.run_id IN (SELECT l.run_id FROM run_links l WHERE l.parent_run_id = ");
        query.push_bind(parent.uuid()).push(")");
    }
    if let Some(workflow_type) = workflow_type {
        query.push(" AND r.workflow_type = ").push_bind(workflow_type.clone());
    }
    if !statuses.is_empty() {
        let mut listed = query.push(" AND r.status IN (").separated(", ");
        for status in statuses {
            listed.push_bind(status.as_str());
        }
        query.push(")");
    }
    for (index, attribute) in attributes.iter().enumerate() {
        if Some(index) != driver {
            push_filter(&mut query, namespace, attribute, driver.is_none() && index == 0);
        }
    }
    query.push(" ORDER BY ").push(id).push(" DESC LIMIT ").push_bind(limit);
    query
}

/// One more condition on the run `r`. What is not the value is there, and not as the value.
fn push_filter(query: &mut QueryBuilder<Sqlite>, namespace: &str, filter: &AttributeFilter, gathered: bool) {
    let exists = |query: &mut QueryBuilder<Sqlite>, not: &'static str| {
        query
            .push(" AND ")
            .push(not)
            .push("EXISTS (SELECT 1 FROM run_attributes a WHERE a.run_id = r.run_id AND ");
    };
    if filter.op == Comparison::Ne {
        exists(query, "");
        push_named(query, "a", namespace, filter);
        query.push(")");
        exists(query, "NOT ");
        push_condition(query, "a", namespace, filter, Comparison::Eq);
    } else if gathered {
        query.push(" AND r.run_id IN (SELECT a.run_id FROM run_attributes a WHERE ");
        push_condition(query, "a", namespace, filter, filter.op);
    } else {
        exists(query, "");
        push_condition(query, "a", namespace, filter, filter.op);
    }
    query.push(")");
}

fn push_named(query: &mut QueryBuilder<Sqlite>, table: &str, namespace: &str, filter: &AttributeFilter) {
    query.push(table).push(".namespace = ").push_bind(namespace.to_owned());
    query.push(" AND ").push(table).push(".name = ").push_bind(filter.name.clone());
    query.push(" AND ").push(table).push(".type = ").push_bind(filter.value.kind().as_str());
}

fn push_condition(
    query: &mut QueryBuilder<Sqlite>,
    table: &str,
    namespace: &str,
    filter: &AttributeFilter,
    op: Comparison,
) {
    push_named(query, table, namespace, filter);
    // A list stands for the one keyword to look for.
    for row in AttributeRow::of(&filter.name, &filter.value).into_iter().take(1) {
        query.push(" AND ").push(table).push(".").push(row.value.column());
        query.push(" ").push(op.as_sql()).push(" ");
        match row.value {
            AttributeValue::Text(text) => query.push_bind(text),
            AttributeValue::Int(number) => query.push_bind(number),
            AttributeValue::Number(number) => query.push_bind(number.get()),
            AttributeValue::Time(at) => query.push_bind(at.as_micros()),
            AttributeValue::None => query.push("NULL"),
        };
    }
}
