//! Compensation: what was done is undone, last first, when the rest cannot be done.
//!
//! An undo is an ordinary step of the workflow, so it survives crashes as all steps do. It is built when it runs:
//! which undos there are, and in which order, follows from the recorded history alone.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use crate::{Ctx, Failure, StepFailed, WorkflowError};

type Undoing = Pin<Box<dyn Future<Output = Result<(), StepFailed>> + Send>>;
type Undo = Box<dyn FnOnce() -> Undoing + Send>;

/// What has been done so far and how to undo it. Cheap to clone.
#[derive(Clone, Default)]
pub struct Saga {
    undos: Arc<Mutex<Vec<Undo>>>,
}

impl fmt::Debug for Saga {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Saga").finish_non_exhaustive()
    }
}

/// A saga did not come to its end. Whatever could be undone has been.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", text(.cause, .undo_failed))]
pub struct SagaError {
    /// Why.
    pub cause: WorkflowError,
    /// Undos that failed for good, in the order in which they ran.
    pub undo_failed: Vec<StepFailed>,
}

fn text(cause: &WorkflowError, undo_failed: &[StepFailed]) -> String {
    let mut text = match cause {
        WorkflowError::Failed(failure) => format!("{}: {}", failure.kind, failure.message),
        WorkflowError::Canceled(details) => format!("canceled: {details}"),
        WorkflowError::Continued(_) => "went on in a new run".to_owned(),
    };
    for failed in undo_failed {
        text.push_str(&format!("; and its undo did not end well: {failed}"));
    }
    text
}

impl From<SagaError> for WorkflowError {
    /// The cause. If an undo failed too, the run fails, and the message says which.
    fn from(error: SagaError) -> Self {
        if error.undo_failed.is_empty() {
            return error.cause;
        }
        let message = error.to_string();
        match error.cause {
            Self::Failed(failure) => Self::Failed(Failure { message, ..failure }),
            Self::Canceled(_) | Self::Continued(_) => Self::new("UndoFailed", message),
        }
    }
}

/// Runs `body`. If it ends in an error, or the run is asked to stop before it has ended, what was done in
/// [`Saga::run`] is undone, last first, each undo to its end; then the error is given.
///
/// ```
/// # use everstep::{Ctx, StepError, WorkflowError};
/// async fn order(ctx: Ctx, cents: u32) -> Result<String, WorkflowError> {
///     let code = ctx.clone();
///     let done = everstep::saga(&ctx, |saga| async move {
///         let ctx = code;
///         let charge = ctx.step("charge", move || async move { Ok::<_, StepError>(format!("ch_{cents}")) });
///         let refund = {
///             let ctx = ctx.clone();
///             // `None`: nobody knows whether it was charged.
///             move |_charged: Option<&String>| ctx.step("refund", || async { Ok::<_, StepError>(()) })
///         };
///         let charged = saga.run(charge, refund).await?;
///         ctx.step("ship", || async { Ok::<_, StepError>(()) }).no_retry().await?;
///         Ok(charged)
///     });
///     Ok(done.await?)
/// }
/// ```
///
/// # Errors
/// [`SagaError`].
pub async fn saga<T, F>(ctx: &Ctx, body: impl FnOnce(Saga) -> F) -> Result<T, SagaError>
where
    F: Future<Output = Result<T, WorkflowError>>,
{
    let saga = Saga::default();
    let ended = {
        let mut body = pin!(body(saga.clone()));
        let mut canceled = pin!(ctx.canceled());
        poll_fn(|cx| {
            if let Poll::Ready(ended) = body.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            canceled.as_mut().poll(cx).map(|()| Err(WorkflowError::Canceled("as asked".to_owned())))
        })
        .await
        // The body is dropped here: steps that have begun are noted as undone or not.
    };
    let cause = match ended {
        Ok(value) => return Ok(value),
        // The workflow goes on: what was done stands.
        Err(cause @ WorkflowError::Continued(_)) => return Err(SagaError { cause, undo_failed: Vec::new() }),
        Err(cause) => cause,
    };
    let mut undo_failed = Vec::new();
    while let Some(undo) = saga.last() {
        undo_failed.extend(undo().await.err());
    }
    Err(SagaError { cause, undo_failed })
}

impl Saga {
    /// Awaits a step and notes how to undo it. `undo` gets the step's value; or `None` when the step may have had
    /// its effect and nobody knows: it was in doubt, it took longer than it may, or the run was asked to stop in
    /// the middle of it (the attempt may still be under way then). A step that failed otherwise is not undone.
    ///
    /// # Errors
    /// The step's.
    pub async fn run<T, F, U, V, X>(&self, step: F, undo: U) -> Result<T, StepFailed>
    where
        T: Clone + Send + 'static,
        F: IntoFuture<Output = Result<T, StepFailed>>,
        U: FnOnce(Option<&T>) -> V + Send + 'static,
        V: IntoFuture<Output = Result<X, StepFailed>>,
        V::IntoFuture: Send + 'static,
    {
        let undo = |value: Option<T>| -> Undo {
            Box::new(move || {
                let undoing = undo(value.as_ref()).into_future();
                Box::pin(async move { undoing.await.map(drop) })
            })
        };
        let mut begun = Begun { saga: self, undo: Some(undo), value: std::marker::PhantomData };
        let ended = step.into_future().await;
        match &ended {
            Ok(value) => begun.note(Some(value.clone())),
            Err(failed) if is_unknown(&failed.failure) => begun.note(None),
            Err(_) => begun.undo = None,
        }
        ended
    }

    fn last(&self) -> Option<Undo> {
        self.undos.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// Whether a step that failed like this may have had its effect.
fn is_unknown(failure: &Failure) -> bool {
    matches!(failure.kind.as_str(), "InDoubt" | "StepTimeout")
}

/// A step that has begun. Dropped in the middle, it is to be undone all the same.
struct Begun<'a, T, U: FnOnce(Option<T>) -> Undo> {
    saga: &'a Saga,
    undo: Option<U>,
    value: std::marker::PhantomData<fn(T)>,
}

impl<T, U: FnOnce(Option<T>) -> Undo> Begun<'_, T, U> {
    fn note(&mut self, value: Option<T>) {
        if let Some(undo) = self.undo.take() {
            self.saga.undos.lock().unwrap_or_else(PoisonError::into_inner).push(undo(value));
        }
    }
}

impl<T, U: FnOnce(Option<T>) -> Undo> Drop for Begun<'_, T, U> {
    fn drop(&mut self) {
        self.note(None);
    }
}
