//! Successors: a run's end and the start of the one that follows it, in one append.

use everstep_core::{EventBody, RunId, RunLink, RunStatus, Timer, TimerKey, Write};

use super::sample::{Sample, append, append_one, commit, history, started, tables};
use super::{Subject, ok};
use crate::{Append, RunAppend, StartClaim};

/// The end of `old`, whose first event is all there is, and the start of `new` after it.
fn succession(old: &Sample, new: &Sample) -> Append {
    let link = |previous: Option<RunId>, successor: Option<RunId>| {
        let (parent, first, attempt) = (None, previous, 1);
        Write::LinkSet(Box::new(RunLink { parent, previous, first, successor, attempt }))
    };
    let ended = EventBody::RunContinued { successor: new.run, carried: Vec::new() };
    let end = RunAppend {
        writes: vec![
            Write::TimersCleared,
            link(None, Some(new.run)),
            Write::Run(Box::new(old.closed(2, RunStatus::Continued))),
        ],
        ..old.bodies(2, vec![ended])
    };
    let mut start = new.start(Some(old.run));
    start.start = Some(StartClaim { request_id: format!("after:{}", old.run), ..new.claim(Some(old.run)) });
    start.writes.push(Write::TimerSet(Timer { key: TimerKey::START, fire_at: new.at }));
    start.writes.push(link(Some(old.run), None));
    Append { run: end, with: Some(Box::new(start)) }
}

/// Goal: the end and the next start are one: the new run has the workflow id, and both say so.
pub async fn a_run_and_its_successor_are_one_append(subject: &Subject) {
    let store = &*subject.store;
    let old = started(subject).await;
    let new = old.next();
    assert_eq!(append(store, vec![succession(&old, &new)]).await, ["committed"]);
    let request = format!("after:{}", old.run);
    let found = ok(store.find_start(&old.queue.namespace, &old.workflow_id, &request).await);
    assert_eq!(found.current, Some((new.run, RunStatus::Running)));
    assert_eq!(found.request.map(|(run, _)| run), Some(new.run));
    let (before, after) = (tables(store, old.run).await, tables(store, new.run).await);
    assert_eq!(before.projection.row.status, RunStatus::Continued);
    assert_eq!(before.projection.link.and_then(|link| link.successor), Some(new.run));
    assert_eq!(after.projection.link.and_then(|link| link.previous), Some(old.run));
    assert_eq!(after.projection.timers, [Timer { key: TimerKey::START, fire_at: new.at }]);
    assert_eq!(append(store, vec![succession(&old, &new)]).await, ["conflict"], "again");
    assert_eq!(history(store, new.run).await.len(), 1);
    assert!(ok(store.closed_among(&[old.run, new.run]).await) == [old.run]);
}

/// Goal: when either half is refused, nothing of the other is there.
pub async fn a_successor_is_started_with_the_end_or_not_at_all(subject: &Subject) {
    let store = &*subject.store;
    let old = started(subject).await;
    let new = old.next();
    commit(store, vec![old.steps(2, 1)]).await;
    assert_eq!(append(store, vec![succession(&old, &new)]).await, ["conflict"], "the old run has gone on");
    assert!(history(store, new.run).await.is_empty());
    assert_eq!(history(store, old.run).await.len(), 2);

    let old = started(subject).await;
    let (new, other) = (old.next(), old.next());
    commit(store, vec![other.start(Some(old.run))]).await;
    assert_eq!(append(store, vec![succession(&old, &new)]).await, ["conflict"], "another holds the id");
    assert_eq!(history(store, old.run).await.len(), 1);
    assert!(history(store, new.run).await.is_empty());
    assert_eq!(append_one(store, old.steps(2, 1)).await, "committed");
}
