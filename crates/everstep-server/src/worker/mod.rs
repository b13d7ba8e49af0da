//! `WorkerService`: one stream per worker, translated message by message and framed by the handful.

mod asks;
mod frame;
mod hello;
mod steps;
mod stream;
mod token;

use everstep_core::NodeId;
use everstep_engine::Engine;
use everstep_proto::api::{self, worker_service_server::WorkerService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::status;
use crate::steps::token::Deployment;
use stream::Session;

/// Frames that wait for a worker which reads slowly, besides what the transport buffers.
const FRAMES_BUFFERED: usize = 2;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct WorkerApi {
    pub(crate) engine: Engine,
    pub(crate) node_id: NodeId,
    pub(crate) draining: CancellationToken,
    pub(crate) deployment: Deployment,
}

#[tonic::async_trait]
impl WorkerService for WorkerApi {
    type ConnectStream = ReceiverStream<Result<api::ConnectResponse, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<api::ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        if self.draining.is_cancelled() {
            return Err(status::stopping());
        }
        let mut inbound = request.into_inner();
        let opening = hello::receive(&mut inbound).await?;
        let accepted = hello::check(opening.hello)?;
        let held = accepted.held.iter().map(|h| (h.run_id, h.epoch)).collect();
        let tokens = match &accepted.steps {
            Some(_) => Some(self.deployment.tokens(&self.engine).await?),
            None => None,
        };
        let link = self.engine.connect_worker(accepted).await.map_err(|e| status::of_engine(&e))?;
        let (frames, outbound) = mpsc::channel(FRAMES_BUFFERED);
        let session = Session {
            inbound,
            rest: opening.rest,
            frames,
            framer: frame::Framer::new(self.node_id, held).with_tokens(tokens),
            draining: self.draining.clone(),
        };
        tokio::spawn(session.run(link));
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}
