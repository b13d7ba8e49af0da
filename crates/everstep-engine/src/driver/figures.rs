//! What a node knows of its store and of its own upkeep, and the looks that find it out.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration as StdDuration;

use everstep_core::Duration;
use everstep_store::{self as store, Backlog, Census, WaitingGroup};
use tokio::time::{Instant, MissedTickBehavior};

use super::Shared;
use crate::upkeep::{Lateness, Upkeep};

/// How often the store is asked for a sign of life.
const PULSE: StdDuration = StdDuration::from_secs(1);
/// How long the sign may take when nothing else is heard of the store either. With [`PULSE`] it bounds how long a node
/// calls itself ready without a store; a connection that is being made takes longer than that to be given up.
const PULSE_WAIT: StdDuration = StdDuration::from_secs(1);
/// How long a store that was out of room is taken to be so: longer than an append waits before it is tried again, so
/// that one that still finds no room is heard in time.
const EXHAUSTED_HOLD: StdDuration = StdDuration::from_secs(5);
/// Blocked runs, and events that others have not heard of, that are counted, and tasks that are looked at.
const BACKLOG_MAX: usize = 10_000;

/// What is known.
#[derive(Debug)]
pub(super) struct Figures {
    store_ok: AtomicBool,
    /// Answers that the store gave, whatever they said.
    answers: AtomicU64,
    lost: AtomicU64,
    violations: AtomicU64,
    rest: Mutex<Rest>,
}

#[derive(Debug)]
struct Rest {
    /// When the store last said that it is out of room.
    exhausted: Option<Instant>,
    swept: Instant,
    backlog: Backlog,
    waiting: Vec<WaitingGroup>,
    lateness: Lateness,
}

impl Figures {
    pub(super) fn new() -> Self {
        let (backlog, lateness) = (Backlog::default(), Lateness::default());
        Self {
            store_ok: AtomicBool::new(true),
            answers: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            violations: AtomicU64::new(0),
            rest: Mutex::new(Rest {
                exhausted: None,
                swept: Instant::now(),
                backlog,
                waiting: Vec::new(),
                lateness,
            }),
        }
    }

    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call to the store came to this.
    pub(super) fn saw(&self, error: Option<&store::Error>) {
        let away = matches!(
            error,
            Some(store::Error::Unavailable(_) | store::Error::OutcomeUnknown(_) | store::Error::Schema(_))
        );
        if matches!(error, Some(store::Error::Exhausted(_))) {
            self.rest().exhausted = Some(Instant::now());
        }
        if !away {
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
        self.store_ok.store(!away, Ordering::Relaxed);
    }

    /// The store answered its last call.
    pub(super) fn store_ok(&self) -> bool {
        self.store_ok.load(Ordering::Relaxed)
    }

    /// The store was out of room a moment ago.
    pub(super) fn store_exhausted(&self) -> bool {
        self.rest().exhausted.is_some_and(|at| at.elapsed() < EXHAUSTED_HOLD)
    }

    /// A pass of the sweep came to its end.
    pub(super) fn swept(&self) {
        self.rest().swept = Instant::now();
    }

    /// Timers were claimed so late.
    pub(super) fn late(&self, late: &[Duration]) {
        if !late.is_empty() {
            let mut rest = self.rest();
            late.iter().for_each(|late| rest.lateness.note(*late));
        }
    }

    /// Runs were taken from workers whose session had ended.
    pub(super) fn lost(&self, runs: u64) {
        self.lost.fetch_add(runs, Ordering::Relaxed);
    }

    /// So many runs have wake rows that cannot be right.
    pub(super) fn violations(&self, runs: usize) {
        self.violations.store(runs as u64, Ordering::Relaxed);
    }

    /// So many wait, and these are there.
    pub(super) fn counted(&self, census: Census) {
        let waiting = census.unserved().into_iter().cloned().collect();
        self.rest().waiting = waiting;
    }

    /// Everything for the metrics.
    pub(super) fn upkeep(&self) -> Upkeep {
        let rest = self.rest();
        Upkeep {
            waiting_for_build: rest.waiting.clone(),
            blocked_runs: rest.backlog.blocked,
            oldest_task: rest.backlog.oldest_task.unwrap_or_default(),
            untold: rest.backlog.untold,
            oldest_untold: rest.backlog.oldest_untold.unwrap_or_default(),
            sweep_lag: rest.swept.elapsed(),
            runs_lost: self.lost.load(Ordering::Relaxed),
            wake_violations: self.violations.load(Ordering::Relaxed),
            timer_lateness: rest.lateness,
        }
    }
}

fn every(interval: StdDuration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Asks the store for a sign of life, so that its silence is known before a call has been given up.
pub(super) async fn pulse(shared: Arc<Shared>) {
    let mut ticks = every(PULSE);
    loop {
        ticks.tick().await;
        let before = shared.figures.answers.load(Ordering::Relaxed);
        match tokio::time::timeout(PULSE_WAIT, shared.store.now()).await {
            // A clock is not a table: that the store can tell the time does not make it well.
            Ok(Ok(_)) => {}
            Ok(Err(error)) => shared.figures.saw(Some(&error)),
            // A store that answers others in the meantime is slow, not gone.
            Err(_) if shared.figures.answers.load(Ordering::Relaxed) != before => {}
            Err(_) => shared.figures.store_ok.store(false, Ordering::Relaxed),
        }
    }
}

/// Looks at how much waits.
pub(super) async fn backlogs(shared: Arc<Shared>) {
    let mut ticks = every(shared.config.look_interval);
    loop {
        ticks.tick().await;
        match shared.store.backlog(BACKLOG_MAX).await {
            Ok(backlog) => shared.figures.rest().backlog = backlog,
            Err(error) => tracing::debug!(%error, "backlog not read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(error: store::Error) -> (bool, bool) {
        let figures = Figures::new();
        figures.saw(Some(&error));
        (figures.store_ok(), figures.store_exhausted())
    }

    #[test]
    fn what_the_store_says_tells_how_it_is() {
        assert_eq!(failed(store::Error::Unavailable(String::new())), (false, false));
        assert_eq!(failed(store::Error::OutcomeUnknown(String::new())), (false, false));
        assert_eq!(failed(store::Error::Contention(String::new())), (true, false));
        assert_eq!(failed(store::Error::Exhausted(String::new())), (true, true));
        let figures = Figures::new();
        assert!(figures.store_ok() && !figures.store_exhausted());
        figures.saw(Some(&store::Error::Unavailable(String::new())));
        figures.saw(None);
        assert!(figures.store_ok(), "one good answer is enough");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_has_room_again_when_it_has_not_refused_for_a_while() {
        let figures = Figures::new();
        let full = || figures.saw(Some(&store::Error::Exhausted(String::new())));
        full();
        tokio::time::advance(EXHAUSTED_HOLD / 2).await;
        // What needs no room is answered as ever.
        figures.saw(None);
        assert!(figures.store_exhausted());
        full();
        tokio::time::advance(EXHAUSTED_HOLD - StdDuration::from_millis(1)).await;
        assert!(figures.store_exhausted(), "since the last refusal");
        tokio::time::advance(StdDuration::from_millis(1)).await;
        assert!(!figures.store_exhausted());
    }

    #[tokio::test(start_paused = true)]
    async fn the_sweep_lags_until_a_pass_has_ended() {
        let figures = Figures::new();
        tokio::time::advance(StdDuration::from_secs(90)).await;
        assert_eq!(figures.upkeep().sweep_lag, StdDuration::from_secs(90));
        figures.swept();
        assert_eq!(figures.upkeep().sweep_lag, StdDuration::ZERO);
    }
}
