//! A case while it runs: processes, clients, snapshots; and its end: heal, drain, export, verdict.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use everstep_checker::Verdict;
use everstep_checker::format::{Demand, EXPORT, FaultCount, Meta};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::clock::mono_ns;
use crate::export::snapshots;
use crate::judge;
use crate::load::{Load, Phase};
use crate::pace;
use crate::stuck;
use crate::topology::{Layout, StoreKind, Topology, held};

/// File of a case that says which servers it ran on.
pub const VERSIONS: &str = "versions.txt";
/// File of a case with what the nodes counted, by process id.
pub const FIGURES: &str = "figures.json";
/// Quiet load at the beginning, which tells how fast this machine is today.
const CALIBRATION: Duration = Duration::from_secs(2);
/// Answers that count a second, which a machine with two idle cores gives to eight clients.
const NOMINAL_RATE: u64 = 20;
/// Standing still for so long is being stuck, on a fast machine.
const STILL: Duration = Duration::from_secs(60);
/// How long runs that no client waits for may take to end.
const OPEN_MAX: Duration = Duration::from_secs(20);
/// What is added to it for each time that the machine is slower than nominal.
const STILL_MORE: Duration = Duration::from_secs(20);

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where, with what, from which seed.
    pub layout: Layout,
    /// Sequential clients.
    pub clients: u32,
    /// Load after the last heal.
    pub settle: Duration,
    /// What must have happened for the case to count.
    pub demands: Vec<Demand>,
}

impl Options {
    /// Eight clients, and what a case of random faults has to meet.
    #[must_use]
    pub fn of_chaos(layout: Layout) -> Self {
        let mut demands = vec![Demand::Redelivered];
        if layout.store == StoreKind::Postgres {
            demands.extend([Demand::Unknown, Demand::Fenced]);
        }
        Self { layout, clients: 8, settle: Duration::from_secs(4), demands }
    }

    /// Four clients, for a case with a single fault.
    #[must_use]
    pub fn of_fault(layout: Layout) -> Self {
        Self { layout, clients: 4, settle: Duration::from_secs(1), demands: Vec::new() }
    }
}

/// A case under load.
#[derive(Debug)]
pub struct Case {
    options: Options,
    topology: Arc<Topology>,
    load: Arc<Load>,
    clients: JoinSet<anyhow::Result<()>>,
    phase: watch::Sender<Phase>,
    snapshots: (watch::Sender<bool>, JoinHandle<anyhow::Result<u32>>),
    meta: Mutex<Meta>,
    /// What is wrong, and not for the checker to see.
    problems: Mutex<Vec<String>>,
    still: Duration,
}

impl Case {
    /// Starts the processes and the clients, and lets them run undisturbed for a moment. The case's folder is
    /// made anew.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let folder = options.layout.case.clone();
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        let topology = Arc::new(Topology::start(options.layout.clone()).await?);
        topology.declare().await?;
        std::fs::write(folder.join(VERSIONS), topology.versions().await?)?;
        let (phase, phases) = watch::channel(Phase::Load);
        let load = Load::new(options.layout.seed, topology.addresses(), &folder, phases)?;
        let (stop, stopped) = watch::channel(false);
        let taking = tokio::spawn(snapshots(topology.source.clone(), folder, stopped));
        let mut meta = meta(&options);
        meta.started_mono_ns = mono_ns();
        let mut case = Self {
            options,
            topology,
            load,
            clients: JoinSet::new(),
            phase,
            snapshots: (stop, taking),
            meta: Mutex::new(meta),
            problems: Mutex::default(),
            still: STILL,
        };
        for number in 0..case.options.clients {
            case.clients.spawn(Arc::clone(&case.load).client(number));
        }
        case.calibrate().await;
        Ok(case)
    }

    /// Its processes and links.
    #[must_use]
    pub fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// What its clients share.
    #[must_use]
    pub fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.options.layout.case
    }

    /// How long nothing may move before that is being stuck.
    #[must_use]
    pub fn still(&self) -> Duration {
        self.still
    }

    /// A number that grows when a client gets somewhere.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.load.history().moved()
    }

    /// Waits until clients got somewhere `times` times more.
    ///
    /// # Errors
    /// When they do not within `limit`.
    pub async fn wait_moved(&self, times: u64, limit: Duration) -> anyhow::Result<()> {
        let goal = self.moved() + times;
        pace::wait_for("clients get somewhere", limit, || Ok(self.moved() >= goal)).await
    }

    /// A fault was carried out; `fired` if it met somebody.
    pub fn count(&self, name: &str, fired: bool) {
        let mut meta = held(&self.meta);
        let count: &mut FaultCount = meta.faults.entry(name.to_owned()).or_default();
        count.drawn += 1;
        count.fired += u64::from(fired);
    }

    /// Something is wrong that the checker does not see.
    pub fn problem(&self, text: String) {
        held(&self.problems).push(text);
    }

    /// How long nothing may move; a slow machine is given more time for everything.
    async fn calibrate(&mut self) {
        let before = self.moved();
        pace::hold(CALIBRATION).await;
        let nominal = NOMINAL_RATE * u64::from(self.options.clients) / 8;
        let rate = (self.moved() - before) / CALIBRATION.as_secs();
        let slower = (nominal / rate.max(1)).min(5);
        held(&self.meta).late_bound_ms = Some(30_000 + 10_000 * slower);
        self.still = STILL + STILL_MORE * u32::try_from(slower).unwrap_or(5);
        tracing::info!(rate, slower, "calibrated");
    }

    /// Lets `work` happen, unless everything stands still; then says where the dump is.
    ///
    /// # Errors
    /// What the work says.
    pub async fn unless_stuck<T>(
        &self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<Option<T>> {
        let stuck = stuck::stands_still(&self.topology, self.load.history(), self.still);
        tokio::select! {
            done = work => return done.map(Some),
            () = stuck => {}
        }
        let folder = stuck::dump(&self.topology).await?;
        self.problem(format!("nothing moved for {:?}; see {}", self.still, folder.display()));
        self.phase.send_replace(Phase::Stop);
        Ok(None)
    }

    /// Heals what is left, sees all runs to their end, stops everything in order, and judges.
    ///
    /// # Errors
    /// When that cannot be carried out; what the product does wrong is in the verdict.
    pub async fn finish(mut self) -> anyhow::Result<Verdict> {
        if *self.phase.borrow() != Phase::Stop {
            let mut clients = std::mem::take(&mut self.clients);
            self.unless_stuck(self.drain(&mut clients)).await?;
            self.clients = clients;
        } else {
            // A fault may have been cut off: what it held down keeps the end from being an orderly one.
            let _ = self.topology.heal().await;
        }
        while let Some(client) = self.clients.join_next().await {
            client??;
        }
        self.snapshots.0.send_replace(true);
        (&mut self.snapshots.1).await??;
        self.topology.ask_figures().await;
        let ends = self.topology.unwanted_ends();
        let stops = self.topology.stop().await;
        self.export().await?;
        let told = judge::unearned(self.folder())?;
        let problems = [held(&self.problems).clone(), ends, stops, self.load.problems(), told].concat();
        judge::judge(self.folder(), problems)
    }

    async fn drain(&self, clients: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
        self.topology.heal().await?;
        {
            let at = self.topology.database_us().await?;
            let mut meta = held(&self.meta);
            meta.healed_mono_ns = Some(mono_ns());
            meta.healed_at_us = Some(at);
        }
        tracing::info!("healed");
        self.phase.send_replace(Phase::Settle);
        pace::hold(self.options.settle).await;
        self.phase.send_replace(Phase::Drain);
        let began = Instant::now();
        while let Some(client) = clients.join_next().await {
            client??;
        }
        self.topology.none_open(OPEN_MAX).await?;
        tracing::info!(took = ?began.elapsed(), "drained");
        Ok(())
    }

    async fn export(&self) -> anyhow::Result<()> {
        let folder = self.folder();
        let exported_at = self.topology.database_us().await?;
        self.topology.source.finish(folder).await?;
        let figures = &self.topology.figures;
        std::fs::write(folder.join(FIGURES), serde_json::to_string_pretty(&figures.all())?)?;
        let mut meta = held(&self.meta);
        meta.exported_at_us = Some(exported_at);
        meta.refused_fenced = figures.sum("everstep_commits_fenced_total");
        meta.unknown_resolved = figures.sum("everstep_outcomes_settled_total");
        meta.redelivered = given_again(folder)?;
        meta.write(folder)
    }
}

fn meta(options: &Options) -> Meta {
    let layout = &options.layout;
    Meta {
        seed: layout.seed,
        git: judge::git_hash(),
        store: layout.store.as_str().to_owned(),
        nodes: layout.nodes,
        workers: layout.workers,
        lease_ms: u64::try_from(layout.lease.as_millis()).unwrap_or(u64::MAX),
        demands: options.demands.clone(),
        planted_bug: layout.planted_bug(),
        ..Meta::default()
    }
}

/// Runs that went to a worker after another one had lost them.
fn given_again(folder: &Path) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(folder.join(EXPORT))?;
    let lost = |line: &&str| line.contains("\"WorkerDetached\"") && line.contains("\"lost\"");
    Ok(text.lines().filter(lost).count() as u64)
}
