//! INV-24: once it is over, an open run waits for something that can still come.

use everstep_core::{Duration, RunId, RunStatus, Timestamp};

use crate::case::{Case, Tables};
use crate::format::DEFAULT_LATE_BOUND_MS;
use crate::verdict::Check;

/// Every open run is blocked, has an owner, or waits for a timer that is not overdue or for a signal.
///
/// "Now" is the latest instant that the export or its events show, so a timer that counts as overdue
/// really is. That an owner is alive cannot be seen in an export; a run that a dead one holds is found by
/// its outcome.
pub(crate) fn check(case: &Case) -> Check {
    let mut check = Check::new("liveness", &["INV-24"]);
    let now = case.now();
    let bound = case.meta.as_ref().and_then(|m| m.late_bound_ms).unwrap_or(DEFAULT_LATE_BOUND_MS);
    for (id, tables) in case.runs.iter().filter(|(_, t)| !t.is_closed()) {
        check.looked();
        run(*id, tables, (now, Duration::from_millis(bound)), &mut check);
    }
    check
}

fn run(id: RunId, tables: &Tables, (now, bound): (Timestamp, Duration), check: &mut Check) {
    let Some(row) = &tables.row else { return };
    let name = &row.workflow_id;
    if row.status == RunStatus::Blocked {
        if row.blocked.is_empty() {
            check.problem(format!("run {id} ({name}): is blocked and does not say why"));
        }
        return;
    }
    for timer in tables.timers.iter().filter(|t| now.since(t.fire_at) > bound) {
        let late = now.since(timer.fire_at).as_micros() / 1_000;
        let kind = timer.key.kind.as_str();
        check.problem(format!("run {id} ({name}): {kind} {} is overdue by {late} ms", timer.key.id));
    }
    let waited = tables.events.last().map(|e| now.since(e.at)).unwrap_or_default();
    if !tables.tasks.is_empty() && waited > bound {
        let waited = waited.as_micros() / 1_000;
        check.problem(format!("run {id} ({name}): needs a worker for {waited} ms, and none has it"));
    }
}

#[cfg(test)]
mod tests {
    use everstep_core::QueueKey;

    use super::*;
    use crate::fixture::{broken, good};

    #[test]
    fn waiting_for_a_timer_is_fine() {
        let check = check(&good());
        assert!(check.ok && check.checked > 0, "{check:?}");
    }

    #[test]
    fn an_overdue_timer_is_found() {
        broken(check, "is overdue by", |c| {
            let due = c.second().timers[0].fire_at.as_micros();
            c.meta().exported_at_us = Some(due + 31_000_000);
        });
    }

    #[test]
    fn a_run_that_no_worker_takes_is_found() {
        broken(check, "none has it", |c| {
            let queue = QueueKey { namespace: "default".to_owned(), task_queue: "q".to_owned() };
            c.second().tasks.push(queue);
            let last = c.second().events.last().map_or(0, |e| e.at.as_micros());
            c.second().timers.clear();
            c.meta().exported_at_us = Some(last + 31_000_000);
        });
    }

    #[test]
    fn a_blocked_run_says_why() {
        broken(check, "does not say why", |c| {
            c.second().row.iter_mut().for_each(|r| r.status = RunStatus::Blocked);
        });
    }
}
