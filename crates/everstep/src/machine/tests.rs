//! Recorded histories in, work out; and what must not be waited for.

mod children;
mod combine;
mod continuation;
mod doubt;
mod notes;
mod queued;
mod updates;
mod versions;

use std::time::Duration;

use everstep_core::{Actor, CommandId, RetryPolicy, RunId, SessionId, TimerKey, TraceContext, WorkerInfo};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::worker::workflow_factory;
use crate::{Either, StepError, join_all, payload, select2};

fn run_id() -> RunId {
    RunId::from_uuid(Uuid::from_u128(7))
}

struct Script {
    machine: Machine,
    seq: Seq,
    history: Vec<Event>,
}

fn start(input: Payload) -> RunStarted {
    RunStarted {
        namespace: "default".into(),
        workflow_id: "w".into(),
        workflow_type: "t".into(),
        task_queue: "default".into(),
        input,
        request_id: "r".into(),
        run_timeout: None,
        seed: 5,
        trace: TraceContext::default(),
        ..RunStarted::default()
    }
}

fn event(seq: Seq, body: EventBody) -> Event {
    let command_id = CommandId::from_uuid(Uuid::nil());
    let at = Timestamp::from_micros(1_700_000_000_000_000 + seq as i64 * 1_000_000);
    Event { seq, at, epoch: 1, command_id, actor: Actor::System, body }
}

impl Script {
    fn new<F, Fut, O>(workflow: F) -> Self
    where
        F: Fn(Ctx, ()) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, WorkflowError>> + Send + 'static,
        O: serde::Serialize,
    {
        Self::knowing(Known::default(), workflow)
    }

    /// A run whose history is known to say this.
    fn knowing<F, Fut, O>(known: Known, workflow: F) -> Self
    where
        F: Fn(Ctx, ()) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, WorkflowError>> + Send + 'static,
        O: serde::Serialize,
    {
        let factory = workflow_factory(workflow);
        let started = start(Payload::json("null"));
        let machine = Machine::new(run_id(), &started, Timestamp::from_micros(0), &factory, known);
        Self { machine, seq: 0, history: Vec::new() }
    }

    fn apply(&mut self, body: EventBody) -> Result<Vec<String>, Obstacle> {
        self.seq += 1;
        let event = event(self.seq, body);
        self.history.push(event.clone());
        self.machine.apply(&event)?;
        Ok(self.machine.take_work().iter().map(|w| format!("{w:?}")).collect())
    }

    fn begin(&mut self) -> Result<Vec<String>, Obstacle> {
        self.apply(EventBody::RunStarted(Box::new(start(Payload::json("null")))))
    }
}

fn completed(step: u32, name: &str, value: u32) -> EventBody {
    EventBody::StepCompleted {
        step: OpId(step),
        name: name.into(),
        attempt: 1,
        elapsed: everstep_core::Duration::ZERO,
        result: payload::encode(&value).unwrap(),
    }
}

fn signal(value: u32) -> EventBody {
    EventBody::SignalReceived {
        name: "go".into(),
        signal_id: value.to_string(),
        input: payload::encode(&value).unwrap(),
    }
}

async fn number(ctx: &Ctx, name: &str, value: u32) -> Result<u32, WorkflowError> {
    Ok(ctx.step(name.to_owned(), move || async move { Ok::<_, StepError>(value) }).await?)
}

#[test]
fn steps_run_one_after_the_other_and_see_recorded_results() {
    let mut s = Script::new(|ctx: Ctx, ()| async move {
        let a = number(&ctx, "a", 1).await?;
        let b = number(&ctx, "b", 2).await?;
        Ok(a + b)
    });
    assert_eq!(s.begin().unwrap(), ["Attempt(#1 a 1)"]);
    assert_eq!(s.apply(completed(1, "a", 10)).unwrap(), ["Attempt(#2 b 1)"]);
    let done = s.apply(completed(2, "b", 20)).unwrap();
    assert_eq!(done, [r#"Finish(Ok(Payload { encoding: "json", data: b"30" }) [])"#]);
}

#[test]
fn a_failed_attempt_is_followed_by_the_next_when_the_history_says_so() {
    let mut s = Script::new(|ctx: Ctx, ()| async move { number(&ctx, "a", 1).await });
    s.begin().unwrap();
    let failed = |attempt, retry_at| EventBody::StepFailed {
        step: OpId(1),
        name: "a".into(),
        attempt,
        elapsed: everstep_core::Duration::ZERO,
        failure: Failure::new("Oops", "no"),
        retry_at,
    };
    assert_eq!(s.apply(failed(1, Some(Timestamp::from_micros(9)))).unwrap(), ["Attempt(#1 a 2)"]);
    let end = s.apply(failed(2, None)).unwrap();
    assert!(end[0].starts_with("Finish(Err(Failed(Failure { kind: \"Oops\""), "{end:?}");
}

#[test]
fn what_follows_an_attempt_that_was_lost_does_not_wait() {
    let mut s = Script::new(|ctx: Ctx, ()| async move { number(&ctx, "a", 1).await });
    s.machine.apply(&event(1, EventBody::RunStarted(Box::new(start(Payload::json("null")))))).unwrap();
    let failed = EventBody::StepFailed {
        step: OpId(1),
        name: "a".into(),
        attempt: 1,
        elapsed: everstep_core::Duration::ZERO,
        failure: Failure::new("Oops", "no"),
        retry_at: Some(Timestamp::MAX),
    };
    s.machine.apply(&event(2, failed)).unwrap();
    let begun = EventBody::StepStarted { step: OpId(1), name: "a".into(), attempt: 2, in_doubt: None };
    s.machine.apply(&event(3, begun)).unwrap();
    let work = s.machine.take_work();
    let [Work::Attempt { attempt: 3, not_before: None, .. }] = &work[..] else { panic!("{work:?}") };
}

#[test]
fn the_loser_of_a_select_gives_back_its_timer() {
    let mut s = Script::new(|ctx: Ctx, ()| async move {
        let timeout = ctx.sleep(Duration::from_secs(60));
        match select2(ctx.signal::<u32>("go"), timeout).await {
            Either::Left(n) => Ok(n?),
            Either::Right(()) => Ok(0),
        }
    });
    assert_eq!(s.begin().unwrap(), ["StartTimer(#1 60s)"]);
    s.apply(EventBody::TimerStarted { timer: OpId(1), fire_at: Timestamp::MAX }).unwrap();
    let end = s.apply(signal(3)).unwrap();
    assert_eq!(end.len(), 2);
    assert_eq!(end[0], "CancelTimer(#1)");
}

#[test]
fn signals_are_taken_in_order_and_what_is_left_is_named() {
    let mut s = Script::new(|ctx: Ctx, ()| async move {
        let a = ctx.signal::<u32>("go").await?;
        let b = ctx.signal::<u32>("go").await?;
        Ok(vec![a, b])
    });
    s.begin().unwrap();
    s.apply(signal(1)).unwrap();
    let end = s.apply(signal(2)).unwrap();
    assert!(end[0].contains(r#"b"[1,2]""#), "{end:?}");
    let mut s = Script::new(|ctx: Ctx, ()| async move {
        ctx.sleep(Duration::from_secs(1)).await;
        Ok(())
    });
    s.begin().unwrap();
    s.apply(EventBody::TimerStarted { timer: OpId(1), fire_at: Timestamp::MAX }).unwrap();
    s.apply(signal(1)).unwrap();
    let end = s.apply(EventBody::TimerFired { timer: TimerKey::timer(OpId(1)) }).unwrap();
    assert!(end[0].ends_with("[3])"), "{end:?}");
}

#[test]
fn code_that_builds_another_step_is_caught_with_both_sides_and_the_line() {
    let mut s = Script::new(|ctx: Ctx, ()| async move { number(&ctx, "new", 1).await });
    s.begin().unwrap();
    let Err(Obstacle::Blocked(b)) = s.apply(completed(1, "old", 1)) else { panic!("not caught") };
    assert_eq!((b.kind, b.at_seq), (BlockKind::Nondeterminism, 2));
    assert_eq!((&*b.expected, &*b.produced), ("step 'old' #1", "step 'new' #1"));
    assert!(b.source.contains("machine/tests.rs:"), "{}", b.source);
    assert!(s.apply(signal(1)).is_err(), "once in error, it stays in error");
}

fn is_foreign(result: Result<Vec<String>, Obstacle>) -> Box<Blocked> {
    match result {
        Err(Obstacle::Blocked(b)) if b.kind == BlockKind::ForeignWake => b,
        other => panic!("not caught: {other:?}"),
    }
}

#[tokio::test]
async fn waiting_for_the_outside_world_is_caught_also_inside_join() {
    let timer = |_: Ctx, ()| async move {
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        Ok(())
    };
    assert!(is_foreign(Script::new(timer).begin()).hint.contains("ctx.sleep"));
    let channel = |ctx: Ctx, ()| async move {
        number(&ctx, "a", 1).await?;
        let (_tx, mut rx) = tokio::sync::mpsc::channel::<()>(1);
        rx.recv().await;
        Ok(())
    };
    let mut s = Script::new(channel);
    s.begin().unwrap();
    assert!(is_foreign(s.apply(completed(1, "a", 1))).source.contains("machine/tests.rs"));
    let handle = |_: Ctx, ()| async move {
        let _ = tokio::spawn(std::future::pending::<()>()).await;
        Ok(())
    };
    is_foreign(Script::new(handle).begin());
    let joined = |ctx: Ctx, ()| async move {
        let fine = number(&ctx, "a", 1);
        let (a, ()) = crate::join!(fine, tokio::time::sleep(Duration::from_secs(3_600)));
        a
    };
    is_foreign(Script::new(joined).begin());
    let joined = |ctx: Ctx, ()| async move {
        let (_tx, rx) = tokio::sync::oneshot::channel::<()>();
        let (a, _) = crate::join!(number(&ctx, "a", 1), rx);
        a
    };
    is_foreign(Script::new(joined).begin());
    let joined = |ctx: Ctx, ()| async move {
        let task = tokio::spawn(std::future::pending::<()>());
        let (a, _) = crate::join!(number(&ctx, "a", 1), task);
        a
    };
    is_foreign(Script::new(joined).begin());
}

#[test]
fn a_panic_is_an_obstacle_with_its_message() {
    let mut s = Script::new(|_: Ctx, ()| async move {
        if true {
            panic!("boom");
        }
        Ok(())
    });
    let Err(Obstacle::Panicked(message)) = s.begin() else { panic!("not caught") };
    assert_eq!(message, "panicked: boom");
}

#[test]
fn time_randomness_and_keys_repeat() {
    let workflow = |ctx: Ctx, ()| async move {
        let key = ctx.idempotency_key();
        number(&ctx, "a", 1).await?;
        Ok((ctx.now(), ctx.uuid(), ctx.random(), key))
    };
    let end = |mut s: Script| {
        s.begin().unwrap();
        s.apply(completed(1, "a", 1)).unwrap()
    };
    let first = end(Script::new(workflow));
    assert_eq!(first, end(Script::new(workflow)));
    assert!(first[0].contains(&format!("{}/1", run_id())), "{first:?}");
}

/// A workflow with every kind of wait, driven by a recorded history.
async fn kitchen_sink(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let sums = join_all((0..3).map(|i| number_owned(ctx.clone(), format!("p{i}"), i))).await;
    let mut total = 0;
    for sum in sums {
        total += sum?;
    }
    let go = select2(ctx.signal::<u32>("go"), ctx.sleep(Duration::from_secs(5))).await;
    total += match go {
        Either::Left(n) => n?,
        Either::Right(()) => 100,
    };
    number(&ctx, "last", total).await
}

async fn number_owned(ctx: Ctx, name: String, value: u32) -> Result<u32, WorkflowError> {
    Ok(ctx.step(name, move || async move { Ok::<_, StepError>(value) }).retry(RetryPolicy::none()).await?)
}

proptest! {
    /// Whatever prefix was there when work was taken, the same events bring the same work.
    #[test]
    fn framing_does_not_change_what_the_code_does(
        order in Just([1u32, 2, 3]).prop_shuffle(),
        by_signal in any::<bool>(),
        cut in 1usize..9,
    ) {
        let attached = EventBody::WorkerAttached {
            session: SessionId::from_uuid(Uuid::nil()),
            worker: WorkerInfo::default(),
            pinned: false,
        };
        let mut bodies = vec![EventBody::RunStarted(Box::new(start(Payload::json("null")))), attached];
        bodies.extend(order.iter().map(|&i| completed(i, &format!("p{}", i - 1), i)));
        bodies.push(EventBody::TimerStarted { timer: OpId(4), fire_at: Timestamp::MAX });
        bodies.push(if by_signal { signal(7) } else { EventBody::TimerFired { timer: TimerKey::timer(OpId(4)) } });
        bodies.push(completed(5, "last", 13));

        let mut live = Script::new(kitchen_sink);
        let mut emitted = Vec::new();
        for body in &bodies {
            emitted.extend(live.apply(body.clone()).unwrap());
        }
        // Another worker gets the first `cut` events at once, then the rest one by one.
        let mut again = Script::new(kitchen_sink);
        let mut seen_later = Vec::new();
        for (i, event) in live.history.iter().enumerate() {
            again.machine.apply(event).unwrap();
            if i + 1 >= cut {
                seen_later.extend(again.machine.take_work().iter().map(|w| format!("{w:?}")));
            }
        }
        prop_assert_eq!(emitted.last(), seen_later.last());
        prop_assert!(seen_later.iter().all(|w| emitted.contains(w)), "{:?} not in {:?}", seen_later, emitted);
    }
}
