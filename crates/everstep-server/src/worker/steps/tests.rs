//! What a worker may say about queued steps, and how it hears of them.

use everstep_core::{Duration, Rejection, RunId, StepEnd, Timestamp, TraceContext};
use everstep_store::ClaimId;
use uuid::Uuid;

use super::*;

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

fn result(end: Option<End>) -> api::StepResult {
    api::StepResult {
        run_id: ID.to_owned(),
        step_id: 3,
        attempt: 2,
        claim_id: ID.to_owned(),
        elapsed: None,
        end,
        details: None,
    }
}

fn key() -> StepKey {
    let id: Uuid = ID.parse().unwrap();
    StepKey { run_id: RunId::from_uuid(id), step: OpId(3), attempt: 2, claim: ClaimId::from_uuid(id) }
}

#[test]
fn every_end_is_read() {
    let value = history::Payload { encoding: "json".to_owned(), data: "1".into() };
    let failure = history::Failure { kind: "Broken".to_owned(), ..history::Failure::default() };
    let ended = |end| StepSaid::Ended(end, Duration::ZERO);
    let core_failure = everstep_core::Failure::new("Broken", "");
    for (end, expected) in [
        (End::Completed(value.clone()), ended(StepEnd::Completed(decode_payload(Some(value))))),
        (End::Failed(failure), ended(StepEnd::Failed(core_failure))),
        (End::Canceled("x".to_owned()), ended(StepEnd::Canceled("x".to_owned()))),
        (End::Deferred(api::Deferred {}), StepSaid::Deferred),
        (End::Returned(api::Returned {}), StepSaid::Returned),
    ] {
        let read = decode_result(result(Some(end))).unwrap();
        assert_eq!(read, WorkerIn::StepSaid { key: key(), said: expected, details: None });
    }
}

#[test]
fn what_is_wrong_is_named() {
    let field = |read: Result<WorkerIn, InvalidMessage>| read.unwrap_err().field;
    assert_eq!(field(decode_result(result(None))), "end");
    let returned = || Some(End::Returned(api::Returned {}));
    assert_eq!(
        field(decode_result(api::StepResult { run_id: "x".to_owned(), ..result(returned()) })),
        "run_id"
    );
    assert_eq!(
        field(decode_result(api::StepResult { claim_id: String::new(), ..result(returned()) })),
        "claim_id"
    );
    let large = |size| history::Payload { encoding: "json".to_owned(), data: vec![0; size].into() };
    let ended = result(Some(End::Completed(large(limits::PAYLOAD_BYTES_MAX + 1))));
    assert_eq!(field(decode_result(ended)), "completed.data");
    let beat = api::StepBeat {
        run_id: ID.to_owned(),
        step_id: 3,
        attempt: 2,
        claim_id: ID.to_owned(),
        details: Some(large(DETAILS_BYTES_MAX + 1)),
    };
    assert_eq!(field(decode_beat(beat)), "details.data");
    let nul = history::Payload { encoding: "a\0b".to_owned(), data: "1".into() };
    assert_eq!(field(decode_result(result(Some(End::Completed(nul))))), "completed.encoding");
    for rate in [f64::NAN, f64::INFINITY, -1.0] {
        let limits = api::Limits { step_slots: 1, steps_per_second: rate };
        assert_eq!(field(decode_limits(limits)), "steps_per_second");
    }
    let limits = api::Limits { step_slots: 100_001, steps_per_second: 0.0 };
    assert_eq!(field(decode_limits(limits)), "step_slots");
}

#[test]
fn an_offer_is_checked() {
    let said = |slots, per_second, claim_id: &str| Said {
        types: vec!["work".to_owned()],
        slots,
        per_second,
        held: vec![api::HeldStep {
            run_id: ID.to_owned(),
            step_id: 3,
            attempt: 2,
            claim_id: claim_id.to_owned(),
        }],
    };
    let mut check = Check::default();
    let read = offer(&mut check, said(4, 2.5, ID));
    check.finish().unwrap();
    let types = vec!["work".to_owned()];
    assert_eq!(read, StepOffer { types, slots: 4, per_second: 2.5, held: vec![key()] });
    for bad in [said(100_001, 0.0, ID), said(1, -0.5, ID), said(1, f64::NAN, ID), said(1, 0.0, "x")] {
        let mut check = Check::default();
        offer(&mut check, bad);
        assert!(check.finish().is_err());
    }
}

#[test]
fn a_worker_hears_of_attempts_and_of_what_became_of_them() {
    let given = GivenStep {
        key: key(),
        name: "work".to_owned(),
        input: Payload::json("4"),
        details: Payload::default(),
        start_to_close: Some(Duration::from_secs(5)),
        heartbeat: None,
        workflow_type: "t".to_owned(),
        workflow_id: "w".to_owned(),
        task_queue: "q".to_owned(),
        trace: TraceContext::default(),
        scheduled_at: Timestamp::from_micros(7),
    };
    let Some(Message::StepTask(task)) = encode(WorkerOut::StepTask(Box::new(given)), None) else {
        panic!("no task")
    };
    assert_eq!((task.run_id.as_str(), task.step_id, task.attempt, task.claim_id.as_str()), (ID, 3, 2, ID));
    assert!(task.last_details.is_none() && task.heartbeat.is_none() && task.start_to_close.is_some());
    let ack = |result| match encode(WorkerOut::StepAck { key: key(), result }, None) {
        Some(Message::StepResultAck(ack)) => ack.reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(ack(Ok(())), "");
    assert_eq!(ack(Err(Rejection::StaleAttempt { step: OpId(3), attempt: 2 })), "STALE_ATTEMPT");
    let cancel = |gone| {
        let out = WorkerOut::StepCancel { run_id: key().run_id, step: OpId(3), attempt: 2, gone };
        match encode(out, None) {
            Some(Message::StepCancel(cancel)) => cancel.reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((cancel(true).as_str(), cancel(false).as_str()), ("GONE", "CANCELED"));
    let Some(Message::StepCancel(ask)) = encode(WorkerOut::StepAsk(key()), None) else {
        panic!("no question")
    };
    assert_eq!((ask.reason.as_str(), ask.claim_id.as_str()), ("UNHEARD", ID));
    assert!(encode(WorkerOut::Drain, None).is_none());
}
