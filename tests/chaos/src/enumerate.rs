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
use everstep_tests::program::{Program as Workflow, SIGNAL_NAME};
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

mod programs;

use crate::{judge, pace, plan};
use programs::{ALL_ASKED, ASKED, HEARTBEAT, SLOW, asked, workflow};

/// Lease of the worker's session.
const LEASE: Duration = Duration::from_millis(1_500);
/// What is past it.
const PAST_LEASE: Duration = Duration::from_millis(2_500);
/// Longest wait for anything in a case.
const PATIENCE: Duration = Duration::from_secs(120);
/// From the journal's word of a heartbeat until the node has it.
const SAID: Duration = Duration::from_millis(150);
/// Between two looks at a file.
const LOOK: Duration = Duration::from_millis(25);
/// The workflow id of a case's one run.
const RUN: &str = "kitchen-sink";
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
    /// The worker of queued steps.
    steps: Option<Supervised>,
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
            steps: None,
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
        let (workflow, asked) = (workflow(), asked());
        let mut expected: LineWriter<Expected> = LineWriter::append(&self.folder.join(EXPECTED))?;
        expected.write(&plan::expected(RUN, &workflow, &workflow.predict()))?;
        expected.write(&plan::expected(ASKED, &asked, &asked.predict()))?;
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
        let common = ["worker", "--address", &address, "--sink", &sink, "--build", "A"];
        let arguments = |identity, only| [&common[..], &["--identity", identity, "--only", only]].concat();
        self.worker = Some(self.start("worker", &arguments("worker", "runs")));
        self.steps = Some(self.start("steps", &arguments("steps", "steps")));
        self.ask_for_updates(&mut near, &mut far, &asked).await?;
        // Its worker dies in the middle of the attempt, when it has said how far that is.
        self.wait_for(JOURNAL, HEARTBEAT).await?;
        pace::hold(SAID).await;
        if let Some(steps) = &self.steps {
            steps.kill_9().await?;
            steps.want_up();
        }
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
        self.follow_up(&mut near, &mut far).await?;
        insist(&mut near, OpKind::Describe, &ask).await?;
        insist(&mut far, OpKind::Result, &Ask { wait: Duration::from_secs(5), ..ask }).await?;
        Ok(())
    }

    /// Runs that lead to other runs, and the end of the one that was asked for updates.
    async fn follow_up(&self, near: &mut Caller, far: &mut Caller) -> anyhow::Result<()> {
        for name in [CHAIN, PARENT, QUEUED] {
            let other = Ask {
                workflow_id: name.to_owned(),
                request_id: Some(name.to_owned()),
                name: name.to_owned(),
                input: json!(3),
                ..Ask::default()
            };
            // Nobody takes the signal: each run of the chain is given it again.
            let brings = Ask { signal: SIGNAL_NAME.to_owned(), brought: json!(name), ..other.clone() };
            let op = if name == CHAIN { OpKind::SignalWithStart } else { OpKind::Start };
            insist(near, op, &brings).await?;
            insist(far, OpKind::Result, &Ask { wait: Duration::from_secs(5), ..other }).await?;
        }
        let last = Ask { workflow_id: ASKED.to_owned(), wait: Duration::from_secs(5), ..Ask::default() };
        insist(near, OpKind::Result, &last).await.map(drop)
    }

    /// A run that starts with an update, is asked for it again, and refuses another one.
    async fn ask_for_updates(
        &self,
        near: &mut Caller,
        far: &mut Caller,
        asked: &Workflow,
    ) -> anyhow::Result<()> {
        let Some(planned) = asked.predict().updates.first().cloned() else { bail!("no update is planned") };
        let start = Ask {
            workflow_id: ASKED.to_owned(),
            request_id: Some(planned.id.clone()),
            name: FIXED.to_owned(),
            input: serde_json::to_value(asked)?,
            brought: json!(planned.id),
            ..Ask::default()
        };
        insist(near, OpKind::UpdateWithStart, &start).await?;
        insist(far, OpKind::Update, &start).await?;
        let no = Ask { request_id: Some("no".to_owned()), brought: json!("no-thanks"), ..start };
        refused(far, &no, "UPDATE_REJECTED").await?;
        let all = Ask { request_id: Some(ALL_ASKED.to_owned()), input: json!(ALL_ASKED), ..no };
        insist(near, OpKind::Signal, &Ask { name: SIGNAL_NAME.to_owned(), ..all }).await.map(drop)
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

    /// The workers and nodes that were started.
    fn processes(&self) -> impl Iterator<Item = &Supervised> {
        self.worker.iter().chain(&self.steps).chain(self.nodes.iter().map(|(node, _)| node))
    }

    /// Ends everything in order, workers first.
    async fn stop(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for process in self.processes() {
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
        let lives = self.processes().flat_map(|process| process.lives());
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
        let logs =
            self.processes().map(|p| format!("{}:\n{}\n", p.program.name, tail(&p.program.log(), lines)));
        logs.collect()
    }
}

/// Asks until the answer is that it is refused, for this reason.
async fn refused(caller: &mut Caller, ask: &Ask, wanted: &str) -> anyhow::Result<()> {
    let asking = async {
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        loop {
            tick.tick().await;
            match caller.op(OpKind::Update, ask).await? {
                Reply::Ok(value) => bail!("an update was to be refused, and was answered: {value:?}"),
                Reply::Fail(reason, _) if reason == wanted => return Ok(()),
                Reply::Fail(..) | Reply::Unknown(_) => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.with_context(|| format!("not refused: {wanted}"))?
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
    if recorded.verdict.totals.get("queued_attempts_resumed") != Some(&1) {
        bail!("the queued step was not resumed from its heartbeat: {:?}", recorded.verdict.totals);
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
