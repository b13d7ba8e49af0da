//! Attempts in doubt: probes, and the people who are asked.
//!
//! The environment knows what happened, which nobody does in life. A mocked step has a probe that says so, and under
//! a simulation somebody answers for `AskHuman`. Neither says that an effect will not come while a worker that
//! stalls may still have it.

use std::time::Duration;

use everstep_core::{
    CommandBody, CommitCommand, Doubt, DoubtPolicy, Failure, OpId, Payload, Resolution, RetryPolicy, RunId,
};

use super::attempt::info;
use super::{Coming, Engine};
use crate::ProbeFn;
use crate::ctx::STEP_INFO;
use crate::testing::{Error, Mock};
use crate::worker::guarded;

/// How long after a look that found nothing out comes the next; doubled each time.
const LOOK_AGAIN: u64 = 1_000_000;
/// Longest time between two looks.
const LOOK_AGAIN_MAX: u64 = 60_000_000;

/// A probe that looks at an attempt in doubt.
pub(super) struct Look {
    pub(super) id: OpId,
    pub(super) name: String,
    pub(super) attempt: u32,
    pub(super) timeout: Option<Duration>,
    pub(super) run: ProbeFn,
    /// Looks before this one.
    pub(super) looks: u32,
}

/// The end of a step whose code gives up what is in doubt.
pub(super) fn given_up(step: OpId, name: String, attempt: u32, failure: Failure) -> CommitCommand {
    let (elapsed, policy) = (everstep_core::Duration::ZERO, Some(RetryPolicy::none()));
    CommitCommand::FailStep { step, name, attempt, elapsed, failure, policy }
}

impl Engine {
    pub(super) fn plan_look(&mut self, run: RunId, epoch: u32, look: Box<Look>) {
        let Some(held) = self.held(run, epoch) else { return };
        held.running.insert(look.id, look.attempt);
        let delay = self.faults.delay();
        self.after(delay, Coming::Look { run, epoch, look });
    }

    pub(super) async fn look(&mut self, run: RunId, epoch: u32, mut look: Box<Look>) {
        let (step, attempt) = (look.id, look.attempt);
        let Some(held) = self.held(run, epoch) else { return };
        if held.machine().is_none_or(|machine| machine.doubt(step) != Some(attempt)) {
            // A person was faster.
            return;
        }
        let found = if self.faults.hiccup() {
            Err(Failure::new("Unreachable", "the receiver of the probe does not answer"))
        } else if self.mocks.get(&look.name).is_some_and(Mock::answers) {
            self.truth(run, step, attempt)
        } else {
            let info = info((run, epoch), step, &look.name, attempt);
            STEP_INFO.scope(info, guarded((look.run)(), look.timeout)).await
        };
        let Some(held) = self.held(run, epoch) else { return };
        match found {
            Ok(Some(result)) => {
                held.running.remove(&step);
                let (name, elapsed) = (look.name, everstep_core::Duration::ZERO);
                let end = CommitCommand::CompleteStep { step, name, attempt, elapsed, result };
                self.commit(run, epoch, vec![end]);
            }
            Ok(None) => {
                held.running.remove(&step);
                held.disprove(step, attempt);
                self.go_on(run, epoch);
            }
            Err(_) => {
                let wait = LOOK_AGAIN.saturating_mul(1 << look.looks.min(16)).min(LOOK_AGAIN_MAX);
                look.looks += 1;
                self.after(wait, Coming::Look { run, epoch, look });
            }
        }
    }

    /// What became of an attempt; an error while that is open.
    fn truth(&self, run: RunId, step: OpId, attempt: u32) -> Result<Option<Payload>, Failure> {
        let this = |e: &&super::Effect| {
            (e.info.run_id, e.info.step_id, e.info.attempt) == (run, step.0, attempt) && e.result.is_ok()
        };
        if let Some(effect) = self.effects.iter().rev().find(this) {
            return effect.result.clone().map(Some);
        }
        let to_come = self.coming.values().any(|coming| {
            matches!(coming, Coming::Effect { run: r, attempt: a, epoch }
                if *r == run && a.id == step && a.attempt == attempt
                    && self.runs.get(&run).is_some_and(|slot| slot.stalled == Some(*epoch)))
        });
        if to_come { Err(Failure::new("Unknown", "it may still happen")) } else { Ok(None) }
    }

    /// Somebody will be asked about a new doubt, where nobody does that by hand.
    pub(super) fn call_person(&mut self, run: RunId) {
        if let Some(delay) = self.faults.person() {
            self.after(delay, Coming::Person { run });
        }
    }

    /// Says what became of every attempt that waits for a person.
    pub(super) fn person(&mut self, run: RunId) -> Result<(), Error> {
        for doubt in self.run(run)?.doubts() {
            let Doubt { step, attempt, policy, .. } = doubt;
            if policy != DoubtPolicy::AskHuman {
                continue;
            }
            let resolution = match self.truth(run, step, attempt) {
                Ok(Some(result)) => Resolution::Completed(result),
                Ok(None) => Resolution::Retry,
                Err(_) => {
                    self.call_person(run);
                    continue;
                }
            };
            self.resolve(run, (step, attempt), resolution)?;
        }
        Ok(())
    }

    pub(super) fn resolve(
        &mut self,
        run: RunId,
        (step, attempt): (OpId, u32),
        resolution: Resolution,
    ) -> Result<(), Error> {
        let note = "said by the test".to_owned();
        let command = self.command(CommandBody::ResolveStep { step, attempt, resolution, note });
        self.request(run, &command)
    }
}
