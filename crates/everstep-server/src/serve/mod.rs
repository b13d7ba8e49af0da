//! The server: one port, explicit limits, and an orderly end.

mod budget;
mod connection;
mod flood;
mod gate;
mod limits;
mod patience;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use everstep_core::NodeId;
use everstep_engine::Engine;
use everstep_proto::api::build_service_server::BuildServiceServer;
use everstep_proto::api::namespace_service_server::NamespaceServiceServer;
use everstep_proto::api::queue_service_server::QueueServiceServer;
use everstep_proto::api::run_service_server::RunServiceServer;
use everstep_proto::api::step_service_server::StepServiceServer;
use everstep_proto::api::worker_service_server::WorkerServiceServer;
use tokio::net::TcpListener;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::layer::util::{Identity, Stack};

use crate::Error;
use crate::attributes::Declarations;
use crate::builds::BuildApi;
use crate::http::{self, Probe};
use crate::metrics::Metrics;
use crate::namespaces::NamespaceApi;
use crate::queues::QueueApi;
use crate::rpc::RpcLayer;
use crate::runs::RunApi;
use crate::steps::StepApi;
use crate::steps::token::Deployment;
use crate::worker::WorkerApi;

pub(crate) use budget::InFlight;
pub use limits::{ConnectionLimits, raise_open_files};

use budget::Budget;
use gate::Gate;
use patience::Patience;

/// Largest message that is taken.
const DECODE_BYTES_MAX: usize = 4 << 20;
/// Largest message that is sent: a frame's bytes and one event as large as a message that is taken.
const ENCODE_BYTES_MAX: usize = 8 << 20;
/// Largest message to the services beside ours: they are asked for names only.
const ASIDE_BYTES_MAX: usize = 64 << 10;
const STREAMS_MAX: u32 = 200;
/// What a client may send ahead, on one stream and on all of a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 1 << 20;
const FRAME_BYTES_MAX: u32 = 16 << 10;
const HEADERS_BYTES_MAX: u32 = 16 << 10;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// After this long a connection is asked to be made anew, so that clients spread over nodes. It takes no new
/// calls then, and what is open on it goes on to its end: calls have their own deadline, and a worker's
/// stream is meant to last. A worker that is gone is found by keepalive, not by age. (Tonic's grace would cut
/// all of it off, without asking first.)
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(3_600);
/// Streams that a client has opened and reset before we looked at them.
const PENDING_RESETS_MAX: usize = 20;
/// Streams that we have reset for a client's faults, after which the connection is closed.
const LOCAL_RESETS_MAX: usize = 1_024;
/// What requests may take in memory: 64 of the largest.
const REQUEST_BYTES: usize = 256 << 20;
/// How long connections that are still open after the grace get to end by themselves.
const LAST_CALL: Duration = Duration::from_secs(1);

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// This process, as workers are told.
    pub node_id: NodeId,
    /// Listen on an address that other machines can reach, although there is no authentication yet.
    pub allow_remote: bool,
    /// How long a shutdown waits for what is in flight before it closes the connections.
    pub grace: Duration,
    /// Limits on connections.
    pub connections: ConnectionLimits,
    /// Most bytes of requests that are coming in or being carried out, on all connections together; what a
    /// request has beyond 16 KiB counts. Default 256 MiB.
    pub request_bytes: usize,
}

impl ServerOptions {
    /// Loopback only, 10 s of grace, the usual limits.
    pub fn new(node_id: NodeId) -> Self {
        Self {
            node_id,
            allow_remote: false,
            grace: Duration::from_secs(10),
            connections: ConnectionLimits::default(),
            request_bytes: REQUEST_BYTES,
        }
    }
}

/// A server that listens, but does not serve yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    addr: SocketAddr,
    options: ServerOptions,
}

impl Server {
    /// Listens on `addr`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`Error::RemoteRefused`] for an address beyond loopback without `allow_remote`; [`Error::Bind`].
    pub async fn bind(addr: SocketAddr, options: ServerOptions) -> Result<Self, Error> {
        if !options.allow_remote && !addr.ip().to_canonical().is_loopback() {
            return Err(Error::RemoteRefused { addr });
        }
        let failed = |source| Error::Bind { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, addr, options })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `shutdown` is over, then ends in order: health says so, no connection is taken any more,
    /// long polls are answered, `engine` is shut down, which lets the workers go; after the grace what is
    /// still open is closed.
    ///
    /// Dropping the future stops accepting; connections that are open live on until the runtime ends.
    ///
    /// # Errors
    /// [`Error::Reflection`], [`Error::Metrics`], [`Error::Transport`].
    pub async fn serve(self, engine: Engine, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let Self { listener, addr, options } = self;
        let metrics = Metrics::new().map_err(Error::Metrics)?;
        let draining = CancellationToken::new();
        let closed = CancellationToken::new();
        let hard_stop = CancellationToken::new();
        let probe = Probe { engine: engine.clone(), metrics: metrics.clone(), draining: draining.clone() };
        let (reporter, health) = tonic_health::server::health_reporter();
        let routes = routes(&engine, &options, &probe)?;
        let limits = options.connections.clone().within_open_files();
        let gate = Gate::new(&limits, metrics.connections().clone(), metrics.refused().clone());
        let incoming = connection::accept(listener, gate, limits, hard_stop.clone());
        tracing::info!(%addr, "listening");

        let patience = Patience::default();
        let serving = async {
            let result = transport(patience.clone(), Budget::new(options.request_bytes), metrics)
                .add_routes(routes)
                .add_service(health.max_decoding_message_size(ASIDE_BYTES_MAX))
                .serve_with_incoming_shutdown(incoming, draining.clone().cancelled_owned())
                .await;
            closed.cancel();
            result.map_err(Error::Transport)
        };
        let ending = async {
            tokio::select! {
                () = shutdown => {}
                () = closed.cancelled() => {}
                () = report(&probe, &reporter) => {}
                () = patience.keep() => {}
            }
            tracing::info!("shutting down");
            let deadline = Instant::now() + options.grace;
            say(&reporter, ServingStatus::NotServing).await;
            draining.cancel();
            engine.shutdown(options.grace).await;
            let until = deadline.max(Instant::now() + LAST_CALL);
            if tokio::time::timeout_at(until, closed.cancelled()).await.is_err() {
                tracing::warn!("closing connections that did not end within the grace");
                hard_stop.cancel();
            }
        };
        let (result, ()) = tokio::join!(serving, ending);
        result
    }
}

/// What every call passes through, from the right.
type Layers = Stack<RpcLayer, Stack<Budget, Stack<Patience, Identity>>>;

/// The transport with every limit said out loud.
fn transport(patience: Patience, budget: Budget, metrics: Metrics) -> tonic::transport::Server<Layers> {
    tonic::transport::Server::builder()
        .accept_http1(true)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .max_connection_age(CONNECTION_AGE_MAX)
        .layer(patience)
        .layer(budget)
        .layer(RpcLayer::new(metrics))
}

fn routes(engine: &Engine, options: &ServerOptions, probe: &Probe) -> Result<Routes, Error> {
    let draining = &probe.draining;
    let runs = RunServiceServer::new(RunApi {
        engine: engine.clone(),
        draining: draining.clone(),
        declarations: Declarations::default(),
    })
    .max_decoding_message_size(DECODE_BYTES_MAX)
    .max_encoding_message_size(ENCODE_BYTES_MAX)
    .accept_compressed(CompressionEncoding::Gzip);
    let namespaces = NamespaceServiceServer::new(NamespaceApi { engine: engine.clone() })
        .max_decoding_message_size(DECODE_BYTES_MAX)
        .max_encoding_message_size(ENCODE_BYTES_MAX)
        .accept_compressed(CompressionEncoding::Gzip);
    let deployment = Deployment::default();
    let queues = QueueServiceServer::new(QueueApi { engine: engine.clone() })
        .max_decoding_message_size(DECODE_BYTES_MAX)
        .max_encoding_message_size(ENCODE_BYTES_MAX)
        .accept_compressed(CompressionEncoding::Gzip);
    let steps = StepServiceServer::new(StepApi { engine: engine.clone(), deployment: deployment.clone() })
        .max_decoding_message_size(DECODE_BYTES_MAX)
        .max_encoding_message_size(ENCODE_BYTES_MAX)
        .accept_compressed(CompressionEncoding::Gzip);
    let builds = BuildServiceServer::new(BuildApi::new(engine.clone(), draining.clone()))
        .max_decoding_message_size(DECODE_BYTES_MAX)
        .max_encoding_message_size(ENCODE_BYTES_MAX)
        .accept_compressed(CompressionEncoding::Gzip);
    let workers = WorkerServiceServer::new(WorkerApi {
        engine: engine.clone(),
        node_id: options.node_id,
        draining: draining.clone(),
        deployment,
    })
    .max_decoding_message_size(DECODE_BYTES_MAX)
    .max_encoding_message_size(ENCODE_BYTES_MAX)
    .accept_compressed(CompressionEncoding::Gzip);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(everstep_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(Error::Reflection)?
        .max_decoding_message_size(ASIDE_BYTES_MAX);
    let mut routes = Routes::new(runs)
        .add_service(namespaces)
        .add_service(steps)
        .add_service(queues)
        .add_service(builds)
        .add_service(workers)
        .add_service(reflection);
    let router = std::mem::take(routes.axum_router_mut());
    *routes.axum_router_mut() = router.merge(http::routes(probe.clone())).fallback(http::unknown);
    Ok(routes)
}

/// Keeps gRPC health in step with readiness. Never ends.
async fn report(probe: &Probe, reporter: &HealthReporter) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        ticks.tick().await;
        let ready = probe.not_ready().is_empty();
        if told != Some(ready) {
            told = Some(ready);
            say(reporter, if ready { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
        }
    }
}

async fn say(reporter: &HealthReporter, status: ServingStatus) {
    for service in [
        "",
        <RunServiceServer<RunApi> as NamedService>::NAME,
        <NamespaceServiceServer<NamespaceApi> as NamedService>::NAME,
        <StepServiceServer<StepApi> as NamedService>::NAME,
        <QueueServiceServer<QueueApi> as NamedService>::NAME,
        <BuildServiceServer<BuildApi> as NamedService>::NAME,
        <WorkerServiceServer<WorkerApi> as NamedService>::NAME,
    ] {
        reporter.set_service_status(service, status).await;
    }
}
