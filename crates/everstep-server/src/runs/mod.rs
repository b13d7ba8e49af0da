//! `RunService`: checks what a request says, asks the engine, says what became of it.

mod history;
mod query;
pub(crate) mod request;

use std::pin::Pin;
use std::time::Duration;

use everstep_core::{CommandBody, RunId, RunStatus, limits};
use everstep_engine::{Closed, Engine, RunSelector};
use everstep_proto::api::{self, run_service_server::RunService};
use everstep_proto::trace;
use everstep_proto::wire::{encode_failure, encode_payload, encode_run, encode_run_status};
use everstep_store::{DoubtFilter, RunRecord};
use futures::Stream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::check::Check;
use crate::rpc::Deadline;
use crate::serve::InFlight;
use crate::{page, reason, status, steps};

/// Before its own deadline a caller is told that the run is still open, so that the answer arrives in time.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);

/// Steps in doubt that are shown with their run; ListSteps has them all.
const DOUBTS_SHOWN_MAX: usize = 100;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct RunApi {
    pub(crate) engine: Engine,
    pub(crate) draining: CancellationToken,
}

impl RunApi {
    async fn resolve(&self, selector: &RunSelector) -> Result<RunRecord, Status> {
        self.engine.resolve(selector).await.map_err(|e| status::of_engine(&e))
    }

    async fn find(&self, selector: &RunSelector) -> Result<RunId, Status> {
        self.engine.find(selector).await.map_err(|e| status::of_engine(&e))
    }

    async fn wait_closed(&self, run: RunId, wait: Duration) -> Result<Option<Closed>, Status> {
        self.engine.wait_closed(run, wait).await.map_err(|e| status::of_engine(&e))
    }

    /// How the run stands once it is closed, or `wait` or the caller's own deadline is over.
    async fn outcome(
        &self,
        run_id: RunId,
        mut wait: Duration,
        deadline: Option<Instant>,
    ) -> Result<api::GetResultResponse, Status> {
        if let Some(deadline) = deadline {
            wait = wait.min(answer_in_time(deadline));
        }
        let mut closed = tokio::select! {
            closed = self.wait_closed(run_id, wait) => closed?,
            // The caller asks again, and finds another node.
            () = self.draining.cancelled() => None,
        };
        let mut open = RunStatus::Running;
        if closed.is_none() {
            let now = self.engine.store().get_run(run_id).await.map_err(|e| status::of_store(&e))?;
            open = now.map_or(RunStatus::Running, |record| record.row.status);
            if open.is_closed() {
                // It ended in this very moment.
                closed = self.wait_closed(run_id, Duration::ZERO).await?;
                open = RunStatus::Running;
            }
        }
        let (status, result, failure) = match closed {
            Some(Closed { status, result, failure: None }) => (status, Some(encode_payload(&result)), None),
            Some(Closed { status, failure: Some(failure), .. }) => {
                (status, None, Some(encode_failure(&failure)))
            }
            None => (open, None, None),
        };
        let status = encode_run_status(status).into();
        Ok(api::GetResultResponse { run_id: run_id.to_string(), status, result, failure })
    }

    /// Carries out a request to an existing run.
    async fn command(&self, call: request::RunCall, body: CommandBody) -> Result<(), Status> {
        let run_id = self.find(&call.run).await?;
        let id = call.command_id(run_id);
        self.engine.command(run_id, id, call.identity, body).await.map_err(|e| status::of_engine(&e))
    }
}

/// How long something may be waited for, if the caller is to hear of it before its deadline.
fn answer_in_time(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.saturating_sub(ANSWER_MARGIN.min(left / 4))
}

#[tonic::async_trait]
impl RunService for RunApi {
    async fn start_run(
        &self,
        request: Request<api::StartRunRequest>,
    ) -> Result<Response<api::StartRunResponse>, Status> {
        let trace = trace::extract(request.metadata());
        let deadline = request.extensions().get::<Deadline>().map(|d| d.0);
        let in_flight = request.extensions().get::<InFlight>().cloned();
        let (start, wait) = request::start(request.into_inner(), trace)?;
        let workflow_id = start.workflow_id.clone();
        let started = self.engine.start_run(start).await.map_err(|e| status::of_engine(&e))?;
        in_flight.iter().for_each(InFlight::settle);
        let outcome = match wait {
            Duration::ZERO => None,
            // The start is durable whatever becomes of the wait.
            wait => self.outcome(started.run_id, wait, deadline).await.ok(),
        };
        Ok(Response::new(api::StartRunResponse {
            run_id: started.run_id.to_string(),
            workflow_id,
            started: started.started,
            outcome,
        }))
    }

    async fn get_run(
        &self,
        request: Request<api::GetRunRequest>,
    ) -> Result<Response<api::GetRunResponse>, Status> {
        let api::GetRunRequest { run } = request.into_inner();
        let mut check = Check::default();
        let selector = check.run(run);
        check.finish()?;
        let record = self.resolve(&selector).await?;
        let filter = DoubtFilter { namespace: record.row.namespace.clone(), run: Some(record.row.run_id) };
        let doubts = self.engine.store().list_doubts(&filter, None, DOUBTS_SHOWN_MAX).await;
        let doubts = doubts.map_err(|e| status::of_store(&e))?;
        let run = api::Run {
            in_doubt_steps: doubts.into_iter().map(steps::encode).collect(),
            history_events: record.tail_seq,
            history_warning: record.tail_seq >= limits::HISTORY_EVENTS_WARN,
            ..encode_run(&record.row)
        };
        Ok(Response::new(api::GetRunResponse { run: Some(run) }))
    }

    async fn list_runs(
        &self,
        request: Request<api::ListRunsRequest>,
    ) -> Result<Response<api::ListRunsResponse>, Status> {
        let (filter, page, size) = request::list(request.into_inner())?;
        let store = self.engine.store();
        // One more than asked for tells whether there is another page.
        let mut rows = store.list_runs(&filter, page, size + 1).await.map_err(|e| status::of_store(&e))?;
        if rows.is_empty() && page.is_none() {
            let known = store.get_namespace(&filter.namespace).await.map_err(|e| status::of_store(&e))?;
            known.ok_or_else(|| status::namespace_not_found(&filter.namespace))?;
        }
        let more = rows.len() > size;
        rows.truncate(size);
        let next_page_token = match rows.last() {
            Some(last) if more => page::runs_token(&filter, last.run_id),
            _ => String::new(),
        };
        Ok(Response::new(api::ListRunsResponse {
            runs: rows.iter().map(encode_run).collect(),
            next_page_token,
        }))
    }

    type GetHistoryStream = Pin<Box<dyn Stream<Item = Result<api::GetHistoryResponse, Status>> + Send>>;

    async fn get_history(
        &self,
        request: Request<api::GetHistoryRequest>,
    ) -> Result<Response<Self::GetHistoryStream>, Status> {
        let api::GetHistoryRequest { run, after_seq, follow, limit } = request.into_inner();
        let mut check = Check::default();
        let selector = check.run(run);
        check.finish()?;
        let record = self.resolve(&selector).await?;
        if after_seq > record.tail_seq {
            let problem = format!("is {after_seq}, but the history ends with event {}", record.tail_seq);
            return Err(status::of_violations(vec![status::violation(
                "after_seq",
                reason::INVALID_ARGUMENT,
                problem,
            )]));
        }
        let wanted = history::Wanted { after: after_seq, follow, limit };
        let reader = history::Reader::new(&self.engine, &record, wanted, self.draining.clone());
        Ok(Response::new(Box::pin(reader.stream())))
    }

    async fn signal_run(
        &self,
        request: Request<api::SignalRunRequest>,
    ) -> Result<Response<api::SignalRunResponse>, Status> {
        let (call, body) = request::signal(request.into_inner())?;
        self.command(call, body).await?;
        Ok(Response::new(api::SignalRunResponse {}))
    }

    async fn cancel_run(
        &self,
        request: Request<api::CancelRunRequest>,
    ) -> Result<Response<api::CancelRunResponse>, Status> {
        let (call, body) = request::cancel(request.into_inner())?;
        self.command(call, body).await?;
        Ok(Response::new(api::CancelRunResponse {}))
    }

    async fn terminate_run(
        &self,
        request: Request<api::TerminateRunRequest>,
    ) -> Result<Response<api::TerminateRunResponse>, Status> {
        let (call, body) = request::terminate(request.into_inner())?;
        self.command(call, body).await?;
        Ok(Response::new(api::TerminateRunResponse {}))
    }

    async fn get_result(
        &self,
        request: Request<api::GetResultRequest>,
    ) -> Result<Response<api::GetResultResponse>, Status> {
        let deadline = request.extensions().get::<Deadline>().map(|d| d.0);
        let api::GetResultRequest { run, wait } = request.into_inner();
        let mut check = Check::default();
        let selector = check.run(run);
        let wait = check.wait("wait", wait);
        check.finish()?;
        let run_id = self.find(&selector).await?;
        self.outcome(run_id, wait, deadline).await.map(Response::new)
    }

    async fn query_run(
        &self,
        request: Request<api::QueryRunRequest>,
    ) -> Result<Response<api::QueryRunResponse>, Status> {
        let deadline = request.extensions().get::<Deadline>().map(|d| d.0);
        query::query(self, request.into_inner(), deadline).await.map(Response::new)
    }
}
