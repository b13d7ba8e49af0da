//! Attempts between a scripted server and real step code, on a paused clock.

use std::collections::BTreeMap;
use std::sync::Mutex;

use everstep_core::Payload;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::*;
use crate::worker::step_fn;
use crate::{StepError, StepType};

struct Work;

impl StepType for Work {
    const NAME: &'static str = "work";
    type Input = u32;
    type Output = u32;
}

/// The executor of a worker, and the server's end of its stream.
struct Host {
    steps: Steps,
    said: mpsc::UnboundedReceiver<Message>,
}

fn host<F, Fut>(step: F) -> Host
where
    F: Fn(StepCtx, u32) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<u32, StepError>> + Send + 'static,
{
    let steps = BTreeMap::from([("work".to_owned(), step_fn::<Work, _, _>(step))]);
    let settings = Settings { steps, ..Settings::of_tests() };
    let (outbox, lease) = (Arc::<Outbox>::default(), Arc::new(Lease::new()));
    lease.begin(std::time::Instant::now(), Duration::from_secs(3_600));
    let (to_stream, said) = mpsc::unbounded_channel();
    outbox.open(to_stream);
    Host { steps: Steps::new(Arc::new(settings), outbox, lease), said }
}

fn run() -> RunId {
    RunId::from_uuid(Uuid::from_u128(7))
}

fn task(attempt: u32, claim: &str) -> api::StepTask {
    api::StepTask {
        run_id: run().to_string(),
        step_id: 1,
        name: "work".into(),
        attempt,
        claim_id: claim.into(),
        input: Some(wire::encode_payload(&Payload::json("4"))),
        task_token: "token".into(),
        ..api::StepTask::default()
    }
}

fn ack(attempt: u32, reason: &str) -> api::StepResultAck {
    api::StepResultAck { run_id: run().to_string(), step_id: 1, attempt, reason: reason.into() }
}

fn cancel(attempt: u32, reason: &str) -> api::StepCancel {
    api::StepCancel {
        run_id: run().to_string(),
        step_id: 1,
        attempt,
        reason: reason.into(),
        claim_id: String::new(),
    }
}

impl Host {
    /// What the worker says next. The clock goes on while it says nothing.
    async fn next(&mut self) -> Message {
        loop {
            tokio::select! {
                biased;
                Some(message) = self.said.recv() => return message,
                end = self.steps.next_end() => self.steps.ended(end),
            }
        }
    }

    async fn result(&mut self) -> api::StepResult {
        match self.next().await {
            Message::StepResult(result) => result,
            other => panic!("{other:?}"),
        }
    }

    async fn beat(&mut self) -> u32 {
        match self.next().await {
            Message::StepBeat(beat) => details(beat.details.unwrap()),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for so long, and says nothing meanwhile.
    async fn silent(&mut self, time: Duration) {
        if let Ok(message) = tokio::time::timeout(time, self.next()).await {
            panic!("{message:?}");
        }
    }
}

/// Takes so long on the paused clock.
async fn works(time: Duration) {
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}

fn details(wire: history::Payload) -> u32 {
    serde_json::from_slice(&wire.data).unwrap()
}

fn completed(result: &api::StepResult) -> u32 {
    match &result.end {
        Some(End::Completed(value)) => details(value.clone()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_is_kept_and_said_again_until_it_is_acknowledged() {
    let mut host = host(|_, n| async move { Ok(2 * n) });
    host.steps.take(task(1, "c1"));
    host.steps.take(task(1, "c1"));
    let result = host.result().await;
    assert_eq!((completed(&result), result.attempt, result.claim_id.as_str()), (8, 1, "c1"));
    let held = host.steps.held();
    assert_eq!((held.len(), held[0].attempt, held[0].claim_id.as_str()), (1, 1, "c1"));
    host.steps.resend();
    assert_eq!(completed(&host.result().await), 8);
    host.steps.acked(&ack(2, ""));
    assert!(!host.steps.is_idle(), "that is about another attempt");
    host.steps.acked(&ack(1, ""));
    assert!(host.steps.is_idle() && host.steps.held().is_empty());
    host.steps.resend();
    host.silent(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn heartbeats_are_the_newest_and_not_too_many() {
    let mut host = host(|step, _| async move {
        for n in 0..100u32 {
            step.heartbeat(&n);
            works(Duration::from_millis(100)).await;
        }
        Err(StepError::new("Broken", "m"))
    });
    let began = Instant::now();
    let heartbeat = Some(wire::encode_duration(everstep_core::Duration::from_secs(6)));
    host.steps.take(api::StepTask { heartbeat, ..task(1, "c1") });
    let mut beats = Vec::new();
    let failed = loop {
        match host.next().await {
            Message::StepBeat(beat) => {
                beats.push((details(beat.details.unwrap()), began.elapsed().as_secs()))
            }
            Message::StepResult(result) => break result,
            other => panic!("{other:?}"),
        }
    };
    let instants: Vec<u64> = beats.iter().map(|(_, at)| *at).collect();
    assert_eq!(instants, [0, 2, 4, 6, 8], "a third of what it may be silent");
    assert!(beats.windows(2).all(|pair| pair[1].0 >= pair[0].0 + 19), "{beats:?}");
    assert!(matches!(failed.end, Some(End::Failed(_))));
    assert_eq!(details(failed.details.unwrap()), 99, "the next attempt begins where this one was");
}

#[tokio::test(start_paused = true)]
async fn the_next_attempt_knows_how_far_the_last_one_was() {
    let mut host = host(|step, _| async move {
        assert_eq!(step.info().attempt, 2);
        assert_eq!(step.task_token(), "token");
        assert_eq!(step.last_heartbeat::<String>(), None, "it was no text");
        Ok(step.last_heartbeat().unwrap_or(0))
    });
    let last_details = Some(wire::encode_payload(&Payload::json("41")));
    host.steps.take(api::StepTask { last_details, ..task(2, "c1") });
    assert_eq!(completed(&host.result().await), 41);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_is_heard_and_its_end_says_so() {
    let mut host = host(|step, _| async move {
        assert!(!step.is_canceled());
        step.canceled().await;
        Err(step.stopped("nothing is left behind"))
    });
    host.steps.take(task(3, "c1"));
    host.silent(Duration::from_secs(60)).await;
    host.steps.cancel(&cancel(2, "CANCELED"));
    host.silent(Duration::from_secs(60)).await;
    host.steps.cancel(&cancel(3, "CANCELED"));
    match host.result().await.end {
        Some(End::Canceled(said)) => assert_eq!(said, "nothing is left behind"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_is_aborted_without_an_end() {
    let (alive, dropped) = oneshot::channel::<()>();
    let alive = Mutex::new(Some(alive));
    let mut host = host(move |_, _| {
        let alive = alive.lock().unwrap().take();
        async move {
            let _alive = alive;
            std::future::pending().await
        }
    });
    host.steps.take(task(1, "c1"));
    host.silent(Duration::from_secs(1)).await;
    host.steps.cancel(&cancel(1, "GONE"));
    assert!(dropped.await.is_err());
    assert!(host.steps.is_idle());
    host.silent(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_runs_too_long_is_aborted_and_the_server_says_what_follows() {
    let mut host = host(|_, _| std::future::pending());
    let start_to_close = Some(wire::encode_duration(everstep_core::Duration::from_secs(5)));
    host.steps.take(api::StepTask { start_to_close, ..task(1, "c1") });
    host.silent(Duration::from_secs(60)).await;
    assert_eq!(host.steps.held().len(), 1, "its slot is taken until the server knows");
}

#[tokio::test(start_paused = true)]
async fn a_deferred_attempt_says_so() {
    let mut host = host(|step, _| async move { Err(step.complete_later()) });
    host.steps.take(task(1, "c1"));
    assert!(matches!(host.result().await.end, Some(End::Deferred(_))));
    assert!(!host.steps.is_idle(), "until the server knows");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_begun_is_returned() {
    let mut host = host(|_, n| async move { Ok(n) });
    host.steps.take(api::StepTask { name: "other".into(), ..task(1, "c1") });
    assert!(matches!(host.result().await.end, Some(End::Returned(_))));
    host.steps.drain();
    host.steps.take(task(1, "c2"));
    let result = host.result().await;
    assert!(matches!(result.end, Some(End::Returned(_))) && result.claim_id == "c2");
    assert!(host.steps.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_it_never_heard_of_is_returned_and_one_that_it_has_goes_on() {
    let mut host = host(|_, n| async move { Ok(n) });
    host.steps.take(task(1, "c1"));
    let unheard = |claim: &str| api::StepCancel { claim_id: claim.into(), ..cancel(1, "UNHEARD") };
    host.steps.cancel(&unheard("c1"));
    host.steps.cancel(&unheard("c2"));
    let first = host.next().await;
    let Message::StepResult(returned) = first else { panic!("{first:?}") };
    assert!(matches!(returned.end, Some(End::Returned(_))) && returned.claim_id == "c2");
    let ended = host.result().await;
    assert!(matches!(ended.end, Some(End::Completed(_))) && ended.claim_id == "c1");
}

#[tokio::test(start_paused = true)]
async fn an_end_that_the_server_asks_for_is_said_again() {
    let mut host = host(|_, n| async move { Ok(n) });
    host.steps.take(task(1, "c1"));
    let ended = host.result().await;
    assert!(matches!(ended.end, Some(End::Completed(_))));
    host.steps.cancel(&api::StepCancel { claim_id: "c1".into(), ..cancel(1, "UNHEARD") });
    let Ok(Message::StepResult(again)) = host.said.try_recv() else { panic!("it kept the end to itself") };
    assert_eq!(again, ended);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_grace_gives_up_what_runs_and_says_how_far_it_was() {
    let mut host = host(|step, n| async move {
        step.heartbeat(&n);
        works(Duration::from_millis(1)).await;
        step.heartbeat(&(n + 1));
        std::future::pending().await
    });
    host.steps.take(task(1, "c1"));
    assert_eq!(host.beat().await, 4);
    host.silent(Duration::from_secs(1)).await;
    host.steps.drain();
    assert!(!host.steps.is_idle());
    host.steps.give_up();
    assert_eq!(host.beat().await, 5);
    assert!(host.steps.is_idle());
    host.silent(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_and_bad_input_a_final_one() {
    let mut host = host(|_, n| async move { if n == 4 { panic!("four") } else { Ok(n) } });
    host.steps.take(task(1, "c1"));
    match host.result().await.end {
        Some(End::Failed(failure)) => {
            assert_eq!((failure.kind.as_str(), failure.non_retryable), ("Panic", false))
        }
        other => panic!("{other:?}"),
    }
    host.steps.acked(&ack(1, "STALE_ATTEMPT"));
    let input = Some(wire::encode_payload(&Payload::json("\"x\"")));
    host.steps.take(api::StepTask { input, ..task(2, "c2") });
    match host.result().await.end {
        Some(End::Failed(failure)) => {
            assert_eq!((failure.kind.as_str(), failure.non_retryable), ("Payload", true))
        }
        other => panic!("{other:?}"),
    }
}
