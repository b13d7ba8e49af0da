//! Queued steps: the store's side of what the node wants, and the clock that looks for steps whose instant has come.

use std::sync::Arc;
use std::time::Duration as StdDuration;

use everstep_core::{Duration, Timestamp};
use everstep_store::{self as store, Beat, BeatAnswer, ClaimKey, StepWant};
use tokio::sync::mpsc;

use super::Shared;
use crate::StepKey;
use crate::node::{Input, StepsIn, StepsOut, beat};

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
/// Signs of life in one call of the store.
const BEATS_MAX: usize = 500;

/// A sign of life on its way to the store.
pub(super) struct Pulse {
    pub(super) link: u64,
    pub(super) key: StepKey,
    pub(super) last: bool,
    pub(super) beat: Beat,
}

impl Shared {
    fn feed_steps(&self, input: StepsIn) {
        self.feed(Input::Steps(input));
    }
}

/// Carries out what the node wants of queued steps.
pub(super) fn perform(shared: &Arc<Shared>, output: StepsOut) {
    match output {
        StepsOut::DueAt(at) => return shared.step_clock.at(at),
        StepsOut::Beat { link, key, details, last } => {
            // Gathered: many attempts beat at about the same time.
            let _ = shared.pulses.send(Pulse { link, key, last, beat: beat(&key, details) });
            return;
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

/// Passes signs of life on, as many at a time as have gathered.
pub(super) async fn pulses(shared: Arc<Shared>, mut waiting: mpsc::UnboundedReceiver<Pulse>) {
    let mut taken = Vec::new();
    while waiting.recv_many(&mut taken, BEATS_MAX).await > 0 {
        let beats: Vec<Beat> = taken.iter().map(|pulse| pulse.beat.clone()).collect();
        let answers = shared.store.beat_steps(&beats).await;
        shared.saw(&answers);
        for (i, Pulse { link, key, last, .. }) in taken.drain(..).enumerate() {
            let answer = match &answers {
                Ok(answers) => Ok(answers.get(i).copied().unwrap_or(BeatAnswer::Going)),
                Err(error) => Err(error.clone()),
            };
            shared.feed_steps(StepsIn::Beaten { link, key, last, answer });
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
        shared.clock.learn(found.now);
        let full = found.due.len() >= LOOK_MAX;
        if !found.due.is_empty() {
            shared.feed_steps(StepsIn::Due(found.due));
        }
        if full {
            continue;
        }
        loop {
            let next = found.next.unwrap_or(Timestamp::MAX).min(shared.step_clock.earliest());
            let wait = next.since(shared.clock.now()).to_std().min(CLOCK_LOOK);
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
            shared.feed_steps(StepsIn::Lost(lost));
            true
        }
        lost => lost.is_ok(),
    }
}
