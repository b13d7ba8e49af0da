//! Values that are made of others: failures, retry policies, and what a run says about itself.

use everstep_core::{Failure, Notes, Rejection, RetryPolicy, limits};
use everstep_proto::history;
use everstep_proto::wire::{WireNotes, decode_attribute, decode_failure, decode_recorded_policy};

use super::Check;
use crate::reason::{self, Reason};

impl Check {
    /// Why something failed, which must be there; its text is cut later.
    pub(crate) fn failure(&mut self, field: &str, wire: Option<history::Failure>) -> Option<Failure> {
        let failure = self.take(decode_failure(field, wire).map(Some))?;
        let (mut next, mut at) = (Some(&failure), field.to_owned());
        while let Some(link) = next {
            if link.kind.is_empty() {
                let problem = "must be set: a word for the class of the failure";
                self.refuse(format!("{at}.kind"), reason::INVALID_ARGUMENT, problem);
            }
            self.text(format!("{at}.kind"), link.kind.clone(), limits::NAME_BYTES_MAX);
            self.bytes(&format!("{at}.details"), link.details.clone());
            next = link.cause.as_deref();
            at.push_str(".cause");
        }
        Some(failure)
    }

    /// A retry policy that makes sense.
    pub(crate) fn policy(&mut self, field: &str, wire: history::RetryPolicy) -> Option<RetryPolicy> {
        let policy = self.take(decode_recorded_policy(field, wire).map(Some))?;
        if let Err(rejection) = policy.validate() {
            let (name, reason, problem) = said(rejection);
            let name = name.trim_start_matches("retry.");
            self.refuse(format!("{field}.{name}"), reason, problem);
        }
        Some(policy)
    }

    /// What a run says about itself as it begins.
    pub(crate) fn notes(&mut self, (attributes, memo): WireNotes) -> Notes {
        let mut notes = Notes::default();
        if attributes.len() > limits::ATTRIBUTES_MAX {
            self.too_many("search_attributes", attributes.len(), limits::ATTRIBUTES_MAX);
            return notes;
        }
        if memo.len() > limits::MEMO_ENTRIES_MAX {
            self.too_many("memo", memo.len(), limits::MEMO_ENTRIES_MAX);
            return notes;
        }
        for (name, wire) in attributes {
            let field = format!("search_attributes[{name}]");
            let name = self.name(field.clone(), name);
            let Some(value) = self.take(decode_attribute(&field, wire).map(Some)) else { continue };
            if let Err(rejection) = value.check() {
                let (_, reason, problem) = said(rejection);
                self.refuse(field, reason, problem);
            }
            notes.attributes.insert(name, value);
        }
        let mut bytes = 0;
        for (name, wire) in memo {
            let field = format!("memo[{name}]");
            let name = self.name(field.clone(), name);
            let value = self.payload(&field, Some(wire));
            bytes += value.data.len();
            notes.memo.insert(name, value);
        }
        if bytes > limits::MEMO_BYTES_MAX {
            let problem = format!("is {bytes} bytes long, more than the limit of {}", limits::MEMO_BYTES_MAX);
            self.refuse("memo", reason::LIMIT_EXCEEDED, problem);
        }
        notes
    }

    /// Notes that there are more entries than there may be.
    pub(crate) fn too_many(&mut self, field: &str, actual: usize, limit: usize) {
        let problem = format!("has {actual} entries, more than the limit of {limit}");
        self.refuse(field, reason::LIMIT_EXCEEDED, problem);
    }
}

/// What the core says of a value: a field of it, the reason, and what is wrong with it.
fn said(rejection: Rejection) -> (&'static str, Reason, String) {
    match rejection {
        Rejection::InvalidArgument { field, problem } => (field, reason::INVALID_ARGUMENT, problem),
        Rejection::LimitExceeded { what, actual, limit } => {
            (what, reason::LIMIT_EXCEEDED, format!("is {actual}, more than the limit of {limit}"))
        }
        other => ("", reason::INVALID_ARGUMENT, other.to_string()),
    }
}
