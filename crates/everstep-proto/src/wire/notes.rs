//! Search attributes and memo, both ways.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use everstep_core::{Attribute, AttributeType, CommitCommand, EventBody, Finite, Notes, NotesChange, OpId};

use super::{
    InvalidKind, InvalidMessage, decode_payload, decode_timestamp, encode_payload, encode_timestamp,
};
use crate::api::{self, command::Command};
use crate::history::{self, event::Attributes, search_attribute::Value};

/// A search attribute as the wire has it.
pub fn encode_attribute(attribute: &Attribute) -> history::SearchAttribute {
    let value = match attribute {
        Attribute::Keyword(text) => Value::Keyword(text.clone()),
        Attribute::Keywords(texts) => Value::Keywords(history::KeywordList { values: texts.clone() }),
        Attribute::Int(number) => Value::Int(*number),
        Attribute::Float(number) => Value::Float(number.get()),
        Attribute::Bool(flag) => Value::Bool(*flag),
        Attribute::Time(at) => Value::Time(encode_timestamp(*at)),
    };
    history::SearchAttribute { value: Some(value) }
}

/// Reads a search attribute. Its size is the core's to judge.
///
/// # Errors
/// [`InvalidMessage`] naming the field: there is no value, or it is a number that is not finite or an instant out of
/// range.
pub fn decode_attribute(field: &str, wire: history::SearchAttribute) -> Result<Attribute, InvalidMessage> {
    let history::SearchAttribute { value } = wire;
    Ok(match value {
        Some(Value::Keyword(text)) => Attribute::Keyword(text),
        Some(Value::Keywords(history::KeywordList { values })) => Attribute::Keywords(values),
        Some(Value::Int(number)) => Attribute::Int(number),
        Some(Value::Float(number)) => Attribute::Float(
            Finite::try_from(number).map_err(|e| InvalidMessage::new(InvalidKind::Value, field, e))?,
        ),
        Some(Value::Bool(flag)) => Attribute::Bool(flag),
        Some(Value::Time(at)) => Attribute::Time(decode_timestamp(field, at)?),
        None => return Err(InvalidMessage::missing(field)),
    })
}

/// The type of a search attribute as the wire has it.
pub fn encode_attribute_type(kind: AttributeType) -> history::SearchAttributeType {
    match kind {
        AttributeType::Keyword => history::SearchAttributeType::Keyword,
        AttributeType::Keywords => history::SearchAttributeType::Keywords,
        AttributeType::Int => history::SearchAttributeType::Int,
        AttributeType::Float => history::SearchAttributeType::Float,
        AttributeType::Bool => history::SearchAttributeType::Bool,
        AttributeType::Time => history::SearchAttributeType::Time,
    }
}

/// Reads the type of a search attribute.
///
/// # Errors
/// [`InvalidKind::UnknownEnum`], also for the unspecified one.
pub fn decode_attribute_type(field: &str, wire: i32) -> Result<AttributeType, InvalidMessage> {
    use history::SearchAttributeType as Wire;
    match Wire::try_from(wire) {
        Ok(Wire::Keyword) => Ok(AttributeType::Keyword),
        Ok(Wire::Keywords) => Ok(AttributeType::Keywords),
        Ok(Wire::Int) => Ok(AttributeType::Int),
        Ok(Wire::Float) => Ok(AttributeType::Float),
        Ok(Wire::Bool) => Ok(AttributeType::Bool),
        Ok(Wire::Time) => Ok(AttributeType::Time),
        Ok(Wire::Unspecified) | Err(_) => {
            let problem = format!("has the unknown value {wire}");
            Err(InvalidMessage::new(InvalidKind::UnknownEnum, field, problem))
        }
    }
}

/// Search attributes, and the memo, as the wire has them.
pub type WireNotes = (BTreeMap<String, history::SearchAttribute>, BTreeMap<String, history::Payload>);

/// Notes as the wire has them.
pub fn encode_notes(notes: &Notes) -> WireNotes {
    let Notes { memo, attributes } = notes;
    let attributes = attributes.iter().map(|(name, value)| (name.clone(), encode_attribute(value)));
    let memo = memo.iter().map(|(name, value)| (name.clone(), encode_payload(value)));
    (attributes.collect(), memo.collect())
}

/// Reads notes.
///
/// # Errors
/// As [`decode_attribute`].
pub fn decode_notes((attributes, memo): WireNotes) -> Result<Notes, InvalidMessage> {
    let attribute = |(name, wire): (String, _)| {
        let value = decode_attribute(&format!("search_attributes[{name}]"), wire)?;
        Ok((name, value))
    };
    Ok(Notes {
        attributes: attributes.into_iter().map(attribute).collect::<Result<_, _>>()?,
        memo: memo.into_iter().map(|(name, wire)| (name, decode_payload(Some(wire)))).collect(),
    })
}

type WireChange = (BTreeMap<String, history::SearchAttributeChange>, BTreeMap<String, history::MemoChange>);

fn encode_change(change: &NotesChange) -> WireChange {
    let NotesChange { attributes, memo } = change;
    let attribute =
        |value: &Option<_>| history::SearchAttributeChange { value: value.as_ref().map(encode_attribute) };
    let entry = |value: &Option<_>| history::MemoChange { value: value.as_ref().map(encode_payload) };
    (
        attributes.iter().map(|(name, value)| (name.clone(), attribute(value))).collect(),
        memo.iter().map(|(name, value)| (name.clone(), entry(value))).collect(),
    )
}

fn decode_change((attributes, memo): WireChange) -> Result<NotesChange, InvalidMessage> {
    let attribute = |(name, wire): (String, history::SearchAttributeChange)| {
        let field = format!("search_attributes[{name}]");
        let value = wire.value.map(|value| decode_attribute(&field, value)).transpose()?;
        Ok((name, value))
    };
    let entry = |(name, wire): (String, history::MemoChange)| {
        (name, wire.value.map(|value| decode_payload(Some(value))))
    };
    Ok(NotesChange {
        attributes: attributes.into_iter().map(attribute).collect::<Result<_, _>>()?,
        memo: memo.into_iter().map(entry).collect(),
    })
}

pub(super) fn encode_upserted(op: OpId, change: &NotesChange) -> Attributes {
    let (search_attributes, memo) = encode_change(change);
    Attributes::AttributesUpserted(history::AttributesUpserted { op_id: op.0, search_attributes, memo })
}

pub(super) fn decode_upserted(wire: history::AttributesUpserted) -> Result<EventBody, InvalidMessage> {
    let history::AttributesUpserted { op_id, search_attributes, memo } = wire;
    let notes = Box::new(decode_change((search_attributes, memo))?);
    Ok(EventBody::AttributesUpserted { op: OpId(op_id), notes })
}

pub(super) fn encode_upsert(op: OpId, change: &NotesChange) -> Command {
    let (search_attributes, memo) = encode_change(change);
    Command::Upsert(api::Upsert { op_id: op.0, search_attributes, memo })
}

pub(super) fn decode_upsert(wire: api::Upsert) -> Result<CommitCommand, InvalidMessage> {
    let api::Upsert { op_id, search_attributes, memo } = wire;
    let notes = Box::new(decode_change((search_attributes, memo))?);
    Ok(CommitCommand::Upsert { op: OpId(op_id), notes })
}
