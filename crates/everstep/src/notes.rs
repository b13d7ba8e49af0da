//! Search attributes and memo: what a run says about itself.

use std::collections::BTreeMap;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use everstep_core::{Attribute, Finite, NotesChange, Payload, Timestamp};
use serde::Serialize;

use crate::payload;

/// What can be the value of a search attribute: text (a keyword), several texts (keywords), whole numbers, numbers,
/// booleans and instants. `None` stands for no value, and so does a number that is infinite or none.
pub trait IntoAttribute {
    /// The value.
    fn into_attribute(self) -> Option<Attribute>;
}

impl IntoAttribute for Attribute {
    fn into_attribute(self) -> Option<Attribute> {
        Some(self)
    }
}

impl<T: IntoAttribute> IntoAttribute for Option<T> {
    fn into_attribute(self) -> Option<Attribute> {
        self.and_then(T::into_attribute)
    }
}

impl IntoAttribute for &str {
    fn into_attribute(self) -> Option<Attribute> {
        Some(Attribute::Keyword(self.to_owned()))
    }
}

impl IntoAttribute for &String {
    fn into_attribute(self) -> Option<Attribute> {
        Some(Attribute::Keyword(self.clone()))
    }
}

impl IntoAttribute for String {
    fn into_attribute(self) -> Option<Attribute> {
        Some(Attribute::Keyword(self))
    }
}

impl<T: Into<String>> IntoAttribute for Vec<T> {
    fn into_attribute(self) -> Option<Attribute> {
        Some(Attribute::Keywords(self.into_iter().map(Into::into).collect()))
    }
}

impl<T: Into<String>, const N: usize> IntoAttribute for [T; N] {
    fn into_attribute(self) -> Option<Attribute> {
        Some(Attribute::Keywords(self.into_iter().map(Into::into).collect()))
    }
}

impl IntoAttribute for f64 {
    fn into_attribute(self) -> Option<Attribute> {
        Finite::new(self).map(Attribute::Float)
    }
}

impl IntoAttribute for bool {
    fn into_attribute(self) -> Option<Attribute> {
        Some(Attribute::Bool(self))
    }
}

impl IntoAttribute for DateTime<Utc> {
    fn into_attribute(self) -> Option<Attribute> {
        Some(Attribute::Time(Timestamp::from_micros(self.timestamp_micros()).min(Timestamp::MAX)))
    }
}

impl IntoAttribute for SystemTime {
    fn into_attribute(self) -> Option<Attribute> {
        DateTime::<Utc>::from(self).into_attribute()
    }
}

macro_rules! whole_numbers {
    ($($number:ty),+) => {
        $(impl IntoAttribute for $number {
            fn into_attribute(self) -> Option<Attribute> {
                Some(Attribute::Int(i64::from(self)))
            }
        })+
    };
}

whole_numbers!(i64, i32, i16, i8, u32, u16, u8);

/// What a workflow says about itself with [`Ctx::upsert`](crate::Ctx::upsert): search attributes to set or take away,
/// and entries of the memo. [`attributes!`](crate::attributes) makes one of attributes alone.
///
/// ```
/// use everstep::{Notes, attributes};
///
/// let notes = attributes! { "stage" => "shipped", "left" => 3, "late" => None::<bool> };
/// let with_memo = Notes::new().attribute("stage", "shipped").memo("parcel", &("DE", 4711));
/// # let _ = (notes, with_memo);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    change: NotesChange,
    /// A value that could not be encoded.
    refused: Option<String>,
}

impl Notes {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a search attribute, or takes it away when there is no value.
    #[must_use]
    pub fn attribute(mut self, name: impl Into<String>, value: impl IntoAttribute) -> Self {
        self.change.attributes.insert(name.into(), value.into_attribute());
        self
    }

    /// Sets an entry of the memo.
    #[must_use]
    pub fn memo<T: Serialize + ?Sized>(mut self, name: impl Into<String>, value: &T) -> Self {
        let name = name.into();
        match payload::encode(value) {
            Ok(value) => drop(self.change.memo.insert(name, Some(value))),
            Err(e) => self.refused = Some(format!("the memo '{name}' does not encode: {e}")),
        }
        self
    }

    /// Takes an entry of the memo away.
    #[must_use]
    pub fn forget(mut self, name: impl Into<String>) -> Self {
        self.change.memo.insert(name.into(), None);
        self
    }

    pub(crate) fn into_change(self) -> Result<NotesChange, String> {
        match self.refused {
            Some(problem) => Err(problem),
            None => Ok(self.change),
        }
    }
}

/// The search attributes of a run, by name.
pub type SearchAttributes = BTreeMap<String, Attribute>;

/// The memo of a run, by name.
pub type Memo = BTreeMap<String, Payload>;

/// Search attributes for [`Ctx::upsert`](crate::Ctx::upsert): `attributes! { "stage" => "shipped", "left" => 3 }`.
#[macro_export]
macro_rules! attributes {
    ($($name:expr => $value:expr),* $(,)?) => {
        $crate::Notes::new()$(.attribute($name, $value))*
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_of_the_type_that_they_look_like() {
        let change = attributes! {
            "keyword" => "x", "keywords" => ["a", "b"], "int" => 3, "float" => 1.5, "bool" => true,
            "time" => DateTime::from_timestamp(1, 5_000).unwrap(), "none" => None::<i64>, "nan" => f64::NAN,
        };
        let change = change.into_change().unwrap();
        let words: BTreeMap<&str, Option<&str>> = change
            .attributes
            .iter()
            .map(|(name, v)| (&**name, v.as_ref().map(|v| v.kind().as_str())))
            .collect();
        for kind in ["keyword", "keywords", "int", "float", "bool", "time"] {
            assert_eq!(words[kind], Some(kind));
        }
        assert_eq!((words["none"], words["nan"]), (None, None));
        assert_eq!(change.attributes["time"], Some(Attribute::Time(Timestamp::from_micros(1_000_005))));
    }

    #[test]
    fn a_memo_that_does_not_encode_is_told() {
        let keys_are_no_text = BTreeMap::from([((1, 2), 3)]);
        assert!(Notes::new().memo("m", &keys_are_no_text).into_change().is_err());
        let change = Notes::new().memo("m", &3).forget("n").into_change().unwrap();
        assert_eq!(change.memo["m"], Some(Payload::json("3")));
        assert_eq!(change.memo["n"], None);
    }
}
