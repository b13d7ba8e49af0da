//! Updates: requests that the run's code has agreed to, and what it answered.
//!
//! The code agrees as it stands after one event, so the acceptance has to be the next one. Whoever asks the code
//! says which event that was; here it is held against the log.

use std::collections::BTreeMap;

use everstep_fault::{Bug, planted};

use super::Run;
use super::commit::check_failure;
use super::decide::{Draft, check_payload};
use crate::digest::{Digest, Digester};
use crate::{Event, EventBody, Payload, Rejection, Seq, UpdateOutcome, limits, validate_name};

/// The updates that a run has accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Updates {
    by_id: BTreeMap<String, Accepted>,
    /// Those that have no answer yet, by the event that accepted them.
    open: BTreeMap<Seq, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Accepted {
    seq: Seq,
    said: Digest,
}

/// What an update asks for.
fn digest(name: &str, input: &Payload) -> Digest {
    Digester::of("update").field(name.as_bytes()).payload(input).finish()
}

impl Run {
    /// The event that accepted an update, if one did.
    pub fn update(&self, update_id: &str) -> Option<Seq> {
        self.updates.by_id.get(update_id).map(|accepted| accepted.seq)
    }

    /// The updates that its code works on: the events that accepted them, and their ids.
    pub fn open_updates(&self) -> impl Iterator<Item = (Seq, &str)> {
        self.updates.open.iter().map(|(seq, id)| (*seq, id.as_str()))
    }

    pub(super) fn note_update(&mut self, event: &Event) {
        match &event.body {
            EventBody::UpdateAccepted { update_id, name, input } => {
                let accepted = Accepted { seq: event.seq, said: digest(name, input) };
                self.updates.by_id.insert(update_id.clone(), accepted);
                self.updates.open.insert(event.seq, update_id.clone());
                self.wake();
            }
            EventBody::UpdateCompleted { accepted, .. } => {
                self.updates.open.remove(accepted);
            }
            _ => {}
        }
    }

    /// Whether this update was accepted before.
    ///
    /// # Errors
    /// [`Rejection::IdempotencyMismatch`] when it asked for something else then.
    pub(super) fn has_update(&self, id: &str, name: &str, input: &Payload) -> Result<bool, Rejection> {
        match self.updates.by_id.get(id) {
            Some(accepted) if accepted.said == digest(name, input) => Ok(true),
            Some(_) => Err(Rejection::IdempotencyMismatch { run_id: self.id }),
            None => Ok(false),
        }
    }
}

/// The run's code has agreed, as it stood after the event `seen`.
pub(super) fn accept(
    draft: &mut Draft<'_>,
    (id, name): (&str, &str),
    input: &Payload,
    seen: Seq,
) -> Result<(), Rejection> {
    validate_name("name", name)?;
    validate_name("update_id", id)?;
    check_payload("input", input)?;
    let run = draft.run;
    if run.has_update(id, name, input)? && !(planted(Bug::AcceptUpdateTwice) && seen > 0) {
        return Ok(());
    }
    let limit = |what, actual, limit| Err(Rejection::LimitExceeded { what, actual, limit });
    let (all, open) = (run.updates.by_id.len() + 1, run.updates.open.len() + 1);
    if all > limits::UPDATES_MAX {
        return limit("updates of the run", all as u64, limits::UPDATES_MAX as u64);
    }
    if open > limits::UPDATES_OPEN_MAX {
        return limit("updates that the run works on", open as u64, limits::UPDATES_OPEN_MAX as u64);
    }
    run.check_reserve(input)?;
    if seen != run.seq && !(planted(Bug::AcceptStaleUpdate) && seen > 0) {
        return Err(Rejection::UnseenEvents { seen, tail: run.seq });
    }
    draft.push(EventBody::UpdateAccepted {
        update_id: id.to_owned(),
        name: name.to_owned(),
        input: input.clone(),
    });
    Ok(())
}

/// The code has done what an update asked for, or failed to. `completed` are those that ended in the same commit.
pub(super) fn complete(
    draft: &mut Draft<'_>,
    completed: &mut Vec<Seq>,
    accepted: Seq,
    outcome: &UpdateOutcome,
) -> Result<(), Rejection> {
    let open = draft.run.updates.open.get(&accepted).filter(|_| !completed.contains(&accepted));
    let Some(update_id) = open.cloned() else {
        let problem = format!("event {accepted} accepted no update that waits for an answer");
        return Err(Rejection::InvalidCommands { problem });
    };
    let outcome = match outcome {
        UpdateOutcome::Completed(result) => {
            check_payload("result", result)?;
            UpdateOutcome::Completed(result.clone())
        }
        UpdateOutcome::Failed(failure) => UpdateOutcome::Failed(check_failure(failure)?),
    };
    completed.push(accepted);
    draft.push(EventBody::UpdateCompleted { accepted, update_id, outcome });
    Ok(())
}
