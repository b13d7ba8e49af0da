//! The append of a batch as one statement, with what it is bound to.

mod attributes;
mod between;
mod steps;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike, Utc};
use everstep_core::{Doubt, RunRow, TaskRow, TimerKey, Timestamp, Write};
use everstep_proto::row::EventRow;
use everstep_store::{Error, RunAppend, StartClaim};
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::{Arguments, Encode, Postgres, Row, Type};
use uuid::Uuid;

use crate::error::{after, before};
use crate::rows::{INLINE_BYTES_MAX, from_db, hash_of, to_db};
use crate::sql::{Day, Part, Parts};

/// Appends the runs, each named once and in order, in one statement.
///
/// Gives what became of it; `None` when a place was taken and the statement was not `careful`: nothing is
/// appended then.
///
/// # Errors
/// As [`after`].
pub(crate) async fn append(
    connection: &mut PgConnection,
    runs: &[&RunAppend],
    careful: bool,
) -> Result<Option<Appended>, Error> {
    let mut events = Events::default();
    let mut rest = Beside::default();
    for run in runs {
        events.add(run);
        rest.add(run);
    }
    rest.payloads = std::mem::take(&mut events.large);
    let day = day_of(&events.run_id);
    let mut statement = Statement::default();
    if events.run_id.len() == 1 && rest.is_empty() {
        statement.parts.add(Part::Lone);
        events.bind_columns(&mut statement).map_err(before)?;
    } else {
        events.bind(&mut statement, !rest.claims.is_empty(), |s| rest.bind_claims(s)).map_err(before)?;
        rest.bind(&mut statement).map_err(before)?;
        statement.parts.add(Part::Answer);
    }
    let Statement { mut parts, arguments } = statement;
    if careful {
        parts.carefully();
    }
    let row = sqlx::query_with(parts.text(day), arguments).fetch_optional(connection).await;
    let row = match row {
        Err(sqlx::Error::Database(error)) if !careful && error.is_unique_violation() => return Ok(None),
        row => row.map_err(after)?,
    };
    let Some(row) = row else { return Ok(Some((None, Vec::new()))) };
    let now: DateTime<Utc> = row.try_get(0).map_err(after)?;
    Ok(Some((Some(from_db(now)), row.try_get(1).map_err(after)?)))
}

/// Database time, unless nothing was appended, and the runs that were appended to.
pub(crate) type Appended = (Option<Timestamp>, Vec<Uuid>);

/// The day on which all of the runs began, if it is one: naming its partition spares Postgres from locking and
/// ruling out all the others in each statement.
fn day_of(sorted: &[Uuid]) -> Day {
    let day = |run: Option<&Uuid>| {
        let (seconds, nanos) = run?.get_timestamp()?.to_unix();
        let date = DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)?.date_naive();
        Some(u32::try_from(date.year()).ok()? * 10_000 + date.month() * 100 + date.day())
    };
    let first = day(sorted.first())?;
    (day(sorted.last()) == Some(first)).then_some(first)
}

/// Parts and arguments, in the same order.
#[derive(Default)]
struct Statement {
    parts: Parts,
    arguments: PgArguments,
}

type Bound = Result<(), sqlx::Error>;

impl Statement {
    fn bind<'q, T: Encode<'q, Postgres> + Type<Postgres> + 'q>(&mut self, value: T) -> Bound {
        self.arguments.add(value).map_err(sqlx::Error::Encode)
    }

    /// One column of `rows`, as an array.
    fn column<'q, R, T>(&mut self, rows: &[R], of: impl Fn(&R) -> T) -> Bound
    where
        Vec<T>: Encode<'q, Postgres> + Type<Postgres> + 'q,
    {
        self.bind(rows.iter().map(of).collect::<Vec<T>>())
    }
}

macro_rules! events {
    ($($column:ident: $type:ty),+ $(,)?) => {
        /// The columns of the events of a statement, in the order of the parameters.
        #[derive(Default)]
        struct Events {
            $($column: Vec<$type>,)+
            first: Vec<bool>,
            large: Vec<(Uuid, Vec<u8>, Vec<u8>)>,
        }

        impl Events {
            fn bind_columns(&mut self, statement: &mut Statement) -> Bound {
                if let [_] = self.run_id[..] {
                    $(statement.bind(self.$column.pop())?;)+
                } else {
                    $(statement.bind(std::mem::take(&mut self.$column))?;)+
                }
                Ok(())
            }
        }
    };
}

events! {
    run_id: Uuid,
    seq: i64,
    at: DateTime<Utc>,
    epoch: i32,
    step_id: Option<i32>,
    attempt: Option<i32>,
    command_id: Uuid,
    kind: String,
    step: Option<String>,
    actor: String,
    attrs: Option<String>,
    encoding: Option<String>,
    payload: Option<Vec<u8>>,
    payload_hash: Option<Vec<u8>>,
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

    /// The events, with the claims between them and their insertion.
    fn bind(
        mut self,
        statement: &mut Statement,
        claims: bool,
        bind_claims: impl FnOnce(&mut Statement) -> Bound,
    ) -> Bound {
        let later = self.first.contains(&false);
        let input = match (self.run_id.len(), later) {
            (1, _) => Part::One,
            (_, false) => Part::First,
            (_, true) => Part::Many,
        };
        statement.parts.add(input);
        self.bind_columns(statement)?;
        if later {
            statement.bind(self.first)?;
        }
        bind_claims(statement)?;
        statement.parts.add(Part::Inserted { later, claims });
        Ok(())
    }
}

type Timer = (Uuid, &'static str, i64);

/// What goes beside the events of a statement, each row once: the writes of an append are taken in order, and
/// a later one of the same row replaces an earlier one.
#[derive(Default)]
struct Beside {
    claims: Vec<(Uuid, StartClaim)>,
    payloads: Vec<(Uuid, Vec<u8>, Vec<u8>)>,
    rows: BTreeMap<Uuid, RunRow>,
    timers: BTreeMap<Timer, Option<DateTime<Utc>>>,
    timers_cleared: BTreeSet<Uuid>,
    tasks: BTreeMap<Uuid, Option<TaskRow>>,
    wakes_set: BTreeSet<(Uuid, i64)>,
    wakes_deleted: BTreeMap<Uuid, i64>,
    doubts: BTreeMap<(Uuid, i64), Option<Doubt>>,
    doubts_cleared: BTreeSet<Uuid>,
    steps: steps::Steps,
    steps_cleared: BTreeSet<Uuid>,
    outbox: between::Outbox,
    links: between::Links,
    attributes: attributes::Attributes,
}

fn signed(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

impl Beside {
    fn is_empty(&self) -> bool {
        let Self {
            claims,
            payloads,
            rows,
            timers,
            timers_cleared,
            tasks,
            wakes_set,
            wakes_deleted,
            doubts,
            doubts_cleared,
            steps,
            steps_cleared,
            outbox,
            links,
            attributes,
        } = self;
        claims.is_empty()
            && payloads.is_empty()
            && rows.is_empty()
            && timers.is_empty()
            && timers_cleared.is_empty()
            && tasks.is_empty()
            && wakes_set.is_empty()
            && wakes_deleted.is_empty()
            && doubts.is_empty()
            && doubts_cleared.is_empty()
            && steps.is_empty()
            && steps_cleared.is_empty()
            && outbox.is_empty()
            && links.is_empty()
            && attributes.is_empty()
    }

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
            Write::TaskSet(task) => {
                self.tasks.insert(id, Some(task.clone()));
            }
            Write::TaskDeleted => {
                self.tasks.insert(id, None);
            }
            Write::DoubtSet(doubt) => {
                self.doubts.insert((id, i64::from(doubt.step.0)), Some((**doubt).clone()));
            }
            Write::DoubtDeleted(step) => {
                self.doubts.insert((id, i64::from(step.0)), None);
            }
            Write::DoubtsCleared => {
                self.doubts.retain(|(run, _), _| *run != id);
                self.doubts_cleared.insert(id);
            }
            Write::OutboxSet { seq } => {
                self.outbox.insert((id, signed(*seq)), true);
            }
            Write::OutboxDeleted { seq } => {
                self.outbox.insert((id, signed(*seq)), false);
            }
            Write::AttributesSet(rows) => {
                self.attributes.insert(id, (**rows).clone());
            }
            Write::LinkSet(link) => {
                self.links.insert(id, (**link).clone());
            }
            Write::StepTaskSet(task) => {
                self.steps.insert((id, i64::from(task.step.0)), Some((**task).clone()));
            }
            Write::StepTaskDeleted(step) => {
                self.steps.insert((id, i64::from(step.0)), None);
            }
            Write::StepTasksCleared => {
                self.steps.retain(|(run, _), _| *run != id);
                self.steps_cleared.insert(id);
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

    fn bind_claims(&self, statement: &mut Statement) -> Bound {
        let claims = &self.claims[..];
        if claims.is_empty() {
            return Ok(());
        }
        statement.parts.add(Part::Claimed);
        statement.column(claims, |c| c.0)?;
        statement.column(claims, |c| c.1.namespace.clone())?;
        statement.column(claims, |c| c.1.workflow_id.clone())?;
        statement.column(claims, |c| c.1.expected.map(|e| e.uuid()))?;
        statement.column(claims, |c| c.1.request_id.clone())?;
        statement.column(claims, |c| c.1.body_hash.to_vec())
    }

    /// Everything but the claims.
    fn bind(self, statement: &mut Statement) -> Bound {
        if !self.claims.is_empty() {
            statement.parts.add(Part::Requests);
        }
        let payloads = &self.payloads[..];
        if !payloads.is_empty() {
            statement.parts.add(Part::Payloads);
            statement.column(payloads, |p| p.0)?;
            statement.column(payloads, |p| p.1.clone())?;
            statement.column(payloads, |p| p.2.clone())?;
        }
        bind_rows(statement, &self.rows.into_values().collect::<Vec<_>>())?;
        bind_timers(statement, &self.timers, self.timers_cleared)?;
        bind_tasks(statement, self.tasks)?;
        let wakes: Vec<(Uuid, i64)> = self.wakes_set.into_iter().collect();
        let seen: Vec<(Uuid, i64)> = self.wakes_deleted.into_iter().collect();
        if !wakes.is_empty() {
            statement.parts.add(Part::WakesSet);
            statement.column(&wakes, |w| w.0)?;
            statement.column(&wakes, |w| w.1)?;
        }
        if !seen.is_empty() {
            statement.parts.add(Part::WakesDeleted);
            statement.column(&seen, |w| w.0)?;
            statement.column(&seen, |w| w.1)?;
            statement.column(&wakes, |w| w.0)?;
            statement.column(&wakes, |w| w.1)?;
        }
        bind_doubts(statement, self.doubts, self.doubts_cleared)?;
        steps::bind_steps(statement, self.steps, self.steps_cleared)?;
        between::bind(statement, self.outbox, self.links)?;
        attributes::bind(statement, self.attributes)
    }
}

fn bind_rows(statement: &mut Statement, rows: &[RunRow]) -> Bound {
    if rows.is_empty() {
        return Ok(());
    }
    statement.parts.add(Part::Runs);
    statement.column(rows, |r| r.run_id.uuid())?;
    statement.column(rows, |r| r.namespace.clone())?;
    statement.column(rows, |r| r.workflow_id.clone())?;
    statement.column(rows, |r| r.workflow_type.clone())?;
    statement.column(rows, |r| r.task_queue.clone())?;
    statement.column(rows, |r| r.status.as_str())?;
    statement.column(rows, |r| r.owner.map(|o| o.uuid()))?;
    statement.column(rows, |r| i32::try_from(r.epoch).unwrap_or(i32::MAX))?;
    statement.column(rows, |r| r.build_id.clone())?;
    statement.column(rows, |r| r.blocked.clone())?;
    statement.column(rows, |r| r.cancel_requested)?;
    statement.column(rows, |r| to_db(r.started_at))?;
    statement.column(rows, |r| r.closed_at.map(to_db))?;
    statement.column(rows, |r| signed(r.last_seq))
}

fn bind_timers(
    statement: &mut Statement,
    timers: &BTreeMap<Timer, Option<DateTime<Utc>>>,
    cleared: BTreeSet<Uuid>,
) -> Bound {
    let (mut set, mut deleted) = (Vec::new(), Vec::new());
    for (&(run, kind, id), fire_at) in timers {
        match fire_at {
            Some(fire_at) => set.push((run, kind, id, *fire_at)),
            None => deleted.push((run, Some(kind), Some(id))),
        }
    }
    deleted.extend(cleared.into_iter().map(|run| (run, None, None)));
    if !set.is_empty() {
        statement.parts.add(Part::TimersSet);
        statement.column(&set, |t| t.0)?;
        statement.column(&set, |t| t.1)?;
        statement.column(&set, |t| t.2)?;
        statement.column(&set, |t| t.3)?;
    }
    if !deleted.is_empty() {
        statement.parts.add(Part::TimersDeleted);
        statement.column(&deleted, |t| t.0)?;
        statement.column(&deleted, |t| t.1)?;
        statement.column(&deleted, |t| t.2)?;
        statement.column(&set, |t| t.0)?;
        statement.column(&set, |t| t.1)?;
        statement.column(&set, |t| t.2)?;
    }
    Ok(())
}

fn bind_tasks(statement: &mut Statement, tasks: BTreeMap<Uuid, Option<TaskRow>>) -> Bound {
    let (mut set, mut deleted) = (Vec::new(), Vec::new());
    for (run, task) in tasks {
        match task {
            Some(task) => set.push((run, task)),
            None => deleted.push(run),
        }
    }
    if !set.is_empty() {
        statement.parts.add(Part::TasksSet);
        statement.column(&set, |t| t.0)?;
        statement.column(&set, |t| t.1.queue.namespace.clone())?;
        statement.column(&set, |t| t.1.queue.task_queue.clone())?;
        statement.column(&set, |t| t.1.workflow_type.clone())?;
        statement.column(&set, |t| t.1.build_id.clone())?;
    }
    if !deleted.is_empty() {
        statement.parts.add(Part::TasksDeleted);
        statement.bind(deleted)?;
    }
    Ok(())
}

fn bind_doubts(
    statement: &mut Statement,
    doubts: BTreeMap<(Uuid, i64), Option<Doubt>>,
    cleared: BTreeSet<Uuid>,
) -> Bound {
    let (mut set, mut deleted) = (Vec::new(), Vec::new());
    for ((run, step), doubt) in doubts {
        match doubt {
            Some(doubt) => set.push((run, step, doubt)),
            None => deleted.push((run, Some(step))),
        }
    }
    deleted.extend(cleared.into_iter().map(|run| (run, None)));
    if !set.is_empty() {
        statement.parts.add(Part::DoubtsSet);
        statement.column(&set, |d| d.0)?;
        statement.column(&set, |d| d.1)?;
        statement.column(&set, |d| i64::from(d.2.attempt))?;
        statement.column(&set, |d| d.2.name.clone())?;
        statement.column(&set, |d| d.2.policy.as_str())?;
        statement.column(&set, |d| to_db(d.2.since))?;
    }
    if !deleted.is_empty() {
        statement.parts.add(Part::DoubtsDeleted);
        statement.column(&deleted, |d| d.0)?;
        statement.column(&deleted, |d| d.1)?;
        statement.column(&set, |d| d.0)?;
        statement.column(&set, |d| d.1)?;
    }
    Ok(())
}
