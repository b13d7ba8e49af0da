//! Notes of a run: what its workflow upserts.

use std::collections::{BTreeMap, BTreeSet};

use super::Run;
use super::decide::Draft;
use super::ops::check_free;
use crate::{Attribute, EventBody, Failure, Notes, NotesChange, OpId, Rejection};

/// What one commit has noted before the command at hand.
#[derive(Default)]
pub(super) struct Annotated {
    /// The notes after it; `None` while it has changed none.
    notes: Option<Notes>,
    /// Why the run cannot have them.
    refused: Option<Rejection>,
}

impl Run {
    /// What it says about itself now.
    pub fn notes(&self) -> &Notes {
        self.notes.as_deref().unwrap_or(&self.start.notes)
    }

    /// What lists find it by: its attributes, each keyword of a list once.
    pub fn search_attributes(&self) -> BTreeMap<String, Attribute> {
        let mut attributes = self.notes().attributes.clone();
        for attribute in attributes.values_mut() {
            if let Attribute::Keywords(texts) = attribute {
                let mut seen = BTreeSet::new();
                texts.retain(|text| seen.insert(text.clone()));
            }
        }
        attributes
    }

    pub(super) fn note(&mut self, op: OpId, change: &NotesChange) {
        self.upserts.insert(op);
        let start = &self.start.notes;
        self.notes.get_or_insert_with(|| Box::new(start.clone())).change(change);
    }
}

/// The workflow says something about itself. Whether a name is declared is nothing that a run depends on: what is not
/// is shown, and not found.
pub(super) fn upsert(
    draft: &mut Draft<'_>,
    annotated: &mut Annotated,
    taken: &mut Vec<OpId>,
    op: OpId,
    change: &NotesChange,
) -> Result<(), Rejection> {
    check_free(draft, taken, op)?;
    taken.push(op);
    let notes = annotated.notes.get_or_insert_with(|| draft.run.notes().clone());
    notes.change(change);
    if annotated.refused.is_none() {
        annotated.refused = notes.check().err();
    }
    draft.push(EventBody::AttributesUpserted { op, notes: Box::new(change.clone()) });
    Ok(())
}

/// What follows the run says what it said last. A run whose code says more about itself than it may ends in a way that
/// says so, in place of the whole commit.
pub(super) fn finish(draft: &mut Draft<'_>, annotated: Annotated) {
    let Annotated { notes, refused } = annotated;
    let Some(refused) = refused else {
        if let (Some(notes), Some(next)) = (notes, &mut draft.follows) {
            next.start.notes = notes;
        }
        return;
    };
    draft.events.clear();
    draft.follows = None;
    let kind =
        if matches!(refused, Rejection::LimitExceeded { .. }) { "LimitExceeded" } else { "InvalidNotes" };
    let failure = Failure::new(kind, refused.to_string()).non_retryable();
    draft.push(EventBody::RunFailed { failure, unconsumed: Vec::new(), retried_by: None });
}
