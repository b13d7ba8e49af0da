//! F09, for good: the Postgres that a node is connected to is silently gone, and its successor answers at the
//! same address. Nothing ever closes the old connections, and nothing comes over them.

use everstep_faultproxy::{Fault, Rule, Scope, When};
use everstep_tests::servers::require;

use super::world::{Plan, World, struck, within};

const RUNS: u32 = 5;

/// The rule is never taken back. One batch of errands meets it, and another begins when it has struck.
async fn for_good(rule: Rule, times: u64) -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    within("a Postgres that is silently gone", async {
        let world = World::new(Plan::default()).await?;
        let worker = world.worker(0)?;
        let client = world.client()?;
        let mut runs = world.start(&client, 0..RUNS).await?;
        world.slept(RUNS).await?;
        let link = world.site().postgres.handle();
        let id = link.add(rule)?;
        world.open_gate();
        world.signal(&runs).await?;
        link.wait_fired(id, times).await;
        // Not the appends alone: what looks for timers, renews leases and reads has to leave it as well.
        let more = world.start(&client, RUNS..2 * RUNS).await?;
        // Its runs are found by the sweep, once its lease has ended.
        drop(worker);
        let _other = world.worker(0)?;
        world.signal(&more).await?;
        runs.extend(more);
        world.finish(&runs).await?;
        struck(&link)
    })
    .await
}

/// One connection, at the very moment at which such a statement was sent.
async fn at(sql: &str) -> anyhow::Result<()> {
    for_good(silence(sql).when(When::Nth(1)), 1).await
}

fn silence(sql: &str) -> Rule {
    Rule::from(Fault::Silence { sql: sql.to_owned() }).named(sql)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_all_connections() -> anyhow::Result<()> {
    for_good(Rule::from(Fault::HalfOpen).scope(Scope::Open).named("gone"), 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn during_an_append() -> anyhow::Result<()> {
    at("INSERT INTO events").await
}

#[tokio::test(flavor = "multi_thread")]
async fn during_a_renewal() -> anyhow::Result<()> {
    at("UPDATE sessions SET lease_until").await
}

/// As many as there are connections for leases and the sweep.
#[tokio::test(flavor = "multi_thread")]
async fn during_two_renewals() -> anyhow::Result<()> {
    for_good(silence("UPDATE sessions SET lease_until").when(When::First(2)), 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn during_a_look_for_timers() -> anyhow::Result<()> {
    at("UPDATE timers t SET claimed_until").await
}

#[tokio::test(flavor = "multi_thread")]
async fn during_a_sweep() -> anyhow::Result<()> {
    at("WHERE closed_at IS NULL AND lease_until <").await
}

/// The history of a run is read when a worker gets it.
#[tokio::test(flavor = "multi_thread")]
async fn during_a_read() -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    within("a Postgres that is silently gone during a read", async {
        let world = World::new(Plan::default()).await?;
        let runs = world.start(&world.client()?, 0..RUNS).await?;
        let link = world.site().postgres.handle();
        link.add(silence("SELECT e.seq, e.at").when(When::Nth(1)))?;
        let _worker = world.worker(0)?;
        world.open_gate();
        world.signal(&runs).await?;
        world.finish(&runs).await?;
        struck(&link)
    })
    .await
}
