//! Starts that bring something along: a signal or an update, for the run that starts or for the one that is there.

use std::time::Duration;

use everstep_proto::api::update_run_response::Outcome;
use everstep_proto::{api, wire};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::retrying;
use super::update::value;
use super::{RunHandle, Start, UpdateHandle, traced};
use crate::{ClientError, UpdateError, payload};

/// How long an update waits for the run's code to agree.
const WAIT: Duration = Duration::from_secs(10);

impl<R: DeserializeOwned> Start<R> {
    /// Sends a signal to the open run of the workflow id, or starts one that has it from its first moment: both happen
    /// or neither. `input` is the workflow's, for a run that starts. The request id is the start's and the signal's;
    /// a repeat of the call is recognised also when the run has ended since.
    ///
    /// ```no_run
    /// # async fn example(client: everstep::Client) -> Result<(), everstep::ClientError> {
    /// let cart = client.workflow::<()>("cart").workflow_id("cart/7");
    /// cart.signal_with_start("add", &"apple", &()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`]: a workflow id has to be given, and the conflict policy must be unset or `UseExisting`.
    pub async fn signal_with_start<T, I>(
        self,
        name: &str,
        signal: &T,
        input: &I,
    ) -> Result<RunHandle<R>, ClientError>
    where
        T: Serialize + ?Sized,
        I: Serialize + ?Sized,
    {
        let signal = payload::encode(signal).map_err(|e| ClientError::Payload(e.to_string()))?;
        let (client, start) = self.with_input(input)?;
        let request = api::SignalWithStartRunRequest {
            start: Some(start),
            name: name.to_owned(),
            signal_input: Some(wire::encode_payload(&signal)),
        };
        let answer = retrying(|| {
            let (mut runs, request) = (client.runs(), traced(request.clone()));
            async move { runs.signal_with_start_run(request).await }
        })
        .await?;
        let run = client.run_ref(answer.run_id, String::new());
        Ok(RunHandle::new(client, run))
    }

    /// Has the code of the workflow id's open run do something, and gives what it returns; starts a run first if there is
    /// none. `input` is the workflow's, for a run that starts. What the code does not agree to leaves the run that was
    /// started. The request id is the start's and the update's.
    ///
    /// ```no_run
    /// # async fn example(client: everstep::Client) -> Result<(), everstep::UpdateError> {
    /// let cart = client.workflow::<()>("cart").workflow_id("cart/7");
    /// let total: u32 = cart.update_with_start("add", &5, &()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`UpdateError`]: as [`RunHandle::update`], and as [`signal_with_start`](Self::signal_with_start).
    pub async fn update_with_start<O, I>(
        self,
        name: &str,
        update: &(impl Serialize + ?Sized),
        input: &I,
    ) -> Result<O, UpdateError>
    where
        O: DeserializeOwned,
        I: Serialize + ?Sized,
    {
        let (handle, outcome) = self.ask((name, update, input), api::UpdateStage::Completed, WAIT).await?;
        match outcome {
            Some(outcome) => value(outcome),
            None => handle.result().await,
        }
    }

    /// As [`update_with_start`](Self::update_with_start), but gives the update as soon as the run's code has agreed to it
    /// and that is recorded. Waits for that at most so long; the server caps it at 60 s.
    ///
    /// ```no_run
    /// # async fn example(client: everstep::Client) -> Result<(), everstep::UpdateError> {
    /// # use std::time::Duration;
    /// let cart = client.workflow::<()>("cart").workflow_id("cart/7");
    /// let adding = cart.start_with_update::<u32, _>("add", &5, &(), Duration::from_secs(10)).await?;
    /// let (run, total) = (adding.run_id(), adding.result().await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`]: as [`UpdateRequest::start`](super::UpdateRequest::start), and as
    /// [`signal_with_start`](Self::signal_with_start).
    pub async fn start_with_update<O, I>(
        self,
        name: &str,
        update: &(impl Serialize + ?Sized),
        input: &I,
        wait: Duration,
    ) -> Result<UpdateHandle<O>, ClientError>
    where
        O: DeserializeOwned,
        I: Serialize + ?Sized,
    {
        let (handle, _) = self.ask((name, update, input), api::UpdateStage::Accepted, wait).await?;
        Ok(handle)
    }

    /// Sends it, and waits for the stage; gives the answer if there is one by then.
    async fn ask<O, I>(
        self,
        (name, update, input): (&str, &(impl Serialize + ?Sized), &I),
        stage: api::UpdateStage,
        wait: Duration,
    ) -> Result<(UpdateHandle<O>, Option<Outcome>), ClientError>
    where
        O: DeserializeOwned,
        I: Serialize + ?Sized,
    {
        let update = payload::encode(update).map_err(|e| ClientError::Payload(e.to_string()))?;
        let (client, start) = self.with_input(input)?;
        let update_id = start.request_id.clone();
        let request = api::UpdateWithStartRunRequest {
            start: Some(start),
            name: name.to_owned(),
            input: Some(wire::encode_payload(&update)),
            update_id: String::new(),
            wait_for: stage.into(),
            wait: Some(wire::encode_duration(wait.into())),
        };
        let answer = retrying(|| {
            let (mut runs, request) = (client.runs(), traced(request.clone()));
            async move { runs.update_with_start_run(request).await }
        })
        .await?;
        let run = client.run_ref(answer.run_id, String::new());
        let outcome = answer.update.and_then(|update| update.outcome);
        Ok((UpdateHandle::new(client, run, update_id), outcome))
    }
}
