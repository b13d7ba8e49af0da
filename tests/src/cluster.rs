//! Server nodes in this process, over any store.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use everstep::{Client, WorkerBuilder};
use everstep_core::{NodeId, Timestamp};
use everstep_dispatch::{Dispatch, InProcess};
use everstep_engine::{Engine, EngineConfig, Observer};
use everstep_server::{Server, ServerOptions};
use everstep_store::{MemoryStore, Store};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// A node that serves on a port of its own.
#[derive(Debug)]
pub struct RunningNode {
    /// Where to reach it.
    pub address: String,
    /// Its engine.
    pub engine: Engine,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

/// How a node differs from the default.
#[derive(Debug, Default)]
pub struct NodeSettings {
    /// Lease of its sessions; default 1 s, so that tests of lost workers are short.
    pub lease: Option<Duration>,
    /// How often it looks for what was lost; default 200 ms.
    pub sweep: Option<Duration>,
    /// Told of starts and ends.
    pub observer: Option<Arc<dyn Observer>>,
}

impl RunningNode {
    /// Starts a node over a store and a dispatch.
    ///
    /// # Errors
    /// Whatever keeps it from serving.
    pub async fn start(
        store: Arc<dyn Store>,
        dispatch: Arc<dyn Dispatch>,
        settings: NodeSettings,
    ) -> anyhow::Result<Self> {
        let node_id = NodeId::from_uuid(Uuid::new_v4());
        let mut config = EngineConfig::new(node_id);
        config.lease = settings.lease.unwrap_or(Duration::from_secs(1)).into();
        config.sweep_interval = settings.sweep.unwrap_or(Duration::from_millis(200));
        config.look_interval = Duration::from_millis(200);
        config.waiting_age = Duration::from_millis(200).into();
        config.scan_interval = Duration::from_millis(200);
        config.observer = settings.observer;
        let engine = Engine::start(config, store, dispatch).await?;
        let server = Server::bind("127.0.0.1:0".parse()?, ServerOptions::new(node_id)).await?;
        let address = format!("http://{}", server.local_addr());
        let (stop, stopped) = oneshot::channel::<()>();
        let serving_engine = engine.clone();
        let serving = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            if let Err(error) = server.serve(serving_engine, stopped).await {
                eprintln!("node ended: {error}");
            }
        });
        Ok(Self { address, engine, stop: Some(stop), serving })
    }

    /// A single node over an empty in-memory store.
    ///
    /// # Errors
    /// Whatever keeps it from serving.
    pub async fn in_memory() -> anyhow::Result<Self> {
        Self::start(memory_store(), Arc::new(InProcess::new()), NodeSettings::default()).await
    }

    /// A client of this node.
    ///
    /// # Errors
    /// Never for an address that this node made.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.address)?)
    }

    /// Settings for a worker of this node.
    pub fn worker(&self) -> WorkerBuilder {
        everstep::Worker::builder(self.address.clone())
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn shutdown(mut self) -> anyhow::Result<()> {
        drop(self.stop.take());
        (&mut self.serving).await?;
        Ok(())
    }
}

impl Drop for RunningNode {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// An empty in-memory store on the host's clock.
pub fn memory_store() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }))
}

/// A worker that runs beside the test and dies with this value, without a goodbye.
#[derive(Debug)]
pub struct RunningWorker {
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), everstep::WorkerError>>,
}

impl RunningWorker {
    /// Starts it.
    ///
    /// # Errors
    /// When its settings are wrong.
    pub fn start(builder: WorkerBuilder) -> anyhow::Result<Self> {
        let worker = builder.build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(worker.run_until(async {
            let _ = stopped.await;
        }));
        Ok(Self { stop: Some(stop), running })
    }

    /// Lets it end in order.
    ///
    /// # Errors
    /// What the worker says.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.stop.take());
        (&mut self.running).await??;
        Ok(())
    }
}

impl Drop for RunningWorker {
    fn drop(&mut self) {
        self.running.abort();
    }
}
