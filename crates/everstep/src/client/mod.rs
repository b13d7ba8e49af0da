//! Starting and steering runs.

mod builds;
mod call;
mod handle;
mod namespaces;
mod query;
mod queues;
mod request;
mod result;
mod steps;
mod update;
mod with_start;

#[cfg(test)]
mod tests;

use std::time::Duration;

use everstep_core::{ConflictPolicy, RetryPolicy, ReusePolicy, RunId, RunStatus};
use everstep_proto::api::run_service_client::RunServiceClient;
use everstep_proto::{api, wire};
use opentelemetry::propagation::Injector;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

pub use builds::{Builds, CheckStream, CheckVerdict, CheckedHistory, HistoryCheck};
pub use handle::{HistoryStream, RunDescription, RunHandle};
pub use namespaces::{AttributeFilter, Comparison, NamespaceDescription, NamespaceUpdate};
pub use queues::{
    QueueDescription, QueueLimits, QueuePage, QueueWorker, QueuedStep, QueuedStepPage, WaitingType,
};
pub use request::RunRequest;
pub use steps::{StepInDoubt, StepPage, StepResolution};
pub use update::{UpdateHandle, UpdateRequest};

use crate::{ClientError, IntoAttribute, RunError, payload};
use call::retrying;
pub(crate) use call::{pause, refused};
use result::Outcome;

/// Largest answer that is read: a page of history with large payloads.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A connection to a server. Cheap to clone; connects on first use and again after a loss.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) channel: Channel,
    namespace: String,
    identity: String,
}

impl Client {
    /// Makes a client of the server at `address`, such as `http://127.0.0.1:7417`. Does not wait for it.
    ///
    /// # Errors
    /// [`ClientError::Address`].
    pub fn connect(address: &str) -> Result<Self, ClientError> {
        Ok(Self {
            channel: dial(address)?.connect_lazy(),
            namespace: "default".to_owned(),
            identity: default_identity(),
        })
    }

    /// The same connection, for another namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// The same connection, with another name in the histories that it causes.
    #[must_use]
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = identity.into();
        self
    }

    /// A workflow to start, whose result is an `R`.
    ///
    /// ```no_run
    /// # async fn example(client: everstep::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let run = client.workflow::<u64>("count").workflow_id("count/1").start(&10).await?;
    /// assert_eq!(run.result().await?, 10);
    /// # Ok(())
    /// # }
    /// ```
    pub fn workflow<R: DeserializeOwned>(&self, workflow_type: impl Into<String>) -> Start<R> {
        Start {
            client: self.clone(),
            request: api::StartRunRequest {
                namespace: self.namespace.clone(),
                workflow_type: workflow_type.into(),
                request_id: new_request_id(),
                identity: self.identity.clone(),
                ..api::StartRunRequest::default()
            },
            refused: None,
            result: std::marker::PhantomData,
        }
    }

    /// A run that exists already.
    pub fn handle<R: DeserializeOwned>(&self, run_id: RunId) -> RunHandle<R> {
        RunHandle::new(self.clone(), self.run_ref(run_id.to_string(), String::new()))
    }

    /// The latest run of a workflow id.
    pub fn latest<R: DeserializeOwned>(&self, workflow_id: impl Into<String>) -> RunHandle<R> {
        RunHandle::new(self.clone(), self.run_ref(String::new(), workflow_id.into()))
    }

    /// One page of runs, newest first; give the token of the page before, or an empty one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list(&self, filter: &RunListFilter, page_token: &str) -> Result<RunPage, ClientError> {
        let request = api::ListRunsRequest {
            namespace: self.namespace.clone(),
            workflow_id: filter.workflow_id.clone().unwrap_or_default(),
            workflow_type: filter.workflow_type.clone().unwrap_or_default(),
            statuses: filter.statuses.iter().map(|&s| wire::encode_run_status(s) as i32).collect(),
            page_size: filter.page_size,
            page_token: page_token.to_owned(),
            parent_run_id: filter.parent.map(|run| run.to_string()).unwrap_or_default(),
            attribute_filters: filter.attributes.iter().map(AttributeFilter::encode).collect(),
            waits_for_build: filter.waits_for_build.clone().unwrap_or_default(),
        };
        let page = retrying(|| {
            let (mut runs, request) = (self.runs(), request.clone());
            async move { runs.list_runs(request).await }
        })
        .await?;
        let runs = page.runs.into_iter().map(RunDescription::decode).collect::<Result<_, _>>()?;
        Ok(RunPage { runs, next_page_token: page.next_page_token })
    }

    pub(crate) fn runs(&self) -> RunServiceClient<Channel> {
        RunServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    fn run_ref(&self, run_id: String, workflow_id: String) -> api::RunRef {
        api::RunRef { namespace: self.namespace.clone(), run_id, workflow_id }
    }

    fn identity_text(&self) -> String {
        self.identity.clone()
    }
}

/// A start that was not sent yet.
#[must_use = "nothing starts until `start` is called"]
#[derive(Debug)]
pub struct Start<R> {
    client: Client,
    request: api::StartRunRequest,
    /// A memo that does not encode.
    refused: Option<String>,
    result: std::marker::PhantomData<fn() -> R>,
}

impl<R: DeserializeOwned> Start<R> {
    /// Your business key; one open run has it at a time. The server makes one up without it.
    pub fn workflow_id(mut self, id: impl Into<String>) -> Self {
        self.request.workflow_id = id.into();
        self
    }

    /// The queue whose workers run it. Default `default`.
    pub fn task_queue(mut self, queue: impl Into<String>) -> Self {
        self.request.task_queue = queue.into();
        self
    }

    /// Your id of this request: the same id gets the same run, however often it is sent.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request.request_id = id.into();
        self
    }

    /// The run's longest life.
    pub fn run_timeout(mut self, timeout: Duration) -> Self {
        self.request.run_timeout = Some(wire::encode_duration(timeout.into()));
        self
    }

    /// Tries again in a new run when one fails or outlives its run timeout, with the same input and all signals; the
    /// policy says when, and for how often. Not after a failure that is not retryable, nor once a run was asked to stop.
    ///
    /// ```no_run
    /// # use everstep::RetryPolicy;
    /// # async fn example(client: everstep::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let policy = RetryPolicy { maximum_attempts: 3, ..RetryPolicy::default() };
    /// let run = client.workflow::<u64>("count").retry(policy).start(&10).await?;
    /// let of_the_attempt_that_ended_well = run.result().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.request.retry_policy = Some(wire::encode_recorded_policy(&policy));
        self
    }

    /// The run has no worker before this time is over. Signals wait for that; a request to stop ends the run at once.
    ///
    /// ```no_run
    /// # async fn example(client: everstep::Client) -> Result<(), everstep::ClientError> {
    /// let hour = std::time::Duration::from_secs(3600);
    /// client.workflow::<u64>("count").start_delay(hour).start(&10).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn start_delay(mut self, delay: Duration) -> Self {
        self.request.start_delay = Some(wire::encode_duration(delay.into()));
        self
    }

    /// Says something about the run that lists can be filtered by: a search attribute that the namespace declares.
    ///
    /// ```no_run
    /// # async fn example(client: everstep::Client, order: u64) -> Result<(), everstep::ClientError> {
    /// let start = client.workflow::<()>("order").attribute("customer", "acme").memo("note", &"vip");
    /// start.start(&order).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn attribute(mut self, name: impl Into<String>, value: impl IntoAttribute) -> Self {
        if let Some(value) = value.into_attribute() {
            self.request.search_attributes.insert(name.into(), wire::encode_attribute(&value));
        }
        self
    }

    /// Says something about the run that is shown with it.
    pub fn memo<T: Serialize + ?Sized>(mut self, name: impl Into<String>, value: &T) -> Self {
        match payload::encode(value) {
            Ok(value) => drop(self.request.memo.insert(name.into(), wire::encode_payload(&value))),
            Err(e) => self.refused = Some(e.to_string()),
        }
        self
    }

    /// What to do when a closed run has the workflow id. Default: start another.
    pub fn reuse(mut self, policy: ReusePolicy) -> Self {
        self.request.reuse_policy = match policy {
            ReusePolicy::Allow => api::ReusePolicy::Allow,
            ReusePolicy::AllowIfNotCompleted => api::ReusePolicy::AllowIfNotCompleted,
            ReusePolicy::Reject => api::ReusePolicy::Reject,
        } as i32;
        self
    }

    /// What to do when an open run has the workflow id. Default: refuse.
    pub fn conflict(mut self, policy: ConflictPolicy) -> Self {
        self.request.conflict_policy = match policy {
            ConflictPolicy::Fail => api::ConflictPolicy::Fail,
            ConflictPolicy::UseExisting => api::ConflictPolicy::UseExisting,
            ConflictPolicy::TerminateExisting => api::ConflictPolicy::TerminateExisting,
        } as i32;
        self
    }

    /// Starts the run. Sent again by itself when the server cannot be reached for a moment; the request id
    /// keeps that from starting two.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn start<I: Serialize + ?Sized>(self, input: &I) -> Result<RunHandle<R>, ClientError> {
        let (client, started) = self.send(input).await?;
        let run = client.run_ref(started.run_id, String::new());
        Ok(RunHandle::new(client, run))
    }

    /// Starts the run and waits for its result, in one call where the run is short: what
    /// [`start`](Self::start) and then [`RunHandle::result`] do in two.
    ///
    /// ```no_run
    /// # async fn example(client: everstep::Client) -> Result<(), everstep::RunError> {
    /// let sum: u64 = client.workflow("count").workflow_id("count/1").execute(&10).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`RunError::Ended`] when it ended otherwise; [`RunError::Client`].
    pub async fn execute<I: Serialize + ?Sized>(mut self, input: &I) -> Result<R, RunError> {
        self.request.wait = Some(wire::encode_duration(handle::POLL.into()));
        let (client, started) = self.send(input).await?;
        let run = client.run_ref(started.run_id, String::new());
        let run = RunHandle::new(client, run);
        match started.outcome.map(RunHandle::outcome).transpose()? {
            Some(Outcome::Ended(result, None)) => result,
            Some(Outcome::Ended(_, Some(next))) => run.successor(next).result().await,
            Some(Outcome::Open) | None => run.result().await,
        }
    }

    /// The request, with its input.
    fn with_input<I: Serialize + ?Sized>(
        mut self,
        input: &I,
    ) -> Result<(Client, api::StartRunRequest), ClientError> {
        if let Some(problem) = self.refused {
            return Err(ClientError::Payload(problem));
        }
        let input = payload::encode(input).map_err(|e| ClientError::Payload(e.to_string()))?;
        self.request.input = Some(wire::encode_payload(&input));
        Ok((self.client, self.request))
    }

    async fn send<I: Serialize + ?Sized>(
        self,
        input: &I,
    ) -> Result<(Client, api::StartRunResponse), ClientError> {
        let (client, mut request) = self.with_input(input)?;
        if request.workflow_id.is_empty() {
            // Made up here, not by the server: a repeated request must name the same one.
            request.workflow_id.clone_from(&request.request_id);
        }
        let started = retrying(|| {
            let (mut runs, request) = (client.runs(), traced(request.clone()));
            async move { runs.start_run(request).await }
        })
        .await?;
        Ok((client, started))
    }
}

/// Which runs to list. Empty fields do not filter.
#[derive(Clone, Debug, Default)]
pub struct RunListFilter {
    /// One workflow id.
    pub workflow_id: Option<String>,
    /// One workflow type.
    pub workflow_type: Option<String>,
    /// Any of these.
    pub statuses: Vec<RunStatus>,
    /// Only runs that this run's workflow started.
    pub parent: Option<RunId>,
    /// All of these hold.
    pub attributes: Vec<AttributeFilter>,
    /// Only runs that wait for this build, which nobody connected has; `*` for whichever they wait for.
    pub waits_for_build: Option<String>,
    /// 1 to 1000; 0 for 100.
    pub page_size: i32,
}

/// A page of runs.
#[derive(Clone, Debug)]
pub struct RunPage {
    /// Newest first.
    pub runs: Vec<RunDescription>,
    /// Empty on the last page.
    pub next_page_token: String,
}

/// Settings of every connection to a server.
pub(crate) fn dial(address: &str) -> Result<Endpoint, ClientError> {
    let bad = |problem: String| ClientError::Address { address: address.to_owned(), problem };
    if address.starts_with("https://") {
        return Err(bad("there is no TLS yet: use http://, through a tunnel if it is far".to_owned()));
    }
    if !address.starts_with("http://") {
        return Err(bad("it must begin with http://".to_owned()));
    }
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|e| bad(e.to_string()))?;
    Ok(endpoint
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024))
}

pub(crate) fn new_request_id() -> String {
    Uuid::new_v4().to_string()
}

/// Host and process, so that a person can find who it was.
pub(crate) fn default_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{}@{}", std::process::id(), if host.is_empty() { "localhost" } else { host })
}

/// The request with the caller's trace context in its metadata.
fn traced<T>(message: T) -> tonic::Request<T> {
    struct Headers<'a>(&'a mut MetadataMap);
    impl Injector for Headers<'_> {
        fn set(&mut self, key: &str, value: String) {
            if let (Ok(key), Ok(value)) =
                (MetadataKey::from_bytes(key.as_bytes()), MetadataValue::try_from(value))
            {
                self.0.insert(key, value);
            }
        }
    }
    let mut request = tonic::Request::new(message);
    opentelemetry::global::get_text_map_propagator(|p| {
        p.inject_context(&opentelemetry::Context::current(), &mut Headers(request.metadata_mut()));
    });
    request
}
