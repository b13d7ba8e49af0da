//! Queued steps: asked for once, ended by events, let go of once.

use everstep_core::{CommitCommand, QueuedOptions, StepScheduled};

use super::*;
use crate::{QueuedDoubt, StepFailed, StepType};

struct Double;

impl StepType for Double {
    const NAME: &'static str = "double";
    type Input = u32;
    type Output = u32;
}

fn commands(machine: &mut Machine) -> Vec<CommitCommand> {
    let work = machine.take_work().into_iter();
    work.filter_map(|work| if let Work::Command(command) = work { Some(*command) } else { None }).collect()
}

fn begun<F, Fut>(workflow: F) -> Machine
where
    F: Fn(Ctx, ()) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<u32, WorkflowError>> + Send + 'static,
{
    let mut script = Script::new(workflow);
    script.machine.apply(&event(1, EventBody::RunStarted(Box::new(start(Payload::json("null")))))).unwrap();
    script.machine
}

fn scheduled(step: u32, name: &str) -> EventBody {
    let input = Payload::json("4");
    let options = QueuedOptions::default();
    EventBody::StepScheduled(Box::new(StepScheduled { step: OpId(step), name: name.into(), input, options }))
}

fn failed(step: u32, kind: &str, retry_at: Option<i64>) -> EventBody {
    EventBody::StepFailed {
        step: OpId(step),
        name: "double".into(),
        attempt: 1,
        elapsed: everstep_core::Duration::ZERO,
        failure: Failure::new(kind, "m"),
        retry_at: retry_at.map(Timestamp::from_micros),
    }
}

fn finish(machine: &mut Machine) -> Result<u32, String> {
    match machine.take_work().pop() {
        Some(Work::Finish { outcome: Ok(value), .. }) => Ok(payload::decode(&value).unwrap()),
        Some(Work::Finish { outcome: Err(WorkflowError::Failed(failure)), .. }) => Err(failure.kind),
        other => panic!("{other:?}"),
    }
}

async fn one(ctx: Ctx) -> Result<u32, WorkflowError> {
    Ok(ctx.run::<Double>(4).await?)
}

#[test]
fn it_is_asked_for_once_and_its_result_comes_with_an_event() {
    let mut machine = begun(|ctx: Ctx, ()| one(ctx));
    let asked = commands(&mut machine);
    let [CommitCommand::ScheduleStep(asked)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((asked.step, asked.name.as_str()), (OpId(1), "double"));
    assert_eq!(asked.input, Payload::json("4"));
    assert_eq!(asked.options, QueuedOptions::default());
    assert!(machine.awaits_others(), "its end may come at any time");
    machine.apply(&event(2, scheduled(1, "double"))).unwrap();
    assert!(commands(&mut machine).is_empty());
    machine.apply(&event(3, failed(1, "Broken", Some(9)))).unwrap();
    assert!(
        commands(&mut machine).is_empty() && machine.is_waiting(),
        "the next attempt is not its business"
    );
    machine.apply(&event(4, completed(1, "double", 8))).unwrap();
    assert_eq!(finish(&mut machine), Ok(8));
    assert!(!machine.awaits_others());
}

#[test]
fn what_is_recorded_is_not_asked_for_again() {
    let mut machine = begun(|ctx: Ctx, ()| one(ctx));
    machine.apply(&event(2, scheduled(1, "double"))).unwrap();
    assert!(commands(&mut machine).is_empty(), "whoever had the run before has asked");
    assert!(machine.awaits_others());
    machine.apply(&event(3, failed(1, "Broken", None))).unwrap();
    assert_eq!(finish(&mut machine), Err("Broken".to_owned()));
}

#[test]
fn options_go_with_it() {
    let second = Duration::from_secs(1);
    let mut machine = begun(move |ctx: Ctx, ()| async move {
        let step = ctx
            .run::<Double>(4)
            .task_queue("video")
            .no_retry()
            .priority(1)
            .schedule_to_start(second)
            .start_to_close(second * 2)
            .schedule_to_close(second * 3)
            .heartbeat(second * 4)
            .in_doubt(QueuedDoubt::AskHuman);
        Ok(step.await?)
    });
    let asked = commands(&mut machine);
    let [CommitCommand::ScheduleStep(asked)] = &asked[..] else { panic!("{asked:?}") };
    let seconds = |n: u64| Some(everstep_core::Duration::from_secs(n));
    let expected = QueuedOptions {
        task_queue: "video".to_owned(),
        priority: 1,
        schedule_to_start: seconds(1),
        start_to_close: seconds(2),
        schedule_to_close: seconds(3),
        heartbeat: seconds(4),
        retry: RetryPolicy::none(),
        in_doubt: Some(DoubtPolicy::AskHuman),
    };
    assert_eq!(asked.options, expected);
}

#[test]
fn what_the_server_would_refuse_fails_at_once() {
    type Change = fn(crate::Queued<Double>) -> crate::Queued<Double>;
    let changes: [Change; 4] = [
        |step| step.priority(6),
        |step| step.priority(0),
        |step| step.heartbeat(Duration::ZERO),
        |step| step.task_queue("\0"),
    ];
    for change in changes {
        let mut machine = begun(move |ctx: Ctx, ()| async move { Ok(change(ctx.run::<Double>(4)).await?) });
        assert_eq!(finish(&mut machine), Err("InvalidStep".to_owned()));
    }
}

/// Takes whichever comes first, a signal or the step.
async fn raced(ctx: Ctx) -> Result<u32, WorkflowError> {
    match select2(ctx.signal::<u32>("go"), ctx.run::<Double>(4)).await {
        Either::Left(value) => {
            ctx.sleep(Duration::from_secs(9)).await;
            Ok(value?)
        }
        Either::Right(value) => Ok(value?),
    }
}

#[test]
fn letting_go_asks_its_worker_to_stop_once() {
    let mut machine = begun(|ctx: Ctx, ()| raced(ctx));
    assert_eq!(commands(&mut machine).len(), 1);
    machine.apply(&event(2, scheduled(1, "double"))).unwrap();
    machine.apply(&event(3, signal(1))).unwrap();
    assert_eq!(commands(&mut machine), [CommitCommand::CancelStep { step: OpId(1) }]);
    assert!(machine.awaits_others(), "it ends all the same, and says how");
    let canceled = EventBody::StepCancelRequested { step: OpId(1) };
    machine.apply(&event(4, canceled.clone())).unwrap();
    assert!(commands(&mut machine).is_empty());
    machine.apply(&event(5, failed(1, "Canceled", None))).unwrap();
    assert!(!machine.awaits_others());
    // The next owner knows from the history that it was said.
    let mut again = begun(|ctx: Ctx, ()| raced(ctx));
    for (seq, body) in [(2, scheduled(1, "double")), (3, signal(1)), (4, canceled)] {
        again.apply(&event(seq, body)).unwrap();
    }
    assert!(commands(&mut again).is_empty());
}

#[test]
fn what_was_never_asked_for_is_not_canceled() {
    // The signal is there before the step is first awaited.
    let mut machine = begun(|ctx: Ctx, ()| async move {
        ctx.sleep(Duration::from_secs(1)).await;
        raced(ctx).await
    });
    machine.take_work();
    machine.apply(&event(2, signal(1))).unwrap();
    let timer = TimerKey::timer(OpId(1));
    machine.apply(&event(3, EventBody::TimerStarted { timer: OpId(1), fire_at: Timestamp::MAX })).unwrap();
    machine.apply(&event(4, EventBody::TimerFired { timer })).unwrap();
    assert!(commands(&mut machine).is_empty());
    assert!(!machine.awaits_others());
}

#[test]
fn a_result_of_another_type_fails_the_step() {
    let mut machine = begun(|ctx: Ctx, ()| async move {
        let result: Result<u32, StepFailed> = ctx.run::<Double>(4).await;
        Ok(result?)
    });
    machine.apply(&event(2, scheduled(1, "double"))).unwrap();
    let body = EventBody::StepCompleted {
        step: OpId(1),
        name: "double".into(),
        attempt: 1,
        elapsed: everstep_core::Duration::ZERO,
        result: Payload::json("\"four\""),
    };
    machine.apply(&event(3, body)).unwrap();
    assert_eq!(finish(&mut machine), Err("Payload".to_owned()));
}

#[test]
fn other_code_than_that_which_asked_is_found_out() {
    let mut machine = begun(|ctx: Ctx, ()| async move { number(&ctx, "double", 1).await });
    match machine.apply(&event(2, scheduled(1, "double"))) {
        Err(Obstacle::Blocked(blocked)) => {
            assert_eq!(blocked.expected, "queued step 'double' #1");
            assert_eq!(blocked.produced, "step 'double' #1");
        }
        other => panic!("{other:?}"),
    }
    let mut machine = begun(|ctx: Ctx, ()| one(ctx));
    assert!(matches!(machine.apply(&event(2, scheduled(1, "treble"))), Err(Obstacle::Blocked(_))));
}
