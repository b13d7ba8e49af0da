//! Requests to a run that exists: each has one id from the moment it is made, however often it is sent.

use std::future::IntoFuture;

use everstep_core::Payload;
use everstep_proto::{api, wire};
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::call::retrying;
use super::{Client, new_request_id};
use crate::ClientError;

/// Runs of a chain that a request follows to the one that is open.
pub(super) const SUCCESSORS_MAX: u32 = 1_000;

/// The run that goes on after the one that a request was for.
pub(super) fn successor(error: &ClientError) -> Option<String> {
    match error {
        ClientError::Refused { reason, metadata, .. } if reason == "RUN_CLOSED" => {
            metadata.get("successor").cloned()
        }
        _ => None,
    }
}

/// A signal, cancel request or termination that was not sent yet. Await it.
///
/// It takes effect once: it is sent again by itself when the server cannot be reached for a moment, under the
/// same request id. If the run has ended and another one goes on or tries again, it goes there. To go on for longer, keep it and [`send`](Self::send) it again; to repeat it from another
/// process, give it a [`request_id`](Self::request_id) of your own.
///
/// ```no_run
/// # async fn example(run: everstep::RunHandle<u64>) -> Result<(), everstep::ClientError> {
/// run.signal("paid", &100).await?;
/// run.signal("paid", &200).request_id("payment/4711").await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is sent until it is awaited"]
#[derive(Clone, Debug)]
pub struct RunRequest {
    client: Client,
    run: api::RunRef,
    request_id: String,
    body: Body,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    /// The input, or why it does not encode.
    Signal {
        name: String,
        input: Result<Payload, String>,
    },
    Cancel {
        reason: String,
    },
    Terminate {
        reason: String,
    },
}

impl RunRequest {
    pub(super) fn new(client: &Client, run: &api::RunRef, body: Body) -> Self {
        Self { client: client.clone(), run: run.clone(), request_id: new_request_id(), body }
    }

    /// Your id of this request: within its run it takes effect once, however often and by whomever it is sent.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = id.into();
        self
    }

    /// Sends it, and again while the server cannot be reached, for some 5 s. After an error it may or may not
    /// have taken effect; to send it once more does no harm.
    ///
    /// # Errors
    /// [`ClientError`], with reason `RUN_CLOSED` when the run has ended.
    pub async fn send(&self) -> Result<(), ClientError> {
        let mut run = self.run.clone();
        for _ in 0..SUCCESSORS_MAX {
            let done = match &self.body {
                Body::Signal { name, input } => self.signal(&run, name, input).await,
                Body::Cancel { reason } => self.cancel(&run, reason).await,
                Body::Terminate { reason } => self.terminate(&run, reason).await,
            };
            match done.as_ref().err().and_then(successor) {
                Some(next) => run.run_id = next,
                None => return done,
            }
        }
        Err(ClientError::Protocol(format!("more than {SUCCESSORS_MAX} runs follow the one that was named")))
    }

    async fn signal(
        &self,
        run: &api::RunRef,
        name: &str,
        input: &Result<Payload, String>,
    ) -> Result<(), ClientError> {
        let input = input.as_ref().map_err(|e| ClientError::Payload(e.clone()))?;
        let request = api::SignalRunRequest {
            run: Some(run.clone()),
            name: name.to_owned(),
            input: Some(wire::encode_payload(input)),
            request_id: self.request_id.clone(),
            identity: self.client.identity_text(),
        };
        retrying(|| {
            let (mut runs, request) = (self.client.runs(), request.clone());
            async move { runs.signal_run(request).await }
        })
        .await?;
        Ok(())
    }

    async fn cancel(&self, run: &api::RunRef, reason: &str) -> Result<(), ClientError> {
        let request = api::CancelRunRequest {
            run: Some(run.clone()),
            reason: reason.to_owned(),
            request_id: self.request_id.clone(),
            identity: self.client.identity_text(),
        };
        retrying(|| {
            let (mut runs, request) = (self.client.runs(), request.clone());
            async move { runs.cancel_run(request).await }
        })
        .await?;
        Ok(())
    }

    async fn terminate(&self, run: &api::RunRef, reason: &str) -> Result<(), ClientError> {
        let request = api::TerminateRunRequest {
            run: Some(run.clone()),
            reason: reason.to_owned(),
            request_id: self.request_id.clone(),
            identity: self.client.identity_text(),
        };
        retrying(|| {
            let (mut runs, request) = (self.client.runs(), request.clone());
            async move { runs.terminate_run(request).await }
        })
        .await?;
        Ok(())
    }
}

impl IntoFuture for RunRequest {
    type Output = Result<(), ClientError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        async move { self.send().await }.boxed()
    }
}
