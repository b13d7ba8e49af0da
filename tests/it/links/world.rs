//! A small deployment whose every link goes through a proxy, and the workflow that runs on it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use everstep::{Client, Ctx, RunHandle, StepError, WorkerBuilder, WorkflowError};
use everstep_dispatch::{Dispatch, InProcess};
use everstep_dispatch_nats::{NatsDispatch, NatsOptions};
use everstep_engine::NodeStatus;
use everstep_faultproxy::{Handle, Proxy};
use everstep_store_postgres::{PostgresOptions, PostgresStore, migrate};
use everstep_tests::cluster::{NodeSettings, RunningNode, RunningWorker};
use everstep_tests::servers::{NatsServer, PostgresServer};
use tokio::sync::watch;

use super::truth::{Journal, Truth};

/// Steps of an errand.
pub(crate) const STEPS: usize = 3;
/// How long a test may take: many times what it takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
const SEED: u64 = 20_261_121;

/// Bounds a test.
pub(crate) async fn within<T>(
    what: &str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let done = tokio::time::timeout(LIMIT, work).await;
    done.with_context(|| format!("{what}: no end within {LIMIT:?}, something hangs"))?
}

/// How a world is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    /// Between nodes, and a proxy before it for each.
    pub(crate) nats: bool,
    pub(crate) lease: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self { nodes: 1, nats: false, lease: Duration::from_secs(1) }
    }
}

/// A node, and the proxies of its links.
pub(crate) struct Site {
    pub(crate) node: RunningNode,
    pub(crate) postgres: Proxy,
    pub(crate) nats: Option<Proxy>,
    /// Before the node, for a worker or a client.
    pub(crate) front: Proxy,
    front_url: String,
}

/// Nodes on one database, and what their steps told.
pub(crate) struct World {
    pub(crate) sites: Vec<Site>,
    pub(crate) truth: Truth,
    pub(crate) journal: Arc<Mutex<Journal>>,
    /// Steps named `held` end once this is true.
    pub(crate) gate: watch::Sender<bool>,
    _nats: Option<NatsServer>,
}

impl Site {
    async fn new(database: &str, nats: Option<&NatsServer>, lease: Duration) -> anyhow::Result<Self> {
        let (postgres, database) = Proxy::before(database, SEED).await?;
        let answer_limit = Duration::from_secs(1);
        let options = PostgresOptions { answer_limit, ..crate::stores::postgres_options() };
        let store = PostgresStore::connect(&database, options).await?;
        let mut nats_proxy = None;
        let dispatch: Arc<dyn Dispatch> = match nats {
            Some(server) => {
                let (proxy, url) = Proxy::before(&server.url(), SEED).await?;
                nats_proxy = Some(proxy);
                let publish_timeout = Duration::from_millis(500);
                Arc::new(
                    NatsDispatch::connect(&url, NatsOptions { publish_timeout, ..NatsOptions::default() })
                        .await?,
                )
            }
            None => Arc::new(InProcess::new()),
        };
        let settings = NodeSettings { lease: Some(lease), ..NodeSettings::default() };
        let node = RunningNode::start(Arc::new(store), dispatch, settings).await?;
        let (front, front_url) = Proxy::before(&node.address, SEED).await?;
        Ok(Self { node, postgres, nats: nats_proxy, front, front_url })
    }

    /// A client whose connection goes through the proxy.
    pub(crate) fn client_through_proxy(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.front_url)?)
    }
}

impl World {
    pub(crate) async fn new(plan: Plan) -> anyhow::Result<Self> {
        let url = PostgresServer::shared()?.create_database().await?;
        Self::on(&url, plan).await
    }

    pub(crate) async fn on(url: &str, plan: Plan) -> anyhow::Result<Self> {
        migrate(url).await?;
        let nats = if plan.nats { Some(NatsServer::start()?) } else { None };
        let mut sites = Vec::new();
        for _ in 0..plan.nodes {
            sites.push(Site::new(url, nats.as_ref(), plan.lease).await?);
        }
        let (journal, gate) = (Arc::default(), watch::Sender::new(false));
        Ok(Self { sites, truth: Truth::of(url).await?, journal, gate, _nats: nats })
    }

    /// The first node.
    pub(crate) fn site(&self) -> &Site {
        &self.sites[0]
    }

    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        self.site().node.client()
    }

    /// A worker of a node, reached directly.
    pub(crate) fn worker(&self, site: usize) -> anyhow::Result<RunningWorker> {
        RunningWorker::start(self.hosting(self.sites[site].node.worker()))
    }

    /// A worker of a node whose stream goes through the proxy.
    pub(crate) fn worker_through_proxy(&self, site: usize) -> anyhow::Result<RunningWorker> {
        RunningWorker::start(self.hosting(everstep::Worker::builder(self.sites[site].front_url.clone())))
    }

    fn hosting(&self, worker: WorkerBuilder) -> WorkerBuilder {
        let (journal, gate) = (Arc::clone(&self.journal), self.gate.clone());
        worker
            .build_id("links")
            .park_after(Duration::from_secs(60))
            .register("errand", move |ctx: Ctx, n: u32| {
                errand(ctx, n, Arc::clone(&journal), gate.subscribe())
            })
            .register("quick", quick)
    }

    /// Starts the errands with these numbers.
    pub(crate) async fn start(
        &self,
        client: &Client,
        numbers: Range<u32>,
    ) -> anyhow::Result<Vec<RunHandle<u32>>> {
        let starts = numbers.map(|n| async move {
            // A server that cannot say what became of a start is asked again, under the same request.
            let start = || client.workflow::<u32>("errand").request_id(format!("start-{n}"));
            loop {
                match start().workflow_id(format!("errand/{n}")).start(&n).await {
                    Ok(run) => return Ok(run),
                    Err(error) if may_pass(&error) => {}
                    Err(error) => return Err(anyhow::Error::from(error).context(format!("start {n}"))),
                }
            }
        });
        futures::future::try_join_all(starts).await
    }

    /// Waits until so many runs have done their first step and slept.
    pub(crate) async fn slept(&self, runs: u32) -> anyhow::Result<()> {
        self.truth.wait("SELECT count(*) FROM events WHERE kind = 'TimerFired'", runs.into()).await
    }

    /// Lets the steps end that are held.
    pub(crate) fn open_gate(&self) {
        self.gate.send_replace(true);
    }

    /// Waits until the node's figures are so.
    pub(crate) async fn status(&self, is: impl Fn(&NodeStatus) -> bool) {
        let mut looks = tokio::time::interval(Duration::from_millis(10));
        while !is(&self.site().node.engine.status()) {
            looks.tick().await;
        }
    }

    /// Signals the runs, once each.
    pub(crate) async fn signal(&self, runs: &[RunHandle<u32>]) -> anyhow::Result<()> {
        let signals = runs.iter().map(|run| async move {
            run.signal("go", &100).await.with_context(|| format!("signal to {:?}", run.run_id()))
        });
        futures::future::try_join_all(signals).await?;
        Ok(())
    }

    /// Waits for the results of all errands that there are, in order of their numbers, and checks them and
    /// everything that was recorded.
    pub(crate) async fn finish(&self, runs: &[RunHandle<u32>]) -> anyhow::Result<()> {
        for (n, run) in (0u32..).zip(runs) {
            let result = loop {
                match run.result().await {
                    Ok(result) => break result,
                    Err(everstep::RunError::Client(error)) if may_pass(&error) => {}
                    Err(error) => return Err(anyhow::Error::from(error).context(format!("result {n}"))),
                }
            };
            ensure!(result == n + 101, "errand {n} gave {result}");
        }
        self.truth.check(runs.len()).await?;
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).check()
    }

    /// Attempts of steps that began.
    pub(crate) fn attempts(&self) -> usize {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).begun.len()
    }
}

/// A refusal that says nothing about the request: the store was out of reach.
fn may_pass(error: &everstep::ClientError) -> bool {
    match error {
        everstep::ClientError::Unreachable(_) => true,
        everstep::ClientError::Refused { code, .. } => {
            matches!(code, tonic::Code::Unavailable | tonic::Code::ResourceExhausted)
        }
        _ => false,
    }
}

/// A run for which the fault never happened proves nothing.
pub(crate) fn struck(link: &Handle) -> anyhow::Result<()> {
    for count in link.counts() {
        ensure!(count.fired > 0, "the fault {:?} never happened: {:?}", count.name, link.counts());
    }
    Ok(())
}

/// Three steps, a short sleep, a signal. The second step is held until the gate is open.
async fn errand(
    ctx: Ctx,
    n: u32,
    journal: Arc<Mutex<Journal>>,
    gate: watch::Receiver<bool>,
) -> Result<u32, WorkflowError> {
    let note = move || {
        if let Some(info) = everstep::step_info() {
            let entry = (info.run_id.uuid(), info.name, info.attempt, info.epoch);
            journal.lock().unwrap_or_else(PoisonError::into_inner).begun.push(entry);
        }
    };
    let noted = note.clone();
    let first = ctx.step("first", move || {
        noted();
        async move { Ok::<_, StepError>(n) }
    });
    let first = first.await?;
    ctx.sleep(Duration::from_millis(50)).await;
    let noted = note.clone();
    let held = ctx.step("held", move || {
        noted();
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|open| *open).await?;
            Ok::<_, StepError>(first + 1)
        }
    });
    let held = held.await?;
    let more: u32 = ctx.signal("go").await?;
    let last = ctx.step("last", move || {
        note();
        async move { Ok::<_, StepError>(held + more) }
    });
    Ok(last.await?)
}

/// One step, for whoever only wants a run to end.
async fn quick(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    Ok(ctx.step("only", || async { Ok::<_, StepError>(1) }).await?)
}
