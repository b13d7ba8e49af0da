//! One workload on one system: what its clients saw, and what it cost.

use std::time::Duration;

use super::cost::{self, Meter, Reading};
use super::figures::Figures;
use super::load::{Clients, Load};
use super::place::Place;
use super::processes;
use super::system::System;
use super::workloads::Plan;
use super::{Args, baseline};
use crate::fail::Fail;

/// Longest window of the baseline.
const BASELINE_MAX: Duration = Duration::from_secs(3);

/// The baseline, then the workload on a fresh database.
pub(super) async fn workload(args: &Args, plan: &Plan, figures: &mut Figures) -> Result<(), Fail> {
    // Right before its workload, because the speed of a shared host changes within a minute.
    let (b, i) = baseline::measure(args.database_url.as_ref(), args.window().min(BASELINE_MAX)).await?;
    let at = &plan.name;
    figures.add(format!("{at} b inserts/s"), b);
    figures.add(format!("{at} i p50 ms"), i);
    let place = Place::make(args.database_url.as_ref()).await?;
    let system = System::start(&place, args.nats_url.as_deref())?;
    let measured = window(args, &place, &system, plan).await;
    system.stop().await;
    place.remove().await?;
    let Window { load, early_mib, late_mib, before, after } = measured?;
    let steps_per_s = steps_per_s(args, plan, &load);
    figures.add(format!("{at} steps/s"), steps_per_s);
    figures.add(format!("{at} steps/s / b"), steps_per_s / b);
    figures.add(format!("{at} p50 ms"), load.p50_ms);
    match plan.goal {
        Some(goal) => figures.add_with_goal(format!("{at} p50 / i"), load.p50_ms / i, goal),
        None => figures.add(format!("{at} p50 / i"), load.p50_ms / i),
    }
    figures.add(format!("{at} p99 ms"), load.p99_ms);
    figures.add(format!("{at} p99 / i"), load.p99_ms / i);
    figures.add(format!("{at} server MiB"), late_mib);
    figures.add(format!("{at} server MiB, end / a fifth"), late_mib / early_mib);
    cost::add_per_step(figures, at, (&before, &after), load.runs as f64 * f64::from(plan.steps));
    Ok(())
}

pub(super) fn steps_per_s(args: &Args, plan: &Plan, load: &Load) -> f64 {
    load.runs as f64 * f64::from(plan.steps) / args.window().as_secs_f64()
}

/// What was seen of a window, from inside and from outside.
struct Window {
    load: Load,
    early_mib: f64,
    late_mib: f64,
    before: Reading,
    after: Reading,
}

async fn window(args: &Args, place: &Place, system: &System, plan: &Plan) -> Result<Window, Fail> {
    let clients = Clients::warm_up(&system.address, plan).await?;
    let mut meter = Meter::new(place, system, args.nats_url.as_deref()).await?;
    let before = meter.read().await?;
    clients.measure();
    tokio::time::sleep(args.window() / 5).await;
    let early_mib = processes::resident_mib(system.server_pid());
    tokio::time::sleep(args.window() * 4 / 5).await;
    clients.end();
    let after = meter.read().await?;
    let late_mib = processes::resident_mib(system.server_pid());
    Ok(Window { load: clients.finish().await?, early_mib, late_mib, before, after })
}

/// Only what the clients see, on a database that stays.
pub(super) async fn speed(args: &Args, place: &Place, plan: &Plan) -> Result<f64, Fail> {
    let system = System::start(place, args.nats_url.as_deref())?;
    let clients = Clients::warm_up(&system.address, plan).await;
    let load = match clients {
        Ok(clients) => {
            clients.measure();
            tokio::time::sleep(args.window()).await;
            clients.end();
            clients.finish().await
        }
        Err(error) => Err(error),
    };
    system.stop().await;
    Ok(steps_per_s(args, plan, &load?))
}
