//! Whether the code of a build fits the histories that there are.

use everstep_core::{Blocked, RunId};
use everstep_proto::api::build_service_client::BuildServiceClient;
use everstep_proto::api::check_histories_response::Verdict;
use everstep_proto::{api, wire};
use tonic::transport::Channel;

use super::call::{refused, retrying};
use super::{ANSWER_BYTES_MAX, Client, new_request_id};
use crate::ClientError;

/// A file travels in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// What to hold against the code of a connected worker.
#[derive(Clone, Debug, Default)]
#[must_use = "it does nothing until it is given to Client::check_histories"]
pub struct HistoryCheck {
    build_id: String,
    sample: u32,
    workflow_types: Vec<String>,
    open_only: bool,
    files: Vec<(String, Vec<u8>)>,
}

impl HistoryCheck {
    /// Against a worker of this build; an empty one stands for any worker that only checks.
    pub fn of_build(build_id: impl Into<String>) -> Self {
        Self { build_id: build_id.into(), ..Self::default() }
    }

    /// Checks this many runs of the deployment, at most 10,000: open ones first.
    pub fn sample(mut self, runs: u32) -> Self {
        self.sample = runs;
        self
    }

    /// Only runs of this type; call it again for more.
    pub fn workflow_type(mut self, name: impl Into<String>) -> Self {
        self.workflow_types.push(name.into());
        self
    }

    /// Only open runs.
    pub fn open_only(mut self, only: bool) -> Self {
        self.open_only = only;
        self
    }

    /// Checks the bytes of a `.history` file too.
    pub fn file(mut self, label: impl Into<String>, data: Vec<u8>) -> Self {
        self.files.push((label.into(), data));
        self
    }

    /// As the wire has it: what is wanted, then the files in pieces.
    fn requests(self, namespace: &str) -> impl Iterator<Item = api::CheckHistoriesRequest> + Send + use<> {
        let first = api::CheckHistoriesRequest {
            namespace: namespace.to_owned(),
            build_id: self.build_id,
            sample: self.sample,
            workflow_types: self.workflow_types,
            open_only: self.open_only,
            ..api::CheckHistoriesRequest::default()
        };
        let files = self.files.into_iter().flat_map(|(label, data)| {
            // An empty file is sent too: the server says what is wrong with it.
            let pieces = data.len().div_ceil(PIECE_BYTES).max(1);
            (0..pieces).map(move |i| {
                let from = i * PIECE_BYTES;
                let piece = &data[from..data.len().min(from + PIECE_BYTES)];
                api::CheckHistoriesRequest {
                    label: label.clone(),
                    data: piece.to_vec().into(),
                    last: i + 1 == pieces,
                    ..api::CheckHistoriesRequest::default()
                }
            })
        });
        std::iter::once(first).chain(files)
    }
}

/// What [`Client::list_builds`] gives.
pub type Builds = api::ListBuildsResponse;

/// One history that was held against the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedHistory {
    /// The file; empty for a run of the deployment.
    pub label: String,
    /// The run.
    pub run_id: RunId,
    /// Which workflow.
    pub workflow_type: String,
    /// Length of its history.
    pub events: u64,
    /// Build of the worker that had it last.
    pub recorded_build_id: String,
    /// What came of it.
    pub verdict: CheckVerdict,
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckVerdict {
    /// The code does what the history says.
    Passed,
    /// It does not.
    Mismatch {
        /// The first event that differs, both sides, where in the code, and which build.
        blocked: Box<Blocked>,
        /// Kind of that event.
        event_kind: String,
    },
    /// It was not checked; why.
    Skipped(String),
}

/// What comes of a [`HistoryCheck`], one history after the other.
#[derive(Debug)]
pub struct CheckStream {
    stream: tonic::Streaming<api::CheckHistoriesResponse>,
    ended: bool,
}

impl CheckStream {
    /// The next history, or `None` after the last.
    ///
    /// # Errors
    /// [`ClientError`]; the stream is over then.
    pub async fn next(&mut self) -> Result<Option<CheckedHistory>, ClientError> {
        if self.ended {
            return Ok(None);
        }
        let protocol = |e: everstep_proto::InvalidMessage| ClientError::Protocol(e.to_string());
        let message = self.stream.message().await.map_err(refused)?;
        let message =
            message.ok_or_else(|| ClientError::Protocol("the checks ended without a sum".into()))?;
        let verdict = match message.verdict {
            Some(Verdict::Summary(_)) => {
                self.ended = true;
                return Ok(None);
            }
            Some(Verdict::Passed(api::Passed {})) => CheckVerdict::Passed,
            Some(Verdict::Mismatch(blocked)) => CheckVerdict::Mismatch {
                blocked: Box::new(wire::decode_blocked(blocked).map_err(protocol)?),
                event_kind: message.event_kind,
            },
            Some(Verdict::Skipped(why)) => CheckVerdict::Skipped(why),
            None => CheckVerdict::Skipped("the server is newer than this client".to_owned()),
        };
        Ok(Some(CheckedHistory {
            label: message.label,
            run_id: wire::parse_id("run_id", &message.run_id).map_err(protocol)?,
            workflow_type: message.workflow_type,
            events: message.events,
            recorded_build_id: message.recorded_build_id,
            verdict,
        }))
    }
}

impl Client {
    /// Holds histories against the code of a worker that is connected to the server: nothing runs, and nothing is
    /// recorded.
    ///
    /// ```no_run
    /// use everstep::client::{CheckVerdict, HistoryCheck};
    /// # async fn example(client: everstep::Client) -> Result<(), everstep::ClientError> {
    /// let mut checks = client.check_histories(HistoryCheck::of_build("2026-12").sample(100)).await?;
    /// while let Some(checked) = checks.next().await? {
    ///     if let CheckVerdict::Mismatch { blocked, .. } = checked.verdict {
    ///         println!("{}: the history has {}, the code {}", checked.run_id, blocked.expected, blocked.produced);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`], with reason `NO_WORKER` when no such worker is connected to the node that was asked.
    pub async fn check_histories(&self, check: HistoryCheck) -> Result<CheckStream, ClientError> {
        let requests = futures::stream::iter(check.requests(&self.namespace));
        let answer = self.builds().check_histories(requests).await.map_err(refused)?;
        Ok(CheckStream { stream: answer.into_inner(), ended: false })
    }

    /// The builds that workers are connected with, and the runs that nobody has the code for.
    ///
    /// ```no_run
    /// # async fn example(client: everstep::Client) -> Result<(), everstep::ClientError> {
    /// for waiting in client.list_builds().await?.waiting {
    ///     println!("{} runs of '{}' wait for build {}", waiting.runs, waiting.workflow_type, waiting.build_id);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_builds(&self) -> Result<Builds, ClientError> {
        let request = api::ListBuildsRequest { namespace: self.namespace.clone() };
        retrying(|| {
            let (mut builds, request) = (self.builds(), request.clone());
            async move { builds.list_builds(request).await }
        })
        .await
    }

    /// Lets a build go on with the runs of a queue that belong to another build. To say it twice changes nothing.
    ///
    /// ```no_run
    /// # async fn example(client: everstep::Client) -> Result<(), everstep::ClientError> {
    /// client.allow_build("default", "2026-12", "2026-11").await
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn allow_build(
        &self,
        task_queue: &str,
        build_id: &str,
        continues: &str,
    ) -> Result<(), ClientError> {
        let request = api::AllowBuildRequest {
            namespace: self.namespace.clone(),
            task_queue: task_queue.to_owned(),
            build_id: build_id.to_owned(),
            continues: continues.to_owned(),
            request_id: new_request_id(),
            identity: self.identity.clone(),
        };
        retrying(|| {
            let (mut builds, request) = (self.builds(), request.clone());
            async move { builds.allow_build(request).await }
        })
        .await?;
        Ok(())
    }

    pub(super) fn builds(&self) -> BuildServiceClient<Channel> {
        BuildServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }
}
