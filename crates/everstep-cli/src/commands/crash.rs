//! `everstep demo crash`: kill -9 while a run is under way, then an account of every effect.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use everstep::{Client, Ctx, RunHandle, StepError, Worker, WorkflowError};
use everstep_core::{Event, EventBody};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::fail::Fail;
use crate::{json, out};

const WORKFLOW: &str = "crash-demo";
const STEPS: u32 = 12;
/// How long a step holds its result back after its effect: room for a kill between effect and commit.
const HOLD: Duration = Duration::from_millis(150);
/// Longest time for one try.
const LIMIT: Duration = Duration::from_secs(90);
/// Tries with another seed after a try that proved nothing.
const TRIES: u64 = 5;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kills of the worker right after an effect
    #[arg(long, default_value_t = 3)]
    kills: u32,
    /// Kills of the server at any moment
    #[arg(long, default_value_t = 2)]
    server_kills: u32,
    /// Decides where the kills fall [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Use this database instead of a SQLite file of its own: postgres://…
    #[arg(long, value_name = "URL", hide_env_values = true)]
    database_url: Option<String>,
    /// With Postgres: NATS
    #[arg(long, value_name = "URL", requires = "database_url")]
    nats_url: Option<String>,
    /// Accept a Postgres that does not sync to disk
    #[arg(long)]
    allow_fsync_off: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct WorkerArgs {
    #[arg(long)]
    address: String,
    #[arg(long)]
    folder: PathBuf,
}

/// One execution of a step, as it wrote it down before anything else could happen.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Execution {
    step: u32,
    attempt: u32,
    key: String,
    nonce: String,
    pid: u32,
    at_us: i64,
}

/// The worker's side: hosts the workflow until it is killed.
pub(crate) async fn work(args: WorkerArgs) -> Result<(), Fail> {
    let folder = args.folder;
    let worker = Worker::builder(args.address)
        .register(WORKFLOW, move |ctx: Ctx, steps: u32| run_steps(ctx, steps, folder.clone()))
        .build()?;
    Ok(worker.run().await?)
}

async fn run_steps(ctx: Ctx, steps: u32, folder: PathBuf) -> Result<Vec<String>, WorkflowError> {
    let mut nonces = Vec::new();
    for number in 1..=steps {
        let folder = folder.clone();
        let step = ctx.step(format!("effect {number}"), move || {
            let folder = folder.clone();
            async move {
                let nonce = effect(&folder)?;
                sleep(HOLD).await;
                Ok::<_, StepError>(nonce)
            }
        });
        nonces.push(step.await?);
    }
    Ok(nonces)
}

/// The effect: a line in a log, and a delivery to a sink that honors the idempotency key.
fn effect(folder: &Path) -> Result<String, StepError> {
    let info = everstep::step_info().ok_or_else(|| StepError::new("NoStep", "not inside a step"))?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let execution = Execution {
        step: info.step_id,
        attempt: info.attempt,
        key: info.idempotency_key,
        nonce: Uuid::new_v4().to_string(),
        pid: std::process::id(),
        at_us: i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
    };
    let line = serde_json::to_string(&execution)?;
    let mut log = OpenOptions::new().append(true).create(true).open(folder.join("effects.jsonl"))?;
    log.write_all(format!("{line}\n").as_bytes())?;
    log.sync_all()?;
    let delivery = folder.join("sink").join(execution.key.replace('/', "_"));
    match OpenOptions::new().write(true).create_new(true).open(delivery) {
        Ok(mut file) => {
            file.write_all(execution.nonce.as_bytes())?;
            file.sync_all()?;
        }
        // The receiver has seen this key: the second delivery has no effect.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e.into()),
    }
    Ok(execution.nonce)
}

pub(crate) async fn run(args: Args) -> Result<(), Fail> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = args.seed.unwrap_or(u64::from(since.subsec_nanos()));
    for seed in first..first + TRIES {
        out::note(&format!("seed {seed}"));
        match attempt(&args, seed).await? {
            Verdict::Valid => {
                return out::line(
                    "PASS: every step has one recorded result, and the sink holds every effect once",
                );
            }
            Verdict::Invalid => {
                out::note("INVALID: no kill fell between an effect and its commit; once more")
            }
        }
    }
    Err(Fail::refused(format!("INVALID: {TRIES} tries proved nothing")))
}

enum Verdict {
    Valid,
    Invalid,
}

/// The processes of one try; they end with it.
struct Processes {
    server: Child,
    worker: Child,
}

async fn attempt(args: &Args, seed: u64) -> Result<Verdict, Fail> {
    let folder = std::env::temp_dir().join(format!("everstep-crash-{}-{seed}", std::process::id()));
    let io = |e: std::io::Error| Fail::refused(format!("{}: {e}", folder.display()));
    fs::create_dir_all(folder.join("sink")).map_err(io)?;
    let result = timeout(LIMIT, one_try(args, seed, &folder)).await;
    fs::remove_dir_all(&folder).map_err(io)?;
    result
        .unwrap_or_else(|_| Err(Fail::refused(format!("seed {seed}: the run did not end within {LIMIT:?}"))))
}

async fn one_try(args: &Args, seed: u64, folder: &Path) -> Result<Verdict, Fail> {
    let port = free_port()?;
    let address = format!("http://127.0.0.1:{port}");
    let mut processes =
        Processes { server: spawn_server(args, port, folder)?, worker: spawn_worker(&address, folder)? };
    let client = Client::connect(&address)?;
    let run: RunHandle<Vec<String>> =
        client.workflow(WORKFLOW).workflow_id(format!("crash/{}", Uuid::new_v4())).start(&STEPS).await?;
    let mut plan = Plan::draw(seed, args.kills.min(STEPS), args.server_kills);
    let mut killed = Vec::new();
    let result = loop {
        let done = executions(folder).len();
        if plan.worker_after.first().is_some_and(|&n| done >= n) {
            plan.worker_after.remove(0);
            kill(&mut processes.worker).await?;
            killed.push(format!("worker after effect {done}"));
            processes.worker = spawn_worker(&address, folder)?;
        }
        if let Some((_, wait)) = plan.server_after.first().copied().filter(|&(n, _)| done >= n) {
            plan.server_after.remove(0);
            sleep(wait).await;
            kill(&mut processes.server).await?;
            killed.push(format!("server {} ms after effect {done}", wait.as_millis()));
            processes.server = spawn_server(args, port, folder)?;
        }
        match timeout(Duration::from_millis(20), run.result()).await {
            Err(_) => {}
            Ok(result) => break result?,
        }
    };
    let mut history = run.history(0, false).await?;
    let mut events = Vec::new();
    while let Some(event) = history.next().await? {
        events.push(event);
    }
    kill(&mut processes.worker).await?;
    kill(&mut processes.server).await?;
    account(folder, &events, &result, &killed)
}

/// Where the kills fall.
struct Plan {
    /// Kill the worker once so many effects are in the log.
    worker_after: Vec<usize>,
    /// Kill the server so long after so many effects are in the log.
    server_after: Vec<(usize, Duration)>,
}

impl Plan {
    fn draw(seed: u64, kills: u32, server_kills: u32) -> Self {
        let mut state = seed;
        let mut next = move || {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z ^ (z >> 27)
        };
        let mut after = BTreeSet::new();
        while after.len() < kills as usize {
            after.insert(1 + (next() % u64::from(STEPS)) as usize);
        }
        let hold = u64::try_from(HOLD.as_millis()).unwrap_or(1);
        let mut server_after: Vec<(usize, Duration)> = (0..server_kills)
            .map(|_| ((next() % u64::from(STEPS)) as usize, Duration::from_millis(next() % (2 * hold))))
            .collect();
        server_after.sort_unstable();
        Self { worker_after: after.into_iter().collect(), server_after }
    }
}

pub(crate) fn free_port() -> Result<u16, Fail> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    listener.map(|a| a.port()).map_err(|e| Fail::refused(format!("no free port: {e}")))
}

fn own_binary() -> Result<Command, Fail> {
    let path = std::env::current_exe().map_err(|e| Fail::refused(format!("own binary: {e}")))?;
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

fn spawn_server(args: &Args, port: u16, folder: &Path) -> Result<Child, Fail> {
    let mut command = own_binary()?;
    let listen = format!("127.0.0.1:{port}");
    let database = match &args.database_url {
        Some(url) => url.clone(),
        None => format!("sqlite:{}", folder.join("crash.db").display()),
    };
    command.args(["server", "--lease", "1s", "--listen", &listen, "--database-url", &database]);
    if let Some(nats) = &args.nats_url {
        command.args(["--nats-url", nats]);
    }
    if args.allow_fsync_off {
        command.arg("--allow-fsync-off");
    }
    command.spawn().map_err(|e| Fail::refused(format!("server: {e}")))
}

fn spawn_worker(address: &str, folder: &Path) -> Result<Child, Fail> {
    let mut command = own_binary()?;
    command.args(["demo", "crash-worker", "--address", address, "--folder"]).arg(folder);
    command.spawn().map_err(|e| Fail::refused(format!("worker: {e}")))
}

/// SIGKILL, and gone when this returns.
async fn kill(child: &mut Child) -> Result<(), Fail> {
    child.kill().await.map_err(|e| Fail::refused(format!("kill: {e}")))
}

fn executions(folder: &Path) -> Vec<Execution> {
    let text = fs::read_to_string(folder.join("effects.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Prints the history and the effect log, and compares them.
fn account(folder: &Path, events: &[Event], result: &[String], killed: &[String]) -> Result<Verdict, Fail> {
    out::line("History:")?;
    for event in events {
        out::line(&json::event_line(event))?;
    }
    let mut recorded: BTreeMap<u32, (i64, String)> = BTreeMap::new();
    for event in events {
        if let EventBody::StepCompleted { step, result, .. } = &event.body {
            let nonce = json::payload(result).as_str().unwrap_or_default().to_owned();
            if recorded.insert(step.0, (event.at.as_micros(), nonce)).is_some() {
                return Err(Fail::refused(format!("step {step} has two recorded results")));
            }
        }
    }
    out::line("Effects:")?;
    let (mut re_executed, mut ran) = (0, 0);
    for e in executions(folder) {
        let Some((at, nonce)) = recorded.get(&e.step) else {
            return Err(Fail::refused(format!("step {} ran and has no recorded result", e.step)));
        };
        if e.at_us > *at {
            return Err(Fail::refused(format!("step {} began after its completion was committed", e.step)));
        }
        ran += 1;
        let label =
            if e.nonce == *nonce { "recorded" } else { "*re-executed*: it ran, and died before its commit" };
        re_executed += u32::from(e.nonce != *nonce);
        out::line(&format!("  step {:>2} attempt {} pid {:<7} {label}", e.step, e.attempt, e.pid))?;
    }
    out::line(&format!("Killed: {}", killed.join(", ")))?;
    let sink = fs::read_dir(folder.join("sink")).map(Iterator::count).unwrap_or(0);
    let steps = STEPS as usize;
    if recorded.len() != steps || result.len() != steps || sink != steps {
        let found = format!("{} recorded, {} returned, {sink} in the sink", recorded.len(), result.len());
        return Err(Fail::refused(format!("{STEPS} steps: {found}")));
    }
    out::line(&format!(
        "{ran} executions of {STEPS} steps, {re_executed} re-executed; sink: {sink} effects"
    ))?;
    Ok(if re_executed > 0 { Verdict::Valid } else { Verdict::Invalid })
}
