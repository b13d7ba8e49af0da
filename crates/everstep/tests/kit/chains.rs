//! Workflows that go on in new runs, runs that are tried again, and runs that begin later.

use std::time::Duration;

use everstep::testing::{Error, Mock, Scenario, SimulationFailed, TestEnv, simulate};
use everstep::{Ctx, RetryPolicy, RunStatus, StepError, WorkflowError};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A reminder a day; a new run each week.
async fn remind(ctx: Ctx, (sent, days): (u32, u32)) -> Result<u32, WorkflowError> {
    let mut sent = sent;
    for _ in 0..7 {
        if sent == days {
            return Ok(sent);
        }
        ctx.sleep(DAY).await;
        sent = ctx.step("remind", move || async move { Ok::<_, StepError>(sent + 1) }).await?;
    }
    Err(ctx.continue_as_new(&(sent, days)))
}

#[tokio::test]
async fn a_month_of_reminders_is_a_chain_that_is_awaited_as_one() -> Result<(), Error> {
    let mut env = TestEnv::new().register("remind", remind);
    let run = env.start("remind", &(0, 30)).await?;
    assert_eq!(env.result::<u32>(run).await?, 30);
    assert_eq!(env.elapsed(), 30 * DAY);
    assert_eq!(env.status(run)?, RunStatus::Continued);
    let last = env.latest(run);
    assert_ne!(last, run);
    assert_eq!(env.status(last)?, RunStatus::Completed);
    assert_eq!(env.history(run)?.kinds().last(), Some(&"RunContinued"));
    Ok(())
}

/// Takes one signal a run.
async fn collect(ctx: Ctx, mut taken: Vec<u32>) -> Result<Vec<u32>, WorkflowError> {
    taken.push(ctx.signal("n").await?);
    if taken.len() == 5 {
        return Ok(taken);
    }
    Err(ctx.continue_as_new(&taken))
}

#[tokio::test]
async fn signals_reach_the_run_that_goes_on_and_repeats_are_known() -> Result<(), Error> {
    let mut env = TestEnv::new().register("collect", collect);
    let run = env.start("collect", &Vec::<u32>::new()).await?;
    for n in 0..5 {
        env.signal_with_id(run, &format!("s{n}"), "n", &n).await?;
        if n < 4 {
            env.signal_with_id(run, &format!("s{n}"), "n", &n).await?;
        }
    }
    assert_eq!(env.result::<Vec<u32>>(run).await?, [0, 1, 2, 3, 4]);
    Ok(())
}

#[tokio::test]
async fn a_chain_takes_every_signal_once_under_five_hundred_seeds() -> Result<(), SimulationFailed> {
    let mut scenario = Scenario::new("collect", &Vec::<u32>::new());
    for n in 0..5 {
        scenario = scenario.signal_after(Duration::from_millis(300 * n), "n", &n);
    }
    let report = simulate(|| TestEnv::new().register("collect", collect), scenario)
        .seeds(0..500)
        .same_result()
        .invariant("all are there", |end| end.result::<Vec<u32>>() == Some(vec![0, 1, 2, 3, 4]))
        .run()
        .await?;
    assert!(report.deaths > 100, "{report:?}");
    Ok(())
}

async fn call(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    Ok(ctx.step("call", || async { Ok::<_, StepError>(1) }).no_retry().await?)
}

#[tokio::test]
async fn a_run_is_tried_again_after_its_backoff() -> Result<(), Error> {
    let down = Mock::fails(StepError::new("Down", "503"));
    let mut env = TestEnv::new().register("call", call).mock("call", down.clone());
    let policy = || RetryPolicy { maximum_attempts: 3, ..RetryPolicy::default() };
    let run = env.play(Scenario::new("call", &()).retry(policy())).await?;
    let Err(Error::Ended { status: RunStatus::Failed, .. }) = env.result::<u32>(run).await else {
        panic!("three attempts fail")
    };
    assert_eq!(env.effects().of("call").len(), 3);
    // 1 s and 2 s, each shortened by up to a tenth.
    let (least, most) = (Duration::from_millis(2_700), Duration::from_secs(3));
    assert!((least..=most).contains(&env.elapsed()), "{:?}", env.elapsed());

    let mut env = TestEnv::new().register("call", call).mock("call", down);
    let run = env.play(Scenario::new("call", &()).retry(policy())).await?;
    env.set_mock("call", Mock::returns(7));
    assert_eq!(env.result::<u32>(run).await?, 7, "it recovers");
    Ok(())
}

async fn late(ctx: Ctx, (): ()) -> Result<i64, WorkflowError> {
    Ok(ctx.now().timestamp())
}

#[tokio::test]
async fn a_delayed_run_begins_at_its_instant() -> Result<(), Error> {
    let mut env = TestEnv::new().register("late", late);
    let began = env.now().timestamp();
    let run = env.play(Scenario::new("late", &()).start_delay(DAY)).await?;
    assert_eq!(env.result::<i64>(run).await?, began + 24 * 3600);
    let other = env.play(Scenario::new("late", &()).start_delay(DAY)).await?;
    env.cancel(other, "no need").await?;
    assert_eq!(env.status(other)?, RunStatus::Canceled, "at once: no code of it has run");
    Ok(())
}
