//! Children: begun once for each time that a parent scheduled one, told of once when they end, and treated as the
//! parent's policy says when the parent ends first.

use std::collections::BTreeMap;

use everstep_core::{
    Actor, ChildClosed, ChildOutcome, ChildScheduled, Event, EventBody, OpId, ParentClose, RunId, RunStatus,
};

use crate::case::{Case, Tables};
use crate::chains::last_of;
use crate::verdict::Check;

/// Both sides of every link between a parent and a child.
pub(crate) fn check(case: &Case) -> Check {
    let mut check = Check::new("children", &["INV-06", "INV-07"]);
    for (id, tables) in &case.runs {
        parent(case, *id, tables, &mut check);
        child(case, *id, tables, &mut check);
    }
    check
}

/// What the parent's log says has to be true of the children's.
fn parent(case: &Case, id: RunId, tables: &Tables, check: &mut Check) {
    let mut closed: BTreeMap<OpId, &ChildClosed> = BTreeMap::new();
    for event in &tables.events {
        let EventBody::ChildClosed(told) = &event.body else { continue };
        if closed.insert(told.child, told).is_some() {
            check
                .problem(format!("run {id}: child {} ended twice, again at event {}", told.child, event.seq));
        }
    }
    for event in &tables.events {
        let EventBody::ChildScheduled(scheduled) = &event.body else { continue };
        check.looked();
        let what = format!("run {id}: child {} ({})", scheduled.child, scheduled.run_id);
        match closed.remove(&scheduled.child) {
            Some(told) => ended(case, &what, (event, scheduled), told, check),
            None => not_told(case, &what, tables, scheduled, check),
        }
    }
    for child in closed.keys() {
        check.problem(format!("run {id}: child {child} ended, and nobody scheduled it"));
    }
}

/// What the parent was told is what the child's last run says of itself.
fn ended(
    case: &Case,
    what: &str,
    (at, scheduled): (&Event, &ChildScheduled),
    told: &ChildClosed,
    check: &mut Check,
) {
    if told.scheduled != at.seq {
        check.problem(format!(
            "{what}: its end names event {}, it was scheduled at {}",
            told.scheduled, at.seq
        ));
    }
    if let ChildOutcome::NotStarted(failure) = &told.outcome {
        if case.runs.contains_key(&scheduled.run_id) {
            check.problem(format!("{what}: could not begin ({}), and has", failure.kind));
        }
        return;
    }
    let Some((last, tables)) = last_of(case, scheduled.run_id) else {
        return check.problem(format!("{what}: has ended, and never began"));
    };
    if told.run_id != last {
        check.problem(format!("{what}: ended as run {}, its last one is {last}", told.run_id));
    }
    let end = tables.events.last().map(|e| &e.body).filter(|body| body.is_terminal());
    let same = match (&told.outcome, end) {
        (ChildOutcome::Completed(result), Some(EventBody::RunCompleted { result: own, .. })) => result == own,
        (ChildOutcome::Ended { status, .. }, Some(end)) => status_of(end) == Some(*status),
        _ => false,
    };
    if !same {
        let end = end.map_or("no end", EventBody::kind);
        check.problem(format!("{what}: was told to be {}, its log has {end}", told.outcome.as_str()));
    }
}

fn status_of(end: &EventBody) -> Option<RunStatus> {
    Some(match end {
        EventBody::RunFailed { .. } => RunStatus::Failed,
        EventBody::RunCanceled { .. } => RunStatus::Canceled,
        EventBody::RunTerminated { .. } => RunStatus::Terminated,
        EventBody::RunTimedOut { .. } => RunStatus::TimedOut,
        _ => return None,
    })
}

/// A child that the parent does not know to have ended: it has begun all the same, and is open only if the parent
/// waits for it, or has left it alone.
fn not_told(case: &Case, what: &str, parent: &Tables, scheduled: &ChildScheduled, check: &mut Check) {
    let Some((_, last)) = last_of(case, scheduled.run_id) else {
        return check.problem(format!("{what}: LOST: was scheduled and never began"));
    };
    let policy = scheduled.on_parent_close;
    if !parent.is_closed() {
        if last.is_closed() {
            check.problem(format!("{what}: has ended, and its parent was not told"));
        }
    } else if policy == ParentClose::Terminate && !last.is_closed() {
        check.problem(format!("{what}: goes on after its parent's end, which should have stopped it"));
    } else if policy == ParentClose::RequestCancel
        && !last.is_closed()
        && !last.events.iter().any(|e| matches!(e.body, EventBody::CancelRequested { .. }))
    {
        check.problem(format!("{what}: was not asked to stop at its parent's end"));
    }
}

/// What the child's log says has to be true of the parent's.
fn child(case: &Case, id: RunId, tables: &Tables, check: &mut Check) {
    let Some(EventBody::RunStarted(start)) = tables.events.first().map(|e| &e.body) else { return };
    let Some(link) = &start.origin.parent else { return };
    check.looked();
    let first = start.origin.first.unwrap_or(id);
    let what = format!("run {id}, child {} of {}", link.child, link.run_id);
    let parent = case.runs.get(&link.run_id);
    let scheduled = parent.into_iter().flat_map(|p| &p.events).find_map(|e| match &e.body {
        EventBody::ChildScheduled(scheduled) if e.seq == link.scheduled => Some(scheduled),
        _ => None,
    });
    let Some(scheduled) = scheduled.filter(|s| s.child == link.child && s.run_id == first) else {
        return check.problem(format!("PHANTOM: {what}: its parent did not schedule it"));
    };
    if scheduled.workflow_id != start.workflow_id {
        let wanted = &scheduled.workflow_id;
        check.problem(format!("{what}: has the workflow id {}, wanted was {wanted}", start.workflow_id));
    }
    for event in &tables.events {
        let (EventBody::RunTerminated { .. }, Actor::Run(by)) = (&event.body, &event.actor) else { continue };
        let policy = scheduled.on_parent_close;
        if *by != link.run_id || policy != ParentClose::Terminate || !parent.is_some_and(Tables::is_closed) {
            let policy = policy.as_str();
            check.problem(format!("{what}: was stopped by run {by}; its policy is {policy}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use everstep_core::Payload;

    use super::*;
    use crate::fixture::features::{CHILD, CHILD_CLOSED, CHILD_SCHEDULED, PARENT, case};
    use crate::fixture::{broken_in, run_id};

    fn found(part: &str, change: impl FnOnce(&mut Case)) {
        broken_in(case, check, part, change);
    }

    fn parent(case: &mut Case) -> &mut Tables {
        case.runs.entry(run_id(PARENT)).or_default()
    }

    fn child(case: &mut Case) -> &mut Tables {
        case.runs.entry(run_id(CHILD)).or_default()
    }

    /// The parent ends before it hears of its child.
    fn unaware(case: &mut Case, policy: ParentClose) {
        let events = &mut parent(case).events;
        events.remove(CHILD_CLOSED);
        if let EventBody::ChildScheduled(scheduled) = &mut events[CHILD_SCHEDULED].body {
            scheduled.on_parent_close = policy;
        }
    }

    fn open(case: &mut Case) {
        let tables = child(case);
        tables.events.pop();
        tables.row = None;
    }

    #[test]
    fn children_that_were_begun_and_told_of_pass() {
        let check = check(&case());
        assert!(check.ok && check.checked > 1, "{check:?}");
    }

    #[test]
    fn a_child_that_was_never_begun_is_found() {
        found("never began", |c| drop(c.runs.remove(&run_id(CHILD))));
        found("LOST: was scheduled and never began", |c| {
            unaware(c, ParentClose::Abandon);
            c.runs.remove(&run_id(CHILD));
        });
    }

    #[test]
    fn a_child_that_nobody_scheduled_is_found() {
        found("PHANTOM", |c| drop(c.runs.remove(&run_id(PARENT))));
        found("PHANTOM", |c| {
            if let EventBody::ChildScheduled(scheduled) = &mut parent(c).events[CHILD_SCHEDULED].body {
                scheduled.run_id = run_id(99);
            }
        });
        found("has the workflow id", |c| {
            if let EventBody::ChildScheduled(scheduled) = &mut parent(c).events[CHILD_SCHEDULED].body {
                scheduled.workflow_id = "other".to_owned();
            }
        });
    }

    #[test]
    fn an_end_that_is_told_twice_or_wrongly_is_found() {
        found("ended twice", |c| {
            let again = parent(c).events[CHILD_CLOSED].clone();
            parent(c).events.insert(CHILD_CLOSED, again);
        });
        let outcome = |outcome: ChildOutcome| {
            move |c: &mut Case| {
                if let EventBody::ChildClosed(told) = &mut parent(c).events[CHILD_CLOSED].body {
                    told.outcome = outcome;
                }
            }
        };
        found("was told to be completed", outcome(ChildOutcome::Completed(Payload::json("\"other\""))));
        let failure = everstep_core::Failure::new("K", "m");
        found(
            "was told to be canceled",
            outcome(ChildOutcome::Ended { status: RunStatus::Canceled, failure: failure.clone() }),
        );
        found("could not begin (K), and has", outcome(ChildOutcome::NotStarted(failure)));
        found("ended as run", |c| {
            if let EventBody::ChildClosed(told) = &mut parent(c).events[CHILD_CLOSED].body {
                told.run_id = run_id(99);
            }
        });
        found("its parent was not told", |c| {
            unaware(c, ParentClose::Terminate);
            parent(c).events.pop();
            parent(c).row = None;
        });
    }

    #[test]
    fn a_policy_that_was_not_obeyed_is_found() {
        found("should have stopped it", |c| {
            unaware(c, ParentClose::Terminate);
            open(c);
        });
        found("was not asked to stop", |c| {
            unaware(c, ParentClose::RequestCancel);
            open(c);
        });
        found("was stopped by run", |c| {
            unaware(c, ParentClose::Abandon);
            let end = child(c).events.len() - 1;
            child(c).events[end].actor = Actor::Run(run_id(PARENT));
            child(c).events[end].body = EventBody::RunTerminated { reason: String::new() };
        });
        let mut alone = case();
        unaware(&mut alone, ParentClose::Abandon);
        open(&mut alone);
        assert!(check(&alone).ok, "a child that is left alone goes on");
    }
}
