//! Who waits for which code, and what operators allow: looked at every so often, and when somebody says something new.

use std::sync::Arc;

use everstep_store::Census;
use tokio::time::MissedTickBehavior;

use super::Shared;
use crate::Error;
use crate::node::Input;

/// Groups of runs, and of workers, that are looked at.
const GROUPS_MAX: usize = 1_000;

/// Looks every so often.
pub(super) async fn looks(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(shared.config.look_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = look(&shared).await {
            tracing::debug!(%error, "who waits for which code was not read");
        }
    }
}

async fn look(shared: &Shared) -> Result<(), Error> {
    let census = shared.store.census(shared.config.waiting_age, GROUPS_MAX).await?;
    shared.feed(Input::AllowedBuilds(census.allowed.clone()));
    shared.figures.counted(census);
    Ok(())
}

/// See [`Engine::builds_changed`](crate::Engine::builds_changed).
pub(crate) async fn builds_changed(shared: &Shared) -> Result<(), Error> {
    let all = shared.store.allowed_builds(usize::MAX).await?;
    shared.feed(Input::AllowedBuilds(all));
    Ok(())
}

/// See [`Engine::census`](crate::Engine::census).
pub(crate) async fn census(shared: &Shared) -> Result<Census, Error> {
    Ok(shared.store.census(shared.config.waiting_age, GROUPS_MAX).await?)
}
