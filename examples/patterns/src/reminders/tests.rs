//! A month in milliseconds; no server is needed for it.

use everstep::testing::{Error, Mock, Scenario, SimulationFailed, TestEnv, simulate};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3_600);

struct Nobody;

impl Mail for Nobody {
    async fn send(&self, _: String, _: String, _: u32) -> Result<(), StepError> {
        Err(StepError::new("Reached", "a test sent mail").non_retryable())
    }
}

fn env() -> TestEnv {
    TestEnv::new()
        .register(WORKFLOW, |ctx, plan| remind(ctx, Arc::new(Nobody), plan))
        .mock("send", Mock::returns(()).takes(Duration::from_secs(60)))
}

fn month() -> Plan {
    Plan::new("ada", 30, DAY)
}

#[tokio::test]
async fn a_month_is_thirty_reminders_in_five_runs() -> Result<(), Error> {
    let mut env = env();
    let run = env.start(WORKFLOW, &month()).await?;
    assert_eq!(env.result::<u32>(run).await?, 30);
    assert_eq!(env.elapsed(), 30 * DAY + Duration::from_secs(60));
    let effects = env.effects();
    assert_eq!(effects.of("send").distinct_keys(), 30);
    let mut runs: Vec<_> = effects.iter().map(|effect| effect.info.run_id).collect();
    runs.dedup();
    assert_eq!(runs.len(), 5);
    for run in runs {
        assert!(env.history(run)?.events().len() < 40, "the history of a week");
    }
    Ok(())
}

#[tokio::test]
async fn whoever_says_stop_gets_no_more() -> Result<(), Error> {
    let mut env = env();
    let run = env.start(WORKFLOW, &month()).await?;
    env.skip(10 * DAY + DAY / 2).await?;
    env.signal(run, STOP, &()).await?;
    assert_eq!(env.result::<u32>(run).await?, 10);
    assert_eq!(env.elapsed(), 10 * DAY + DAY / 2);
    Ok(())
}

/// Also a stop that comes while one run ends and the next begins is heard.
#[tokio::test]
async fn no_crash_loses_a_reminder_or_a_stop() -> Result<(), SimulationFailed> {
    let all = simulate(env, Scenario::new(WORKFLOW, &month()));
    all.seeds(0..100)
        .same_result()
        .invariant("thirty reminders", |end| end.effects().of("send").distinct_keys() == 30)
        .run()
        .await?;
    let stop = Scenario::new(WORKFLOW, &month()).signal_after(7 * DAY + Duration::from_secs(60), STOP, &());
    simulate(env, stop)
        .seeds(0..100)
        .invariant("no more than a few after the stop", |end| end.effects().of("send").distinct_keys() <= 9)
        .run()
        .await?;
    Ok(())
}
