//! Attempts of inline steps: when one begins, how it runs, what its end becomes.

use std::time::{Duration, Instant};

use everstep_core::{CommitCommand, Failure, OpId};
use opentelemetry::trace::FutureExt;
use tokio::task::AbortHandle;
use tokio::time::Instant as TokioInstant;

use super::RunTask;
use super::doubt::{Found, Probing};
use crate::ctx::{self, CtxMisuse, STEP_INFO};
use crate::machine::Work;
use crate::{StepInfo, trace};

/// A step that runs longer than this shows as started.
const SHOW_STARTED: Duration = Duration::from_millis(20);

/// An attempt that is not begun yet.
pub(super) struct Waiting {
    pub(super) at: TokioInstant,
    /// It is not due. A parked run is woken for it; one whose lease is just being renewed would not be.
    pub(super) has_timer: bool,
    /// A guarded attempt whose start is recorded: left undone, it would be in doubt.
    pub(super) started: bool,
    /// Looks that found nothing out, of a probe.
    pub(super) looks: u32,
    pub(super) work: Work,
}

pub(super) struct Running {
    pub(super) name: String,
    pub(super) attempt: u32,
    pub(super) show_at: Option<TokioInstant>,
    /// Of a probe.
    pub(super) probe: Option<Probing>,
}

pub(super) struct AttemptEnd {
    pub(super) id: OpId,
    pub(super) name: String,
    pub(super) attempt: u32,
    pub(super) elapsed: Duration,
    pub(super) result: Found,
}

impl RunTask {
    pub(super) fn begin(&mut self, work: Work) {
        let due = self.due_in(&work);
        if !due.is_zero() || !self.lease.may_start() || self.draining {
            return self.hold_back(work, due, false);
        }
        match self.start_of(work) {
            Ok(start) => self.commit(vec![start]),
            Err(work) => match *work {
                Work::Probe { id, name, attempt, timeout, run } => {
                    self.probe((id, name, attempt), timeout, run, 0);
                }
                work => self.run_attempt(work),
            },
        }
    }

    /// How long until an attempt is due.
    pub(super) fn due_in(&self, work: &Work) -> Duration {
        match work {
            Work::Attempt { not_before: Some(at), .. } => self.until(at.as_micros()),
            _ => Duration::ZERO,
        }
    }

    /// The lease is renewed any moment, or the run is lost; a drain starts nothing new.
    pub(super) fn hold_back(&mut self, work: Work, due: Duration, started: bool) {
        let (Work::Attempt { id, .. } | Work::Probe { id, .. }) = work else { return };
        let wait = due.max(if due.is_zero() { self.lease.length() / 10 } else { Duration::ZERO });
        let at = TokioInstant::now() + wait;
        self.waiting.insert(id, Waiting { at, has_timer: !due.is_zero(), started, looks: 0, work });
    }

    pub(super) fn run_attempt(&mut self, work: Work) {
        let Work::Attempt { id, name, attempt, policy, timeout, guard, run, .. } = work else { return };
        self.policies.insert(id, policy);
        let show_at = guard.is_none().then(|| TokioInstant::now() + SHOW_STARTED);
        self.running.insert(id, Running { name: name.clone(), attempt, show_at, probe: None });
        let effect = async move {
            if guard.is_some() {
                injected("worker.step_started").await?;
            }
            injected("worker.before_effect").await?;
            let result = run().await;
            injected("worker.after_effect").await?;
            result
        };
        self.spawn((id, name, attempt), timeout, effect, Found::Ended);
    }

    /// Runs an attempt, or a look at one.
    pub(super) fn spawn<T: Send + 'static>(
        &mut self,
        (id, name, attempt): (OpId, String, u32),
        timeout: Option<Duration>,
        effect: impl Future<Output = Result<T, Failure>> + Send + 'static,
        found: fn(Result<T, Failure>) -> Found,
    ) -> AbortHandle {
        let info = StepInfo {
            epoch: self.epoch,
            run_id: self.run,
            name: name.clone(),
            step_id: id.0,
            attempt,
            idempotency_key: ctx::key(self.run, id),
        };
        let context = trace::begin_attempt(&self.parent, self.run, &self.workflow, (id, &name, attempt));
        self.attempts.spawn(async move {
            let began = Instant::now();
            let running = STEP_INFO.scope(info, effect).with_context(context.clone());
            let result = guarded(running, timeout).await;
            let elapsed = began.elapsed();
            trace::end_attempt(&context, elapsed, result.as_ref().err().map(|f| f.kind.as_str()));
            AttemptEnd { id, name, attempt, elapsed, result: found(result) }
        })
    }

    pub(super) fn attempt_ended(&mut self, end: AttemptEnd) {
        let AttemptEnd { id: step, name, attempt, elapsed, result } = end;
        // A look that a person has made needless may end when the next attempt runs already.
        let looks = matches!(result, Found::Looked(_));
        let running =
            self.running.get(&step).is_some_and(|r| r.attempt == attempt && r.probe.is_some() == looks);
        let running = if running { self.running.remove(&step) } else { None };
        if self.leaving {
            return;
        }
        let result = match result {
            Found::Ended(result) => result,
            Found::Looked(look) => match self.looked(running, (step, &name, attempt), look) {
                Some(value) => Ok(value),
                None => return,
            },
        };
        let elapsed = elapsed.into();
        let command = match result {
            Ok(result) => {
                if let Some(at) = self.may_go_ahead() {
                    let end = CommitCommand::CompleteStep { step, name, attempt, elapsed, result };
                    return self.go_ahead(end, at);
                }
                self.results.insert(step, result.clone());
                CommitCommand::CompleteStep { step, name, attempt, elapsed, result }
            }
            Err(failure) => {
                let policy = self.policies.get(&step).cloned();
                CommitCommand::FailStep { step, name, attempt, elapsed, failure, policy }
            }
        };
        self.commit(vec![command]);
    }

    /// How long until an instant of database time, judged by the last event's.
    pub(super) fn until(&self, at_micros: i64) -> Duration {
        let Some((db, here)) = self.clock else { return Duration::ZERO };
        let left = at_micros.saturating_sub(db);
        Duration::from_micros(u64::try_from(left).unwrap_or(0)).saturating_sub(here.elapsed())
    }
}

/// A failpoint beside an effect.
async fn injected(point: &'static str) -> Result<(), Failure> {
    everstep_fault::at(point).await.map_err(|e| Failure::new("Injected", e.to_string()))
}

/// Runs an attempt: a panic and a timeout become failures like any other.
pub(crate) async fn guarded<T>(
    running: impl Future<Output = Result<T, Failure>> + Send,
    timeout: Option<Duration>,
) -> Result<T, Failure> {
    let caught = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(running));
    let caught = match timeout {
        Some(limit) => match tokio::time::timeout(limit, caught).await {
            Ok(caught) => caught,
            Err(_) => {
                return Err(Failure::new("StepTimeout", format!("the attempt took longer than {limit:?}")));
            }
        },
        None => caught.await,
    };
    caught.unwrap_or_else(|panic| {
        if let Some(misuse) = panic.downcast_ref::<CtxMisuse>() {
            return Err(Failure::new("CtxMisuse", misuse.to_string()).non_retryable());
        }
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(Failure::new("Panic", text))
    })
}
