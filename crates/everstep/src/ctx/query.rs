//! What others may ask a workflow: values that it shows, and handlers that read them.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use everstep_core::{Failure, Payload};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Ctx, Shared};
use crate::payload;

/// A handler, for any input.
pub(crate) type QueryFn = Arc<dyn Fn(Payload) -> Result<Payload, Failure> + Send + Sync>;

/// The handlers of one run, by name.
#[derive(Default)]
pub(crate) struct Queries(pub(crate) BTreeMap<String, QueryFn>);

impl fmt::Debug for Queries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A query handler refuses. Any error converts into it with `?`.
#[derive(Clone, Debug)]
pub struct QueryError(pub(crate) Failure);

impl QueryError {
    /// A failure of a kind of your own.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self(Failure::new(kind, message))
    }
}

impl<E: std::error::Error> From<E> for QueryError {
    fn from(error: E) -> Self {
        Self::new("Error", error.to_string())
    }
}

/// A value that the workflow and its handlers of updates set, and that its query handlers read. Cheap to clone; clones share the value.
///
/// Only the workflow's own code sets it. Who reads it never holds the workflow up, however long that takes.
#[derive(Debug)]
pub struct State<T> {
    shared: Weak<Shared>,
    value: Arc<Mutex<Arc<T>>>,
}

impl<T> Clone for State<T> {
    fn clone(&self) -> Self {
        Self { shared: Weak::clone(&self.shared), value: Arc::clone(&self.value) }
    }
}

impl<T: Clone + Send + Sync + 'static> State<T> {
    fn now(&self) -> Arc<T> {
        Arc::clone(&self.value.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A copy of the value.
    pub fn get(&self) -> T {
        (*self.now()).clone()
    }

    /// Looks at the value as it is now.
    pub fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.now())
    }

    /// Sets the value.
    ///
    /// # Panics
    /// Outside of the workflow's own code.
    #[track_caller]
    pub fn set(&self, value: T) {
        self.update(|old| *old = value);
    }

    /// Changes the value.
    ///
    /// # Panics
    /// Outside of the workflow's own code.
    #[track_caller]
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        Shared::check_polled_at(self.shared.as_ptr(), Location::caller());
        let mut value = self.now();
        // Changed beside the one that is shown: nobody waits for a change, and none is seen half done.
        let result = change(Arc::make_mut(&mut value));
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = value;
        if let Some(shared) = self.shared.upgrade() {
            shared.lock().changes += 1;
        }
        result
    }
}

impl Ctx {
    /// A value for query handlers to read.
    #[track_caller]
    pub fn state<T: Clone + Send + Sync + 'static>(&self, value: T) -> State<T> {
        self.shared.check_polled(Location::caller());
        State { shared: Arc::downgrade(&self.shared), value: Arc::new(Mutex::new(Arc::new(value))) }
    }

    /// Answers queries of this name, for as long as there is the run's history: also while it is parked and after
    /// its end, by replay. A handler only looks: it has no way to wait, and building steps or setting a [`State`] in
    /// it fails the query. It should be quick: the run does not go on until it is done, for 5 s at most.
    ///
    /// Call it before the workflow first waits; a later call of the same name replaces the handler. Names that begin
    /// with `everstep.` are built in.
    ///
    /// ```
    /// # use everstep::{Ctx, StepError, WorkflowError};
    /// async fn copy(ctx: Ctx, files: Vec<String>) -> Result<(), WorkflowError> {
    ///     let done = ctx.state(0);
    ///     ctx.on_query("progress", {
    ///         let (done, all) = (done.clone(), files.len());
    ///         move |(): ()| Ok(format!("{} of {all}", done.get()))
    ///     });
    ///     for file in files {
    ///         ctx.step("copy", move || {
    ///             let file = file.clone();
    ///             async move { Ok::<_, StepError>(file.len()) }
    ///         })
    ///         .await?;
    ///         done.update(|n| *n += 1);
    ///     }
    ///     Ok(())
    /// }
    /// ```
    #[track_caller]
    pub fn on_query<I, O, F>(&self, name: impl Into<String>, handler: F)
    where
        I: DeserializeOwned,
        O: Serialize,
        F: Fn(I) -> Result<O, QueryError> + Send + Sync + 'static,
    {
        self.shared.check_polled(Location::caller());
        let handler: QueryFn = Arc::new(move |input| {
            let input = payload::decode(&input).map_err(|e| {
                Failure::new("Payload", format!("the input is not of the handler's type: {e}"))
            })?;
            let value = handler(input).map_err(|e| e.0)?;
            payload::encode_checked(&value).map_err(|(kind, problem)| Failure::new(kind, problem))
        });
        let old = self.shared.lock().queries.0.insert(name.into(), handler);
        // Dropped without the lock: what a handler holds may want it.
        drop(old);
    }
}
