//! The previous release and this one as two nodes of one deployment: rolling restart, rollback, and forward again,
//! with runs open across each switch. `cargo xtask drill upgrade` builds both and runs this.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use everstep::{Client, RunHandle};
use everstep_core::EventBody;
use everstep_tests::servers::{NatsServer, PostgresServer, require};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::load::{self, Account, Clients, PATIENCE};
use crate::support::{Ended, Running, build, folder};

/// Steps of a run of the binaries' own worker.
const STEPS: u32 = 12;
/// Answers from each node before the next switch.
const PROGRESS: usize = 25;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Release {
    Previous,
    Present,
}
use Release::{Present, Previous};

/// How a node ends before its successor starts.
#[derive(Clone, Copy, Debug)]
enum End {
    Orderly,
    Killed,
}

/// The order of the switches: which node becomes what, and how its predecessor ends.
const SWITCHES: [(usize, Release, End); 6] = [
    (0, Present, End::Orderly),
    (1, Present, End::Orderly),
    (0, Previous, End::Killed),
    (1, Previous, End::Orderly),
    (0, Present, End::Orderly),
    (1, Present, End::Killed),
];

/// One deployment: two nodes, and for each a worker process, a worker of this test, and clients.
struct Site {
    folder: TempDir,
    binaries: [PathBuf; 2],
    database: String,
    nats: String,
    nodes: Vec<Node>,
    /// Runs of the workflow that the binaries' own worker hosts.
    long: Vec<RunHandle<Vec<String>>>,
    report: String,
}

struct Node {
    process: Option<Running>,
    worker: Option<Running>,
    address: String,
    account: Account,
}

impl Site {
    fn binary(&self, release: Release) -> &Path {
        &self.binaries[release as usize]
    }

    fn command(&self, release: Release, arguments: &[&str]) -> tokio::process::Command {
        let mut command = build(self.binary(release), self.folder.path(), arguments);
        command.env("EVERSTEP_DATABASE_URL", &self.database);
        command
    }

    async fn node(&self, release: Release, listen: &str) -> anyhow::Result<Running> {
        let arguments = ["server", "--lease", "2s", "--listen", listen, "--allow-fsync-off"];
        let mut command = self.command(release, &arguments);
        command.env("EVERSTEP_NATS_URL", &self.nats);
        Running::server(command).await
    }

    fn worker(&self, release: Release, address: &str) -> anyhow::Result<Running> {
        let path = self.folder.path().display().to_string();
        let arguments = ["demo", "crash-worker", "--address", address, "--folder", &path];
        Running::worker(self.command(release, &arguments), address)
    }

    /// Adds a line to the report, and says it at once.
    fn say(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.report, "{line}")?;
        Ok(writeln!(std::io::stderr(), "{line}")?)
    }

    /// `everstep migrate`; how many migrations it applied.
    async fn migrate(&mut self, release: Release) -> anyhow::Result<u32> {
        let ended: Ended = self.command(release, &["migrate"]).output().await?.into();
        ensure!(ended.code == Some(0), "{release:?}: {ended:?}");
        self.say(&format!("{release:?} migrate: {}", ended.stderr.trim()))?;
        let count = ended.stderr.split_whitespace().next().context("it says nothing")?;
        Ok(count.parse()?)
    }

    /// Both nodes answer, and a long run begins that the next switch will meet.
    async fn progress(&mut self) -> anyhow::Result<()> {
        for (number, node) in self.nodes.iter().enumerate() {
            let answers = node.account.so_far().answers() + PROGRESS;
            node.account.answers(answers).await.with_context(|| format!("node {number} stands still"))?;
        }
        for node in &self.nodes {
            let client = Client::connect(&node.address)?;
            let id = format!("long-{}", self.long.len());
            self.long.push(client.workflow("crash-demo").workflow_id(id).start(&STEPS).await?);
        }
        Ok(())
    }

    async fn switch(&mut self, number: usize, to: Release, end: End, may_refuse: bool) -> anyhow::Result<()> {
        let open = self.open_runs().await?;
        ensure!(open > 0, "no run is open across this switch");
        let node = &mut self.nodes[number];
        let (process, worker) = (node.process.take(), node.worker.take());
        let listen = node.address.trim_start_matches("http://").to_owned();
        let (process, worker) = (process.context("no node")?, worker.context("no worker")?);
        match end {
            End::Orderly => ensure!(process.terminate().await? == Some(0), "{number} did not end in order"),
            End::Killed => process.kill_9().await?,
        }
        let (started, became) = match self.node(to, &listen).await {
            Err(error) if may_refuse && to == Previous => {
                self.say(&format!("node {number}: rollback refused at start: {error}"))?;
                (self.node(Present, &listen).await?, Present)
            }
            started => (started.with_context(|| format!("node {number} does not become {to:?}"))?, to),
        };
        match end {
            End::Orderly => drop(worker.terminate().await?),
            End::Killed => worker.kill_9().await?,
        }
        // Its worker is of the other release, so that each release's runs are replayed by the other.
        let other = if became == Present { Previous } else { Present };
        let address = self.nodes[number].address.clone();
        self.nodes[number].worker = Some(self.worker(other, &address)?);
        self.nodes[number].process = Some(started);
        self.say(&format!("node {number} is {became:?} now ({end:?} end before), {open} runs were open"))
    }

    async fn open_runs(&self) -> anyhow::Result<usize> {
        let arguments = ["run", "list", "--status", "running", "--limit", "1000", "-o", "jsonl", "--address"];
        let mut command = self.command(Present, &arguments);
        let ended: Ended = command.arg(&self.nodes[0].address).output().await?.into();
        ensure!(ended.code == Some(0), "{ended:?}");
        Ok(ended.stdout.lines().count())
    }

    /// Everything that was acknowledged by any node is there, and every run ends as it should.
    async fn settle(&mut self) -> anyhow::Result<()> {
        let address = self.nodes[1].address.clone();
        let (mut starts, mut answers) = (0, 0);
        for node in &self.nodes {
            let told = node.account.so_far();
            let losses = load::losses(&address, &told).await?;
            ensure!(losses.is_empty(), "LOST: {losses:#?}");
            starts += told.started.len();
            answers += told.answers();
        }
        let lost = load::finish(&address).await?;
        for run in &self.long {
            let id = run.run_id();
            let result = timeout(PATIENCE, run.result()).await;
            let result = result.with_context(|| format!("STUCK: run {id:?} does not end"))??;
            ensure!(result.len() == STEPS as usize, "run {id:?}: {result:?}");
            let (mut history, mut steps) = (run.history(0, false).await?, Vec::new());
            while let Some(event) = history.next().await? {
                if let EventBody::StepCompleted { step, .. } = event.body {
                    steps.push(step.0);
                }
            }
            ensure!(steps == (1..=STEPS).collect::<Vec<_>>(), "run {id:?}: steps {steps:?} have results");
        }
        let long = self.long.len();
        self.say(&format!(
            "{starts} starts and {answers} answers in all, none lost; {long} long runs completed; \
             a worker was lost {lost} times"
        ))
    }

    /// `admin rebuild --check` of a release; how many runs it saw.
    async fn check(&mut self, release: Release) -> anyhow::Result<usize> {
        let ended: Ended = self.command(release, &["admin", "rebuild", "--check"]).output().await?.into();
        ensure!(ended.code == Some(0) && ended.stderr.contains(", 0 different"), "{release:?}: {ended:?}");
        self.say(&format!("{release:?} admin rebuild --check: {}", ended.stderr.trim()))?;
        let runs = ended.stderr.split_whitespace().next().context("it says nothing")?;
        Ok(runs.parse()?)
    }
}

/// The binaries of the drill; `None`, and said so, when this is not one.
fn binaries() -> anyhow::Result<Option<[PathBuf; 2]>> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    match (path("EVERSTEP_DRILL_PREVIOUS"), path("EVERSTEP_DRILL_PRESENT")) {
        (Some(previous), Some(present)) => Ok(Some([previous, present])),
        (None, None) => {
            writeln!(std::io::stderr(), "SKIPPED the upgrade drill: `cargo xtask drill upgrade` runs it")?;
            Ok(None)
        }
        _ => bail!("a drill needs both EVERSTEP_DRILL_PREVIOUS and EVERSTEP_DRILL_PRESENT"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn releases_replace_each_other_under_load() -> anyhow::Result<()> {
    let Some(binaries) = binaries()? else { return Ok(()) };
    if !require("pg")? || !require("nats")? {
        return Ok(());
    }
    let database = PostgresServer::shared()?.create_database().await?;
    let (nats, folder) = (NatsServer::start()?, folder()?);
    std::fs::create_dir_all(folder.path().join("sink"))?;
    let (long, report) = (Vec::new(), String::new());
    let mut site = Site { folder, binaries, database, nats: nats.url(), nodes: Vec::new(), long, report };
    site.migrate(Previous).await?;
    let (mut workers, mut clients) = (Vec::new(), Vec::new());
    for number in 0..2 {
        let process = site.node(Previous, "127.0.0.1:0").await?;
        let (address, account) = (process.address.clone(), Account::default());
        workers.push(load::worker(&address, &account)?);
        clients.push(Clients::stubborn(&address, &format!("node{number}"), &account)?);
        let worker = Some(site.worker(Previous, &address)?);
        site.nodes.push(Node { process: Some(process), worker, address, account });
    }
    site.progress().await?;
    // The order of docs/operations.md: the new binary migrates while the old nodes go on.
    let may_refuse = site.migrate(Present).await? > 0;
    for (number, release, end) in SWITCHES {
        site.progress().await?;
        site.switch(number, release, end, may_refuse).await?;
    }
    site.progress().await?;
    for clients in clients {
        clients.stop().await?;
    }
    site.settle().await?;
    for mut node in site.nodes.drain(..) {
        let (process, worker) = (node.process.take(), node.worker.take());
        worker.context("no worker")?.terminate().await?;
        ensure!(process.context("no node")?.terminate().await? == Some(0), "no orderly end");
    }
    drop(workers);
    let runs = site.check(Present).await?;
    if !may_refuse {
        ensure!(site.check(Previous).await? == runs, "the releases see different runs");
    }
    if let Some(path) = std::env::var_os("EVERSTEP_DRILL_REPORT") {
        std::fs::write(path, &site.report)?;
    }
    Ok(())
}
