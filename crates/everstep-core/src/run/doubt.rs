//! Guarded steps: an attempt whose start is durable before its effect, and whose end is not recorded when its
//! owner is gone, is in doubt. It stays so until the code says what to do about it, or a person does.

use everstep_fault::{Bug, planted};

use super::commit::check_failure;
use super::decide::{Draft, check_payload, cut};
use super::{Run, StepState};
use crate::digest::{Digest, Digester};
use crate::{
    CommandId, Doubt, DoubtPolicy, Event, EventBody, OpId, Rejection, Resolution, Seq, StepResolved,
    Timestamp,
};

/// What is known of a step whose attempts are guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The step's name.
    pub name: String,
    /// What its code does about a doubt.
    pub policy: DoubtPolicy,
    /// Since when the recorded attempt is in doubt; `None` when it is not.
    pub since: Option<Timestamp>,
}

impl StepState {
    /// True when nobody can say whether the recorded attempt had its effect.
    pub fn is_in_doubt(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.since.is_some())
    }

    /// True when a guarded attempt runs: its owner may have begun the effect.
    pub(super) fn is_guarded_and_running(&self) -> bool {
        self.running && self.guard.is_some()
    }
}

impl Run {
    /// The attempt of a step that is in doubt, if one is.
    pub fn doubt(&self, step: OpId) -> Option<Doubt> {
        self.queued_doubt(step).or_else(|| doubt_of(step, self.steps.get(&step)?))
    }

    /// All attempts in doubt.
    pub fn doubts(&self) -> Vec<Doubt> {
        let inline = self.steps.iter().filter_map(|(step, state)| doubt_of(*step, state));
        let mut doubts: Vec<Doubt> = inline.chain(self.queued_doubts()).collect();
        doubts.sort_unstable();
        doubts
    }

    /// True when any attempt is in doubt.
    pub fn has_doubts(&self) -> bool {
        self.doubts > 0
    }

    /// The step stands like this now; `None` when it has ended.
    pub(super) fn set_step(&mut self, step: OpId, state: Option<StepState>) {
        self.doubts += u32::from(state.as_ref().is_some_and(StepState::is_in_doubt));
        let before = match state {
            Some(state) => self.steps.insert(step, state),
            None => self.steps.remove(&step),
        };
        self.doubts -= u32::from(before.is_some_and(|s| s.is_in_doubt()));
    }

    /// What a person has said about a step since `seen`: the owner has not heard of it.
    pub(super) fn resolved_since(&self, step: OpId, seen: Seq) -> bool {
        self.resolved.get(&step).is_some_and(|seq| *seq > seen)
    }

    /// Whether this request to resolve a step was carried out before.
    ///
    /// # Errors
    /// [`Rejection::IdempotencyMismatch`] when it had another body then.
    pub(super) fn was_resolved_by(
        &self,
        id: CommandId,
        attempt: u32,
        body: Digest,
    ) -> Result<bool, Rejection> {
        match self.resolutions.get(&id) {
            None => Ok(false),
            Some((first, said)) if *said == body && (attempt == 0 || attempt == *first) => Ok(true),
            Some(_) => Err(Rejection::IdempotencyMismatch { run_id: self.id }),
        }
    }

    pub(super) fn note_doubt(&mut self, step: OpId, attempt: u32, at: Timestamp) {
        if let Some(mut state) = self.steps.get(&step).cloned() {
            state.attempt = state.attempt.max(attempt);
            state.running = false;
            if let Some(guard) = &mut state.guard {
                guard.since = Some(at);
            }
            self.set_step(step, Some(state));
        }
        self.wake();
    }

    pub(super) fn note_resolution(&mut self, event: &Event, resolved: &StepResolved) {
        let StepResolved { step, name: _, attempt, resolution, note } = resolved;
        self.resolved.insert(*step, event.seq);
        self.resolutions.insert(event.command_id, (*attempt, digest(*step, resolution, note)));
        match resolution {
            Resolution::Completed(result) if self.complete_queued(*step, *attempt, result) => {}
            Resolution::Failed(failure) if self.fail_resolved(*step, *attempt, failure) => {}
            Resolution::Retry if self.retry_queued(*step, event.at) => return,
            Resolution::Completed(_) | Resolution::Failed(_) => self.end_step(*step),
            Resolution::Retry => {
                let state = self.steps.get(step).cloned();
                self.set_step(*step, state.map(|state| StepState { guard: None, ..state }));
            }
        }
        self.wake();
    }
}

fn doubt_of(step: OpId, state: &StepState) -> Option<Doubt> {
    let Guard { name, policy, since } = state.guard.as_deref()?;
    Some(Doubt { step, name: name.clone(), attempt: state.attempt, policy: *policy, since: (*since)? })
}

/// What a resolution says. The text that is kept may be cut, so it is cut here too.
fn digest(step: OpId, resolution: &Resolution, note: &str) -> Digest {
    let it = Digester::of("resolve").number(step.0.into()).field(cut(note).as_bytes());
    match resolution {
        Resolution::Completed(result) => it.field(b"completed").payload(result),
        Resolution::Failed(failure) => it.field(b"failed").failure(failure),
        Resolution::Retry => it.field(b"retry"),
    }
    .finish()
}

/// The owner lets go, or is gone: whatever guarded attempt it had begun and not ended is in doubt. `ended` are
/// steps whose attempt ended in this commit, `begun` are attempts that began in it.
pub(super) fn doubt_running(draft: &mut Draft<'_>, ended: &[OpId], begun: &[(OpId, String, u32)]) {
    if planted(Bug::ForgetDoubt) {
        return;
    }
    let run = draft.run;
    let newer = |id: &OpId| begun.iter().any(|(step, ..)| step == id);
    let before = run.steps.iter().filter(|(id, s)| s.is_guarded_and_running() && !newer(id));
    let mut doubts: Vec<(OpId, String, u32)> = before
        .filter_map(|(id, s)| Some((*id, s.guard.as_ref()?.name.clone(), s.attempt)))
        .chain(begun.iter().cloned())
        .filter(|(id, ..)| !ended.contains(id))
        .collect();
    doubts.sort_unstable();
    doubts.dedup();
    for (step, name, attempt) in doubts {
        draft.push(EventBody::StepInDoubt { step, name, attempt });
    }
}

/// A person says what became of an attempt in doubt; of whichever is, when `attempt` is 0.
pub(super) fn resolve(
    draft: &mut Draft<'_>,
    id: CommandId,
    (step, attempt): (OpId, u32),
    resolution: &Resolution,
    note: &str,
) -> Result<(), Rejection> {
    if was_resolved(draft.run, id, (step, attempt), resolution, note)? {
        return Ok(());
    }
    let resolution = checked(resolution)?;
    let Some(doubt) = draft.run.doubt(step).filter(|d| attempt == 0 || attempt == d.attempt) else {
        return Err(Rejection::StepNotInDoubt { step, attempt });
    };
    let Doubt { step, name, attempt, .. } = doubt;
    let note = cut(note);
    draft.push(EventBody::StepResolved(Box::new(StepResolved { step, name, attempt, resolution, note })));
    Ok(())
}

/// Whether the same request was carried out before, also when the run has ended since.
pub(super) fn was_resolved(
    run: &Run,
    id: CommandId,
    (step, attempt): (OpId, u32),
    resolution: &Resolution,
    note: &str,
) -> Result<bool, Rejection> {
    run.was_resolved_by(id, attempt, digest(step, &checked(resolution)?, note))
}

/// As it will be kept.
fn checked(resolution: &Resolution) -> Result<Resolution, Rejection> {
    Ok(match resolution {
        Resolution::Completed(result) => {
            check_payload("completed", result)?;
            Resolution::Completed(result.clone())
        }
        Resolution::Failed(failure) => Resolution::Failed(check_failure(failure)?),
        Resolution::Retry => Resolution::Retry,
    })
}
