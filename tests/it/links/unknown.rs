//! F10: the answer to a write is lost behind its commit, on one path after the other, then on all.

use std::time::Duration;

use everstep_core::{ConflictPolicy, RunStatus};
use everstep_faultproxy::{Fault, Handle, Rule, When};
use everstep_tests::servers::require;

use super::world::{Plan, World, struck, within};

const RUNS: u32 = 4;
const APPEND: &str = "INSERT INTO events";

fn lose_answer(sql: &str) -> Rule {
    Rule::from(Fault::LoseAnswer { sql: sql.to_owned() }).named(sql)
}

/// A world of this plan, and what happens in it.
async fn world(plan: Plan, work: impl AsyncFnOnce(&World) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if !require("pg")? {
        return Ok(());
    }
    within("an unknown commit", async { work(&World::new(plan).await?).await }).await
}

/// The same, with a rule for the last node's link to Postgres, which has to strike. `work` is given the link and the
/// rule's number.
async fn met(
    plan: Plan,
    rule: Rule,
    work: impl AsyncFnOnce(&World, &Handle, u64) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    world(plan, async |world| {
        let link = world.sites[plan.nodes - 1].postgres.handle();
        let id = link.add(rule)?;
        work(world, &link, id).await?;
        struck(&link)
    })
    .await
}

/// The first few writes of a path meet the fault; it has happened before the runs can end.
async fn path(rule: Rule, times: u64) -> anyhow::Result<()> {
    met(Plan::default(), rule.when(When::First(times)), async |world, link, id| {
        let worker = world.worker(0)?;
        let runs = world.start(&world.client()?, 0..RUNS).await?;
        world.slept(RUNS).await?;
        link.wait_fired(id, times).await;
        world.open_gate();
        world.signal(&runs).await?;
        world.finish(&runs).await?;
        worker.stop().await
    })
    .await
}

/// The appends of runs that are under way meet the fault: each step's and each signal's. Those of starts, which are
/// settled elsewhere, do not.
async fn appends(fault: Fault) -> anyhow::Result<()> {
    world(Plan { lease: Duration::from_secs(10), ..Plan::default() }, async |world| {
        let link = world.site().postgres.handle();
        let _worker = world.worker(0)?;
        let runs = world.start(&world.client()?, 0..RUNS).await?;
        world.slept(RUNS).await?;
        let rule = Rule::from(fault).named("appends");
        // Several for the signals, which are acknowledged, and several for what the worker commits.
        let first = link.add(rule.clone().when(When::First(2)))?;
        world.signal(&runs).await?;
        link.wait_fired(first, 2).await;
        let second = link.add(rule.when(When::First(3)))?;
        world.open_gate();
        world.finish(&runs).await?;
        // Not three: the repetition of what is committed is refused, which is an answer that nothing is lost by.
        anyhow::ensure!(link.fired(second) > 0, "{:?}", link.counts());
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_append() -> anyhow::Result<()> {
    appends(Fault::LoseAnswer { sql: APPEND.to_owned() }).await
}

/// The same, but certainly not committed.
#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_never_arrived() -> anyhow::Result<()> {
    appends(Fault::LoseRequest { sql: APPEND.to_owned() }).await
}

/// The same, but the backend commits when the node has long asked again.
#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_commits_late() -> anyhow::Result<()> {
    appends(Fault::LateRequest { sql: APPEND.to_owned(), ms: 300 }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_start() -> anyhow::Result<()> {
    path(lose_answer("INSERT INTO workflow_ids"), 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_session_that_opens() -> anyhow::Result<()> {
    path(lose_answer("INSERT INTO sessions"), 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_lease_that_is_renewed() -> anyhow::Result<()> {
    path(lose_answer("UPDATE sessions SET lease_until"), 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_end_of_expired_sessions() -> anyhow::Result<()> {
    path(lose_answer("WHERE closed_at IS NULL AND lease_until <"), 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_session_that_closes() -> anyhow::Result<()> {
    let rule = lose_answer("closed_at = clock_timestamp() WHERE session_id =");
    met(Plan::default(), rule, async |world, link, id| {
        let worker = world.worker(0)?;
        let runs = world.start(&world.client()?, 0..RUNS).await?;
        world.slept(RUNS).await?;
        // It gives its runs back while their second step is held, and closes its session.
        world.open_gate();
        worker.stop().await?;
        link.wait_fired(id, 1).await;
        let _other = world.worker(0)?;
        world.signal(&runs).await?;
        world.finish(&runs).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_start_that_replaces_a_run() -> anyhow::Result<()> {
    world(Plan::default(), async |world| {
        let link = world.site().postgres.handle();
        let _worker = world.worker(0)?;
        world.open_gate();
        let client = world.client()?;
        let start = || client.workflow::<u32>("errand").workflow_id("errand/0");
        let first = start().start(&0).await?;
        link.add(lose_answer("COMMIT").when(When::First(1)))?;
        let second = start().conflict(ConflictPolicy::TerminateExisting).start(&0).await?;
        second.signal("go", &100).await?;
        assert_eq!(second.result().await?, 101);
        assert_eq!(first.describe().await?.status, RunStatus::Terminated);
        assert_eq!(world.truth.check_order().await?.len(), 2);
        struck(&link)
    })
    .await
}

/// Rows of a table are claimed by a statement whose answer is lost: while the claim holds, nobody looks at them.
async fn claim(plan: Plan, sql: &str, claimed: &'static str) -> anyhow::Result<()> {
    met(plan, lose_answer(sql), async |world, link, id| {
        let _worker = world.worker(plan.nodes - 1)?;
        world.open_gate();
        let runs = world.start(&world.client()?, 0..RUNS).await?;
        world.truth.wait(claimed, 1).await?;
        link.wait_fired(id, 1).await;
        link.heal();
        world.signal(&runs).await?;
        world.finish(&runs).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_claim_of_timers() -> anyhow::Result<()> {
    let claimed = "SELECT count(*) FROM timers WHERE claimed_until IS NOT NULL";
    claim(Plan::default(), "UPDATE timers t SET claimed_until", claimed).await
}

/// Between nodes that only the database connects, tasks are found by the sweep alone.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_claim_of_tasks() -> anyhow::Result<()> {
    let claimed = "SELECT count(*) FROM tasks WHERE claims > 0";
    claim(Plan { nodes: 2, ..Plan::default() }, "UPDATE tasks t", claimed).await
}

/// A signal on one node to a run on the other leaves a wake; while the step is held, only the sweep deletes it.
#[tokio::test(flavor = "multi_thread")]
async fn of_wakes_that_are_deleted() -> anyhow::Result<()> {
    let rule = lose_answer("DELETE FROM wakes w USING unnest($1::uuid[]").when(When::First(2));
    met(Plan { nodes: 2, ..Plan::default() }, rule, async |world, link, id| {
        let _worker = world.worker(1)?;
        let runs = world.start(&world.client()?, 0..RUNS).await?;
        world.slept(RUNS).await?;
        world.signal(&runs).await?;
        link.wait_fired(id, 1).await;
        world.truth.wait("SELECT (count(*) = 0)::int::bigint FROM wakes", 1).await?;
        world.open_gate();
        world.finish(&runs).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_anything_in_one_of_twenty_cases() -> anyhow::Result<()> {
    world(Plan { nodes: 2, ..Plan::default() }, async |world| {
        let mut rules = Vec::new();
        for site in &world.sites {
            rules.push((&site.postgres, site.postgres.add(lose_answer("").when(When::Chance(0.05)))?));
        }
        let (_here, _there) = (world.worker(0)?, world.worker(1)?);
        let runs = world.start(&world.client()?, 0..20).await?;
        world.open_gate();
        let other = world.sites[1].node.client()?;
        let there: Vec<_> = runs.iter().filter_map(|run| Some(other.handle(run.run_id()?))).collect();
        world.signal(&there).await?;
        // The sweep alone asks several times a second, so that this comes.
        for (link, rule) in rules {
            link.wait_fired(rule, 2).await;
        }
        world.finish(&runs).await
    })
    .await
}
