//! `everstep bench`: the workloads of docs/benchmarks.md on this machine, beside a baseline of the same round.

mod baseline;
mod cost;
mod figures;
mod fill;
mod growth;
mod latency;
mod load;
mod measure;
mod pages;
mod parked;
mod place;
mod processes;
mod replay;
mod system;
mod timers;
mod workloads;

use std::time::Duration;

use figures::Figures;
use workloads::Workload;

use crate::fail::Fail;
use crate::node::Database;
use crate::out::Format;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to run
    #[arg(long, value_delimiter = ',', value_enum, default_value = "w1,w2")]
    workload: Vec<Workload>,
    /// Clients at one time [default: 1,64,256 for w1; 1,8 for fan-out and w6]; w2 has one
    #[arg(long, value_delimiter = ',')]
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
    #[command(flatten)]
    growth: growth::Args,
    /// Host the worker of a bench (used by the bench itself)
    #[arg(long, hide = true, value_name = "URL")]
    worker_of: Option<String>,
}

impl Args {
    fn window(&self) -> Duration {
        Duration::from_secs(self.seconds.max(1))
    }

    fn rounds(&self) -> usize {
        self.repeat.max(1)
    }
}

pub(crate) async fn run(args: Args) -> Result<(), Fail> {
    if let Some(address) = args.worker_of {
        return workloads::host(address).await;
    }
    // A bench that is stopped takes its processes with it.
    let stop = crate::node::stop_signal()?;
    let done = tokio::select! {
        done = all(&args) => done,
        () = stop => Err(Fail::interrupted()),
    };
    done.and(place::remove_all().await)
}

async fn all(args: &Args) -> Result<(), Fail> {
    if let Some(database) = &args.growth.into {
        return growth::fill_only(&args.growth, database).await;
    }
    let mut figures = Figures::default();
    let plans: Vec<_> = args.workload.iter().flat_map(|w| w.plans(&args.concurrency)).collect();
    // Rounds go through all workloads, so that what changes with time meets each of them.
    for _ in 0..args.rounds() {
        for plan in &plans {
            measure::workload(args, plan, &mut figures).await?;
        }
    }
    for _ in 0..args.rounds() {
        if args.workload.contains(&Workload::W3) {
            parked::run(args, &mut figures).await?;
        }
        if args.workload.contains(&Workload::W4) {
            timers::run(args, &mut figures).await?;
        }
        if args.workload.contains(&Workload::W5) {
            replay::run(args, &mut figures).await?;
        }
    }
    if args.workload.contains(&Workload::Growth) {
        growth::run(args, &mut figures).await?;
    }
    figures.report(args.output)
}
