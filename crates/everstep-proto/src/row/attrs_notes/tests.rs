//! Notes in rows: what goes in comes out, and the text that is stored stays what it is.

use std::collections::BTreeMap;

use everstep_core::{
    Actor, Attribute, CommandId, Event, EventBody, Finite, Notes, NotesChange, OpId, Payload, RetryPolicy,
    RunId, RunStarted, Timestamp,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use uuid::Uuid;

use crate::row::EventRow;

fn run() -> RunId {
    RunId::from_uuid(Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001))
}

fn event(body: EventBody) -> Event {
    let command_id = CommandId::from_uuid(Uuid::from_u128(7));
    Event { seq: 1, at: Timestamp::from_micros(1), epoch: 0, command_id, actor: Actor::System, body }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), Just("a\u{0}b\"\\".to_owned())]
}

fn attribute() -> impl Strategy<Value = Attribute> {
    prop_oneof![
        text().prop_map(Attribute::Keyword),
        vec(text(), 0..4).prop_map(Attribute::Keywords),
        any::<i64>().prop_map(Attribute::Int),
        any::<f64>().prop_map(|n| Attribute::Float(Finite::new(n).unwrap_or_default())),
        any::<bool>().prop_map(Attribute::Bool),
        any::<i64>().prop_map(|micros| Attribute::Time(Timestamp::from_micros(micros))),
    ]
}

fn payload() -> impl Strategy<Value = Payload> {
    (text(), vec(any::<u8>(), 0..12)).prop_map(|(encoding, data)| Payload { encoding, data: data.into() })
}

fn notes() -> impl Strategy<Value = Notes> {
    (btree_map(text(), payload(), 0..4), btree_map(text(), attribute(), 0..4))
        .prop_map(|(memo, attributes)| Notes { memo, attributes })
}

fn change() -> impl Strategy<Value = NotesChange> {
    (btree_map(text(), option::of(attribute()), 0..4), btree_map(text(), option::of(payload()), 0..4))
        .prop_map(|(attributes, memo)| NotesChange { attributes, memo })
}

proptest! {
    #[test]
    fn notes_come_back(notes in notes(), change in change(), op in any::<u32>(), with_policy in any::<bool>()) {
        let step_retry = with_policy.then(RetryPolicy::default);
        let started = RunStarted { notes, step_retry, ..RunStarted::default() };
        let bodies = [
            EventBody::RunStarted(Box::new(started)),
            EventBody::AttributesUpserted { op: OpId(op), notes: Box::new(change) },
        ];
        for body in bodies {
            let before = event(body);
            prop_assert_eq!(EventRow::encode(run(), &before).decode().unwrap(), before);
        }
    }
}

#[test]
fn notes_keep_their_text() {
    let attribute = |name: &str, value| (name.to_owned(), value);
    let attributes = BTreeMap::from([
        attribute("a", Some(Attribute::Keyword("x".to_owned()))),
        attribute("b", Some(Attribute::Keywords(vec!["x".to_owned(), "y".to_owned()]))),
        attribute("c", Some(Attribute::Int(-1))),
        attribute("d", Some(Attribute::Float(Finite::new(1.5).unwrap()))),
        attribute("e", Some(Attribute::Bool(true))),
        attribute("f", Some(Attribute::Time(Timestamp::from_micros(7)))),
        attribute("g", None),
    ]);
    let memo = BTreeMap::from([("m".to_owned(), Some(Payload::json("1"))), ("n".to_owned(), None)]);
    let notes = Box::new(NotesChange { attributes, memo });
    let row = EventRow::encode(run(), &event(EventBody::AttributesUpserted { op: OpId(4), notes }));
    assert_eq!(
        (row.kind.as_str(), row.step, row.step_id, row.attempt),
        ("AttributesUpserted", None, Some(4), None)
    );
    assert_eq!(
        row.attrs.as_deref(),
        Some(
            "{\"attributes\":{\"a\":{\"keyword\":\"x\"},\"b\":{\"keywords\":[\"x\",\"y\"]},\"c\":{\"int\":-1},\
             \"d\":{\"float\":1.5},\"e\":{\"bool\":true},\"f\":{\"time_us\":7},\"g\":null},\
             \"memo\":{\"m\":{\"encoding\":\"json\",\"text\":\"1\"},\"n\":null}}"
        )
    );
    assert_eq!((row.encoding, row.payload), (None, None));
}
