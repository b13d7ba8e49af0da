//! Version markers: what the code chose where it has changed.

use std::collections::BTreeMap;

use super::Run;
use super::decide::Draft;
use crate::{EventBody, Rejection, limits, validate_name};

/// Versions that one commit marks before the command at hand.
pub(super) type Marked = BTreeMap<String, u32>;

impl Run {
    /// The version that the run marked for a change, if it did.
    pub fn version(&self, change_id: &str) -> Option<u32> {
        self.versions.get(change_id).copied()
    }
}

/// A run keeps what it chose first: the same choice again is nothing new, another one contradicts it.
pub(super) fn mark(
    draft: &mut Draft<'_>,
    marked: &mut Marked,
    change_id: &str,
    version: u32,
) -> Result<(), Rejection> {
    validate_name("change_id", change_id)?;
    match draft.run.version(change_id).or_else(|| marked.get(change_id).copied()) {
        Some(known) if known == version => return Ok(()),
        Some(known) => {
            let problem = format!("change '{change_id}' is at version {known}, not {version}");
            return Err(Rejection::InvalidCommands { problem });
        }
        None => {}
    }
    let changes = draft.run.versions.len() + marked.len() + 1;
    if changes > limits::CHANGES_MAX {
        let (actual, limit) = (changes as u64, limits::CHANGES_MAX as u64);
        return Err(Rejection::LimitExceeded { what: "marked changes of the run", actual, limit });
    }
    marked.insert(change_id.to_owned(), version);
    draft.push(EventBody::VersionMarked { change_id: change_id.to_owned(), version });
    Ok(())
}
