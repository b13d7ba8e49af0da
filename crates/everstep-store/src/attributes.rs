//! Search attributes: how a filter asks for them, and the rows that SQL adapters keep of them.

use std::collections::BTreeMap;

use everstep_core::{Attribute, AttributeRows, AttributeType, Finite, Timestamp};

/// A filter of runs by one search attribute. It finds what has the type of its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeFilter {
    /// Which attribute.
    pub name: String,
    /// How it stands to the value.
    pub op: Comparison,
    /// The value. Of a list of keywords, a list that holds the one to look for.
    pub value: Attribute,
}

/// How an attribute stands to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// It is the value; a list has it.
    Eq,
    /// It is there and not the value; a list does not have it.
    Ne,
    /// Less. Not of lists and booleans, as the next three.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
}

impl Comparison {
    /// Every comparison.
    pub const ALL: [Self; 6] = [Self::Eq, Self::Ne, Self::Lt, Self::Le, Self::Gt, Self::Ge];

    /// The operator of SQL.
    pub const fn as_sql(self) -> &'static str {
        match self {
            Self::Eq => "=",
            Self::Ne => "<>",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Gt => ">",
            Self::Ge => ">=",
        }
    }

    /// Whether a value that stands like this to the filter's is meant.
    const fn admits(self, order: std::cmp::Ordering) -> bool {
        match self {
            Self::Eq => order.is_eq(),
            Self::Ne => order.is_ne(),
            Self::Lt => order.is_lt(),
            Self::Le => order.is_le(),
            Self::Gt => order.is_gt(),
            Self::Ge => order.is_ge(),
        }
    }
}

impl AttributeFilter {
    /// Whether a run with these attributes is found.
    pub fn matches(&self, attributes: &BTreeMap<String, Attribute>) -> bool {
        let order = match (attributes.get(&self.name), &self.value) {
            (Some(Attribute::Keywords(has)), Attribute::Keywords(wanted)) => {
                let found = wanted.iter().any(|keyword| has.contains(keyword));
                return if self.op == Comparison::Ne { !found } else { found };
            }
            (Some(Attribute::Keyword(has)), Attribute::Keyword(value)) => has.cmp(value),
            (Some(Attribute::Int(has)), Attribute::Int(value)) => has.cmp(value),
            (Some(Attribute::Float(has)), Attribute::Float(value)) => has.get().total_cmp(&value.get()),
            (Some(Attribute::Bool(has)), Attribute::Bool(value)) => has.cmp(value),
            (Some(Attribute::Time(has)), Attribute::Time(value)) => has.cmp(value),
            _ => return false,
        };
        self.op.admits(order)
    }
}

/// The value of a row of `run_attributes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributeValue {
    /// Column `text_value`.
    Text(String),
    /// Column `int_value`.
    Int(i64),
    /// Column `number_value`.
    Number(Finite),
    /// Column `time_value`.
    Time(Timestamp),
    /// None of them: the list is empty.
    None,
}

impl AttributeValue {
    /// The column that holds it.
    pub const fn column(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::None => "text_value",
            Self::Int(_) => "int_value",
            Self::Number(_) => "number_value",
            Self::Time(_) => "time_value",
        }
    }
}

/// A row of `run_attributes`, but for run and namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeRow {
    /// Which attribute.
    pub name: String,
    /// Place in a list; 0 for everything else.
    pub n: i32,
    /// Its type.
    pub kind: AttributeType,
    /// Its value.
    pub value: AttributeValue,
}

impl AttributeRow {
    /// The rows of a run.
    pub fn all(rows: &AttributeRows) -> Vec<Self> {
        rows.attributes.iter().flat_map(|(name, attribute)| Self::of(name, attribute)).collect()
    }

    /// The rows of one attribute.
    pub fn of(name: &str, attribute: &Attribute) -> Vec<Self> {
        let values = match attribute {
            Attribute::Keyword(text) => vec![AttributeValue::Text(text.clone())],
            Attribute::Keywords(texts) if texts.is_empty() => vec![AttributeValue::None],
            Attribute::Keywords(texts) => texts.iter().cloned().map(AttributeValue::Text).collect(),
            Attribute::Int(number) => vec![AttributeValue::Int(*number)],
            Attribute::Float(number) => vec![AttributeValue::Number(*number)],
            Attribute::Bool(flag) => vec![AttributeValue::Int(i64::from(*flag))],
            Attribute::Time(at) => vec![AttributeValue::Time(*at)],
        };
        let row = |(n, value)| Self { name: name.to_owned(), n, kind: attribute.kind(), value };
        (0..).zip(values).map(row).collect()
    }

    /// The attributes that these rows hold, in order of name and place; `None` when no attributes have such rows.
    pub fn collect(rows: Vec<Self>) -> Option<BTreeMap<String, Attribute>> {
        let mut attributes = BTreeMap::new();
        for Self { name, n: _, kind, value } in rows {
            let attribute = match (kind, value) {
                (AttributeType::Keyword, AttributeValue::Text(text)) => Attribute::Keyword(text),
                (AttributeType::Keywords, value) => {
                    let listed = attributes.entry(name).or_insert_with(|| Attribute::Keywords(Vec::new()));
                    match (listed, value) {
                        (Attribute::Keywords(texts), AttributeValue::Text(text)) => texts.push(text),
                        (Attribute::Keywords(_), AttributeValue::None) => {}
                        _ => return None,
                    }
                    continue;
                }
                (AttributeType::Int, AttributeValue::Int(number)) => Attribute::Int(number),
                (AttributeType::Float, AttributeValue::Number(number)) => Attribute::Float(number),
                (AttributeType::Bool, AttributeValue::Int(number)) => Attribute::Bool(number != 0),
                (AttributeType::Time, AttributeValue::Time(at)) => Attribute::Time(at),
                _ => return None,
            };
            attributes.insert(name, attribute);
        }
        Some(attributes)
    }
}
