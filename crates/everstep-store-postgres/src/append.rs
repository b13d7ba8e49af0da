//! Appending.

use chrono::{DateTime, Utc};
use everstep_core::{RunRow, TimerKey, Timestamp, Write};
use everstep_proto::row::EventRow;
use everstep_store::{Append, AppendReply, Error, RunAppend, StartClaim, Verdict};
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::query::Query;
use sqlx::{Connection, Postgres, Row};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

use crate::PostgresStore;
use crate::error::{after, before};
use crate::rows::{INLINE_BYTES_MAX, from_db, hash_of, to_db};
use crate::sql;

/// Bytes of payload in one statement at most, unless a single append holds more.
const STATEMENT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Tries of a statement that met another transaction.
const CONTENTION_TRIES: u32 = 3;

type Done = (Option<Timestamp>, Vec<(usize, Verdict)>);

impl PostgresStore {
    /// Appends a batch. Runs to its end in a task of its own, whoever stops waiting.
    pub(crate) async fn append_batch(&self, batch: Vec<Append>) -> AppendReply {
        let (store, count) = (self.clone(), batch.len());
        match tokio::spawn(async move { store.append_all(batch).await }).await {
            Ok(reply) => reply,
            Err(error) => {
                let failed =
                    || Verdict::Failed(Error::OutcomeUnknown(format!("the append's task ended: {error}")));
                AppendReply { now: None, verdicts: (0..count).map(|_| failed()).collect() }
            }
        }
    }

    async fn append_all(&self, batch: Vec<Append>) -> AppendReply {
        let mut verdicts: Vec<Option<Verdict>> = batch.iter().map(|_| None).collect();
        let (mut runs, mut ids) = (BTreeSet::new(), BTreeSet::new());
        let (mut lean, mut full, mut groups) = (Vec::new(), Vec::new(), Vec::new());
        for (index, append) in batch.iter().enumerate() {
            // A run or workflow id that an earlier append of the batch names is not decided twice.
            let mut fresh = true;
            for run in append.runs() {
                fresh &= runs.insert(run.run_id);
                if let Some(StartClaim { namespace, workflow_id, .. }) = &run.start {
                    fresh &= ids.insert((namespace.as_str(), workflow_id.as_str()));
                }
            }
            let large = |r: &RunAppend| {
                r.events.iter().filter_map(|e| e.body.payload()).any(|p| p.data.len() > INLINE_BYTES_MAX)
            };
            if !fresh {
                verdicts[index] = Some(Verdict::Conflict);
            } else if let Some(problem) = append.malformed() {
                verdicts[index] = Some(Verdict::Failed(Error::Refused(problem)));
            } else if append.with.is_some() {
                groups.push((index, append));
            } else if append.run.start.is_none() && append.run.writes.is_empty() && !large(&append.run) {
                lean.push((index, &append.run));
            } else {
                full.push((index, &append.run));
            }
        }
        let mut now = None;
        let mut note = |done: Done, verdicts: &mut Vec<Option<Verdict>>| {
            now = now.max(done.0);
            for (index, verdict) in done.1 {
                verdicts[index] = Some(verdict);
            }
        };
        for (kind, mut part) in [(Kind::Lean, lean), (Kind::Full, full)] {
            part.sort_by_key(|(_, run)| run.run_id);
            for chunk in by_size(&part) {
                note(self.statement(kind, chunk).await, &mut verdicts);
            }
        }
        for (index, group) in groups {
            note(self.group(index, group).await, &mut verdicts);
        }
        let missing = || Verdict::Failed(Error::Unavailable("not reached".to_owned()));
        AppendReply { now, verdicts: verdicts.into_iter().map(|v| v.unwrap_or_else(missing)).collect() }
    }

    /// One statement, halved until what is wrong stands alone.
    async fn statement(&self, kind: Kind, part: &[(usize, &RunAppend)]) -> Done {
        let runs: Vec<&RunAppend> = part.iter().map(|(_, run)| *run).collect();
        match self.execute(kind, &runs).await {
            Ok((now, winners)) => {
                let verdict = |(index, run): &(usize, &RunAppend)| {
                    let won = winners.contains(&run.run_id.uuid());
                    (*index, if won { Verdict::Committed } else { Verdict::Conflict })
                };
                (Some(now), part.iter().map(verdict).collect())
            }
            // What fails for reasons of the connection would fail for every half.
            Err(error @ (Error::Unavailable(_) | Error::OutcomeUnknown(_) | Error::Exhausted(_))) => {
                (None, part.iter().map(|(i, _)| (*i, Verdict::Failed(error.clone()))).collect())
            }
            Err(error) if part.len() == 1 => (None, vec![(part[0].0, Verdict::Failed(error))]),
            Err(_) => {
                let (left, right) = part.split_at(part.len() / 2);
                let (left, right) =
                    (Box::pin(self.statement(kind, left)).await, Box::pin(self.statement(kind, right)).await);
                (left.0.max(right.0), left.1.into_iter().chain(right.1).collect())
            }
        }
    }

    async fn execute(&self, kind: Kind, runs: &[&RunAppend]) -> Result<(Timestamp, Vec<Uuid>), Error> {
        let mut tries = 0;
        loop {
            let mut connection = self.writers.acquire().await.map_err(before)?;
            match execute_on(&mut connection, kind, runs).await {
                Err(Error::Contention(_)) if tries < CONTENTION_TRIES => tries += 1,
                Err(error) => {
                    // Whatever state it is in, nobody else gets this connection.
                    let _ = connection.detach().close_hard().await;
                    return Err(error);
                }
                done => return done,
            }
        }
    }

    /// Two runs with one verdict.
    async fn group(&self, index: usize, group: &Append) -> Done {
        match self.try_group(group).await {
            Ok(Some(now)) => (Some(now), vec![(index, Verdict::Committed)]),
            Ok(None) => (None, vec![(index, Verdict::Conflict)]),
            Err(error) => (None, vec![(index, Verdict::Failed(error))]),
        }
    }

    async fn try_group(&self, group: &Append) -> Result<Option<Timestamp>, Error> {
        let mut connection = self.writers.acquire().await.map_err(before)?;
        let mut transaction = connection.begin().await.map_err(before)?;
        let mut runs: Vec<&RunAppend> = group.runs().collect();
        runs.sort_by_key(|r| r.run_id);
        let mut last = Timestamp::default();
        for run in runs {
            // Nothing is committed before the end, so a failure here leaves nothing behind.
            let done = execute_on(&mut transaction, Kind::Full, &[run]).await.map_err(|e| match e {
                Error::OutcomeUnknown(text) => Error::Unavailable(text),
                other => other,
            });
            let (now, winners) = done?;
            last = now;
            if winners.is_empty() {
                transaction.rollback().await.map_err(before)?;
                return Ok(None);
            }
        }
        transaction.commit().await.map_err(after)?;
        Ok(Some(last))
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Lean,
    Full,
}

fn by_size<'a, 'b>(part: &'a [(usize, &'b RunAppend)]) -> Vec<&'a [(usize, &'b RunAppend)]> {
    let (mut chunks, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, (_, run)) in part.iter().enumerate() {
        let size = run.payload_bytes();
        if i > start && bytes + size > STATEMENT_BYTES_MAX {
            chunks.push(&part[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += size;
    }
    if start < part.len() {
        chunks.push(&part[start..]);
    }
    chunks
}

async fn execute_on(
    connection: &mut PgConnection,
    kind: Kind,
    runs: &[&RunAppend],
) -> Result<(Timestamp, Vec<Uuid>), Error> {
    let mut events = Events::default();
    for run in runs {
        events.add(run);
    }
    let query = match kind {
        Kind::Lean => events.bind(sqlx::query(sql::APPEND_EVENTS)),
        Kind::Full => {
            let mut beside = Beside { payloads: std::mem::take(&mut events.large), ..Beside::default() };
            for run in runs {
                beside.add(run);
            }
            beside.bind(events.bind(sqlx::query(sql::APPEND)))
        }
    };
    let row = query.fetch_one(connection).await.map_err(after)?;
    let now: DateTime<Utc> = row.try_get(0).map_err(after)?;
    Ok((from_db(now), row.try_get(1).map_err(after)?))
}

type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// The columns of the events of a statement.
#[derive(Default)]
struct Events {
    run_id: Vec<Uuid>,
    seq: Vec<i64>,
    at: Vec<DateTime<Utc>>,
    epoch: Vec<i32>,
    step_id: Vec<Option<i32>>,
    attempt: Vec<Option<i32>>,
    command_id: Vec<Uuid>,
    kind: Vec<String>,
    step: Vec<Option<String>>,
    actor: Vec<String>,
    attrs: Vec<Option<String>>,
    encoding: Vec<Option<String>>,
    payload: Vec<Option<Vec<u8>>>,
    payload_hash: Vec<Option<Vec<u8>>>,
    first: Vec<bool>,
    large: Vec<(Uuid, Vec<u8>, Vec<u8>)>,
}

impl Events {
    fn add(&mut self, run: &RunAppend) {
        for (i, event) in run.events.iter().enumerate() {
            let row = EventRow::encode(run.run_id, event);
            let (mut payload, mut hash) = (row.payload.map(|p| p.to_vec()), None);
            if let Some(data) = payload.take_if(|data| data.len() > INLINE_BYTES_MAX) {
                let of = hash_of(&data);
                self.large.push((row.run_id, of.clone(), data));
                hash = Some(of);
            }
            self.run_id.push(row.run_id);
            self.seq.push(row.seq);
            self.at.push(to_db(Timestamp::from_micros(row.at_micros)));
            self.epoch.push(row.epoch);
            self.step_id.push(row.step_id);
            self.attempt.push(row.attempt);
            self.command_id.push(row.command_id);
            self.kind.push(row.kind);
            self.step.push(row.step);
            self.actor.push(row.actor);
            self.attrs.push(row.attrs);
            self.encoding.push(row.encoding);
            self.payload.push(payload);
            self.payload_hash.push(hash);
            self.first.push(i == 0);
        }
    }

    fn bind(self, query: Statement<'_>) -> Statement<'_> {
        let (least, greatest) = (self.run_id.iter().min().copied(), self.run_id.iter().max().copied());
        query
            .bind(self.run_id)
            .bind(self.seq)
            .bind(self.at)
            .bind(self.epoch)
            .bind(self.step_id)
            .bind(self.attempt)
            .bind(self.command_id)
            .bind(self.kind)
            .bind(self.step)
            .bind(self.actor)
            .bind(self.attrs)
            .bind(self.encoding)
            .bind(self.payload)
            .bind(self.payload_hash)
            .bind(self.first)
            .bind(least)
            .bind(greatest)
    }
}

/// What goes beside the events of a statement, each row once: the writes of an append are taken in order, and
/// a later one of the same row replaces an earlier one.
#[derive(Default)]
struct Beside {
    claims: Vec<(Uuid, StartClaim)>,
    payloads: Vec<(Uuid, Vec<u8>, Vec<u8>)>,
    rows: BTreeMap<Uuid, RunRow>,
    timers: BTreeMap<(Uuid, &'static str, i64), Option<DateTime<Utc>>>,
    timers_cleared: BTreeSet<Uuid>,
    tasks: BTreeMap<Uuid, Option<(String, String)>>,
    wakes_set: BTreeSet<(Uuid, i64)>,
    wakes_deleted: BTreeMap<Uuid, i64>,
}

fn signed(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

impl Beside {
    fn add(&mut self, run: &RunAppend) {
        let id = run.run_id.uuid();
        self.claims.extend(run.start.iter().map(|claim| (id, claim.clone())));
        for write in &run.writes {
            self.write(id, write);
        }
    }

    fn write(&mut self, id: Uuid, write: &Write) {
        let timer = |key: &TimerKey| (id, key.kind.as_str(), i64::from(key.id));
        match write {
            Write::Run(row) => {
                if self.rows.get(&id).is_none_or(|old| old.last_seq < row.last_seq) {
                    self.rows.insert(id, (**row).clone());
                }
            }
            Write::TimerSet(t) => {
                self.timers.insert(timer(&t.key), Some(to_db(t.fire_at)));
            }
            Write::TimerDeleted(key) => {
                self.timers.insert(timer(key), None);
            }
            Write::TimersCleared => {
                self.timers.retain(|(run, _, _), _| *run != id);
                self.timers_cleared.insert(id);
            }
            Write::TaskSet(queue) => {
                self.tasks.insert(id, Some((queue.namespace.clone(), queue.task_queue.clone())));
            }
            Write::TaskDeleted => {
                self.tasks.insert(id, None);
            }
            Write::WakeSet { seq } => {
                self.wakes_set.insert((id, signed(*seq)));
            }
            Write::WakesDeleted { up_to } => {
                let up_to = signed(*up_to);
                self.wakes_set.retain(|(run, seq)| *run != id || *seq > up_to);
                let deleted = self.wakes_deleted.entry(id).or_default();
                *deleted = up_to.max(*deleted);
            }
        }
    }

    fn bind(self, query: Statement<'_>) -> Statement<'_> {
        fn column<T, U>(rows: &[T], of: impl Fn(&T) -> U) -> Vec<U> {
            rows.iter().map(of).collect()
        }
        let rows: Vec<RunRow> = self.rows.into_values().collect();
        let (mut set, mut deleted) = (Vec::new(), Vec::new());
        for ((run, kind, id), fire_at) in self.timers {
            match fire_at {
                Some(fire_at) => set.push((run, kind, id, fire_at)),
                None => deleted.push((run, Some(kind), Some(id))),
            }
        }
        deleted.extend(self.timers_cleared.into_iter().map(|run| (run, None, None)));
        let (mut tasks, mut tasks_deleted) = (Vec::new(), Vec::new());
        for (run, task) in self.tasks {
            match task {
                Some((namespace, queue)) => tasks.push((run, namespace, queue)),
                None => tasks_deleted.push(run),
            }
        }
        let (wakes, seen): (Vec<_>, Vec<_>) =
            (self.wakes_set.into_iter().collect(), self.wakes_deleted.into_iter().collect());
        let (c, p, r) = (&self.claims, &self.payloads, &rows);
        let query = query
            .bind(column(c, |c| c.0))
            .bind(column(c, |c| c.1.namespace.clone()))
            .bind(column(c, |c| c.1.workflow_id.clone()))
            .bind(column(c, |c| c.1.expected.map(|e| e.uuid())))
            .bind(column(c, |c| c.1.request_id.clone()))
            .bind(column(c, |c| c.1.body_hash.to_vec()))
            .bind(column(p, |p| p.0))
            .bind(column(p, |p| p.1.clone()))
            .bind(column(p, |p| p.2.clone()));
        let query = query
            .bind(column(r, |r| r.run_id.uuid()))
            .bind(column(r, |r| r.namespace.clone()))
            .bind(column(r, |r| r.workflow_id.clone()))
            .bind(column(r, |r| r.workflow_type.clone()))
            .bind(column(r, |r| r.task_queue.clone()))
            .bind(column(r, |r| r.status.as_str()))
            .bind(column(r, |r| r.owner.map(|o| o.uuid())))
            .bind(column(r, |r| i32::try_from(r.epoch).unwrap_or(i32::MAX)))
            .bind(column(r, |r| r.build_id.clone()))
            .bind(column(r, |r| r.blocked.clone()))
            .bind(column(r, |r| r.cancel_requested))
            .bind(column(r, |r| to_db(r.started_at)))
            .bind(column(r, |r| r.closed_at.map(to_db)))
            .bind(column(r, |r| signed(r.last_seq)));
        query
            .bind(column(&set, |t| t.0))
            .bind(column(&set, |t| t.1))
            .bind(column(&set, |t| t.2))
            .bind(column(&set, |t| t.3))
            .bind(column(&deleted, |t| t.0))
            .bind(column(&deleted, |t| t.1))
            .bind(column(&deleted, |t| t.2))
            .bind(column(&tasks, |t| t.0))
            .bind(column(&tasks, |t| t.1.clone()))
            .bind(column(&tasks, |t| t.2.clone()))
            .bind(tasks_deleted)
            .bind(column(&wakes, |w| w.0))
            .bind(column(&wakes, |w| w.1))
            .bind(column(&seen, |w| w.0))
            .bind(column(&seen, |w| w.1))
    }
}
