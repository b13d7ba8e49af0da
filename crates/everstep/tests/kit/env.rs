//! One environment: time, mocks, messages, and what it says when a test asks for too much.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use everstep::testing::{Error, EventBody, Mock, Rejection, Resolution, Scenario, TestEnv};
use everstep::{Ctx, InDoubt, RetryPolicy, RunStatus, StepError, WorkflowError, step_info};

const HOUR: Duration = Duration::from_secs(3600);

async fn sleeper(ctx: Ctx, hours: u32) -> Result<u32, WorkflowError> {
    for _ in 0..hours {
        ctx.sleep(HOUR).await;
    }
    Ok(hours)
}

#[tokio::test]
async fn a_month_of_hours_takes_no_time() -> Result<(), Error> {
    let mut env = TestEnv::new().register("sleeper", sleeper);
    let began = Instant::now();
    let run = env.start("sleeper", &(30 * 24)).await?;
    assert_eq!(env.result::<u32>(run).await?, 720);
    assert_eq!(env.elapsed(), 720 * HOUR);
    let took = began.elapsed();
    // A build without optimisation on a busy machine takes a few tens of milliseconds.
    assert!(took < Duration::from_secs(2), "{took:?}");
    let events = env.history(run)?;
    let sleeps = events.kinds().iter().filter(|kind| **kind == "TimerFired").count();
    assert_eq!(sleeps, 720);
    Ok(())
}

async fn stubborn(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let policy = RetryPolicy { maximum_attempts: 4, ..RetryPolicy::default() };
    Ok(ctx.step("call", || async { Ok::<_, StepError>(1) }).retry(policy).timeout(HOUR).await?)
}

#[tokio::test]
async fn a_step_that_fails_twice_succeeds_after_the_policys_pauses() -> Result<(), Error> {
    let mock = Mock::returns(7).fails_first(2, StepError::new("Unavailable", "503"));
    let mut env = TestEnv::new().register("stubborn", stubborn).mock("call", mock);
    let run = env.start("stubborn", &()).await?;
    assert_eq!(env.result::<u32>(run).await?, 7);
    // 1 s and 2 s, each shortened by up to a tenth.
    let (least, most) = (Duration::from_millis(2_700), Duration::from_secs(3));
    assert!((least..=most).contains(&env.elapsed()), "{:?}", env.elapsed());
    let attempts: Vec<u32> = env.effects().iter().map(|e| e.info.attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    assert_eq!(env.effects().distinct_keys(), 1);
    Ok(())
}

#[tokio::test]
async fn attempts_are_used_up_and_the_failure_is_the_runs() -> Result<(), Error> {
    let down = Mock::fails(StepError::new("Down", "for good"));
    let mut env = TestEnv::new().register("stubborn", stubborn).mock("call", down);
    let run = env.start("stubborn", &()).await?;
    let error = env.result::<u32>(run).await.unwrap_err();
    assert_eq!(error.to_string(), "the run is failed: Down: step 'call' failed: for good");
    assert_eq!(env.effects().len(), 4);
    Ok(())
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_times_out_in_virtual_time() -> Result<(), Error> {
    let mut env =
        TestEnv::new().register("stubborn", stubborn).mock("call", Mock::returns(7).takes(2 * HOUR));
    let run = env.start("stubborn", &()).await?;
    env.skip(HOUR / 2).await?;
    assert!(env.history(run)?.kinds().contains(&"StepStarted"), "a long step shows");
    env.skip(HOUR).await?;
    env.set_mock("call", Mock::returns(8).takes(HOUR / 4));
    assert_eq!(env.result::<u32>(run).await?, 8);
    let timeouts = |body: &EventBody| match body {
        EventBody::StepFailed { failure, .. } => failure.kind == "StepTimeout",
        _ => false,
    };
    assert_eq!(env.history(run)?.events().iter().filter(|e| timeouts(&e.body)).count(), 2);
    Ok(())
}

#[tokio::test]
async fn closures_run_for_real_and_know_their_attempt() -> Result<(), Error> {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let workflow = move |ctx: Ctx, (): ()| {
        let calls = Arc::clone(&counted);
        async move {
            let step = move || {
                let calls = Arc::clone(&calls);
                async move {
                    calls.fetch_add(1, Ordering::SeqCst);
                    assert!(step_info().is_some_and(|info| info.attempt > 1), "the first attempt panics");
                    Ok::<_, StepError>(step_info().map(|info| info.idempotency_key))
                }
            };
            Ok::<_, WorkflowError>(ctx.step("real", step).await?)
        }
    };
    let slow = Mock::real().takes(HOUR);
    let mut env = TestEnv::new().register("real", workflow).mock("real", slow);
    let run = env.start("real", &()).await?;
    assert_eq!(env.result::<Option<String>>(run).await?, Some(format!("{run}/1")));
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    assert!(env.elapsed() > 2 * HOUR);
    Ok(())
}

#[tokio::test]
async fn a_step_without_a_mock_is_not_run_where_that_is_forbidden() -> Result<(), Error> {
    let mut env = TestEnv::new().register("stubborn", stubborn).mocked_only();
    let run = env.start("stubborn", &()).await?;
    let error = env.result::<u32>(run).await.unwrap_err();
    assert_eq!(error.failure().map(|f| f.kind.as_str()), Some("NotMocked"));
    Ok(())
}

async fn sum(ctx: Ctx, count: u32) -> Result<u32, WorkflowError> {
    let mut total = 0;
    for _ in 0..count {
        let canceled = ctx.canceled();
        total += match everstep::select2(ctx.signal::<u32>("add"), canceled).await {
            everstep::Either::Left(n) => n?,
            everstep::Either::Right(()) => return Err(WorkflowError::Canceled(format!("at {total}"))),
        };
    }
    Ok(total)
}

#[tokio::test]
async fn signals_come_from_the_test_and_count_once() -> Result<(), Error> {
    let mut env = TestEnv::new().register("sum", sum);
    let run = env.start("sum", &2).await?;
    env.signal_with_id(run, "one", "add", &1).await?;
    env.signal_with_id(run, "one", "add", &1).await?;
    assert_eq!(env.status(run)?, RunStatus::Running, "the second one is the first one");
    env.signal(run, "add", &2).await?;
    assert_eq!(env.result::<u32>(run).await?, 3);
    let closed = env.signal(run, "add", &3).await.unwrap_err();
    assert!(matches!(closed, Error::Refused(Rejection::RunClosed { .. })), "{closed}");
    Ok(())
}

#[tokio::test]
async fn a_scenario_does_what_its_callers_do_in_time() -> Result<(), Error> {
    let mut env = TestEnv::new().register("sum", sum);
    let script = Scenario::new("sum", &3).signal_after(HOUR, "add", &1).cancel_after(2 * HOUR, "enough");
    let run = env.play(script).await?;
    let error = env.result::<u32>(run).await.unwrap_err();
    assert_eq!(error.to_string(), "the run is canceled: Canceled: at 1");
    assert_eq!(env.elapsed(), 2 * HOUR);

    let script = Scenario::new("sum", &3).workflow_id("mine").run_timeout(HOUR);
    let run = env.play(script).await?;
    let taken = env.play(Scenario::new("sum", &3).workflow_id("mine")).await.unwrap_err();
    assert!(matches!(taken, Error::Refused(Rejection::AlreadyStarted { .. })), "{taken}");
    let error = env.result::<u32>(run).await.unwrap_err();
    assert!(matches!(error, Error::Ended { status: RunStatus::TimedOut, .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn what_a_test_asks_for_in_vain_is_said() -> Result<(), Error> {
    let mut env = TestEnv::new().register("sum", sum).register("sleeper", sleeper);
    let unknown = env.start("sun", &1).await.unwrap_err();
    assert_eq!(unknown.to_string(), "no workflow 'sun' is registered; there are: sleeper, sum");
    let run = env.start("sum", &1).await?;
    assert!(matches!(env.result::<u32>(run).await, Err(Error::Stuck { .. })));
    env.signal(run, "add", &1).await?;
    assert!(matches!(env.result::<String>(run).await, Err(Error::Payload(_))));
    assert_eq!(env.result::<u32>(run).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_workflow_that_panics_or_waits_for_others_is_blocked() -> Result<(), Error> {
    let panics = |_: Ctx, (): ()| async move {
        if true {
            panic!("boom");
        }
        Ok::<_, WorkflowError>(())
    };
    let foreign = |_: Ctx, (): ()| async move {
        let (_tx, rx) = tokio::sync::oneshot::channel::<()>();
        let _ = rx.await;
        Ok::<_, WorkflowError>(())
    };
    let mut env = TestEnv::new().register("panics", panics).register("foreign", foreign);
    let run = env.start("panics", &()).await?;
    let blocked = env.result::<()>(run).await.unwrap_err().to_string();
    assert!(blocked.contains("poison") && blocked.contains("panicked: boom"), "{blocked}");
    let run = env.start("foreign", &()).await?;
    let blocked = env.result::<()>(run).await.unwrap_err().to_string();
    assert!(blocked.contains("foreign wake"), "{blocked}");
    Ok(())
}

#[tokio::test]
async fn a_crash_between_effect_and_record_shows_in_the_effects() -> Result<(), Error> {
    let slow = Mock::returns(7).takes(HOUR / 2);
    let mut env = TestEnv::new().register("stubborn", stubborn).mock("call", slow);
    let run = env.start("stubborn", &()).await?;
    env.skip(HOUR / 4).await?;
    env.crash().await?;
    assert_eq!(env.result::<u32>(run).await?, 7);
    let effects = env.effects();
    let seen: Vec<_> = effects.iter().map(|e| (e.info.attempt, e.info.epoch, e.recorded)).collect();
    // The start of the first attempt was recorded, as it is in the product when it takes long.
    assert_eq!(seen, [(1, 1, false), (2, 2, true)], "\n{effects}");
    assert_eq!(effects.distinct_keys(), 1);
    Ok(())
}

async fn asks(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    Ok(ctx.step("charge", || async { Ok::<_, StepError>(1) }).in_doubt(InDoubt::AskHuman).await?)
}

#[tokio::test]
async fn an_attempt_in_doubt_waits_for_the_test_to_resolve_it() -> Result<(), Error> {
    let slow = Mock::returns(7).takes(HOUR);
    for resolution in [Resolution::Completed(everstep::encode(&9).unwrap()), Resolution::Retry] {
        let mut env = TestEnv::new().register("asks", asks).mock("charge", slow.clone());
        let run = env.start("asks", &()).await?;
        assert!(env.history(run)?.kinds().contains(&"StepStarted"), "before the effect");
        env.skip(HOUR / 2).await?;
        env.crash().await?;
        assert!(env.history(run)?.kinds().contains(&"StepInDoubt"));
        let stuck = env.result::<u32>(run).await.unwrap_err();
        assert!(stuck.to_string().contains("step 'charge' is in doubt"), "{stuck}");
        env.resolve_step(run, "charge", resolution.clone()).await?;
        let (value, charges) = if resolution == Resolution::Retry { (7, 2) } else { (9, 1) };
        assert_eq!(env.result::<u32>(run).await?, value);
        assert_eq!(env.effects().len(), charges);
        assert!(env.effects().iter().all(|effect| effect.recorded), "somebody has said what became of each");
        let again = env.resolve_step(run, "charge", Resolution::Retry).await.unwrap_err();
        assert!(matches!(again, Error::Refused(_)), "{again}");
    }
    Ok(())
}

#[tokio::test]
async fn two_replays_that_differ_are_found_without_a_crash() -> Result<(), Error> {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let workflow = |ctx: Ctx, (): ()| async move {
        let name = format!("call {}", CALLS.fetch_add(1, Ordering::SeqCst));
        Ok::<_, WorkflowError>(ctx.step(name, || async { Ok::<_, StepError>(1) }).await?)
    };
    let mut env = TestEnv::new().register("counter", workflow);
    let run = env.start("counter", &()).await?;
    let Err(Error::Differs(differs)) = env.result::<u32>(run).await else { panic!("not found") };
    assert_eq!((&*differs.expected, &*differs.produced), ("step 'call 0' #1", "step 'call 1' #1"));
    assert!(differs.source.contains("kit/env.rs:"), "{}", differs.source);
    Ok(())
}

/// Says how far it is.
async fn staged(ctx: Ctx, (): ()) -> Result<(), WorkflowError> {
    ctx.upsert(everstep::attributes! { "stage" => "packed", "left" => 2 });
    ctx.sleep(Duration::from_secs(60)).await;
    ctx.upsert(
        everstep::Notes::new()
            .attribute("stage", "shipped")
            .attribute("left", None::<i64>)
            .memo("by", &"road"),
    );
    Ok(())
}

#[tokio::test]
async fn what_a_run_says_about_itself_is_shown() -> Result<(), Error> {
    let mut env = TestEnv::new().register("staged", staged);
    let run = env.start("staged", &()).await?;
    assert_eq!(env.notes(run)?.0.len(), 2);
    env.crash().await?;
    env.result::<()>(run).await?;
    let (attributes, memo) = env.notes(run)?;
    assert_eq!(
        attributes.into_iter().collect::<Vec<_>>(),
        [("stage".to_owned(), everstep::Attribute::Keyword("shipped".into()))]
    );
    assert_eq!(everstep::decode::<String>(&memo["by"]).ok().as_deref(), Some("road"));
    Ok(())
}
