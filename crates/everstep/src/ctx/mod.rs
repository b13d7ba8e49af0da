//! What workflow code holds: the [`Ctx`] and the futures it builds.

mod child;
mod command;
mod continuation;
mod doubt;
mod external;
mod futures;
mod query;
mod queued;
mod state;
mod step;
mod update;
mod upsert;
mod version;

use std::ops::RangeInclusive;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use everstep_core::{OpId, RunId, replay::OpKind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

pub use child::{Child, ChildFuture, ChildHandle};
pub use continuation::ContinueAsNew;
pub(crate) use continuation::end_of;
pub(crate) use doubt::Guard;
pub use doubt::{InDoubt, Probe, ProbeFn, ProbeFuture};
pub use external::{External, ExternalOp};
pub use futures::{Canceled, Signal, Sleep};
pub(crate) use query::QueryFn;
pub use query::{QueryError, State};
pub use queued::{Queued, QueuedDoubt, StepType};
pub(crate) use state::{CtxMisuse, OpState, Shared, State as CtxState, StepOp, TimerOp};
pub(crate) use step::STEP_INFO;
pub use step::{Step, StepInfo, step_info};
pub use update::{Refused, Wait};
pub use version::Known;
pub(crate) use version::Unsupported;

use crate::StepError;

/// A run, as its workflow sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ctx {
    pub(crate) shared: Arc<Shared>,
}

/// What is known about a run from its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunInfo {
    /// The run.
    pub run_id: RunId,
    /// The caller's business key.
    pub workflow_id: String,
    /// Which workflow.
    pub workflow_type: String,
    /// Isolation boundary.
    pub namespace: String,
    /// Queue whose workers run it.
    pub task_queue: String,
    /// When it was started (database time).
    pub started_at: DateTime<Utc>,
    /// Which attempt of a run with a retry policy this is, from 1.
    pub attempt: u32,
    /// The run whose workflow started it as its child.
    pub parent: Option<RunId>,
    /// The run that it follows: one that continued as new, or failed and is tried again.
    pub previous: Option<RunId>,
}

impl Ctx {
    /// A recorded side effect. The closure runs in this worker, again for each attempt; its value is
    /// recorded before the workflow gets it. Nothing happens until the returned [`Step`] is awaited.
    ///
    /// The default retry policy tries for ever, 1 s after the first failure, doubling up to 60 s; see
    /// [`Step::retry`] and [`Step::no_retry`].
    ///
    /// ```
    /// # use everstep::{Ctx, RetryPolicy, StepError, StepFailed};
    /// # async fn charge(_: String) -> Result<u32, std::io::Error> { Ok(1) }
    /// # async fn example(ctx: Ctx) -> Result<u32, StepFailed> {
    /// let key = ctx.idempotency_key();
    /// ctx.step("charge", move || {
    ///     let key = key.clone();
    ///     async move { Ok::<_, StepError>(charge(key).await?) }
    /// })
    /// .retry(RetryPolicy { maximum_attempts: 5, ..RetryPolicy::default() })
    /// .await
    /// # }
    /// ```
    #[track_caller]
    pub fn step<T, F, Fut>(&self, name: impl Into<String>, closure: F) -> Step<T>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StepError>> + Send + 'static,
    {
        Step::build(Arc::clone(&self.shared), name.into(), closure, Location::caller())
    }

    /// Waits durably: the run may move to another worker meanwhile, and costs nothing while it waits.
    /// Never shorter than `duration`; at most 100 years.
    #[track_caller]
    pub fn sleep(&self, duration: Duration) -> Sleep {
        Sleep::build(Arc::clone(&self.shared), duration, Location::caller())
    }

    /// Waits for the next signal of this name that the workflow has not taken yet, in the order in which
    /// they were recorded. Awaits a decoding error if the signal's value is not a `T`.
    #[track_caller]
    pub fn signal<T: DeserializeOwned>(&self, name: impl Into<String>) -> Signal<T> {
        Signal::build(Arc::clone(&self.shared), name.into(), Location::caller())
    }

    /// Waits until somebody asks the run to stop.
    pub fn canceled(&self) -> Canceled {
        Canceled::build(Arc::clone(&self.shared))
    }

    /// True once somebody has asked the run to stop.
    pub fn is_cancel_requested(&self) -> bool {
        self.shared.lock().cancel_requested
    }

    /// Which version of a change in the workflow's code this run goes on with: 0 is the code before the change,
    /// and `range` says which versions the code still has. A run that has not come to this place yet gets the
    /// end of the range and keeps it; one whose history was recorded by code without the call gets 0.
    ///
    /// A run at a version outside of `range` is blocked, as under any other change of code that does not fit.
    ///
    /// ```
    /// # use everstep::{Ctx, StepError, StepFailed};
    /// # async fn example(ctx: Ctx) -> Result<u32, StepFailed> {
    /// let total = ctx.step("total", || async { Ok::<_, StepError>(90) }).await?;
    /// if ctx.version("fee", 0..=1) == 0 {
    ///     return Ok(total);
    /// }
    /// ctx.step("fee", move || async move { Ok::<_, StepError>(total + 10) }).await
    /// # }
    /// ```
    ///
    /// # Panics
    /// When the change's id breaks the naming rule, the range is empty, or the run has more than 1,000 changes.
    #[track_caller]
    pub fn version(&self, change_id: &str, range: RangeInclusive<u32>) -> u32 {
        let source = Location::caller();
        self.shared.check_polled(source);
        let mut state = self.shared.lock();
        let built = state.replay.len();
        let version = state.versions.choose(change_id, &range, built);
        drop(state);
        version.unwrap_or_else(|refused| refused.stop(source))
    }

    /// The time of the last recorded event: the same under replay, and never ahead of the clock.
    pub fn now(&self) -> DateTime<Utc> {
        self.shared.lock().now()
    }

    /// A random number that is the same under replay.
    #[track_caller]
    pub fn random(&self) -> u64 {
        self.shared.check_polled(Location::caller());
        self.shared.lock().random()
    }

    /// A random (version 4) UUID that is the same under replay.
    #[track_caller]
    pub fn uuid(&self) -> Uuid {
        self.shared.check_polled(Location::caller());
        let mut state = self.shared.lock();
        let bits = (u128::from(state.random()) << 64) | u128::from(state.random());
        uuid::Builder::from_u128(bits)
            .with_variant(uuid::Variant::RFC4122)
            .with_version(uuid::Version::Random)
            .into_uuid()
    }

    /// The idempotency key of the *next* step that is built: stable per run and step, the same for every
    /// attempt and under replay. Inside a step, [`step_info`] has it too.
    #[track_caller]
    pub fn idempotency_key(&self) -> String {
        self.shared.check_polled(Location::caller());
        let next = self.shared.lock().replay.len() + 1;
        key(self.shared.info.run_id, OpId(u32::try_from(next).unwrap_or(u32::MAX)))
    }

    /// What is known about the run from its beginning.
    pub fn run_info(&self) -> &RunInfo {
        &self.shared.info
    }

    /// True while recorded events are applied. Not for decisions: a workflow that does something else
    /// under replay is nondeterministic.
    pub fn is_replaying(&self) -> bool {
        self.shared.lock().replaying
    }

    /// Logs at INFO level with the run's ids, once: silent under replay.
    pub fn log(&self, message: impl std::fmt::Display) {
        if !self.is_replaying() {
            let info = &self.shared.info;
            tracing::info!(run_id = %info.run_id, workflow = %info.workflow_type, "{message}");
        }
    }

    pub(crate) fn sleep_from(&self, duration: Duration, source: &'static Location<'static>) -> Sleep {
        Sleep::build(Arc::clone(&self.shared), duration, source)
    }

    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

/// The idempotency key of a step.
pub(crate) fn key(run: RunId, step: OpId) -> String {
    format!("{run}/{}", step.0)
}

pub(crate) fn step_kind(name: &str) -> OpKind {
    OpKind::Step(name.to_owned())
}
