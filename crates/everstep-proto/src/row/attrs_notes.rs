//! What stands in the column `attrs` of notes. The rules of `attrs.rs` hold here too.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use everstep_core::{Attribute, Finite, Notes, NotesChange, Payload, Timestamp};
use serde::{Deserialize, Serialize};

use super::attrs::{DetailsAttrs, Text};

/// The value of a search attribute.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AttributeAttrs<'a> {
    Keyword(Text<'a>),
    Keywords(Vec<Text<'a>>),
    Int(i64),
    Float(Finite),
    Bool(bool),
    TimeUs(Timestamp),
}

pub(super) type AttributesAttrs<'a> = BTreeMap<Text<'a>, AttributeAttrs<'a>>;
pub(super) type MemoAttrs<'a> = BTreeMap<Text<'a>, DetailsAttrs<'a>>;

/// What a workflow says about itself; `null` takes away.
#[derive(Serialize, Deserialize)]
pub(super) struct UpsertedAttrs<'a> {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    attributes: BTreeMap<Text<'a>, Option<AttributeAttrs<'a>>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    memo: BTreeMap<Text<'a>, Option<DetailsAttrs<'a>>>,
}

impl<'a> From<&'a Attribute> for AttributeAttrs<'a> {
    fn from(attribute: &'a Attribute) -> Self {
        match attribute {
            Attribute::Keyword(text) => Self::Keyword(text.into()),
            Attribute::Keywords(texts) => Self::Keywords(texts.iter().map(Text::from).collect()),
            Attribute::Int(number) => Self::Int(*number),
            Attribute::Float(number) => Self::Float(*number),
            Attribute::Bool(flag) => Self::Bool(*flag),
            Attribute::Time(at) => Self::TimeUs(*at),
        }
    }
}

impl From<AttributeAttrs<'_>> for Attribute {
    fn from(attrs: AttributeAttrs<'_>) -> Self {
        match attrs {
            AttributeAttrs::Keyword(text) => Self::Keyword(text.into_owned()),
            AttributeAttrs::Keywords(texts) => {
                Self::Keywords(texts.into_iter().map(Text::into_owned).collect())
            }
            AttributeAttrs::Int(number) => Self::Int(number),
            AttributeAttrs::Float(number) => Self::Float(number),
            AttributeAttrs::Bool(flag) => Self::Bool(flag),
            AttributeAttrs::TimeUs(at) => Self::Time(at),
        }
    }
}

/// Attributes and memo of a start.
pub(super) fn encode(notes: &Notes) -> (AttributesAttrs<'_>, MemoAttrs<'_>) {
    let Notes { memo, attributes } = notes;
    let attributes = attributes.iter().map(|(name, value)| (name.into(), value.into()));
    let memo = memo.iter().map(|(name, value)| (name.into(), value.into()));
    (attributes.collect(), memo.collect())
}

pub(super) fn decode(attributes: AttributesAttrs<'_>, memo: MemoAttrs<'_>) -> Notes {
    Notes {
        attributes: attributes.into_iter().map(|(name, value)| (name.into_owned(), value.into())).collect(),
        memo: memo.into_iter().map(|(name, value)| (name.into_owned(), value.into())).collect(),
    }
}

impl<'a> From<&'a NotesChange> for UpsertedAttrs<'a> {
    fn from(change: &'a NotesChange) -> Self {
        let NotesChange { attributes, memo } = change;
        let attribute = |value: &'a Option<Attribute>| value.as_ref().map(AttributeAttrs::from);
        let entry = |value: &'a Option<Payload>| value.as_ref().map(DetailsAttrs::from);
        Self {
            attributes: attributes.iter().map(|(name, value)| (name.into(), attribute(value))).collect(),
            memo: memo.iter().map(|(name, value)| (name.into(), entry(value))).collect(),
        }
    }
}

impl From<UpsertedAttrs<'_>> for NotesChange {
    fn from(attrs: UpsertedAttrs<'_>) -> Self {
        let UpsertedAttrs { attributes, memo } = attrs;
        let attribute = |(name, value): (Text<'_>, Option<AttributeAttrs<'_>>)| {
            (name.into_owned(), value.map(Attribute::from))
        };
        let entry = |(name, value): (Text<'_>, Option<DetailsAttrs<'_>>)| {
            (name.into_owned(), value.map(Payload::from))
        };
        Self {
            attributes: attributes.into_iter().map(attribute).collect(),
            memo: memo.into_iter().map(entry).collect(),
        }
    }
}
