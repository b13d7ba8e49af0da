//! Versions of changes in workflow code: chosen once per run and change, from what its history says.
//!
//! Operations are numbered in the order in which code builds them. So whatever was recorded behind a call of
//! [`Ctx::version`](crate::Ctx::version) by code that did not have it has a number greater than those built before
//! the call. A command of the new code is recorded only behind its marker. A history with neither holds nothing
//! that depends on the choice, and to choose anew is free: also when an earlier worker chose and was lost before
//! it could record that.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::panic::Location;

use everstep_core::{Event, EventBody, OpId, limits, validate_name};

/// What a whole recorded history says about versions, before any of it is applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Versions that are marked, by change.
    markers: BTreeMap<String, u32>,
    /// The greatest operation that any event speaks of.
    last: u32,
    /// The workflow has ended by itself.
    ended: bool,
}

impl Known {
    /// What `history` says.
    pub fn of<'a>(history: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut known = Self::default();
        for event in history {
            known.note(&event.body);
        }
        known
    }

    fn note(&mut self, body: &EventBody) {
        match body {
            EventBody::VersionMarked { change_id, version } => {
                self.markers.insert(change_id.clone(), *version);
            }
            EventBody::RunCompleted { .. }
            | EventBody::RunFailed { .. }
            | EventBody::RunCanceled { .. }
            | EventBody::RunContinued { .. } => {
                self.ended = true;
            }
            body => self.last = self.last.max(body.op().map_or(0, |OpId(id)| id)),
        }
    }
}

/// The versions of one activated run.
#[derive(Debug)]
pub(crate) struct Versions {
    known: Known,
    chosen: BTreeMap<String, u32>,
    /// Choices that are to be recorded.
    fresh: Vec<(String, u32)>,
}

impl Versions {
    pub(super) fn new(known: Known) -> Self {
        Self { known, chosen: BTreeMap::new(), fresh: Vec::new() }
    }

    /// The version of a change, for code that has built so many operations.
    pub(super) fn choose(
        &mut self,
        change_id: &str,
        range: &RangeInclusive<u32>,
        built: usize,
    ) -> Result<u32, Refused> {
        let before = self.known.markers.get(change_id).or_else(|| self.chosen.get(change_id)).copied();
        let passed = self.known.last as usize > built || self.known.ended;
        let version = match before {
            Some(version) => version,
            None => {
                self.check(change_id, range)?;
                if passed { 0 } else { *range.end() }
            }
        };
        if !range.contains(&version) {
            return Err(Refused::Unsupported {
                change: format!("change '{change_id}' at version {version}"),
                code: format!("code that supports {} to {} of it", range.start(), range.end()),
            });
        }
        if before.is_none() {
            self.chosen.insert(change_id.to_owned(), version);
            if !passed {
                self.fresh.push((change_id.to_owned(), version));
            }
        }
        Ok(version)
    }

    /// A choice is recorded.
    pub(crate) fn mark(&mut self, change_id: &str, version: u32) {
        self.known.markers.insert(change_id.to_owned(), version);
    }

    /// Choices that nobody has been told yet, in their order.
    pub(crate) fn take(&mut self) -> Vec<(String, u32)> {
        std::mem::take(&mut self.fresh)
    }

    /// What the server would refuse to record. It depends on the code alone, so replay says the same.
    fn check(&self, change_id: &str, range: &RangeInclusive<u32>) -> Result<(), Refused> {
        if range.is_empty() {
            return Err(Refused::Misuse(format!("the versions {range:?} are an empty range")));
        }
        if self.known.markers.len() + self.chosen.len() >= limits::CHANGES_MAX {
            return Err(Refused::Misuse(format!("a run has at most {} changes", limits::CHANGES_MAX)));
        }
        validate_name("change_id", change_id).map_err(|refused| Refused::Misuse(refused.to_string()))
    }
}

/// Why a version cannot be given.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The code does not have the version that the run is at.
    Unsupported { change: String, code: String },
    /// Such a call is a mistake in any run.
    Misuse(String),
}

/// The run is at a version that its code does not have: what a panic in `ctx.version` carries.
#[derive(Debug)]
pub(crate) struct Unsupported {
    pub(crate) change: String,
    pub(crate) code: String,
    pub(crate) source: &'static Location<'static>,
}

impl Refused {
    /// Stops the code that asked: no version would be right. The machine says what became of it.
    pub(super) fn stop(self, source: &'static Location<'static>) -> ! {
        match self {
            Self::Unsupported { change, code } => {
                std::panic::resume_unwind(Box::new(Unsupported { change, code, source }))
            }
            Self::Misuse(problem) => {
                std::panic::resume_unwind(Box::new(format!("ctx.version at {source}: {problem}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_refused_and_choices_are_kept() {
        let mut versions = Versions::new(Known::default());
        let problem = |r: Result<u32, Refused>| matches!(r, Err(Refused::Misuse(_)));
        assert!(problem(versions.choose("", &(0..=1), 0)));
        #[expect(clippy::reversed_empty_ranges, reason = "that is the mistake")]
        let empty = 1..=0;
        assert!(problem(versions.choose("a", &empty, 0)));
        assert_eq!(versions.choose("a", &(0..=1), 0), Ok(1));
        assert_eq!(versions.choose("a", &(0..=2), 9), Ok(1), "the first choice is kept");
        assert!(matches!(versions.choose("a", &(2..=3), 9), Err(Refused::Unsupported { .. })));
        assert_eq!(versions.take(), [("a".to_owned(), 1)], "and recorded once");
        for n in 1..limits::CHANGES_MAX {
            assert_eq!(versions.choose(&n.to_string(), &(0..=1), 0), Ok(1));
        }
        assert!(problem(versions.choose("one more", &(0..=1), 0)));
    }
}
