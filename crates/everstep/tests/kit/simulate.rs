//! Planted mistakes are found, their seeds find them again, and sound workflows pass.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use everstep::testing::{Mock, Scenario, SimulationFailed, TestEnv, simulate};
use everstep::{Ctx, Either, InDoubt, RetryPolicy, StepError, WorkflowError, join_all, select2};

const SECOND: Duration = Duration::from_secs(1);

fn quick() -> RetryPolicy {
    RetryPolicy { maximum_attempts: 5, ..RetryPolicy::default() }
}

async fn number(ctx: Ctx, name: String, value: u32) -> Result<u32, WorkflowError> {
    Ok(ctx.step(name, move || async move { Ok::<_, StepError>(value) }).retry(quick()).await?)
}

/// Every kind of wait, written as it should be.
async fn sound(ctx: Ctx, base: u32) -> Result<u32, WorkflowError> {
    let parts = join_all((0..4).map(|i| number(ctx.clone(), format!("part {i}"), base + i))).await;
    let mut total = 0;
    for part in parts {
        total += part?;
    }
    total += ctx.signal::<u32>("first").await?;
    total *= ctx.signal::<u32>("second").await?;
    ctx.sleep(60 * SECOND).await;
    let never = ctx.sleep(Duration::from_secs(400 * 24 * 3600));
    let last = number(ctx.clone(), "last".to_owned(), total);
    match select2(last, never).await {
        Either::Left(total) => total,
        Either::Right(()) => Ok(0),
    }
}

#[tokio::test]
async fn a_sound_workflow_ends_alike_under_a_thousand_seeds() -> Result<(), SimulationFailed> {
    let scenario = Scenario::new("sound", &1).signal_after(2 * SECOND, "first", &10).signal_after(
        3 * SECOND,
        "second",
        &2,
    );
    let flaky = Mock::real().fails_first(1, StepError::new("Unavailable", "503"));
    let report =
        simulate(move || TestEnv::new().register("sound", sound).mock("part 2", flaky.clone()), scenario)
            .seeds(0..1_000)
            .same_result()
            .invariant("one key for each step", |end| end.effects().distinct_keys() == 5)
            .invariant("the sum is right", |end| end.result::<u32>() == Some(40))
            .run()
            .await?;
    assert_eq!(report.seeds, 1_000);
    assert!(report.deaths > 1_000, "one death at least for nearly every seed: {report:?}");
    assert!(report.places > 10, "{report:?}");
    Ok(())
}

static STARTS: AtomicU32 = AtomicU32::new(0);

/// Which step it runs depends on how often this process has begun it: right most of the time, and astray every
/// fourth.
async fn counting(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let start = STARTS.fetch_add(1, Ordering::SeqCst);
    number(ctx.clone(), "warm up".to_owned(), 1).await?;
    let name = if start % 4 == 3 { "other" } else { "usual" };
    number(ctx, name.to_owned(), 2).await
}

/// A fresh process for each seed.
fn process() -> TestEnv {
    STARTS.store(0, Ordering::SeqCst);
    TestEnv::new().register("counting", counting)
}

#[tokio::test]
async fn a_static_counter_is_found_within_fifty_seeds_and_found_again_by_its_seed() {
    let counting = || Scenario::new("counting", &());
    let failed = simulate(process, counting()).seeds(0..50).run().await.unwrap_err();
    let Some(seed) = failed.seed() else { panic!("without trouble it goes well: {failed}") };
    let text = failed.to_string();
    assert!(text.contains("'usual' #2") && text.contains("'other' #2"), "{text}");
    assert!(text.ends_with(&format!("EVERSTEP_SIM_SEED={seed}")), "{text}");

    let again = simulate(process, counting()).seeds(seed..seed + 1).run().await.unwrap_err();
    assert_eq!(again.to_string(), text, "the seed takes the same way");
}

/// Its receiver is given nothing by which it could know a repeat.
async fn careless(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    number(ctx.clone(), "charge".to_owned(), 1).await
}

#[tokio::test]
async fn an_effect_that_counts_twice_after_a_crash_shows_in_the_log_of_effects() {
    let failed = simulate(|| TestEnv::new().register("careless", careless), Scenario::new("careless", &()))
        .seeds(0..20)
        .invariant("one charge", |end| end.effects().of("charge").len() == 1)
        .run()
        .await
        .unwrap_err();
    let recorded: Vec<bool> = failed.effects().iter().map(|effect| effect.recorded).collect();
    assert_eq!((recorded.len(), failed.effects().distinct_keys()), (2, 1), "{failed}");
    assert!(recorded.contains(&false) && recorded.contains(&true), "{failed}");
    assert!(failed.problem().contains("one charge"), "{failed}");
    assert!(failed.to_string().contains("the effect of 'charge' #1, attempt 1"), "{failed}");
}

/// The same, guarded: whoever takes the run over asks first.
async fn guarded(ctx: Ctx, policy: u32) -> Result<u32, WorkflowError> {
    let policy = match policy {
        0 => InDoubt::Retry,
        1 => InDoubt::AskHuman,
        2 => InDoubt::Fail,
        _ => InDoubt::verify(|| async { Err(StepError::new("Real", "the mock stands in for the probe")) }),
    };
    Ok(ctx.step("charge", || async { Ok::<_, StepError>(1) }).in_doubt(policy).await?)
}

/// One charge at most, whatever goes wrong; for a policy of `guarded`.
async fn charged_once(policy: u32) -> Result<everstep::testing::Report, SimulationFailed> {
    let environment = || TestEnv::new().register("guarded", guarded).mock("charge", Mock::returns(1));
    simulate(environment, Scenario::new("guarded", &policy))
        .seeds(0..300)
        .invariant("at most one charge", |end| end.effects().len() <= 1)
        .invariant("what completed was charged", |end| {
            end.result::<u32>().is_none() || end.effects().len() == 1
        })
        .run()
        .await
}

#[tokio::test]
async fn a_guarded_effect_happens_once_when_somebody_is_asked_first() -> Result<(), SimulationFailed> {
    for policy in [1, 2, 3] {
        let report = charged_once(policy).await?;
        assert!(report.deaths >= 200, "{report:?}");
    }
    let twice = charged_once(0).await.unwrap_err();
    assert!(twice.problem().contains("at most one charge"), "{twice}");
    assert!(twice.to_string().contains("StepInDoubt"), "{twice}");
    Ok(())
}

#[tokio::test]
async fn a_probe_and_a_person_bring_the_undisturbed_result() -> Result<(), SimulationFailed> {
    for policy in [1, 3] {
        let environment = || TestEnv::new().register("guarded", guarded).mock("charge", Mock::returns(1));
        let asked = Scenario::new("guarded", &policy);
        simulate(environment, asked).seeds(0..300).same_result().run().await?;
    }
    Ok(())
}

/// Charges at once, each with a probe.
async fn several(ctx: Ctx, count: u32) -> Result<u32, WorkflowError> {
    let charges = (0..count).map(|_| guarded(ctx.clone(), 3));
    let charged = join_all(charges).await;
    charged.into_iter().sum()
}

#[tokio::test]
async fn a_probe_does_not_deny_what_a_stalled_worker_may_still_do() -> Result<(), SimulationFailed> {
    let environment = || TestEnv::new().register("several", several).mock("charge", Mock::returns(1));
    simulate(environment, Scenario::new("several", &6))
        .seeds(0..2_000)
        .same_result()
        .invariant("one charge each", |end| end.effects().len() == 6)
        .run()
        .await?;
    Ok(())
}

/// Which is first, half an hour or a signal that comes after a minute.
async fn first(ctx: Ctx, (): ()) -> Result<bool, WorkflowError> {
    let half_hour = ctx.sleep(1_800 * SECOND);
    match select2(ctx.signal::<()>("go"), half_hour).await {
        Either::Left(go) => Ok(go.is_ok()),
        Either::Right(()) => Ok(false),
    }
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_brings_its_timers_ahead() {
    let scenario = Scenario::new("first", &()).signal_after(60 * SECOND, "go", &());
    let failed = simulate(|| TestEnv::new().register("first", first), scenario)
        .seeds(0..2_000)
        .same_result()
        .run()
        .await
        .unwrap_err();
    assert!(
        failed.problem().contains("completed with false; without trouble it is completed with true"),
        "{failed}"
    );
    assert!(failed.to_string().contains("the database's clock jumps by"), "{failed}");
}

/// Takes its signal only if it is awake when it comes.
async fn drowsy(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
    let value = ctx.signal::<u32>("go").await?;
    if ctx.is_replaying() {
        return ctx.signal::<u32>("go").await.map_err(WorkflowError::from);
    }
    number(ctx.clone(), "go".to_owned(), value).await
}

#[tokio::test]
async fn a_signal_that_is_lost_in_replay_is_found() {
    let scenario = Scenario::new("drowsy", &()).signal_after(SECOND, "go", &1);
    let failed = simulate(|| TestEnv::new().register("drowsy", drowsy), scenario)
        .seeds(0..50)
        .run()
        .await
        .unwrap_err();
    assert!(failed.problem().contains("'go' #1"), "{failed}");
}

#[tokio::test]
async fn a_result_that_depends_on_how_often_it_was_tried_is_found() {
    async fn attempts(ctx: Ctx, (): ()) -> Result<u32, WorkflowError> {
        let epoch = || async { Ok::<_, StepError>(everstep::step_info().map_or(0, |info| info.epoch)) };
        Ok(ctx.step("epoch", epoch).await?)
    }
    let failed = simulate(|| TestEnv::new().register("attempts", attempts), Scenario::new("attempts", &()))
        .same_result()
        .run()
        .await
        .unwrap_err();
    assert!(failed.problem().contains("without trouble it is completed with 1"), "{failed}");
}

#[tokio::test]
async fn a_workflow_that_does_not_even_end_without_trouble_is_no_seeds_fault() {
    let failed = simulate(|| TestEnv::new().register("drowsy", drowsy), Scenario::new("drowsy", &()));
    let failed = failed.run().await.unwrap_err();
    assert_eq!(failed.seed(), None);
    assert!(failed.to_string().starts_with("without any trouble: the run waits"), "{failed}");
}

/// The stories of many seeds, told by an invariant that never holds.
async fn stories(seeds: std::ops::Range<u64>) -> Vec<String> {
    let mut stories = Vec::new();
    for seed in seeds {
        let calm = AtomicU32::new(0);
        let first = move |_: &everstep::testing::Outcome| calm.fetch_add(1, Ordering::SeqCst) == 0;
        let scenario =
            Scenario::new("sound", &1).signal_after(SECOND, "first", &1).signal_after(SECOND, "second", &2);
        let played = simulate(|| TestEnv::new().register("sound", sound), scenario)
            .seeds(seed..seed + 1)
            .invariant("only the first", first)
            .run()
            .await;
        let Err(failed) = played else { panic!("the invariant holds under seed {seed}") };
        assert_eq!(failed.seed(), Some(seed), "{failed}");
        stories.push(failed.to_string());
    }
    stories
}

#[tokio::test]
async fn every_kind_of_trouble_happens_and_each_seed_repeats_its_own() {
    let told = stories(0..60).await;
    for trouble in [
        "is killed before the effect",
        "is killed after the effect",
        "is killed before it records the end of",
        "is killed after it recorded the end of",
        "stalls until its lease is over before the effect",
        "before it records the start of timer",
        ", the end of the run",
        "NOT RECORDED",
        "the database's clock jumps by -",
        "the database's clock jumps by ",
        "Parked",
        "Lost",
        "StepStarted",
    ] {
        assert!(told.iter().any(|story| story.contains(trouble)), "never: {trouble}");
    }
    let order = |story: &String| story.find("'first': 1").cmp(&story.find("'second': 2"));
    let orders: std::collections::BTreeSet<_> = told.iter().map(order).collect();
    assert_eq!(orders.len(), 2, "signals of one instant come in either order");
    assert_eq!(stories(7..9).await, told[7..9]);
}

#[tokio::test]
async fn signals_of_one_sender_keep_their_order() -> Result<(), SimulationFailed> {
    async fn in_order(ctx: Ctx, count: u32) -> Result<Vec<u32>, WorkflowError> {
        let mut got = Vec::new();
        for _ in 0..count {
            got.push(ctx.signal("n").await?);
        }
        Ok(got)
    }
    let mut scenario = Scenario::new("in_order", &5);
    for n in 0..5u32 {
        scenario = scenario.signal_after(Duration::from_millis(10 * u64::from(n)), "n", &n);
    }
    simulate(|| TestEnv::new().register("in_order", in_order), scenario)
        .seeds(0..200)
        .same_result()
        .run()
        .await?;
    Ok(())
}

/// Played by the test below in a process of its own; five seeds when it is not.
#[tokio::test]
async fn one_seed_alone() -> Result<(), SimulationFailed> {
    let alone = std::env::var_os("EVERSTEP_SIM_SEED").is_some();
    let simulation =
        simulate(|| TestEnv::new().register("careless", careless), Scenario::new("careless", &()));
    let report = simulation.seeds(0..5).run().await?;
    assert_eq!(report.seeds, if alone { 1 } else { 5 });
    Ok(())
}

#[test]
fn the_environment_names_the_one_seed() -> std::io::Result<()> {
    let mut tests = std::process::Command::new(std::env::current_exe()?);
    let ended = tests.args(["--exact", "simulate::one_seed_alone"]).env("EVERSTEP_SIM_SEED", "3").output()?;
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    Ok(())
}
