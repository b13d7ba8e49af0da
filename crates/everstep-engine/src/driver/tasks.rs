//! The tasks beside a node: committer lanes, timers, sweep, notices.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration as StdDuration;

use everstep_core::{DetachReason, Duration, EventBody, RunId, TimerKey, Timestamp, Write};
use everstep_store::{self as store, Append, AppendReply, RunWant, Verdict};
use tokio::sync::{Notify, mpsc};

use super::claims::TIMER_CLAIM;
use super::{Internal, Shared, Timers};
use crate::clock::until;
use crate::node::Input;

/// Rows that one look of the sweep takes at most.
const SWEEP_MAX: usize = 500;
/// How long the timer task waits at most: other nodes set timers that this one hears nothing of.
const TIMER_LOOK: StdDuration = StdDuration::from_secs(1);
/// Wakes younger than this are left to the notices.
const WAKE_AGE: Duration = Duration::from_secs(1);
/// How long to leave a failing port alone.
const PAUSE: StdDuration = StdDuration::from_secs(1);

/// A committer: takes all that waits, commits it in one go, takes what gathered meanwhile.
pub(super) async fn lane(shared: Arc<Shared>, mut waiting: mpsc::UnboundedReceiver<(u64, Append)>) {
    let mut taken = Vec::new();
    let max = shared.config.batch_max.max(1);
    loop {
        if waiting.recv_many(&mut taken, max).await == 0 {
            return;
        }
        let (tickets, batch): (Vec<u64>, Vec<Append>) = taken.drain(..).unzip();
        let lost: Vec<u64> = batch.iter().map(runs_lost).collect();
        let settled: Vec<_> = batch.iter().enumerate().flat_map(timers_settled).collect();
        let reply = commit(&shared, batch).await;
        if let Some(now) = reply.now {
            shared.clock.learn(now);
        }
        for (verdict, lost) in reply.verdicts.iter().zip(lost) {
            match verdict {
                Verdict::Failed(error) => shared.saw::<()>(&Err(error.clone())),
                Verdict::Committed => {
                    shared.figures.lost(lost);
                    shared.saw(&Ok(()));
                }
                Verdict::Conflict => shared.saw(&Ok(())),
            }
        }
        if !settled.is_empty() {
            let committed = |at: &usize| matches!(reply.verdicts.get(*at), Some(Verdict::Committed));
            shared
                .claims
                .settled(settled.into_iter().filter(|(at, _)| committed(at)).map(|(_, timer)| timer));
        }
        let verdicts = tickets.into_iter().zip(reply.verdicts).collect();
        if shared.internal.send(Internal::Verdicts(verdicts)).is_err() || *shared.stop.borrow() {
            return;
        }
    }
}

/// A failpoint, and which appends it stands before.
type PointBefore = (&'static str, fn(&Append) -> bool);

/// Where a test can end or fail what comes before one kind of append: the end of a queued step that its worker has
/// told, and an update to which the run's code has agreed.
const POINTS_BEFORE: [PointBefore; 2] = [("step.ended", ends_queued_step), ("ask.validated", accepts_update)];

/// One commit, with the failpoints on both sides of it.
async fn commit(shared: &Shared, batch: Vec<Append>) -> AppendReply {
    let (size, fires) = (batch.len(), everstep_fault::ENABLED && batch.iter().any(fires_timer));
    let follows = everstep_fault::ENABLED && batch.iter().any(starts_successor);
    let failed = |error: store::Error| AppendReply {
        now: None,
        verdicts: (0..size).map(|_| Verdict::Failed(error.clone())).collect(),
    };
    if let Err(error) = everstep_fault::at("append.before_commit").await {
        return failed(store::Error::Unavailable(error.to_string()));
    }
    for (point, concerns) in POINTS_BEFORE {
        if everstep_fault::ENABLED
            && batch.iter().any(concerns)
            && let Err(error) = everstep_fault::at(point).await
        {
            return failed(store::Error::Unavailable(error.to_string()));
        }
    }
    let reply = shared.store.append(batch).await;
    let after = everstep_fault::at("append.after_commit").await;
    let fired = if fires { everstep_fault::at("timer.fired").await } else { Ok(()) };
    let next = if follows { everstep_fault::at("successor.committed").await } else { Ok(()) };
    match after.and(fired).and(next) {
        Ok(()) => reply,
        Err(error) => failed(store::Error::OutcomeUnknown(error.to_string())),
    }
}

/// The timers that an append deletes, with its place in the batch.
fn timers_settled((at, append): (usize, &Append)) -> impl Iterator<Item = (usize, (RunId, TimerKey))> {
    append.runs().flat_map(move |run| {
        run.writes.iter().filter_map(move |write| match write {
            Write::TimerDeleted(key) => Some((at, (run.run_id, *key))),
            _ => None,
        })
    })
}

/// Runs that an append takes from a worker whose session has ended.
fn runs_lost(append: &Append) -> u64 {
    let lost = |body: &EventBody| matches!(body, EventBody::WorkerDetached { reason: DetachReason::Lost });
    append.runs().map(|run| run.events.iter().filter(|e| lost(&e.body)).count() as u64).sum()
}

fn starts_successor(append: &Append) -> bool {
    append.with.as_ref().is_some_and(|with| with.start.is_some())
}

/// Whether the end of a queued step becomes durable with it.
fn ends_queued_step(append: &Append) -> bool {
    append.run.writes.iter().any(|write| matches!(write, Write::StepTaskDeleted(_)))
}

fn accepts_update(append: &Append) -> bool {
    append.run.events.iter().any(|e| matches!(e.body, EventBody::UpdateAccepted { .. }))
}

fn fires_timer(append: &Append) -> bool {
    append
        .run
        .events
        .iter()
        .any(|e| matches!(e.body, EventBody::TimerFired { .. } | EventBody::RunTimedOut { .. }))
}

impl Timers {
    /// A timer was set for `at`.
    pub(super) fn at(&self, at: Timestamp) {
        let mut earliest = self.earliest.lock().unwrap_or_else(PoisonError::into_inner);
        if at < *earliest {
            *earliest = at;
            self.changed.notify_one();
        }
    }

    pub(super) fn new() -> Self {
        Self { earliest: Mutex::new(Timestamp::MAX), changed: Notify::new() }
    }

    pub(super) fn reset(&self) {
        *self.earliest.lock().unwrap_or_else(PoisonError::into_inner) = Timestamp::MAX;
    }

    pub(super) fn earliest(&self) -> Timestamp {
        *self.earliest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Claims timers as they come due, and sleeps until the next one.
pub(super) async fn timers(shared: Arc<Shared>) {
    let claims = &shared.claims;
    loop {
        claims.renew(&*shared.store).await;
        // Whatever is set from here on wakes the wait below.
        shared.timers.reset();
        let claimed = shared.store.claim_timers(SWEEP_MAX, TIMER_CLAIM).await;
        shared.saw(&claimed);
        let found = claimed.as_ref().is_ok_and(|c| !c.due.is_empty());
        let claimed = match everstep_fault::ENABLED && found {
            true => super::perform::failed_at("timer.claimed").await.map_or(claimed, Err),
            false => claimed,
        };
        let Ok(claimed) = claimed else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let heard = tokio::time::Instant::now();
        shared.clock.learn(claimed.now);
        shared.figures.late(&claimed.late);
        let full = claimed.due.len() == SWEEP_MAX;
        if !claimed.due.is_empty() {
            claims.add(&claimed.due);
            shared.feed(Input::TimersDue(claimed.due));
            claims.gather(full).await;
        }
        if full {
            continue;
        }
        loop {
            let next = until(claimed.next, claimed.now, heard.elapsed());
            let set = shared.timers.earliest().since(shared.clock.now()).to_std();
            let wait = next.min(set).min(TIMER_LOOK).min(claims.wait());
            tokio::select! {
                () = tokio::time::sleep(wait) => break,
                () = shared.timers.changed.notified() => {}
            }
        }
    }
}

/// Ticks the sweep.
pub(super) async fn sweeps(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(shared.config.sweep_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if shared.internal.send(Internal::Sweep).is_err() {
            return;
        }
    }
}

/// One pass: whatever was lost is found here.
pub(super) async fn sweep_once(shared: &Arc<Shared>, wants: &[RunWant], room: usize) {
    let closed = shared.store.close_expired_sessions(SWEEP_MAX).await;
    shared.saw(&closed);
    match closed {
        Ok(closed) if !closed.is_empty() => shared.feed(Input::SessionsClosed(closed)),
        Ok(_) => {}
        // Without the store nothing else of this pass can work either.
        Err(_) => return,
    }
    let mut whole = sweep_lost(shared).await;
    whole &= super::steps::sweep_lost(shared).await;
    whole &= super::outbox::sweep(shared).await;
    if !wants.is_empty() {
        whole &= sweep_tasks(shared, Some(wants), room.min(SWEEP_MAX)).await;
    }
    if shared.dispatch.is_shared() && shared.dispatch.is_connected() {
        whole &= sweep_tasks(shared, None, SWEEP_MAX).await;
    }
    if shared.dispatch.is_shared() || shared.store.is_shared() {
        match shared.store.stale_wakes(shared.config.node_id, WAKE_AGE, SWEEP_MAX).await {
            Ok(wakes) if !wakes.is_empty() => shared.feed(Input::WakesStale(wakes)),
            stale => whole &= stale.is_ok(),
        }
    }
    if whole {
        shared.figures.swept();
    }
}

/// Tasks whose next look is due. False when the store did not say.
async fn sweep_tasks(shared: &Arc<Shared>, wants: Option<&[RunWant]>, limit: usize) -> bool {
    match shared.store.claim_tasks(wants, limit).await {
        Ok(tasks) if !tasks.is_empty() => {
            if everstep_fault::at("outbox.claimed").await.is_ok() {
                shared.feed(Input::TasksFound(tasks));
            }
            true
        }
        tasks => tasks.is_ok(),
    }
}

/// Runs whose owner's session is closed. False when the store did not say.
pub(super) async fn sweep_lost(shared: &Arc<Shared>) -> bool {
    match shared.store.lost_runs(SWEEP_MAX).await {
        Ok(lost) if !lost.is_empty() => {
            shared.feed(Input::RunsLost(lost));
            true
        }
        lost => lost.is_ok(),
    }
}

/// Hears what other nodes say.
pub(super) async fn notices(shared: Arc<Shared>) {
    loop {
        match shared.dispatch.notices().await {
            Ok(notices) => notices.into_iter().for_each(|notice| shared.feed(Input::Noticed(notice))),
            Err(error) => {
                tracing::debug!(%error, "notices not heard");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
