//! Leases, and the runs that hang on them.

use everstep_core::{Duration, RunId, RunStatus, SessionId, Write};

use super::sample::{MANY, Sample, commit, new_session, session_row, started};
use super::{Subject, ok};
use crate::SessionRow;

const HOUR: Duration = Duration::from_secs(3_600);

/// Goal: an open session can be opened again elsewhere and renewed; a closed one never again.
pub async fn a_session_is_opened_renewed_moved_and_closed(subject: &Subject) {
    let store = &*subject.store;
    let session = session_row(new_session(), HOUR);
    let id = session.session_id;
    assert_eq!(ok(store.renew_session(id, HOUR).await), None, "unknown");
    assert!(!ok(store.close_session(id).await), "unknown");
    let before = subject.now().await;
    let until = ok(store.open_session(&session).await);
    assert!(until.is_some_and(|until| until >= before.after(HOUR)), "the lease begins now: {until:?}");
    let longer = HOUR.as_micros() * 2;
    let renewed = ok(store.renew_session(id, Duration::from_micros(longer)).await);
    assert!(renewed > until, "{renewed:?} is later than {until:?}");
    let moved = SessionRow { node_id: session_row(id, HOUR).node_id, ..session.clone() };
    assert!(ok(store.open_session(&moved).await).is_some(), "moved to another node");
    let elsewhere = SessionRow { namespace: "elsewhere".to_owned(), ..session.clone() };
    assert_eq!(ok(store.open_session(&elsewhere).await), None, "of another namespace");
    assert!(ok(store.close_session(id).await));
    assert!(!ok(store.close_session(id).await), "closed once");
    assert_eq!(ok(store.renew_session(id, HOUR).await), None, "closed");
    assert_eq!(ok(store.open_session(&session).await), None, "closed");
}

/// Goal: the sweep closes a session whose lease has ended, names it once, and leaves the others.
pub async fn an_expired_session_is_closed_once(subject: &Subject) {
    let store = &*subject.store;
    let live = session_row(new_session(), HOUR);
    let dead = session_row(new_session(), Duration::from_millis(1));
    let kept = session_row(new_session(), Duration::from_millis(1));
    for session in [&live, &kept, &dead] {
        assert!(ok(store.open_session(session).await).is_some());
    }
    assert!(ok(store.renew_session(kept.session_id, HOUR).await).is_some());
    subject.pass(subject.now().await.after(Duration::from_millis(1))).await;
    assert!(ok(store.close_expired_sessions(0).await).is_empty());
    let own = [&live, &dead, &kept].map(|s| s.session_id);
    let mut closed: Vec<SessionId> = Vec::new();
    // Another check's sweep of the same database must not run at this moment; this one names it.
    for _ in 0..2 {
        let some = ok(store.close_expired_sessions(MANY).await);
        closed.extend(some.into_iter().filter(|id| own.contains(id)));
    }
    assert_eq!(closed, [dead.session_id]);
    assert_eq!(ok(store.renew_session(dead.session_id, HOUR).await), None, "too late");
    assert!(ok(store.renew_session(live.session_id, HOUR).await).is_some());
}

async fn own(subject: &Subject, session: SessionId) -> Sample {
    let sample = started(subject).await;
    let write = Write::Run(Box::new(sample.owned(2, session)));
    commit(&*subject.store, vec![sample.with(2, vec![write])]).await;
    sample
}

/// Goal: open runs of closed and unknown sessions are found on every pass, others never.
pub async fn runs_of_closed_and_unknown_sessions_are_lost(subject: &Subject) {
    let store = &*subject.store;
    let (live, dead) = (session_row(new_session(), HOUR), session_row(new_session(), HOUR));
    let unknown = new_session();
    for session in [&live, &dead] {
        ok(store.open_session(session).await);
    }
    let kept = own(subject, live.session_id).await;
    let lost = own(subject, dead.session_id).await;
    let orphan = own(subject, unknown).await;
    let closed = own(subject, dead.session_id).await;
    let end = closed.owned(3, dead.session_id);
    let end = everstep_core::RunRow { status: RunStatus::Completed, closed_at: Some(closed.at), ..end };
    commit(store, vec![closed.with(3, vec![Write::Run(Box::new(end))])]).await;
    let free = started(subject).await;
    let all = [&kept, &lost, &orphan, &closed, &free].map(|s| s.run);
    let found = async || {
        let found = ok(store.lost_runs(MANY).await).into_iter().filter(|(run, _)| all.contains(run));
        let mut found: Vec<(RunId, SessionId)> = found.collect();
        found.sort();
        found
    };
    assert_eq!(found().await, [(orphan.run, unknown)], "while both are open");
    ok(store.close_session(dead.session_id).await);
    for _ in 0..2 {
        assert_eq!(found().await, [(lost.run, dead.session_id), (orphan.run, unknown)]);
    }
    assert_eq!(ok(store.lost_runs(1).await).len(), 1, "at most the limit");
    let released = Write::Run(Box::new(lost.row(3)));
    commit(store, vec![lost.with(3, vec![released])]).await;
    assert_eq!(found().await, [(orphan.run, unknown)]);
}

/// Goal: a session's open runs are listed in order of id, page by page.
pub async fn owned_runs_are_paged(subject: &Subject) {
    let store = &*subject.store;
    let (session, other) = (new_session(), new_session());
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(own(subject, session).await.run);
        own(subject, other).await;
    }
    let closed = own(subject, session).await;
    let end = Write::Run(Box::new(everstep_core::RunRow {
        status: RunStatus::Failed,
        closed_at: Some(closed.at),
        ..closed.owned(3, session)
    }));
    commit(store, vec![closed.with(3, vec![end])]).await;
    runs.sort();
    let page = async |after, limit| ok(store.owned_runs(session, after, limit).await);
    assert_eq!(page(None, MANY).await, runs);
    assert_eq!(page(None, 2).await, runs[..2]);
    assert_eq!(page(Some(runs[1]), 2).await, runs[2..4]);
    assert!(page(Some(runs[4]), 2).await.is_empty());
    assert!(ok(store.owned_runs(new_session(), None, MANY).await).is_empty());
}
