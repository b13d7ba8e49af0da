//! The tables beside the log: what they hold follows from the events, and from nothing else.

use everstep_core::{Doubt, Projection, QueueKey, Run, RunId, RunRow, StepTask, Timer};

use crate::case::{Case, Tables};
use crate::verdict::Check;

/// INV-04: folding the events gives the exported row, timers, doubts, queued steps and task.
pub(crate) fn fold(case: &Case) -> Check {
    let mut check = Check::new("tables", &["INV-04"]);
    for problem in &case.undecoded {
        check.problem(problem.clone());
    }
    for (id, tables) in &case.runs {
        check.looked();
        let folded = match Run::fold(*id, &tables.events) {
            Ok(Some(run)) => run.projection(),
            Ok(None) => {
                check.problem(format!("run {id}: rows without events"));
                continue;
            }
            Err(error) => {
                check.problem(format!("run {id}: the events do not fold: {error}"));
                continue;
            }
        };
        match &tables.row {
            None => check.problem(format!("run {id}: events without a row")),
            Some(row) => rows(*id, row, &folded.row, &mut check),
        }
        timers(*id, &tables.timers, &folded.timers, &mut check);
        doubts(*id, &tables.doubts, &folded.doubts, &mut check);
        steps(*id, &tables.steps, &folded.steps, &mut check);
        task(*id, &tables.tasks, &folded, &mut check);
    }
    check
}

fn rows(id: RunId, stored: &RunRow, folded: &RunRow, check: &mut Check) {
    let (stored, folded) = (serde_json::json!(stored), serde_json::json!(folded));
    for (field, value) in folded.as_object().into_iter().flatten() {
        let found = &stored[field];
        if found != value {
            check.problem(format!("run {id}: {field} is {found}, the events say {value}"));
        }
    }
}

fn timers(id: RunId, stored: &[Timer], folded: &[Timer], check: &mut Check) {
    let text = |t: &Timer| format!("{} {} at {}", t.key.kind.as_str(), t.key.id, t.fire_at);
    for timer in folded.iter().filter(|t| !stored.contains(t)) {
        check.problem(format!("run {id}: no row for timer {}", text(timer)));
    }
    for timer in stored.iter().filter(|t| !folded.contains(t)) {
        check.problem(format!("run {id}: a row for timer {}, which no event calls for", text(timer)));
    }
}

fn doubts(id: RunId, stored: &[Doubt], folded: &[Doubt], check: &mut Check) {
    let text = |d: &Doubt| format!("step {} '{}', attempt {}", d.step, d.name, d.attempt);
    for doubt in folded.iter().filter(|d| !stored.contains(d)) {
        check.problem(format!("run {id}: no row for {} in doubt", text(doubt)));
    }
    for doubt in stored.iter().filter(|d| !folded.contains(d)) {
        check.problem(format!("run {id}: a row for {} in doubt, which no event calls for", text(doubt)));
    }
}

fn steps(id: RunId, stored: &[StepTask], folded: &[StepTask], check: &mut Check) {
    let text = |t: &StepTask| format!("queued step {} '{}', attempt {}", t.step, t.name, t.attempt);
    for task in folded.iter().filter(|t| !stored.contains(t)) {
        check.problem(format!("run {id}: no row for {}", text(task)));
    }
    for task in stored.iter().filter(|t| !folded.contains(t)) {
        check.problem(format!("run {id}: a row for {}, which no event calls for", text(task)));
    }
}

fn task(id: RunId, stored: &[QueueKey], folded: &Projection, check: &mut Check) {
    match (stored, &folded.task) {
        ([], None) => {}
        ([one], Some(task)) if *one == task.queue => {}
        ([], Some(task)) => {
            check.problem(format!("run {id}: needs a worker of {}, without a task", task.queue.task_queue));
        }
        (some, None) => check.problem(format!("run {id}: {} tasks, and needs no worker", some.len())),
        (some, Some(task)) => {
            check.problem(format!("run {id}: tasks {some:?}, the events call for {}", task.queue.task_queue));
        }
    }
}

/// INV-25: a closed run has no timer, task, doubt, queued step or wake, and a wake stands for an event that an owner has to
/// be told of.
pub(crate) fn leftovers(case: &Case) -> Check {
    let mut check = Check::new("leftovers", &["INV-25"]);
    for (id, tables) in &case.runs {
        check.looked();
        if tables.is_closed() {
            closed(*id, tables, &mut check);
            continue;
        }
        let owned = tables.row.as_ref().is_some_and(|r| r.owner.is_some());
        let last = tables.events.last().map_or(0, |e| e.seq);
        for wake in &tables.wakes {
            if *wake > last {
                check.problem(format!("run {id}: a wake for event {wake}, the last one is {last}"));
            } else if !owned {
                check.problem(format!("run {id}: a wake for event {wake}, and no owner to be told"));
            }
        }
    }
    check
}

fn closed(id: RunId, tables: &Tables, check: &mut Check) {
    let rows = [
        ("timers", tables.timers.len()),
        ("tasks", tables.tasks.len()),
        ("doubts", tables.doubts.len()),
        ("queued steps", tables.steps.len()),
        ("wakes", tables.wakes.len()),
    ];
    for (name, count) in rows.into_iter().filter(|(_, count)| *count > 0) {
        check.problem(format!("run {id}: is closed and has {name}: {count}"));
    }
}

#[cfg(test)]
mod tests {
    use everstep_core::{DoubtPolicy, OpId, RunStatus, TimerKey, Timestamp};

    use super::*;
    use crate::fixture::{FAIL_B, broken, good};

    fn timer() -> Timer {
        Timer { key: TimerKey::timer(OpId(7)), fire_at: Timestamp::from_micros(1) }
    }

    #[test]
    fn good_tables_pass() {
        for check in [fold(&good()), leftovers(&good())] {
            assert!(check.ok && check.checked > 0, "{check:?}");
        }
    }

    #[test]
    fn a_row_that_differs_is_found() {
        broken(fold, "status is \"running\"", |c| {
            c.first().row.iter_mut().for_each(|r| r.status = RunStatus::Running);
        });
        broken(fold, "events without a row", |c| c.first().row = None);
        broken(fold, "rows without events", |c| c.first().events.clear());
    }

    #[test]
    fn a_history_that_does_not_fold_is_found() {
        broken(fold, "do not fold", |c| drop(c.first().events.remove(FAIL_B)));
        broken(fold, "line 7", |c| c.undecoded.push("line 7: no field".to_owned()));
    }

    #[test]
    fn timers_that_differ_are_found() {
        broken(fold, "no row for timer", |c| c.second().timers.clear());
        broken(fold, "which no event calls for", |c| c.second().timers.push(timer()));
    }

    #[test]
    fn doubts_that_differ_are_found() {
        let doubt = || Doubt {
            step: OpId(7),
            name: "charge".to_owned(),
            attempt: 1,
            policy: DoubtPolicy::AskHuman,
            since: Timestamp::from_micros(1),
        };
        broken(fold, "in doubt, which no event calls for", |c| c.second().doubts.push(doubt()));
        broken(leftovers, "has doubts", |c| c.first().doubts.push(doubt()));
    }

    #[test]
    fn queued_steps_that_differ_are_found() {
        let step = || StepTask {
            step: OpId(7),
            name: "transcode".to_owned(),
            attempt: 1,
            queue: queue(),
            priority: 3,
            scheduled: 2,
            visible_at: Timestamp::from_micros(1),
            start_by: None,
            close_by: None,
            start_to_close: None,
            heartbeat: None,
            canceled: false,
        };
        broken(fold, "'transcode', attempt 1, which no event calls for", |c| c.second().steps.push(step()));
        broken(leftovers, "has queued steps", |c| c.first().steps.push(step()));
    }

    #[test]
    fn tasks_that_differ_are_found() {
        broken(fold, "needs no worker", |c| c.second().tasks.push(queue()));
        broken(fold, "without a task", |c| drop(c.second().events.drain(1..)));
        broken(fold, "the events call for q", |c| {
            c.second().events.drain(1..);
            c.second().tasks = vec![QueueKey { task_queue: "other".to_owned(), ..queue() }];
        });
        broken(fold, "the events call for q", |c| {
            c.second().events.drain(1..);
            c.second().tasks = vec![queue(), queue()];
        });
    }

    #[test]
    fn leftovers_of_closed_runs_are_found() {
        broken(leftovers, "has timers", |c| c.first().timers.push(timer()));
        broken(leftovers, "has wakes", |c| c.first().wakes.push(1));
        broken(leftovers, "has tasks", |c| c.first().tasks.push(queue()));
    }

    #[test]
    fn wakes_without_a_reason_are_found() {
        broken(leftovers, "the last one is", |c| c.second().wakes.push(99));
        broken(leftovers, "no owner to be told", |c| c.second().wakes.push(1));
    }

    fn queue() -> QueueKey {
        QueueKey { namespace: "default".to_owned(), task_queue: "q".to_owned() }
    }
}
