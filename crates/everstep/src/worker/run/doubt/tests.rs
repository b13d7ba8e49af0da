//! A run task between a scripted server and code with guarded steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use everstep_core::{
    CommandId, CommitCommand, DoubtPolicy, Event, EventBody, Failure, OpId, Payload, Resolution, Seq,
    StepResolved, WorkerCommit,
};

use crate::worker::run::ahead::tests::{Held, START, event, hold};
use crate::{Ctx, InDoubt, StepError, WorkflowError};

/// Times that the effect and the probe of a workflow have run.
#[derive(Clone, Default)]
struct Count {
    effects: Arc<AtomicU32>,
    probes: Arc<AtomicU32>,
}

impl Count {
    fn effects(&self) -> u32 {
        self.effects.load(Ordering::SeqCst)
    }

    fn probes(&self) -> u32 {
        self.probes.load(Ordering::SeqCst)
    }
}

type Policy = fn(&Count) -> InDoubt<u32>;

async fn charge(ctx: &Ctx, count: Count, policy: Policy) -> Result<u32, WorkflowError> {
    let policy = policy(&count);
    let step = ctx.step("charge", move || {
        let count = count.clone();
        async move { Ok::<_, StepError>(count.effects.fetch_add(1, Ordering::SeqCst)) }
    });
    Ok(step.in_doubt(policy).await?)
}

/// A run that has this behind it, and code that charges.
fn held(before: Vec<Event>, policy: Policy) -> (Held, Count) {
    let count = Count::default();
    let code = count.clone();
    let held = hold(before, move |ctx: Ctx, ()| {
        let count = code.clone();
        async move { charge(&ctx, count, policy).await }
    });
    (held, count)
}

fn started(seq: Seq, step: u32, attempt: u32) -> Event {
    let in_doubt = Some(DoubtPolicy::Retry);
    event(seq, START, EventBody::StepStarted { step: OpId(step), name: "charge".into(), attempt, in_doubt })
}

fn in_doubt(seq: Seq) -> Event {
    let mut before =
        event(seq, START, EventBody::StepInDoubt { step: OpId(1), name: "charge".into(), attempt: 1 });
    before.epoch = 0;
    before
}

fn resolved(seq: Seq, resolution: Resolution) -> Event {
    let (step, name, note) = (OpId(1), "charge".to_owned(), String::new());
    event(
        seq,
        START,
        EventBody::StepResolved(Box::new(StepResolved { step, name, attempt: 1, resolution, note })),
    )
}

fn doubtful() -> Vec<Event> {
    let mut started = started(2, 1, 1);
    started.epoch = 0;
    vec![started, in_doubt(3)]
}

fn begins(commit: &WorkerCommit) -> Option<(u32, u32)> {
    commit.commands.iter().find_map(|c| match c {
        CommitCommand::StartStep { step, attempt, in_doubt: Some(_), .. } => Some((step.0, *attempt)),
        _ => None,
    })
}

#[tokio::test(start_paused = true)]
async fn the_effect_waits_for_the_record_of_its_start() {
    let (mut held, count) = held(Vec::new(), |_| InDoubt::Retry);
    let commit = held.commit().await;
    assert_eq!((begins(&commit), commit.commands.len()), (Some((1, 1)), 1));
    // An acknowledgement without the event, or the event of another attempt, is not the record.
    held.tell(0, &[event(3, START, EventBody::CancelRequested { reason: String::new() })]);
    held.quiet(Duration::from_secs(50)).await;
    assert_eq!(count.effects(), 0);
    held.tell(1, &[started(4, 1, 1)]);
    let end = held.commit().await;
    assert!(matches!(end.commands[..], [CommitCommand::CompleteStep { attempt: 1, .. }]), "{end:?}");
    assert_eq!(count.effects(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_start_rides_in_the_commit_that_goes_ahead_and_begins_with_its_record() {
    let count = Count::default();
    let code = count.clone();
    let mut held = hold(Vec::new(), move |ctx: Ctx, ()| {
        let count = code.clone();
        async move {
            ctx.step("first", || async { Ok::<_, StepError>(1u32) }).await?;
            charge(&ctx, count, |_| InDoubt::Retry).await
        }
    });
    let commit = held.commit().await;
    assert_eq!((begins(&commit), commit.commands.len()), (Some((2, 1)), 2));
    assert_eq!(count.effects(), 0);
    let CommitCommand::CompleteStep { step, name, attempt, elapsed, result } = commit.commands[0].clone()
    else {
        panic!("{commit:?}")
    };
    let end = EventBody::StepCompleted { step, name, attempt, elapsed, result };
    let at = commit.ahead.unwrap().as_micros();
    let mut first = event(3, at, end);
    first.command_id = CommandId::of_worker(held.run, 1, 1);
    held.tell(1, &[first, started(4, 2, 1)]);
    held.commit().await;
    assert_eq!(count.effects(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_this_task_did_not_make_is_given_back() {
    let mut begun = started(2, 1, 1);
    begun.epoch = 0;
    let (mut held, count) = held(vec![begun], |_| InDoubt::Retry);
    let commit = held.commit().await;
    assert!(matches!(commit.commands[..], [CommitCommand::Release { .. }]), "{commit:?}");
    assert_eq!(count.effects(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_probe_looks_until_it_knows() {
    fn third(count: &Count) -> InDoubt<u32> {
        let probes = Arc::clone(&count.probes);
        InDoubt::verify(move || {
            let look = probes.fetch_add(1, Ordering::SeqCst);
            async move { if look < 2 { Err(StepError::new("Down", "try again")) } else { Ok(Some(7)) } }
        })
    }
    let before = tokio::time::Instant::now();
    let (mut held, count) = held(doubtful(), third);
    let end = held.commit().await;
    let CommitCommand::CompleteStep { attempt: 1, result, .. } = &end.commands[0] else { panic!("{end:?}") };
    assert_eq!(*result, Payload::json("7"));
    assert_eq!((count.effects(), count.probes()), (0, 3));
    assert!(before.elapsed() >= Duration::from_secs(3), "after 1 s and 2 s");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_finds_nothing_begins_the_next_attempt_by_its_start() {
    let (mut held, count) = held(doubtful(), |count| {
        let probes = Arc::clone(&count.probes);
        InDoubt::verify(move || {
            probes.fetch_add(1, Ordering::SeqCst);
            async { Ok(None) }
        })
    });
    let commit = held.commit().await;
    assert_eq!((begins(&commit), count.effects(), count.probes()), (Some((1, 2)), 0, 1));
    held.tell(1, &[started(5, 1, 2)]);
    held.commit().await;
    assert_eq!(count.effects(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_persons_word_ends_the_probe() {
    fn never(count: &Count) -> InDoubt<u32> {
        let probes = Arc::clone(&count.probes);
        InDoubt::verify(move || {
            probes.fetch_add(1, Ordering::SeqCst);
            std::future::pending()
        })
    }
    let count = Count::default();
    let code = count.clone();
    let mut held = hold(doubtful(), move |ctx: Ctx, ()| {
        let count = code.clone();
        async move {
            let charged = charge(&ctx, count, never).await;
            ctx.signal::<()>("go").await?;
            charged
        }
    });
    held.quiet(Duration::from_secs(1)).await;
    assert_eq!(count.probes(), 1);
    held.tell(0, &[resolved(5, Resolution::Retry)]);
    let commit = held.commit().await;
    assert_eq!(begins(&commit), Some((1, 2)));
    // The start of the next attempt is on its way: another word makes that one needless as well.
    held.tell(1, &[resolved(6, Resolution::Failed(Failure::new("Lost", "no trace")))]);
    let end = held.commit_within(Duration::from_secs(3_700)).await;
    assert_eq!(end.commands, [CommitCommand::Park], "nothing is under way");
    assert_eq!(count.effects(), 0);
}
