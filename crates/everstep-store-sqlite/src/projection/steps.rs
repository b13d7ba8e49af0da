//! The queued steps of one transaction.

use std::collections::BTreeMap;

use everstep_core::{Duration, OpId, RunId, StepTask, Timestamp, Write};
use everstep_store::StepClock;
use sqlx::SqliteConnection;

use super::write_rows;
use crate::sql::{ManyRows, Values};

static CLEARED: ManyRows = ManyRows::new("DELETE FROM step_tasks WHERE run_id IN (", "?", ")");
static DELETED: ManyRows =
    ManyRows::new("DELETE FROM step_tasks WHERE (run_id, step_id) IN (VALUES ", "(?,?)", ")");
/// An attempt whose number and instant stay keeps who has it.
static SET: ManyRows = ManyRows::new(
    "INSERT INTO step_tasks AS t (run_id, step_id, attempt, name, namespace, task_queue, priority, scheduled_seq,
         visible_at, start_by, close_by, start_to_close_us, heartbeat_us, canceled, due_at) VALUES ",
    "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
    " ON CONFLICT (run_id, step_id) DO UPDATE SET
         attempt = excluded.attempt, name = excluded.name, namespace = excluded.namespace,
         task_queue = excluded.task_queue, priority = excluded.priority, scheduled_seq = excluded.scheduled_seq,
         visible_at = excluded.visible_at, start_by = excluded.start_by, close_by = excluded.close_by,
         start_to_close_us = excluded.start_to_close_us, heartbeat_us = excluded.heartbeat_us,
         canceled = excluded.canceled,
         due_at = CASE WHEN t.claim_id IS NOT NULL AND t.attempt = excluded.attempt
                            AND t.visible_at = excluded.visible_at THEN t.due_at ELSE excluded.due_at END,
         claim_id = CASE WHEN t.attempt = excluded.attempt AND t.visible_at = excluded.visible_at THEN t.claim_id END,
         session = CASE WHEN t.attempt = excluded.attempt AND t.visible_at = excluded.visible_at THEN t.session END,
         claimed_at = CASE WHEN t.attempt = excluded.attempt AND t.visible_at = excluded.visible_at
                           THEN t.claimed_at END,
         beat_at = CASE WHEN t.attempt = excluded.attempt AND t.visible_at = excluded.visible_at THEN t.beat_at END",
);

/// What becomes of queued steps.
#[derive(Default)]
pub(super) struct Steps<'a> {
    cleared: Vec<RunId>,
    deleted: Vec<(RunId, OpId)>,
    set: Vec<(RunId, &'a StepTask)>,
}

impl<'a> Steps<'a> {
    /// Adds the writes of a run that is not here yet.
    pub(super) fn add(&mut self, run: RunId, writes: &'a [Write]) {
        let mut cleared = false;
        let mut steps: BTreeMap<OpId, Option<&StepTask>> = BTreeMap::new();
        for write in writes {
            match write {
                Write::StepTaskSet(task) => drop(steps.insert(task.step, Some(task))),
                Write::StepTaskDeleted(step) => drop(steps.insert(*step, None)),
                Write::StepTasksCleared => {
                    cleared = true;
                    steps.clear();
                }
                _ => {}
            }
        }
        self.cleared.extend(cleared.then_some(run));
        for (step, task) in steps {
            match task {
                Some(task) => self.set.push((run, task)),
                None => self.deleted.push((run, step)),
            }
        }
    }

    pub(super) async fn write(&self, c: &mut SqliteConnection, now: Timestamp) -> Result<(), sqlx::Error> {
        write_rows(c, &CLEARED, &self.cleared, |v, run| v.push(run.uuid())).await?;
        write_rows(c, &DELETED, &self.deleted, |v, (run, step)| {
            v.push(run.uuid());
            v.push(i64::from(step.0));
        })
        .await?;
        write_rows(c, &SET, &self.set, |v, (run, task)| bind(v, *run, task, now)).await
    }
}

fn bind(values: &mut Values, run: RunId, task: &StepTask, now: Timestamp) {
    // Destructured, so that a new field cannot be forgotten here.
    let StepTask {
        step,
        name,
        attempt,
        queue,
        priority,
        scheduled,
        visible_at,
        start_by,
        close_by,
        start_to_close,
        heartbeat,
        canceled,
    } = task;
    let length = |of: &Option<Duration>| of.map(|d| d.as_micros().cast_signed());
    values.push(run.uuid());
    values.push(i64::from(step.0));
    values.push(i64::from(*attempt));
    values.push(name.as_str());
    values.push(queue.namespace.as_str());
    values.push(queue.task_queue.as_str());
    values.push(i64::from(*priority));
    values.push(scheduled.cast_signed());
    values.push(visible_at.as_micros());
    values.push(start_by.map(Timestamp::as_micros));
    values.push(close_by.map(Timestamp::as_micros));
    values.push(length(start_to_close));
    values.push(length(heartbeat));
    values.push(*canceled);
    values.push(StepClock { task, claimed_at: None, beat_at: None }.next_look(now).as_micros());
}
