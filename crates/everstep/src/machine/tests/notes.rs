//! What the code says about its run, and what the run says of steps without a policy.

use everstep_core::{Attribute, CommitCommand, RetryPolicy};

use super::*;
use crate::{Notes, attributes};

fn upserted(op: u32) -> EventBody {
    EventBody::AttributesUpserted { op: OpId(op), notes: Box::default() }
}

async fn says(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    ctx.upsert(attributes! { "stage" => "begun" });
    let n = number(&ctx, "first", 1).await?;
    ctx.upsert(Notes::new().memo("n", &n));
    Ok(n)
}

#[test]
fn what_is_said_is_recorded_with_what_follows_and_nothing_waits_for_it() {
    let mut script = Script::new(says);
    let started = event(1, EventBody::RunStarted(Box::new(start(Payload::json("null")))));
    script.machine.apply(&started).unwrap();
    let work = script.machine.take_work();
    let [Work::Command(command), Work::Attempt { name, .. }] = &work[..] else { panic!("{work:?}") };
    let CommitCommand::Upsert { op: OpId(1), notes } = &**command else { panic!("{command:?}") };
    assert_eq!(notes.attributes["stage"], Some(Attribute::Keyword("begun".into())));
    assert_eq!(name, "first");
    assert!(!script.machine.awaits_others(), "the end of a step may be gone ahead with");
    script.seq = 1;
    assert_eq!(script.apply(upserted(1)).unwrap(), Vec::<String>::new(), "once");
    let last = script.apply(completed(2, "first", 1)).unwrap();
    assert!(last.len() == 2 && last[0].contains("Upsert") && last[1].contains("Finish"), "{last:?}");
}

#[test]
fn an_upsert_that_is_recorded_is_not_said_again_and_one_that_is_not_is() {
    for recorded in [false, true] {
        let mut script = Script::new(says);
        script.seq = 1;
        let begun = EventBody::RunStarted(Box::new(start(Payload::json("null"))));
        script.machine.apply(&event(1, begun)).unwrap();
        for body in [upserted(1), completed(2, "first", 1)].into_iter().chain(recorded.then(|| upserted(3))) {
            script.seq += 1;
            script.machine.apply(&event(script.seq, body)).unwrap();
        }
        let words: Vec<String> = script.machine.take_work().iter().map(|w| format!("{w:?}")).collect();
        assert_eq!(words.iter().any(|w| w.contains("Upsert")), !recorded, "{words:?}");
        assert_eq!(words.len(), 2 - usize::from(recorded));
    }
}

#[test]
fn code_that_says_nothing_where_the_history_does_is_caught() {
    let mut script = Script::new(|ctx: Ctx, ()| async move { number(&ctx, "first", 1).await });
    script.begin().unwrap();
    let Err(Obstacle::Blocked(blocked)) = script.apply(upserted(1)) else { panic!("it does not fit") };
    assert_eq!((blocked.expected.as_str(), blocked.produced.as_str()), ("upsert #1", "step 'first' #1"));
}

#[test]
fn a_step_without_a_policy_has_that_of_its_run() {
    let patient = RetryPolicy { maximum_attempts: 7, ..RetryPolicy::default() };
    let own = RetryPolicy::none();
    let code = own.clone();
    let workflow = workflow_factory(move |ctx: Ctx, ()| {
        let own = code.clone();
        async move {
            let silent = ctx.step("silent", || async { Ok::<_, StepError>(1) });
            let said = ctx.step("said", || async { Ok::<_, StepError>(2) }).retry(own);
            let all = crate::join!(silent, said);
            all.0?;
            all.1?;
            Ok::<u32, WorkflowError>(0)
        }
    });
    let started = RunStarted { step_retry: Some(patient.clone()), ..start(Payload::json("null")) };
    let known = Known::default();
    let mut machine = Machine::new(run_id(), &started, Timestamp::from_micros(0), &workflow, known);
    machine.apply(&event(1, EventBody::RunStarted(Box::new(started)))).unwrap();
    let policies: Vec<RetryPolicy> = machine
        .take_work()
        .into_iter()
        .filter_map(|work| match work {
            Work::Attempt { policy, .. } => Some(policy),
            _ => None,
        })
        .collect();
    assert_eq!(policies, [patient, own]);
}
