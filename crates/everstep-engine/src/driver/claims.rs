//! The timers that this node has claimed and may still be working on: their claims are short, so that another node
//! soon takes over from one that died, and renewed while this one lives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration as StdDuration;

use everstep_core::{Duration, RunId, TimerKey};
use everstep_store::Store;
use tokio::sync::Notify;
use tokio::time::Instant;

#[cfg(test)]
mod tests;

/// How long a claimed timer stays with the node that claimed it.
pub(super) const TIMER_CLAIM: Duration = Duration::from_secs(2);
/// When a claim is renewed.
const RENEWAL: StdDuration = StdDuration::from_secs(1);
/// What has taken longer than this has gone wrong: whoever claims it next begins anew.
const WORK_MAX: StdDuration = StdDuration::from_secs(10);
/// Renewed in one go.
const RENEWED_MAX: usize = 500;

/// With more than this under way, what is due waits for a moment.
const MANY: usize = 4_000;
/// How long to gather what comes due, once some was found.
const GATHER: StdDuration = StdDuration::from_millis(10);
/// The same with many under way: a look passes over each of them.
const GATHER_MANY: StdDuration = StdDuration::from_millis(100);

/// The claims of one node.
#[derive(Debug, Default)]
pub(super) struct Claims {
    held: Mutex<BTreeMap<(RunId, TimerKey), Claim>>,
    /// There are not many any more.
    few: Notify,
}

#[derive(Debug)]
struct Claim {
    since: Instant,
    renewal: Instant,
}

impl Claims {
    fn held(&self) -> MutexGuard<'_, BTreeMap<(RunId, TimerKey), Claim>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These were claimed just now.
    pub(super) fn add(&self, timers: &[(RunId, TimerKey)]) {
        let since = Instant::now();
        let claim = || Claim { since, renewal: since + RENEWAL };
        self.held().extend(timers.iter().map(|timer| (*timer, claim())));
    }

    /// These have fired, or are not wanted any more.
    pub(super) fn settled(&self, timers: impl IntoIterator<Item = (RunId, TimerKey)>) {
        let mut held = self.held();
        let before = held.len();
        for timer in timers {
            held.remove(&timer);
        }
        if before > MANY && held.len() <= MANY {
            self.few.notify_one();
        }
    }

    /// Lets a moment pass in which more come due, unless there are `more` already: a look for each one would cost
    /// more than all the rest of it.
    pub(super) async fn gather(&self, more: bool) {
        if self.held().len() <= MANY {
            let wait = if more { StdDuration::ZERO } else { GATHER };
            return tokio::time::sleep(wait).await;
        }
        // Not for long: those that are stuck must not hold up the others.
        let _ = tokio::time::timeout(GATHER_MANY, self.few.notified()).await;
    }

    /// Renews what is due. What another node has settled, the store does not have any more.
    pub(super) async fn renew(&self, store: &dyn Store) {
        let now = Instant::now();
        let due: Vec<_> = {
            let mut held = self.held();
            held.retain(|_, claim| now < claim.since + WORK_MAX);
            held.iter().filter(|(_, c)| c.renewal <= now).map(|(key, _)| *key).collect()
        };
        for timers in due.chunks(RENEWED_MAX) {
            let renewed: BTreeSet<_> = match store.renew_timers(timers, TIMER_CLAIM).await {
                Ok(renewed) => renewed.into_iter().collect(),
                Err(error) => {
                    // The claims end, and the timers are claimed again.
                    tracing::debug!(%error, "claims of timers not renewed");
                    BTreeSet::new()
                }
            };
            let mut held = self.held();
            for key in timers {
                match held.get_mut(key) {
                    Some(claim) if renewed.contains(key) => claim.renewal = now + RENEWAL,
                    _ => _ = held.remove(key),
                }
            }
        }
    }

    /// How long until the next renewal.
    pub(super) fn wait(&self) -> StdDuration {
        let next = self.held().values().map(|claim| claim.renewal).min();
        next.map_or(StdDuration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }
}
