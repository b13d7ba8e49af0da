//! A cart that is filled, paid, and left behind, in milliseconds.

use std::time::Duration;

use everstep::testing::{Error, Mock, Scenario, SimulationFailed, TestEnv, simulate};

use super::*;

struct Nobody;

impl Shelf for Nobody {
    async fn hold(self: Arc<Self>, _: String, _: Item) -> Result<(), StepError> {
        Err(StepError::new("Reached", "a test reached the shelf").non_retryable())
    }

    async fn release(self: Arc<Self>, _: String) -> Result<(), StepError> {
        Err(StepError::new("Reached", "a test reached the shelf").non_retryable())
    }
}

fn env() -> TestEnv {
    TestEnv::new()
        .register(WORKFLOW, |ctx, input| shop(ctx, Arc::new(Nobody), input))
        .mock("hold", Mock::returns(()))
        .mock("release", Mock::returns(()))
}

fn some(name: &str, count: u32) -> Item {
    Item { name: name.to_owned(), count }
}

fn cart() -> Scenario {
    Scenario::new(WORKFLOW, &()).workflow_id("cart/7")
}

#[tokio::test]
async fn what_is_put_in_starts_the_cart_and_is_paid() -> Result<(), Error> {
    let mut env = env();
    let (run, update) = env.start_with_update(cart().request_id("first"), ADD, &some("book", 2)).await?;
    assert_eq!(env.update_result::<u32>(run, &update).await?, 2);
    assert_eq!(env.update_with_start::<u32>(cart(), ADD, &some("pen", 1)).await?, 3, "the same cart");
    // The first call, again: its answer was lost.
    assert_eq!(env.update_with_start::<u32>(cart().request_id("first"), ADD, &some("book", 2)).await?, 2);
    let items: BTreeMap<String, u32> = env.query(run, ITEMS, &())?;
    assert_eq!(items, BTreeMap::from([("book".to_owned(), 2), ("pen".to_owned(), 1)]));

    let refused = env.update::<u32>(run, ADD, &some("book", 0)).await;
    assert!(matches!(refused, Err(Error::UpdateRejected(_))), "{refused:?}");
    assert!(matches!(env.update::<u32>(run, ADD, &some("pin", 98)).await, Err(Error::UpdateRejected(_))));
    env.signal(run, PAY, &()).await?;
    assert_eq!(env.result::<Checkout>(run).await?, Checkout { items, paid: true });
    assert_eq!(env.effects().of("hold").len(), 2);
    assert!(env.effects().of("release").is_empty());
    Ok(())
}

#[tokio::test]
async fn a_cart_is_given_up_a_day_after_it_was_last_touched() -> Result<(), Error> {
    let mut env = env();
    let run = env.play(cart()).await?;
    env.skip(PATIENCE / 2).await?;
    env.update::<u32>(run, ADD, &some("book", 1)).await?;
    let end: Checkout = env.result(run).await?;
    assert!(!end.paid);
    assert_eq!(env.elapsed(), PATIENCE / 2 + PATIENCE);
    assert_eq!(env.effects().of("release").len(), 1);
    Ok(())
}

/// Nobody pays under the simulation: what was held is let go of, whoever dies.
#[tokio::test]
async fn nothing_stays_held_for_a_cart_that_is_left() -> Result<(), SimulationFailed> {
    let left = cart().cancel_after(Duration::from_secs(60), "the customer leaves");
    simulate(env, left)
        .seeds(0..100)
        .same_result()
        .invariant("what was held is let go of", |end| end.effects().of("release").distinct_keys() == 1)
        .run()
        .await?;
    Ok(())
}
