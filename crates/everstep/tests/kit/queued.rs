//! Queued steps in the environment: mocks, retries, times that run out, tokens, and trouble.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use everstep::testing::{Error, EventBody, Mock, Scenario, SimulationFailed, TestEnv, simulate};
use everstep::{Ctx, RetryPolicy, StepCtx, StepError, StepType, WorkflowError};

struct Work;

impl StepType for Work {
    const NAME: &'static str = "work";
    type Input = u32;
    type Output = u32;
}

async fn one(ctx: Ctx, n: u32) -> Result<u32, WorkflowError> {
    Ok(ctx.run::<Work>(n).await?)
}

fn env() -> TestEnv {
    TestEnv::new().register("one", one)
}

fn kind(result: Result<u32, Error>) -> String {
    match result {
        Err(error) => error.failure().map_or_else(|| error.to_string(), |failure| failure.kind.clone()),
        Ok(value) => value.to_string(),
    }
}

#[tokio::test]
async fn a_failed_attempt_is_followed_by_one_that_knows_how_far_it_was() -> Result<(), Error> {
    let mut env = env().register_step::<Work, _, _>(|step: StepCtx, n| async move {
        let from: u32 = step.last_heartbeat().unwrap_or(0);
        step.heartbeat(&(from + 1));
        if from < 2 { Err(StepError::new("Broken", "m")) } else { Ok(10 * n + from) }
    });
    let run = env.start("one", &4).await?;
    assert_eq!(env.result::<u32>(run).await?, 42);
    assert!(env.elapsed() > Duration::from_secs(2), "about 1 s, then about 2 s: {:?}", env.elapsed());
    let effects = env.effects();
    assert_eq!(effects.of("work").len(), 3);
    assert!(effects.iter().all(|effect| effect.recorded));
    Ok(())
}

#[tokio::test]
async fn a_mock_stands_in_for_a_step_that_is_not_here() -> Result<(), Error> {
    let mut env = env().mock("work", Mock::returns(7).fails_first(1, StepError::new("Broken", "m")));
    let run = env.start("one", &4).await?;
    assert_eq!(env.result::<u32>(run).await?, 7);
    let mut strict = TestEnv::new().register("one", one).mocked_only();
    let run = strict.start("one", &4).await?;
    assert_eq!(kind(strict.result::<u32>(run).await), "NotMocked");
    Ok(())
}

#[tokio::test]
async fn its_times_run_out() -> Result<(), Error> {
    let timed = |ctx: Ctx, which: String| async move {
        let step = ctx.run::<Work>(1).retry(RetryPolicy::none());
        let step = match which.as_str() {
            "start_to_close" => step.start_to_close(Duration::from_secs(5)),
            _ => step.schedule_to_start(Duration::from_secs(5)),
        };
        Ok::<u32, WorkflowError>(step.await?)
    };
    for (which, slow) in [("start_to_close", true), ("schedule_to_start", false)] {
        let mut env = TestEnv::new().register("timed", timed);
        if slow {
            env.set_mock("work", Mock::returns(1).takes(Duration::from_secs(60)));
        }
        let run = env.start("timed", &which).await?;
        assert_eq!(kind(env.result::<u32>(run).await), "StepTimeout", "{which}");
        assert_eq!(env.elapsed(), Duration::from_secs(5), "{which}");
    }
    Ok(())
}

/// Its worker hangs behind what it last said: the next attempt goes on there.
#[tokio::test]
async fn an_attempt_that_is_not_heard_of_is_followed_by_another() -> Result<(), Error> {
    let beats = |ctx: Ctx, n: u32| async move {
        Ok::<u32, WorkflowError>(ctx.run::<Work>(n).heartbeat(Duration::from_secs(10)).await?)
    };
    let mut env = TestEnv::new()
        .register("beats", beats)
        .register_step::<Work, _, _>(|step: StepCtx, n| async move {
            let from: u32 = step.last_heartbeat().unwrap_or(0);
            step.heartbeat(&(from + 1));
            Ok(10 * n + from)
        })
        .mock("work", Mock::real().silent_first(2));
    let run = env.start("beats", &4).await?;
    assert_eq!(env.result::<u32>(run).await?, 42);
    assert_eq!(env.effects().of("work").len(), 3);
    let history = env.history(run)?;
    let failures = history.events().iter().filter_map(|event| match &event.body {
        EventBody::StepFailed { failure, .. } => Some(failure.kind.clone()),
        _ => None,
    });
    assert_eq!(failures.collect::<Vec<_>>(), ["StepTimeout", "StepTimeout"]);
    assert!(env.elapsed() > Duration::from_secs(20), "{:?}", env.elapsed());
    Ok(())
}

/// Whoever completes an attempt from outside has to beat in time.
#[tokio::test]
async fn an_attempt_of_somebody_else_is_lost_when_he_is_silent() -> Result<(), Error> {
    let beats = |ctx: Ctx, n: u32| async move {
        let step = ctx.run::<Work>(n).heartbeat(Duration::from_secs(10)).retry(RetryPolicy::none());
        Ok::<u32, WorkflowError>(step.await?)
    };
    let elsewhere = |step: StepCtx, _| async move { Err::<u32, _>(step.complete_later()) };
    let env = || TestEnv::new().register("beats", beats).register_step::<Work, _, _>(elsewhere);
    let mut lively = env();
    let run = lively.start("beats", &4).await?;
    for part in 0..9 {
        lively.skip(Duration::from_secs(9)).await?;
        assert!(!lively.heartbeat_step(run, "work", &part).await?);
    }
    lively.complete_step(run, "work", &9).await?;
    assert_eq!(lively.result::<u32>(run).await?, 9);
    assert!(matches!(lively.heartbeat_step(run, "work", &1).await, Err(Error::Refused(_))));

    let mut silent = env();
    let run = silent.start("beats", &4).await?;
    silent.skip(Duration::from_secs(9)).await?;
    silent.heartbeat_step(run, "work", &1).await?;
    assert_eq!(kind(silent.result::<u32>(run).await), "StepTimeout");
    assert_eq!(silent.elapsed(), Duration::from_secs(19));
    Ok(())
}

#[tokio::test]
async fn somebody_else_may_complete_it() -> Result<(), Error> {
    let mut env =
        env().register_step::<Work, _, _>(|step: StepCtx, _| async move { Err(step.complete_later()) });
    let run = env.start("one", &4).await?;
    env.skip(Duration::from_secs(3_600)).await?;
    env.complete_step(run, "work", &9).await?;
    assert_eq!(env.result::<u32>(run).await?, 9);
    assert!(matches!(env.complete_step(run, "work", &9).await, Err(Error::Refused(_))));
    Ok(())
}

#[tokio::test]
async fn a_step_that_nobody_runs_is_named() -> Result<(), Error> {
    let mut env = env();
    let run = env.start("one", &4).await?;
    match env.result::<u32>(run).await {
        Err(Error::Stuck { hint }) => assert!(hint.contains("'work'"), "{hint}"),
        other => panic!("{other:?}"),
    }
    Ok(())
}

#[tokio::test]
async fn a_step_that_is_let_go_of_ends_before_anybody_takes_it() -> Result<(), Error> {
    let hurried = |ctx: Ctx, (): ()| async move {
        let step = ctx.run::<Work>(1);
        match everstep::timeout(&ctx, Duration::from_secs(5), step).await {
            Ok(value) => Ok(value?),
            Err(_) => {
                ctx.sleep(Duration::from_secs(1)).await;
                Ok::<u32, WorkflowError>(0)
            }
        }
    };
    let mut env = TestEnv::new().register("hurried", hurried);
    let run = env.start("hurried", &()).await?;
    assert_eq!(env.result::<u32>(run).await?, 0);
    let kinds: Vec<String> =
        env.history(run)?.events().iter().map(|event| event.body.kind().to_owned()).collect();
    assert!(kinds.contains(&"StepCancelRequested".to_owned()) && kinds.contains(&"StepFailed".to_owned()));
    Ok(())
}

/// Asks for three steps one after the other.
async fn three(ctx: Ctx, n: u32) -> Result<u32, WorkflowError> {
    let mut sum = 0;
    for i in 0..3 {
        sum += ctx.run::<Work>(n + i).await?;
    }
    Ok(sum)
}

/// Workers die before and after the effect, of the workflow and of the step: the run comes to the same end.
#[tokio::test]
async fn whoever_dies_the_end_is_the_same() -> Result<(), SimulationFailed> {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let env = || {
        TestEnv::new().register("three", three).register_step::<Work, _, _>(|_: StepCtx, n| async move {
            CALLS.fetch_add(1, Ordering::SeqCst);
            Ok(n)
        })
    };
    let report = simulate(env, Scenario::new("three", &1))
        .seeds(0..300)
        .same_result()
        .invariant("each result once", |end| {
            let ends = end.history().kinds().into_iter().filter(|kind| *kind == "StepCompleted").count();
            ends == 3 && end.result::<u32>() == Some(6)
        })
        .run()
        .await?;
    assert_eq!(report.seeds, 300);
    let calls = CALLS.load(Ordering::SeqCst);
    assert!(calls > 910, "some effects came twice, their worker having died: {calls}");
    Ok(())
}
