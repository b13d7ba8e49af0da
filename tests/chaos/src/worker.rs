//! A worker that runs programs, and tells the sink of every effect.

use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use everstep::{Ctx, StepError, StepInfo, StepType, Worker, WorkflowError};
use everstep_checker::format::{JournalEntry, Phase};
use everstep_tests::program::{Build, Effects, Ends, Program, Source, Step, interpret};
use sha2::{Digest as _, Sha256};

use crate::pace;
use crate::sink::client::Sink;

/// The workflow type of programs.
pub const PROGRAM: &str = "program";
/// The workflow type of a program that comes whole, not as what it is generated from.
pub const FIXED: &str = "fixed";
/// The workflow that goes on in new runs, as often as its input says.
pub const CHAIN: &str = "chain";
/// The workflow that has its input given back by a child.
pub const PARENT: &str = "parent";
/// The workflow that has its input echoed by a queued step.
pub const QUEUED: &str = "queued";

/// The workflow type of code that no worker should host.
pub const POISON: &str = "poison";

/// How a worker is started.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The server node, or a proxy before it
    #[arg(long)]
    pub address: String,
    /// The effect sink: HOST:PORT
    #[arg(long)]
    pub sink: String,
    /// Which code it says it runs
    #[arg(long)]
    pub build: String,
    /// Its name in histories and in the journal
    #[arg(long)]
    pub identity: String,
    /// How long running steps get when it is told to stop, in milliseconds
    #[arg(long, default_value_t = 5_000)]
    pub grace_ms: u64,
    /// How long a run that only waits stays with it, in milliseconds
    #[arg(long, default_value_t = 200)]
    pub park_ms: u64,
    /// How many runs it takes
    #[arg(long, default_value_t = 1_000)]
    pub slots: u32,
}

/// Works until it is told to stop.
///
/// # Errors
/// What the worker says.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let (sink, build) = (Arc::new(Sink::new(args.sink)), Build::of(&args.build));
    let generated = Reporter { sink, worker: args.identity.clone() };
    let whole = generated.clone();
    let worker = Worker::builder(args.address)
        .identity(args.identity)
        .build_id(args.build)
        .grace(Duration::from_millis(args.grace_ms))
        .park_after(Duration::from_millis(args.park_ms))
        .run_slots(args.slots)
        .register(POISON, poison)
        .register(PROGRAM, move |ctx: Ctx, source: Source| {
            let reports = generated.of(&ctx);
            interpret(ctx, source.program(), build, reports)
        })
        .register(CHAIN, chain)
        .register(QUEUED, queued)
        .register(PARENT, parent)
        .register_step::<Echo, _, _>(|_, n| async move { Ok(n) })
        .register(FIXED, move |ctx: Ctx, program: Program| {
            let reports = whole.of(&ctx);
            interpret(ctx, program, build, reports)
        });
    Ok(worker.build()?.run().await?)
}

struct Echo;

impl StepType for Echo {
    const NAME: &'static str = "echo";
    type Input = u32;
    type Output = u32;
}

async fn queued(ctx: Ctx, n: u32) -> Result<u32, WorkflowError> {
    Ok(ctx.run::<Echo>(n).await?)
}

async fn parent(ctx: Ctx, n: u32) -> Result<u32, WorkflowError> {
    Ok(ctx.child::<u32>(QUEUED, n).workflow_id(format!("{PARENT}/child")).await?)
}

async fn chain(ctx: Ctx, left: u32) -> Result<u32, WorkflowError> {
    if left > 0 { Err(ctx.continue_as_new(&(left - 1))) } else { Ok(left) }
}

/// Where the effects of this worker are reported.
#[derive(Clone)]
struct Reporter {
    sink: Arc<Sink>,
    worker: String,
}

impl Reporter {
    fn of(&self, ctx: &Ctx) -> Arc<Reports> {
        let workflow_id = ctx.run_info().workflow_id.clone();
        Arc::new(Reports { sink: Arc::clone(&self.sink), worker: self.worker.clone(), workflow_id })
    }
}

/// Code that harms the worker which hosts it. Only a debugger or a kill ends some of it.
async fn poison(_: Ctx, kind: String) -> Result<u64, WorkflowError> {
    match kind.as_str() {
        "panic" => std::panic::panic_any("planted"),
        "spin" => loop {
            std::hint::spin_loop();
        },
        // More than there is address space for: the allocator gives up, and with it the process.
        _ => Ok(vec![1u8; 1 << 46].len() as u64),
    }
}

/// The effects of one run.
struct Reports {
    sink: Arc<Sink>,
    worker: String,
    workflow_id: String,
}

impl Effects for Reports {
    fn attempt(
        &self,
        step: &Step,
        info: &StepInfo,
    ) -> Pin<Box<dyn Future<Output = Result<(), StepError>> + Send>> {
        let (sink, took) = (Arc::clone(&self.sink), Duration::from_micros(step.slow_us));
        let well = step.ends(info.attempt) == Ends::Well;
        let result_sha256 = well.then(|| sha256(&serde_json::Value::from(step.result()).to_string()));
        let begin = JournalEntry {
            run_id: info.run_id.to_string(),
            workflow_id: self.workflow_id.clone(),
            step: info.step_id,
            name: info.name.clone(),
            attempt: info.attempt,
            epoch: info.epoch,
            nonce: step.nonce.clone(),
            worker: self.worker.clone(),
            ..JournalEntry::default()
        };
        Box::pin(async move {
            let away = |error: anyhow::Error| StepError::new("Sink", format!("{error:#}"));
            sink.report(&begin).await.map_err(away)?;
            pace::hold(took).await;
            let end = JournalEntry { phase: Phase::End, result_sha256, ..begin };
            sink.report(&end).await.map_err(away)
        })
    }
}

/// In hex.
#[must_use]
pub fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
