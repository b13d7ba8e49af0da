//! Having a run's code do something, and waiting for what it answers.

use std::future::IntoFuture;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use everstep_core::{Payload, RunId};
use everstep_proto::api::update_run_response::Outcome;
use everstep_proto::{api, wire};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::{is_passing, pause, refused, retrying};
use super::handle::POLL;
use super::request::{SUCCESSORS_MAX, successor};
use super::{Client, RunHandle, new_request_id};
use crate::{ClientError, UpdateError, payload};

/// How long an update waits for the run's code to agree.
const WAIT: Duration = Duration::from_secs(10);

/// An update that was not sent yet. Await it for the answer of the run's code, or [`start`](Self::start) it.
///
/// It takes effect once: it is sent again by itself when the server cannot be reached for a moment, under the same
/// request id. To repeat it from another process, give it a [`request_id`](Self::request_id) of your own.
#[must_use = "nothing is sent until it is awaited or started"]
#[derive(Debug)]
pub struct UpdateRequest<O> {
    client: Client,
    run: api::RunRef,
    name: String,
    /// The input, or why it does not encode.
    input: Result<Payload, String>,
    request_id: String,
    wait: Duration,
    output: PhantomData<fn() -> O>,
}

/// An update that the run's code has agreed to. Cheap to clone.
#[derive(Debug)]
pub struct UpdateHandle<O> {
    client: Client,
    run: api::RunRef,
    update_id: String,
    output: PhantomData<fn() -> O>,
}

impl<O> Clone for UpdateHandle<O> {
    fn clone(&self) -> Self {
        let (client, run, update_id) = (self.client.clone(), self.run.clone(), self.update_id.clone());
        Self { client, run, update_id, output: PhantomData }
    }
}

impl<R> RunHandle<R> {
    /// Has the run's code do something, by the name of a handler that it made with
    /// [`Ctx::on_update`](crate::Ctx::on_update), and gives what that returns. Await it.
    ///
    /// ```no_run
    /// # async fn example(cart: everstep::RunHandle<()>) -> Result<(), everstep::UpdateError> {
    /// let total: u32 = cart.update("add", &5).await?;
    /// let added = cart.update::<u32>("add", &7).request_id("order/4711").start().await?;
    /// let total = added.result().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn update<O>(&self, name: &str, input: &(impl Serialize + ?Sized)) -> UpdateRequest<O> {
        UpdateRequest {
            client: self.client.clone(),
            run: self.run.clone(),
            name: name.to_owned(),
            input: payload::encode(input).map_err(|e| e.to_string()),
            request_id: new_request_id(),
            wait: WAIT,
            output: PhantomData,
        }
    }

    /// An update of this run that was accepted before.
    pub fn update_handle<O>(&self, update_id: impl Into<String>) -> UpdateHandle<O> {
        UpdateHandle {
            client: self.client.clone(),
            run: self.run.clone(),
            update_id: update_id.into(),
            output: PhantomData,
        }
    }
}

impl<O: DeserializeOwned> UpdateRequest<O> {
    /// Your id of this update: within its run it takes effect once, however often and by whomever it is sent.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = id.into();
        self
    }

    /// How long to wait for the run's code to agree; the server caps it at 60 s. Default 10 s.
    pub fn deadline(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Sends it, and waits until the run's code has agreed and that is recorded.
    ///
    /// # Errors
    /// [`ClientError`], with reason `UPDATE_REJECTED` when the code does not agree, `NO_WORKER` when no worker that has
    /// the code was connected in time, and `RUN_CLOSED` when the run has ended.
    pub async fn start(self) -> Result<UpdateHandle<O>, ClientError> {
        self.send(api::UpdateStage::Accepted).await.map(|(handle, _)| handle)
    }

    /// Sends it, and waits for the stage; gives the answer if there is one by then.
    async fn send(self, stage: api::UpdateStage) -> Result<(UpdateHandle<O>, Option<Outcome>), ClientError> {
        let Self { client, run, name, input, request_id, wait, .. } = self;
        let input = input.map_err(ClientError::Payload)?;
        let mut message = api::UpdateRunRequest {
            run: Some(run.clone()),
            name,
            input: Some(wire::encode_payload(&input)),
            request_id,
            identity: client.identity_text(),
            wait_for: stage.into(),
            wait: None,
        };
        let (began, mut tries, mut runs) = (Instant::now(), 0, 0);
        let answer = loop {
            let left = wait.saturating_sub(began.elapsed());
            let timed =
                api::UpdateRunRequest { wait: Some(wire::encode_duration(left.into())), ..message.clone() };
            let mut request = super::traced(timed);
            request.set_timeout(left + Duration::from_secs(1));
            let status = match client.runs().update_run(request).await {
                Ok(answer) => break answer.into_inner(),
                Err(status) => status,
            };
            // The run has ended, and another one goes on or tries again: it is asked there.
            if let (Some(next), true) = (successor(&refused(status.clone())), runs < SUCCESSORS_MAX) {
                message.run = Some(api::RunRef { run_id: next, ..run.clone() });
                runs += 1;
                continue;
            }
            let pause = pause(tries);
            let passing = is_passing(&status) && wait.saturating_sub(began.elapsed()) > pause;
            let error = refused(status);
            // That no worker came is the answer, after all of the wait.
            if !passing || error.reason() == Some("NO_WORKER") {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            tries += 1;
        };
        let api::UpdateRunResponse { run_id, update_id, stage: _, outcome } = answer;
        // The run that it was, also when it was named by its workflow id.
        let run = api::RunRef { run_id, ..run };
        Ok((UpdateHandle { client, run, update_id, output: PhantomData }, outcome))
    }
}

impl<O: DeserializeOwned + Send + 'static> IntoFuture for UpdateRequest<O> {
    type Output = Result<O, UpdateError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        async move {
            let (handle, outcome) = self.send(api::UpdateStage::Completed).await?;
            match outcome {
                Some(outcome) => value(outcome),
                None => handle.result().await,
            }
        }
        .boxed()
    }
}

impl<O: DeserializeOwned> UpdateHandle<O> {
    pub(super) fn new(client: Client, run: api::RunRef, update_id: String) -> Self {
        Self { client, run, update_id, output: PhantomData }
    }

    /// The update's id.
    pub fn id(&self) -> &str {
        &self.update_id
    }

    /// The run that it is of, if it is known.
    pub fn run_id(&self) -> Option<RunId> {
        self.run.run_id.parse().ok()
    }

    /// Waits for what the run's code answers, however long that takes. Cancel safe.
    ///
    /// # Errors
    /// [`UpdateError::Failed`] when the code has failed to do it; [`UpdateError::Client`], with reason
    /// `UPDATE_ABANDONED` when the run has ended before.
    pub async fn result(&self) -> Result<O, UpdateError> {
        loop {
            if let Some(result) = self.poll_result(POLL).await? {
                return result;
            }
        }
    }

    /// As [`result`](Self::result), but waits at most `wait` (the server caps it at 60 s); `None` when there is no answer
    /// then.
    ///
    /// # Errors
    /// [`ClientError`], with reason `UPDATE_NOT_FOUND` when no such update was accepted.
    pub async fn poll_result(&self, wait: Duration) -> Result<Option<Result<O, UpdateError>>, ClientError> {
        let request = api::GetUpdateRequest {
            run: Some(self.run.clone()),
            update_id: self.update_id.clone(),
            wait_for: api::UpdateStage::Completed.into(),
            wait: Some(wire::encode_duration(wait.into())),
        };
        let answer = retrying(|| {
            let (mut runs, request) = (self.client.runs(), request.clone());
            async move { runs.get_update(request).await }
        })
        .await?;
        let update = answer.update.ok_or_else(|| ClientError::Protocol("no update in the answer".into()))?;
        Ok(update.outcome.map(value))
    }
}

/// What the run's code answered.
pub(super) fn value<O: DeserializeOwned>(outcome: Outcome) -> Result<O, UpdateError> {
    match outcome {
        Outcome::Result(result) => {
            let value = payload::decode(&wire::decode_payload(Some(result)));
            value.map_err(|e| ClientError::Payload(e.to_string()).into())
        }
        Outcome::Failure(failure) => {
            let failure = wire::decode_failure("failure", Some(failure));
            Err(UpdateError::Failed(failure.map_err(|e| ClientError::Protocol(e.to_string()))?))
        }
    }
}
