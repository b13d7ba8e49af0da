//! Requests to a run that exists: each has one id from the moment it is made, however often it is sent.

use std::future::IntoFuture;

use everstep_core::Payload;
use everstep_proto::{api, wire};
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::call::retrying;
use super::{Client, new_request_id};
use crate::ClientError;

/// A signal, cancel request or termination that was not sent yet. Await it.
///
/// It takes effect once: it is sent again by itself when the server cannot be reached for a moment, under the
/// same request id. To go on for longer, keep it and [`send`](Self::send) it again; to repeat it from another
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
        match &self.body {
            Body::Signal { name, input } => self.signal(name, input).await,
            Body::Cancel { reason } => self.cancel(reason).await,
            Body::Terminate { reason } => self.terminate(reason).await,
        }
    }

    async fn signal(&self, name: &str, input: &Result<Payload, String>) -> Result<(), ClientError> {
        let input = input.as_ref().map_err(|e| ClientError::Payload(e.clone()))?;
        let request = api::SignalRunRequest {
            run: Some(self.run.clone()),
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

    async fn cancel(&self, reason: &str) -> Result<(), ClientError> {
        let request = api::CancelRunRequest {
            run: Some(self.run.clone()),
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

    async fn terminate(&self, reason: &str) -> Result<(), ClientError> {
        let request = api::TerminateRunRequest {
            run: Some(self.run.clone()),
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
