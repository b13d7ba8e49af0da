//! Guarded steps: an effect begins only when its start is recorded, and what is in doubt is probed.
//!
//! A guarded attempt goes three ways: its start is committed, the start is applied as recorded under this claim, the
//! effect begins. Nothing else begins such an effect.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use everstep_core::{CommitCommand, Event, EventBody, Failure, OpId, Payload, RetryPolicy};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::RunTask;
use super::attempts::{Running, Waiting};
use crate::ProbeFn;
use crate::machine::{Machine, Work};

/// How long after a look that found nothing out comes the next; doubled each time.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longest time between two looks.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(60);

/// What came of what was spawned.
pub(super) enum Found {
    /// An attempt has ended.
    Ended(Result<Payload, Failure>),
    /// A probe has looked.
    Looked(Result<Option<Payload>, Failure>),
}

/// A probe that runs.
pub(super) struct Probing {
    abort: AbortHandle,
    timeout: Option<Duration>,
    run: ProbeFn,
    /// Looks before this one.
    looks: u32,
}

/// The end of a step whose code gives up what is in doubt.
pub(super) fn given_up(step: OpId, name: String, attempt: u32, failure: Failure) -> CommitCommand {
    let (elapsed, policy) = (everstep_core::Duration::ZERO, Some(RetryPolicy::none()));
    CommitCommand::FailStep { step, name, attempt, elapsed, failure, policy }
}

impl RunTask {
    /// The start of a guarded attempt that may begin, to be committed; anything else comes back.
    pub(super) fn start_of(&mut self, work: Work) -> Result<CommitCommand, Box<Work>> {
        let may_start = self.due_in(&work).is_zero() && self.lease.may_start() && !self.draining;
        let Work::Attempt { id: step, name, attempt, guard: in_doubt @ Some(_), .. } = &work else {
            return Err(Box::new(work));
        };
        if !may_start {
            return Err(Box::new(work));
        }
        let (step, in_doubt) = (*step, *in_doubt);
        let start = CommitCommand::StartStep { step, name: name.clone(), attempt: *attempt, in_doubt };
        self.starting.insert(step, work);
        Ok(start)
    }

    /// What an event of this claim means for guarded attempts here.
    pub(super) fn note_guarded(&mut self, event: &Event) {
        match &event.body {
            EventBody::StepStarted { step, attempt: recorded, in_doubt: Some(_), .. }
                if event.epoch == self.epoch =>
            {
                let this = |work: &Work| matches!(work, Work::Attempt { attempt, .. } if attempt == recorded);
                if self.starting.get(step).is_some_and(this)
                    && let Some(work) = self.starting.remove(step)
                {
                    self.begin_started(work);
                }
            }
            // A person was faster: whatever is done here about the doubt counts for nothing.
            EventBody::StepResolved(resolved) => {
                let step = resolved.step;
                self.starting.remove(&step);
                self.waiting.remove(&step);
                self.results.remove(&step);
                if let Some(probing) = self.running.get(&step).and_then(|running| running.probe.as_ref()) {
                    probing.abort.abort();
                    self.running.remove(&step);
                }
            }
            _ => {}
        }
    }

    /// The start is durable. A drain waits for what would be in doubt otherwise.
    fn begin_started(&mut self, work: Work) {
        if self.lease.may_start() {
            self.run_attempt(work);
        } else {
            self.hold_back(work, Duration::ZERO, true);
        }
    }

    /// The instant has come that something waited for.
    pub(super) fn begin_again(&mut self, waiting: Waiting) {
        match waiting {
            Waiting { started: true, work, .. } => self.begin_started(work),
            Waiting { looks, work: Work::Probe { id, name, attempt, timeout, run }, .. }
                if self.lease.may_start() && !self.draining =>
            {
                self.probe((id, name, attempt), timeout, run, looks);
            }
            Waiting { work, .. } => self.begin(work),
        }
    }

    /// Asks the code whether an attempt in doubt had its effect.
    pub(super) fn probe(
        &mut self,
        (id, name, attempt): (OpId, String, u32),
        timeout: Option<Duration>,
        run: ProbeFn,
        looks: u32,
    ) {
        let look = Arc::clone(&run);
        let effect = async move { look().await };
        let abort = self.spawn((id, name.clone(), attempt), timeout, effect, Found::Looked);
        let probe = Some(Probing { abort, timeout, run, looks });
        self.running.insert(id, Running { name, attempt, show_at: None, probe });
    }

    /// A probe has looked: the value of the effect if it happened. If not, the next attempt begins; if nobody
    /// knows, the probe looks again.
    pub(super) fn looked(
        &mut self,
        running: Option<Running>,
        (id, name, attempt): (OpId, &str, u32),
        look: Result<Option<Payload>, Failure>,
    ) -> Option<Payload> {
        let Probing { timeout, run, looks, .. } = running?.probe?;
        match look {
            Ok(Some(value)) => return Some(value),
            Ok(None) => {
                if let Some(machine) = &mut self.machine {
                    machine.disprove(id, attempt);
                }
            }
            Err(failure) => {
                tracing::warn!(
                    run_id = %self.run, step = name, attempt, kind = failure.kind, message = failure.message,
                    "a probe does not know what became of the attempt"
                );
                let wait = LOOK_AGAIN.saturating_mul(1 << looks.min(16)).min(LOOK_AGAIN_MAX);
                let work = Work::Probe { id, name: name.to_owned(), attempt, timeout, run };
                let at = Instant::now() + wait;
                let looks = looks + 1;
                self.waiting.insert(id, Waiting { at, has_timer: false, started: false, looks, work });
            }
        }
        None
    }

    /// A guarded attempt that this task did not begin, under its own claim: nobody here can say how it stands, so
    /// the run is given back, which puts it in doubt.
    pub(super) fn check_begun(&mut self) {
        if self.machine.as_ref().is_some_and(Machine::has_begun) && !self.leaving {
            self.release("an attempt of a guarded step was under way".to_owned());
        }
    }
}
