//! Notes on the wire: what goes in comes out, and what a stranger makes up is refused by the field's name.

use std::collections::BTreeMap;

use everstep_core::{
    Actor, Attribute, CommandId, Event, EventBody, Finite, Notes, NotesChange, OpId, Payload, RetryPolicy,
    RunId, RunStarted, Timestamp, WorkerCommit,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use prost::Message;
use uuid::Uuid;

use super::*;
use crate::wire::{decode_commit, decode_event, encode_commit, encode_event};

fn attribute() -> impl Strategy<Value = Attribute> {
    prop_oneof![
        any::<String>().prop_map(Attribute::Keyword),
        vec(any::<String>(), 0..4).prop_map(Attribute::Keywords),
        any::<i64>().prop_map(Attribute::Int),
        any::<f64>().prop_map(|n| Attribute::Float(Finite::new(n).unwrap_or_default())),
        any::<bool>().prop_map(Attribute::Bool),
        (0..Timestamp::MAX.as_micros()).prop_map(|micros| Attribute::Time(Timestamp::from_micros(micros))),
    ]
}

fn payload() -> impl Strategy<Value = Payload> {
    (any::<String>(), vec(any::<u8>(), 0..12))
        .prop_map(|(encoding, data)| Payload { encoding, data: data.into() })
}

fn notes() -> impl Strategy<Value = Notes> {
    (btree_map(any::<String>(), payload(), 0..4), btree_map(any::<String>(), attribute(), 0..4))
        .prop_map(|(memo, attributes)| Notes { memo, attributes })
}

fn change() -> impl Strategy<Value = NotesChange> {
    let attributes = btree_map(any::<String>(), option::of(attribute()), 0..4);
    (attributes, btree_map(any::<String>(), option::of(payload()), 0..4))
        .prop_map(|(attributes, memo)| NotesChange { attributes, memo })
}

proptest! {
    #[test]
    fn notes_come_back(notes in notes(), change in change(), op in any::<u32>(), with_policy in any::<bool>()) {
        let step_retry = with_policy.then(RetryPolicy::default);
        let started = RunStarted { notes, step_retry, ..RunStarted::default() };
        let notes = Box::new(change);
        let bodies = [
            EventBody::RunStarted(Box::new(started)),
            EventBody::AttributesUpserted { op: OpId(op), notes: notes.clone() },
        ];
        for body in bodies {
            let command_id = CommandId::from_uuid(Uuid::from_u128(7));
            let at = Timestamp::from_micros(1);
            let before = Event { seq: 1, at, epoch: 0, command_id, actor: Actor::System, body };
            let wire = encode_event(&before, false);
            let bytes = wire.encode_to_vec();
            let read = history::Event::decode(&bytes[..]).unwrap();
            prop_assert_eq!(read.encode_to_vec(), bytes, "the same message has the same bytes");
            prop_assert_eq!(decode_event(read).unwrap().event, before);
        }
        let run = RunId::from_uuid(Uuid::from_u128(7));
        let commands = vec![CommitCommand::Upsert { op: OpId(op), notes }];
        let commit = WorkerCommit { epoch: 1, number: 1, seen: 1, commands, ahead: None };
        prop_assert_eq!(decode_commit(encode_commit(run, &commit)).unwrap(), (run, commit));
    }
}

#[test]
fn a_value_that_nobody_could_store_is_refused() {
    let read = |value| decode_attribute("a", history::SearchAttribute { value }).map_err(|e| e.kind);
    assert_eq!(read(None), Err(InvalidKind::Missing));
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(read(Some(Value::Float(number))), Err(InvalidKind::Value));
    }
    let late = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
    assert_eq!(read(Some(Value::Time(late))), Err(InvalidKind::Timestamp));
    for kind in [0, 7, -1] {
        assert_eq!(decode_attribute_type("t", kind).map_err(|e| e.kind), Err(InvalidKind::UnknownEnum));
    }
    for kind in AttributeType::ALL {
        assert_eq!(decode_attribute_type("t", encode_attribute_type(kind).into()), Ok(kind));
    }
    let empty = BTreeMap::from([("x".to_owned(), history::SearchAttribute { value: None })]);
    let refused = decode_notes((empty, BTreeMap::new())).unwrap_err();
    assert_eq!(refused.field, "search_attributes[x]");
}
