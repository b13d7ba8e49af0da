//! `StepService`: steps that wait for somebody.

mod request;

use everstep_core::DoubtPolicy;
use everstep_engine::Engine;
use everstep_proto::api::{self, step_service_server::StepService};
use everstep_proto::wire::{encode_doubt_policy, encode_timestamp};
use everstep_store::DoubtRecord;
use tonic::{Request, Response, Status};

use crate::{page, status};

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct StepApi {
    pub(crate) engine: Engine,
}

#[tonic::async_trait]
impl StepService for StepApi {
    async fn list_steps(
        &self,
        request: Request<api::ListStepsRequest>,
    ) -> Result<Response<api::ListStepsResponse>, Status> {
        let (filter, after, size) = request::list(request.into_inner())?;
        let store = self.engine.store();
        // One more than asked for tells whether there is another page.
        let mut found =
            store.list_doubts(&filter, after, size + 1).await.map_err(|e| status::of_store(&e))?;
        if found.is_empty() && after.is_none() {
            let known = store.get_namespace(&filter.namespace).await.map_err(|e| status::of_store(&e))?;
            known.ok_or_else(|| status::namespace_not_found(&filter.namespace))?;
        }
        let more = found.len() > size;
        found.truncate(size);
        let next_page_token = match found.last() {
            Some(last) if more => page::steps_token(&filter, (last.run_id, last.doubt.step)),
            _ => String::new(),
        };
        let steps = found.into_iter().map(encode).collect();
        Ok(Response::new(api::ListStepsResponse { steps, next_page_token }))
    }

    async fn resolve_step(
        &self,
        request: Request<api::ResolveStepRequest>,
    ) -> Result<Response<api::ResolveStepResponse>, Status> {
        let (call, body) = request::resolve(request.into_inner())?;
        let run_id = self.engine.find(&call.run).await.map_err(|e| status::of_engine(&e))?;
        let id = call.command_id(run_id);
        self.engine.command(run_id, id, call.identity, body).await.map_err(|e| status::of_engine(&e))?;
        Ok(Response::new(api::ResolveStepResponse {}))
    }
}

/// An attempt in doubt as the wire has it.
pub(crate) fn encode(record: DoubtRecord) -> api::Step {
    let DoubtRecord { run_id, workflow_id, task_queue, doubt } = record;
    let policy: Option<DoubtPolicy> = Some(doubt.policy);
    api::Step {
        run_id: run_id.to_string(),
        workflow_id,
        step_id: doubt.step.0,
        name: doubt.name,
        attempt: doubt.attempt,
        state: api::StepState::InDoubt.into(),
        task_queue,
        since: Some(encode_timestamp(doubt.since)),
        doubt_policy: encode_doubt_policy(policy).into(),
    }
}
