//! Versions of changed code: chosen from what the history says, the same under replay, whoever recorded it.

use super::*;

/// Which code a worker runs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Code {
    /// Before the change.
    Old,
    /// With the call, able to do both.
    New,
}

/// Steps side by side and one after the other, with a change in the middle of each branch.
async fn changed(ctx: Ctx, code: Code) -> Result<u32, WorkflowError> {
    let first = number(&ctx, "first", 1).await?;
    let branch = |at: &'static str, early: bool| {
        let ctx = ctx.clone();
        async move {
            let mut sum = 0;
            if early {
                sum += number(&ctx, "before", 2).await?;
            }
            if code == Code::New && ctx.version(at, 0..=1) == 1 {
                ctx.sleep(Duration::from_secs(1)).await;
                sum += number(&ctx, "more", 4).await?;
            }
            sum += number(&ctx, "after", 8).await?;
            Ok::<u32, WorkflowError>(sum)
        }
    };
    let mut sum = first;
    for part in join_all([branch("left", true), branch("right", false)]).await {
        sum += part?;
    }
    if code == Code::New && ctx.version("end", 0..=1) == 1 {
        sum += number(&ctx, "end", 16).await?;
    }
    number(&ctx, "last", sum).await
}

/// A run over its whole life: workers of either code record what they do, in any order, and are lost.
struct Life {
    history: Vec<Event>,
    outcome: Option<Payload>,
}

impl Life {
    fn new() -> Self {
        let started = EventBody::RunStarted(Box::new(start(Payload::json("null"))));
        Self { history: vec![event(1, started)], outcome: None }
    }

    fn record(&mut self, body: EventBody) -> Event {
        let next = event(self.history.len() as Seq + 1, body);
        self.history.push(next.clone());
        next
    }

    /// A worker takes the run, and records so much; `dice` says in which order things end.
    fn worker(&mut self, code: Code, records: usize, mut dice: u64) {
        let known = Known::of(&self.history);
        let mut script = Script::knowing(known, move |ctx: Ctx, ()| changed(ctx, code));
        for event in &self.history {
            script
                .machine
                .apply(event)
                .unwrap_or_else(|e| panic!("{code:?} after {:?}: {e:?}", self.history));
        }
        let mut pending: Vec<EventBody> = Vec::new();
        let mut left = records;
        loop {
            for work in script.machine.take_work() {
                match work {
                    Work::MarkVersion { change_id, version } if left > 0 => {
                        left -= 1;
                        let marked = self.record(EventBody::VersionMarked { change_id, version });
                        script.machine.apply(&marked).unwrap();
                    }
                    Work::StartTimer { id, .. } if left > 0 => {
                        left -= 1;
                        let fire_at = Timestamp::from_micros(0);
                        let started = self.record(EventBody::TimerStarted { timer: id, fire_at });
                        script.machine.apply(&started).unwrap();
                        pending.push(EventBody::TimerFired { timer: TimerKey::timer(id) });
                    }
                    Work::Attempt { id, name, .. } => pending.push(completed(id.0, &name, id.0)),
                    Work::Finish { outcome, .. } => self.outcome = outcome.ok(),
                    // Lost with the worker: what follows is recorded behind it or not at all.
                    _ => return,
                }
            }
            if left == 0 || pending.is_empty() || self.outcome.is_some() {
                return;
            }
            left -= 1;
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let end = pending.remove((dice >> 33) as usize % pending.len());
            let end = self.record(end);
            script.machine.apply(&end).unwrap();
        }
    }
}

fn timers_of(history: &[Event]) -> Vec<EventBody> {
    let open = history.iter().filter_map(|e| match &e.body {
        EventBody::TimerStarted { timer, .. } => Some(*timer),
        _ => None,
    });
    let fired = |id: &OpId| {
        history
            .iter()
            .any(|e| matches!(&e.body, EventBody::TimerFired { timer } if *timer == TimerKey::timer(*id)))
    };
    open.filter(|id| !fired(id)).map(|id| EventBody::TimerFired { timer: TimerKey::timer(id) }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Code without the call, until it is replaced; then code with it, worker after worker.
    #[test]
    fn code_with_the_call_replays_what_either_code_recorded(
        old in proptest::collection::vec((0..6usize, any::<u64>()), 0..3),
        new in proptest::collection::vec((0..6usize, any::<u64>()), 0..6),
    ) {
        let mut life = Life::new();
        for (records, dice) in old {
            if life.outcome.is_none() {
                life.worker(Code::Old, records, dice);
            }
        }
        for (records, dice) in new {
            if life.outcome.is_some() {
                break;
            }
            life.worker(Code::New, records, dice);
            for fired in timers_of(&life.history) {
                life.record(fired);
            }
        }
        while life.outcome.is_none() {
            life.worker(Code::New, 40, 7);
            for fired in timers_of(&life.history) {
                life.record(fired);
            }
        }
        // The whole history once more, now with its end.
        let result = life.outcome.clone().unwrap();
        life.record(EventBody::RunCompleted { result: result.clone(), unconsumed: vec![] });
        life.outcome = None;
        life.worker(Code::New, 0, 0);
        prop_assert_eq!(life.outcome, Some(result));
    }
}

async fn once(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let version = ctx.version("fee", 1..=2);
    number(&ctx, "a", version).await
}

#[test]
fn a_new_run_marks_the_end_of_the_range_before_anything_else() {
    let mut s = Script::new(once);
    assert_eq!(s.begin().unwrap(), ["MarkVersion(fee 2)", "Attempt(#1 a 1)"]);
}

#[test]
fn a_worker_that_died_before_its_first_record_binds_nobody() {
    let session = SessionId::from_uuid(Uuid::nil());
    let attached = || EventBody::WorkerAttached { session, worker: WorkerInfo::default(), pinned: false };
    let lost = EventBody::WorkerDetached { reason: everstep_core::DetachReason::Lost };
    let history = [
        event(1, EventBody::RunStarted(Box::new(start(Payload::json("null"))))),
        event(2, attached()),
        event(3, lost),
        event(4, attached()),
    ];
    let mut s = Script::knowing(Known::of(&history), once);
    history.iter().for_each(|event| s.machine.apply(event).unwrap());
    assert_eq!(format!("{:?}", s.machine.take_work()), "[MarkVersion(fee 2), Attempt(#1 a 1)]");
}

#[test]
fn a_marked_version_stays_and_one_that_the_code_lost_blocks() {
    let marked = |version| EventBody::VersionMarked { change_id: "fee".into(), version };
    let mut s = Script::knowing(Known::of(&[event(2, marked(1))]), once);
    assert_eq!(s.begin().unwrap(), ["Attempt(#1 a 1)"], "nothing is marked twice");
    for (known, at) in [(marked(3), 3), (completed(1, "a", 1), 0)] {
        let mut s = Script::knowing(Known::of(&[event(2, known)]), once);
        let Err(Obstacle::Blocked(blocked)) = s.begin() else { panic!("not blocked") };
        assert_eq!(blocked.kind, BlockKind::Nondeterminism);
        assert_eq!(blocked.expected, format!("change 'fee' at version {at}"));
        assert_eq!(blocked.produced, "code that supports 1 to 2 of it");
        assert!(blocked.source.contains("versions.rs"), "{}", blocked.source);
    }
}

/// As the replay of a closed run has it.
#[test]
fn code_that_has_ended_without_a_marker_was_before_the_change() {
    let ends: [EventBody; 3] = [
        EventBody::RunCompleted { result: Payload::json("1"), unconsumed: vec![] },
        EventBody::RunFailed { failure: Failure::new("No", "no"), unconsumed: vec![], retried_by: None },
        EventBody::RunCanceled { details: String::new() },
    ];
    for end in ends {
        let known = Known::of(&[event(2, completed(1, "a", 1)), event(3, end)]);
        let mut s = Script::knowing(known, |ctx: Ctx, ()| async move {
            number(&ctx, "a", 1).await?;
            Ok(ctx.version("fee", 0..=1))
        });
        s.begin().unwrap();
        let end = s.apply(completed(1, "a", 1)).unwrap();
        assert!(end[0].starts_with("Finish(Ok(") && end[0].contains("b\"0\""), "{end:?}");
    }
}

#[test]
fn a_mistaken_call_says_so() {
    let mut s = Script::new(|ctx: Ctx, ()| async move { Ok(ctx.version(" fee", 0..=1)) });
    let Err(Obstacle::Panicked(message)) = s.begin() else { panic!("not stopped") };
    assert!(message.contains("change_id must not begin or end with a space"), "{message}");
}
