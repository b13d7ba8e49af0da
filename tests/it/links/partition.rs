//! F09: a link is cut in one direction or both, and what it connects does not know why.

use std::time::Duration;

use everstep_faultproxy::{Direction, Fault, Rule};
use everstep_tests::servers::require;

use super::world::{Plan, World, struck, within};

const RUNS: u32 = 5;

fn rule(fault: Fault, direction: Direction) -> Rule {
    let name = format!("{fault:?} {direction:?}");
    Rule::from(fault).direction(direction).named(name)
}

/// The partition lasts until an append was given up; when it heals, what was held back arrives late.
async fn postgres(fault: Fault, direction: Direction) -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    within("a partition between server and Postgres", async {
        let world = World::new(Plan::default()).await?;
        let _worker = world.worker(0)?;
        let runs = world.start(&world.client()?, 0..RUNS).await?;
        world.slept(RUNS).await?;
        let link = world.site().postgres.handle();
        let before = world.site().node.engine.status().unknown_settled;
        link.add(rule(fault, direction))?;
        world.open_gate();
        let healing = async {
            world.status(|status| status.unknown_settled > before).await;
            link.heal();
            Ok(())
        };
        tokio::try_join!(world.signal(&runs), healing)?;
        world.finish(&runs).await?;
        struck(&link)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn server_and_postgres_hear_nothing_of_each_other() -> anyhow::Result<()> {
    postgres(Fault::HalfOpen, Direction::Both).await
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_hears_nothing_of_the_server() -> anyhow::Result<()> {
    postgres(Fault::HalfOpen, Direction::Up).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_hears_nothing_of_postgres() -> anyhow::Result<()> {
    postgres(Fault::HalfOpen, Direction::Down).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_sends_to_postgres_vanishes() -> anyhow::Result<()> {
    postgres(Fault::Drop, Direction::Up).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_sends_to_the_server_vanishes() -> anyhow::Result<()> {
    postgres(Fault::Drop, Direction::Down).await
}

/// Nothing heals before all is done: hints and notices only save time.
async fn nats(fault: Fault, direction: Direction) -> anyhow::Result<()> {
    if !require("pg")? || !require("nats")? {
        return Ok(());
    }
    within("a partition between server and NATS", async {
        let world = World::new(Plan { nodes: 2, nats: true, ..Plan::default() }).await?;
        let _worker = world.worker(1)?;
        world.open_gate();
        let links: Vec<_> = world.sites.iter().filter_map(|site| site.nats.as_ref()).collect();
        for link in &links {
            link.add(rule(fault.clone(), direction))?;
        }
        let runs = world.start(&world.client()?, 0..RUNS).await?;
        world.signal(&runs).await?;
        world.finish(&runs).await?;
        for link in links {
            struck(link)?;
            link.heal();
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_and_nats_hear_nothing_of_each_other() -> anyhow::Result<()> {
    nats(Fault::HalfOpen, Direction::Both).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_hears_nothing_of_the_servers() -> anyhow::Result<()> {
    nats(Fault::HalfOpen, Direction::Up).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_hear_nothing_of_nats() -> anyhow::Result<()> {
    nats(Fault::HalfOpen, Direction::Down).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_servers_send_to_nats_vanishes() -> anyhow::Result<()> {
    nats(Fault::Drop, Direction::Up).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nats_sends_to_the_servers_vanishes() -> anyhow::Result<()> {
    nats(Fault::Drop, Direction::Down).await
}

/// A worker with steps in hand is cut off. Another gets its runs and finishes them, and when the first is back,
/// nothing that it did meanwhile counts.
async fn worker(fault: Fault, direction: Direction) -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    within("a partition between worker and server", async {
        let world = World::new(Plan { lease: Duration::from_secs(1), ..Plan::default() }).await?;
        let _cut_off = world.worker_through_proxy(0)?;
        let runs = world.start(&world.client()?, 0..RUNS).await?;
        let held = "SELECT count(*) FROM events WHERE kind = 'StepStarted' AND step = 'held'";
        world.truth.wait(held, RUNS.into()).await?;
        let link = world.site().front.handle();
        link.add(rule(fault, direction))?;
        let _other = world.worker(0)?;
        world.truth.wait(held, (2 * RUNS).into()).await?;
        world.open_gate();
        world.signal(&runs).await?;
        world.finish(&runs).await?;
        struck(&link)?;
        link.heal();
        world.status(|status| status.workers == 2).await;
        world.finish(&runs).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_and_server_hear_nothing_of_each_other() -> anyhow::Result<()> {
    worker(Fault::HalfOpen, Direction::Both).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_hears_nothing_of_the_worker() -> anyhow::Result<()> {
    worker(Fault::HalfOpen, Direction::Up).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_hears_nothing_of_the_server() -> anyhow::Result<()> {
    worker(Fault::HalfOpen, Direction::Down).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_worker_sends_vanishes() -> anyhow::Result<()> {
    worker(Fault::Drop, Direction::Up).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_sends_to_the_worker_vanishes() -> anyhow::Result<()> {
    worker(Fault::Drop, Direction::Down).await
}
