//! Hosting workflows: one stream to the server, one task per run.

mod asks;
mod build_id;
mod checks;
mod connection;
mod lease;
mod limits;
mod outbox;
mod run;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use everstep_core::{Payload, validate_name};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

pub use limits::WorkerLimits;
pub(crate) use run::guarded;

use crate::client::{default_identity, dial};
use crate::machine::{AttemptFuture, WorkflowFactory, WorkflowFuture};
use crate::step_ctx::{StepCtx, StepFn};
use crate::{Ctx, Failure, StepError, StepType, WorkerError, WorkflowError, payload};

/// Hosts workflows of one namespace.
#[derive(Debug)]
pub struct Worker {
    settings: Arc<Settings>,
}

pub(crate) struct Settings {
    pub(crate) endpoint: tonic::transport::Endpoint,
    pub(crate) namespace: String,
    pub(crate) task_queues: Vec<String>,
    pub(crate) identity: String,
    pub(crate) build_id: String,
    pub(crate) run_slots: u32,
    /// It takes no runs: histories are held against its code.
    pub(crate) check_only: bool,
    /// Types whose runs stay with this build.
    pub(crate) pinned: BTreeSet<String>,
    /// Builds whose runs this code goes on with.
    pub(crate) continues: Vec<String>,
    pub(crate) park_after: Duration,
    pub(crate) grace: Duration,
    pub(crate) workflows: BTreeMap<String, WorkflowFactory>,
    pub(crate) steps: BTreeMap<String, StepFn>,
    pub(crate) limits: WorkerLimits,
    pub(crate) places: asks::Places,
}

#[cfg(test)]
impl Settings {
    /// Of a worker that is never connected.
    pub(crate) fn of_tests() -> Self {
        Self {
            endpoint: tonic::transport::Endpoint::from_static("http://127.0.0.1:1"),
            namespace: "default".into(),
            task_queues: vec!["default".into()],
            identity: "w".into(),
            build_id: "b".into(),
            run_slots: 1,
            check_only: false,
            pinned: BTreeSet::new(),
            continues: Vec::new(),
            park_after: Duration::from_secs(3_600),
            grace: Duration::ZERO,
            workflows: BTreeMap::new(),
            steps: BTreeMap::new(),
            limits: WorkerLimits::new(1, 0.0),
            places: asks::Places::default(),
        }
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("namespace", &self.namespace)
            .field("task_queues", &self.task_queues)
            .field("identity", &self.identity)
            .field("build_id", &self.build_id)
            .field("workflows", &self.workflows.keys())
            .field("steps", &self.steps.keys())
            .finish_non_exhaustive()
    }
}

/// Settings of a worker to be.
#[must_use = "a worker is made by `build`"]
pub struct WorkerBuilder {
    address: String,
    namespace: String,
    task_queues: Vec<String>,
    identity: Option<String>,
    build_id: Option<String>,
    run_slots: u32,
    check_only: Option<bool>,
    pinned: BTreeSet<String>,
    continues: Vec<String>,
    park_after: Duration,
    grace: Duration,
    workflows: BTreeMap<String, WorkflowFactory>,
    steps: BTreeMap<String, StepFn>,
    step_slots: u32,
    steps_per_second: f64,
}

impl std::fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerBuilder").field("address", &self.address).finish_non_exhaustive()
    }
}

impl WorkerBuilder {
    /// The namespace to work for. Default `default`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Takes runs from this queue; call it again for more. Default `default`.
    pub fn task_queue(mut self, queue: impl Into<String>) -> Self {
        self.task_queues.push(queue.into());
        self
    }

    /// The worker's name in histories. Default: process id and host name.
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = Some(identity.into());
        self
    }

    /// Which code this is. A blocked run goes on when a worker with another build id connects. Default: a
    /// hash of the running executable.
    pub fn build_id(mut self, build_id: impl Into<String>) -> Self {
        self.build_id = Some(build_id.into());
        self
    }

    /// Runs held at one time. Default 1,000.
    pub fn run_slots(mut self, slots: u32) -> Self {
        self.run_slots = slots;
        self
    }

    /// Takes no runs, and lets histories be held against this code: `everstep worker check` and `everstep replay`.
    /// Default: whether EVERSTEP_CHECK_ONLY is 1, so that the binary to be deployed can be tried as it is.
    ///
    /// ```no_run
    /// # use everstep::{Ctx, Worker, WorkflowError};
    /// # async fn order(_: Ctx, (): ()) -> Result<(), WorkflowError> { Ok(()) }
    /// # async fn example() -> Result<(), everstep::WorkerError> {
    /// let candidate = Worker::builder("http://127.0.0.1:7417").build_id("2026-12").register("order", order);
    /// candidate.check_only(true).build()?.run().await
    /// # }
    /// ```
    pub fn check_only(mut self, only: bool) -> Self {
        self.check_only = Some(only);
        self
    }

    /// How long a run that only waits stays in memory. Default 1 s.
    pub fn park_after(mut self, idle: Duration) -> Self {
        self.park_after = idle;
        self
    }

    /// How long running steps get to finish when the worker stops. Default 20 s.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Hosts a workflow under a name.
    ///
    /// ```no_run
    /// # use everstep::{Ctx, Worker, WorkflowError};
    /// async fn double(_ctx: Ctx, n: u64) -> Result<u64, WorkflowError> {
    ///     Ok(2 * n)
    /// }
    /// # fn example() -> Result<(), everstep::WorkerError> {
    /// let worker = Worker::builder("http://127.0.0.1:7417").register("double", double).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn register<I, O, F, Fut>(mut self, name: impl Into<String>, workflow: F) -> Self
    where
        I: DeserializeOwned,
        O: Serialize,
        F: Fn(Ctx, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, WorkflowError>> + Send + 'static,
    {
        self.workflows.insert(name.into(), workflow_factory(workflow));
        self
    }

    /// Hosts a queued step; workflows ask for it with [`Ctx::run`]. A worker may host steps only.
    ///
    /// ```no_run
    /// # use everstep::{StepCtx, StepError, StepType, Worker};
    /// # struct Transcode;
    /// # impl StepType for Transcode {
    /// #     const NAME: &'static str = "transcode";
    /// #     type Input = String;
    /// #     type Output = u64;
    /// # }
    /// # async fn part(_: &str, _: u64) -> Result<(), std::io::Error> { Ok(()) }
    /// async fn transcode(step: StepCtx, url: String) -> Result<u64, StepError> {
    ///     for n in step.last_heartbeat().unwrap_or(0)..100 {
    ///         part(&url, n).await?;
    ///         step.heartbeat(&(n + 1));
    ///     }
    ///     Ok(100)
    /// }
    /// # fn example() -> Result<(), everstep::WorkerError> {
    /// let worker = Worker::builder("http://127.0.0.1:7417")
    ///     .task_queue("video")
    ///     .register_step::<Transcode, _, _>(transcode)
    ///     .step_slots(4)
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn register_step<S, F, Fut>(mut self, step: F) -> Self
    where
        S: StepType,
        F: Fn(StepCtx, S::Input) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S::Output, StepError>> + Send + 'static,
    {
        self.steps.insert(S::NAME.to_owned(), step_fn::<S, F, Fut>(step));
        self
    }

    /// Attempts of queued steps that run at one time. Default 100.
    pub fn step_slots(mut self, slots: u32) -> Self {
        self.step_slots = slots;
        self
    }

    /// Attempts of queued steps that begin in a second. Default 0: any number.
    pub fn steps_per_second(mut self, rate: f64) -> Self {
        self.steps_per_second = rate;
        self
    }

    /// Hosts a workflow whose runs stay with this build: only a worker of the same [`build_id`](Self::build_id), or one
    /// that [`continues`](Self::continues) it, takes them over. Keep such a worker until they have ended; until then
    /// `everstep build list` shows who waits for it.
    ///
    /// ```no_run
    /// # use everstep::{Ctx, Worker, WorkflowError};
    /// # async fn order(_: Ctx, (): ()) -> Result<(), WorkflowError> { Ok(()) }
    /// # async fn ping(_: Ctx, (): ()) -> Result<(), WorkflowError> { Ok(()) }
    /// # fn example() -> Result<(), everstep::WorkerError> {
    /// let worker = Worker::builder("http://127.0.0.1:7417")
    ///     .build_id("2026-12")
    ///     .continues("2026-11")
    ///     .register_pinned("order", order)
    ///     .register("ping", ping)
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn register_pinned<I, O, F, Fut>(mut self, name: impl Into<String>, workflow: F) -> Self
    where
        I: DeserializeOwned,
        O: Serialize,
        F: Fn(Ctx, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, WorkflowError>> + Send + 'static,
    {
        let name = name.into();
        self.pinned.insert(name.clone());
        self.register(name, workflow)
    }

    /// This code goes on with runs that belong to another build; call it again for more, at most 100. Try it first:
    /// `everstep worker check`.
    pub fn continues(mut self, build_id: impl Into<String>) -> Self {
        self.continues.push(build_id.into());
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`WorkerError::Setting`], [`WorkerError::Refused`] for an address that cannot be dialed.
    pub fn build(self) -> Result<Worker, WorkerError> {
        let setting = |field, problem: String| Err(WorkerError::Setting { field, problem });
        let mut task_queues = self.task_queues;
        if task_queues.is_empty() {
            task_queues.push("default".to_owned());
        }
        for (field, name) in
            [("namespace", &self.namespace)].into_iter().chain(task_queues.iter().map(|q| ("task queue", q)))
        {
            if let Err(e) = validate_name(field, name) {
                return setting(field, e.to_string());
            }
        }
        if self.workflows.is_empty() && self.steps.is_empty() {
            return setting("workflows", "are none: call register or register_step at least once".to_owned());
        }
        if let Some(e) = self.steps.keys().find_map(|name| validate_name("step name", name).err()) {
            return setting("step", e.to_string());
        }
        if self.step_slots == 0 || self.step_slots > limits::SLOTS_MAX {
            return setting("step_slots", "must be 1 to 100,000".to_owned());
        }
        if !self.steps_per_second.is_finite() || self.steps_per_second < 0.0 {
            return setting("steps_per_second", "must be 0 or a positive number".to_owned());
        }
        if self.run_slots == 0 || self.run_slots > 100_000 {
            return setting("run_slots", "must be 1 to 100,000".to_owned());
        }
        let build_id = match self.build_id {
            Some(id) => id,
            None => build_id::of_executable().to_owned(),
        };
        let settings = Settings {
            endpoint: dial(&self.address)?,
            namespace: self.namespace,
            task_queues,
            identity: self.identity.unwrap_or_else(default_identity),
            build_id,
            run_slots: self.run_slots,
            check_only: self.check_only.map_or_else(checks::only, Ok)?,
            pinned: self.pinned,
            continues: self.continues,
            park_after: self.park_after,
            grace: self.grace,
            workflows: self.workflows,
            steps: self.steps,
            limits: WorkerLimits::new(self.step_slots, self.steps_per_second),
            places: asks::Places::default(),
        };
        Ok(Worker { settings: Arc::new(settings) })
    }
}

/// Makes the type-erased form of a step's function.
pub(crate) fn step_fn<S, F, Fut>(step: F) -> StepFn
where
    S: StepType,
    F: Fn(StepCtx, S::Input) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<S::Output, StepError>> + Send + 'static,
{
    Arc::new(move |ctx: StepCtx, input: Payload| -> AttemptFuture {
        match payload::decode::<S::Input>(&input) {
            Ok(input) => {
                let running = step(ctx, input);
                Box::pin(async move {
                    let value = running.await.map_err(|e| e.0)?;
                    payload::encode_checked(&value)
                        .map_err(|(kind, problem)| Failure::new(kind, problem).non_retryable())
                })
            }
            Err(e) => {
                let problem = format!("the input is not of the step's type: {e}");
                let failure = Failure::new("Payload", problem).non_retryable();
                Box::pin(async move { Err(failure) })
            }
        }
    })
}

/// Makes the type-erased form of a workflow function.
#[doc(hidden)]
pub fn workflow_factory<I, O, F, Fut>(workflow: F) -> WorkflowFactory
where
    I: DeserializeOwned,
    O: Serialize,
    F: Fn(Ctx, I) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<O, WorkflowError>> + Send + 'static,
{
    Arc::new(move |ctx: Ctx, input: Payload| -> WorkflowFuture {
        match payload::decode::<I>(&input) {
            Ok(input) => {
                let running = workflow(ctx, input);
                Box::pin(async move {
                    let value = running.await?;
                    payload::encode_checked(&value)
                        .map_err(|(kind, problem)| WorkflowError::new(kind, problem))
                })
            }
            Err(e) => {
                let error =
                    WorkflowError::new("Payload", format!("the input is not of the workflow's type: {e}"));
                Box::pin(async move { Err(error) })
            }
        }
    })
}

impl Worker {
    /// Settings for a worker of the server at `address`, such as `http://127.0.0.1:7417`.
    pub fn builder(address: impl Into<String>) -> WorkerBuilder {
        WorkerBuilder {
            address: address.into(),
            namespace: "default".to_owned(),
            task_queues: Vec::new(),
            identity: None,
            build_id: None,
            run_slots: 1_000,
            check_only: None,
            pinned: BTreeSet::new(),
            continues: Vec::new(),
            park_after: Duration::from_secs(1),
            grace: Duration::from_secs(20),
            workflows: BTreeMap::new(),
            steps: BTreeMap::new(),
            step_slots: 100,
            steps_per_second: 0.0,
        }
    }

    /// What changes how many queued steps this worker takes while it works.
    pub fn limits(&self) -> WorkerLimits {
        self.settings.limits.clone()
    }

    /// Which code this worker says it runs.
    pub fn build_id(&self) -> &str {
        &self.settings.build_id
    }

    /// Works until SIGTERM or Ctrl-C, then lets running steps finish and gives the rest back. Reconnects
    /// by itself.
    ///
    /// # Errors
    /// [`WorkerError::Refused`] when the server will never take this worker.
    pub async fn run(self) -> Result<(), WorkerError> {
        self.run_until(stop_signal()).await
    }

    /// As [`Worker::run`], until `stop` is ready. Dropped before that, it ends at once and without a goodbye.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub async fn run_until(self, stop: impl Future<Output = ()> + Send) -> Result<(), WorkerError> {
        let (tell, told) = oneshot::channel::<()>();
        let told = async {
            let _ = told.await;
        };
        // A task, not a part of this future: the thread that blocks on `main` is none of the runtime's workers,
        // and every message to a run would go from one thread to the other and back.
        let mut task = JoinSet::new();
        task.spawn(connection::work(self.settings, told));
        let ended = tokio::select! {
            ended = task.join_next() => ended,
            () = stop => {
                drop(tell);
                task.join_next().await
            }
        };
        match ended {
            Some(Ok(result)) => result,
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // Nobody else aborts it, so the runtime is shutting down.
            Some(Err(_)) | None => Ok(()),
        }
    }
}

async fn stop_signal() {
    let interrupt = tokio::signal::ctrl_c();
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
        }
        Err(_) => {
            let _ = interrupt.await;
        }
    }
}
