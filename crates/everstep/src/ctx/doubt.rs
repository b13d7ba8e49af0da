//! What a step does about an attempt of which nobody can say whether it had its effect.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use everstep_core::{DoubtPolicy, Failure, Payload};
use serde::Serialize;

use crate::{StepError, payload};

/// What a step of [`Step::in_doubt`](crate::Step::in_doubt) does after its worker was lost in the middle of an attempt.
#[derive(Debug)]
pub enum InDoubt<T> {
    /// Runs the next attempt: the effect may happen twice.
    Retry,
    /// Asks whether the effect happened; see [`InDoubt::verify`].
    Verify(Probe<T>),
    /// Waits until a person says what became of it: `everstep step resolve`.
    AskHuman,
    /// Fails the step for good, with kind `InDoubt`.
    Fail,
}

/// Finds out whether an effect happened. Made by [`InDoubt::verify`].
pub struct Probe<T> {
    run: ProbeFn,
    value: std::marker::PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Probe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").finish_non_exhaustive()
    }
}

/// What a probe runs.
pub type ProbeFn = Arc<dyn Fn() -> ProbeFuture + Send + Sync>;

/// A running probe.
pub type ProbeFuture = Pin<Box<dyn Future<Output = Result<Option<Payload>, Failure>> + Send>>;

impl<T: Serialize + Send + 'static> InDoubt<T> {
    /// Asks the receiver. `Ok(Some(value))` says that the effect happened, and the step ends with the value;
    /// `Ok(None)` says that it did not *and will not*, and the next attempt begins; an error says that nobody
    /// knows yet, and the probe runs again, 1 s later at first and at most 60 s later.
    ///
    /// In the probe [`step_info`](crate::step_info) tells which attempt is in doubt, and its idempotency key.
    pub fn verify<F, Fut>(probe: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<T>, StepError>> + Send + 'static,
    {
        let run: ProbeFn = Arc::new(move || {
            let running = probe();
            Box::pin(async move {
                let Some(value) = running.await.map_err(|e| e.0)? else { return Ok(None) };
                let found = payload::encode_checked(&value);
                found.map(Some).map_err(|(kind, problem)| Failure::new(kind, problem))
            })
        });
        Self::Verify(Probe { run, value: std::marker::PhantomData })
    }
}

impl<T> InDoubt<T> {
    /// The same without the type of the step's value.
    pub(super) fn erased(self) -> Guard {
        match self {
            Self::Retry => Guard::Retry,
            Self::Verify(probe) => Guard::Verify(probe.run),
            Self::AskHuman => Guard::AskHuman,
            Self::Fail => Guard::Fail,
        }
    }
}

/// What the code of a guarded step does about a doubt.
#[derive(Clone)]
pub(crate) enum Guard {
    Retry,
    Verify(ProbeFn),
    AskHuman,
    Fail,
}

impl Guard {
    /// As it is recorded, for people.
    pub(crate) fn policy(&self) -> DoubtPolicy {
        match self {
            Self::Retry => DoubtPolicy::Retry,
            Self::Verify(_) => DoubtPolicy::Verify,
            Self::AskHuman => DoubtPolicy::AskHuman,
            Self::Fail => DoubtPolicy::Fail,
        }
    }
}
