//! Signs of life of attempts on their way to the store. While one call is under way the next gather, and of each
//! attempt only the newest counts: so they cost no more memory than there are attempts, however long the store is
//! silent.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use everstep_core::Payload;
use everstep_store::{Beat, BeatAnswer};
use tokio::sync::Notify;

use super::Shared;
use crate::StepKey;
use crate::node::{StepsIn, beat};

/// Signs of life in one call of the store.
const BEATS_MAX: usize = 500;

/// A sign of life.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pulse {
    pub(super) link: u64,
    pub(super) key: StepKey,
    pub(super) details: Option<Payload>,
    /// The end of the attempt waits for this.
    pub(super) last: bool,
}

impl Pulse {
    /// What is left to say when this one comes before `older` was passed on. It says no more of how far the attempt is
    /// when it brings no details.
    fn instead_of(self, older: Self) -> Self {
        Self { details: self.details.or(older.details), last: self.last || older.last, ..self }
    }
}

/// Signs of life that wait.
#[derive(Debug, Default)]
pub(super) struct Pulses {
    waiting: Mutex<Waiting>,
    came: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// One of each attempt,
    newest: HashMap<StepKey, Pulse>,
    /// in the order in which they began to wait.
    order: VecDeque<StepKey>,
}

impl Pulses {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No code that can panic runs under this lock, so a poisoned one still holds good values.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, pulse: Pulse) {
        let key = pulse.key;
        let mut waiting = self.lock();
        let pulse = match waiting.newest.remove(&key) {
            Some(older) => pulse.instead_of(older),
            None => {
                waiting.order.push_back(key);
                pulse
            }
        };
        waiting.newest.insert(key, pulse);
        drop(waiting);
        self.came.notify_one();
    }

    /// Waits for some, and takes up to `max`.
    async fn take(&self, max: usize) -> Vec<Pulse> {
        loop {
            // What comes after this look is remembered by the wait.
            let taken = {
                let mut waiting = self.lock();
                let count = waiting.order.len().min(max);
                let keys: Vec<StepKey> = waiting.order.drain(..count).collect();
                keys.iter().filter_map(|key| waiting.newest.remove(key)).collect::<Vec<_>>()
            };
            if !taken.is_empty() {
                return taken;
            }
            self.came.notified().await;
        }
    }
}

/// Passes signs of life on, as many at a time as have gathered.
pub(super) async fn pass_on(shared: Arc<Shared>) {
    loop {
        let taken = shared.pulses.take(BEATS_MAX).await;
        let beats: Vec<Beat> = taken.iter().map(|pulse| beat(&pulse.key, pulse.details.clone())).collect();
        let answers = shared.store.beat_steps(&beats).await;
        shared.saw(&answers);
        for (i, Pulse { link, key, last, .. }) in taken.into_iter().enumerate() {
            let answer = match &answers {
                Ok(answers) => Ok(answers.get(i).copied().unwrap_or(BeatAnswer::Going)),
                Err(error) => Err(error.clone()),
            };
            shared.feed_steps(StepsIn::Beaten { link, key, last, answer });
        }
    }
}

#[cfg(test)]
mod tests;
