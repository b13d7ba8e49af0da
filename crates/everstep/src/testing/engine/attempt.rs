//! Attempts of steps: when they begin, what they do, when they end.

use std::sync::Arc;
use std::time::Duration;

use everstep_core::{CommitCommand, DoubtPolicy, Failure, OpId, Payload, RetryPolicy, RunId, Timestamp};

use super::{Coming, Engine, Mock};
use crate::StepInfo;
use crate::ctx::{self, STEP_INFO};
use crate::machine::AttemptFn;
use crate::testing::Effect;
use crate::testing::effects::date;
use crate::testing::faults::Death;
use crate::worker::guarded;

/// A step that runs longer than this shows as started, as in the product.
const SHOW_STARTED: Duration = Duration::from_millis(20);

/// An attempt that a workflow wants.
pub(super) struct Attempt {
    pub(super) id: OpId,
    pub(super) name: String,
    pub(super) attempt: u32,
    pub(super) policy: RetryPolicy,
    pub(super) timeout: Option<Duration>,
    pub(super) not_before: Option<Timestamp>,
    /// Set for a guarded step: it begins when its start is recorded.
    pub(super) guard: Option<DoubtPolicy>,
    pub(super) run: AttemptFn,
}

impl Attempt {
    fn start(&self, in_doubt: Option<DoubtPolicy>) -> CommitCommand {
        CommitCommand::StartStep { step: self.id, name: self.name.clone(), attempt: self.attempt, in_doubt }
    }
}

/// An attempt that has ended.
pub(super) struct Ended {
    id: OpId,
    name: String,
    attempt: u32,
    policy: RetryPolicy,
    elapsed: Duration,
    result: Result<Payload, Failure>,
}

impl Engine {
    pub(super) fn plan_attempt(&mut self, run: RunId, epoch: u32, attempt: Box<Attempt>) {
        let due = attempt.not_before.map_or(self.now, |at| at.as_micros().saturating_sub(self.skew));
        let now = self.now;
        let Some(held) = self.held(run, epoch) else { return };
        if due > now {
            held.waiting.insert(attempt.id, due);
        } else {
            held.running.insert(attempt.id, attempt.attempt);
        }
        self.at(due, Coming::Begin { run, epoch, attempt });
    }

    pub(super) fn begin(&mut self, run: RunId, epoch: u32, attempt: Box<Attempt>) {
        let Some(held) = self.held(run, epoch) else { return };
        held.waiting.remove(&attempt.id);
        held.running.insert(attempt.id, attempt.attempt);
        if let Some(policy) = attempt.guard {
            let start = attempt.start(Some(policy));
            held.starting.insert(attempt.id, attempt);
            return self.commit(run, epoch, vec![start]);
        }
        if self.faults.shows() {
            let start = attempt.start(None);
            self.after(0, Coming::Show { run, epoch, start });
        }
        self.run_attempt(run, epoch, attempt);
    }

    /// The effect comes after whatever a process does before.
    pub(super) fn run_attempt(&mut self, run: RunId, epoch: u32, attempt: Box<Attempt>) {
        let delay = self.faults.delay();
        self.after(delay, Coming::Effect { run, epoch, attempt });
    }

    /// The attempt runs as a whole, at one instant; how long it takes is said by its mock and by the faults.
    pub(super) async fn effect(&mut self, run: RunId, epoch: u32, attempt: Attempt) {
        let alive = self.held(run, epoch).is_some();
        let stalled = self.runs.get(&run).is_some_and(|slot| slot.stalled == Some(epoch));
        let which = format!("'{}' {}, attempt {}", attempt.name, attempt.id, attempt.attempt);
        if alive {
            if let Some(death) = self.faults.death() {
                self.die(run, death, &format!("before the effect of {which}"));
                if death == Death::Killed {
                    return;
                }
            }
        } else if !stalled {
            return;
        }
        let (result, elapsed) = self.execute(run, epoch, &attempt).await;
        if self.held(run, epoch).is_none() {
            return;
        }
        if let Some(death) = self.faults.death() {
            return self.die(run, death, &format!("after the effect of {which}"));
        }
        if elapsed > SHOW_STARTED && attempt.guard.is_none() {
            let start = attempt.start(None);
            self.after(micros(SHOW_STARTED), Coming::Show { run, epoch, start });
        }
        let Attempt { id, name, attempt, policy, .. } = attempt;
        let ended = Ended { id, name, attempt, policy, elapsed, result };
        self.after(micros(elapsed), Coming::End { run, epoch, ended: Box::new(ended) });
    }

    /// Calls the step's mock, or its closure, and keeps what it did; says how long that takes.
    async fn execute(
        &mut self,
        run: RunId,
        epoch: u32,
        attempt: &Attempt,
    ) -> (Result<Payload, Failure>, Duration) {
        let Attempt { id, name, timeout, .. } = attempt;
        let info = info((run, epoch), *id, name, attempt.attempt);
        let mock = self.mocks.get(name).cloned();
        let takes = mock.as_ref().map_or(Duration::ZERO, Mock::time);
        let running = called(info.clone(), mock, self.mocked_only, Arc::clone(&attempt.run));
        let result = STEP_INFO.scope(info.clone(), guarded(running, *timeout)).await;
        self.effects.push(Effect { info, at: date(self.time()), result: result.clone(), recorded: false });
        let delay = Duration::from_micros(self.faults.delay());
        match *timeout {
            Some(limit) if takes > limit => {
                let text = format!("the attempt took longer than {limit:?}");
                (result.and_then(|_| Err(Failure::new("StepTimeout", text))), limit)
            }
            // Being slow by a fault is no reason to fail.
            Some(limit) => (result, (takes + delay).min(limit)),
            None => (result, takes + delay),
        }
    }

    pub(super) fn show(&mut self, run: RunId, epoch: u32, start: CommitCommand) {
        let CommitCommand::StartStep { step, attempt, .. } = &start else { return };
        if self.held(run, epoch).is_some_and(|held| held.running.get(step) == Some(attempt)) {
            self.commit(run, epoch, vec![start]);
        }
    }

    pub(super) fn attempt_ended(&mut self, run: RunId, epoch: u32, ended: Ended) {
        let Some(held) = self.held(run, epoch) else { return };
        let Ended { id: step, name, attempt, policy, elapsed, result } = ended;
        held.running.remove(&step);
        if held.is_leaving() {
            return;
        }
        let elapsed = elapsed.into();
        let command = match result {
            Ok(result) => CommitCommand::CompleteStep { step, name, attempt, elapsed, result },
            Err(failure) => {
                CommitCommand::FailStep { step, name, attempt, elapsed, failure, policy: Some(policy) }
            }
        };
        self.commit(run, epoch, vec![command]);
    }
}

/// What a closure can know about the attempt that it runs in, or looks at.
pub(super) fn info((run_id, epoch): (RunId, u32), id: OpId, name: &str, attempt: u32) -> StepInfo {
    let idempotency_key = ctx::key(run_id, id);
    StepInfo { run_id, name: name.to_owned(), step_id: id.0, attempt, epoch, idempotency_key }
}

async fn called(
    info: StepInfo,
    mock: Option<Mock>,
    mocked_only: bool,
    closure: AttemptFn,
) -> Result<Payload, Failure> {
    if mock.is_none() && mocked_only {
        let text = format!("step '{}' has no mock, and this environment runs no other", info.name);
        return Err(Failure::new("NotMocked", text).non_retryable());
    }
    match mock.and_then(|mock| mock.answer(&info)) {
        Some(answer) => answer,
        None => closure().await,
    }
}

fn micros(time: Duration) -> u64 {
    everstep_core::Duration::from(time).as_micros()
}
