//! `everstep-chaos`: the processes of a chaos case in one binary, and the case itself.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use everstep_chaos::case::{Options, VERSIONS};
use everstep_chaos::process::obey_leash;
use everstep_chaos::run::{default_folder, exit_code, run};
use everstep_chaos::topology::{Layout, StoreKind};
use everstep_chaos::{judge, sink, worker};

/// Chaos on real processes. `server`, `migrate` and `admin` are the product's own commands, with failpoints and
/// planted bugs in them.
///
/// Exit codes of `run` and `check`: 0 PASS, 1 FAIL, 4 INVALID (nothing was proved).
#[derive(Debug, Parser)]
#[command(name = "everstep-chaos")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Host programs
    Worker(worker::Args),
    /// Keep the effect journal
    Sink {
        /// On 127.0.0.1
        #[arg(long)]
        port: u16,
        /// The journal
        #[arg(long)]
        journal: PathBuf,
    },
    /// Run a case
    Run(RunArgs),
    /// Judge a case again
    Check {
        /// Its folder
        folder: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Everything random is drawn from it [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults happen
    #[arg(long, conflicts_with = "seconds")]
    minutes: Option<u64>,
    /// The same in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// sqlite or postgres
    #[arg(long, default_value = "postgres")]
    store: StoreKind,
    /// The case's folder, made anew [default: target/chaos/STORE-SEED]
    #[arg(long)]
    out: Option<PathBuf>,
    /// A bug for the servers, which has to be found
    #[arg(long, value_name = "NAME")]
    planted_bug: Option<String>,
}

fn main() -> ExitCode {
    obey_leash();
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let own = ["worker", "sink", "run", "check", "help", "--help", "-h"];
    let rest: Vec<_> = arguments.collect();
    let is_own = rest.first().and_then(|first| first.to_str()).is_none_or(|first| own.contains(&first));
    if !is_own {
        return everstep_cli::main(std::iter::once(name).chain(rest));
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("EVERSTEP_LOG");
    let filter = filter.unwrap_or_else(|_| "everstep_chaos=info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match perform(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            // Neither FAIL nor INVALID: the case was not carried out.
            ExitCode::from(2)
        }
    }
}

fn perform(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Sink { port, journal } => sink::serve(port, &journal).map(|()| ExitCode::SUCCESS),
        Command::Check { folder } => {
            let verdict = judge::judge(&folder, Vec::new())?;
            write!(std::io::stdout(), "{}", judge::summary(&verdict))?;
            Ok(ExitCode::from(exit_code(verdict.verdict)))
        }
        Command::Worker(args) => runtime()?.block_on(worker::run(args)).map(|()| ExitCode::SUCCESS),
        Command::Run(args) => runtime()?.block_on(run_case(args)),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

async fn run_case(args: RunArgs) -> anyhow::Result<ExitCode> {
    let seed = args.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
    let case = std::path::absolute(args.out.unwrap_or_else(|| default_folder(args.store, seed)))?;
    let length = Duration::from_secs(args.minutes.map_or(args.seconds, |minutes| minutes * 60));
    let mut layout = Layout::new(seed, args.store, std::env::current_exe()?, case.clone());
    layout.clocks = true;
    if let Some(bug) = args.planted_bug {
        layout.server_environment.push(("EVERSTEP_PLANTED_BUG".to_owned(), bug));
    }
    let (mut out, store) = (std::io::stdout(), args.store.as_str());
    writeln!(out, "seed {seed}, {store}, {length:?}, git {}", judge::git_hash())?;
    let verdict = run(Options::of_chaos(layout), length).await?;
    writeln!(out, "{}", std::fs::read_to_string(case.join(VERSIONS))?)?;
    write!(out, "{}", judge::summary(&verdict))?;
    writeln!(out, "case {}", case.display())?;
    writeln!(out, "again: cargo xtask chaos --seed {seed} --seconds {} --store {store}", length.as_secs())?;
    Ok(ExitCode::from(exit_code(verdict.verdict)))
}
