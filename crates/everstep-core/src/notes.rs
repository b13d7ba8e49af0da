//! What a run says about itself beside its history: search attributes, which lists are filtered by, and the memo,
//! which is only shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::run::check_payload;
use crate::{Event, EventBody, Payload, Rejection, Timestamp, limits, validate_name};

/// Attributes and memo of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// Shown with the run.
    pub memo: BTreeMap<String, Payload>,
    /// Shown with the run, and what lists are filtered by.
    pub attributes: BTreeMap<String, Attribute>,
}

/// A change of notes: what is named is set, or taken away when it has no value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotesChange {
    /// Of attributes.
    pub attributes: BTreeMap<String, Option<Attribute>>,
    /// Of the memo.
    pub memo: BTreeMap<String, Option<Payload>>,
}

/// The value of a search attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attribute {
    /// A word or short text.
    Keyword(String),
    /// Several of them.
    Keywords(Vec<String>),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(Finite),
    /// Yes or no.
    Bool(bool),
    /// An instant.
    Time(Timestamp),
}

/// A number that is not infinite, and is one. It is equal to another one when their bits are.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Finite(f64);

/// What kind of value a search attribute has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttributeType {
    /// A word or short text.
    Keyword,
    /// Several of them.
    Keywords,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// Yes or no.
    Bool,
    /// An instant.
    Time,
}

impl AttributeType {
    /// Every type.
    pub const ALL: [Self; 6] =
        [Self::Keyword, Self::Keywords, Self::Int, Self::Float, Self::Bool, Self::Time];

    /// The stable word used in SQL, JSON and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keyword => "keyword",
            Self::Keywords => "keywords",
            Self::Int => "int",
            Self::Float => "float",
            Self::Bool => "bool",
            Self::Time => "time",
        }
    }

    /// The type whose word is `text`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.as_str() == text)
    }
}

impl Finite {
    /// The number, unless it is infinite or none. Minus zero is zero.
    pub fn new(number: f64) -> Option<Self> {
        number.is_finite().then_some(Self(number + 0.0))
    }

    /// It as the language has it.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl PartialEq for Finite {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Finite {}

impl TryFrom<f64> for Finite {
    type Error = &'static str;

    fn try_from(number: f64) -> Result<Self, Self::Error> {
        Self::new(number).ok_or("must be a finite number")
    }
}

impl From<Finite> for f64 {
    fn from(number: Finite) -> Self {
        number.0
    }
}

impl Attribute {
    /// Its type.
    pub const fn kind(&self) -> AttributeType {
        match self {
            Self::Keyword(_) => AttributeType::Keyword,
            Self::Keywords(_) => AttributeType::Keywords,
            Self::Int(_) => AttributeType::Int,
            Self::Float(_) => AttributeType::Float,
            Self::Bool(_) => AttributeType::Bool,
            Self::Time(_) => AttributeType::Time,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Keyword(text) => text.len(),
            Self::Keywords(texts) => texts.iter().map(String::len).sum(),
            Self::Int(_) | Self::Float(_) | Self::Bool(_) | Self::Time(_) => 8,
        }
    }

    /// Refuses a value that a run may not have.
    ///
    /// # Errors
    /// [`Rejection`] that says what is too much, or wrong.
    pub fn check(&self) -> Result<(), Rejection> {
        let over = |what, actual: usize, limit: usize| {
            Err(Rejection::LimitExceeded { what, actual: actual as u64, limit: limit as u64 })
        };
        let texts = match self {
            Self::Keyword(text) if text.len() > limits::KEYWORD_BYTES_MAX => {
                return over("bytes of a keyword", text.len(), limits::KEYWORD_BYTES_MAX);
            }
            Self::Keyword(text) => std::slice::from_ref(text),
            Self::Keywords(texts) if texts.len() > limits::KEYWORDS_MAX => {
                return over("keywords of an attribute", texts.len(), limits::KEYWORDS_MAX);
            }
            Self::Keywords(texts) => match texts.iter().map(String::len).max() {
                Some(longest) if longest > limits::NAME_BYTES_MAX => {
                    return over("bytes of a keyword in a list", longest, limits::NAME_BYTES_MAX);
                }
                _ => texts,
            },
            Self::Int(_) | Self::Float(_) | Self::Bool(_) | Self::Time(_) => &[],
        };
        // Postgres cannot store it.
        if texts.iter().any(|text| text.contains('\0')) {
            let problem = "must not contain NUL".to_owned();
            return Err(Rejection::InvalidArgument { field: "search_attributes", problem });
        }
        Ok(())
    }
}

impl Notes {
    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.memo.is_empty() && self.attributes.is_empty()
    }

    /// Kinds of events that say something of a run's notes.
    pub const KINDS: [&'static str; 2] = ["RunStarted", "AttributesUpserted"];

    /// What these events of a run, in order, come to; others may be among them or not.
    pub fn told<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut notes = Self::default();
        for event in events {
            match &event.body {
                EventBody::RunStarted(started) => notes.clone_from(&started.notes),
                EventBody::AttributesUpserted { notes: change, .. } => notes.change(change),
                _ => {}
            }
        }
        notes
    }

    /// Makes a change.
    pub fn change(&mut self, change: &NotesChange) {
        let NotesChange { attributes, memo } = change;
        merge(&mut self.attributes, attributes);
        merge(&mut self.memo, memo);
    }

    /// Refuses notes that a run may not have.
    ///
    /// # Errors
    /// [`Rejection`] that says what is too much, or wrong.
    pub fn check(&self) -> Result<(), Rejection> {
        let over = |what, actual: usize, limit: usize| {
            Err(Rejection::LimitExceeded { what, actual: actual as u64, limit: limit as u64 })
        };
        if self.attributes.len() > limits::ATTRIBUTES_MAX {
            return over("search attributes of the run", self.attributes.len(), limits::ATTRIBUTES_MAX);
        }
        for (name, attribute) in &self.attributes {
            validate_name("search_attributes", name)?;
            attribute.check()?;
        }
        if self.memo.len() > limits::MEMO_ENTRIES_MAX {
            return over("memo entries of the run", self.memo.len(), limits::MEMO_ENTRIES_MAX);
        }
        for (name, payload) in &self.memo {
            validate_name("memo", name)?;
            check_payload("memo", payload)?;
        }
        let bytes = self.memo.values().map(|payload| payload.data.len()).sum();
        if bytes > limits::MEMO_BYTES_MAX {
            return over("memo bytes of the run", bytes, limits::MEMO_BYTES_MAX);
        }
        Ok(())
    }

    /// Bytes of the user's in them.
    pub fn bytes(&self) -> usize {
        let memo = self.memo.values().map(|payload| payload.data.len());
        memo.chain(self.attributes.values().map(Attribute::bytes)).sum()
    }
}

impl NotesChange {
    /// Bytes of the user's in it.
    pub fn bytes(&self) -> usize {
        let memo = self.memo.values().flatten().map(|payload| payload.data.len());
        memo.chain(self.attributes.values().flatten().map(Attribute::bytes)).sum()
    }
}

fn merge<T: Clone>(into: &mut BTreeMap<String, T>, change: &BTreeMap<String, Option<T>>) {
    for (name, value) in change {
        match value {
            Some(value) => drop(into.insert(name.clone(), value.clone())),
            None => drop(into.remove(name)),
        }
    }
}
