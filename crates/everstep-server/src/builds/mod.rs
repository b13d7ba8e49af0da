//! `BuildService`: which builds are there, which are waited for, and whether their code fits the histories.

mod check;
mod files;
mod list;
mod sample;

use std::sync::Arc;

use everstep_engine::Engine;
use everstep_proto::api::{self, build_service_server::BuildService};
use everstep_store::Change;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::check::Check;
use crate::{administer, reason, status};

/// Callers that this node checks histories for at one time: each of them holds some in memory.
const CALLERS_MAX: usize = 4;
/// Answers that wait for a caller that reads slowly.
const ANSWERS_BUFFERED: usize = 16;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct BuildApi {
    engine: Engine,
    draining: CancellationToken,
    callers: Arc<Semaphore>,
}

impl BuildApi {
    pub(crate) fn new(engine: Engine, draining: CancellationToken) -> Self {
        Self { engine, draining, callers: Arc::new(Semaphore::new(CALLERS_MAX)) }
    }
}

#[tonic::async_trait]
impl BuildService for BuildApi {
    async fn list_builds(
        &self,
        request: Request<api::ListBuildsRequest>,
    ) -> Result<Response<api::ListBuildsResponse>, Status> {
        let api::ListBuildsRequest { namespace } = request.into_inner();
        let mut check = Check::default();
        let namespace = check.name_or_default("namespace", namespace);
        check.finish()?;
        let known = self.engine.store().get_namespace(&namespace).await.map_err(|e| status::of_store(&e))?;
        known.ok_or_else(|| status::namespace_not_found(&namespace))?;
        let census = self.engine.census().await.map_err(|e| status::of_engine(&e))?;
        Ok(Response::new(list::encode(&census, &namespace)))
    }

    async fn allow_build(
        &self,
        request: Request<api::AllowBuildRequest>,
    ) -> Result<Response<api::AllowBuildResponse>, Status> {
        let mut wire = request.into_inner();
        let mut check = Check::default();
        let request_id = check.request_id(std::mem::take(&mut wire.request_id));
        let identity = check.identity("identity", std::mem::take(&mut wire.identity));
        let request = administer::request(&request_id, &wire);
        let allowed = list::allowed(&mut check, wire);
        check.finish()?;
        tracing::info!(?allowed, identity, "a build is allowed to go on with the runs of another");
        administer::make(&self.engine, Change::AllowBuild(allowed), request).await?;
        self.engine.builds_changed().await.map_err(|e| status::of_engine(&e))?;
        Ok(Response::new(api::AllowBuildResponse {}))
    }

    type CheckHistoriesStream = ReceiverStream<Result<api::CheckHistoriesResponse, Status>>;

    async fn check_histories(
        &self,
        request: Request<Streaming<api::CheckHistoriesRequest>>,
    ) -> Result<Response<Self::CheckHistoriesStream>, Status> {
        let Ok(place) = Arc::clone(&self.callers).try_acquire_owned() else {
            let message = "the node checks histories for as many callers as it can";
            return Err(status::of(reason::OVERLOADED, message));
        };
        let mut inbound = request.into_inner();
        let plan = check::plan(check::first(&mut inbound).await?)?;
        let (answers, outbound) = mpsc::channel(ANSWERS_BUFFERED);
        let checking = check::Checking::begin(&self.engine, plan, answers.clone()).await?;
        let draining = self.draining.clone();
        tokio::spawn(async move {
            let _place = place;
            let result = tokio::select! {
                result = checking.run(inbound) => result,
                () = draining.cancelled() => Err(status::stopping()),
                () = answers.closed() => return,
            };
            if let Err(error) = result {
                let _ = answers.send(Err(error)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}
