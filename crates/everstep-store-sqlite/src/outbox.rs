//! What runs have to hear of each other, and which runs belong together.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use everstep_core::{Duration, OpId, RunId, RunLink, RunRow, Seq, Timestamp, Write};
use everstep_store::{Error, Outbox, PageToken, RunFilter};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use crate::SqliteStore;
use crate::error::before_commit;
use crate::projection::{bind_seq, write_rows};
use crate::rows::{get, id_list, limit as sql_limit, run_columns, run_id, run_row};
use crate::sql::ManyRows;

/// The node that wrote an event has this long to tell of it.
const GRACE: Duration = Duration::from_secs(1);

static DELETED: ManyRows = ManyRows::new("DELETE FROM outbox WHERE (run_id, seq) IN (VALUES ", "(?,?)", ")");
static SET: ManyRows =
    ManyRows::new("INSERT OR IGNORE INTO outbox (run_id, seq, next_at) VALUES ", "(?,?,?)", "");
static LINKS: ManyRows = ManyRows::new(
    "INSERT OR REPLACE INTO run_links (run_id, parent_run_id, parent_op, previous_run_id, first_run_id,
         successor_run_id, attempt) VALUES ",
    "(?,?,?,?,?,?,?)",
    "",
);

/// What a transaction writes about other runs.
#[derive(Default)]
pub(crate) struct Between<'a> {
    deleted: Vec<(RunId, Seq)>,
    set: Vec<(RunId, Seq)>,
    links: Vec<(RunId, &'a RunLink)>,
}

impl<'a> Between<'a> {
    /// Adds the writes of a run that is not here yet, as far as they are about other runs.
    pub(crate) fn add(&mut self, run: RunId, writes: &'a [Write]) {
        let mut rows: BTreeMap<Seq, bool> = BTreeMap::new();
        let mut link = None;
        for write in writes {
            match write {
                Write::OutboxSet { seq } => drop(rows.insert(*seq, true)),
                Write::OutboxDeleted { seq } => drop(rows.insert(*seq, false)),
                Write::LinkSet(new) => link = Some(&**new),
                _ => {}
            }
        }
        for (seq, set) in rows {
            if set { &mut self.set } else { &mut self.deleted }.push((run, seq));
        }
        self.links.extend(link.map(|link| (run, link)));
    }

    pub(crate) async fn write(&self, c: &mut SqliteConnection, now: Timestamp) -> Result<(), sqlx::Error> {
        write_rows(c, &DELETED, &self.deleted, bind_seq).await?;
        write_rows(c, &SET, &self.set, |v, row| {
            bind_seq(v, row);
            v.push(now.after(GRACE).as_micros());
        })
        .await?;
        write_rows(c, &LINKS, &self.links, |v, (run, link)| {
            let RunLink { parent, previous, first, successor, attempt } = *link;
            let id = |run: &Option<RunId>| run.as_ref().map(|run| run.uuid());
            v.push(run.uuid());
            v.push(parent.map(|(run, _)| run.uuid()));
            v.push(parent.map(|(_, op)| i64::from(op.0)));
            v.push(id(previous));
            v.push(id(first));
            v.push(id(successor));
            v.push(i64::from(*attempt));
        })
        .await
    }
}

#[async_trait]
impl Outbox for SqliteStore {
    async fn claim_outbox(&self, limit: usize) -> Result<Vec<(RunId, Vec<Seq>)>, Error> {
        let now = self.inner.clock.now();
        let rows = self.writer()?.transact(move |connection| Box::pin(claim(connection, now, limit))).await?;
        let mut runs: BTreeMap<RunId, BTreeSet<Seq>> = BTreeMap::new();
        for row in &rows {
            runs.entry(run_id(row, 0)?).or_default().insert(get::<i64>(row, 1)?.cast_unsigned());
        }
        Ok(runs.into_iter().map(|(run, seqs)| (run, seqs.into_iter().collect())).collect())
    }

    async fn delete_outbox(&self, heard: &[(RunId, Seq)]) -> Result<(), Error> {
        let heard = heard.to_vec();
        self.writer()?
            .transact(move |connection| {
                Box::pin(async move { write_rows(connection, &DELETED, &heard, bind_seq).await })
            })
            .await
    }

    async fn count_outbox(&self) -> Result<u64, Error> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox")
            .fetch_one(self.readers())
            .await
            .map_err(|e| before_commit(&e))?;
        Ok(count.cast_unsigned())
    }

    async fn run_links(&self, runs: &[RunId]) -> Result<Vec<(RunId, RunLink)>, Error> {
        let rows = sqlx::query(
            "SELECT run_id, parent_run_id, parent_op, previous_run_id, first_run_id, successor_run_id, attempt
               FROM run_links WHERE run_id IN (SELECT unhex(value) FROM json_each(?)) ORDER BY run_id",
        )
        .bind(id_list(runs.iter().map(|run| run.uuid())))
        .fetch_all(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        rows.iter().map(link).collect()
    }
}

/// Runs that another run's workflow started and that match, newest first. `statuses` is a JSON array.
pub(crate) async fn children(
    store: &SqliteStore,
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
          WHERE l.parent_run_id = ?1 AND r.namespace = ?2 AND (?3 IS NULL OR l.run_id < ?3)
            AND (?4 IS NULL OR r.workflow_id = ?4) AND (?5 IS NULL OR r.workflow_type = ?5)
            AND (?6 = '[]' OR r.status IN (SELECT value FROM json_each(?6)))
          ORDER BY l.run_id DESC LIMIT ?7"
    ))
    .bind(parent.uuid())
    .bind(&filter.namespace)
    .bind(page.map(|PageToken(run)| run.uuid()))
    .bind(&filter.workflow_id)
    .bind(&filter.workflow_type)
    .bind(serde_json::json!(statuses).to_string())
    .bind(sql_limit(limit))
    .fetch_all(store.readers())
    .await
    .map_err(|e| before_commit(&e))?;
    rows.iter().map(run_row).collect()
}

/// The claimed rows.
async fn claim(
    connection: &mut SqliteConnection,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<SqliteRow>, sqlx::Error> {
    // Nothing is written while nothing is due.
    let due: Vec<Uuid> = sqlx::query_scalar(
        "SELECT run_id FROM outbox WHERE next_at <= ?1 GROUP BY run_id ORDER BY min(next_at), run_id LIMIT ?2",
    )
    .bind(now.as_micros())
    .bind(sql_limit(limit))
    .fetch_all(&mut *connection)
    .await?;
    if due.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query(
        "UPDATE outbox SET tries = tries + 1, next_at = ?1 + 1000000 * min(60, 1 << min(tries + 1, 6))
          WHERE run_id IN (SELECT unhex(value) FROM json_each(?2))
         RETURNING run_id, seq",
    )
    .bind(now.as_micros())
    .bind(id_list(due.into_iter()))
    .fetch_all(connection)
    .await
}

/// Of the columns run_id, parent_run_id, parent_op, previous_run_id, first_run_id, successor_run_id and attempt.
pub(crate) fn link(row: &SqliteRow) -> Result<(RunId, RunLink), Error> {
    let id = |column: usize| -> Result<Option<RunId>, Error> {
        Ok(get::<Option<Uuid>>(row, column)?.map(RunId::from_uuid))
    };
    let number = |number: i64| {
        u32::try_from(number).map_err(|_| Error::Corrupt(format!("a link of a run has the number {number}")))
    };
    let parent = match (id(1)?, get::<Option<i64>>(row, 2)?) {
        (Some(run), Some(op)) => Some((run, OpId(number(op)?))),
        _ => None,
    };
    let (previous, first, successor) = (id(3)?, id(4)?, id(5)?);
    let attempt = number(get(row, 6)?)?;
    Ok((run_id(row, 0)?, RunLink { parent, previous, first, successor, attempt }))
}
