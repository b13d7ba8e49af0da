//! Framing: nothing is lost, nothing is too large, and only the worker's own bytes are left out.

use std::sync::Arc;

use everstep_core::{Actor, Duration, OpId, Payload, SessionId, Timestamp};
use uuid::Uuid;

use super::*;

const RUN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

fn run() -> RunId {
    RUN.parse().unwrap()
}

fn step(seq: Seq, epoch: Epoch, command_id: CommandId, bytes: usize) -> Event {
    Event {
        seq,
        at: Timestamp::from_micros(seq as i64),
        epoch,
        command_id,
        actor: Actor::Worker("w".to_owned()),
        body: EventBody::StepCompleted {
            step: OpId(seq as u32),
            name: "step".to_owned(),
            attempt: 1,
            elapsed: Duration::ZERO,
            result: Payload::json(vec![b'1'; bytes]),
        },
    }
}

fn framer(held: &[(RunId, Epoch)]) -> Framer {
    let mut framer = Framer::new(NodeId::from_uuid(Uuid::from_u128(9)), held.iter().copied().collect());
    let session_id = SessionId::from_uuid(Uuid::from_u128(7));
    framer.push(WorkerOut::Welcome { session_id, lease: Duration::from_secs(10), resumed: !held.is_empty() });
    assert_eq!(framer.take().len(), 1);
    framer
}

fn sent(framer: &mut Framer) -> Vec<Message> {
    framer.take().into_iter().flat_map(|f| f.messages).map(|m| m.message.unwrap()).collect()
}

fn events(framer: &mut Framer) -> Vec<api::RunEvents> {
    sent(framer)
        .into_iter()
        .map(|m| match m {
            Message::RunEvents(events) => events,
            other => panic!("{other:?}"),
        })
        .collect()
}

fn result_of(event: &history::Event) -> Option<&history::Payload> {
    match event.attributes.as_ref().unwrap() {
        history::event::Attributes::StepCompleted(step) => step.result.as_ref(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn small_messages_share_a_frame() {
    let mut framer = framer(&[]);
    for number in 0..1_000 {
        framer.push(WorkerOut::HeartbeatAck { number });
    }
    let frames = framer.take();
    let sizes: Vec<usize> = frames.iter().map(|f| f.messages.len()).collect();
    assert_eq!(sizes, [256, 256, 256, 232]);
    let numbers = frames.iter().flat_map(|f| &f.messages).map(|m| match m.message {
        Some(Message::HeartbeatAck(api::HeartbeatAck { number })) => number,
        ref other => panic!("{other:?}"),
    });
    assert!(numbers.eq(0..1_000));
    assert!(framer.take().is_empty());
}

#[test]
fn a_large_history_comes_in_pieces() {
    let mut framer = framer(&[]);
    let system = CommandId::from_uuid(Uuid::from_u128(1));
    let history: Vec<Event> = (1..=40).map(|seq| step(seq, 1, system, 100_000)).collect();
    let base = Some((3, system));
    framer.push(WorkerOut::Activate { run_id: run(), epoch: 2, events: Arc::new(history), base });
    framer.push(WorkerOut::HeartbeatAck { number: 1 });
    let frames = framer.take();
    assert!(frames.iter().all(|f| f.encoded_len() <= FRAME_BYTES + 1_000));
    let mut seqs = Vec::new();
    let mut more = Vec::new();
    for message in frames.into_iter().flat_map(|f| f.messages) {
        if let Some(Message::Activate(activate)) = message.message {
            assert_eq!((activate.base_seq, activate.base_command_id), (3, system.to_string()));
            assert!(activate.events.iter().all(|e| result_of(e).is_some()));
            seqs.extend(activate.events.iter().map(|e| e.seq));
            more.push(activate.more);
        }
    }
    assert!(seqs.iter().copied().eq(1..=40));
    assert_eq!(more, [true, true, true, false]);
}

#[test]
fn an_empty_tail_is_still_an_activation() {
    let mut framer = framer(&[]);
    let base = Some((3, CommandId::from_uuid(Uuid::from_u128(1))));
    framer.push(WorkerOut::Activate { run_id: run(), epoch: 2, events: Arc::default(), base });
    let [Message::Activate(activate)] = &sent(&mut framer)[..] else { panic!() };
    assert!(activate.events.is_empty() && !activate.more);
}

#[test]
fn only_the_workers_own_bytes_are_left_out() {
    let mut framer = framer(&[]);
    let own = CommandId::of_worker(run(), 2, 1);
    let earlier_claim = CommandId::of_worker(run(), 1, 1);
    let other = CommandId::from_uuid(Uuid::from_u128(1));
    let all = vec![step(4, 1, earlier_claim, 9), step(5, 2, own, 9), step(6, 2, other, 9)];
    framer.push(WorkerOut::Events { run_id: run(), epoch: 2, events: Arc::new(all), from: 4, committed: 1 });
    let sent = events(&mut framer).remove(0);
    let omitted: Vec<(bool, bool)> =
        sent.events.iter().map(|e| (e.payload_omitted, result_of(e).is_none())).collect();
    assert_eq!(omitted, [(false, false), (true, true), (false, false)]);
    assert_eq!(sent.committed, 1);
}

#[test]
fn what_a_worker_brought_along_is_sent_whole() {
    let mut framer = framer(&[(run(), 2)]);
    let own = |epoch| CommandId::of_worker(run(), epoch, 1);
    let push = |framer: &mut Framer, epoch| {
        let events = Arc::new(vec![step(5, epoch, own(epoch), 9)]);
        framer.push(WorkerOut::Events { run_id: run(), epoch, events, from: 1, committed: 1 });
    };
    push(&mut framer, 2);
    assert!(!events(&mut framer)[0].events[0].payload_omitted);
    push(&mut framer, 3);
    assert!(events(&mut framer)[0].events[0].payload_omitted, "a claim made on this stream");
}

#[test]
fn a_session_that_was_not_resumed_holds_nothing() {
    let mut framer = Framer::new(NodeId::from_uuid(Uuid::nil()), [(run(), 2)].into());
    let session_id = SessionId::from_uuid(Uuid::from_u128(7));
    framer.push(WorkerOut::Welcome { session_id, lease: Duration::from_secs(10), resumed: false });
    assert!(framer.held.is_empty());
    let [Message::Welcome(welcome)] = &sent(&mut framer)[..] else { panic!() };
    assert_eq!(token::session(&welcome.session_token), Some(session_id));
    assert_eq!(welcome.protocol, 1);
}

#[test]
fn old_events_are_not_sent_again() {
    let mut framer = framer(&[]);
    let id = CommandId::from_uuid(Uuid::from_u128(1));
    let all = Arc::new((1..=5).map(|seq| step(seq, 1, id, 1)).collect::<Vec<_>>());
    framer.push(WorkerOut::Events {
        run_id: run(),
        epoch: 1,
        events: Arc::clone(&all),
        from: 4,
        committed: 0,
    });
    framer.push(WorkerOut::Events { run_id: run(), epoch: 1, events: all, from: 9, committed: 3 });
    let sent = events(&mut framer);
    assert!(sent[0].events.iter().map(|e| e.seq).eq(4..=5));
    assert_eq!((sent[1].events.len(), sent[1].committed), (0, 3), "the number counts even without events");
}

#[test]
fn half_a_commit_is_not_called_committed() {
    // Brought along, so that nothing is left out and the events are large.
    let mut framer = framer(&[(run(), 1)]);
    let commit = |number| CommandId::of_worker(run(), 1, number);
    let all = vec![
        step(1, 1, commit(1), 600_000),
        step(2, 1, commit(2), 300_000),
        step(3, 1, commit(2), 600_000),
        step(4, 1, commit(3), 600_000),
    ];
    framer.push(WorkerOut::Events { run_id: run(), epoch: 1, events: Arc::new(all), from: 1, committed: 3 });
    let sent = events(&mut framer);
    let shape: Vec<(Vec<Seq>, u32)> =
        sent.iter().map(|m| (m.events.iter().map(|e| e.seq).collect(), m.committed)).collect();
    assert_eq!(shape, [(vec![1, 2], 1), (vec![3], 2), (vec![4], 3)]);
}

#[test]
fn a_rejection_speaks_the_words_of_the_document() {
    let mut framer = framer(&[]);
    let mut push = |rejection| {
        framer.push(WorkerOut::Rejected { run_id: run(), epoch: 1, number: 4, rejection });
        let [Message::Rejected(rejected)] = &sent(&mut framer)[..] else { panic!() };
        (rejected.reason.clone(), rejected.evicted, rejected.number)
    };
    assert_eq!(push(Rejection::Fenced { current: 2, sent: 1 }), ("FENCED".to_owned(), true, 4));
    assert_eq!(push(Rejection::UnseenEvents { seen: 1, tail: 2 }), ("UNSEEN_EVENTS".to_owned(), false, 4));
}
