//! Sets of futures, limits in time, and sagas: live and from any prefix of the history the same.

use super::*;
use crate::{StepFailed, Unordered, buffered, map_buffered, saga, timeout};

/// What the machine wants when it is given a history as it grew, and when it is given it at once.
fn same_from_any_prefix<F, Fut, O>(workflow: F, bodies: Vec<EventBody>) -> Vec<Vec<String>>
where
    F: Fn(Ctx, ()) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<O, WorkflowError>> + Send + 'static,
    O: serde::Serialize,
{
    let mut live = Script::new(workflow.clone());
    let mut wants = vec![live.begin().unwrap()];
    for body in bodies {
        wants.push(live.apply(body).unwrap());
    }
    for cut in 1..=live.history.len() {
        let mut next = Script::new(workflow.clone());
        for event in &live.history[..cut] {
            next.machine.apply(event).unwrap_or_else(|e| panic!("cut at {cut}: {e:?}"));
        }
        let mut open: Vec<String> = wants[..cut].concat();
        let ended = |want: &String| {
            live.history[..cut].iter().any(|e| {
                e.body
                    .op()
                    .is_some_and(|op| want.contains(&format!("{op} ")) || want.contains(&format!("{op})")))
            })
        };
        let finished = open.iter().any(|want| want.starts_with("Finish"));
        // Code that has ended has let go of the rest.
        open.retain(|want| match finished {
            true => want.starts_with("Finish"),
            false => !ended(want) && !want.starts_with("CancelTimer"),
        });
        let mut again: Vec<String> = next.machine.take_work().iter().map(|w| format!("{w:?}")).collect();
        again.retain(|want| !want.starts_with("CancelTimer"));
        open.sort();
        again.sort();
        assert_eq!(again, open, "after event {cut}");
    }
    wants
}

fn failed(step: u32, name: &str, kind: &str) -> EventBody {
    EventBody::StepFailed {
        step: OpId(step),
        name: name.into(),
        attempt: 1,
        elapsed: everstep_core::Duration::ZERO,
        failure: Failure::new(kind, "as planned").non_retryable(),
        retry_at: None,
    }
}

fn step(ctx: &Ctx, name: String, value: u32) -> crate::Step<u32> {
    ctx.step(name, move || async move { Ok::<_, StepError>(value) })
}

fn result(wants: &[Vec<String>]) -> String {
    wants.last().unwrap().concat()
}

#[test]
fn values_come_as_they_end_and_of_several_the_earliest_pushed_first() {
    let workflow = |ctx: Ctx, ()| async move {
        let mut all = Unordered::new();
        (1..=3).for_each(|n| all.push(step(&ctx, format!("s{n}"), n)));
        let mut order = Vec::new();
        while let Some(value) = all.next().await {
            order.push(value?);
            if order.len() == 1 {
                ctx.signal::<u32>("go").await?;
            }
        }
        Ok(order)
    };
    let bodies = vec![completed(2, "s2", 2), completed(3, "s3", 3), completed(1, "s1", 1), signal(7)];
    let wants = same_from_any_prefix(workflow, bodies);
    assert_eq!(wants[0], ["Attempt(#1 s1 1)", "Attempt(#2 s2 1)", "Attempt(#3 s3 1)"]);
    assert!(result(&wants).contains("b\"[2,1,3]\""), "{wants:?}");
}

#[test]
fn a_bounded_number_runs_at_one_time() {
    let workflow = |ctx: Ctx, ()| async move {
        let mut all = buffered((1..=4).map(|n| step(&ctx, format!("s{n}"), n)), 2);
        let mut order = Vec::new();
        while let Some(value) = all.next().await {
            order.push(value?);
        }
        Ok(order)
    };
    let bodies =
        vec![completed(2, "s2", 2), completed(3, "s3", 3), completed(1, "s1", 1), completed(4, "s4", 4)];
    let wants = same_from_any_prefix(workflow, bodies);
    let expected: [&[&str]; 4] =
        [&["Attempt(#1 s1 1)", "Attempt(#2 s2 1)"], &["Attempt(#3 s3 1)"], &["Attempt(#4 s4 1)"], &[]];
    assert_eq!(&wants[..4], expected.map(|w| w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()));
    assert!(result(&wants).contains("b\"[2,3,1,4]\""), "{wants:?}");

    let ordered = |ctx: Ctx, ()| async move {
        let values = map_buffered(1..=3, 0, |n| step(&ctx, format!("s{n}"), n)).await;
        Ok(values.into_iter().collect::<Result<Vec<_>, _>>()?)
    };
    let wants = same_from_any_prefix(ordered, (1..=3).map(|n| completed(n, &format!("s{n}"), n)).collect());
    assert_eq!(wants[0], ["Attempt(#1 s1 1)"], "0 counts as 1");
    assert!(result(&wants).contains("b\"[1,2,3]\""), "{wants:?}");
}

#[test]
fn what_takes_too_long_is_let_go() {
    let workflow = |ctx: Ctx, ()| async move {
        let slow = step(&ctx, "slow".to_owned(), 1);
        match timeout(&ctx, Duration::from_secs(5), slow).await {
            Ok(value) => Ok(value?.to_string()),
            Err(late) => Ok(late.to_string()),
        }
    };
    let started = EventBody::TimerStarted { timer: OpId(2), fire_at: Timestamp::from_micros(0) };
    let fired = EventBody::TimerFired { timer: TimerKey::timer(OpId(2)) };
    let wants = same_from_any_prefix(workflow, vec![started.clone(), fired]);
    assert_eq!(wants[0], ["Attempt(#1 slow 1)", "StartTimer(#2 5s)"]);
    assert!(result(&wants).contains("not done within 5s"), "{wants:?}");
    let wants = same_from_any_prefix(workflow, vec![started, completed(1, "slow", 3)]);
    assert!(wants[2].contains(&"CancelTimer(#2)".to_owned()), "{wants:?}");
    assert!(wants[2].last().unwrap().contains("\\\"3\\\""), "{wants:?}");
}

async fn order(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let code = ctx.clone();
    let done = saga(&ctx, |saga| async move {
        let ctx = code;
        let undo = |name: &'static str| {
            let ctx = ctx.clone();
            move |done: Option<&u32>| {
                let what = done.map_or("unknown".to_owned(), u32::to_string);
                step(&ctx, format!("undo {name} {what}"), 0)
            }
        };
        let charged = saga.run(step(&ctx, "charge".into(), 1), undo("charge")).await?;
        let reserved = saga.run(step(&ctx, "reserve".into(), 2), undo("reserve")).await?;
        let shipped: Result<u32, StepFailed> = step(&ctx, "ship".into(), 3).await;
        Ok(charged + reserved + shipped?)
    });
    Ok(done.await?)
}

#[test]
fn what_was_done_is_undone_last_first() {
    let done = || vec![completed(1, "charge", 11), completed(2, "reserve", 12)];
    let wants = same_from_any_prefix(order, [done(), vec![completed(3, "ship", 13)]].concat());
    assert!(result(&wants).contains("b\"36\""), "{wants:?}");

    let mut bodies = done();
    bodies.push(failed(3, "ship", "NoRoom"));
    bodies.push(completed(4, "undo reserve 12", 0));
    bodies.push(completed(5, "undo charge 11", 0));
    let wants = same_from_any_prefix(order, bodies);
    assert_eq!(wants[3], ["Attempt(#4 undo reserve 12 1)"]);
    assert_eq!(wants[4], ["Attempt(#5 undo charge 11 1)"]);
    assert!(wants[5][0].contains("\"NoRoom\""), "{wants:?}");
}

#[test]
fn a_step_that_failed_is_not_undone_unless_nobody_knows() {
    let wants = same_from_any_prefix(order, vec![failed(1, "charge", "Declined")]);
    assert!(wants[1][0].starts_with("Finish(Err(Failed(Failure { kind: \"Declined\""), "{wants:?}");
    for kind in ["InDoubt", "StepTimeout"] {
        let wants = same_from_any_prefix(order, vec![failed(1, "charge", kind)]);
        assert_eq!(wants[1], ["Attempt(#2 undo charge unknown 1)"], "{kind}");
    }
}

#[test]
fn a_cancel_undoes_what_was_done_and_what_is_under_way() {
    let canceled = || EventBody::CancelRequested { reason: String::new() };
    let bodies = vec![
        completed(1, "charge", 11),
        canceled(),
        completed(3, "undo reserve unknown", 0),
        completed(4, "undo charge 11", 0),
    ];
    let wants = {
        let mut live = Script::new(order);
        let mut wants = vec![live.begin().unwrap()];
        wants.extend(bodies.into_iter().map(|body| live.apply(body).unwrap()));
        wants
    };
    assert_eq!(wants[2], ["Attempt(#3 undo reserve unknown 1)"]);
    assert_eq!(wants[3], ["Attempt(#4 undo charge 11 1)"]);
    assert!(wants[4][0].starts_with("Finish(Err(Canceled("), "{wants:?}");
}

#[test]
fn an_undo_that_fails_is_told_and_the_next_one_runs() {
    let bodies = vec![
        completed(1, "charge", 11),
        completed(2, "reserve", 12),
        failed(3, "ship", "NoRoom"),
        failed(4, "undo reserve 12", "Locked"),
        completed(5, "undo charge 11", 0),
    ];
    let wants = same_from_any_prefix(order, bodies);
    assert_eq!(wants[4], ["Attempt(#5 undo charge 11 1)"]);
    let end = &wants[5][0];
    assert!(end.contains("kind: \"NoRoom\"") && end.contains("'undo reserve 12' failed: Locked"), "{end}");
}
