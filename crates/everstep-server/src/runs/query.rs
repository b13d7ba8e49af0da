//! A question to a run's code: answered by a worker, written nowhere.

use std::time::Duration;

use everstep_engine::{AskKind, AskTarget, Query};
use everstep_proto::api;
use everstep_proto::wire::encode_payload;
use tokio::time::Instant;
use tonic::Status;

use super::{RunApi, answer_in_time};
use crate::check::Check;
use crate::status;

/// How long to wait for a caller that does not say how long it waits.
const WAIT_DEFAULT: Duration = Duration::from_secs(10);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// See `QueryRun` in the contract.
pub(super) async fn query(
    runs: &RunApi,
    request: api::QueryRunRequest,
    deadline: Option<Instant>,
) -> Result<api::QueryRunResponse, Status> {
    let wait = match deadline {
        Some(deadline) => answer_in_time(deadline).min(WAIT_MAX),
        None => WAIT_DEFAULT,
    };
    let until = Instant::now() + wait;
    let api::QueryRunRequest { run, name, input } = request;
    let mut check = Check::default();
    let selector = check.run(run);
    let name = check.name("name", name);
    let input = check.payload("input", input);
    check.finish()?;
    // Read now, after the call came: the answer must not be older than what its caller knows.
    let record = runs.resolve(&selector).await?;
    let left = until.saturating_duration_since(Instant::now());
    let answer = tokio::select! {
        answer = runs.engine.ask(AskTarget::of(&record), Query { kind: AskKind::Query, name, input }, left) => answer,
        // The caller asks again, and finds another node.
        () = runs.draining.cancelled() => return Err(status::stopping()),
    };
    let answer = answer.map_err(|e| status::of_engine(&e))?;
    Ok(api::QueryRunResponse { value: Some(encode_payload(&answer.value)), answered_at_seq: answer.seq })
}
