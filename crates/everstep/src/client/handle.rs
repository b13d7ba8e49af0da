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
use crate::{ClientError, Memo, SearchAttributes, payload};

/// How long one long poll waits at the server.
pub(super) const POLL: Duration = Duration::from_secs(20);

/// How often an export may break off before it is given up.
const EXPORT_BREAKS_MAX: u32 = 5;

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
    /// Its search attributes; lists do not tell.
    pub search_attributes: SearchAttributes,
    /// Its memo; lists do not tell. [`decode`](crate::decode) reads an entry.
    pub memo: Memo,
    /// Everything that the server said.
    pub run: api::Run,
}

impl RunDescription {
    pub(crate) fn decode(mut run: api::Run) -> Result<Self, ClientError> {
        let protocol = |e: everstep_proto::InvalidMessage| ClientError::Protocol(e.to_string());
        let in_doubt = std::mem::take(&mut run.in_doubt_steps);
        let notes = (std::mem::take(&mut run.search_attributes), std::mem::take(&mut run.memo));
        let notes = wire::decode_notes(notes).map_err(protocol)?;
        Ok(Self {
            run_id: wire::parse_id("run_id", &run.run_id).map_err(protocol)?,
            status: wire::decode_run_status("status", run.status).map_err(protocol)?,
            search_attributes: notes.attributes,
            memo: notes.memo,
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

    /// The run as it stands, as the bytes of a `.history` file, for `everstep replay` and
    /// [`Replayer`](crate::testing::Replayer).
    ///
    /// ```no_run
    /// # async fn example(run: everstep::RunHandle<u64>) -> Result<(), Box<dyn std::error::Error>> {
    /// std::fs::write("tests/histories/count.history", run.export().await?)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn export(&self) -> Result<Vec<u8>, ClientError> {
        let request = api::ExportHistoryRequest { run: Some(self.run.clone()) };
        let mut breaks = 0;
        loop {
            let stream = retrying(|| {
                let (mut runs, request) = (self.client.runs(), request.clone());
                async move { runs.export_history(request).await }
            })
            .await?;
            match whole(stream).await {
                Ok(data) => return Ok(data),
                // A file is of one moment: it begins again.
                Err(status) if is_passing(&status) && breaks < EXPORT_BREAKS_MAX => breaks += 1,
                Err(status) => return Err(refused(status)),
            }
            tokio::time::sleep(pause(breaks)).await;
        }
    }
}

async fn whole(mut stream: tonic::Streaming<api::ExportHistoryResponse>) -> Result<Vec<u8>, tonic::Status> {
    let mut data = Vec::new();
    while let Some(piece) = stream.message().await? {
        data.extend_from_slice(&piece.data);
    }
    Ok(data)
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
