//! One run, from the outside.

use std::marker::PhantomData;
use std::time::Duration;

use everstep_core::{Event, RunId, RunStatus};
use everstep_proto::{api, wire};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Client;
use super::StepInDoubt;
use super::call::{is_passing, pause, refused, retrying};
use super::request::{Body, RunRequest};
use crate::{ClientError, RunError, payload};

/// How long one long poll waits at the server.
pub(super) const POLL: Duration = Duration::from_secs(20);

/// A run whose result is an `R`. Cheap to clone.
#[derive(Debug)]
pub struct RunHandle<R> {
    pub(super) client: Client,
    pub(super) run: api::RunRef,
    result: PhantomData<fn() -> R>,
}

impl<R> Clone for RunHandle<R> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), run: self.run.clone(), result: PhantomData }
    }
}

/// A run as the server describes it.
#[derive(Clone, Debug)]
pub struct RunDescription {
    /// The run.
    pub run_id: RunId,
    /// How it stands.
    pub status: RunStatus,
    /// Its steps in doubt, at most 100; lists do not tell.
    pub in_doubt: Vec<StepInDoubt>,
    /// Everything that the server said.
    pub run: api::Run,
}

impl RunDescription {
    pub(crate) fn decode(mut run: api::Run) -> Result<Self, ClientError> {
        let protocol = |e: everstep_proto::InvalidMessage| ClientError::Protocol(e.to_string());
        let in_doubt = std::mem::take(&mut run.in_doubt_steps);
        Ok(Self {
            run_id: wire::parse_id("run_id", &run.run_id).map_err(protocol)?,
            status: wire::decode_run_status("status", run.status).map_err(protocol)?,
            in_doubt: in_doubt.into_iter().map(StepInDoubt::decode).collect::<Result<_, _>>()?,
            run,
        })
    }
}

impl<R: DeserializeOwned> RunHandle<R> {
    pub(super) fn new(client: Client, run: api::RunRef) -> Self {
        Self { client, run, result: PhantomData }
    }

    /// The run's id, if it is known: a handle of [`Client::latest`] does not know it.
    pub fn run_id(&self) -> Option<RunId> {
        self.run.run_id.parse().ok()
    }

    /// Waits for the run to end, however long that takes, and gives its result. Cancel safe.
    ///
    /// # Errors
    /// [`RunError::Ended`] when it ended otherwise; [`RunError::Client`].
    pub async fn result(&self) -> Result<R, RunError> {
        loop {
            if let Some(result) = self.poll_result(POLL).await? {
                return result;
            }
        }
    }

    /// As [`RunHandle::result`], but waits at most `wait` (the server caps it at 60 s); `None` when the run
    /// is still open then.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn poll_result(&self, wait: Duration) -> Result<Option<Result<R, RunError>>, ClientError> {
        let request = api::GetResultRequest {
            run: Some(self.run.clone()),
            wait: Some(wire::encode_duration(wait.into())),
        };
        let answer = retrying(|| {
            let (mut runs, request) = (self.client.runs(), request.clone());
            async move { runs.get_result(request).await }
        })
        .await?;
        Self::outcome(answer)
    }

    /// What an answer says of the run's end; `None` while it is open.
    pub(super) fn outcome(
        answer: api::GetResultResponse,
    ) -> Result<Option<Result<R, RunError>>, ClientError> {
        let protocol = |e: everstep_proto::InvalidMessage| ClientError::Protocol(e.to_string());
        let status = wire::decode_run_status("status", answer.status).map_err(protocol)?;
        if !status.is_closed() {
            return Ok(None);
        }
        if status == RunStatus::Completed {
            let value = payload::decode(&wire::decode_payload(answer.result));
            return Ok(Some(value.map_err(|e| ClientError::Payload(e.to_string()).into())));
        }
        let failure = wire::decode_failure("failure", answer.failure).map_err(protocol)?;
        Ok(Some(Err(RunError::Ended { status, failure })))
    }

    /// A message to the run. Await it.
    pub fn signal<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> RunRequest {
        let input = payload::encode(value).map_err(|e| e.to_string());
        self.request(Body::Signal { name: name.to_owned(), input })
    }

    /// Asks the run to stop in its own time. Await it.
    pub fn cancel(&self, reason: &str) -> RunRequest {
        self.request(Body::Cancel { reason: reason.to_owned() })
    }

    /// Stops the run now; its workflow gets no say. Await it.
    pub fn terminate(&self, reason: &str) -> RunRequest {
        self.request(Body::Terminate { reason: reason.to_owned() })
    }

    fn request(&self, body: Body) -> RunRequest {
        RunRequest::new(&self.client, &self.run, body)
    }

    /// How the run stands.
    ///
    /// # Errors
    /// [`ClientError`], with reason `RUN_NOT_FOUND` when there is no such run.
    pub async fn describe(&self) -> Result<RunDescription, ClientError> {
        let request = api::GetRunRequest { run: Some(self.run.clone()) };
        let answer = retrying(|| {
            let (mut runs, request) = (self.client.runs(), request.clone());
            async move { runs.get_run(request).await }
        })
        .await?;
        RunDescription::decode(
            answer.run.ok_or_else(|| ClientError::Protocol("no run in the answer".into()))?,
        )
    }

    /// The run's events after `after`, as a stream; with `follow`, until the run ends. It goes on where it was
    /// when the connection breaks.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn history(&self, after: u64, follow: bool) -> Result<HistoryStream, ClientError> {
        let request =
            api::GetHistoryRequest { run: Some(self.run.clone()), after_seq: after, follow, limit: 0 };
        let stream = open_history(&self.client, &request).await?;
        let client = self.client.clone();
        Ok(HistoryStream { client, request, stream: Some(stream), page: Vec::new().into_iter(), breaks: 0 })
    }
}

async fn open_history(client: &Client, request: &api::GetHistoryRequest) -> Result<Pages, ClientError> {
    retrying(|| {
        let (mut runs, request) = (client.runs(), request.clone());
        async move { runs.get_history(request).await }
    })
    .await
}

type Pages = tonic::Streaming<api::GetHistoryResponse>;

/// Events of a run, in order.
#[derive(Debug)]
pub struct HistoryStream {
    client: Client,
    /// What would bring the events that are still to come.
    request: api::GetHistoryRequest,
    /// None once it broke, until it is opened again.
    stream: Option<Pages>,
    page: std::vec::IntoIter<everstep_proto::history::Event>,
    /// How often it broke since the last event.
    breaks: u32,
}

impl HistoryStream {
    /// The next event, or `None` after the last. Cancel safe.
    ///
    /// # Errors
    /// [`ClientError`]; the stream is over then.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(event) = self.page.next() {
                let decoded = wire::decode_event(event).map_err(|e| ClientError::Protocol(e.to_string()))?;
                (self.request.after_seq, self.breaks) = (decoded.event.seq, 0);
                return Ok(Some(decoded.event));
            }
            let Some(stream) = &mut self.stream else {
                // A server that answers and breaks off again and again is asked less and less often.
                tokio::time::sleep(pause(self.breaks)).await;
                self.stream = Some(open_history(&self.client, &self.request).await?);
                continue;
            };
            match stream.message().await {
                Ok(Some(page)) => self.page = page.events.into_iter(),
                Ok(None) => return Ok(None),
                Err(status) if is_passing(&status) => {
                    self.stream = None;
                    self.breaks += 1;
                }
                Err(status) => return Err(refused(status)),
            }
        }
    }
}
