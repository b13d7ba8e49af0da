//! The projection writes of one transaction, gathered by table.
//!
//! A run occurs once in a batch, so writes of different runs commute and go in together; those of one run
//! are folded in their order first, until each row of a table is written or deleted once.

mod steps;

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{
    AttributeRows, Doubt, Duration, OpId, RunId, RunRow, Seq, TaskRow, Timer, TimerKey, Timestamp, Write,
};
use sqlx::SqliteConnection;

use crate::attributes;
use crate::outbox::Between;
use crate::sql::{ManyRows, ROWS_MAX, Values};

/// A new task is left to the normal dispatch for this long.
const TASK_GRACE: Duration = Duration::from_secs(1);

static RUNS: ManyRows = ManyRows::new(
    "INSERT INTO runs (run_id, last_seq, started_at, closed_at, owner, epoch, cancel_requested, namespace,
         workflow_id, workflow_type, task_queue, status, build_id, blocked) VALUES ",
    "(?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
    " ON CONFLICT (run_id) DO UPDATE SET
         last_seq = excluded.last_seq, started_at = excluded.started_at, closed_at = excluded.closed_at,
         owner = excluded.owner, epoch = excluded.epoch, cancel_requested = excluded.cancel_requested,
         namespace = excluded.namespace, workflow_id = excluded.workflow_id,
         workflow_type = excluded.workflow_type, task_queue = excluded.task_queue, status = excluded.status,
         build_id = excluded.build_id, blocked = excluded.blocked
       WHERE runs.last_seq < excluded.last_seq",
);
static TIMERS_CLEARED: ManyRows = ManyRows::new("DELETE FROM timers WHERE run_id IN (", "?", ")");
static TIMERS_DELETED: ManyRows =
    ManyRows::new("DELETE FROM timers WHERE (run_id, kind, id) IN (VALUES ", "(?,?,?)", ")");
static TIMERS_SET: ManyRows = ManyRows::new(
    "INSERT INTO timers (run_id, kind, id, fire_at) VALUES ",
    "(?,?,?,?)",
    " ON CONFLICT (run_id, kind, id) DO UPDATE SET fire_at = excluded.fire_at, claimed_until = NULL",
);
static TASKS_DELETED: ManyRows = ManyRows::new("DELETE FROM tasks WHERE run_id IN (", "?", ")");
static TASKS_SET: ManyRows = ManyRows::new(
    "INSERT INTO tasks (run_id, namespace, task_queue, workflow_type, build_id, claims, next_claim_at) VALUES ",
    "(?,?,?,?,?,0,?)",
    " ON CONFLICT (run_id) DO UPDATE SET namespace = excluded.namespace, task_queue = excluded.task_queue,
         workflow_type = excluded.workflow_type, build_id = excluded.build_id, claims = 0, next_claim_at = excluded.next_claim_at",
);
pub(crate) static WAKES_DELETED: ManyRows =
    ManyRows::repeated("DELETE FROM wakes WHERE run_id = ? AND seq <= ?;");
static WAKES_SET: ManyRows =
    ManyRows::new("INSERT OR IGNORE INTO wakes (run_id, seq, created_at) VALUES ", "(?,?,?)", "");

static DOUBTS_CLEARED: ManyRows = ManyRows::new("DELETE FROM doubts WHERE run_id IN (", "?", ")");
static DOUBTS_DELETED: ManyRows =
    ManyRows::new("DELETE FROM doubts WHERE (run_id, step_id) IN (VALUES ", "(?,?)", ")");
static DOUBTS_SET: ManyRows = ManyRows::new(
    "INSERT OR REPLACE INTO doubts (run_id, step_id, attempt, name, policy, since) VALUES ",
    "(?,?,?,?,?,?)",
    "",
);

/// The writes of a transaction.
#[derive(Default)]
pub(crate) struct Projections<'a> {
    runs: Vec<&'a RunRow>,
    timers_cleared: Vec<RunId>,
    timers_deleted: Vec<(RunId, TimerKey)>,
    timers_set: Vec<(RunId, TimerKey, Timestamp)>,
    tasks_deleted: Vec<RunId>,
    tasks_set: Vec<(RunId, &'a TaskRow)>,
    wakes_deleted: Vec<(RunId, Seq)>,
    wakes_set: Vec<(RunId, Seq)>,
    doubts_cleared: Vec<RunId>,
    doubts_deleted: Vec<(RunId, OpId)>,
    doubts_set: Vec<(RunId, &'a Doubt)>,
    between: Between<'a>,
    steps: steps::Steps<'a>,
    attributes: BTreeMap<RunId, &'a AttributeRows>,
}

impl<'a> Projections<'a> {
    /// Adds the writes of a run that is not here yet.
    pub(crate) fn add(&mut self, run: RunId, writes: &'a [Write]) {
        let mut row: Option<&RunRow> = None;
        let mut cleared = false;
        let mut timers: BTreeMap<TimerKey, Option<Timestamp>> = BTreeMap::new();
        let mut task: Option<Option<&TaskRow>> = None;
        let mut seen: Option<Seq> = None;
        let mut wakes: BTreeSet<Seq> = BTreeSet::new();
        let mut doubts_cleared = false;
        let mut doubts: BTreeMap<OpId, Option<&Doubt>> = BTreeMap::new();
        let mut between = false;
        let mut queued = false;
        for write in writes {
            match write {
                Write::Run(new) => {
                    if row.is_none_or(|row| row.last_seq < new.last_seq) {
                        row = Some(new);
                    }
                }
                Write::TimerSet(Timer { key, fire_at }) => drop(timers.insert(*key, Some(*fire_at))),
                Write::TimerDeleted(key) => drop(timers.insert(*key, None)),
                Write::TimersCleared => {
                    cleared = true;
                    timers.clear();
                }
                Write::TaskSet(row) => task = Some(Some(row)),
                Write::TaskDeleted => task = Some(None),
                Write::DoubtSet(doubt) => drop(doubts.insert(doubt.step, Some(doubt))),
                Write::DoubtDeleted(step) => drop(doubts.insert(*step, None)),
                Write::DoubtsCleared => {
                    doubts_cleared = true;
                    doubts.clear();
                }
                Write::StepTaskSet(_) | Write::StepTaskDeleted(_) | Write::StepTasksCleared => queued = true,
                Write::OutboxSet { .. } | Write::OutboxDeleted { .. } | Write::LinkSet(_) => between = true,
                Write::AttributesSet(rows) => drop(self.attributes.insert(run, rows)),
                Write::WakeSet { seq } => drop(wakes.insert(*seq)),
                Write::WakesDeleted { up_to } => {
                    seen = seen.max(Some(*up_to));
                    wakes.retain(|seq| seq > up_to);
                }
            }
        }
        if queued {
            self.steps.add(run, writes);
        }
        if between {
            self.between.add(run, writes);
        }
        self.runs.extend(row);
        self.timers_cleared.extend(cleared.then_some(run));
        for (key, fire_at) in timers {
            match fire_at {
                Some(fire_at) => self.timers_set.push((run, key, fire_at)),
                None => self.timers_deleted.push((run, key)),
            }
        }
        self.doubts_cleared.extend(doubts_cleared.then_some(run));
        for (step, doubt) in doubts {
            match doubt {
                Some(doubt) => self.doubts_set.push((run, doubt)),
                None => self.doubts_deleted.push((run, step)),
            }
        }
        match task {
            Some(Some(row)) => self.tasks_set.push((run, row)),
            Some(None) => self.tasks_deleted.push(run),
            None => {}
        }
        self.wakes_deleted.extend(seen.map(|seq| (run, seq)));
        self.wakes_set.extend(wakes.into_iter().map(|seq| (run, seq)));
    }

    /// Writes them all: deletions of a table before what is set in it.
    pub(crate) async fn write(&self, c: &mut SqliteConnection, now: Timestamp) -> Result<(), sqlx::Error> {
        write_rows(c, &RUNS, &self.runs, |v, row| bind_run(v, row)).await?;
        attributes::write(c, &self.attributes).await?;
        self.between.write(c, now).await?;
        self.steps.write(c, now).await?;
        write_rows(c, &TIMERS_CLEARED, &self.timers_cleared, |v, run| v.push(run.uuid())).await?;
        write_rows(c, &TIMERS_DELETED, &self.timers_deleted, |v, (run, key)| bind_timer(v, *run, *key))
            .await?;
        write_rows(c, &TIMERS_SET, &self.timers_set, |v, (run, key, fire_at)| {
            bind_timer(v, *run, *key);
            v.push(fire_at.as_micros());
        })
        .await?;
        write_rows(c, &TASKS_DELETED, &self.tasks_deleted, |v, run| v.push(run.uuid())).await?;
        write_rows(c, &TASKS_SET, &self.tasks_set, |v, (run, task)| {
            v.push(run.uuid());
            v.push(task.queue.namespace.as_str());
            v.push(task.queue.task_queue.as_str());
            v.push(task.workflow_type.as_str());
            v.push(task.build_id.as_str());
            v.push(now.after(TASK_GRACE).as_micros());
        })
        .await?;
        write_rows(c, &WAKES_DELETED, &self.wakes_deleted, bind_seq).await?;
        write_rows(c, &WAKES_SET, &self.wakes_set, |v, wake| {
            bind_seq(v, wake);
            v.push(now.as_micros());
        })
        .await?;
        write_rows(c, &DOUBTS_CLEARED, &self.doubts_cleared, |v, run| v.push(run.uuid())).await?;
        write_rows(c, &DOUBTS_DELETED, &self.doubts_deleted, |v, (run, step)| {
            v.push(run.uuid());
            v.push(i64::from(step.0));
        })
        .await?;
        write_rows(c, &DOUBTS_SET, &self.doubts_set, |v, (run, doubt)| bind_doubt(v, *run, doubt)).await
    }
}

/// Runs `statement` over `rows`, as few times as it takes.
pub(crate) async fn write_rows<T>(
    connection: &mut SqliteConnection,
    statement: &ManyRows,
    rows: &[T],
    bind: impl Fn(&mut Values, &T),
) -> Result<(), sqlx::Error> {
    for rows in rows.chunks(ROWS_MAX) {
        let mut values = Values::default();
        rows.iter().for_each(|row| bind(&mut values, row));
        sqlx::query_with(statement.text(rows.len()), values.finish()?).execute(&mut *connection).await?;
    }
    Ok(())
}

/// A run and a seq.
pub(crate) fn bind_seq(values: &mut Values, (run, seq): &(RunId, Seq)) {
    values.push(run.uuid());
    values.push(seq.cast_signed());
}

fn bind_timer(values: &mut Values, run: RunId, key: TimerKey) {
    values.push(run.uuid());
    values.push(key.kind.as_str());
    values.push(i64::from(key.id));
}

fn bind_doubt(values: &mut Values, run: RunId, doubt: &Doubt) {
    let Doubt { step, name, attempt, policy, since } = doubt;
    values.push(run.uuid());
    values.push(i64::from(step.0));
    values.push(i64::from(*attempt));
    values.push(name.as_str());
    values.push(policy.as_str());
    values.push(since.as_micros());
}

fn bind_run(values: &mut Values, row: &RunRow) {
    // Destructured, so that a new field cannot be forgotten here.
    let RunRow {
        run_id,
        namespace,
        workflow_id,
        workflow_type,
        task_queue,
        status,
        owner,
        epoch,
        build_id,
        blocked,
        cancel_requested,
        started_at,
        closed_at,
        last_seq,
    } = row;
    values.push(run_id.uuid());
    values.push(last_seq.cast_signed());
    values.push(started_at.as_micros());
    values.push(closed_at.map(Timestamp::as_micros));
    values.push(owner.map(|owner| owner.uuid()));
    values.push(epoch.cast_signed());
    values.push(*cancel_requested);
    values.push(namespace.as_str());
    values.push(workflow_id.as_str());
    values.push(workflow_type.as_str());
    values.push(task_queue.as_str());
    values.push(status.as_str());
    values.push(build_id.as_str());
    values.push(blocked.as_str());
}
