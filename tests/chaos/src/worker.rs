//! A worker that runs programs, and tells the sink of every effect.

use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use everstep::{Ctx, StepCtx, StepError, StepInfo, StepType, Worker, WorkflowError};
use everstep_checker::format::{JournalEntry, Phase, Progress};
use everstep_tests::program::{
    Beat, Build, Effects, Ends, Program, QueuedStep, Source, Step, Work, interpret, run_queued,
};
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
    /// How many queued steps it takes
    #[arg(long, default_value_t = 100)]
    pub step_slots: u32,
    /// Runs that it has had stay with its build
    #[arg(long)]
    pub pins: bool,
    /// Only this half of what it could host
    #[arg(long)]
    pub only: Option<Half>,
}

/// What a worker hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Half {
    /// Runs.
    Runs,
    /// Queued steps.
    Steps,
}

/// Works until it is told to stop.
///
/// # Errors
/// What the worker says.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let (sink, build) = (Arc::new(Sink::new(args.sink)), Build::of(&args.build));
    let generated = Reporter { sink, worker: args.identity.clone() };
    let whole = generated.clone();
    let queued_steps = generated.clone();
    let (only, pins) = (args.only, args.pins);
    let mut worker = Worker::builder(args.address)
        .identity(args.identity)
        .build_id(args.build)
        .grace(Duration::from_millis(args.grace_ms))
        .park_after(Duration::from_millis(args.park_ms))
        .run_slots(args.slots);
    if only != Some(Half::Runs) {
        worker = worker
            .step_slots(args.step_slots)
            .register_step::<Work, _, _>(move |ctx, queued| work(queued_steps.clone(), ctx, queued))
            .register_step::<Echo, _, _>(|_, n| async move { Ok(n) });
    }
    if only == Some(Half::Steps) {
        return Ok(worker.build()?.run().await?);
    }
    worker = worker
        .register(POISON, poison)
        .register(CHAIN, chain)
        .register(QUEUED, queued)
        .register(PARENT, parent)
        .register(FIXED, move |ctx: Ctx, program: Program| {
            let reports = whole.of(&ctx);
            interpret(ctx, program, build, reports)
        });
    let program = move |ctx: Ctx, source: Source| {
        let reports = generated.of(&ctx);
        interpret(ctx, source.program(), build, reports)
    };
    let worker = match pins {
        true => worker.register_pinned(PROGRAM, program),
        false => worker.register(PROGRAM, program),
    };
    Ok(worker.build()?.run().await?)
}

/// An attempt of a queued step. What it was told and what it is going to say are in the journal before anybody else
/// can know.
async fn work(reporter: Reporter, ctx: StepCtx, queued: QueuedStep) -> Result<String, StepError> {
    let info = ctx.info().clone();
    let told = ctx.last_heartbeat::<Beat>().map(|beat| u64::from(beat.attempt));
    let begin = JournalEntry {
        run_id: info.run_id.to_string(),
        step: info.step_id,
        name: info.name.clone(),
        attempt: info.attempt,
        nonce: queued.step.nonce.clone(),
        worker: reporter.worker.clone(),
        queued: Some(Progress { details: told }),
        ..JournalEntry::default()
    };
    reporter.sink.report(&begin).await.map_err(away)?;
    if queued.beats {
        let said = Some(Progress { details: Some(u64::from(info.attempt)) });
        let beat = JournalEntry { phase: Phase::Beat, queued: said, ..begin.clone() };
        reporter.sink.report(&beat).await.map_err(away)?;
    }
    run_queued(ctx, queued, Arc::new(Begun { sink: reporter.sink, begin })).await
}

/// The effect of an attempt that has reported its begin.
struct Begun {
    sink: Arc<Sink>,
    begin: JournalEntry,
}

impl Effects for Begun {
    fn attempt(
        &self,
        step: &Step,
        info: &StepInfo,
    ) -> Pin<Box<dyn Future<Output = Result<(), StepError>> + Send>> {
        Box::pin(ending(Arc::clone(&self.sink), self.begin.clone(), step, info.attempt))
    }
}

/// Takes the time that the attempt takes, and reports its end.
fn ending(
    sink: Arc<Sink>,
    begin: JournalEntry,
    step: &Step,
    attempt: u32,
) -> impl Future<Output = Result<(), StepError>> + Send + use<> {
    let well = step.ends(attempt) == Ends::Well;
    let result_sha256 = well.then(|| sha256(&serde_json::Value::from(step.result()).to_string()));
    let took = Duration::from_micros(step.slow_us);
    async move {
        pace::hold(took).await;
        let end = JournalEntry { phase: Phase::End, result_sha256, ..begin };
        sink.report(&end).await.map_err(away)
    }
}

fn away(error: anyhow::Error) -> StepError {
    StepError::new("Sink", format!("{error:#}"))
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
        let begin = JournalEntry { nonce: step.nonce.clone(), ..self.entry(info) };
        let (sink, begun) = (Arc::clone(&self.sink), begin.clone());
        let ends = ending(Arc::clone(&self.sink), begin, step, info.attempt);
        Box::pin(async move {
            sink.report(&begun).await.map_err(away)?;
            ends.await
        })
    }

    fn keeps_books(&self) -> bool {
        true
    }

    fn happened(&self, info: &StepInfo) -> Pin<Box<dyn Future<Output = Result<bool, StepError>> + Send>> {
        let (sink, asked) = (Arc::clone(&self.sink), self.entry(info));
        Box::pin(async move { sink.has_begun(asked).await.map_err(away) })
    }
}

impl Reports {
    fn entry(&self, info: &StepInfo) -> JournalEntry {
        JournalEntry {
            run_id: info.run_id.to_string(),
            workflow_id: self.workflow_id.clone(),
            step: info.step_id,
            name: info.name.clone(),
            attempt: info.attempt,
            epoch: info.epoch,
            worker: self.worker.clone(),
            ..JournalEntry::default()
        }
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
