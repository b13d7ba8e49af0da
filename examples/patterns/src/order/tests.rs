//! Each step fails, is slow and is in doubt; no server is needed for it.

use everstep::testing::{
    Effects, Error, Mock, Outcome, Resolution, Scenario, SimulationFailed, TestEnv, simulate,
};
use everstep::{RunId, RunStatus, encode};

use super::*;

/// A shop that must not be reached: every step has a mock.
struct Nobody;

fn unreachable<T>() -> Result<T, StepError> {
    Err(StepError::new("Reached", "a test reached the shop").non_retryable())
}

impl Shop for Nobody {
    async fn charge(self: Arc<Self>, _: String, _: u64) -> Result<String, StepError> {
        unreachable()
    }
    async fn find_charge(self: Arc<Self>, _: String) -> Result<Option<String>, StepError> {
        unreachable()
    }
    async fn refund(self: Arc<Self>, _: String) -> Result<(), StepError> {
        unreachable()
    }
    async fn reserve(self: Arc<Self>, _: Order) -> Result<(), StepError> {
        unreachable()
    }
    async fn release(self: Arc<Self>, _: Order) -> Result<(), StepError> {
        unreachable()
    }
    async fn ship(self: Arc<Self>, _: Order) -> Result<String, StepError> {
        unreachable()
    }
    async fn recall(self: Arc<Self>, _: Order) -> Result<(), StepError> {
        unreachable()
    }
}

fn book() -> Order {
    Order { id: "7".to_owned(), item: "book".to_owned(), cents: 1_000 }
}

/// Everything goes well.
fn env() -> TestEnv {
    TestEnv::new()
        .register(WORKFLOW, |ctx, order| carry_out(ctx, Arc::new(Nobody), order))
        .mock("charge", Mock::returns("ch_1"))
        .mock("reserve", Mock::returns(()))
        .mock("ship", Mock::returns("parcel 1"))
        .mock("refund", Mock::returns(()))
        .mock("release", Mock::returns(()))
        .mock("recall", Mock::returns(()))
}

fn sold_out() -> StepError {
    StepError::new("SoldOut", "the last one is gone").non_retryable()
}

/// The names of the steps that were executed, in order.
fn names(effects: &Effects) -> Vec<&str> {
    effects.iter().map(|effect| effect.info.name.as_str()).collect()
}

async fn failure_of(env: &mut TestEnv, run: RunId) -> String {
    let ended = env.result::<Receipt>(run).await.unwrap_err();
    ended.failure().map(|failure| failure.kind.clone()).unwrap_or_else(|| ended.to_string())
}

#[tokio::test]
async fn an_order_is_charged_reserved_and_shipped() -> Result<(), Error> {
    let mut env = env();
    let run = env.start(WORKFLOW, &book()).await?;
    let receipt: Receipt = env.result(run).await?;
    assert_eq!(receipt, Receipt { charge: "ch_1".to_owned(), parcel: "parcel 1".to_owned() });
    assert_eq!(names(&env.effects()), ["charge", "reserve", "ship"]);
    Ok(())
}

#[tokio::test]
async fn what_fails_for_good_undoes_what_was_done_before_it() -> Result<(), Error> {
    for (step, expected) in [
        ("charge", &["charge"][..]),
        ("reserve", &["charge", "reserve", "refund"]),
        ("ship", &["charge", "reserve", "ship", "release", "refund"]),
    ] {
        let mut env = env().mock(step, Mock::fails(sold_out()));
        let run = env.start(WORKFLOW, &book()).await?;
        assert_eq!(failure_of(&mut env, run).await, "SoldOut", "{step}");
        assert_eq!(names(&env.effects()), expected, "{step}");
    }
    Ok(())
}

/// It may have happened after all: it is undone too.
#[tokio::test]
async fn what_is_too_slow_is_undone_as_well() -> Result<(), Error> {
    let slow = |limit: Duration| Mock::with(|_| Ok("late")).takes(limit * 2);
    for (step, mock, expected) in [
        ("charge", slow(PATIENCE), &["charge", "charge", "charge", "refund"][..]),
        ("reserve", Mock::returns(()).takes(PATIENCE * 2), &["charge", "reserve", "release", "refund"]),
        ("ship", slow(CARRIER_PATIENCE), &["charge", "reserve", "ship", "recall", "release", "refund"]),
    ] {
        let mut env = env().mock(step, mock);
        let run = env.start(WORKFLOW, &book()).await?;
        assert_eq!(failure_of(&mut env, run).await, "StepTimeout", "{step}");
        assert_eq!(names(&env.effects()), expected, "{step}");
    }
    Ok(())
}

/// The worker is lost while the step is under way; what follows is up to each step.
#[tokio::test]
async fn the_bank_is_asked_and_the_warehouse_is_not() -> Result<(), Error> {
    for (step, mock, expected) in [
        ("charge", Mock::returns("ch_1").takes(Duration::from_secs(20)), Ok("ch_1")),
        ("reserve", Mock::returns(()).takes(Duration::from_secs(20)), Err("InDoubt")),
    ] {
        let mut env = env().mock(step, mock);
        let run = env.start(WORKFLOW, &book()).await?;
        env.skip(Duration::from_secs(10)).await?;
        env.crash().await?;
        match expected {
            Ok(charge) => assert_eq!(env.result::<Receipt>(run).await?.charge, charge),
            Err(kind) => assert_eq!(failure_of(&mut env, run).await, kind),
        }
        let refunds = usize::from(expected.is_err());
        assert_eq!(
            (env.effects().of("charge").len(), env.effects().of("refund").len()),
            (1, refunds),
            "{step}"
        );
        assert_eq!(env.effects().of("release").len(), refunds, "{step}");
    }
    Ok(())
}

#[tokio::test]
async fn a_person_says_what_became_of_the_parcel() -> Result<(), Box<dyn std::error::Error>> {
    let lost = || everstep::Failure::new("Lost", "it never left");
    for (said, expected) in [
        (Resolution::Completed(encode(&"parcel 9")?), Ok("parcel 9")),
        (Resolution::Retry, Ok("parcel 1")),
        (Resolution::Failed(lost()), Err("Lost")),
    ] {
        let slow = Mock::returns("parcel 1").takes(Duration::from_secs(60));
        let mut env = env().mock("ship", slow);
        let run = env.start(WORKFLOW, &book()).await?;
        env.skip(Duration::from_secs(10)).await?;
        env.crash().await?;
        assert!(
            matches!(env.result::<Receipt>(run).await, Err(Error::Stuck { .. })),
            "nobody has said anything"
        );
        env.resolve_step(run, "ship", said).await?;
        match expected {
            Ok(parcel) => assert_eq!(env.result::<Receipt>(run).await?.parcel, parcel),
            Err(kind) => assert_eq!(failure_of(&mut env, run).await, kind),
        }
        assert_eq!(env.effects().of("refund").len(), usize::from(expected.is_err()));
    }
    Ok(())
}

/// Holds under every trouble: everything is done once at most, and all of it or nothing.
fn is_fair(end: &Outcome) -> bool {
    let done = |step: &str| end.effects().of(step).succeeded().len();
    let did = ["charge", "reserve", "ship"].map(done);
    let undid = ["refund", "release", "recall"].map(done);
    match end.status() {
        RunStatus::Completed => did == [1, 1, 1] && undid == [0, 0, 0],
        _ => did.iter().zip(undid).all(|(&did, undid)| did == 0 || did == 1 && undid > 0),
    }
}

#[tokio::test]
async fn no_crash_takes_money_for_nothing() -> Result<(), SimulationFailed> {
    let day = Duration::from_secs(24 * 3_600);
    let calm = || Scenario::new(WORKFLOW, &book());
    // Reserving and shipping take 20 s each: one is canceled in the middle of the first, one of the second.
    let canceled = |after| calm().cancel_after(Duration::from_secs(after), "changed my mind");
    for (broken, scenario) in [
        ("", calm()),
        ("reserve", calm()),
        ("ship", calm()),
        ("", canceled(10)),
        ("", canceled(30)),
        ("release", canceled(30)),
    ] {
        let environment = || {
            let seconds = Duration::from_secs(20);
            let slow = env().mock("reserve", Mock::returns(()).takes(seconds));
            let slow = slow.mock("ship", Mock::returns("parcel 1").takes(seconds));
            match broken {
                "" => slow,
                // An undo that fails is tried until it succeeds.
                "release" => {
                    let flaky = Mock::returns(()).fails_first(3, StepError::new("Busy", "come back later"));
                    slow.mock("release", flaky)
                }
                broken => slow.mock(broken, Mock::fails(sold_out())),
            }
        };
        let report = simulate(environment, scenario.run_timeout(30 * day))
            .seeds(0..60)
            .invariant(format!("all of it or nothing, and once (broken: {broken:?})"), is_fair)
            .run()
            .await?;
        assert!(report.deaths > 0);
    }
    Ok(())
}
