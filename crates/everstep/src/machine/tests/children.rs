//! Children and requests to other runs: asked for once, ended by events.

use std::future::IntoFuture;

use everstep_core::{
    ChildClosed, ChildOutcome, ChildScheduled, CommitCommand, ExternalAction, ExternalRequested,
    ExternalTarget,
};

use super::*;
use crate::{ChildError, ParentClose, ReusePolicy, RunStatus};

fn commands(machine: &mut Machine) -> Vec<CommitCommand> {
    let work = machine.take_work().into_iter();
    work.filter_map(|work| if let Work::Command(command) = work { Some(*command) } else { None }).collect()
}

fn begun<F, Fut, O>(workflow: F) -> Machine
where
    F: Fn(Ctx, ()) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<O, WorkflowError>> + Send + 'static,
    O: serde::Serialize,
{
    let mut script = Script::new(workflow);
    script.machine.apply(&event(1, EventBody::RunStarted(Box::new(start(Payload::json("null")))))).unwrap();
    script.machine
}

fn child_run() -> RunId {
    RunId::from_uuid(Uuid::from_u128(9))
}

fn wanted(op: u32) -> ChildScheduled {
    ChildScheduled {
        child: OpId(op),
        run_id: RunId::from_uuid(Uuid::nil()),
        workflow_type: "count".into(),
        workflow_id: String::new(),
        task_queue: String::new(),
        input: Payload::json("4"),
        run_timeout: None,
        retry: None,
        reuse: ReusePolicy::Allow,
        on_parent_close: ParentClose::Terminate,
        report_start: false,
        notes: everstep_core::Notes::default(),
    }
}

fn scheduled(op: u32) -> EventBody {
    EventBody::ChildScheduled(Box::new(ChildScheduled { run_id: child_run(), ..wanted(op) }))
}

fn closed(op: u32, outcome: ChildOutcome) -> EventBody {
    let (scheduled, run_id) = (2, child_run());
    EventBody::ChildClosed(Box::new(ChildClosed { child: OpId(op), scheduled, run_id, outcome }))
}

fn done(value: u32) -> ChildOutcome {
    ChildOutcome::Completed(payload::encode(&value).unwrap())
}

fn finish(machine: &mut Machine) -> Result<String, Failure> {
    match machine.take_work().pop() {
        Some(Work::Finish { outcome: Ok(value), .. }) => {
            Ok(String::from_utf8_lossy(&value.data).into_owned())
        }
        Some(Work::Finish { outcome: Err(WorkflowError::Failed(failure)), .. }) => Err(failure),
        other => panic!("{other:?}"),
    }
}

async fn one(ctx: Ctx) -> Result<u32, WorkflowError> {
    Ok(ctx.child::<u32>("count", 4).await?)
}

#[test]
fn a_child_is_asked_for_once_and_its_result_comes_with_an_event() {
    let mut machine = begun(|ctx: Ctx, ()| one(ctx));
    assert_eq!(commands(&mut machine), [CommitCommand::StartChild(Box::new(wanted(1)))]);
    assert!(machine.awaits_others(), "its end may come at any time");
    machine.apply(&event(2, scheduled(1))).unwrap();
    assert!(commands(&mut machine).is_empty() && machine.is_waiting());
    machine.apply(&event(3, closed(1, done(8)))).unwrap();
    assert_eq!(finish(&mut machine).unwrap(), "8");
    assert!(!machine.awaits_others());

    let mut again = begun(|ctx: Ctx, ()| one(ctx));
    again.apply(&event(2, scheduled(1))).unwrap();
    assert!(commands(&mut again).is_empty(), "whoever had the run before has asked");
}

#[test]
fn options_go_with_a_child() {
    let mut machine = begun(|ctx: Ctx, ()| async move {
        let child = ctx
            .child::<u32>("count", 4)
            .workflow_id("c")
            .task_queue("q")
            .run_timeout(Duration::from_secs(1))
            .retry(RetryPolicy::none())
            .reuse(ReusePolicy::Reject)
            .on_parent_close(ParentClose::Abandon);
        Ok(child.await?)
    });
    let expected = ChildScheduled {
        workflow_id: "c".into(),
        task_queue: "q".into(),
        run_timeout: Some(everstep_core::Duration::from_secs(1)),
        retry: Some(RetryPolicy::none()),
        reuse: ReusePolicy::Reject,
        on_parent_close: ParentClose::Abandon,
        ..wanted(1)
    };
    assert_eq!(commands(&mut machine), [CommitCommand::StartChild(Box::new(expected))]);
}

#[test]
fn what_a_child_ends_with_is_told_apart() {
    let failure = || Failure::new("Oops", "no");
    for (outcome, kind, cause) in [
        (ChildOutcome::Ended { status: RunStatus::Failed, failure: failure() }, "ChildFailed", Some("Oops")),
        (ChildOutcome::NotStarted(failure()), "ChildNotStarted", Some("Oops")),
        (ChildOutcome::Completed(Payload::json("\"text\"")), "Payload", None),
    ] {
        let mut machine = begun(|ctx: Ctx, ()| one(ctx));
        machine.apply(&event(2, scheduled(1))).unwrap();
        machine.apply(&event(3, closed(1, outcome))).unwrap();
        let failure = finish(&mut machine).unwrap_err();
        assert_eq!(failure.kind, kind);
        assert_eq!(failure.cause.map(|c| c.kind), cause.map(ToOwned::to_owned));
    }
}

#[test]
fn a_child_that_could_never_begin_is_not_asked_for() {
    let mut machine = begun(|ctx: Ctx, ()| async move {
        let mut kinds = Vec::new();
        for child in [
            ctx.child::<u32>("", 1),
            ctx.child("count", 1).workflow_id("ä"),
            ctx.child("count", 1).task_queue("a\0"),
            ctx.child("count", 1).run_timeout(Duration::ZERO),
            ctx.child("count", 1).retry(RetryPolicy { backoff_coefficient: 0.5, ..RetryPolicy::default() }),
            ctx.child("count", "x".repeat(3 << 20)),
        ] {
            match child.await {
                Err(ChildError::NotStarted(failure)) => kinds.push(failure.kind),
                other => panic!("{other:?}"),
            }
        }
        Ok(kinds)
    });
    let invalid = ["\"InvalidArgument\""; 5].join(",");
    assert_eq!(finish(&mut machine).unwrap(), format!("[{invalid},\"PayloadTooLarge\"]"));
}

#[test]
fn a_handle_waits_for_the_start_and_then_for_the_end() {
    let workflow = |ctx: Ctx, ()| async move {
        let child = ctx.child::<u32>("count", 4).start().await?;
        assert_eq!(child.run_id(), child_run());
        child.signal("go", &2).await?;
        Ok(child.result().await?)
    };
    let mut machine = begun(workflow);
    let asked = ChildScheduled { report_start: true, ..wanted(1) };
    assert_eq!(commands(&mut machine), [CommitCommand::StartChild(Box::new(asked))]);
    machine.apply(&event(2, scheduled(1))).unwrap();
    assert!(commands(&mut machine).is_empty(), "it has not begun");
    machine.apply(&event(3, EventBody::ChildStarted { child: OpId(1), scheduled: 2 })).unwrap();
    let requested = ExternalRequested {
        op: OpId(2),
        target: ExternalTarget::Run(child_run()),
        action: ExternalAction::Signal { name: "go".into(), input: Payload::json("2") },
    };
    assert_eq!(commands(&mut machine), [CommitCommand::RequestExternal(Box::new(requested.clone()))]);
    machine.apply(&event(4, EventBody::ExternalRequested(Box::new(requested)))).unwrap();
    let resolved = |failure| EventBody::ExternalResolved { op: OpId(2), requested: 4, failure };
    machine.apply(&event(5, resolved(None))).unwrap();
    machine.apply(&event(6, closed(1, done(3)))).unwrap();
    assert_eq!(finish(&mut machine).unwrap(), "3");

    // Its end may come before the word of its start, and before the answer to the signal.
    let mut early = begun(workflow);
    early.apply(&event(2, scheduled(1))).unwrap();
    early.apply(&event(3, closed(1, done(3)))).unwrap();
    let requested = commands(&mut early).pop();
    let Some(CommitCommand::RequestExternal(requested)) = requested else { panic!("{requested:?}") };
    early.apply(&event(4, EventBody::ExternalRequested(requested))).unwrap();
    early.apply(&event(5, resolved(Some(Failure::new("RunClosed", "it is"))))).unwrap();
    assert_eq!(finish(&mut early).unwrap_err().kind, "RunClosed");
}

#[test]
fn children_that_are_dropped_are_left_alone() {
    let mut machine = begun(|ctx: Ctx, ()| async move {
        drop(ctx.child::<u32>("count", 1));
        let won = select2(ctx.child::<u32>("count", 4).into_future(), ctx.signal::<u32>("go")).await;
        assert!(matches!(won, Either::Right(_)));
        let sent = ctx.external("w").cancel("r").await;
        Ok(sent.is_ok())
    });
    let asked = commands(&mut machine);
    let [CommitCommand::StartChild(asked)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(asked.child, OpId(2), "one that was never awaited is never asked for");
    machine.apply(&event(2, scheduled(2))).unwrap();
    machine.apply(&event(3, signal(1))).unwrap();
    let asked = commands(&mut machine);
    assert!(matches!(&asked[..], [CommitCommand::RequestExternal(_)]), "nothing about the child: {asked:?}");
    machine.apply(&event(4, closed(2, done(3)))).unwrap();
    let Some(CommitCommand::RequestExternal(requested)) = asked.into_iter().next() else { panic!() };
    machine.apply(&event(5, EventBody::ExternalRequested(requested))).unwrap();
    let resolved = EventBody::ExternalResolved { op: OpId(3), requested: 5, failure: None };
    machine.apply(&event(6, resolved)).unwrap();
    assert_eq!(finish(&mut machine).unwrap(), "true");
}

#[test]
fn another_child_than_the_recorded_one_is_noticed() {
    let mut machine = begun(|ctx: Ctx, ()| async move { Ok(ctx.child::<u32>("other", 4).await?) });
    let Err(Obstacle::Blocked(blocked)) = machine.apply(&event(2, scheduled(1))) else { panic!() };
    assert_eq!(
        (blocked.expected.as_str(), blocked.produced.as_str()),
        ("child 'count' #1", "child 'other' #1")
    );
    let mut machine = begun(|ctx: Ctx, ()| async move { number(&ctx, "count", 1).await });
    let Err(Obstacle::Blocked(blocked)) = machine.apply(&event(2, closed(1, done(1)))) else { panic!() };
    assert_eq!((blocked.expected.as_str(), blocked.produced.as_str()), ("a child #1", "step 'count' #1"));
}
