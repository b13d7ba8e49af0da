//! F26: NATS loses, doubles, reorders and replays. Nothing is recorded twice and nothing is executed twice, for a
//! claim is decided in the database (INV-43); without any message at all, everything still progresses (INV-42).

use std::time::Duration;

use anyhow::ensure;
use everstep_faultproxy::{Fault, NatsFault, Rule, When};
use everstep_tests::servers::require;

use super::world::{Plan, STEPS, World, struck, within};

const RUNS: u32 = 6;

fn rule(subject: &str, fault: NatsFault) -> Rule {
    let rule = Rule::from(Fault::Nats { subject: subject.to_owned(), fault });
    rule.named(format!("{fault:?} {subject}"))
}

/// Leases that no busy machine lets end: each attempt that begins twice is the messages' fault.
async fn messages(rules: Vec<Rule>) -> anyhow::Result<()> {
    if !require("pg")? || !require("nats")? {
        return Ok(());
    }
    within("NATS with its messages distorted", async {
        let world = World::new(Plan { nodes: 2, nats: true, lease: Duration::from_secs(60) }).await?;
        let links: Vec<_> = world.sites.iter().filter_map(|site| site.nats.as_ref()).collect();
        for link in &links {
            for rule in &rules {
                link.add(rule.clone())?;
            }
        }
        // Without a worker, each start is a hint.
        let runs = world.start(&world.client()?, 0..RUNS).await?;
        let (_here, _there) = (world.worker(0)?, world.worker(1)?);
        world.slept(RUNS).await?;
        // The other node owns some of them, or will hear of it by its messages.
        world.open_gate();
        let other = world.sites[1].node.client()?;
        let there: Vec<_> = runs.iter().filter_map(|run| Some(other.handle(run.run_id()?))).collect();
        world.signal(&there).await?;
        world.finish(&runs).await?;
        let attempts = world.attempts();
        ensure!(attempts == runs.len() * STEPS, "{attempts} attempts of {} steps", runs.len() * STEPS);
        for (index, rule) in rules.iter().enumerate() {
            let fired: u64 = links.iter().map(|link| link.counts()[index].fired).sum();
            ensure!(fired > 0, "{rule:?} never happened");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn come_six_times() -> anyhow::Result<()> {
    let again = NatsFault::Duplicate { more: 5 };
    messages(vec![rule("everstep.task", again), rule("everstep.notice", again)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn come_in_another_order() -> anyhow::Result<()> {
    messages(vec![rule("everstep", NatsFault::Swap)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn come_again_later() -> anyhow::Result<()> {
    let again = NatsFault::Replay { ms: 1_000 };
    messages(vec![rule("everstep.task", again), rule("everstep.notice", again)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn come_late() -> anyhow::Result<()> {
    messages(vec![rule("everstep", NatsFault::Delay { ms: 700 })]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn are_lost_half_of_the_time() -> anyhow::Result<()> {
    messages(vec![rule("", NatsFault::Drop).when(When::Chance(0.5))]).await
}

/// Workers on the other node only, so that each run depends on what a message would have told.
#[tokio::test(flavor = "multi_thread")]
async fn are_all_lost() -> anyhow::Result<()> {
    if !require("pg")? || !require("nats")? {
        return Ok(());
    }
    within("NATS without a message", async {
        let world = World::new(Plan { nodes: 2, nats: true, lease: Duration::from_secs(60) }).await?;
        let links: Vec<_> = world.sites.iter().filter_map(|site| site.nats.as_ref()).collect();
        for link in &links {
            link.add(rule("", NatsFault::Drop))?;
        }
        let _worker = world.worker(1)?;
        world.open_gate();
        let runs = world.start(&world.client()?, 0..RUNS).await?;
        world.signal(&runs).await?;
        world.finish(&runs).await?;
        ensure!(world.attempts() == runs.len() * STEPS, "{} attempts", world.attempts());
        links.into_iter().try_for_each(|link| struck(link))
    })
    .await
}
