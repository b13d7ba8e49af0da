//! `StepService`: steps that wait for somebody.

mod list;
mod request;
pub(crate) mod token;

use everstep_core::{CommandBody, Duration, Rejection};
use everstep_engine::Engine;
use everstep_proto::api::{self, step_service_server::StepService};
use everstep_store::{AttemptKey, BeatAnswer};
use tonic::{Request, Response, Status};

use crate::{page, reason, status};
pub(crate) use list::{Question, encode};
use token::{Deployment, TokenOf};

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct StepApi {
    pub(crate) engine: Engine,
    pub(crate) deployment: Deployment,
}

impl StepApi {
    async fn attempt(&self, token: &str) -> Result<TokenOf, Status> {
        let tokens = self.deployment.tokens(&self.engine).await?;
        tokens
            .read(token)
            .ok_or_else(|| status::of(reason::TASK_TOKEN_INVALID, "not a task token of this deployment"))
    }

    /// Why nobody has the attempt any more.
    async fn over(&self, AttemptKey { run, step, attempt }: AttemptKey) -> Result<Status, Status> {
        let run = self.engine.store().get_run(run).await.map_err(|e| status::of_store(&e))?;
        let closed = run.map(|record| record.row.status).filter(|status| status.is_closed());
        Ok(status::of_rejection(&match closed {
            Some(status) => Rejection::RunClosed { status, successor: None },
            None => Rejection::StaleAttempt { step, attempt },
        }))
    }

    /// Ends an attempt, on behalf of whoever has its token.
    async fn finish(&self, call: request::Finish) -> Result<(), Status> {
        let request::Finish { token, end, request_id, identity } = call;
        let of = self.attempt(&token).await?;
        let id = of.command_id(&request_id);
        let TokenOf { run, step, attempt } = of;
        let body = CommandBody::FinishStep { step, attempt, elapsed: Duration::ZERO, end };
        self.engine.command(run, id, identity, body).await.map_err(|e| status::of_engine(&e))
    }
}

#[tonic::async_trait]
impl StepService for StepApi {
    async fn list_steps(
        &self,
        request: Request<api::ListStepsRequest>,
    ) -> Result<Response<api::ListStepsResponse>, Status> {
        let (question, after, size) = request::list(request.into_inner())?;
        // One more than asked for tells whether there is another page.
        let mut found = list::list(&self.engine, &question, after, size + 1).await?;
        if found.is_empty() && after.is_none() {
            let store = self.engine.store();
            let known = store.get_namespace(&question.namespace).await.map_err(|e| status::of_store(&e))?;
            known.ok_or_else(|| status::namespace_not_found(&question.namespace))?;
        }
        let more = found.len() > size;
        found.truncate(size);
        let next_page_token = match found.last() {
            Some((last, _)) if more => page::steps_token(&question, *last),
            _ => String::new(),
        };
        let steps = found.into_iter().map(|(_, step)| step).collect();
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

    async fn complete_step(
        &self,
        request: Request<api::CompleteStepRequest>,
    ) -> Result<Response<api::CompleteStepResponse>, Status> {
        self.finish(request::complete(request.into_inner())?).await?;
        Ok(Response::new(api::CompleteStepResponse {}))
    }

    async fn fail_step(
        &self,
        request: Request<api::FailStepRequest>,
    ) -> Result<Response<api::FailStepResponse>, Status> {
        self.finish(request::fail(request.into_inner())?).await?;
        Ok(Response::new(api::FailStepResponse {}))
    }

    async fn heartbeat_step(
        &self,
        request: Request<api::HeartbeatStepRequest>,
    ) -> Result<Response<api::HeartbeatStepResponse>, Status> {
        let (token, details) = request::heartbeat(request.into_inner())?;
        let TokenOf { run, step, attempt } = self.attempt(&token).await?;
        let key = AttemptKey { run, step, attempt };
        let answer = self.engine.store().beat_by_token(key, details.as_ref()).await;
        let cancel_requested = match answer.map_err(|e| status::of_store(&e))? {
            BeatAnswer::Going => false,
            BeatAnswer::Canceled => true,
            BeatAnswer::Gone => return Err(self.over(key).await?),
        };
        Ok(Response::new(api::HeartbeatStepResponse { cancel_requested }))
    }
}
