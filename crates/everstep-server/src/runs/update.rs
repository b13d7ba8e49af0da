//! Updates: what the run's code agrees to, and what it answers.

use std::time::Duration;

use everstep_core::{Rejection, RunId, Seq, UpdateOutcome};
use everstep_engine::{Error, Update};
use everstep_proto::api::{self, update_run_response::Outcome};
use everstep_proto::wire::{encode_failure, encode_payload};
use everstep_proto::{InvalidKind, InvalidMessage};
use tokio::time::Instant;
use tonic::Status;

use super::request::RunCall;
use super::{RunApi, SUCCESSORS_MAX, answer_in_time};
use crate::check::Check;
use crate::{reason, status};

/// What a caller waits for, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    completed: bool,
    until: Instant,
}

impl Wanted {
    pub(super) fn read(
        check: &mut Check,
        stage: i32,
        wait: Option<prost_types::Duration>,
        deadline: Option<Instant>,
    ) -> Self {
        let completed = match api::UpdateStage::try_from(stage) {
            Ok(api::UpdateStage::Unspecified | api::UpdateStage::Completed) => true,
            Ok(api::UpdateStage::Accepted) => false,
            Err(_) => {
                let problem = format!("has the unknown value {stage}");
                check.take(Err(InvalidMessage::new(InvalidKind::UnknownEnum, "wait_for", problem)))
            }
        };
        let mut wait = check.wait("wait", wait);
        if let Some(deadline) = deadline {
            wait = wait.min(answer_in_time(deadline));
        }
        Self { completed, until: Instant::now() + wait }
    }

    fn left(self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// The code has to agree first, and that takes some time.
pub(super) fn check_wait(check: &mut Check, wait: Option<prost_types::Duration>) {
    if wait.is_some_and(|wait| wait.seconds == 0 && wait.nanos == 0) {
        let problem = "must be more than zero; leave it unset for 20 s";
        check.refuse("wait", reason::INVALID_DURATION, problem);
    }
}

/// See `UpdateRun` in the contract.
pub(super) async fn update(
    runs: &RunApi,
    request: api::UpdateRunRequest,
    deadline: Option<Instant>,
) -> Result<api::UpdateRunResponse, Status> {
    let api::UpdateRunRequest { run, name, input, request_id, identity, wait_for, wait } = request;
    let mut check = Check::default();
    let call = RunCall::read(&mut check, run, request_id, identity, "update");
    let name = check.name("name", name);
    let input = check.payload("input", input);
    check_wait(&mut check, wait);
    let wanted = Wanted::read(&mut check, wait_for, wait, deadline);
    check.finish()?;
    let mut run_id = runs.find(&call.run).await?;
    for _ in 0..SUCCESSORS_MAX {
        let (command_id, identity) = (call.command_id(run_id), call.identity.clone());
        let (update_id, name, input) = (call.request_id.clone(), name.clone(), input.clone());
        let update = Update { update_id, name, input, command_id, identity };
        match accept(runs, run_id, update, wanted).await {
            // As with a signal: whoever names the workflow id means the run that it has gone on in.
            Err(Error::Rejected(Rejection::RunClosed { successor: Some(next), .. }))
                if call.run.run_id.is_none() =>
            {
                run_id = next;
            }
            accepted => {
                let accepted = accepted.map_err(|e| status::of_engine(&e))?;
                return answered(runs, (run_id, call.request_id), accepted, wanted).await;
            }
        }
    }
    Err(status::of_engine(&Error::Contention { attempts: SUCCESSORS_MAX }))
}

/// Has the run's code agree.
pub(super) async fn accept(
    runs: &RunApi,
    run_id: RunId,
    update: Update,
    wanted: Wanted,
) -> Result<Seq, Error> {
    tokio::select! {
        accepted = runs.engine.update(run_id, update, wanted.left()) => accepted,
        // The caller asks again, and finds another node.
        () = runs.draining.cancelled() => Err(Error::Stopping),
    }
}

/// How far an update has come that was accepted with an event, once the wait is over.
pub(super) async fn answered(
    runs: &RunApi,
    (run_id, update_id): (RunId, String),
    accepted: Seq,
    wanted: Wanted,
) -> Result<api::UpdateRunResponse, Status> {
    let outcome = if wanted.completed {
        waited(runs, (run_id, &update_id), accepted.saturating_sub(1), wanted.left()).await?
    } else {
        None
    };
    Ok(response(run_id, update_id, outcome))
}

async fn waited(
    runs: &RunApi,
    (run_id, update_id): (RunId, &str),
    after: Seq,
    wait: Duration,
) -> Result<Option<UpdateOutcome>, Status> {
    tokio::select! {
        outcome = runs.engine.wait_update(run_id, update_id, after, wait) => {
            outcome.map_err(|e| status::of_engine(&e))
        }
        // It is accepted, whatever becomes of this node.
        () = runs.draining.cancelled() => Ok(None),
    }
}

fn response(run_id: RunId, update_id: String, outcome: Option<UpdateOutcome>) -> api::UpdateRunResponse {
    let stage = match outcome {
        Some(_) => api::UpdateStage::Completed,
        None => api::UpdateStage::Accepted,
    };
    let outcome = outcome.map(|outcome| match outcome {
        UpdateOutcome::Completed(result) => Outcome::Result(encode_payload(&result)),
        UpdateOutcome::Failed(failure) => Outcome::Failure(encode_failure(&failure)),
    });
    api::UpdateRunResponse { run_id: run_id.to_string(), update_id, stage: stage.into(), outcome }
}

/// See `GetUpdate` in the contract.
pub(super) async fn get(
    runs: &RunApi,
    request: api::GetUpdateRequest,
    deadline: Option<Instant>,
) -> Result<api::GetUpdateResponse, Status> {
    let api::GetUpdateRequest { run, update_id, wait_for, wait } = request;
    let mut check = Check::default();
    let selector = check.run(run);
    let update_id = check.name("update_id", update_id);
    let wanted = Wanted::read(&mut check, wait_for, wait, deadline);
    check.finish()?;
    let run_id = runs.find(&selector).await?;
    let wait = if wanted.completed { wanted.left() } else { Duration::ZERO };
    let outcome = tokio::select! {
        outcome = runs.engine.wait_update(run_id, &update_id, 0, wait) => {
            outcome.map_err(|e| status::of_engine(&e))?
        }
        () = runs.draining.cancelled() => return Err(status::stopping()),
    };
    Ok(api::GetUpdateResponse { update: Some(response(run_id, update_id, outcome)) })
}
