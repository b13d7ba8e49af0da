//! Attempts in doubt: written with the events they follow from, and listed.

use everstep_core::{Doubt, DoubtPolicy, OpId, RunId, Timestamp, Write};

use super::sample::{MANY, Sample, commit, new_run, started, tables, unique};
use super::{Subject, ok};
use crate::{DoubtFilter, DoubtRecord};

fn doubt(step: u32, attempt: u32, policy: DoubtPolicy) -> Doubt {
    let since = Timestamp::from_micros(1_700_000_000_000_000 + i64::from(step));
    Doubt { step: OpId(step), name: format!("step {step}"), attempt, policy, since }
}

fn set(doubt: &Doubt) -> Write {
    Write::DoubtSet(Box::new(doubt.clone()))
}

/// Goal: the doubts of one append count in their order, and the tables of the run show them.
pub async fn doubts_of_a_run_apply_in_order(subject: &Subject) {
    let (store, sample) = (&*subject.store, started(subject).await);
    let [a, b] = [doubt(1, 1, DoubtPolicy::AskHuman), doubt(u32::MAX, u32::MAX, DoubtPolicy::Verify)];
    commit(store, vec![sample.with(2, vec![set(&a), set(&b)])]).await;
    assert_eq!(tables(store, sample.run).await.projection.doubts, [a.clone(), b.clone()]);
    let again = doubt(1, 2, DoubtPolicy::Fail);
    let writes = vec![Write::DoubtDeleted(OpId(u32::MAX)), Write::DoubtDeleted(OpId(1)), set(&again)];
    commit(store, vec![sample.with(3, writes)]).await;
    assert_eq!(tables(store, sample.run).await.projection.doubts, [again]);
    let writes = vec![set(&b), Write::DoubtsCleared, set(&a), Write::DoubtDeleted(OpId(7))];
    commit(store, vec![sample.with(4, writes)]).await;
    assert_eq!(tables(store, sample.run).await.projection.doubts, [a]);
    commit(store, vec![sample.with(5, vec![Write::DoubtsCleared])]).await;
    assert!(tables(store, sample.run).await.projection.doubts.is_empty());
}

/// Goal: doubts are listed by namespace and run, page by page, and all of them are counted.
pub async fn doubts_are_listed_and_counted(subject: &Subject) {
    let store = &*subject.store;
    let before = ok(store.count_doubts().await);
    let namespace = unique("ns");
    let mut all = Vec::new();
    for workflow_id in ["a", "b"] {
        let sample = Sample::of(subject, &namespace, workflow_id).await;
        commit(store, vec![sample.start(None)]).await;
        let doubts = [doubt(1, 1, DoubtPolicy::Retry), doubt(2, 3, DoubtPolicy::AskHuman)];
        let row = sample.row(2);
        let mut writes: Vec<Write> = doubts.iter().map(set).collect();
        writes.push(Write::Run(Box::new(row.clone())));
        commit(store, vec![sample.with(2, writes)]).await;
        all.extend(doubts.map(|doubt| DoubtRecord {
            run_id: sample.run,
            workflow_id: row.workflow_id.clone(),
            task_queue: row.task_queue.clone(),
            doubt,
        }));
    }
    assert_eq!(ok(store.count_doubts().await), before + 4);
    all.sort_by_key(|record| (record.run_id, record.doubt.step));
    let key = |record: &DoubtRecord| -> (RunId, OpId) { (record.run_id, record.doubt.step) };
    let filter = DoubtFilter { namespace, run: None };
    let list = async |filter: &DoubtFilter, after, limit| ok(store.list_doubts(filter, after, limit).await);
    assert_eq!(list(&filter, None, MANY).await, all);
    assert_eq!(list(&filter, None, 3).await, all[..3]);
    assert_eq!(list(&filter, Some(key(&all[0])), 2).await, all[1..3]);
    assert!(list(&filter, Some(key(&all[3])), MANY).await.is_empty());
    let of_run = DoubtFilter { run: Some(all[2].run_id), ..filter.clone() };
    assert_eq!(list(&of_run, None, MANY).await, all[2..]);
    let none = DoubtFilter { run: Some(new_run()), ..filter.clone() };
    assert!(list(&none, None, MANY).await.is_empty());
    let elsewhere = DoubtFilter { namespace: unique("ns"), ..filter };
    assert!(list(&elsewhere, None, MANY).await.is_empty());
}
