//! The append: look, then write what was free, in one transaction per batch.

use std::collections::BTreeSet;
use std::sync::Arc;

use everstep_core::{Event, RunId, Timestamp};
use everstep_proto::row::EventRow;
use everstep_store::{Append, AppendReply, Error, StartClaim, Verdict};
use sqlx::{Row, SqliteConnection};

use crate::clock::Clock;
use crate::error::{before_commit, is_constraint, is_full};
use crate::open::Inner;
use crate::projection::{Projections, write_rows};
use crate::rows::{Hash, INLINE_BYTES_MAX, hash_of};
use crate::sql::{ManyRows, ROWS_MAX, Values};
use crate::writer::{Held, TxError, Writer};

// The numbers of the appends whose place is not free: the event before is missing, or one is there.
macro_rules! taken {
    ($begin:literal) => {
        ManyRows::new(
            concat!($begin, "SELECT DISTINCT column1 FROM (VALUES "),
            "(?,?,?)",
            ") WHERE EXISTS (SELECT 1 FROM events WHERE run_id = column2 AND seq = column3)
                  OR (column3 > 1
                      AND NOT EXISTS (SELECT 1 FROM events WHERE run_id = column2 AND seq = column3 - 1))",
        )
    };
}
static BEGIN_AND_FIND_TAKEN: ManyRows = taken!("BEGIN IMMEDIATE; ");
static FIND_TAKEN: ManyRows = taken!("");
// The numbers of the appends whose start is not free.
static FIND_STARTED: ManyRows = ManyRows::new(
    "SELECT DISTINCT column1 FROM (VALUES ",
    "(?,?,?,?,?)",
    ") WHERE column5 IS NOT (SELECT run_id FROM workflow_ids WHERE namespace = column2 AND workflow_id = column3)
          OR EXISTS (SELECT 1 FROM start_requests
                      WHERE namespace = column2 AND workflow_id = column3 AND request_id = column4)",
);
/// One event behind another, as a transaction of its own: one hop to the connection's thread instead of three.
const LONE_EVENT: &str =
    "INSERT INTO events (run_id, seq, at, epoch, step_id, attempt, command_id, kind, step, actor,
         attrs, encoding, payload, payload_hash)
     SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14
      WHERE EXISTS (SELECT 1 FROM events WHERE run_id = ?1 AND seq = ?2 - 1)
     ON CONFLICT DO NOTHING";
static EVENTS: ManyRows = ManyRows::new(
    "INSERT INTO events (run_id, seq, at, epoch, step_id, attempt, command_id, kind, step, actor, attrs,
         encoding, payload, payload_hash) VALUES ",
    "(?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
    "",
);
static WORKFLOW_IDS: ManyRows = ManyRows::new(
    "INSERT INTO workflow_ids (namespace, workflow_id, run_id) VALUES ",
    "(?,?,?)",
    " ON CONFLICT (namespace, workflow_id) DO UPDATE SET run_id = excluded.run_id",
);
static START_REQUESTS: ManyRows = ManyRows::new(
    "INSERT INTO start_requests (namespace, workflow_id, request_id, run_id, body_hash) VALUES ",
    "(?,?,?,?,?)",
    "",
);

/// An append with what can be worked out before the database is touched.
struct Prepared {
    append: Append,
    /// Hashes of its large payloads, in the order of its events.
    hashes: Vec<Hash>,
}

/// Commits what can be committed of `batch`. Runs in a task of its own.
pub(crate) async fn append(writer: Arc<Writer>, inner: Arc<Inner>, batch: Vec<Append>) -> AppendReply {
    let clock = &inner.clock;
    let (mut verdicts, wanted) = admit(&batch);
    let batch: Vec<Prepared> = batch.into_iter().map(Prepared::new).collect();
    let mut reached = false;
    if !wanted.is_empty() {
        match writer.lock().await {
            Ok(mut held) => reached = commit_all(&mut held, clock, &batch, &wanted, &mut verdicts).await,
            Err(e) => fail(&mut verdicts, &wanted, &before_commit(&e)),
        }
    }
    let verdicts = verdicts.into_iter().map(|verdict| verdict.unwrap_or(Verdict::Conflict)).collect();
    AppendReply { now: reached.then(|| clock.now()), verdicts }
}

/// Refuses malformed appends, and turns away those that name a run or workflow id of an earlier one: the
/// verdicts known so far, and which appends to try.
fn admit(batch: &[Append]) -> (Vec<Option<Verdict>>, Vec<usize>) {
    let (mut runs, mut ids) = (BTreeSet::new(), BTreeSet::new());
    let mut wanted = Vec::with_capacity(batch.len());
    let mut verdicts = Vec::with_capacity(batch.len());
    for (number, append) in batch.iter().enumerate() {
        let mut fresh = true;
        for run in append.runs() {
            fresh &= runs.insert(run.run_id);
            if let Some(start) = &run.start {
                fresh &= ids.insert((start.namespace.as_str(), start.workflow_id.as_str()));
            }
        }
        let problem = append.malformed();
        verdicts.push(match problem {
            Some(problem) => Some(Verdict::Failed(Error::Refused(problem))),
            None if !fresh => Some(Verdict::Conflict),
            None => {
                wanted.push(number);
                None
            }
        });
    }
    (verdicts, wanted)
}

impl Prepared {
    fn new(append: Append) -> Self {
        let large = append.runs().flat_map(|run| run.events.iter()).filter_map(large_payload);
        let hashes = large.map(hash_of).collect();
        Self { append, hashes }
    }
}

fn large_payload(event: &Event) -> Option<&[u8]> {
    event.body.payload().map(|payload| &payload.data[..]).filter(|data| data.len() > INLINE_BYTES_MAX)
}

/// Commits the appends numbered `wanted`: all at once, or one by one when one of them breaks the
/// transaction. True when the database was reached.
async fn commit_all(
    held: &mut Held<'_>,
    clock: &Clock,
    batch: &[Prepared],
    wanted: &[usize],
    verdicts: &mut [Option<Verdict>],
) -> bool {
    if let [number] = *wanted
        && let Some(written) = commit_lone_event(held, &batch[number]).await
    {
        verdicts[number] = Some(if written { Verdict::Committed } else { Verdict::Conflict });
        return true;
    }
    let whole = commit(held, clock.now(), batch, wanted, verdicts).await;
    match whole {
        Ok(()) => return true,
        Err(TxError::Before(e)) if wanted.len() > 1 && may_be_one_of_them(&before_commit(&e)) => {
            if !is_full(&e) {
                tracing::warn!(error = %e, appends = wanted.len(), "a batch failed; trying its appends one by one");
            }
        }
        Err(e) => {
            fail(verdicts, wanted, &verdict_of(&e));
            return !matches!(e, TxError::Before(_));
        }
    }
    let mut reached = false;
    for number in wanted {
        let alone = [*number];
        let result = commit(held, clock.now(), batch, &alone, verdicts).await;
        reached |= result.is_ok();
        if let Err(e) = result {
            fail(verdicts, &alone, &verdict_of(&e));
        }
    }
    reached
}

/// Appends what is nothing but one small event of a run that is there: true if it was written, false if its
/// place was not free. `None` when it is more than that, and after an error: then the transaction that follows
/// finds out what is there and says what is wrong.
async fn commit_lone_event(held: &mut Held<'_>, prepared: &Prepared) -> Option<bool> {
    let Append { run, with: None } = &prepared.append else { return None };
    let [event] = &run.events[..] else { return None };
    if event.seq == 1 || run.start.is_some() || !run.writes.is_empty() || !prepared.hashes.is_empty() {
        return None;
    }
    let mut values = Values::default();
    bind_event(&mut values, &(run.run_id, event, None));
    let values = values.finish().ok()?;
    let connection = held.connection().await.ok()?;
    match sqlx::query_with(LONE_EVENT, values).execute(connection).await {
        Ok(done) => {
            held.wrote();
            Some(done.rows_affected() > 0)
        }
        Err(e) => {
            held.abandon(&TxError::AtCommit(e)).await;
            None
        }
    }
}

/// True when the error may be the fault of one append, so that the others would pass without it.
fn may_be_one_of_them(error: &Error) -> bool {
    matches!(error, Error::Refused(_) | Error::Exhausted(_))
}

/// The place was free, so a row that stands in the way stands behind a gap.
fn verdict_of(e: &TxError) -> Error {
    match e {
        TxError::Before(e) if is_constraint(e) => {
            Error::Corrupt(format!("an event or start stands where none can be: {e}"))
        }
        e => e.to_store(),
    }
}

/// Gives `error` to those of `numbers` that have no verdict yet.
fn fail(verdicts: &mut [Option<Verdict>], numbers: &[usize], error: &Error) {
    for number in numbers {
        verdicts[*number].get_or_insert_with(|| Verdict::Failed(error.clone()));
    }
}

/// One transaction. On success every one of `wanted` has a verdict; on an error those that were found
/// taken have theirs only if the transaction got as far as COMMIT.
async fn commit(
    held: &mut Held<'_>,
    now: Timestamp,
    batch: &[Prepared],
    wanted: &[usize],
    verdicts: &mut [Option<Verdict>],
) -> Result<(), TxError> {
    let result = attempt(held, now, batch, wanted, verdicts).await;
    if let Err(e) = &result {
        held.abandon(e).await;
    }
    result
}

async fn attempt(
    held: &mut Held<'_>,
    now: Timestamp,
    batch: &[Prepared],
    wanted: &[usize],
    verdicts: &mut [Option<Verdict>],
) -> Result<(), TxError> {
    let connection = held.connection().await.map_err(TxError::Before)?;
    let taken = find_taken(connection, batch, wanted).await.map_err(TxError::Before)?;
    let free: Vec<usize> = wanted.iter().copied().filter(|number| !taken.contains(number)).collect();
    if free.is_empty() {
        held.rollback().await;
    } else {
        let winners: Vec<&Prepared> = free.iter().map(|number| &batch[*number]).collect();
        write(connection, now, &winners).await.map_err(TxError::Before)?;
        let committed = held.commit().await;
        // Who was turned away stays so, whatever became of the others.
        taken.iter().for_each(|number| verdicts[*number] = Some(Verdict::Conflict));
        committed?;
    }
    for number in wanted {
        let verdict = if taken.contains(number) { Verdict::Conflict } else { Verdict::Committed };
        verdicts[*number] = Some(verdict);
    }
    Ok(())
}

/// Begins the transaction; the numbers of the appends that lose.
async fn find_taken(
    connection: &mut SqliteConnection,
    batch: &[Prepared],
    wanted: &[usize],
) -> Result<BTreeSet<usize>, sqlx::Error> {
    let runs = || wanted.iter().flat_map(|number| batch[*number].append.runs().map(|run| (*number, run)));
    let places: Vec<(usize, RunId, i64)> = runs()
        .filter_map(|(number, run)| run.events.first().map(|e| (number, run.run_id, e.seq.cast_signed())))
        .collect();
    let mut taken = BTreeSet::new();
    let mut statement = &BEGIN_AND_FIND_TAKEN;
    for places in places.chunks(ROWS_MAX) {
        let mut values = Values::default();
        for (number, run, seq) in places {
            push_number(&mut values, *number);
            values.push(run.uuid());
            values.push(*seq);
        }
        collect_numbers(connection, statement, places.len(), values, &mut taken).await?;
        statement = &FIND_TAKEN;
    }
    let starts: Vec<(usize, &StartClaim)> =
        runs().filter_map(|(number, run)| run.start.as_ref().map(|start| (number, start))).collect();
    for starts in starts.chunks(ROWS_MAX) {
        let mut values = Values::default();
        for (number, start) in starts {
            push_number(&mut values, *number);
            values.push(start.namespace.as_str());
            values.push(start.workflow_id.as_str());
            values.push(start.request_id.as_str());
            values.push(start.expected.map(RunId::uuid));
        }
        collect_numbers(connection, &FIND_STARTED, starts.len(), values, &mut taken).await?;
    }
    Ok(taken)
}

fn push_number(values: &mut Values, number: usize) {
    values.push(i64::try_from(number).unwrap_or(i64::MAX));
}

async fn collect_numbers(
    connection: &mut SqliteConnection,
    statement: &ManyRows,
    rows: usize,
    values: Values,
    numbers: &mut BTreeSet<usize>,
) -> Result<(), sqlx::Error> {
    let found = sqlx::query_with(statement.text(rows), values.finish()?).fetch_all(connection).await?;
    for row in found {
        let number: i64 = row.try_get(0)?;
        numbers.extend(usize::try_from(number).ok());
    }
    Ok(())
}

/// Everything that goes with the winners.
async fn write(
    connection: &mut SqliteConnection,
    now: Timestamp,
    winners: &[&Prepared],
) -> Result<(), sqlx::Error> {
    let mut events: Vec<(RunId, &Event, Option<&Hash>)> = Vec::new();
    let mut starts: Vec<(RunId, &StartClaim)> = Vec::new();
    let mut projections = Projections::default();
    for winner in winners {
        let mut hashes = winner.hashes.iter();
        for run in winner.append.runs() {
            starts.extend(run.start.as_ref().map(|start| (run.run_id, start)));
            projections.add(run.run_id, &run.writes);
            for event in run.events.iter() {
                let large = large_payload(event);
                let hash = large.and_then(|_| hashes.next());
                if let (Some(data), Some(hash)) = (large, hash) {
                    write_payload(connection, run.run_id, hash, data).await?;
                }
                events.push((run.run_id, event, hash));
            }
        }
    }
    write_rows(connection, &EVENTS, &events, bind_event).await?;
    write_rows(connection, &WORKFLOW_IDS, &starts, |values, (run, start)| {
        values.push(start.namespace.as_str());
        values.push(start.workflow_id.as_str());
        values.push(run.uuid());
    })
    .await?;
    write_rows(connection, &START_REQUESTS, &starts, |values, (run, start)| {
        values.push(start.namespace.as_str());
        values.push(start.workflow_id.as_str());
        values.push(start.request_id.as_str());
        values.push(run.uuid());
        values.push(&start.body_hash[..]);
    })
    .await?;
    projections.write(connection, now).await
}

async fn write_payload(
    connection: &mut SqliteConnection,
    run: RunId,
    hash: &Hash,
    data: &[u8],
) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT OR IGNORE INTO payloads (run_id, hash, data) VALUES (?, ?, ?)")
        .bind(run.uuid())
        .bind(&hash[..])
        .bind(data)
        .execute(connection)
        .await
        .map(drop)
}

fn bind_event(values: &mut Values, (run, event, hash): &(RunId, &Event, Option<&Hash>)) {
    let row = EventRow::encode(*run, event);
    values.push(row.run_id);
    values.push(row.seq);
    values.push(row.at_micros);
    values.push(row.epoch);
    values.push(row.step_id);
    values.push(row.attempt);
    values.push(row.command_id);
    values.push(row.kind);
    values.push(row.step);
    values.push(row.actor);
    values.push(row.attrs);
    values.push(row.encoding);
    values.push(row.payload.filter(|_| hash.is_none()).map(Vec::from));
    values.push(hash.map(|hash| hash.to_vec()));
}
