//! Questions between nodes. A store that no other node shares has none, and passes.

use everstep_core::{AskId, Duration, Payload, QueueKey, RunId};
use uuid::Uuid;

use super::{Subject, ok};
use crate::{AskAnswer, AskKind, AskOutcome, AskRow, AskState, AskWant};

const HOUR: Duration = Duration::from_secs(3_600);

/// A question that no other check can take.
fn question(queue: &str, wait: Duration) -> AskRow {
    AskRow {
        ask: AskId::from_uuid(Uuid::now_v7()),
        run_id: RunId::from_uuid(Uuid::now_v7()),
        queue: QueueKey { namespace: "default".to_owned(), task_queue: queue.to_owned() },
        workflow_type: "count".to_owned(),
        build_id: "b1".to_owned(),
        at_least: 7,
        kind: AskKind::Query,
        name: "progress".to_owned(),
        input: Payload::json("[1, 2]"),
        wait,
    }
}

fn want(queue: &str) -> AskWant {
    AskWant {
        namespace: "default".to_owned(),
        task_queues: vec!["another".to_owned(), queue.to_owned()],
        workflow_types: vec!["count".to_owned(), "other".to_owned()],
    }
}

fn queue() -> String {
    format!("asks-{}", Uuid::now_v7())
}

/// Goal: a question reaches one node at a time, whole, and again when that one does not answer.
pub async fn a_question_is_claimed_once_and_again_later(subject: &Subject) {
    let Some(relay) = subject.store.relay() else { return };
    let (queue, claim) = (queue(), Duration::from_millis(50));
    let asked = question(&queue, HOUR);
    ok(relay.put_ask(&asked).await);
    ok(relay.put_ask(&AskRow { name: "else".to_owned(), ..asked.clone() }).await);
    let namespace = AskWant { namespace: "elsewhere".to_owned(), ..want(&queue) };
    let types = AskWant { workflow_types: vec!["other".to_owned()], ..want(&queue) };
    let queues = AskWant { task_queues: vec!["another".to_owned()], ..want(&queue) };
    for unfit in [namespace, types, queues] {
        assert!(ok(relay.claim_asks(&unfit, claim, 10).await).is_empty(), "{unfit:?}");
    }
    assert!(ok(relay.claim_asks(&want(&queue), claim, 0).await).is_empty());
    let claimed = ok(relay.claim_asks(&want(&queue), claim, 10).await);
    let [first] = &claimed[..] else { panic!("{claimed:?}") };
    assert!(first.wait <= HOUR && first.wait > Duration::from_secs(3_500), "{:?}", first.wait);
    assert_eq!(AskRow { wait: HOUR, ..first.clone() }, asked, "as it was put first");
    let now = subject.now().await;
    if ok(relay.claim_asks(&want(&queue), claim, 10).await).is_empty() {
        subject.pass(now.after(claim)).await;
        assert_eq!(ok(relay.claim_asks(&want(&queue), claim, 10).await).len(), 1, "nobody has answered");
    }
    ok(relay.delete_ask(asked.ask).await);
    assert!(ok(relay.claim_asks(&want(&queue), Duration::ZERO, 10).await).is_empty());
}

/// Goal: the first answer stands, and comes back as it was given.
pub async fn a_question_is_answered_once(subject: &Subject) {
    let Some(relay) = subject.store.relay() else { return };
    let queue = queue();
    let value = AskOutcome::Value(Payload { encoding: "bytes".to_owned(), data: vec![0, 255].into() });
    let empty = AskOutcome::Value(Payload::default());
    let refused = AskOutcome::Refused { kind: "Busy".to_owned(), message: String::new() };
    for outcome in [value, empty, refused] {
        let asked = AskRow { kind: AskKind::Update, ..question(&queue, HOUR) };
        let answer = AskAnswer { seq: 9, outcome };
        assert!(!ok(relay.answer_ask(asked.ask, &answer).await), "nobody asked");
        assert_eq!(ok(relay.look_at_ask(asked.ask).await), AskState::Absent);
        ok(relay.put_ask(&asked).await);
        assert_eq!(ok(relay.look_at_ask(asked.ask).await), AskState::Open);
        let claimed = ok(relay.claim_asks(&want(&queue), HOUR, 10).await);
        assert_eq!(claimed.iter().map(|row| row.kind).collect::<Vec<_>>(), [AskKind::Update]);
        assert!(ok(relay.answer_ask(asked.ask, &answer).await));
        let other = AskAnswer { seq: 10, outcome: AskOutcome::Value(Payload::json("0")) };
        assert!(!ok(relay.answer_ask(asked.ask, &other).await), "answered once");
        assert!(ok(relay.claim_asks(&want(&queue), HOUR, 10).await).is_empty(), "answered");
        assert_eq!(ok(relay.look_at_ask(asked.ask).await), AskState::Answered(answer));
        ok(relay.delete_ask(asked.ask).await);
        assert_eq!(ok(relay.look_at_ask(asked.ask).await), AskState::Absent);
    }
}

/// Goal: a question that nobody waits for any more is not claimed, and goes when the next one comes.
pub async fn a_late_question_goes(subject: &Subject) {
    let Some(relay) = subject.store.relay() else { return };
    let queue = queue();
    let late = question(&queue, Duration::from_millis(1));
    ok(relay.put_ask(&late).await);
    subject.pass(subject.now().await.after(Duration::from_millis(1))).await;
    assert!(ok(relay.claim_asks(&want(&queue), HOUR, 10).await).is_empty());
    let next = question(&queue, HOUR);
    ok(relay.put_ask(&next).await);
    assert_eq!(ok(relay.look_at_ask(late.ask).await), AskState::Absent);
    ok(relay.delete_ask(next.ask).await);
}
