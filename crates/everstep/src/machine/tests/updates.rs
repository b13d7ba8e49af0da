//! Updates: what their handlers do beside the workflow's own code, and that a replay does the same.

use everstep_core::UpdateOutcome;

use super::*;
use crate::machine::handlers::answer;
use crate::{ContinueAsNew, Refused};

fn accepted(id: &str, name: &str, input: u32) -> EventBody {
    let input = payload::encode(&input).unwrap();
    EventBody::UpdateAccepted { update_id: id.into(), name: name.into(), input }
}

fn answered(accepted: Seq, value: u32) -> EventBody {
    let outcome = UpdateOutcome::Completed(payload::encode(&value).unwrap());
    EventBody::UpdateCompleted { accepted, update_id: "u".into(), outcome }
}

fn positive(n: &u32) -> Result<(), Refused> {
    if *n > 0 { Ok(()) } else { Err(Refused::new("must be positive")) }
}

/// Ends once it holds ten or more. "add" books what it adds in a step, "set" does nothing else.
async fn cart(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let total = ctx.state(0u32);
    ctx.on_update("add", positive, {
        let total = total.clone();
        move |ctx: Ctx, n: u32| {
            let total = total.clone();
            async move {
                let booked = number(&ctx, "book", n).await?;
                Ok(total.update(|total| {
                    *total += booked;
                    *total
                }))
            }
        }
    });
    ctx.on_update("set", positive, {
        let total = total.clone();
        move |_: Ctx, n: u32| {
            total.set(n);
            async move { Ok(n) }
        }
    });
    let first = number(&ctx, "open", 0).await?;
    ctx.wait(|| total.get() >= 10).await;
    Ok(first + total.get())
}

fn json(text: &str) -> String {
    format!("Completed(Payload {{ encoding: \"json\", data: b\"{text}\" }})")
}

fn answer_of(accepted: Seq, value: &str) -> String {
    format!("Command(CompleteUpdate {{ accepted: {accepted}, outcome: {} }})", json(value))
}

#[test]
fn a_handler_works_beside_the_workflow_and_what_it_sets_lets_the_workflow_go_on() {
    let mut s = Script::new(cart);
    assert_eq!(s.begin().unwrap(), ["Attempt(#1 open 1)"]);
    assert_eq!(s.apply(accepted("a", "add", 4)).unwrap(), ["Attempt(#2 book 1)"]);
    assert_eq!(s.apply(completed(1, "open", 100)).unwrap(), [""; 0]);
    assert_eq!(s.apply(accepted("b", "add", 6)).unwrap(), ["Attempt(#3 book 1)"]);
    assert_eq!(s.apply(completed(2, "book", 4)).unwrap(), [answer_of(2, "4")]);
    assert_eq!(s.apply(answered(2, 4)).unwrap(), [""; 0]);
    let end = s.apply(completed(3, "book", 6)).unwrap();
    // The answer is recorded before the end that follows from it.
    assert_eq!(end.len(), 2, "{end:?}");
    assert_eq!(end[0], answer_of(4, "10"));
    assert!(end[1].starts_with("Finish(Ok(") && end[1].contains("b\"110\""), "{end:?}");
}

/// Whatever a replay has in front of it, it asks for what the original asked for next.
#[test]
fn a_replay_asks_for_the_same_at_every_event() {
    let events = [
        accepted("a", "add", 4),
        completed(1, "open", 100),
        accepted("b", "add", 5),
        accepted("c", "set", 3),
        completed(3, "book", 5),
        completed(2, "book", 4),
        answered(4, 3),
    ];
    let mut original = Script::new(cart);
    original.begin().unwrap();
    let mut open = vec!["Attempt(#1 open 1)".to_owned()];
    for body in events {
        let done = match &body {
            EventBody::StepCompleted { step, .. } => format!("Attempt({step} "),
            EventBody::UpdateCompleted { accepted, .. } => {
                format!("Command(CompleteUpdate {{ accepted: {accepted},")
            }
            _ => "nothing".to_owned(),
        };
        open.extend(original.apply(body).unwrap());
        open.retain(|work| !work.starts_with(&done));
        let mut again = Script::new(cart);
        for event in &original.history {
            again.machine.apply(event).unwrap();
        }
        let mut wanted: Vec<_> = again.machine.take_work().iter().map(|w| format!("{w:?}")).collect();
        let mut expected = open.clone();
        wanted.sort_unstable();
        expected.sort_unstable();
        assert_eq!(wanted, expected, "after event {}", original.seq);
    }
}

#[test]
fn code_without_the_handler_or_behind_what_is_recorded_is_caught() {
    let expected = |result: Result<Vec<String>, Obstacle>| match result {
        Err(Obstacle::Blocked(b)) if b.kind == BlockKind::Nondeterminism => (b.expected, b.produced),
        other => panic!("not caught: {other:?}"),
    };
    let mut s = Script::new(cart);
    s.begin().unwrap();
    let unknown = expected(s.apply(accepted("a", "remove", 1)));
    assert_eq!(unknown, ("update 'remove'".to_owned(), "no handler for it".to_owned()));

    let mut s = Script::new(cart);
    s.begin().unwrap();
    s.apply(accepted("a", "add", 1)).unwrap();
    let early = expected(s.apply(answered(2, 1)));
    assert_eq!(early, ("a completed update".to_owned(), "one that still runs".to_owned()));

    let mut s = Script::new(cart);
    s.begin().unwrap();
    let none = expected(s.apply(answered(1, 1)));
    assert_eq!(none, ("a completed update".to_owned(), "none that is open".to_owned()));
}

/// What a handler does when it is called comes after the workflow has had its turn: the answer is there before the end
/// that follows from it.
#[test]
fn a_handler_that_changes_something_at_once_still_answers() {
    let mut s = Script::new(|ctx: Ctx, ()| async move {
        let total = ctx.state(0u32);
        ctx.on_update("set", positive, {
            let total = total.clone();
            move |_: Ctx, n: u32| {
                total.set(n);
                async move { Ok(n) }
            }
        });
        ctx.wait(|| total.get() > 0).await;
        Ok(total.get())
    });
    s.begin().unwrap();
    let end = s.apply(accepted("a", "set", 3)).unwrap();
    assert_eq!((end.len(), &end[0]), (2, &answer_of(2, "3")), "{end:?}");
}

#[test]
fn handlers_end_with_the_workflow_unless_it_waits_for_them() {
    async fn hasty(ctx: Ctx, waits: bool) -> Result<u32, WorkflowError> {
        let handler = |ctx: Ctx, n: u32| async move { number(&ctx, "book", n).await };
        ctx.on_update("add", positive, handler);
        let n = ctx.signal::<u32>("go").await?;
        if waits {
            ctx.updates_finished().await;
        }
        Ok(n)
    }
    let mut s = Script::new(|ctx: Ctx, ()| hasty(ctx, false));
    s.begin().unwrap();
    assert_eq!(s.apply(accepted("a", "add", 1)).unwrap(), ["Attempt(#1 book 1)"]);
    let end = s.apply(signal(1)).unwrap();
    assert!(matches!(&end[..], [end] if end.starts_with("Finish(Ok(")), "{end:?}");
    assert_eq!(s.apply(accepted("b", "add", 1)).unwrap(), [""; 0], "too late: the run ends without it");

    let mut s = Script::new(|ctx: Ctx, ()| hasty(ctx, true));
    s.begin().unwrap();
    s.apply(accepted("a", "add", 1)).unwrap();
    assert_eq!(s.apply(signal(1)).unwrap(), [""; 0]);
    let end = s.apply(completed(1, "book", 1)).unwrap();
    assert_eq!((end.len(), &end[0]), (2, &answer_of(2, "1")), "{end:?}");
}

#[test]
fn what_fails_in_a_handler_is_its_answer() {
    let fails = |ctx: Ctx, ()| async move {
        let agrees = |_: &u32| Ok(());
        ctx.on_update("declines", agrees, |_: Ctx, _: u32| async {
            Err::<(), _>(WorkflowError::new("CardDeclined", "no"))
        });
        ctx.on_update("goes on", agrees, |_: Ctx, n: u32| async move {
            Err::<(), _>(WorkflowError::from(ContinueAsNew::new(&n)))
        });
        ctx.signal::<u32>("go").await?;
        Ok(())
    };
    let mut s = Script::new(fails);
    s.begin().unwrap();
    let declined = s.apply(accepted("a", "declines", 1)).unwrap();
    assert!(
        declined[0].contains("accepted: 2, outcome: Failed(Failure { kind: \"CardDeclined\""),
        "{declined:?}"
    );
    let continued = s.apply(accepted("b", "goes on", 1)).unwrap();
    assert!(
        continued[0].contains("accepted: 3, outcome: Failed(Failure { kind: \"InvalidUpdate\""),
        "{continued:?}"
    );
    let unlike = EventBody::UpdateAccepted {
        update_id: "c".into(),
        name: "declines".into(),
        input: Payload::json("\"x\""),
    };
    let unlike = s.apply(unlike).unwrap();
    assert!(unlike[0].contains("Failed(Failure { kind: \"Payload\""), "{unlike:?}");
}

#[test]
fn a_validator_looks_and_changes_nothing() {
    let checks = |ctx: Ctx, ()| async move {
        let seen = ctx.state(0u32);
        let handler = |_: Ctx, n: u32| async move { Ok(n) };
        ctx.on_update("add", positive, handler);
        let (draws, sets) = (ctx.clone(), seen.clone());
        ctx.on_update("draws", move |n: &u32| if draws.random() > 0 { positive(n) } else { Ok(()) }, handler);
        let setter = move |n: &u32| {
            sets.set(*n);
            Ok(())
        };
        ctx.on_update("sets", setter, handler);
        ctx.signal::<u32>("go").await?;
        Ok(())
    };
    let mut s = Script::new(checks);
    s.begin().unwrap();
    let say = |machine: &Machine, name: &str, input: &str| {
        let handler = machine.validator(name).map_err(|f| f.kind)?;
        answer(&handler, Payload::json(input.to_owned())).map_err(|f| f.kind)
    };
    assert_eq!(say(&s.machine, "add", "1"), Ok(Payload::default()));
    assert_eq!(say(&s.machine, "add", "0"), Err("Refused".into()));
    assert_eq!(say(&s.machine, "add", "\"x\""), Err("Payload".into()));
    assert_eq!(say(&s.machine, "remove", "1"), Err("UnknownUpdate".into()));
    assert_eq!(say(&s.machine, "draws", "1"), Err("CtxMisuse".into()));
    assert_eq!(say(&s.machine, "sets", "1"), Err("CtxMisuse".into()));
    assert!(s.machine.take_work().is_empty());
    s.apply(signal(1)).unwrap();
    assert_eq!(say(&s.machine, "add", "1"), Err("RunEnds".into()));
}

#[test]
fn a_condition_sees_what_another_branch_sets_after_it_was_looked_at() {
    let mut s = Script::new(|ctx: Ctx, ()| async move {
        let (open, set) = (ctx.state(false), ctx.state(0u32));
        let waits = async {
            ctx.wait(|| open.get()).await;
            set.update(|n| *n += 1);
        };
        let opens = async {
            let n = ctx.signal::<u32>("go").await;
            open.set(true);
            n
        };
        let ((), n) = crate::join!(waits, opens);
        Ok(n? + set.get())
    });
    s.begin().unwrap();
    let end = s.apply(signal(4)).unwrap();
    assert!(end[0].contains("b\"5\""), "{end:?}");
}

#[test]
fn handlers_that_wake_each_other_for_ever_are_caught() {
    let mut s = Script::new(|ctx: Ctx, ()| async move {
        let turn = ctx.state(0u32);
        ctx.on_update("spin", positive, {
            let turn = turn.clone();
            move |ctx: Ctx, _: u32| {
                let turn = turn.clone();
                async move {
                    loop {
                        let seen = turn.get();
                        turn.set(seen + 1);
                        let mut polls = 0;
                        ctx.wait(|| {
                            polls += 1;
                            polls > 1
                        })
                        .await;
                    }
                    #[expect(unreachable_code, reason = "says what the handler would return")]
                    Ok(())
                }
            }
        });
        ctx.signal::<u32>("go").await?;
        Ok(())
    });
    s.begin().unwrap();
    let caught = is_foreign(s.apply(accepted("a", "spin", 1)));
    assert!(caught.produced.contains("again and again"), "{}", caught.produced);
}
