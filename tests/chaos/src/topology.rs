//! The processes of a case and the links between them: a database, NATS, server nodes, workers, a sink, and a
//! proxy on each link.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use everstep::client::RunListFilter;
use everstep::{AttributeType, RunStatus};
use everstep_faultproxy::Mode;
use everstep_tests::program::UPSERTED;
use everstep_tests::servers::{NatsServer, PostgresServer, free_port};
use rustix::process::Signal;

use crate::dice::{Dice, Stream};
use crate::export::Source;
use crate::link::Link;
use crate::nemesis::{ClockFile, clock_library};
use crate::process::{Program, Supervised, tail};
use crate::scrape::Figures;

/// Longest wait for a process that was started.
const START_WAIT: Duration = Duration::from_secs(60);
/// How long a server gets to end in order.
pub const DRAIN_MAX: Duration = Duration::from_secs(25);

/// In what workers differ. Few slots send runs through the task queue and to other nodes; runs that are let go of
/// soon are woken by their timers, also by those of retries. Two have newer code, and keep the runs that they have had;
/// they are at different nodes.
const WAYS: [&[&str]; 3] = [
    &["--park-ms", "200", "--slots", "8", "--step-slots", "2", "--build", "B", "--pins"],
    &["--park-ms", "10", "--slots", "4", "--step-slots", "4", "--build", "A"],
    &["--park-ms", "60", "--slots", "6", "--step-slots", "3", "--build", "B", "--pins"],
];

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// A file, one node.
    Sqlite,
    /// Postgres with NATS.
    Postgres,
}

impl StoreKind {
    /// As in `meta.json`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

impl std::str::FromStr for StoreKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sqlite" => Ok(Self::Sqlite),
            "postgres" => Ok(Self::Postgres),
            _ => Err("must be sqlite or postgres".to_owned()),
        }
    }
}

/// How a topology is laid out.
#[derive(Clone, Debug)]
pub struct Layout {
    /// What everything random is drawn from.
    pub seed: u64,
    /// Which database.
    pub store: StoreKind,
    /// Server nodes; SQLite has one.
    pub nodes: u32,
    /// Worker processes.
    pub workers: u32,
    /// Lease of a worker's session.
    pub lease: Duration,
    /// The multi-call binary.
    pub binary: PathBuf,
    /// Where logs and data go.
    pub case: PathBuf,
    /// Wall clocks of the nodes can be set, where libfaketime is installed.
    pub clocks: bool,
    /// What every server finds in its environment.
    pub server_environment: Vec<(String, String)>,
    /// What every worker finds in its environment.
    pub worker_environment: Vec<(String, String)>,
    /// What single processes find in theirs, by their name.
    pub environments: BTreeMap<String, Vec<(String, String)>>,
    /// Processes that may end by themselves, because a failpoint makes them.
    pub may_end: BTreeSet<String>,
    /// The only namespace that is exported, if not all are.
    pub namespace_of_export: Option<String>,
    /// Where the file of SQLite is, if not in the case's folder.
    pub sqlite: Option<PathBuf>,
    /// What single processes are started by, by their name: a program and its first arguments.
    pub launchers: BTreeMap<String, Vec<String>>,
}

impl Layout {
    /// Two nodes (one on SQLite) and three workers with leases of two seconds.
    #[must_use]
    pub fn new(seed: u64, store: StoreKind, binary: PathBuf, case: PathBuf) -> Self {
        Self {
            seed,
            store,
            nodes: if store == StoreKind::Sqlite { 1 } else { 2 },
            workers: 3,
            lease: Duration::from_secs(2),
            binary,
            case,
            clocks: false,
            server_environment: Vec::new(),
            worker_environment: Vec::new(),
            environments: BTreeMap::new(),
            may_end: BTreeSet::new(),
            namespace_of_export: None,
            sqlite: None,
            launchers: BTreeMap::new(),
        }
    }

    /// A bug that is built into the servers, if any.
    #[must_use]
    pub fn planted_bug(&self) -> Option<String> {
        let of = |(name, value): &(String, String)| (name == "EVERSTEP_PLANTED_BUG").then(|| value.clone());
        self.server_environment.iter().find_map(of)
    }
}

/// The servers that are not ours. Their calls block, so they go through [`blocking`].
#[derive(Clone, Debug)]
pub struct Backend {
    /// Postgres.
    pub postgres: Arc<Mutex<PostgresServer>>,
    /// NATS.
    pub nats: Arc<Mutex<NatsServer>>,
}

/// A server node.
#[derive(Debug)]
pub struct Node {
    /// Its process.
    pub process: Supervised,
    /// Where it listens.
    pub port: u16,
    /// From clients to it.
    pub from_clients: Link,
    /// From it to Postgres.
    pub to_postgres: Option<Link>,
    /// From it to NATS.
    pub to_nats: Option<Link>,
}

/// A worker.
#[derive(Debug)]
pub struct WorkerProcess {
    /// Its process.
    pub process: Supervised,
    /// From it to its node.
    pub to_server: Link,
    /// Which node that is.
    pub node: usize,
}

/// All of a case.
#[derive(Debug)]
pub struct Topology {
    /// How it was laid out.
    pub layout: Layout,
    /// Postgres and NATS, unless the store is SQLite.
    pub backend: Option<Backend>,
    /// Server nodes.
    pub nodes: Vec<Node>,
    /// Workers.
    pub workers: Vec<WorkerProcess>,
    /// The effect sink. No fault strikes it.
    pub sink: Supervised,
    /// The database, for exports. No fault strikes the way to it.
    pub source: Source,
    /// The way to it, where that is Postgres.
    pub to_source: Option<Link>,
    /// What the nodes count.
    pub figures: Figures,
    /// The wall clocks of the nodes, where they can be set.
    clocks: Vec<ClockFile>,
}

/// Runs what blocks where it may.
///
/// # Errors
/// What the work says.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// What a mutex holds, also after a panic elsewhere.
pub fn held<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Topology {
    /// Starts everything, and waits until the nodes answer.
    ///
    /// # Errors
    /// When something does not start; the error says what it printed.
    pub async fn start(layout: Layout) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&layout.case)?;
        let (backend, to_source, url) = match layout.store {
            StoreKind::Sqlite => {
                let file = layout.sqlite.clone().unwrap_or_else(|| layout.case.join("everstep.db"));
                (None, None, format!("sqlite:{}", file.display()))
            }
            StoreKind::Postgres => {
                let backend = start_backend().await?;
                let any = held(&backend.postgres).url("postgres");
                create_database(&any).await?;
                let port = held(&backend.postgres).port();
                let link = Link::start("source", Mode::Plain, port, layout.seed).await?;
                let url = format!("postgres://everstep@127.0.0.1:{}/everstep", link.port());
                everstep_store_postgres::migrate(&url).await?;
                (Some(backend), Some(link), url)
            }
        };
        let journal = layout.case.join(everstep_checker::format::JOURNAL);
        let sink_port = free_port()?;
        let arguments =
            ["sink", "--port", &sink_port.to_string(), "--journal", &journal.display().to_string()];
        let sink = Supervised::start(program(&layout, "sink", &arguments, &[]));
        answers(&sink, sink_port).await?;
        let part = layout.case.join("export.part");
        let namespace = layout.namespace_of_export.clone();
        let source = Source { binary: layout.binary.clone(), url, part, namespace };
        let figures = Figures::default();
        let (nodes, workers) = (Vec::new(), Vec::new());
        let clocks = clocks(&layout)?;
        let mut topology = Self { layout, backend, nodes, workers, sink, source, to_source, figures, clocks };
        for number in 1..=topology.layout.nodes {
            let node = topology.start_node(number).await?;
            topology.nodes.push(node);
        }
        for node in &topology.nodes {
            answers(&node.process, node.port).await?;
        }
        let turn = Dice::new(topology.layout.seed, Stream::Topology, 0).number();
        for number in 1..=topology.layout.workers {
            let turned = turn.wrapping_add(u64::from(number)) % u64::from(topology.layout.nodes.max(1));
            let worker = topology.start_worker(number, usize::try_from(turned)?, sink_port).await?;
            topology.workers.push(worker);
        }
        Ok(topology)
    }

    async fn start_node(&self, number: u32) -> anyhow::Result<Node> {
        let (layout, port) = (&self.layout, free_port()?);
        let name = format!("server-{number}");
        let listen = format!("127.0.0.1:{port}");
        let lease = format!("{}ms", layout.lease.as_millis());
        let mut arguments = vec!["server", "--listen", &listen, "--lease", &lease, "--allow-fsync-off"];
        let (mut to_postgres, mut to_nats) = (None, None);
        let (database, bus);
        match &self.backend {
            None => arguments.extend(["--database-url", &self.source.url]),
            Some(backend) => {
                let (pg, nats) = (held(&backend.postgres).port(), held(&backend.nats).port());
                let link = Link::start(&format!("{name}-postgres"), Mode::Postgres, pg, layout.seed).await?;
                database = format!("postgres://everstep@127.0.0.1:{}/everstep", link.port());
                to_postgres = Some(link);
                let link = Link::start(&format!("{name}-nats"), Mode::Nats, nats, layout.seed).await?;
                bus = format!("nats://127.0.0.1:{}", link.port());
                to_nats = Some(link);
                arguments.extend(["--database-url", &database, "--nats-url", &bus]);
            }
        }
        let mut environment = layout.server_environment.clone();
        let clock = self.clocks.get(usize::try_from(number)?.saturating_sub(1));
        if let (Some(clock), Some(library)) = (clock, clock_library()) {
            environment.extend(clock.environment(&library));
        }
        let program = program(layout, &name, &arguments, &environment);
        let from_clients = Link::start(&format!("clients-{name}"), Mode::Grpc, port, layout.seed).await?;
        let process = Supervised::start(program);
        Ok(Node { process, port, from_clients, to_postgres, to_nats })
    }

    async fn start_worker(&self, number: u32, node: usize, sink: u16) -> anyhow::Result<WorkerProcess> {
        let Some(server) = self.nodes.get(node) else { bail!("there is no node {node}") };
        let name = format!("worker-{number}");
        let to_server =
            Link::start(&format!("{name}-server"), Mode::Grpc, server.port, self.layout.seed).await?;
        let (address, sink) = (to_server.url(), format!("127.0.0.1:{sink}"));
        let mut arguments = vec!["worker", "--address", &address, "--sink", &sink, "--identity", &name];
        arguments.extend(WAYS[usize::try_from(number)? % WAYS.len()]);
        let program = program(&self.layout, &name, &arguments, &self.layout.worker_environment);
        Ok(WorkerProcess { process: Supervised::start(program), to_server, node })
    }

    /// The wall clock of a node.
    ///
    /// # Errors
    /// When it cannot be set.
    pub fn clock(&self, node: usize) -> anyhow::Result<&ClockFile> {
        self.clocks.get(node).context("the clock of this node cannot be set")
    }

    /// Whether wall clocks can be set.
    #[must_use]
    pub fn has_clocks(&self) -> bool {
        !self.clocks.is_empty()
    }

    /// The processes of Postgres that serve connections of the nodes.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn backends(&self) -> anyhow::Result<Vec<u32>> {
        use sqlx::Connection as _;
        let mut connection = sqlx::PgConnection::connect(&self.source.url).await?;
        let pids: Vec<i32> = sqlx::query_scalar(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' \
             AND pid <> pg_backend_pid() ORDER BY pid",
        )
        .fetch_all(&mut connection)
        .await?;
        connection.close().await?;
        Ok(pids.into_iter().filter_map(|pid| u32::try_from(pid).ok()).collect())
    }

    /// Now, by the database's clock, in microseconds since 1970.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn database_us(&self) -> anyhow::Result<i64> {
        use sqlx::Connection as _;
        if self.backend.is_none() {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
            return Ok(i64::try_from(since.as_micros())?);
        }
        let mut connection = sqlx::PgConnection::connect(&self.source.url).await?;
        let asked = sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint");
        let now = asked.fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(now)
    }

    /// What the servers that are not ours say of themselves.
    ///
    /// # Errors
    /// When one does not answer.
    pub async fn versions(&self) -> anyhow::Result<String> {
        use sqlx::Connection as _;
        let Some(backend) = &self.backend else { return Ok("SQLite".to_owned()) };
        let mut connection = sqlx::PgConnection::connect(&self.source.url).await?;
        let postgres: String = sqlx::query_scalar("SHOW server_version").fetch_one(&mut connection).await?;
        connection.close().await?;
        let port = held(&backend.nats).port();
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        let mut line = String::new();
        tokio::io::AsyncBufReadExt::read_line(&mut tokio::io::BufReader::new(stream), &mut line).await?;
        let info: serde_json::Value = serde_json::from_str(line.trim_start_matches("INFO ").trim())?;
        Ok(format!("Postgres {postgres}, NATS {}", info["version"].as_str().unwrap_or("unknown")))
    }

    /// Where clients reach the nodes.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.from_clients.url()).collect()
    }

    /// A client that no fault is in the way of.
    fn undisturbed(&self) -> anyhow::Result<everstep::Client> {
        let node = self.nodes.first().context("there is no node")?;
        Ok(everstep::Client::connect(&format!("http://127.0.0.1:{}", node.port))?)
    }

    /// Declares what programs say of themselves.
    ///
    /// # Errors
    /// When the server does not take it.
    pub async fn declare(&self) -> anyhow::Result<()> {
        let wanted = [(UPSERTED, AttributeType::Int)];
        self.undisturbed()?.add_search_attributes(wanted).await?;
        Ok(())
    }

    /// Waits until no run is running, but not for ever: children that were left alone have nobody who waits for them.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn none_open(&self, limit: Duration) -> anyhow::Result<()> {
        let client = self.undisturbed()?;
        let filter = RunListFilter { statuses: vec![RunStatus::Running], ..RunListFilter::default() };
        let none = async {
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            while !client.list(&filter, "").await?.runs.is_empty() {
                tick.tick().await;
            }
            anyhow::Ok(())
        };
        // What is open then, the checker judges.
        tokio::time::timeout(limit, none).await.unwrap_or(Ok(()))
    }

    /// All processes that faults may strike.
    pub fn processes(&self) -> impl Iterator<Item = &Supervised> {
        let nodes = self.nodes.iter().map(|node| &node.process);
        nodes.chain(self.workers.iter().map(|worker| &worker.process))
    }

    /// All links.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        let of_nodes = self.nodes.iter().flat_map(|node| {
            std::iter::once(&node.from_clients).chain(&node.to_postgres).chain(&node.to_nats)
        });
        of_nodes.chain(self.workers.iter().map(|worker| &worker.to_server))
    }

    /// Ends every fault of links and processes, and waits until the nodes answer. Postgres and NATS are the
    /// matter of whoever took them down.
    ///
    /// # Errors
    /// When something does not come up again.
    pub async fn heal(&self) -> anyhow::Result<()> {
        for link in self.links() {
            link.rules().heal();
        }
        for process in self.processes() {
            process.signal(Signal::CONT);
            process.want_up();
            process.wait_started(0, START_WAIT).await?;
        }
        for node in &self.nodes {
            answers(&node.process, node.port).await?;
        }
        Ok(())
    }

    /// Asks the nodes for their figures.
    pub async fn ask_figures(&self) {
        for node in &self.nodes {
            if let Some(pid) = node.process.pid() {
                self.figures.ask(pid, node.port).await;
            }
        }
    }

    /// Ends workers and nodes in order. What was not in order is in the answer.
    pub async fn stop(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let workers: Vec<_> = self.workers.iter().map(|worker| &worker.process).collect();
        let nodes: Vec<_> = self.nodes.iter().map(|node| &node.process).collect();
        for group in [workers, nodes] {
            for process in &group {
                process.keep_down();
                process.signal(Signal::TERM);
            }
            for process in group {
                if process.wait_down(DRAIN_MAX).await.is_err() {
                    problems.push(format!(
                        "{} did not end within {DRAIN_MAX:?} of SIGTERM",
                        process.program.name
                    ));
                    let _ = process.kill_9().await;
                } else if let Some(life) = process.lives().last()
                    && !life.status.success()
                {
                    problems.push(format!("{} ended with {} after SIGTERM", life.name, life.status));
                }
            }
        }
        problems
    }

    /// Ends that no fault wanted, except a node that does not start because what it needs is away.
    #[must_use]
    pub fn unwanted_ends(&self) -> Vec<String> {
        let mut ends = Vec::new();
        let may_end = &self.layout.may_end;
        for process in self.processes().filter(|process| !may_end.contains(&process.program.name)) {
            for life in process.lives().iter().filter(|life| !life.wanted) {
                // 3: not reachable. A node says so when it starts without its database.
                if life.status.code() != Some(3) {
                    let log = tail(&process.program.log(), 3);
                    ends.push(format!(
                        "{} (pid {}) ended by itself with {}: {log}",
                        life.name, life.pid, life.status
                    ));
                }
            }
        }
        ends
    }
}

fn program(layout: &Layout, name: &str, arguments: &[&str], environment: &[(String, String)]) -> Program {
    let mut environment = environment.to_vec();
    environment.extend(layout.environments.get(name).cloned().unwrap_or_default());
    environment.push(("EVERSTEP_LOG".to_owned(), "info".to_owned()));
    let mut words = layout.launchers.get(name).cloned().unwrap_or_default();
    words.push(layout.binary.display().to_string());
    words.extend(arguments.iter().map(|a| (*a).to_owned()));
    let arguments = words.split_off(1);
    Program {
        name: name.to_owned(),
        binary: words.remove(0).into(),
        arguments,
        environment,
        folder: layout.case.clone(),
    }
}

/// One for each node. A SQLite file has no clock but that of its node, so that one is left alone.
fn clocks(layout: &Layout) -> anyhow::Result<Vec<ClockFile>> {
    if !layout.clocks || layout.store == StoreKind::Sqlite || clock_library().is_none() {
        return Ok(Vec::new());
    }
    (1..=layout.nodes).map(|n| ClockFile::new(layout.case.join(format!("server-{n}.clock")))).collect()
}

async fn start_backend() -> anyhow::Result<Backend> {
    let postgres = tokio::task::spawn_blocking(PostgresServer::start);
    let nats = tokio::task::spawn_blocking(NatsServer::start);
    let (postgres, nats) = (postgres.await??, nats.await??);
    Ok(Backend { postgres: Arc::new(Mutex::new(postgres)), nats: Arc::new(Mutex::new(nats)) })
}

async fn create_database(url: &str) -> anyhow::Result<()> {
    use sqlx::Connection as _;
    let mut connection = sqlx::PgConnection::connect(url).await?;
    sqlx::query("CREATE DATABASE everstep").execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// Waits until somebody listens on the port of a process.
pub(crate) async fn answers(process: &Supervised, port: u16) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let listening = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tick.tick().await;
        }
    };
    tokio::time::timeout(START_WAIT, listening).await.with_context(|| {
        let log = process.program.log();
        format!("{} does not listen on {port}; its last lines:\n{}", process.program.name, tail(&log, 20))
    })
}
