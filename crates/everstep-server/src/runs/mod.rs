//! `RunService`: checks what a request says, asks the engine, says what became of it.

mod export;
mod history;
mod links;
mod query;
pub(crate) mod request;
mod update;
mod waits;
mod with_start;

use std::pin::Pin;
use std::time::Duration;

use everstep_core::{CommandBody, Rejection, RunId, RunStatus, limits};
use everstep_engine::{Closed, Engine, Error, RunSelector};
use everstep_proto::api::{self, run_service_server::RunService};
use everstep_proto::trace;
use everstep_proto::wire::{encode_failure, encode_notes, encode_payload, encode_run, encode_run_status};
use everstep_store::{DoubtFilter, RunRecord};
use futures::Stream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::attributes::Declarations;
use crate::check::Check;
use crate::rpc::Deadline;
use crate::serve::InFlight;
use crate::{page, reason, status, steps};

/// Before its own deadline a caller is told that the run is still open, so that the answer arrives in time.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);

/// Runs of a chain that a request follows while they end one after the other.
const SUCCESSORS_MAX: u32 = 8;

/// Steps in doubt that are shown with their run; ListSteps has them all.
const DOUBTS_SHOWN_MAX: usize = 100;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct RunApi {
    pub(crate) engine: Engine,
    pub(crate) draining: CancellationToken,
    pub(crate) declarations: Declarations,
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
        let (status, result, failure, successor) = match closed {
            Some(Closed { status, result, failure, successor }) => {
                let result = (status == RunStatus::Completed).then(|| encode_payload(&result));
                (status, result, failure.as_ref().map(encode_failure), successor)
            }
            None => (open, None, None, None),
        };
        let status = encode_run_status(status).into();
        let successor_run_id = successor.map(|run| run.to_string()).unwrap_or_default();
        Ok(api::GetResultResponse { run_id: run_id.to_string(), status, result, failure, successor_run_id })
    }

    /// Carries out a request to an existing run.
    async fn command(&self, call: request::RunCall, body: CommandBody) -> Result<(), Status> {
        let mut run_id = self.find(&call.run).await?;
        for _ in 0..SUCCESSORS_MAX {
            let (id, identity) = (call.command_id(run_id), call.identity.clone());
            match self.engine.command(run_id, id, identity, body.clone()).await {
                // It has gone on in a new run in this very moment: whoever names the workflow id means that one.
                Err(Error::Rejected(Rejection::RunClosed { successor: Some(next), .. }))
                    if call.run.run_id.is_none() =>
                {
                    run_id = next;
                }
                done => return done.map_err(|e| status::of_engine(&e)),
            }
        }
        Err(status::of_engine(&Error::Contention { attempts: SUCCESSORS_MAX }))
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
        let mut check = Check::default();
        let (start, wait) = request::start(&mut check, request.into_inner(), trace);
        check.finish()?;
        self.declarations.check_start(&self.engine, "", &start).await?;
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
        let notes =
            self.engine.store().run_notes(record.row.run_id).await.map_err(|e| status::of_store(&e))?;
        let (search_attributes, memo) = encode_notes(&notes);
        let run = api::Run {
            waits_for_build: waits::build_of(&self.engine, &record.row).await?,
            search_attributes,
            memo,
            in_doubt_steps: doubts.into_iter().map(steps::encode).collect(),
            history_events: record.tail_seq,
            history_warning: record.tail_seq >= limits::HISTORY_EVENTS_WARN,
            ..encode_run(&record.row)
        };
        let run = links::show(&**self.engine.store(), vec![run]).await?.pop();
        Ok(Response::new(api::GetRunResponse { run }))
    }

    async fn list_runs(
        &self,
        request: Request<api::ListRunsRequest>,
    ) -> Result<Response<api::ListRunsResponse>, Status> {
        let mut request = request.into_inner();
        let wanted = std::mem::take(&mut request.attribute_filters);
        let build = std::mem::take(&mut request.waits_for_build);
        let (mut filter, page_token, size) = request::list(request)?;
        filter.attributes = self.declarations.filters(&self.engine, &filter.namespace, wanted).await?;
        waits::filter(&self.engine, &mut filter, build).await?;
        let page = page::runs_page(&filter, &page_token)?;
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
        let runs = links::show(&**store, rows.iter().map(encode_run).collect()).await?;
        Ok(Response::new(api::ListRunsResponse { runs, next_page_token }))
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

    type ExportHistoryStream = Pin<Box<dyn Stream<Item = Result<api::ExportHistoryResponse, Status>> + Send>>;

    async fn export_history(
        &self,
        request: Request<api::ExportHistoryRequest>,
    ) -> Result<Response<Self::ExportHistoryStream>, Status> {
        let api::ExportHistoryRequest { run } = request.into_inner();
        let mut check = Check::default();
        let selector = check.run(run);
        check.finish()?;
        let record = self.resolve(&selector).await?;
        let now = self.engine.store().now().await.map_err(|e| status::of_store(&e))?;
        Ok(Response::new(Box::pin(export::stream(self, &record, now))))
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

    async fn update_run(
        &self,
        request: Request<api::UpdateRunRequest>,
    ) -> Result<Response<api::UpdateRunResponse>, Status> {
        let deadline = request.extensions().get::<Deadline>().map(|d| d.0);
        update::update(self, request.into_inner(), deadline).await.map(Response::new)
    }

    async fn get_update(
        &self,
        request: Request<api::GetUpdateRequest>,
    ) -> Result<Response<api::GetUpdateResponse>, Status> {
        let deadline = request.extensions().get::<Deadline>().map(|d| d.0);
        update::get(self, request.into_inner(), deadline).await.map(Response::new)
    }

    async fn signal_with_start_run(
        &self,
        request: Request<api::SignalWithStartRunRequest>,
    ) -> Result<Response<api::SignalWithStartRunResponse>, Status> {
        let trace = trace::extract(request.metadata());
        with_start::signal(self, request.into_inner(), trace).await.map(Response::new)
    }

    async fn update_with_start_run(
        &self,
        request: Request<api::UpdateWithStartRunRequest>,
    ) -> Result<Response<api::UpdateWithStartRunResponse>, Status> {
        let trace = trace::extract(request.metadata());
        let deadline = request.extensions().get::<Deadline>().map(|d| d.0);
        with_start::update(self, request.into_inner(), trace, deadline).await.map(Response::new)
    }
}
