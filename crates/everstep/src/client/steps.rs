//! Steps in doubt, from the outside.

use everstep_core::{DoubtPolicy, Resolution, RunId, Timestamp};
use everstep_proto::api::step_service_client::StepServiceClient;
use everstep_proto::{api, history, wire};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::transport::Channel;

use super::call::retrying;
use super::{ANSWER_BYTES_MAX, Client, RunHandle, new_request_id};
use crate::{ClientError, Failure, payload};

/// What became of an attempt in doubt; see [`RunHandle::resolve_step`].
#[derive(Clone, Debug)]
pub struct StepResolution {
    step_id: u32,
    attempt: u32,
    resolution: Resolution,
    note: String,
    request_id: String,
}

impl StepResolution {
    fn new(step_id: u32, resolution: Resolution) -> Self {
        Self { step_id, attempt: 0, resolution, note: String::new(), request_id: new_request_id() }
    }

    /// It had its effect, with this result.
    ///
    /// # Errors
    /// [`ClientError::Payload`].
    pub fn completed<T: Serialize + ?Sized>(step_id: u32, result: &T) -> Result<Self, ClientError> {
        let result = payload::encode(result).map_err(|e| ClientError::Payload(e.to_string()))?;
        Ok(Self::new(step_id, Resolution::Completed(result)))
    }

    /// The step ends with this failure.
    pub fn failed(step_id: u32, failure: Failure) -> Self {
        Self::new(step_id, Resolution::Failed(failure))
    }

    /// It had no effect, or another one does no harm: the next attempt begins.
    pub fn retry(step_id: u32) -> Self {
        Self::new(step_id, Resolution::Retry)
    }

    /// Only if this is the attempt in doubt.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Why, for whoever reads the history.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Your id of this request: the same id is carried out once.
    #[must_use]
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = id.into();
        self
    }
}

/// An attempt of a step of which nobody knows whether it had its effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepInDoubt {
    /// The run.
    pub run_id: RunId,
    /// The caller's business key.
    pub workflow_id: String,
    /// Queue whose workers run it.
    pub task_queue: String,
    /// The step's number within the run.
    pub step_id: u32,
    /// Its name.
    pub name: String,
    /// The attempt.
    pub attempt: u32,
    /// What the code does about it.
    pub policy: DoubtPolicy,
    /// Since when (database time).
    pub since: Timestamp,
}

impl StepInDoubt {
    pub(super) fn decode(step: api::Step) -> Result<Self, ClientError> {
        let protocol = |e: everstep_proto::InvalidMessage| ClientError::Protocol(e.to_string());
        let policy = wire::decode_doubt_policy("doubt_policy", step.doubt_policy).map_err(protocol)?;
        let missing = |field: &str| ClientError::Protocol(format!("a step in doubt has no {field}"));
        let since = step.since.ok_or_else(|| missing("since"))?;
        Ok(Self {
            run_id: wire::parse_id("run_id", &step.run_id).map_err(protocol)?,
            workflow_id: step.workflow_id,
            task_queue: step.task_queue,
            step_id: step.step_id,
            name: step.name,
            attempt: step.attempt,
            policy: policy.ok_or_else(|| missing("doubt_policy"))?,
            since: wire::decode_timestamp("since", since).map_err(protocol)?,
        })
    }
}

/// Steps in doubt.
#[derive(Clone, Debug)]
pub struct StepPage {
    /// The steps, those of the oldest runs first.
    pub steps: Vec<StepInDoubt>,
    /// What gives the next page; empty on the last one.
    pub next_page_token: String,
}

impl Client {
    pub(super) fn steps(&self) -> StepServiceClient<Channel> {
        StepServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// One page of steps in doubt, of all runs or of one; give the token of the page before, or an empty one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn steps_in_doubt(
        &self,
        run_id: Option<RunId>,
        page_size: i32,
        page_token: &str,
    ) -> Result<StepPage, ClientError> {
        let request = api::ListStepsRequest {
            namespace: self.namespace.clone(),
            state: api::StepState::InDoubt.into(),
            task_queue: String::new(),
            run_id: run_id.map(|run| run.to_string()).unwrap_or_default(),
            page_size,
            page_token: page_token.to_owned(),
        };
        let page = retrying(|| {
            let (mut steps, request) = (self.steps(), request.clone());
            async move { steps.list_steps(request).await }
        })
        .await?;
        let steps = page.steps.into_iter().map(StepInDoubt::decode).collect::<Result<_, _>>()?;
        Ok(StepPage { steps, next_page_token: page.next_page_token })
    }
}

impl<R: DeserializeOwned> RunHandle<R> {
    /// Says what became of an attempt in doubt. The run goes on with that, also when its code would have found
    /// out by itself.
    ///
    /// ```no_run
    /// # use everstep::{Client, client::StepResolution};
    /// # async fn example(client: Client) -> Result<(), everstep::ClientError> {
    /// let run = client.latest::<u32>("order/7");
    /// run.resolve_step(StepResolution::completed(3, &"ch_1")?.note("the bank has it")).await
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`], with reason `STEP_NOT_IN_DOUBT` when nobody is in doubt about it.
    pub async fn resolve_step(&self, said: StepResolution) -> Result<(), ClientError> {
        use api::resolve_step_request::Resolution as Said;
        let StepResolution { step_id, attempt, resolution, note, request_id } = said;
        let request = api::ResolveStepRequest {
            run: Some(self.run.clone()),
            step_id,
            attempt,
            resolution: Some(match resolution {
                Resolution::Completed(result) => Said::Completed(wire::encode_payload(&result)),
                Resolution::Failed(failure) => Said::Failed(wire::encode_failure(&failure)),
                Resolution::Retry => Said::Retry(history::RetryStep {}),
            }),
            note,
            request_id,
            identity: self.client.identity_text(),
        };
        retrying(|| {
            let (mut steps, request) = (self.client.steps(), request.clone());
            async move { steps.resolve_step(request).await }
        })
        .await?;
        Ok(())
    }
}
