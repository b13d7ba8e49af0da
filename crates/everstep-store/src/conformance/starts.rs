//! Starts: the compare-and-set on a workflow id, and the request id.

use everstep_core::{RunStatus, Write};

use super::sample::{Sample, append, append_one, commit, history, started};
use super::{Subject, ok};
use crate::{Append, RunAppend, StartClaim, StartRecord};

async fn found(subject: &Subject, sample: &Sample) -> StartRecord {
    let request = format!("request-{}", sample.run);
    ok(subject.store.find_start(&sample.queue.namespace, &sample.workflow_id, &request).await)
}

/// Goal: a first start wins, and both its workflow id and its request id lead to it.
pub async fn a_fresh_start_is_committed_and_found(subject: &Subject) {
    let store = &*subject.store;
    let sample = Sample::new(subject).await;
    assert_eq!(found(subject, &sample).await, StartRecord::default());
    commit(store, vec![sample.start(None)]).await;
    let record = found(subject, &sample).await;
    assert_eq!(record.current, Some((sample.run, RunStatus::Running)));
    assert_eq!(record.request, Some((sample.run, [7; 32])));
    let other = ok(store.find_start(&sample.queue.namespace, &sample.workflow_id, "other").await);
    assert_eq!((other.current, other.request), (record.current, None));
    let elsewhere = ok(store.find_start("elsewhere", &sample.workflow_id, "other").await);
    assert_eq!(elsewhere, StartRecord::default());
}

/// Goal: a start wins only over the run that it names.
pub async fn a_start_needs_the_run_it_expects(subject: &Subject) {
    let store = &*subject.store;
    let first = started(subject).await;
    let (second, third) = (first.next(), first.next());
    assert_eq!(append_one(store, second.start(None)).await, "conflict");
    assert_eq!(append_one(store, second.start(Some(third.run))).await, "conflict");
    let nobody = Sample::new(subject).await;
    assert_eq!(append_one(store, nobody.start(Some(first.run))).await, "conflict");
    assert_eq!(append_one(store, second.start(Some(first.run))).await, "committed");
    assert_eq!(append_one(store, third.start(Some(first.run))).await, "conflict");
    assert_eq!(append_one(store, third.start(Some(second.run))).await, "committed");
    assert_eq!(found(subject, &first).await.current, Some((third.run, RunStatus::Running)));
    let done = Write::Run(Box::new(third.closed(2, RunStatus::Completed)));
    commit(store, vec![third.with(2, vec![done])]).await;
    assert_eq!(found(subject, &first).await.current, Some((third.run, RunStatus::Completed)));
}

/// Goal: a request id starts one run of its workflow id, and is remembered after later runs.
pub async fn a_request_id_starts_once(subject: &Subject) {
    let store = &*subject.store;
    let first = started(subject).await;
    let second = first.next();
    let request_id = format!("request-{}", first.run);
    let again = |sample: &Sample, expected| RunAppend {
        start: Some(StartClaim { request_id: request_id.clone(), ..sample.claim(expected) }),
        ..sample.start(expected)
    };
    assert_eq!(append_one(store, again(&second, Some(first.run))).await, "conflict");
    assert_eq!(append_one(store, second.start(Some(first.run))).await, "committed");
    let record = found(subject, &first).await;
    assert_eq!(record.request, Some((first.run, [7; 32])));
    assert_eq!(record.current, Some((second.run, RunStatus::Running)));
    let elsewhere = Sample::new(subject).await;
    assert_eq!(append_one(store, again(&elsewhere, None)).await, "committed", "it counts per workflow id");
}

/// Goal: two starts of one workflow id in a batch: the later one is a conflict, not an error.
pub async fn a_workflow_id_twice_in_a_batch_is_a_conflict(subject: &Subject) {
    let first = Sample::new(subject).await;
    let (second, other) = (first.next(), Sample::new(subject).await);
    let batch = vec![first.start(None), other.start(None), second.start(None)];
    let verdicts = append(&*subject.store, batch.into_iter().map(Append::of).collect()).await;
    assert_eq!(verdicts, ["committed", "committed", "conflict"]);
    assert_eq!(found(subject, &first).await.current, Some((first.run, RunStatus::Running)));
    assert!(history(&*subject.store, second.run).await.is_empty());
}

/// Goal: a start that loses takes neither the workflow id nor the request id.
pub async fn a_lost_start_leaves_the_claim_alone(subject: &Subject) {
    let store = &*subject.store;
    let first = started(subject).await;
    let second = first.next();
    assert_eq!(append_one(store, second.start(None)).await, "conflict");
    let record = found(subject, &second).await;
    assert_eq!((record.current, record.request), (Some((first.run, RunStatus::Running)), None));
    assert_eq!(ok(store.get_run(second.run).await), None);
    assert_eq!(append_one(store, second.start(Some(first.run))).await, "committed");
}
