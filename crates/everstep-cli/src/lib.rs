//! What the `everstep` binary does. The only crate that names adapters, reads configuration and installs
//! telemetry. A library besides the binary, so that tests can run the same program with failpoints in it.

mod commands;
mod fail;
mod file;
#[cfg(test)]
mod fuzz;
mod json;
mod node;
mod out;
mod telemetry;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser, Subcommand};

use commands::{
    admin, attribute, bench, build, crash, demo, dev, doctor, gate, migrate, namespace, queue, run, server,
    step,
};
use fail::Fail;

/// Durable workflows: run the server, look at runs, try it out.
///
/// Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 not reachable, 130 interrupted. Options that say
/// where things are come from a flag, else from EVERSTEP_NAME in the environment (empty is as good as not set),
/// else from `name = value` in everstep.toml.
#[derive(Debug, Parser)]
#[command(name = "everstep", version, disable_help_subcommand = true)]
struct Cli {
    /// Configuration file [default: everstep.toml if it is there]
    #[arg(long, global = true, env = "EVERSTEP_CONFIG", value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a complete Everstep on this machine, with its data in a file
    Dev(dev::Args),
    /// Run a production server node
    Server(server::Args),
    /// Bring a Postgres database to this version's schema
    Migrate(migrate::Args),
    /// Start, show and steer runs
    #[command(subcommand)]
    Run(run::Command),
    /// See which steps wait, run elsewhere or are in doubt, and say what became of one
    #[command(subcommand)]
    Step(step::Command),
    /// See what waits in task queues, and limit how fast they are worked off
    #[command(subcommand)]
    Queue(queue::Command),
    /// Replay files through the code of a build; exit 1 if one does not fit
    Replay(gate::ReplayArgs),
    /// Try the code of workers
    #[command(subcommand)]
    Worker(gate::WorkerCommand),
    /// See which builds are there and waited for, and let one go on with the runs of another
    #[command(subcommand)]
    Build(build::Command),
    /// Make namespaces, and say what their runs get by default
    #[command(subcommand)]
    Namespace(namespace::Command),
    /// Declare what runs can be found by
    #[command(subcommand)]
    Attribute(attribute::Command),
    /// Export and check a database without a server
    #[command(subcommand)]
    Admin(admin::Command),
    /// Check that what a node needs is there
    Doctor(doctor::Args),
    /// See it work
    #[command(subcommand)]
    Demo(demo::Command),
    /// Measure it on this machine
    Bench(bench::Args),
    /// Print shell completions
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command line `arguments`, the first of which is the name of the program.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    // A process has one TLS provider, chosen before anything can need it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Settings of the file are added as flags where neither a flag nor the environment has one, so that one
    // order holds everywhere: flag, environment, file, default.
    let settings = match file::settings(arguments.iter().cloned()) {
        Ok(settings) => settings,
        Err(error) => return error.report(),
    };
    let cli =
        match Cli::try_parse_from(file::with_settings(arguments.into_iter(), &settings, &Cli::command())) {
            Ok(cli) => cli,
            Err(error) => {
                let error = without_secrets(error);
                let _ = error.print();
                return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
            }
        };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return Fail::refused(format!("no runtime: {error}")).report(),
    };
    let result = runtime.block_on(async {
        let telemetry = telemetry::install()?;
        let result = dispatch(cli.command).await;
        telemetry.flush();
        result
    });
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => fail.report(),
    }
}

/// The error, with `***` for the password of any URL that it quotes.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    let quoted: Vec<(ContextKind, String)> = error
        .context()
        .filter_map(|(kind, value)| match value {
            ContextValue::String(text) => Some((kind, text.clone())),
            _ => None,
        })
        .collect();
    for (kind, text) in quoted {
        let Some((scheme, rest)) = text.split_once("://") else { continue };
        // Options behind a question mark may hold one too.
        let (rest, options) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?***"));
        let shown = match rest.rsplit_once('@') {
            Some((login, place)) => {
                let name = login.split_once(':').map_or(login, |(name, _)| name);
                format!("{scheme}://{name}:***@{place}{options}")
            }
            None => format!("{scheme}://{rest}{options}"),
        };
        error.insert(kind, ContextValue::String(shown));
    }
    error
}

/// One core is left to the database and the broker, which are on the same machine more often than not: a
/// thread more than there are cores costs each of them wake-ups. `TOKIO_WORKER_THREADS` overrides it.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        builder.worker_threads(cores.saturating_sub(1).max(1));
    }
    builder.enable_all().build()
}

async fn dispatch(command: Command) -> Result<(), Fail> {
    match command {
        Command::Dev(args) => dev::run(args).await,
        Command::Server(args) => server::run(args).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Run(command) => run::run(command).await,
        Command::Step(command) => step::run(command).await,
        Command::Queue(command) => queue::run(command).await,
        Command::Replay(args) => gate::replay(args).await,
        Command::Worker(command) => gate::worker(command).await,
        Command::Build(command) => build::run(command).await,
        Command::Namespace(command) => namespace::run(command).await,
        Command::Attribute(command) => attribute::run(command).await,
        Command::Admin(command) => admin::run(command).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Demo(demo::Command::Crash(args)) => crash::run(args).await,
        Command::Demo(command) => demo::run(command).await,
        Command::Bench(args) => bench::run(args).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "everstep", &mut script);
            out::write(&script)
        }
    }
}
