//! The queued steps of a statement.

use std::collections::{BTreeMap, BTreeSet};

use everstep_core::{Duration, StepTask, Timestamp};
use uuid::Uuid;

use super::{Bound, Statement, signed};
use crate::rows::to_db;
use crate::sessions::micros;
use crate::sql::Part;

/// Which to set, or to delete.
pub(super) type Steps = BTreeMap<(Uuid, i64), Option<StepTask>>;

pub(super) fn bind_steps(statement: &mut Statement, steps: Steps, cleared: BTreeSet<Uuid>) -> Bound {
    let (mut set, mut deleted) = (Vec::new(), Vec::new());
    for ((run, step), task) in steps {
        match task {
            Some(task) => set.push((run, step, task)),
            None => deleted.push((run, Some(step))),
        }
    }
    deleted.extend(cleared.into_iter().map(|run| (run, None)));
    if !set.is_empty() {
        let instant = |at: Option<Timestamp>| at.map(to_db);
        let length = |of: Option<Duration>| of.map(micros);
        statement.parts.add(Part::StepsSet);
        statement.column(&set, |s| s.0)?;
        statement.column(&set, |s| s.1)?;
        statement.column(&set, |s| i64::from(s.2.attempt))?;
        statement.column(&set, |s| s.2.name.clone())?;
        statement.column(&set, |s| s.2.queue.namespace.clone())?;
        statement.column(&set, |s| s.2.queue.task_queue.clone())?;
        statement.column(&set, |s| i16::from(s.2.priority))?;
        statement.column(&set, |s| signed(s.2.scheduled))?;
        statement.column(&set, |s| to_db(s.2.visible_at))?;
        statement.column(&set, |s| instant(s.2.start_by))?;
        statement.column(&set, |s| instant(s.2.close_by))?;
        statement.column(&set, |s| length(s.2.start_to_close))?;
        statement.column(&set, |s| length(s.2.heartbeat))?;
        statement.column(&set, |s| s.2.canceled)?;
    }
    if !deleted.is_empty() {
        statement.parts.add(Part::StepsDeleted);
        statement.column(&deleted, |d| d.0)?;
        statement.column(&deleted, |d| d.1)?;
        statement.column(&set, |s| s.0)?;
        statement.column(&set, |s| s.1)?;
    }
    Ok(())
}
