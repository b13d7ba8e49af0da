//! What clients ask beside starts, signals and stops: updates, starts that bring something along, steps in doubt.

use std::time::Duration;

use everstep_proto::api::resolve_step_request::Resolution;
use everstep_proto::api::update_run_response::Outcome;
use everstep_proto::{api, history, wire};
use serde_json::{Value, json};
use tonic::Response;

use crate::caller::{Ask, payload, run, start};

/// The name of every handler of updates.
pub use everstep_tests::program::UPDATE_NAME;

/// A step in doubt that waits for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InDoubt {
    /// Its run.
    pub run_id: String,
    /// Its number in the run.
    pub step: u32,
    /// Its name.
    pub name: String,
    /// The attempt.
    pub attempt: u32,
}

/// What a person says about it.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// It happened, with this result.
    Completed(Value),
    /// It failed for good, with this kind and message.
    Failed(String, String),
    /// Once more.
    Again,
}

pub(crate) fn update(ask: &Ask, process: u32, wait: Duration) -> api::UpdateRunRequest {
    api::UpdateRunRequest {
        run: Some(run(ask)),
        name: UPDATE_NAME.to_owned(),
        input: payload(&ask.brought),
        request_id: ask.request_id.clone().unwrap_or_default(),
        identity: format!("client-{process}"),
        wait_for: api::UpdateStage::Completed.into(),
        wait: Some(wire::encode_duration(wait.into())),
    }
}

pub(crate) fn update_with_start(ask: &Ask, process: u32, wait: Duration) -> api::UpdateWithStartRunRequest {
    api::UpdateWithStartRunRequest {
        start: Some(start(ask, process)),
        name: UPDATE_NAME.to_owned(),
        input: payload(&ask.brought),
        update_id: String::new(),
        wait_for: api::UpdateStage::Completed.into(),
        wait: Some(wire::encode_duration(wait.into())),
    }
}

pub(crate) fn signal_with_start(ask: &Ask, process: u32) -> api::SignalWithStartRunRequest {
    api::SignalWithStartRunRequest {
        start: Some(start(ask, process)),
        name: ask.signal.clone(),
        signal_input: payload(&ask.brought),
    }
}

pub(crate) fn resolve(ask: &Ask, process: u32) -> Option<api::ResolveStepRequest> {
    let (doubt, said) = ask.resolves.as_ref()?;
    let resolution = match said {
        Said::Completed(value) => Resolution::Completed(payload(value)?),
        Said::Failed(kind, message) => Resolution::Failed(history::Failure {
            kind: kind.clone(),
            message: message.clone(),
            non_retryable: true,
            ..history::Failure::default()
        }),
        Said::Again => Resolution::Retry(history::RetryStep {}),
    };
    Some(api::ResolveStepRequest {
        run: Some(api::RunRef { run_id: doubt.run_id.clone(), ..api::RunRef::default() }),
        step_id: doubt.step,
        attempt: doubt.attempt,
        note: "as planned".to_owned(),
        request_id: ask.request_id.clone().unwrap_or_default(),
        identity: format!("client-{process}"),
        resolution: Some(resolution),
    })
}

pub(crate) fn updated(response: Response<api::UpdateRunResponse>) -> Option<Value> {
    let answer = response.into_inner();
    Some(json!({"run_id": answer.run_id, "update": outcome(answer.outcome)}))
}

pub(crate) fn updated_with_start(response: Response<api::UpdateWithStartRunResponse>) -> Option<Value> {
    let answer = response.into_inner();
    let update = outcome(answer.update.and_then(|update| update.outcome));
    Some(json!({"run_id": answer.run_id, "started": answer.started, "update": update}))
}

pub(crate) fn signaled_with_start(response: Response<api::SignalWithStartRunResponse>) -> Option<Value> {
    let answer = response.into_inner();
    Some(json!({"run_id": answer.run_id, "started": answer.started}))
}

/// `null` while it is only accepted.
fn outcome(outcome: Option<Outcome>) -> Value {
    match outcome {
        None => Value::Null,
        Some(Outcome::Result(result)) => {
            let result = everstep::decode::<Value>(&wire::decode_payload(Some(result)));
            json!({"result": result.unwrap_or_default()})
        }
        Some(Outcome::Failure(failure)) => json!({"failure": failure.kind}),
    }
}

/// Whether a run is open, and its steps that wait for a person.
pub(crate) fn doubts(response: Response<api::GetRunResponse>) -> Option<(bool, Vec<InDoubt>)> {
    let run = response.into_inner().run?;
    let open = wire::decode_run_status("status", run.status).is_ok_and(|status| !status.is_closed());
    let asked = |step: &api::Step| step.doubt_policy == i32::from(history::DoubtPolicy::AskHuman);
    let steps = run.in_doubt_steps.into_iter().filter(asked);
    let steps = steps.map(|step| InDoubt {
        run_id: run.run_id.clone(),
        step: step.step_id,
        name: step.name,
        attempt: step.attempt,
    });
    Some((open, steps.collect()))
}
