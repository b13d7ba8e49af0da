//! The timers that this node has claimed and may still be working on: their claims are short, so that another node
//! soon takes over from one that died, and renewed while this one lives.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration as StdDuration;

use everstep_core::{Duration, RunId, TimerKey};
use everstep_store::Store;
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

/// The claims of one node.
#[derive(Debug, Default)]
pub(super) struct Claims {
    held: BTreeMap<(RunId, TimerKey), Claim>,
}

#[derive(Debug)]
struct Claim {
    since: Instant,
    renewal: Instant,
}

impl Claims {
    /// These were claimed just now.
    pub(super) fn add(&mut self, timers: &[(RunId, TimerKey)]) {
        let since = Instant::now();
        let claim = || Claim { since, renewal: since + RENEWAL };
        self.held.extend(timers.iter().map(|timer| (*timer, claim())));
    }

    /// Renews what is due. Nobody says that a timer has fired: the store does not have it any more.
    pub(super) async fn renew(&mut self, store: &dyn Store) {
        let now = Instant::now();
        self.held.retain(|_, claim| now < claim.since + WORK_MAX);
        let due: Vec<_> = self.held.iter().filter(|(_, c)| c.renewal <= now).map(|(key, _)| *key).collect();
        for timers in due.chunks(RENEWED_MAX) {
            let renewed: BTreeSet<_> = match store.renew_timers(timers, TIMER_CLAIM).await {
                Ok(renewed) => renewed.into_iter().collect(),
                Err(error) => {
                    // The claims end, and the timers are claimed again.
                    tracing::debug!(%error, "claims of timers not renewed");
                    BTreeSet::new()
                }
            };
            let before: Vec<_> = timers.iter().filter_map(|key| self.held.remove_entry(key)).collect();
            let stay = before.into_iter().filter(|(key, _)| renewed.contains(key));
            self.held.extend(stay.map(|(key, claim)| (key, Claim { renewal: now + RENEWAL, ..claim })));
        }
    }

    /// How long until the next renewal.
    pub(super) fn wait(&self) -> StdDuration {
        let next = self.held.values().map(|claim| claim.renewal).min();
        next.map_or(StdDuration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }
}
