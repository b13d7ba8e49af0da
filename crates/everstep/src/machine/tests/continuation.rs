//! Workflows that go on in new runs, as the machine has them.

use everstep_core::limits;

use super::*;
use crate::ContinueAsNew;
use crate::ctx::end_of;

fn ends(script: &mut Script) -> everstep_core::CommitCommand {
    let mut work = script.machine.take_work();
    match work.pop() {
        Some(Work::Finish { outcome, unconsumed }) => end_of(outcome, unconsumed),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_not_taken_goes_along() {
    let mut s = Script::new(|ctx: Ctx, ()| async move {
        let taken: u32 = ctx.signal("go").await?;
        number(&ctx, "a", taken).await?;
        Err::<u32, _>(ctx.continue_as_new(&[taken]))
    });
    s.begin().unwrap();
    s.apply(signal(1)).unwrap();
    s.apply(signal(2)).unwrap();
    s.seq += 1;
    let done = event(s.seq, completed(1, "a", 1));
    s.machine.apply(&done).unwrap();
    let everstep_core::CommitCommand::ContinueAsNew(next) = ends(&mut s) else { panic!("it goes on") };
    assert_eq!((next.input.clone(), next.unconsumed.clone()), (Payload::json("[1]"), vec![3]));
    assert_eq!((next.workflow_type.as_str(), next.run_timeout), ("", None));
}

#[test]
fn what_the_server_would_refuse_fails_the_run_instead() {
    let long = "x".repeat(limits::PAYLOAD_BYTES_MAX);
    let zero = std::time::Duration::ZERO;
    for (next, kind) in [
        (ContinueAsNew::new(&long), "PayloadTooLarge"),
        (ContinueAsNew::new(&()).workflow_type("a..b"), "InvalidContinuation"),
        (ContinueAsNew::new(&()).task_queue(" q"), "InvalidContinuation"),
        (ContinueAsNew::new(&()).run_timeout(zero), "InvalidContinuation"),
    ] {
        let WorkflowError::Failed(failure) = next.into() else { panic!("{kind}") };
        assert_eq!(failure.kind, kind);
    }
    let fine = ContinueAsNew::new(&1)
        .workflow_type("b")
        .task_queue("q")
        .run_timeout(zero.max(std::time::Duration::from_secs(1)));
    assert!(matches!(WorkflowError::from(fine), WorkflowError::Continued(_)));
}

#[test]
fn it_is_time_to_go_on_at_ten_thousand_events_or_ten_mebibytes() {
    let asked = |ctx: Ctx, ()| async move {
        loop {
            let _: String = ctx.signal("go").await?;
            if ctx.should_continue_as_new() {
                return Ok::<_, WorkflowError>(());
            }
        }
    };
    let text = |bytes: usize| EventBody::SignalReceived {
        name: "go".into(),
        signal_id: String::new(),
        input: payload::encode(&"x".repeat(bytes)).unwrap(),
    };
    let mut many = Script::new(asked);
    many.begin().unwrap();
    while many.machine.is_waiting() {
        many.seq += 1;
        let next = event(many.seq, text(1));
        many.machine.apply(&next).unwrap();
    }
    assert_eq!(many.seq, limits::CONTINUE_EVENTS);
    let mut large = Script::new(asked);
    large.begin().unwrap();
    while large.machine.is_waiting() {
        large.seq += 1;
        let next = event(large.seq, text(1024 * 1024));
        large.machine.apply(&next).unwrap();
    }
    assert_eq!(large.seq, 11, "the first event, and ten of a mebibyte and two quotes");
}

#[test]
fn a_delayed_run_takes_its_start_for_now() {
    let factory = workflow_factory(|ctx: Ctx, ()| async move { Ok(ctx.now().timestamp_micros()) });
    let start_at = Timestamp::from_micros(1_800_000_000_000_000);
    let started = RunStarted { start_at: Some(start_at), ..start(Payload::json("null")) };
    let at = Timestamp::from_micros(1_700_000_000_000_000);
    let mut machine = Machine::new(run_id(), &started, at, &factory, Known::default());
    machine.apply(&event(1, EventBody::RunStarted(Box::new(started)))).unwrap();
    let work = machine.take_work();
    let [Work::Finish { outcome: Ok(now), .. }] = &work[..] else { panic!("{work:?}") };
    assert_eq!(*now, Payload::json("1800000000000000"));
}
