//! Queued steps: the store's side of what the node wants, and the clock that looks for steps whose instant has come.

use std::sync::Arc;
use std::time::Duration as StdDuration;

use everstep_core::Duration;
use everstep_store::{self as store, ClaimKey, StepWant};

use super::Shared;
use super::pulses::Pulse;
use crate::StepKey;
use crate::clock::until;
use crate::node::{Input, StepsIn, StepsOut};

/// Rows that one look takes at most.
const LOOK_MAX: usize = 500;
/// How long the clock waits at most: other nodes set instants that this one hears nothing of.
const CLOCK_LOOK: StdDuration = StdDuration::from_secs(1);
/// How long a step whose instant has come stays with the node that found it. One that dies over it delays what
/// follows by this much.
const CLAIM: Duration = Duration::from_secs(2);
/// How long to leave a failing store alone.
const PAUSE: StdDuration = StdDuration::from_secs(1);
/// Tries of what the store has to be told.
const TRIES: u32 = 8;

impl Shared {
    pub(super) fn feed_steps(&self, input: StepsIn) {
        self.feed(Input::Steps(input));
    }
}

/// Carries out what the node wants of queued steps.
pub(super) fn perform(shared: &Arc<Shared>, output: StepsOut) {
    match output {
        StepsOut::DueAt(at) => return shared.step_clock.at(at),
        StepsOut::Beat { link, key, details, last } => {
            // Gathered: many attempts beat at about the same time.
            return shared.pulses.put(Pulse { link, key, details, last });
        }
        _ => {}
    }
    let to = Arc::clone(shared);
    shared.spawn(async move {
        match output {
            StepsOut::Claim { link, want, max } => claim(&to, link, want, max).await,
            StepsOut::LetGo { link, key, deferred } => {
                let done = let_go(&to, key, deferred).await;
                to.feed_steps(StepsIn::LetGo { link, key, deferred, done });
            }
            StepsOut::Find { sessions, since } => {
                let rows = to.store.claims_of(&sessions).await;
                to.saw(&rows);
                to.feed_steps(StepsIn::Found { sessions, since, rows });
            }
            StepsOut::WaitingAt { queue, at } => {
                tokio::time::sleep(at.since(to.clock.now()).to_std()).await;
                to.feed_steps(StepsIn::Waiting(queue));
            }
            StepsOut::DueAt(_) | StepsOut::Beat { .. } => {}
        }
    });
}

async fn claim(to: &Shared, link: u64, want: StepWant, max: usize) {
    let queue = want.queue.clone();
    let claims = to.store.claim_steps(&want, max).await;
    let found = claims.as_ref().is_ok_and(|claims| !claims.claims.is_empty());
    let claims = match everstep_fault::ENABLED && found {
        true => super::perform::failed_at("step.claimed").await.map_or(claims, Err),
        false => claims,
    };
    to.saw(&claims);
    to.feed_steps(StepsIn::Claimed { link, queue, max, claims });
}

/// Tries until the store has an answer, but not for ever.
async fn let_go(to: &Shared, key: StepKey, deferred: bool) -> Result<bool, store::Error> {
    let StepKey { run_id: run, step, claim, .. } = key;
    let key = ClaimKey { run, step, claim };
    let mut tries = 0;
    loop {
        let done = if deferred { to.store.defer_step(key).await } else { to.store.return_step(key).await };
        to.saw(&done);
        tries += 1;
        match done {
            Err(error) if error.is_retryable() && tries < TRIES => tokio::time::sleep(PAUSE).await,
            done => return done,
        }
    }
}

/// Looks for steps whose instant has come, and sleeps until the next.
pub(super) async fn clock(shared: Arc<Shared>) {
    loop {
        // Whatever is set from here on wakes the wait below.
        shared.step_clock.reset();
        let found = shared.store.due_steps(LOOK_MAX, CLAIM).await;
        shared.saw(&found);
        let Ok(found) = found else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let heard = tokio::time::Instant::now();
        shared.clock.learn(found.now);
        let full = found.due.len() >= LOOK_MAX;
        if !found.due.is_empty() {
            shared.feed_steps(StepsIn::Due(found.due));
        }
        if full {
            continue;
        }
        loop {
            let next = until(found.next, found.now, heard.elapsed());
            let set = shared.step_clock.earliest().since(shared.clock.now()).to_std();
            let wait = next.min(set).min(CLOCK_LOOK);
            tokio::select! {
                () = tokio::time::sleep(wait) => break,
                () = shared.step_clock.changed.notified() => {}
            }
        }
    }
}

/// Attempts whose worker's session is closed. False when the store did not say.
pub(super) async fn sweep_lost(shared: &Arc<Shared>) -> bool {
    match shared.store.lost_steps(LOOK_MAX).await {
        Ok(lost) if !lost.is_empty() => {
            // What is lost here is found by the next look.
            let known = everstep_fault::at("step.lost").await.is_ok();
            if known {
                shared.feed_steps(StepsIn::Lost(lost));
            }
            known
        }
        lost => lost.is_ok(),
    }
}
