//! Asking a run's code.

use std::time::{Duration, Instant};

use everstep_proto::{api, wire};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::RunHandle;
use super::call::{is_passing, pause, refused};
use crate::{ClientError, payload};

/// How long a query waits for its answer.
const WAIT: Duration = Duration::from_secs(10);

impl<R> RunHandle<R> {
    /// Asks the run's code for a value, by the name of a handler that it made with
    /// [`Ctx::on_query`](crate::Ctx::on_query). Nothing is recorded. The answer knows everything that was recorded
    /// when the question came, and whatever the run's status: a parked or closed run is replayed for it. Waits at most
    /// 10 s.
    ///
    /// ```no_run
    /// # async fn example(run: everstep::RunHandle<()>) -> Result<(), everstep::ClientError> {
    /// let progress: String = run.query("progress", &()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`], with reason `QUERY_FAILED` when the code refuses, and `NO_WORKER` when no worker that has the
    /// code was connected in time.
    pub async fn query<O: DeserializeOwned>(
        &self,
        name: &str,
        input: &(impl Serialize + ?Sized),
    ) -> Result<O, ClientError> {
        self.query_with_deadline(name, input, WAIT).await
    }

    /// As [`query`](Self::query), but waits at most `wait`; the server caps it at 60 s.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn query_with_deadline<O: DeserializeOwned>(
        &self,
        name: &str,
        input: &(impl Serialize + ?Sized),
        wait: Duration,
    ) -> Result<O, ClientError> {
        let input = payload::encode(input).map_err(|e| ClientError::Payload(e.to_string()))?;
        let message = api::QueryRunRequest {
            run: Some(self.run.clone()),
            name: name.to_owned(),
            input: Some(wire::encode_payload(&input)),
        };
        let (began, mut tries) = (Instant::now(), 0);
        loop {
            let left = wait.saturating_sub(began.elapsed());
            let mut request = super::traced(message.clone());
            request.set_timeout(left);
            let status = match self.client.runs().query_run(request).await {
                Ok(answer) => {
                    let value = wire::decode_payload(answer.into_inner().value);
                    return payload::decode(&value).map_err(|e| ClientError::Payload(e.to_string()));
                }
                Err(status) => status,
            };
            let pause = pause(tries);
            let passing = is_passing(&status) && wait.saturating_sub(began.elapsed()) > pause;
            let error = refused(status);
            // That no worker came is the answer, after all of the wait.
            if !passing || error.reason() == Some("NO_WORKER") {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            tries += 1;
        }
    }
}
