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
static CLAIMED: ManyRows = ManyRows::repeated(
    "UPDATE outbox SET tries = tries + 1, next_at = ? + 1000000 * min(60, 1 << min(tries + 1, 6))
      WHERE run_id = ? AND seq = ?;",
);
static HELD: ManyRows =
    ManyRows::repeated("UPDATE outbox SET next_at = ? WHERE run_id = ? AND seq = ? AND next_at < ?;");
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
    async fn claim_outbox(&self, runs: usize, rows: usize) -> Result<Vec<(RunId, Vec<Seq>)>, Error> {
        let now = self.inner.clock.now();
        let claimed =
            self.writer()?.transact(move |connection| Box::pin(claim(connection, now, (runs, rows)))).await?;
        let mut runs: BTreeMap<RunId, BTreeSet<Seq>> = BTreeMap::new();
        for (run, seq) in claimed {
            runs.entry(run).or_default().insert(seq);
        }
        Ok(runs.into_iter().map(|(run, seqs)| (run, seqs.into_iter().collect())).collect())
    }

    async fn hold_outbox(&self, held: &[(RunId, Seq)], hold: Duration) -> Result<(), Error> {
        let now = self.inner.clock.now();
        let (soon, until) = (now.after(Duration::from_micros(hold.as_micros() / 2)), now.after(hold));
        let held = held.to_vec();
        self.writer()?
            .transact(move |connection| {
                Box::pin(async move {
                    write_rows(connection, &HELD, &held, |v, row| {
                        v.push(until.as_micros());
                        bind_seq(v, row);
                        v.push(soon.as_micros());
                    })
                    .await
                })
            })
            .await
    }

    async fn delete_outbox(&self, heard: &[(RunId, Seq)]) -> Result<(), Error> {
        let heard = heard.to_vec();
        self.writer()?
            .transact(move |connection| {
                Box::pin(async move { write_rows(connection, &DELETED, &heard, bind_seq).await })
            })
            .await
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

/// The claimed rows. The first row of a run stands for it.
async fn claim(
    connection: &mut SqliteConnection,
    now: Timestamp,
    (runs, rows): (usize, usize),
) -> Result<Vec<(RunId, Seq)>, sqlx::Error> {
    // Nothing is written while nothing is due.
    let due: Vec<Uuid> = sqlx::query_scalar(
        "SELECT run_id FROM (
             SELECT d.run_id, (SELECT next_at FROM outbox o WHERE o.run_id = d.run_id ORDER BY o.seq LIMIT 1) AS first
               FROM (SELECT DISTINCT run_id FROM outbox WHERE next_at <= ?1) d)
          WHERE first <= ?1 ORDER BY first, run_id LIMIT ?2",
    )
    .bind(now.as_micros())
    .bind(sql_limit(runs))
    .fetch_all(&mut *connection)
    .await?;
    let mut claimed = Vec::new();
    for run in due {
        let seqs: Vec<i64> =
            sqlx::query_scalar("SELECT seq FROM outbox WHERE run_id = ?1 ORDER BY seq LIMIT ?2")
                .bind(run)
                .bind(sql_limit(rows - claimed.len()))
                .fetch_all(&mut *connection)
                .await?;
        claimed.extend(seqs.into_iter().map(|seq| (RunId::from_uuid(run), seq.cast_unsigned())));
        if claimed.len() >= rows {
            break;
        }
    }
    write_rows(connection, &CLAIMED, &claimed, |v, row| {
        v.push(now.as_micros());
        bind_seq(v, row);
    })
    .await?;
    Ok(claimed)
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
