//! One table: what was built, what was recorded, who disagrees.

use uuid::Uuid;

use super::*;
use crate::{Actor, CommandId, Duration, Payload, TimerKey, Timestamp};

fn event(seq: Seq, body: EventBody) -> Event {
    let command_id = CommandId::from_uuid(Uuid::nil());
    Event { seq, at: Timestamp::from_micros(0), epoch: 1, command_id, actor: Actor::System, body }
}

fn completed(step: u32, name: &str) -> EventBody {
    let (step, name) = (OpId(step), name.to_owned());
    EventBody::StepCompleted { step, name, attempt: 1, elapsed: Duration::ZERO, result: Payload::default() }
}

#[test]
fn the_history_names_what_the_code_must_have_built() {
    let step = |name: &str| OpKind::Step(name.to_owned());
    let fired = |id| EventBody::TimerFired { timer: TimerKey::timer(OpId(id)) };
    type Case = (Vec<OpKind>, EventBody, Option<(&'static str, &'static str)>);
    let cases: Vec<Case> = vec![
        (vec![step("a")], completed(1, "a"), None),
        (vec![step("a"), step("b")], completed(1, "a"), None),
        (vec![step("b")], completed(1, "a"), Some(("step 'a' #1", "step 'b' #1"))),
        (vec![OpKind::Timer], completed(1, "a"), Some(("step 'a' #1", "timer #1"))),
        (vec![step("a")], completed(2, "b"), Some(("step 'b' #2", "only 1 operations"))),
        (vec![], fired(1), Some(("timer #1", "only 0 operations"))),
        (vec![OpKind::Timer], fired(1), None),
        (vec![step("a")], fired(1), Some(("timer #1", "step 'a' #1"))),
        (vec![], EventBody::TimerFired { timer: TimerKey::retry(OpId(1)) }, None),
        (vec![], EventBody::CancelRequested { reason: String::new() }, None),
    ];
    for (built, recorded, expect) in cases {
        let mut replay = Replay::default();
        let line = Location::caller();
        for kind in &built {
            replay.build(kind.clone(), line);
        }
        let got = replay.check(&event(5, recorded.clone()));
        match expect {
            None => assert_eq!(got, Ok(()), "{built:?} {recorded:?}"),
            Some((expected, produced)) => {
                let mismatch = got.clone().unwrap_err();
                assert_eq!((mismatch.seq, &*mismatch.expected, &*mismatch.produced), (5, expected, produced));
                // Once in error, it stays in error.
                assert_eq!(replay.check(&event(6, completed(1, "a"))), got);
            }
        }
    }
}
