//! How long the replay of a history may take, on a paused clock.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use everstep_core::{Actor, CommandId, Event, EventBody, Payload, RunStarted, Timestamp};
use everstep_proto::api::{ask, worker_message::Message};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::*;
use crate::worker::asks::{Asks, Question};
use crate::worker::outbox::Outbox;
use crate::worker::workflow_factory;
use crate::{Ctx, WorkflowError};

/// As long as the server waits.
const WAIT: Duration = Duration::from_secs(150);

/// A worker with the code of "order", and a check of an order that has just begun; what it is answered with.
fn bench<F>(order: F) -> (Arc<Settings>, Asked, Vec<history::Event>, mpsc::UnboundedReceiver<Message>)
where
    F: Fn() + Send + Sync + 'static,
{
    let order = workflow_factory(move |ctx: Ctx, (): ()| {
        order();
        async move { ctx.signal::<()>("never").await.map_err(WorkflowError::from) }
    });
    let workflows = BTreeMap::from([("order".to_owned(), order)]);
    let settings = Arc::new(Settings { workflows, ..Settings::of_tests() });
    let start =
        RunStarted { workflow_type: "order".into(), input: Payload::json("null"), ..RunStarted::default() };
    let event = Event {
        seq: 1,
        at: Timestamp::from_micros(0),
        epoch: 0,
        command_id: CommandId::from_uuid(Uuid::from_u128(5)),
        actor: Actor::System,
        body: EventBody::RunStarted(Box::new(start)),
    };
    let outbox = Arc::<Outbox>::default();
    let (to_stream, said) = mpsc::unbounded_channel();
    outbox.open(to_stream);
    let ask = api::Ask {
        ask_id: "a".into(),
        run_id: run().to_string(),
        events: vec![wire::encode_event(&event, false)],
        wait: Some(wire::encode_duration(WAIT.into())),
        what: Some(ask::What::Check(api::CheckHistory {})),
        ..api::Ask::default()
    };
    match Asks::default().gather(ask, &outbox) {
        Some(Question::Check(_, events, asked)) => (settings, asked, events, said),
        _ => panic!("it was a check"),
    }
}

fn run() -> RunId {
    RunId::from_uuid(Uuid::from_u128(7))
}

fn outcome(said: &mut mpsc::UnboundedReceiver<Message>) -> Option<Outcome> {
    match said.try_recv() {
        Ok(Message::Answer(answer)) => answer.outcome,
        Ok(other) => panic!("{other:?}"),
        Err(_) => None,
    }
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_place_is_no_part_of_the_replay() {
    let (settings, asked, events, mut said) = bench(|| {});
    let places = settings.places.replays();
    let others = Arc::clone(&places).acquire_many_owned(u32::try_from(places.available_permits()).unwrap());
    let others = others.await.unwrap();
    let leave = async {
        tokio::time::advance(2 * REPLAY_MAX).await;
        drop(others);
    };
    tokio::join!(asked.checked(settings, run(), events), leave);
    let said = outcome(&mut said);
    assert!(matches!(said, Some(Outcome::Passed(_))), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_finds_no_place_is_no_verdict() {
    let (settings, asked, events, mut said) = bench(|| {});
    let places = settings.places.replays();
    let others = Arc::clone(&places).acquire_many_owned(u32::try_from(places.available_permits()).unwrap());
    let _others = others.await.unwrap();
    let began = Instant::now();
    asked.checked(settings, run(), events).await;
    assert_eq!((began.elapsed(), outcome(&mut said)), (WAIT, None));
}

#[tokio::test(start_paused = true)]
async fn code_that_does_not_come_to_rest_does_not_fit() {
    let (enter, mut entered) = mpsc::unbounded_channel();
    let (leave, left) = std::sync::mpsc::channel::<()>();
    let left = Mutex::new(left);
    let (settings, asked, events, mut said) = bench(move || {
        let _ = enter.send(());
        let _ = left.lock().unwrap_or_else(PoisonError::into_inner).recv();
    });
    let wait = async {
        entered.recv().await;
        // The clock does not go on by itself while a thread is busy.
        tokio::time::advance(REPLAY_MAX).await;
    };
    tokio::join!(asked.checked(settings, run(), events), wait);
    let Some(Outcome::Mismatch(blocked)) = outcome(&mut said) else { panic!("it was taken for good") };
    let produced = "code that did not come to rest within 30 s";
    assert_eq!((blocked.produced.as_str(), blocked.build_id.as_str()), (produced, "b"));
    drop(leave);
}
