//! What a statement says of other runs.

use std::collections::BTreeMap;

use everstep_core::{RunId, RunLink};
use uuid::Uuid;

use super::{Bound, Statement};
use crate::sql::Part;

/// Rows of the outbox: to set, or to delete.
pub(super) type Outbox = BTreeMap<(Uuid, i64), bool>;
/// Links, by run.
pub(super) type Links = BTreeMap<Uuid, RunLink>;

pub(super) fn bind(statement: &mut Statement, outbox: Outbox, links: Links) -> Bound {
    let (set, deleted): (Vec<_>, Vec<_>) = outbox.into_iter().partition(|(_, set)| *set);
    if !set.is_empty() {
        statement.parts.add(Part::OutboxSet);
        statement.column(&set, |row| row.0.0)?;
        statement.column(&set, |row| row.0.1)?;
    }
    if !deleted.is_empty() {
        statement.parts.add(Part::OutboxDeleted);
        statement.column(&deleted, |row| row.0.0)?;
        statement.column(&deleted, |row| row.0.1)?;
    }
    let links: Vec<(Uuid, RunLink)> = links.into_iter().collect();
    if links.is_empty() {
        return Ok(());
    }
    let id = |run: Option<RunId>| run.map(RunId::uuid);
    statement.parts.add(Part::Links);
    statement.column(&links, |l| l.0)?;
    statement.column(&links, |l| id(l.1.parent.map(|(run, _)| run)))?;
    statement.column(&links, |l| l.1.parent.map(|(_, op)| i64::from(op.0)))?;
    statement.column(&links, |l| id(l.1.previous))?;
    statement.column(&links, |l| id(l.1.first))?;
    statement.column(&links, |l| id(l.1.successor))?;
    statement.column(&links, |l| i64::from(l.1.attempt))
}
