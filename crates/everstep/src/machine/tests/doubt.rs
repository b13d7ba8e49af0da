//! Attempts in doubt: what the code does about them, under each policy.

use super::*;
use crate::InDoubt;

type Policy = fn() -> InDoubt<u32>;

fn probe() -> InDoubt<u32> {
    InDoubt::verify(|| async { Ok(Some(5)) })
}

fn guarded(policy: Policy) -> Script {
    let mut s = Script::new(move |ctx: Ctx, ()| async move {
        Ok(ctx.step("a", || async { Ok::<_, StepError>(1u32) }).in_doubt(policy()).await?)
    });
    assert_eq!(s.begin().unwrap(), ["Attempt(#1 a 1)"]);
    s
}

fn started(attempt: u32, policy: DoubtPolicy) -> EventBody {
    EventBody::StepStarted { step: OpId(1), name: "a".into(), attempt, in_doubt: Some(policy) }
}

fn in_doubt(attempt: u32) -> EventBody {
    EventBody::StepInDoubt { step: OpId(1), name: "a".into(), attempt }
}

fn resolved(resolution: Resolution) -> EventBody {
    EventBody::StepResolved(Box::new(everstep_core::StepResolved {
        step: OpId(1),
        name: "a".into(),
        attempt: 1,
        resolution,
        note: String::new(),
    }))
}

#[test]
fn the_code_that_meets_a_doubt_decides() {
    let policies: [(Policy, &[&str]); 4] = [
        (|| InDoubt::Retry, &["Attempt(#1 a 2)"]),
        (probe, &["Probe(#1 a 1)"]),
        (|| InDoubt::AskHuman, &[]),
        (|| InDoubt::Fail, &["GiveUp(#1 a 1)"]),
    ];
    for (policy, wants) in policies {
        let mut s = guarded(policy);
        s.apply(started(1, DoubtPolicy::Verify)).unwrap();
        assert!(s.machine.has_begun());
        assert_eq!(s.apply(in_doubt(1)).unwrap(), wants, "whatever was recorded");
        assert!(!s.machine.has_begun());
        assert_eq!(s.machine.doubt(OpId(1)), Some(1));
        assert_eq!(s.machine.take_work().len(), 0, "nothing is asked for twice");
    }
    let mut s = Script::new(|ctx: Ctx, ()| async move { number(&ctx, "a", 1).await });
    s.begin().unwrap();
    s.apply(started(1, DoubtPolicy::AskHuman)).unwrap();
    assert_eq!(s.apply(in_doubt(1)).unwrap(), ["Attempt(#1 a 2)"], "code that guards no more tries again");
}

#[test]
fn a_failure_tells_kind_and_policy_apart() {
    let mut s = guarded(|| InDoubt::Fail);
    s.apply(started(1, DoubtPolicy::Fail)).unwrap();
    let event = event(3, in_doubt(1));
    s.machine.apply(&event).unwrap();
    match s.machine.take_work().remove(0) {
        Work::GiveUp { attempt: 1, failure, .. } => {
            assert_eq!((failure.kind.as_str(), failure.non_retryable), ("InDoubt", true));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_probe_that_finds_nothing_lets_the_next_attempt_begin() {
    let mut s = guarded(probe);
    s.apply(started(1, DoubtPolicy::Verify)).unwrap();
    assert_eq!(s.apply(in_doubt(1)).unwrap(), ["Probe(#1 a 1)"]);
    s.machine.disprove(OpId(1), 2);
    assert_eq!(s.machine.take_work().len(), 0, "that is about another attempt");
    s.machine.disprove(OpId(1), 1);
    assert_eq!(format!("{:?}", s.machine.take_work()), "[Attempt(#1 a 2)]");
    // What was found out is recorded nowhere: whoever has the run next looks again.
    let mut again = guarded(probe);
    again.apply(started(1, DoubtPolicy::Verify)).unwrap();
    assert_eq!(again.apply(in_doubt(1)).unwrap(), ["Probe(#1 a 1)"]);
    again.apply(started(2, DoubtPolicy::Verify)).unwrap();
    assert_eq!(again.machine.doubt(OpId(1)), None, "the next attempt ends the doubt");
    assert_eq!(again.apply(in_doubt(2)).unwrap(), ["Probe(#1 a 2)"]);
}

#[test]
fn what_a_person_says_is_what_the_code_hears() {
    let five = || Resolution::Completed(payload::encode(&5u32).unwrap());
    for (policy, pending) in [((|| InDoubt::AskHuman) as Policy, 0), (probe, 1)] {
        let doubtful = || {
            let mut s = guarded(policy);
            s.apply(started(1, DoubtPolicy::AskHuman)).unwrap();
            assert_eq!(s.apply(in_doubt(1)).unwrap().len(), pending);
            s
        };
        let end = doubtful().apply(resolved(five())).unwrap();
        assert!(end[0].starts_with("Finish(Ok(") && end[0].contains("b\"5\""), "{end:?}");
        let failed = Resolution::Failed(Failure::new("Lost", "no trace"));
        let end = doubtful().apply(resolved(failed)).unwrap();
        assert!(end[0].starts_with("Finish(Err(Failed(Failure { kind: \"Lost\""), "{end:?}");
        assert_eq!(doubtful().apply(resolved(Resolution::Retry)).unwrap(), ["Attempt(#1 a 2)"]);
    }
}
