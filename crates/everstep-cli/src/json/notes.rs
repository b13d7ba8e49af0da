//! What runs say about themselves, as JSON.

use std::collections::BTreeMap;

use everstep_core::{Attribute, Notes, NotesChange, Payload};
use serde_json::{Map, Value, json};

use super::{payload, time};

/// Attributes for people and scripts: their bare values.
pub(crate) fn values(attributes: &BTreeMap<String, Attribute>) -> Value {
    let value = |attribute: &Attribute| match attribute {
        Attribute::Keyword(text) => json!(text),
        Attribute::Keywords(texts) => json!(texts),
        Attribute::Int(number) => json!(number),
        Attribute::Float(number) => json!(number.get()),
        Attribute::Bool(flag) => json!(flag),
        Attribute::Time(at) => json!(time(*at)),
    };
    attributes.iter().map(|(name, attribute)| (name.clone(), value(attribute))).collect::<Map<_, _>>().into()
}

/// A memo: the value of each entry.
pub(crate) fn memo(memo: &BTreeMap<String, Payload>) -> Value {
    memo.iter().map(|(name, value)| (name.clone(), payload(value))).collect::<Map<_, _>>().into()
}

/// Adds what a run began with; most runs have none. Attributes are told with their types.
pub(super) fn add(value: &mut Value, notes: &Notes) {
    if !notes.attributes.is_empty() {
        value["search_attributes"] = json!(notes.attributes);
    }
    if !notes.memo.is_empty() {
        value["memo"] = memo(&notes.memo);
    }
}

/// What a workflow upserted; `null` takes away.
pub(super) fn upserted(op: u32, change: &NotesChange) -> Value {
    let mut value = json!({"op_id": op});
    if !change.attributes.is_empty() {
        value["search_attributes"] = json!(change.attributes);
    }
    if !change.memo.is_empty() {
        let entry = |value: &Option<Payload>| value.as_ref().map_or(Value::Null, payload);
        let memo: Map<_, _> = change.memo.iter().map(|(name, value)| (name.clone(), entry(value))).collect();
        value["memo"] = memo.into();
    }
    value
}
