//! A whole album in milliseconds; no server is needed for it.

use std::time::Duration;

use everstep::testing::{Error, Mock, Scenario, SimulationFailed, TestEnv, simulate};

use super::*;

struct Nobody;

impl Studio for Nobody {
    async fn shrink(&self, _: u32) -> Result<u64, StepError> {
        Err(StepError::new("Reached", "a test reached the studio").non_retryable())
    }
}

/// Each picture takes a second and has 10 bytes then.
fn env() -> TestEnv {
    TestEnv::new()
        .register(ALBUM, shrink_all)
        .register(PICTURE, |ctx, picture| shrink(ctx, Arc::new(Nobody), picture))
        .mock("shrink", Mock::returns(10).takes(Duration::from_secs(1)))
}

fn album(pictures: u32, at_once: usize) -> Album {
    Album { pictures, at_once }
}

#[tokio::test]
async fn a_thousand_pictures_take_fifty_rounds_of_twenty() -> Result<(), Error> {
    let mut env = env();
    let run = env.start(ALBUM, &album(1_000, 20)).await?;
    let summary: Summary = env.result(run).await?;
    assert_eq!(summary, Summary { made: 1_000, bytes: 10_000, failed: Vec::new() });
    assert_eq!(env.elapsed(), Duration::from_secs(50));
    Ok(())
}

#[tokio::test]
async fn a_picture_that_cannot_be_read_is_named_and_the_others_are_made() -> Result<(), Error> {
    let unreadable = StepError::new("Unreadable", "a torn file").non_retryable();
    let mut env = env().mock("shrink", Mock::fails(unreadable));
    let run = env.start(ALBUM, &album(3, 2)).await?;
    let summary: Summary = env.result(run).await?;
    assert_eq!(summary, Summary { made: 0, bytes: 0, failed: vec![0, 1, 2] });
    Ok(())
}

#[tokio::test]
async fn no_crash_loses_or_doubles_a_picture() -> Result<(), SimulationFailed> {
    simulate(env, Scenario::new(ALBUM, &album(12, 4)))
        .seeds(0..100)
        .same_result()
        .invariant("twelve pictures", |end| end.effects().of("shrink").distinct_keys() == 12)
        .run()
        .await?;
    Ok(())
}
