//! Updates: what others may have a workflow do, and waiting for what handlers change.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use everstep_core::{Failure, Payload};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Ctx, QueryFn, Shared};
use crate::machine::WorkflowFactory;
use crate::worker::workflow_factory;
use crate::{WorkflowError, payload};

/// A handler, for any input.
#[derive(Clone)]
pub(crate) struct UpdateHandler {
    /// Whether the code agrees. What it gives is empty.
    pub(crate) validate: QueryFn,
    pub(crate) run: WorkflowFactory,
}

/// The handlers of one run, by name.
#[derive(Default)]
pub(crate) struct UpdateHandlers(pub(crate) BTreeMap<String, UpdateHandler>);

impl fmt::Debug for UpdateHandlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A workflow does not agree to an update. Any error converts into it with `?`.
#[derive(Clone, Debug)]
pub struct Refused(Failure);

impl Refused {
    /// Why, for a person.
    pub fn new(message: impl Into<String>) -> Self {
        Self::of_kind("Refused", message)
    }

    /// A failure of a kind of your own.
    pub fn of_kind(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self(Failure::new(kind, message))
    }
}

impl<E: std::error::Error> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::of_kind("Error", error.to_string())
    }
}

impl Ctx {
    /// Takes updates of this name: somebody asks the run to do something, and waits for what it returns.
    ///
    /// The validator says whether the workflow agrees, as it stands. It only looks, as a query's handler does; what it
    /// refuses leaves no trace. What it agrees to is recorded, and from then on the update is carried out whatever
    /// happens: `handler` is called, and its future runs beside the workflow's own code, with steps, sleeps and signals
    /// like that. It may fail, which is the answer then, and does not fail the run.
    ///
    /// When the workflow returns, handlers that have not ended are dropped, and their callers hear that the run has
    /// ended; [`updates_finished`](Self::updates_finished) waits for them.
    ///
    /// Call it before the workflow first waits; a later call of the same name replaces the handler.
    ///
    /// ```
    /// # use everstep::{Ctx, Refused, StepError, WorkflowError};
    /// async fn cart(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    ///     let total = ctx.state(0);
    ///     let agrees = |n: &u32| if *n > 0 { Ok(()) } else { Err(Refused::new("must be positive")) };
    ///     ctx.on_update("add", agrees, {
    ///         let total = total.clone();
    ///         move |ctx: Ctx, n: u32| {
    ///             let total = total.clone();
    ///             async move {
    ///                 ctx.step("reserve", move || async move { Ok::<_, StepError>(n) }).await?;
    ///                 Ok(total.update(|total| {
    ///                     *total += n;
    ///                     *total
    ///                 }))
    ///             }
    ///         }
    ///     });
    ///     ctx.wait(|| total.get() >= 10).await;
    ///     ctx.updates_finished().await;
    ///     Ok(total.get())
    /// }
    /// ```
    #[track_caller]
    pub fn on_update<I, O, V, F, Fut>(&self, name: impl Into<String>, validator: V, handler: F)
    where
        I: DeserializeOwned,
        O: Serialize,
        V: Fn(&I) -> Result<(), Refused> + Send + Sync + 'static,
        F: Fn(Ctx, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, WorkflowError>> + Send + 'static,
    {
        self.shared.check_polled(Location::caller());
        let validate: QueryFn = Arc::new(move |input| {
            let input: I = payload::decode(&input).map_err(|e| {
                Failure::new("Payload", format!("the input is not of the handler's type: {e}"))
            })?;
            validator(&input).map_err(|refused| refused.0)?;
            Ok(Payload::default())
        });
        let handler = UpdateHandler { validate, run: workflow_factory(handler) };
        let old = self.shared.lock().update_handlers.0.insert(name.into(), handler);
        // Dropped without the lock: what a handler holds may want it.
        drop(old);
    }

    /// Waits until a condition holds. It is looked at whenever the workflow's code goes on, and also when only a handler
    /// of an update does; it may depend on [`State`](crate::State)s and on what else the code itself changes.
    ///
    /// ```
    /// # async fn example(ctx: everstep::Ctx) {
    /// let paid = ctx.state(false);
    /// ctx.wait(|| paid.get()).await;
    /// # }
    /// ```
    #[track_caller]
    pub fn wait<F: FnMut() -> bool>(&self, condition: F) -> Wait<F> {
        Wait { shared: Arc::clone(&self.shared), condition, source: Location::caller(), listed: false }
    }

    /// Waits until no handler of an update is at work.
    #[track_caller]
    pub fn updates_finished(&self) -> Wait<impl FnMut() -> bool + use<>> {
        let shared = Arc::clone(&self.shared);
        self.wait(move || shared.lock().updates_running == 0)
    }
}

/// Waits for a condition; made with [`Ctx::wait`].
#[must_use = "nothing waits until it is awaited"]
pub struct Wait<F> {
    shared: Arc<Shared>,
    condition: F,
    source: &'static Location<'static>,
    /// It is listed among what the code waits for.
    listed: bool,
}

impl<F> fmt::Debug for Wait<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").field("source", &self.source).finish_non_exhaustive()
    }
}

impl<F> Unpin for Wait<F> {}

impl<F: FnMut() -> bool> Future for Wait<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<()> {
        self.shared.check_polled(self.source);
        // Asked without the lock: it may look at states, or at the ctx.
        if (self.condition)() {
            return Poll::Ready(());
        }
        if !std::mem::replace(&mut self.listed, true) {
            let source = self.source;
            self.shared.lock().waits.push(source);
        }
        Poll::Pending
    }
}

impl<F> Drop for Wait<F> {
    fn drop(&mut self) {
        if !self.listed {
            return;
        }
        let waits = &mut self.shared.lock().waits;
        if let Some(i) = waits.iter().position(|source| *source == self.source) {
            waits.remove(i);
        }
    }
}
