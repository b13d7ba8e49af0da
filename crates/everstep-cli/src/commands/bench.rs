//! `everstep bench`: the workloads of docs/benchmarks.md on this machine, beside a baseline of the same round.

mod baseline;
mod load;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use everstep::{Ctx, StepError, Worker, WorkflowError};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::fail::Fail;
use crate::node::Database;
use crate::out::{self, Format};

const WORKFLOW: &str = "bench-steps";
/// Longest window of the baseline.
const BASELINE_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to run: w1 (10 inline steps) or w2 (one)
    #[arg(long, value_delimiter = ',', default_value = "w1,w2", value_parser = ["w1", "w2"])]
    workload: Vec<String>,
    /// Clients at one time, for w1; w2 has one
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    concurrency: Vec<usize>,
    /// Length of the measured window, in seconds, after 2 s of warm-up
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Rounds; medians are printed
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// A Postgres server on which fresh databases can be made; without it, SQLite files
    #[arg(long, value_name = "URL", hide_env_values = true)]
    database_url: Option<Database>,
    /// With Postgres: NATS
    #[arg(long, value_name = "URL", requires = "database_url")]
    nats_url: Option<String>,
    /// How to write the figures
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Host the worker of a bench (used by the bench itself)
    #[arg(long, hide = true, value_name = "URL")]
    worker_of: Option<String>,
}

/// One measurement.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    name: String,
    value: f64,
}

pub(crate) async fn run(args: Args) -> Result<(), Fail> {
    if let Some(address) = args.worker_of {
        return host(address).await;
    }
    // A bench that is stopped takes its processes with it.
    let stop = crate::node::stop_signal()?;
    let done = tokio::select! {
        done = all_rounds(args) => done,
        () = stop => Err(Fail::interrupted()),
    };
    done.and(baseline::remove_databases().await)
}

async fn all_rounds(args: Args) -> Result<(), Fail> {
    let mut rounds: Vec<Vec<Figure>> = Vec::new();
    for round in 1..=args.repeat.max(1) {
        let figures = one_round(&args).await?;
        for figure in &figures {
            out::note(&format!("round {round}: {:<28} {:.3}", figure.name, figure.value));
        }
        rounds.push(figures);
    }
    report(&rounds, args.output)
}

/// The baseline and every workload, each on a fresh database.
async fn one_round(args: &Args) -> Result<Vec<Figure>, Fail> {
    let window = Duration::from_secs(args.seconds.max(1));
    let mut figures = Vec::new();
    let mut plan: Vec<(&str, u32, usize)> = Vec::new();
    if args.workload.iter().any(|w| w == "w1") {
        plan.extend(args.concurrency.iter().map(|&c| ("w1", 10, c.max(1))));
    }
    if args.workload.iter().any(|w| w == "w2") {
        plan.push(("w2", 1, 1));
    }
    for (name, steps, clients) in plan {
        // Right before its workload, because the speed of a shared host changes within a minute.
        let (b, i) = baseline::measure(args.database_url.as_ref(), window.min(BASELINE_MAX)).await?;
        let system = System::start(args).await?;
        let early = async {
            tokio::time::sleep(load::WARM_UP + window / 5).await;
            system.server_resident_mib()
        };
        let (load, early) = tokio::join!(load::drive(&system.address, steps, clients, window), early);
        let late = system.server_resident_mib();
        system.stop().await?;
        let load = load?;
        let at = format!("{name}@{clients}");
        let steps_per_s = load.runs as f64 * f64::from(steps) / window.as_secs_f64();
        for (what, value) in [
            ("b inserts/s", b),
            ("i p50 ms", i),
            ("steps/s", steps_per_s),
            ("steps/s / b", steps_per_s / b),
            ("p50 ms", load.p50_ms),
            ("p50 / i", load.p50_ms / i),
            ("p99 ms", load.p99_ms),
            ("server MiB", late),
            ("server MiB, end / a fifth", late / early),
        ] {
            figures.push(Figure { name: format!("{at} {what}"), value });
        }
    }
    Ok(figures)
}

/// The median and the extremes of each figure.
fn report(rounds: &[Vec<Figure>], output: Format) -> Result<(), Fail> {
    let Some(first) = rounds.first() else { return Ok(()) };
    let mut rows = Vec::new();
    for (at, figure) in first.iter().enumerate() {
        let mut values: Vec<f64> = rounds.iter().filter_map(|r| r.get(at)).map(|f| f.value).collect();
        values.sort_by(f64::total_cmp);
        rows.push((figure.name.clone(), values[values.len() / 2], values[0], values[values.len() - 1]));
    }
    if output == Format::Text {
        out::line(&format!("{:<24} {:>12} {:>12} {:>12}", "FIGURE", "MEDIAN", "LEAST", "GREATEST"))?;
        return rows.iter().try_for_each(|(name, median, least, greatest)| {
            out::line(&format!("{name:<24} {median:>12.3} {least:>12.3} {greatest:>12.3}"))
        });
    }
    let rows: Vec<Value> = rows
        .iter()
        .map(|(name, median, min, max)| json!({"figure": name, "median": median, "min": min, "max": max}))
        .collect();
    out::json(&json!({"rounds": rounds.len(), "figures": rows}))
}

async fn host(address: String) -> Result<(), Fail> {
    async fn steps(ctx: Ctx, count: u32) -> Result<u32, WorkflowError> {
        for number in 0..count {
            let step = ctx.step("step", move || async move {
                Ok::<_, StepError>(format!(
                    "{number:>03} a result of about one hundred bytes, as JSON text{:>40}",
                    "."
                ))
            });
            step.await?;
        }
        Ok(count)
    }
    Ok(Worker::builder(address).run_slots(10_000).register(WORKFLOW, steps).build()?.run().await?)
}

/// Server and worker as processes of their own.
struct System {
    server: Child,
    worker: Child,
    address: String,
    _folder: Folder,
}

/// Removed with this value, after the processes that write into it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl System {
    async fn start(args: &Args) -> Result<Self, Fail> {
        let folder = std::env::temp_dir().join(format!("everstep-bench-{}", Uuid::new_v4()));
        std::fs::create_dir_all(&folder).map_err(|e| Fail::refused(format!("{}: {e}", folder.display())))?;
        let folder = Folder(folder);
        let port = super::crash::free_port()?;
        let address = format!("http://127.0.0.1:{port}");
        let database = match &args.database_url {
            Some(Database::Postgres(url)) => {
                let url = baseline::fresh_database(url).await?;
                everstep_store_postgres::migrate(&url).await?;
                url
            }
            _ => format!("sqlite:{}", folder.0.join("bench.db").display()),
        };
        let mut server = own_binary()?;
        server.args(["server", "--listen", &format!("127.0.0.1:{port}"), "--database-url", &database]);
        if let Some(nats) = &args.nats_url {
            server.args(["--nats-url", nats]);
        }
        let mut worker = own_binary()?;
        worker.args(["bench", "--worker-of", &address]);
        let spawn = |mut c: Command| c.spawn().map_err(|e| Fail::refused(format!("own binary: {e}")));
        Ok(Self { server: spawn(server)?, worker: spawn(worker)?, address, _folder: folder })
    }

    /// Resident memory of the server.
    fn server_resident_mib(&self) -> f64 {
        let pid = self.server.id().unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1_024.0
    }

    async fn stop(mut self) -> Result<(), Fail> {
        let _ = self.worker.kill().await;
        let _ = self.server.kill().await;
        baseline::remove_databases().await
    }
}

fn own_binary() -> Result<Command, Fail> {
    let path = std::env::current_exe().map_err(|e| Fail::refused(format!("own binary: {e}")))?;
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    Ok(command)
}
