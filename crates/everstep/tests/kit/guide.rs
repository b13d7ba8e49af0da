//! The examples of `docs/testing.md`, each as a test. A test compares the two texts.

use everstep::testing::{Error, Mock, Replayer, Scenario, SimulationFailed, TestEnv, simulate};
use everstep::{Ctx, InDoubt, RetryPolicy, StepError, WorkflowError, step_info};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn send_mail(_to: String) -> Result<(), StepError> {
    Err(StepError::new("Offline", "a test must not send mail"))
}

async fn reminders(ctx: Ctx, to: String) -> Result<u32, WorkflowError> {
    for _day in 0..30 {
        ctx.sleep(DAY).await;
        let to = to.clone();
        ctx.step("send", move || send_mail(to.clone())).await?;
    }
    Ok(30)
}

#[tokio::test]
async fn a_month_of_reminders() -> Result<(), Error> {
    let mut env = TestEnv::new().register("reminders", reminders).mock("send", Mock::returns(()));
    let run = env.start("reminders", "ada").await?;

    env.skip(10 * DAY).await?;
    assert_eq!(env.effects().of("send").len(), 10);

    assert_eq!(env.result::<u32>(run).await?, 30);
    assert_eq!(env.elapsed(), 30 * DAY);
    Ok(())
}

async fn charge(key: String) -> Result<u64, StepError> {
    Err(StepError::new("Offline", format!("a test must not charge {key}")))
}

async fn order(ctx: Ctx, item: String) -> Result<String, WorkflowError> {
    let key = ctx.idempotency_key();
    let receipt: u64 = ctx
        .step("charge", move || charge(key.clone()))
        .retry(RetryPolicy { maximum_attempts: 3, ..RetryPolicy::default() })
        .await?;
    let approved = everstep::select! {
        answer = ctx.signal::<bool>("approve") => answer?,
        _ = ctx.sleep(DAY) => false,
    };
    if !approved {
        return Err(WorkflowError::new("NotApproved", format!("receipt {receipt}")));
    }
    ctx.step("ship", || async { Ok::<_, StepError>(()) }).await?;
    Ok(item)
}

#[tokio::test]
async fn a_charge_that_fails_twice_is_tried_a_third_time() -> Result<(), Error> {
    let flaky = Mock::returns(17).fails_first(2, StepError::new("Unavailable", "503"));
    let mut env = TestEnv::new().register("order", order).mock("charge", flaky);
    let run = env.start("order", "book").await?;

    env.skip(Duration::from_secs(10)).await?; // The pauses between the attempts pass in virtual time.
    assert_eq!(env.effects().of("charge").len(), 3);

    env.signal(run, "approve", &true).await?;
    assert_eq!(env.result::<String>(run).await?, "book");
    Ok(())
}

#[tokio::test]
async fn nobody_approves() -> Result<(), Error> {
    let mut env = TestEnv::new().register("order", order).mock("charge", Mock::returns(17));
    let run = env.start("order", "book").await?;

    let error = env.result::<String>(run).await.unwrap_err();
    assert_eq!(error.failure().map(|f| f.kind.as_str()), Some("NotApproved"));
    assert_eq!(env.elapsed(), DAY);
    assert!(env.effects().of("ship").is_empty());
    Ok(())
}

#[tokio::test]
async fn the_worker_dies_while_nobody_has_approved() -> Result<(), Error> {
    let mut env = TestEnv::new().register("order", order).mock("charge", Mock::returns(17));
    let run = env.start("order", "book").await?;

    env.crash().await?; // Another worker replays the run: the charge is recorded and does not happen again.
    env.signal(run, "approve", &true).await?;
    env.result::<String>(run).await?;
    assert_eq!(env.effects().of("charge").len(), 1);
    Ok(())
}

#[tokio::test]
async fn an_order_survives_everything() -> Result<(), SimulationFailed> {
    let approved = Scenario::new("order", "book").signal_after(Duration::from_secs(60), "approve", &true);
    simulate(|| TestEnv::new().register("order", order).mock("charge", Mock::returns(17)), approved)
        .seeds(0..200)
        .invariant("the customer pays once", |end| end.effects().of("charge").distinct_keys() == 1)
        .invariant("what is shipped is paid", |end| {
            let paid = end.effects().of("charge").iter().any(|charge| charge.recorded);
            paid || end.effects().of("ship").is_empty()
        })
        .run()
        .await?;
    Ok(())
}

/// Gives its receiver nothing by which it could know a repeat.
async fn careless(ctx: Ctx, (): ()) -> Result<(), WorkflowError> {
    Ok(ctx.step("charge", || async { Ok::<_, StepError>(()) }).await?)
}

#[tokio::test]
async fn a_careless_charge_is_found() {
    let failed = simulate(|| TestEnv::new().register("careless", careless), Scenario::new("careless", &()))
        .invariant("one charge", |end| end.effects().of("charge").len() == 1)
        .run()
        .await
        .unwrap_err();
    println!("{failed}");
    assert_eq!(failed.effects().of("charge").len(), 2);
}

async fn find_charge() -> Result<Option<()>, StepError> {
    Err(StepError::new("Offline", "a test must not ask the bank"))
}

/// Whoever takes the run over asks whether the charge happened.
async fn careful(ctx: Ctx, (): ()) -> Result<(), WorkflowError> {
    let charge = ctx.step("charge", || async { Ok::<_, StepError>(()) });
    Ok(charge.in_doubt(InDoubt::verify(find_charge)).await?)
}

#[tokio::test]
async fn a_careful_charge_happens_once() -> Result<(), SimulationFailed> {
    let environment = || TestEnv::new().register("careful", careful).mock("charge", Mock::returns(()));
    simulate(environment, Scenario::new("careful", &()))
        .seeds(0..200)
        .invariant("one charge", |end| end.effects().of("charge").len() == 1)
        .run()
        .await?;
    Ok(())
}

#[tokio::test]
async fn histories_of_before_still_replay() -> Result<(), Box<dyn std::error::Error>> {
    let histories = tempfile::tempdir()?;
    let mut env = TestEnv::new().register("order", order).mock("charge", Mock::returns(17));
    let run = env.start("order", "book").await?;
    std::fs::write(histories.path().join("waits.history"), env.history(run)?.to_bytes())?;

    let checked = Replayer::new().register("order", order).check_dir(histories.path())?;
    assert_eq!(checked, 1);
    Ok(())
}

#[tokio::test]
async fn the_step_knows_its_attempt() -> Result<(), Error> {
    let echo = Mock::with(|info| match info.attempt {
        1 => Err(StepError::new("Unavailable", "503")),
        attempt => Ok(u64::from(attempt)),
    });
    let mut env = TestEnv::new().register("order", order).mock("charge", echo.takes(Duration::from_secs(30)));
    env.start("order", "book").await?;
    env.skip(DAY / 2).await?;
    assert_eq!(env.effects().of("charge").succeeded().len(), 1);
    assert!(step_info().is_none(), "this is no step");
    Ok(())
}

/// Every block of Rust in the guide stands in this file, word for word.
#[test]
fn the_guide_says_what_is_tested_here() {
    let (guide, here) = (include_str!("../../../../docs/testing.md"), include_str!("guide.rs"));
    let blocks: Vec<&str> = guide.split("```rust\n").skip(1).filter_map(|b| b.split("```").next()).collect();
    assert!(blocks.len() >= 6, "{}", blocks.len());
    for block in blocks {
        assert!(here.contains(block), "not tested:\n{block}");
    }
}
