//! Questions in pieces, and answers that may not be what they should.

use std::sync::Arc;

use everstep_core::{
    Actor, AskId, CommandId, Duration, Event, EventBody, Payload, RunId, TimerKey, TimerKind, Timestamp,
};
use everstep_proto::wire::{encode_failure, encode_payload};
use uuid::Uuid;

use super::*;
use crate::worker::frame::FRAME_BYTES;

fn id() -> AskId {
    AskId::from_uuid(Uuid::from_u128(7))
}

fn answer(outcome: answer::Outcome) -> api::Answer {
    api::Answer { ask_id: id().to_string(), seq: 3, outcome: Some(outcome) }
}

fn said(outcome: answer::Outcome) -> Said {
    match decode(answer(outcome)).unwrap() {
        WorkerIn::Answer { ask, seq: 3, said } if ask == id() => said,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_large_history_goes_in_pieces_and_the_last_one_asks() {
    let event = |seq| Event {
        seq,
        at: Timestamp::from_micros(0),
        epoch: 1,
        command_id: CommandId::from_uuid(Uuid::from_u128(1)),
        actor: Actor::System,
        body: EventBody::SignalReceived {
            name: "s".to_owned(),
            signal_id: format!("{seq}"),
            input: Payload { encoding: "bytes".to_owned(), data: vec![0; FRAME_BYTES * 2 / 3].into() },
        },
    };
    let fired = Event {
        body: EventBody::TimerFired { timer: TimerKey { kind: TimerKind::Timer, id: 1 } },
        ..event(4)
    };
    let events: Vec<Event> = (1..=3).map(event).chain([fired]).collect();
    let out = |events| WorkerOut::Ask {
        ask: id(),
        run_id: RunId::from_uuid(Uuid::from_u128(8)),
        epoch: 0,
        at_least: 4,
        events: Arc::new(events),
        query: Arc::new(Query { kind: AskKind::Query, name: "q".to_owned(), input: Payload::json("1") }),
        wait: Duration::from_secs(1),
    };
    let pieces = encode(out(events));
    assert_eq!(pieces.len(), 3);
    let mut seqs = Vec::new();
    for (i, piece) in pieces.into_iter().enumerate() {
        let Message::Ask(ask) = piece else { panic!("{piece:?}") };
        assert_eq!((ask.more, ask.what.is_some()), (i < 2, i == 2));
        seqs.extend(ask.events.into_iter().map(|e| e.seq));
    }
    assert_eq!(seqs, [1, 2, 3, 4]);
    assert_eq!(encode(out(Vec::new())).len(), 1, "the owner needs no history");
}

#[test]
fn answers_are_read_and_what_is_said_in_them_is_cut() {
    let value = Payload::json("[1]");
    assert_eq!(said(answer::Outcome::Value(encode_payload(&value))), Said::Value(value));
    let failure = everstep_core::Failure::new("K".repeat(300), format!("a\0b{}", "ä".repeat(2_000)));
    let Said::Refused { kind, message } = said(answer::Outcome::Refused(encode_failure(&failure))) else {
        panic!("not refused")
    };
    assert!(kind.len() <= 255 && message.len() <= MESSAGE_BYTES_MAX, "{} {}", kind.len(), message.len());
    assert!(message.starts_with("a\u{fffd}bä") && message.ends_with('…'), "{message}");
    let gone = said(answer::Outcome::Gone("it left".to_owned()));
    assert_eq!(gone, Said::Gone("it left".to_owned()));
}

#[test]
fn what_no_worker_may_say_is_refused_by_field() {
    let field = |wire: api::Answer| decode(wire).unwrap_err().field;
    assert_eq!(field(api::Answer::default()), "ask_id");
    assert_eq!(field(api::Answer { ask_id: "x".to_owned(), ..api::Answer::default() }), "ask_id");
    assert_eq!(
        field(api::Answer { outcome: None, ..answer(answer::Outcome::Gone(String::new())) }),
        "outcome"
    );
    let value =
        |encoding: &str, size| history::Payload { encoding: encoding.to_owned(), data: vec![0; size].into() };
    let large = value("bytes", limits::PAYLOAD_BYTES_MAX + 1);
    assert_eq!(field(answer(answer::Outcome::Value(large))), "value.data");
    assert_eq!(field(answer(answer::Outcome::Value(value("a\0", 1)))), "value.encoding");
    assert_eq!(field(answer(answer::Outcome::Value(value(&"e".repeat(256), 1)))), "value.encoding");
}

#[test]
fn a_mismatch_is_read_and_both_sides_are_cut() {
    use everstep_core::{BlockKind, Blocked};
    use everstep_proto::wire::encode_blocked;
    let blocked = Blocked {
        kind: BlockKind::Nondeterminism,
        at_seq: 7,
        expected: "e".repeat(5_000),
        produced: format!("p\0{}", "ä".repeat(5_000)),
        source: "src/a.rs:1:2".to_owned(),
        hint: String::new(),
        build_id: "b".repeat(300),
    };
    let Said::Mismatch(read) = said(answer::Outcome::Mismatch(encode_blocked(&blocked))) else {
        panic!("no mismatch")
    };
    assert_eq!((read.at_seq, read.source.as_str()), (7, "src/a.rs:1:2"));
    for (text, max) in [(&read.expected, 800), (&read.produced, 800), (&read.build_id, 255)] {
        assert!(text.len() <= max && text.ends_with('…') && !text.contains('\0'), "{text}");
    }
    assert_eq!(said(answer::Outcome::Passed(api::Passed {})), Said::Passed);
}

#[test]
fn a_check_is_asked_with_the_last_piece_of_its_history() {
    let event = |seq| Event {
        seq,
        at: Timestamp::from_micros(0),
        epoch: 1,
        command_id: CommandId::from_uuid(Uuid::from_u128(1)),
        actor: Actor::System,
        body: EventBody::SignalReceived {
            name: "s".to_owned(),
            signal_id: format!("{seq}"),
            input: Payload { encoding: "bytes".to_owned(), data: vec![0; FRAME_BYTES * 2 / 3].into() },
        },
    };
    let pieces = encode_check(WorkerOut::Check {
        check: id(),
        run_id: RunId::from_uuid(Uuid::from_u128(8)),
        events: Arc::new((1..=3).map(event).collect()),
        wait: Duration::from_secs(1),
    });
    let asks: Vec<_> = pieces
        .into_iter()
        .map(|piece| match piece {
            Message::Ask(ask) => (ask.epoch, ask.more, ask.what.is_some(), ask.events.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(asks, [(0, true, false, 1), (0, true, false, 1), (0, false, true, 1)]);
}
