//! Hosting workflows: one stream to the server, one task per run.

mod asks;
mod build_id;
mod connection;
mod lease;
mod outbox;
mod run;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use everstep_core::{Payload, validate_name};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

pub(crate) use run::guarded;

use crate::client::{default_identity, dial};
use crate::machine::{WorkflowFactory, WorkflowFuture};
use crate::{Ctx, WorkerError, WorkflowError, payload};

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
    pub(crate) park_after: Duration,
    pub(crate) grace: Duration,
    pub(crate) workflows: BTreeMap<String, WorkflowFactory>,
    pub(crate) places: asks::Places,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("namespace", &self.namespace)
            .field("task_queues", &self.task_queues)
            .field("identity", &self.identity)
            .field("build_id", &self.build_id)
            .field("workflows", &self.workflows.keys())
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
    park_after: Duration,
    grace: Duration,
    workflows: BTreeMap<String, WorkflowFactory>,
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
        if self.workflows.is_empty() {
            return setting("workflows", "are none: call register at least once".to_owned());
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
            park_after: self.park_after,
            grace: self.grace,
            workflows: self.workflows,
            places: asks::Places::default(),
        };
        Ok(Worker { settings: Arc::new(settings) })
    }
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
            park_after: Duration::from_secs(1),
            grace: Duration::from_secs(20),
            workflows: BTreeMap::new(),
        }
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
