//! Builds in the environment: pins, code that is deployed beside other code, and code that is gone.

use everstep::testing::{Error, Scenario, SimulationFailed, TestEnv, simulate};
use everstep::{Ctx, RunStatus, StepError, WorkflowError};

async fn number(ctx: &Ctx, name: &str, value: u32) -> Result<u32, WorkflowError> {
    Ok(ctx.step(name.to_owned(), move || async move { Ok::<_, StepError>(value) }).await?)
}

async fn order(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let sum = number(&ctx, "charge", 10).await?;
    ctx.signal::<()>("close").await?;
    Ok(sum)
}

/// As [`order`], changed with a marker.
async fn marked(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let fee = match ctx.version("fee", 0..=1) {
        0 => 0,
        _ => number(&ctx, "fee", 1).await?,
    };
    let sum = fee + number(&ctx, "charge", 10).await?;
    ctx.signal::<()>("close").await?;
    Ok(sum)
}

/// As [`order`], changed without one.
async fn careless(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let sum = number(&ctx, "fee", 1).await? + number(&ctx, "charge", 10).await?;
    ctx.signal::<()>("close").await?;
    Ok(sum)
}

#[tokio::test]
async fn a_pinned_run_waits_for_its_build() -> Result<(), Error> {
    let mut env = TestEnv::new().build_id("v1").register_pinned("order", order);
    let run = env.start("order", &()).await?;
    let mut env = env.deploy("v2").register_pinned("order", careless);
    env.retire("v1").await?;
    assert_eq!(env.waits_for_build(run)?.as_deref(), Some("v1"));
    env.signal(run, "close", &()).await?;
    match env.result::<u32>(run).await {
        Err(Error::Stuck { hint }) => assert!(hint.contains("'v1'"), "{hint}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(env.status(run)?, RunStatus::Running, "other code is not tried with it");

    // The build comes back, with the code that it had.
    let mut env = env.deploy("v1");
    assert_eq!(env.result::<u32>(run).await?, 10);
    assert!(matches!(env.retire("v9").await, Err(Error::UnknownBuild { known, .. }) if known == "v2, v1"));
    Ok(())
}

#[tokio::test]
async fn a_build_that_continues_another_takes_its_runs() -> Result<(), Error> {
    for allowed in [false, true] {
        let mut env = TestEnv::new().build_id("v1").register_pinned("order", order);
        let run = env.start("order", &()).await?;
        let mut env = env.deploy("v2").register_pinned("order", marked);
        if !allowed {
            env = env.continues("v1");
        }
        env.retire("v1").await?;
        if allowed {
            assert_eq!(env.waits_for_build(run)?.as_deref(), Some("v1"));
            env.allow_build("v2", "v1").await?;
        }
        assert_eq!(env.waits_for_build(run)?, None);
        env.signal(run, "close", &()).await?;
        assert_eq!(env.result::<u32>(run).await?, 10, "the code before the change: allowed {allowed}");
        let new = env.start("order", &()).await?;
        env.signal(new, "close", &()).await?;
        assert_eq!(env.result::<u32>(new).await?, 11);
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_is_not_pinned_is_blocked_by_code_that_does_not_fit() -> Result<(), Error> {
    let mut env = TestEnv::new().build_id("v1").register("order", order);
    let run = env.start("order", &()).await?;
    let mut env = env.deploy("v2").register("order", careless);
    env.retire("v1").await?;
    assert_eq!(env.status(run)?, RunStatus::Blocked);
    env.signal(run, "close", &()).await?;
    assert!(matches!(env.result::<u32>(run).await, Err(Error::Blocked(why)) if why.contains("fee")));
    // Code that fits is deployed, and the run goes on by itself.
    let mut env = env.deploy("v3").register("order", marked);
    assert_eq!(env.result::<u32>(run).await?, 10);
    Ok(())
}

/// Old and new code side by side, each of which may get the run next: what the marker is for.
#[tokio::test]
async fn a_rolling_deployment_under_every_seed() -> Result<(), SimulationFailed> {
    let scenario =
        || Scenario::new("order", &()).signal_after(std::time::Duration::from_secs(5), "close", &());
    let env = |new: fn() -> TestEnv| move || new();
    let both =
        || TestEnv::new().build_id("v1").register("order", order).deploy("v2").register("order", order);
    simulate(env(both), scenario()).seeds(0..100).same_result().run().await?;

    // Old code does not know a marker that new code has left: found, not believed.
    let mixed =
        || TestEnv::new().build_id("v1").register("order", order).deploy("v2").register("order", careless);
    let failed = simulate(env(mixed), scenario()).seeds(0..100).run().await;
    let problem = failed.map_err(|failed| failed.problem().to_owned());
    assert!(matches!(&problem, Err(why) if why.contains("block")), "{problem:?}");
    Ok(())
}
