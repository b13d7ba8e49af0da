//! The search attributes of a statement.

use std::collections::BTreeMap;

use everstep_core::AttributeRows;
use everstep_store::{AttributeRow, AttributeValue};
use uuid::Uuid;

use super::{Bound, Statement};
use crate::rows::to_db;
use crate::sql::Part;

/// All that a run has, by run.
pub(super) type Attributes = BTreeMap<Uuid, AttributeRows>;

pub(super) fn bind(statement: &mut Statement, attributes: Attributes) -> Bound {
    if attributes.is_empty() {
        return Ok(());
    }
    let mut set: Vec<(Uuid, &str, AttributeRow)> = Vec::new();
    for (run, rows) in &attributes {
        set.extend(AttributeRow::all(rows).into_iter().map(|row| (*run, rows.namespace.as_str(), row)));
    }
    if !set.is_empty() {
        statement.parts.add(Part::AttributesSet);
        statement.column(&set, |a| a.0)?;
        statement.column(&set, |a| a.2.name.clone())?;
        statement.column(&set, |a| a.2.n)?;
        statement.column(&set, |a| a.1.to_owned())?;
        statement.column(&set, |a| a.2.kind.as_str())?;
        statement.column(&set, |a| match &a.2.value {
            AttributeValue::Text(text) => Some(text.clone()),
            _ => None,
        })?;
        statement.column(&set, |a| match a.2.value {
            AttributeValue::Int(number) => Some(number),
            _ => None,
        })?;
        statement.column(&set, |a| match a.2.value {
            AttributeValue::Number(number) => Some(number.get()),
            _ => None,
        })?;
        statement.column(&set, |a| match a.2.value {
            AttributeValue::Time(at) => Some(to_db(at)),
            _ => None,
        })?;
    }
    statement.parts.add(Part::AttributesDeleted);
    statement.bind(attributes.keys().copied().collect::<Vec<Uuid>>())?;
    statement.column(&set, |a| a.0)?;
    statement.column(&set, |a| a.2.name.clone())?;
    statement.column(&set, |a| a.2.n)
}
