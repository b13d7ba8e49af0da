//! The log by itself: order, end, epochs, and each command once.

use std::collections::HashMap;

use everstep_core::{CommandId, Epoch, Event, EventBody, RunId};

use crate::case::{Case, Tables};
use crate::verdict::Check;

/// INV-01 and INV-05: 1, 2, 3 … from `RunStarted`, with at most one end, which is last.
pub(crate) fn history(case: &Case) -> Check {
    let mut check = Check::new("history", &["INV-01", "INV-05"]);
    for (id, tables) in &case.runs {
        for (index, event) in tables.events.iter().enumerate() {
            check.looked();
            let expected = index as u64 + 1;
            if event.seq != expected {
                check.problem(format!("run {id}: event {} stands where {expected} belongs", event.seq));
            }
            let is_start = matches!(event.body, EventBody::RunStarted(_));
            if is_start != (index == 0) {
                check.problem(format!("run {id}: event {} is {}", event.seq, event.body.kind()));
            }
        }
        end(*id, tables, &mut check);
    }
    check
}

fn end(id: RunId, tables: &Tables, check: &mut Check) {
    let ends: Vec<&Event> = tables.events.iter().filter(|e| e.body.is_terminal()).collect();
    if ends.len() > 1 {
        check.problem(format!("run {id}: ended {} times", ends.len()));
    }
    if let (Some(end), Some(last)) = (ends.first(), tables.events.last())
        && end.seq != last.seq
    {
        let (seq, kind) = (end.seq, end.body.kind());
        check.problem(format!("run {id}: {} follows its end, {kind} at {seq}", last.body.kind()));
    }
    let Some(status) = tables.status() else { return };
    if status.is_closed() && ends.is_empty() {
        check.problem(format!("run {id}: is {status}, without an event that says so"));
    }
    if !status.is_closed() && !ends.is_empty() {
        check.problem(format!("run {id}: is {status}, yet it has ended"));
    }
}

/// INV-11 and INV-12: a claim raises the epoch by one, nothing else changes it, and what a worker recorded
/// was recorded under the epoch that it sent.
///
/// The last needs no clock: the id of a worker's commit holds the epoch under which it was made, whatever
/// the event beside it says.
pub(crate) fn epochs(case: &Case) -> Check {
    let mut check = Check::new("epochs", &["INV-11", "INV-12"]);
    for (id, tables) in &case.runs {
        let (mut epoch, mut commits): (Epoch, u32) = (0, 0);
        for event in &tables.events {
            check.looked();
            let at = format!("run {id}: event {} ({})", event.seq, event.body.kind());
            let claim = matches!(event.body, EventBody::WorkerAttached { .. });
            let expected = epoch + u32::from(claim);
            if event.epoch < epoch {
                check.problem(format!("{at} of epoch {} follows epoch {epoch}: not fenced", event.epoch));
            } else if event.epoch != expected {
                check.problem(format!("{at} has epoch {}, expected {expected}", event.epoch));
            }
            if event.epoch > epoch {
                (epoch, commits) = (event.epoch, 0);
            }
            let Some((sent, number)) = event.command_id.worker_commit(*id) else { continue };
            if sent != event.epoch {
                check.problem(format!(
                    "{at} was sent under epoch {sent} and recorded under {}: not fenced",
                    event.epoch
                ));
            } else if number < commits {
                check.problem(format!("{at} is of commit {number}, after commit {commits} of its epoch"));
            } else {
                commits = number;
            }
        }
    }
    check
}

/// INV-45: a command is appended once. Its events stand together, under one epoch, and none comes twice.
pub(crate) fn commands(case: &Case) -> Check {
    let mut check = Check::new("commands", &["INV-03", "INV-45"]);
    for (id, tables) in &case.runs {
        let mut seen: HashMap<CommandId, Vec<&Event>> = HashMap::new();
        for event in &tables.events {
            let group = seen.entry(event.command_id).or_default();
            check.checked += u64::from(group.is_empty());
            let at = format!("run {id}: event {} ({})", event.seq, event.body.kind());
            if let Some(last) = group.last() {
                if last.seq + 1 != event.seq {
                    check.problem(format!(
                        "{at} belongs to the command of event {}: appended again",
                        last.seq
                    ));
                } else if group.iter().any(|e| e.body == event.body) {
                    check.problem(format!("{at} is there twice for one command"));
                } else if last.epoch != event.epoch {
                    check.problem(format!("{at} is of the command of event {}, of another epoch", last.seq));
                }
            }
            group.push(event);
        }
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{ATTACH, DONE_B, END, FAIL_B, broken, good};

    #[test]
    fn a_good_log_passes() {
        for check in [history(&good()), epochs(&good()), commands(&good())] {
            assert!(check.ok && check.checked > 0, "{check:?}");
        }
    }

    #[test]
    fn a_gap_is_found() {
        broken(history, "stands where", |c| drop(c.first().events.remove(3)));
    }

    #[test]
    fn a_doubled_event_is_found() {
        broken(history, "stands where", |c| {
            let copy = c.first().events[3].clone();
            c.first().events.insert(3, copy);
        });
    }

    #[test]
    fn a_run_that_does_not_begin_with_its_start_is_found() {
        broken(history, "event 1 is", |c| {
            c.first().events[0].body = EventBody::RunTimedOut { retried_by: None }
        });
    }

    #[test]
    fn two_ends_are_found() {
        broken(history, "ended 2 times", |c| {
            c.first().events[FAIL_B].body = EventBody::RunTimedOut { retried_by: None }
        });
    }

    #[test]
    fn an_event_after_the_end_is_found() {
        broken(history, "follows its end", |c| c.first().events.swap(END - 1, END));
    }

    #[test]
    fn a_closed_run_without_an_end_is_found() {
        broken(history, "without an event that says so", |c| drop(c.first().events.pop()));
    }

    #[test]
    fn a_claim_that_raises_nothing_is_found() {
        broken(epochs, "expected 1", |c| c.first().events[ATTACH].epoch = 0);
    }

    #[test]
    fn an_event_of_an_older_epoch_is_found() {
        broken(epochs, "of epoch 1 follows epoch 3: not fenced", |c| c.first().events[END].epoch = 1);
    }

    #[test]
    fn a_commit_of_an_older_owner_is_found_by_its_id() {
        broken(epochs, "sent under epoch 1", |c| {
            let run = c.first_id();
            c.first().events[END].command_id = CommandId::of_worker(run, 1, 9);
        });
    }

    #[test]
    fn commits_that_go_back_are_found() {
        broken(epochs, "of commit 1, after commit 2", |c| {
            let (run, first) = (c.first_id(), DONE_B);
            c.first().events[first].command_id = CommandId::of_worker(run, 2, 2);
            c.first().events[first + 1].command_id = CommandId::of_worker(run, 2, 1);
        });
    }

    #[test]
    fn an_open_run_with_an_end_is_found() {
        broken(history, "is running, yet it has ended", |c| {
            c.first().row.iter_mut().for_each(|r| r.status = everstep_core::RunStatus::Running);
        });
    }

    #[test]
    fn a_command_under_two_epochs_is_found() {
        broken(commands, "of another epoch", |c| {
            let id = c.first().events[DONE_B].command_id;
            c.first().events[DONE_B - 1].command_id = id;
            c.first().events[DONE_B - 1].epoch = 1;
        });
    }

    #[test]
    fn a_command_that_was_appended_again_later_is_found() {
        broken(commands, "appended again", |c| {
            let id = c.first().events[FAIL_B].command_id;
            c.first().events[END].command_id = id;
        });
    }

    #[test]
    fn a_command_that_was_appended_twice_in_a_row_is_found() {
        broken(commands, "twice for one command", |c| {
            let mut again = c.first().events[ATTACH].clone();
            again.seq += 1;
            c.first().events.insert(ATTACH + 1, again);
        });
    }
}
