//! Health, on paused time.

use super::*;

fn refused() -> Result<(), Error> {
    Err(Error::Refused("no room".to_owned()))
}

#[tokio::test(start_paused = true)]
async fn one_way_that_fails_is_ill_until_it_works_or_is_forgotten() {
    let health = Health::default();
    assert!(health.is_good());
    health.saw(Way::Out, &refused());
    health.saw(Way::In, &Ok(()));
    assert!(!health.is_good(), "what comes in says nothing of what goes out");
    health.saw(Way::Out, &Ok(()));
    assert!(health.is_good());

    health.saw(Way::In, &refused());
    tokio::time::advance(STANDS / 2).await;
    health.saw(Way::In, &refused());
    tokio::time::advance(STANDS / 2).await;
    assert!(!health.is_good(), "the second failure counts from its own time");
    tokio::time::advance(STANDS / 2).await;
    assert!(health.is_good());
}
