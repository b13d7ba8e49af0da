//! The workload `growth`: how it goes when the log is long, and when many runs are open.

use std::sync::Arc;
use std::time::Duration;

use everstep_store::Store;

use super::cost::{self, Meter};
use super::figures::{Figures, Goal};
use super::fill::{self, Shape};
use super::place::Place;
use super::system::System;
use super::workloads::Workload;
use super::{measure, pages, processes};
use crate::fail::Fail;
use crate::node::Database;

/// Speed on a long log, as a part of that on an empty one.
const SPEED: Goal = Goal::AtLeast(0.9);
const READY_S: Goal = Goal::AtMost(5.0);
const MEMORY_MIB: Goal = Goal::AtMost(64.0);
const IDLE_PERCENT: Goal = Goal::AtMost(1.0);
/// Clients of the speed.
const CLIENTS: usize = 64;
/// Until a server that has just started is idle.
const SETTLE: Duration = Duration::from_secs(10);
/// How long it is watched then.
const IDLE: Duration = Duration::from_secs(20);

/// What of it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// w1 with 64 clients on a long log, and on an empty one in turn
    Speed,
    /// Pages of the list of runs and of histories, on a long log
    Pages,
    /// From the start of the server's process to ready, with many open runs
    Ready,
    /// Memory and processor time of an idle server, with many sleeping runs
    Sleeping,
}

#[derive(Debug, clap::Args)]
// Groups are named after their types, and the bench has another `Args`.
#[group(id = "growth")]
#[command(next_help_heading = "Growth")]
pub(super) struct Args {
    /// What `--workload growth` measures
    #[arg(long, value_delimiter = ',', value_enum, default_value = "speed,pages,ready,sleeping")]
    growth_part: Vec<Part>,
    /// Events in the long log
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    growth_events: u64,
    /// Open runs when the server starts: a third sleep, a third wait for a worker, a third have lost theirs
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    growth_open: u64,
    /// Runs that sleep while the server is idle
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    growth_sleeping: u64,
    /// Measure nothing: fill this database, which has the schema or is a new file, with all three
    #[arg(id = "growth_into", long = "growth-into", value_name = "URL", hide_env_values = true)]
    pub(super) into: Option<Database>,
}

impl Args {
    fn has(&self, part: Part) -> bool {
        self.growth_part.contains(&part)
    }
}

pub(super) async fn run(args: &super::Args, figures: &mut Figures) -> Result<(), Fail> {
    let growth = &args.growth;
    if growth.has(Part::Speed) || growth.has(Part::Pages) {
        long_log(args, figures).await?;
    }
    if growth.has(Part::Ready) {
        ready(args, figures).await?;
    }
    if growth.has(Part::Sleeping) {
        sleeping(args, figures).await?;
    }
    Ok(())
}

/// Fills a database and leaves it.
pub(super) async fn fill_only(args: &Args, database: &Database) -> Result<(), Fail> {
    let store = database.open(false).await?;
    fill::fill(&store, Shape::Closed, args.growth_events / fill::EVENTS_OF_CLOSED).await?;
    fill_open(&store, args.growth_open).await?;
    fill::fill(&store, Shape::Sleeping, args.growth_sleeping).await?;
    store.close().await;
    Ok(())
}

async fn fill_open(store: &Arc<dyn Store>, runs: u64) -> Result<(), Fail> {
    let third = runs / 3;
    fill::fill(store, Shape::Sleeping, runs - 2 * third).await?;
    fill::fill(store, Shape::Waiting, third).await?;
    fill::fill(store, Shape::Lost, third).await?;
    Ok(())
}

/// A database of its own, with what `fill` puts there.
async fn filled<T>(
    args: &super::Args,
    fill: impl AsyncFnOnce(&Arc<dyn Store>) -> Result<T, Fail>,
) -> Result<(Place, T), Fail> {
    let place = Place::make(args.database_url.as_ref()).await?;
    let store = place.database.open(false).await?;
    let done = fill(&store).await?;
    store.close().await;
    place.settle().await?;
    Ok((place, done))
}

async fn long_log(args: &super::Args, figures: &mut Figures) -> Result<(), Fail> {
    let runs = args.growth.growth_events / fill::EVENTS_OF_CLOSED;
    let (place, sample) = filled(args, async |store| fill::fill(store, Shape::Closed, runs).await).await?;
    if let Some(bytes) = place.bytes().await? {
        figures.add("growth database MiB".to_owned(), bytes as f64 / (1_024.0 * 1_024.0));
    }
    if args.growth.has(Part::Pages) {
        let mut system = System::start(&place, args.nats_url.as_deref())?;
        let measured = match system.ready().await {
            Ok(_) => pages::measure(&system.address, &sample, figures).await,
            Err(error) => Err(error),
        };
        system.stop().await;
        measured?;
    }
    if args.growth.has(Part::Speed) {
        speed(args, &place, figures).await?;
    }
    place.remove().await
}

/// One after the other, so that what changes with time meets both.
async fn speed(args: &super::Args, long: &Place, figures: &mut Figures) -> Result<(), Fail> {
    for plan in Workload::W1.plans(&[CLIENTS]) {
        for _ in 0..args.rounds() {
            let empty = Place::make(args.database_url.as_ref()).await?;
            let on_empty = measure::speed(args, &empty, &plan).await;
            empty.remove().await?;
            let (on_empty, on_long) = (on_empty?, measure::speed(args, long, &plan).await?);
            figures.add(format!("growth {} steps/s, empty", plan.name), on_empty);
            figures.add(format!("growth {} steps/s, long", plan.name), on_long);
            let name = format!("growth {} long / empty", plan.name);
            figures.add_with_goal(name, on_long / on_empty, SPEED);
        }
    }
    Ok(())
}

async fn ready(args: &super::Args, figures: &mut Figures) -> Result<(), Fail> {
    let open = args.growth.growth_open;
    let (place, ()) = filled(args, async |store| fill_open(store, open).await).await?;
    let mut system = System::start(&place, args.nats_url.as_deref())?;
    let ready = system.ready().await;
    system.stop().await;
    place.remove().await?;
    figures.add_with_goal(format!("growth ready s, {open} open"), ready?.as_secs_f64(), READY_S);
    Ok(())
}

async fn sleeping(args: &super::Args, figures: &mut Figures) -> Result<(), Fail> {
    let runs = args.growth.growth_sleeping;
    let (empty, ()) = filled(args, async |_| Ok(())).await?;
    let before = idle(args, &empty).await;
    empty.remove().await?;
    let (place, _) = filled(args, async |store| fill::fill(store, Shape::Sleeping, runs).await).await?;
    let after = idle(args, &place).await;
    place.remove().await?;
    let (before, after) = (before?, after?);
    let asleep = format!("{runs} asleep");
    for (idle, how_many) in [(&before, "none asleep"), (&after, asleep.as_str())] {
        figures.add(format!("growth idle server MiB, {how_many}"), idle.mib);
        for (who, percent) in &idle.percents {
            let name = format!("growth idle {who} CPU %, {how_many}");
            match *who {
                "server" => figures.add_with_goal(name, *percent, IDLE_PERCENT),
                _ => figures.add(name, *percent),
            }
        }
    }
    figures.add_with_goal(
        format!("growth idle server MiB more, {asleep}"),
        after.mib - before.mib,
        MEMORY_MIB,
    );
    Ok(())
}

/// A server with nothing to do, its worker and its database.
struct Idle {
    /// Of the server.
    mib: f64,
    /// Of one processor, by whom.
    percents: Vec<(&'static str, f64)>,
}

async fn idle(args: &super::Args, place: &Place) -> Result<Idle, Fail> {
    let mut system = System::start(place, args.nats_url.as_deref())?;
    let watched = watch(args, place, &mut system).await;
    system.stop().await;
    watched
}

async fn watch(args: &super::Args, place: &Place, system: &mut System) -> Result<Idle, Fail> {
    system.ready().await?;
    tokio::time::sleep(SETTLE).await;
    let mut meter = Meter::new(place, system, args.nats_url.as_deref()).await?;
    let before = meter.read().await?;
    tokio::time::sleep(IDLE).await;
    let after = meter.read().await?;
    let percents = cost::processor_percents((&before, &after), IDLE);
    Ok(Idle { mib: processes::resident_mib(system.server_pid()), percents })
}
