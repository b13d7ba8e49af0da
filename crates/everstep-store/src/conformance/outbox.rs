//! What runs have to hear of each other, and which runs belong together.

use everstep_core::{Duration, OpId, RunId, RunLink, RunStatus, Seq, Write};

use super::sample::{MANY, Sample, commit, new_run, started, tables, unique};
use super::{Subject, ok};
use crate::{PageToken, RunFilter, Store};

async fn claimed(store: &dyn Store, runs: &[RunId]) -> Vec<(RunId, Vec<Seq>)> {
    let mut claimed = ok(store.claim_outbox(MANY, MANY).await);
    claimed.retain(|(run, _)| runs.contains(run));
    claimed.sort();
    claimed
}

/// Goal: rows of the outbox are left to their writer for a second, then claimed with all others of their run, in
/// order, with growing pauses; and they go with an append, or by themselves.
pub async fn the_outbox_is_claimed_by_whole_runs(subject: &Subject) {
    let store = &*subject.store;
    let [a, b] = [started(subject).await, started(subject).await];
    let runs = [a.run, b.run];
    let secs = Duration::from_secs;
    let set = |seq: Seq| Write::OutboxSet { seq };
    let before = subject.now().await;
    commit(store, vec![a.with(2, vec![set(2)]), b.with(2, vec![set(2)])]).await;
    let early = claimed(store, &runs).await;
    let in_grace = subject.now().await.since(before) < secs(1);
    assert!(early.is_empty() || !in_grace, "claimed within the grace of a second");
    subject.pass(subject.now().await.after(secs(3))).await;
    // The second row of the first run is not due, and goes along.
    commit(store, vec![a.with(3, vec![set(3), set(2)])]).await;
    let at = subject.now().await;
    let mut expected = vec![(a.run, vec![2, 3]), (b.run, vec![2])];
    expected.sort();
    assert_eq!(claimed(store, &runs).await, expected);
    let again = claimed(store, &runs).await;
    assert!(again.is_empty() || subject.now().await.since(at) >= secs(2), "claimed again within 2 seconds");
    commit(store, vec![a.with(4, vec![Write::OutboxDeleted { seq: 2 }, Write::OutboxDeleted { seq: 9 }])])
        .await;
    ok(store.delete_outbox(&[(b.run, 2), (b.run, 7), (new_run(), 1)]).await);
    subject.pass(subject.now().await.after(secs(5))).await;
    assert_eq!(claimed(store, &runs).await, [(a.run, vec![3])]);
    assert!(ok(store.backlog(MANY).await).untold >= 1);
    ok(store.delete_outbox(&[(a.run, 3)]).await);
    ok(store.delete_outbox(&[]).await);
    subject.pass(subject.now().await.after(secs(10))).await;
    assert!(claimed(store, &runs).await.is_empty());
}

/// Goal: of the runs that are due, those that are due longest come first, and no more than asked for.
pub async fn the_outbox_is_claimed_up_to_a_limit(subject: &Subject) {
    let store = &*subject.store;
    let mut samples = Vec::new();
    for _ in 0..3 {
        let sample = started(subject).await;
        let writes = vec![Write::OutboxSet { seq: 1 }, Write::OutboxSet { seq: 2 }];
        commit(store, vec![sample.with(2, writes)]).await;
        subject.pass(subject.now().await).await;
        samples.push(sample);
    }
    subject.pass(subject.now().await.after(Duration::from_secs(1))).await;
    let runs: Vec<RunId> = samples.iter().map(|s| s.run).collect();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let some = ok(store.claim_outbox(1, MANY).await);
        assert_eq!(some.len(), 1, "one run at a time");
        seen.extend(some.into_iter().filter(|(run, _)| runs.contains(run)));
    }
    assert_eq!(seen, runs.iter().map(|run| (*run, vec![1, 2])).collect::<Vec<_>>());
    let all: Vec<(RunId, Seq)> = runs.iter().flat_map(|run| [(*run, 1), (*run, 2)]).collect();
    ok(store.delete_outbox(&all).await);
}

/// Goal: no more rows are claimed than asked for, and what is left of a run is not claimed before what was claimed of
/// it is told: a run with any number of rows is told in order.
pub async fn the_outbox_is_claimed_in_bounded_looks(subject: &Subject) {
    let (store, sample) = (&*subject.store, started(subject).await);
    let (rows, look) = (10_000, 2_500);
    let writes = (1..=rows).map(|seq| Write::OutboxSet { seq }).collect();
    commit(store, vec![sample.with(2, writes)]).await;
    let mut at = subject.now().await.after(Duration::from_secs(1));
    let mut told = 0;
    while told < rows {
        subject.pass(at).await;
        let some = ok(store.claim_outbox(MANY, look).await);
        at = subject.now().await;
        let claimed: usize = some.iter().map(|(_, seqs)| seqs.len()).sum();
        assert!(claimed <= look, "{claimed} rows in a look of {look}");
        let Some((_, seqs)) = some.into_iter().find(|(run, _)| *run == sample.run) else { continue };
        let expected: Vec<Seq> = (told + 1..).take(seqs.len()).collect();
        assert_eq!(seqs, expected, "the first that are left, in order");
        let next = ok(store.claim_outbox(MANY, look).await);
        let again = subject.now().await.since(at) >= Duration::from_secs(2);
        assert!(again || next.iter().all(|(run, _)| *run != sample.run), "what follows does not overtake it");
        told += seqs.len() as Seq;
        ok(store.delete_outbox(&seqs.iter().map(|seq| (sample.run, *seq)).collect::<Vec<_>>()).await);
    }
}

/// Goal: what a node is telling others of is left to it with all that follows, and for so long; nothing comes earlier
/// by it.
pub async fn the_outbox_is_left_to_who_holds_it(subject: &Subject) {
    let (store, sample, secs) = (&*subject.store, started(subject).await, Duration::from_secs);
    let set = |seq: Seq| Write::OutboxSet { seq };
    commit(store, vec![sample.with(2, (2..6).map(set).collect())]).await;
    let held = subject.now().await;
    ok(store
        .hold_outbox(&[(sample.run, 2), (sample.run, 3), (sample.run, 9), (new_run(), 2)], secs(4))
        .await);
    subject.pass(held.after(secs(2))).await;
    let found = claimed(store, &[sample.run]).await;
    assert!(found.is_empty() || subject.now().await.since(held) >= secs(4), "the first is held: {found:?}");
    ok(store.delete_outbox(&[(sample.run, 2)]).await);
    let found = claimed(store, &[sample.run]).await;
    assert!(found.is_empty() || subject.now().await.since(held) >= secs(4), "so is the next: {found:?}");
    ok(store.delete_outbox(&[(sample.run, 3)]).await);
    assert_eq!(claimed(store, &[sample.run]).await, [(sample.run, vec![4, 5])], "what follows was due");
    let again = subject.now().await;
    ok(store.hold_outbox(&[(sample.run, 4)], Duration::from_micros(1)).await);
    let found = claimed(store, &[sample.run]).await;
    assert!(found.is_empty() || subject.now().await.since(again) >= secs(2), "not earlier than without");
    ok(store.delete_outbox(&[(sample.run, 4), (sample.run, 5)]).await);
    ok(store.hold_outbox(&[], secs(4)).await);
}

/// Goal: a loser of an append writes nothing to the outbox and no link.
pub async fn a_loser_tells_nobody(subject: &Subject) {
    let (store, sample) = (&*subject.store, started(subject).await);
    let link = RunLink { attempt: 1, ..RunLink::default() };
    let writes = vec![Write::OutboxSet { seq: 5 }, Write::LinkSet(Box::new(link))];
    let reply = store.append(vec![crate::Append::of(sample.with(5, writes))]).await;
    assert!(matches!(reply.verdicts[..], [crate::Verdict::Conflict]), "{:?}", reply.verdicts);
    subject.pass(subject.now().await.after(Duration::from_secs(2))).await;
    assert!(claimed(store, &[sample.run]).await.is_empty());
    assert!(ok(store.run_links(&[sample.run]).await).is_empty());
}

/// Goal: links come back as they were written last, with the run and by themselves.
pub async fn links_come_back(subject: &Subject) {
    let (store, sample) = (&*subject.store, started(subject).await);
    let link = RunLink { parent: Some((new_run(), OpId(u32::MAX))), attempt: 1, ..RunLink::default() };
    let set = |link: &RunLink| Write::LinkSet(Box::new(link.clone()));
    commit(store, vec![sample.with(2, vec![set(&RunLink::default()), set(&link)])]).await;
    assert_eq!(tables(store, sample.run).await.projection.link, Some(link));
    let [previous, first, successor] = [new_run(), new_run(), new_run()].map(Some);
    let link = RunLink { parent: None, previous, first, successor, attempt: 7 };
    commit(store, vec![sample.with(3, vec![set(&link)])]).await;
    let other = started(subject).await;
    assert_eq!(ok(store.run_links(&[sample.run, other.run, new_run()]).await), [(sample.run, link.clone())]);
    assert_eq!(tables(store, sample.run).await.projection.link, Some(link));
    assert_eq!(tables(store, other.run).await.projection.link, None);
}

/// Goal: the children of a run are listed as other runs are: filtered, newest first, in pages.
pub async fn children_are_listed(subject: &Subject) {
    let store = &*subject.store;
    let namespace = unique("ns");
    let (parent, other) = (new_run(), new_run());
    let mut rows = Vec::new();
    for (n, of) in [(1, parent), (2, other), (3, parent), (4, parent)] {
        let sample = Sample::of(subject, &namespace, &format!("w{n}")).await;
        commit(store, vec![sample.start(None)]).await;
        let link = RunLink { parent: Some((of, OpId(n))), attempt: 1, ..RunLink::default() };
        let status = if n == 3 { RunStatus::Completed } else { RunStatus::Running };
        let row = everstep_core::RunRow {
            status,
            closed_at: status.is_closed().then_some(sample.at),
            ..sample.row(2)
        };
        let writes = vec![Write::LinkSet(Box::new(link)), Write::Run(Box::new(row.clone()))];
        commit(store, vec![sample.with(2, writes)]).await;
        rows.push(row);
    }
    let [first, _, third, fourth] = &rows[..] else { return };
    let filter = RunFilter { namespace: namespace.clone(), parent: Some(parent), ..RunFilter::default() };
    let list = async |filter: &RunFilter, page, limit| ok(store.list_runs(filter, page, limit).await);
    assert_eq!(list(&filter, None, MANY).await, [fourth.clone(), third.clone(), first.clone()]);
    assert_eq!(list(&filter, None, 2).await, [fourth.clone(), third.clone()]);
    assert_eq!(list(&filter, Some(PageToken(third.run_id)), MANY).await, std::slice::from_ref(first));
    let closed = RunFilter { statuses: vec![RunStatus::Completed], ..filter.clone() };
    assert_eq!(list(&closed, None, MANY).await, std::slice::from_ref(third));
    let one = RunFilter { workflow_id: Some("w4".to_owned()), ..filter.clone() };
    assert_eq!(list(&one, None, MANY).await, std::slice::from_ref(fourth));
    let typed = RunFilter { workflow_type: Some("other".to_owned()), ..filter.clone() };
    assert!(list(&typed, None, MANY).await.is_empty());
    let elsewhere = RunFilter { namespace: unique("ns"), ..filter };
    assert!(list(&elsewhere, None, MANY).await.is_empty());
}
