//! How a run ended: its own end, or that of the last run of its chain.

use std::time::Duration;

use everstep_core::{RunId, RunStatus};
use everstep_proto::{api, wire};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::RunHandle;
use super::call::retrying;
use super::handle::POLL;
use crate::{ClientError, RunError, payload};

/// What an answer says of a run's end.
pub(super) enum Outcome<R> {
    /// It is open.
    Open,
    /// It ended like this; and the run that goes on or tries again, if one does.
    Ended(Result<R, RunError>, Option<RunId>),
}

impl<R: DeserializeOwned> RunHandle<R> {
    /// Waits for the run to end, however long that takes, and gives its result. When its workflow continues as new, or
    /// another attempt follows its failure, that of the last run. Cancel safe.
    ///
    /// # Errors
    /// [`RunError::Ended`] when it ended otherwise; [`RunError::Client`].
    pub async fn result(&self) -> Result<R, RunError> {
        let mut at = self.clone();
        loop {
            match at.ask(POLL).await? {
                Outcome::Open => {}
                Outcome::Ended(_, Some(next)) => at = at.successor(next),
                Outcome::Ended(result, None) => return result,
            }
        }
    }

    /// As [`RunHandle::result`], but of this run alone.
    ///
    /// # Errors
    /// [`RunError::Continued`] when its workflow goes on in another run, and as [`RunHandle::result`].
    pub async fn result_of_this_run(&self) -> Result<R, RunError> {
        loop {
            if let Outcome::Ended(result, _) = self.ask(POLL).await? {
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
        let until = Instant::now() + wait;
        let mut at = self.clone();
        loop {
            match at.ask(until.saturating_duration_since(Instant::now())).await? {
                Outcome::Open => return Ok(None),
                Outcome::Ended(_, Some(next)) => at = at.successor(next),
                Outcome::Ended(result, None) => return Ok(Some(result)),
            }
        }
    }

    /// The run that follows this one.
    pub(super) fn successor(&self, run: RunId) -> Self {
        let run = self.client.run_ref(run.to_string(), String::new());
        Self::new(self.client.clone(), run)
    }

    async fn ask(&self, wait: Duration) -> Result<Outcome<R>, ClientError> {
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

    pub(super) fn outcome(answer: api::GetResultResponse) -> Result<Outcome<R>, ClientError> {
        let protocol = |e: everstep_proto::InvalidMessage| ClientError::Protocol(e.to_string());
        let status = wire::decode_run_status("status", answer.status).map_err(protocol)?;
        if !status.is_closed() {
            return Ok(Outcome::Open);
        }
        let text = &answer.successor_run_id;
        let next = (!text.is_empty()).then(|| wire::parse_id("successor_run_id", text)).transpose();
        let next: Option<RunId> = next.map_err(protocol)?;
        let result = match (status, next) {
            (RunStatus::Completed, _) => payload::decode(&wire::decode_payload(answer.result))
                .map_err(|e| ClientError::Payload(e.to_string()).into()),
            (RunStatus::Continued, Some(successor)) => Err(RunError::Continued { successor }),
            _ => {
                let failure = wire::decode_failure("failure", answer.failure).map_err(protocol)?;
                Err(RunError::Ended { status, failure })
            }
        };
        Ok(Outcome::Ended(result, next))
    }
}
