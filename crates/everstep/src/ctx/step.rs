//! Steps.

use std::marker::PhantomData;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use everstep_core::{Failure, OpId, RetryPolicy, RunId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{InDoubt, OpState, Shared, StepOp, step_kind};
use crate::{StepError, StepFailed, payload};

tokio::task_local! {
    pub(crate) static STEP_INFO: StepInfo;
}

/// What a step's closure can know about the attempt that it runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepInfo {
    /// The run.
    pub run_id: RunId,
    /// The step's name.
    pub name: String,
    /// The step's number within the run.
    pub step_id: u32,
    /// The attempt, from 1.
    pub attempt: u32,
    /// How often a worker has been given the run, this time included: a fencing token for receivers that can
    /// refuse what comes from an earlier holder.
    pub epoch: u32,
    /// Stable per run and step: what to give a receiver so that a repeated attempt has no second effect.
    pub idempotency_key: String,
}

/// The attempt that the calling code runs in; `None` outside a step.
///
/// ```
/// # use everstep::{Ctx, StepError, StepFailed};
/// # async fn example(ctx: Ctx) -> Result<u32, StepFailed> {
/// ctx.step("which attempt", || async {
///     Ok::<_, StepError>(everstep::step_info().map_or(0, |info| info.attempt))
/// })
/// .await
/// # }
/// ```
pub fn step_info() -> Option<StepInfo> {
    STEP_INFO.try_with(Clone::clone).ok()
}

/// A step that was built and not awaited yet; await it to run it.
///
/// Dropping a step that runs lets the attempt finish and be recorded; nobody sees its value.
#[must_use = "a step does nothing until it is awaited"]
#[derive(Debug)]
pub struct Step<T> {
    shared: Arc<Shared>,
    id: OpId,
    value: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned + Send + 'static> Step<T> {
    pub(super) fn build<F, Fut>(
        shared: Arc<Shared>,
        name: String,
        closure: F,
        source: &'static Location<'static>,
    ) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StepError>> + Send + 'static,
    {
        let attempt: super::state::Attempt = Arc::new(move || {
            let running = closure();
            Box::pin(async move {
                let value = running.await.map_err(|e| e.0)?;
                payload::encode_checked(&value)
                    .map_err(|(kind, problem)| Failure::new(kind, problem).non_retryable())
            })
        });
        shared.check_polled(source);
        let id = {
            let mut state = shared.lock();
            let id = state.replay.build(step_kind(&name), source);
            state.ops.push(OpState::Step(Box::new(StepOp {
                name,
                attempt,
                policy: shared.step_retry.clone(),
                timeout: None,
                requested: false,
                dropped: false,
                recorded: 0,
                retry_at: None,
                outcome: None,
                in_flight: false,
                guard: None,
                begun: false,
                doubt: None,
            })));
            id
        };
        Self { shared, id, value: PhantomData }
    }
}

impl<T> Step<T> {
    /// When and how often a failed attempt is followed by another.
    pub fn retry(self, policy: RetryPolicy) -> Self {
        if let Some(step) = self.shared.lock().step(self.id) {
            step.policy = policy;
        }
        self
    }

    /// One attempt only.
    pub fn no_retry(self) -> Self {
        self.retry(RetryPolicy::none())
    }

    /// Guards the step: the start of each attempt is recorded before its effect begins, which costs a round trip.
    /// When the worker is lost before the end is recorded, the attempt is *in doubt*: that shows in the history,
    /// in `everstep run show` and in `everstep step list`, and this says what to do about it.
    ///
    /// An attempt that fails or takes too long is not in doubt: what follows is up to [`Step::retry`].
    ///
    /// ```
    /// # use everstep::{Ctx, InDoubt, StepError, StepFailed};
    /// # async fn charge(_: String) -> Result<u32, std::io::Error> { Ok(1) }
    /// # async fn find_charge(_: String) -> Result<Option<u32>, std::io::Error> { Ok(None) }
    /// # async fn example(ctx: Ctx) -> Result<u32, StepFailed> {
    /// let key = ctx.idempotency_key();
    /// let same = key.clone();
    /// ctx.step("charge", move || {
    ///     let key = key.clone();
    ///     async move { Ok::<_, StepError>(charge(key).await?) }
    /// })
    /// .in_doubt(InDoubt::verify(move || {
    ///     let key = same.clone();
    ///     async move { Ok(find_charge(key).await?) }
    /// }))
    /// .await
    /// # }
    /// ```
    pub fn in_doubt(self, policy: InDoubt<T>) -> Self {
        if let Some(step) = self.shared.lock().step(self.id) {
            step.guard = Some(policy.erased());
        }
        self
    }

    /// Ends an attempt that takes longer, as failed with kind `StepTimeout`.
    pub fn timeout(self, timeout: Duration) -> Self {
        if let Some(step) = self.shared.lock().step(self.id) {
            step.timeout = Some(timeout);
        }
        self
    }
}

impl<T: DeserializeOwned> Future for Step<T> {
    type Output = Result<T, StepFailed>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.id;
        let mut state = self.shared.lock();
        let Some(step) = state.step(id) else { return Poll::Pending };
        let name = || step.name.clone();
        match &step.outcome {
            Some(Ok(value)) => Poll::Ready(payload::decode(value).map_err(|e| StepFailed {
                step: name(),
                failure: Failure::new("Payload", format!("the recorded result is not of this type: {e}")),
            })),
            Some(Err(failure)) => Poll::Ready(Err(StepFailed { step: name(), failure: failure.clone() })),
            None => {
                if let Some(failure) = step.unfit() {
                    return Poll::Ready(Err(StepFailed { step: name(), failure }));
                }
                if !step.requested {
                    step.requested = true;
                    state.fresh.push(id);
                }
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Step<T> {
    fn drop(&mut self) {
        if let Some(step) = self.shared.lock().step(self.id) {
            step.dropped = true;
        }
    }
}
