//! Starting and steering runs.

mod call;
mod handle;
mod query;
mod request;
mod steps;

#[cfg(test)]
mod tests;

use std::time::Duration;

use everstep_core::{ConflictPolicy, ReusePolicy, RunId, RunStatus};
use everstep_proto::api::namespace_service_client::NamespaceServiceClient;
use everstep_proto::api::run_service_client::RunServiceClient;
use everstep_proto::{api, wire};
use opentelemetry::propagation::Injector;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

pub use handle::{HistoryStream, RunDescription, RunHandle};
pub use request::RunRequest;
pub use steps::{StepInDoubt, StepPage, StepResolution};

use crate::{ClientError, RunError, payload};
use call::retrying;
pub(crate) use call::{pause, refused};

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
        };
        let page = retrying(|| {
            let (mut runs, request) = (self.runs(), request.clone());
            async move { runs.list_runs(request).await }
        })
        .await?;
        let runs = page.runs.into_iter().map(RunDescription::decode).collect::<Result<_, _>>()?;
        Ok(RunPage { runs, next_page_token: page.next_page_token })
    }

    /// Makes a namespace.
    ///
    /// # Errors
    /// [`ClientError`], with reason `NAMESPACE_ALREADY_EXISTS` when it is there.
    pub async fn create_namespace(&self, name: &str, description: &str) -> Result<(), ClientError> {
        let request =
            api::CreateNamespaceRequest { name: name.to_owned(), description: description.to_owned() };
        let mut namespaces = NamespaceServiceClient::new(self.channel.clone());
        namespaces.create_namespace(request).await.map_err(call::refused)?;
        Ok(())
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
        if let Some(outcome) = started.outcome
            && let Some(result) = RunHandle::outcome(outcome)?
        {
            return result;
        }
        let run = client.run_ref(started.run_id, String::new());
        RunHandle::new(client, run).result().await
    }

    async fn send<I: Serialize + ?Sized>(
        mut self,
        input: &I,
    ) -> Result<(Client, api::StartRunResponse), ClientError> {
        let input = payload::encode(input).map_err(|e| ClientError::Payload(e.to_string()))?;
        self.request.input = Some(wire::encode_payload(&input));
        if self.request.workflow_id.is_empty() {
            // Made up here, not by the server: a repeated request must name the same one.
            self.request.workflow_id.clone_from(&self.request.request_id);
        }
        let started = retrying(|| {
            let (mut runs, request) = (self.client.runs(), traced(self.request.clone()));
            async move { runs.start_run(request).await }
        })
        .await?;
        Ok((self.client, started))
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
