//! Crash at every line: one fixed program, and every failpoint in turn, with everything that can be planned for
//! it, at its first, second and last hit.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use everstep_checker::format::{EXPECTED, Expected, JOURNAL, LineWriter, Meta, OpKind};
use everstep_checker::{Verdict, Word};
use everstep_fault::POINTS;
use everstep_tests::program::{
    Code, Doubt, End, Op, Profile, Program as Workflow, SIGNAL_NAME, Source, Step, Wish,
};
use everstep_tests::servers::{NatsServer, PostgresServer, free_port};
use rustix::process::Signal;
use serde_json::json;

use crate::caller::{Ask, Caller};
use crate::clock::mono_ns;
use crate::export;
use crate::history::{History, Reply};
use crate::process::{Program, Supervised, tail};
use crate::topology::{DRAIN_MAX, StoreKind, answers, blocking};
use crate::worker::{CHAIN, FIXED, PARENT, QUEUED};
use crate::{judge, load};

/// Lease of the worker's session.
const LEASE: Duration = Duration::from_millis(1_500);
/// What is past it.
const PAST_LEASE: Duration = Duration::from_millis(2_500);
/// Longest wait for anything in a case.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a file.
const LOOK: Duration = Duration::from_millis(25);
/// The workflow id of a case's one run.
const RUN: &str = "kitchen-sink";
/// The step during which the signal comes.
const SLOW: &str = "enumerate-slow......";
const NEVER_HIT: &str = "never hit";
/// Database that those of the cases are copies of.
const TEMPLATE: &str = "enumerate_template";

/// What a failpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// The process ends.
    Abort,
    /// What it stands for fails.
    Error,
    /// It takes longer than the lease.
    Sleep,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Abort, Self::Error, Self::Sleep];

    fn text(self) -> String {
        match self {
            Self::Abort => "abort".to_owned(),
            Self::Error => "error".to_owned(),
            Self::Sleep => format!("{}({})", "sleep", PAST_LEASE.as_millis()),
        }
    }
}

/// One failpoint, one action, one hit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Planned {
    /// The failpoint.
    pub point: &'static str,
    /// What happens there.
    pub action: Action,
    /// At which hit, from 1.
    pub hit: u64,
}

impl Planned {
    fn name(&self) -> String {
        format!("{}-{:?}-{}", self.point, self.action, self.hit).replace('.', "-").to_lowercase()
    }
}

impl std::fmt::Display for Planned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}@{}", self.point, self.action.text(), self.hit)
    }
}

/// What came of a case.
#[derive(Debug)]
pub struct Played {
    /// How often each failpoint was hit.
    pub hits: BTreeMap<String, u64>,
    /// Whether the plan was carried out.
    pub fired: bool,
    /// The checker's word.
    pub verdict: Verdict,
}

/// The points that the program comes to on a store. A wake is for an owner on another node, and SQLite has one.
pub fn expected_points(store: StoreKind) -> impl Iterator<Item = &'static str> {
    POINTS.iter().copied().filter(move |point| store == StoreKind::Postgres || *point != "outbox.marked")
}

/// First, second and last hit of every point, as an earlier run without a plan had them.
///
/// # Errors
/// Names the points that were never hit.
pub fn plans(store: StoreKind, hits: &BTreeMap<String, u64>) -> anyhow::Result<Vec<Planned>> {
    let (mut plans, mut missing) = (Vec::new(), Vec::new());
    for point in expected_points(store) {
        let Some(&last) = hits.get(point) else {
            missing.push(point);
            continue;
        };
        let mut numbers = vec![1, 2.min(last), last];
        numbers.dedup();
        for hit in numbers {
            plans.extend(Action::ALL.map(|action| Planned { point, action, hit }));
        }
    }
    if !missing.is_empty() {
        bail!("failpoints that were never hit: {missing:?}");
    }
    Ok(plans)
}

/// Where cases are played.
#[derive(Debug)]
pub struct Yard {
    store: StoreKind,
    binary: PathBuf,
    folder: PathBuf,
    postgres: Option<PostgresServer>,
    /// A bug in the servers, which some case has to find.
    pub planted_bug: Option<String>,
}

impl Yard {
    /// A yard in an empty folder, with a Postgres of its own where that is the store.
    ///
    /// # Errors
    /// When Postgres does not start.
    pub async fn open(store: StoreKind, binary: PathBuf, folder: PathBuf) -> anyhow::Result<Self> {
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        let postgres = match store {
            StoreKind::Sqlite => None,
            StoreKind::Postgres => Some(blocking(PostgresServer::start).await?),
        };
        if let Some(postgres) = &postgres {
            execute(&postgres.url("postgres"), &format!("CREATE DATABASE {TEMPLATE}")).await?;
            everstep_store_postgres::migrate(&postgres.url(TEMPLATE)).await?;
        }
        Ok(Self { store, binary, folder, postgres, planted_bug: None })
    }

    /// Plays a plan; what is wrong, if anything. How often a point is hit depends on time, so a run may come to
    /// its end before the hit that is planned: the last one is then an earlier one.
    async fn try_plan(&self, mut plan: Planned) -> Option<String> {
        let planned = plan.hit;
        loop {
            // An earlier hit has a case of its own, which may be played at the same time.
            let name = match plan.hit {
                hit if hit == planned => plan.name(),
                _ => format!("{}-for-{planned}", plan.name()),
            };
            let played = self.play(&name, Some(&plan)).await;
            let fewer = match &played {
                Ok(played) if !played.fired => played.hits.get(plan.point).copied(),
                _ => None,
            };
            match fewer.filter(|hits| *hits < plan.hit) {
                Some(hits) if complaint(&plan, &played).is_none_or(|c| c.contains(NEVER_HIT)) => {
                    plan.hit = hits
                }
                _ => return complaint(&plan, &played),
            }
        }
    }

    /// Plays the program once; the name is that of its folder and its database.
    ///
    /// # Errors
    /// When the case cannot be carried out, or the run does not end.
    pub async fn play(&self, name: &str, plan: Option<&Planned>) -> anyhow::Result<Played> {
        let folder = self.folder.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        let url = match &self.postgres {
            None => format!("sqlite:{}", folder.join("everstep.db").display()),
            Some(postgres) => {
                let database = name.replace('-', "_");
                let admin = postgres.url("postgres");
                execute(&admin, &format!("DROP DATABASE IF EXISTS {database}")).await?;
                execute(&admin, &format!("CREATE DATABASE {database} TEMPLATE {TEMPLATE}")).await?;
                postgres.url(&database)
            }
        };
        let nats = match self.store {
            StoreKind::Sqlite => None,
            StoreKind::Postgres => Some(blocking(NatsServer::start).await?),
        };
        let mut case = Case::new(self, &folder, plan, url, nats.as_ref().map(NatsServer::url));
        let played = case.play().await.with_context(|| {
            let logs = case.logs(12);
            format!("{name}: see {}\n{logs}", folder.display())
        });
        drop(case);
        blocking(move || {
            drop(nats);
            Ok(())
        })
        .await?;
        played
    }
}

/// One case, and the processes of it that run.
struct Case {
    store: StoreKind,
    binary: PathBuf,
    folder: PathBuf,
    environment: Vec<(String, String)>,
    plan: Option<Planned>,
    url: String,
    nats: Option<String>,
    sink: Option<Supervised>,
    nodes: Vec<(Supervised, u16)>,
    worker: Option<Supervised>,
}

impl Case {
    fn new(yard: &Yard, folder: &Path, plan: Option<&Planned>, url: String, nats: Option<String>) -> Self {
        let log = folder.join("hits.log").display().to_string();
        let mut environment = vec![("EVERSTEP_FAILPOINTS_LOG".to_owned(), log)];
        environment.extend(plan.map(|plan| ("EVERSTEP_FAILPOINTS".to_owned(), plan.to_string())));
        environment.push(("EVERSTEP_LOG".to_owned(), "info".to_owned()));
        environment
            .extend(yard.planted_bug.iter().map(|bug| ("EVERSTEP_PLANTED_BUG".to_owned(), bug.clone())));
        Self {
            store: yard.store,
            binary: yard.binary.clone(),
            folder: folder.to_owned(),
            environment,
            plan: plan.cloned(),
            url,
            nats,
            sink: None,
            nodes: Vec::new(),
            worker: None,
        }
    }

    async fn play(&mut self) -> anyhow::Result<Played> {
        let mut meta = Meta { started_mono_ns: mono_ns(), git: judge::git_hash(), ..Meta::default() };
        meta.store = self.store.as_str().to_owned();
        meta.lease_ms = u64::try_from(LEASE.as_millis())?;
        let (sink_port, journal) = (free_port()?, self.folder.join(JOURNAL).display().to_string());
        let sink = self.start("sink", &["sink", "--port", &sink_port.to_string(), "--journal", &journal]);
        answers(&sink, sink_port).await?;
        self.sink = Some(sink);
        for number in 1..=if self.store == StoreKind::Postgres { 2 } else { 1 } {
            let node = self.start_node(number)?;
            self.nodes.push(node);
        }
        for (process, port) in &self.nodes {
            answers(process, *port).await?;
        }
        self.steer(sink_port).await?;
        meta.healed_mono_ns = Some(mono_ns());
        let mut problems = self.stop().await;
        problems.extend(self.odd_ends());
        let part = self.folder.join("export.part");
        let (binary, url) = (self.binary.clone(), self.url.clone());
        let source = export::Source { binary, url, part, namespace: None };
        source.finish(&self.folder).await?;
        meta.write(&self.folder)?;
        let verdict = judge::judge(&self.folder, problems)?;
        let (hits, fired) = self.hits()?;
        Ok(Played { hits, fired, verdict })
    }

    /// The client's part, which also decides when the worker comes.
    async fn steer(&mut self, sink_port: u16) -> anyhow::Result<()> {
        let workflow = workflow();
        let expected: Expected = load::expected(RUN, &workflow, &workflow.predict());
        LineWriter::append(&self.folder.join(EXPECTED))?.write(&expected)?;
        let history = History::open(&self.folder)?;
        let ports: Vec<u16> = self.nodes.iter().map(|(_, port)| *port).collect();
        let addresses = |ports: &[u16]| -> Vec<String> {
            ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect()
        };
        let mut near = Caller::new(0, &addresses(&ports), history.clone())?;
        let far: Vec<u16> = ports.iter().rev().copied().collect();
        let mut far = Caller::new(1, &addresses(&far), history)?;
        let mut ask = Ask {
            workflow_id: RUN.to_owned(),
            request_id: Some("start".to_owned()),
            name: FIXED.to_owned(),
            input: serde_json::to_value(&workflow)?,
            ..Ask::default()
        };
        let started = insist(&mut near, OpKind::Start, &ask).await?;
        ask.run_id = started.and_then(|v| v["run_id"].as_str().map(ToOwned::to_owned));
        // The hint that the start gave is lost with the node; the task is found by the sweep.
        let (node, port) = &self.nodes[0];
        node.kill_9().await?;
        node.want_up();
        answers(node, *port).await?;
        if self.store == StoreKind::Postgres {
            self.wait_for("hits.log", "outbox.claimed").await?;
        }
        let (address, sink) = (format!("http://127.0.0.1:{port}"), format!("127.0.0.1:{sink_port}"));
        let arguments =
            ["worker", "--address", &address, "--sink", &sink, "--build", "A", "--identity", "worker"];
        self.worker = Some(self.start("worker", &arguments));
        self.wait_for(JOURNAL, SLOW).await?;
        let id = "enumerate-signal".to_owned();
        let signal = Ask {
            name: SIGNAL_NAME.to_owned(),
            input: json!(id),
            nonce: Some(id.clone()),
            request_id: Some(id),
            ..ask.clone()
        };
        insist(&mut far, OpKind::Signal, &signal).await?;
        for name in [CHAIN, PARENT, QUEUED] {
            let other = Ask {
                workflow_id: name.to_owned(),
                request_id: Some(name.to_owned()),
                name: name.to_owned(),
                input: json!(3),
                ..Ask::default()
            };
            insist(&mut near, OpKind::Start, &other).await?;
            insist(&mut far, OpKind::Result, &Ask { wait: Duration::from_secs(5), ..other }).await?;
        }
        insist(&mut near, OpKind::Describe, &ask).await?;
        insist(&mut far, OpKind::Result, &Ask { wait: Duration::from_secs(5), ..ask }).await?;
        Ok(())
    }

    fn start(&self, name: &str, arguments: &[&str]) -> Supervised {
        Supervised::start(Program {
            name: name.to_owned(),
            binary: self.binary.clone(),
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            environment: self.environment.clone(),
            folder: self.folder.clone(),
        })
    }

    fn start_node(&self, number: u32) -> anyhow::Result<(Supervised, u16)> {
        let port = free_port()?;
        let (listen, lease) = (format!("127.0.0.1:{port}"), format!("{}ms", LEASE.as_millis()));
        let mut arguments = vec!["server", "--listen", &listen, "--lease", &lease, "--allow-fsync-off"];
        arguments.extend(["--database-url", self.url.as_str()]);
        if let Some(nats) = &self.nats {
            arguments.extend(["--nats-url", nats]);
        }
        Ok((self.start(&format!("server-{number}"), &arguments), port))
    }

    /// Waits until a file of the case holds a word.
    async fn wait_for(&self, file: &str, word: &str) -> anyhow::Result<()> {
        let path = self.folder.join(file);
        let there = async {
            let mut tick = tokio::time::interval(LOOK);
            while !std::fs::read_to_string(&path).unwrap_or_default().contains(word) {
                tick.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, there).await.with_context(|| format!("no {word} in {file}"))
    }

    /// Ends everything in order, workers first.
    async fn stop(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for process in self.worker.iter().chain(self.nodes.iter().map(|(node, _)| node)) {
            process.keep_down();
            process.signal(Signal::TERM);
            if process.wait_down(DRAIN_MAX).await.is_err() {
                problems.push(format!("{} did not end within {DRAIN_MAX:?}", process.program.name));
                let _ = process.kill_9().await;
            }
        }
        problems
    }

    /// Ends that neither the case nor its failpoint wanted.
    fn odd_ends(&self) -> Vec<String> {
        let abort = self.plan.as_ref().is_some_and(|plan| plan.action == Action::Abort);
        let processes = self.worker.iter().chain(self.nodes.iter().map(|(node, _)| node));
        let lives = processes.flat_map(|process| process.lives());
        let planned = |status: ExitStatus| abort && status.signal() == Some(6);
        let odd = lives.filter(|life| !life.wanted && !planned(life.status));
        odd.map(|life| format!("{} ended by itself with {}", life.name, life.status)).collect()
    }

    /// How often each point was hit, and whether the plan was carried out.
    fn hits(&self) -> anyhow::Result<(BTreeMap<String, u64>, bool)> {
        let text = std::fs::read_to_string(self.folder.join("hits.log"))?;
        let (mut hits, mut fired) = (BTreeMap::new(), self.plan.is_none());
        for line in text.lines() {
            let mut words = line.split(' ');
            *hits.entry(words.next().unwrap_or_default().to_owned()).or_default() += 1;
            fired |= words.nth(1).is_some();
        }
        Ok((hits, fired))
    }

    fn logs(&self, lines: usize) -> String {
        let processes = self.worker.iter().chain(self.nodes.iter().map(|(node, _)| node));
        let logs = processes.map(|p| format!("{}:\n{}\n", p.program.name, tail(&p.program.log(), lines)));
        logs.collect()
    }
}

/// Asks until it is done, as a client does that means it.
async fn insist(caller: &mut Caller, op: OpKind, ask: &Ask) -> anyhow::Result<Option<serde_json::Value>> {
    let mut last = String::new();
    let asking = async {
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match caller.op(op, ask).await? {
                Reply::Ok(value) => return Ok(value),
                Reply::Fail(reason, text) => last = format!("{reason}: {text}"),
                Reply::Unknown(text) => last = text,
            }
        }
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(done) => done,
        Err(_) => bail!("{} was not done within {PATIENCE:?}: {last}", op.as_str()),
    }
}

async fn execute(url: &str, statement: &str) -> anyhow::Result<()> {
    use sqlx::Connection as _;
    let mut connection = sqlx::PgConnection::connect(url).await?;
    sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

fn step(name: &str, fails: u32, slow_ms: u64, bytes: usize) -> Step {
    let nonce = format!("{:.<20}", format!("enumerate-{name}"));
    Step { nonce, fails, slow_us: slow_ms * 1_000, bytes, refused: false }
}

/// One of everything, and long enough for a lease to be renewed and a wake to be swept.
fn workflow() -> Workflow {
    let pause = |name: &str, ms: u64| Op::Sleep {
        nonce: format!("{:.<20}", format!("enumerate-{name}")),
        us: ms * 1_000,
    };
    let signal = Op::Signal { name: SIGNAL_NAME.to_owned(), id: "enumerate-signal".to_owned() };
    let refused = Step { refused: true, ..step("refused", 0, 1, 10) };
    Workflow {
        source: Source { seed: 0, profile: Profile::Chaos, generation: 0 },
        ops: vec![
            Op::Step(step("one", 0, 1, 100)),
            Op::Step(step("flaky", 1, 1, 100)),
            Op::Guarded { step: step("guarded", 0, 1, 40), doubt: Doubt::Retry },
            Op::Step(step("huge", 0, 1, 100_000)),
            pause("nap", 250),
            Op::Parallel(vec![
                vec![Op::Step(step("slow", 0, 2_200, 20))],
                vec![signal, Op::Step(step("told", 0, 1, 50))],
            ]),
            pause("parked", 600),
            Op::Race(vec![vec![Op::Step(step("racer", 0, 1, 30))], vec![Op::Never]]),
            Op::Step(refused),
            Op::Step(step("last", 0, 1, 20)),
        ],
        end: End::Output,
        wish: Wish::Nothing,
        code: Code::Same,
    }
}

/// What is wrong with a case, if anything.
#[must_use]
pub fn complaint(plan: &Planned, played: &anyhow::Result<Played>) -> Option<String> {
    match played {
        Err(error) => Some(format!("{plan}: {error:#}")),
        // Whether a case counts is known here: its plan was carried out. The share of good answers is a
        // measure for random cases.
        Ok(played) if played.verdict.verdict == Word::Fail => {
            Some(format!("{plan}: {}", judge::summary(&played.verdict)))
        }
        Ok(played) if !played.fired => Some(format!("{plan}: {NEVER_HIT}; {:?}", played.hits)),
        Ok(_) => None,
    }
}

/// All cases of a store, some at a time; what is wrong with them.
///
/// # Errors
/// When the program does not come through without any plan.
pub async fn all(yard: Arc<Yard>, at_once: usize) -> anyhow::Result<(usize, Vec<String>)> {
    use futures::StreamExt as _;
    let recorded = yard.play("recorded", None).await?;
    if recorded.verdict.verdict != Word::Pass {
        bail!("without any failpoint: {}", judge::summary(&recorded.verdict));
    }
    let plans = plans(yard.store, &recorded.hits)?;
    let count = plans.len();
    let cases = plans.into_iter().map(|plan| {
        let yard = Arc::clone(&yard);
        tokio::spawn(async move { yard.try_plan(plan).await })
    });
    let mut cases = futures::stream::iter(cases).buffer_unordered(at_once);
    let mut complaints = Vec::new();
    while let Some(complaint) = cases.next().await {
        complaints.extend(complaint?);
    }
    Ok((count, complaints))
}
