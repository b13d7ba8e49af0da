//! The implementation for a single node: queues in this process's memory.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use everstep_core::RunId;
use tokio::sync::Notify;

use crate::{Delivery, Dispatch, Error, HintQueue, Notice, TaskHint};

#[cfg(test)]
mod tests;

/// Hints that one queue keeps; the oldest goes first.
const QUEUE_HINTS_MAX: usize = 100_000;
/// Hints that all queues together keep; beyond it new ones are dropped.
const TOTAL_HINTS_MAX: usize = 1_000_000;

/// Dispatch within one process.
///
/// A run that already waits in its queue is not queued twice, memory is bounded by dropping hints (the
/// sweep republishes what was dropped), and a hint that was taken does not come again: the taker lives
/// and dies with this process.
#[derive(Debug, Default)]
pub struct InProcess {
    queues: Mutex<Queues>,
}

#[derive(Debug, Default)]
struct Queues {
    by_key: HashMap<HintQueue, Queue>,
    /// Hints in all queues.
    total: usize,
    next_token: u64,
}

#[derive(Debug, Default)]
struct Queue {
    hints: VecDeque<TaskHint>,
    /// The runs in `hints`.
    runs: HashSet<RunId>,
    arrived: Arc<Notify>,
    /// Pulls that wait here; the entry lives while there are any, or hints.
    pullers: usize,
}

/// A pull's registration at its queue; gone when the pull returns or is dropped.
struct Puller<'a> {
    dispatch: &'a InProcess,
    queue: &'a HintQueue,
    arrived: Arc<Notify>,
}

impl InProcess {
    /// Empty queues.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        // No code that can panic runs under this lock, so a poisoned one still holds good queues.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register<'a>(&'a self, queue: &'a HintQueue) -> Puller<'a> {
        let mut queues = self.lock();
        let entry = queues.by_key.entry(queue.clone()).or_default();
        entry.pullers += 1;
        Puller { dispatch: self, queue, arrived: Arc::clone(&entry.arrived) }
    }
}

impl Queues {
    fn push(&mut self, hint: TaskHint, queue_max: usize, total_max: usize) {
        let place = hint.place();
        let queue = self.by_key.entry(place.clone()).or_default();
        if !queue.runs.insert(hint.run_id) {
            return;
        }
        if queue.hints.len() >= queue_max {
            if let Some(oldest) = queue.hints.pop_front() {
                queue.runs.remove(&oldest.run_id);
                self.total -= 1;
                tracing::debug!(run_id = %oldest.run_id, "queue is full: dropped its oldest hint");
            }
        } else if self.total >= total_max {
            queue.runs.remove(&hint.run_id);
            tracing::debug!(run_id = %hint.run_id, "too many hints in memory: dropped this one");
            self.forget_if_idle(&place);
            return;
        }
        queue.hints.push_back(hint);
        self.total += 1;
        queue.arrived.notify_one();
    }

    fn take(&mut self, key: &HintQueue, max: usize) -> Vec<Delivery> {
        let Some(queue) = self.by_key.get_mut(key) else { return Vec::new() };
        let count = queue.hints.len().min(max);
        let mut taken = Vec::with_capacity(count);
        for hint in queue.hints.drain(..count) {
            queue.runs.remove(&hint.run_id);
            self.next_token += 1;
            taken.push(Delivery { hint, token: self.next_token, attempt: 1 });
        }
        self.total -= count;
        if count > 0 && !queue.hints.is_empty() {
            // One wake-up may stand for several hints: pass it on to the next puller.
            queue.arrived.notify_one();
        }
        taken
    }

    fn forget_if_idle(&mut self, key: &HintQueue) {
        if self.by_key.get(key).is_some_and(|queue| queue.pullers == 0 && queue.hints.is_empty()) {
            self.by_key.remove(key);
        }
    }
}

impl Drop for Puller<'_> {
    fn drop(&mut self) {
        let mut queues = self.dispatch.lock();
        if let Some(queue) = queues.by_key.get_mut(self.queue) {
            queue.pullers -= 1;
        }
        queues.forget_if_idle(self.queue);
    }
}

#[async_trait]
impl Dispatch for InProcess {
    async fn publish(&self, hint: TaskHint) -> Result<(), Error> {
        self.lock().push(hint, QUEUE_HINTS_MAX, TOTAL_HINTS_MAX);
        Ok(())
    }

    async fn pull(&self, queue: &HintQueue, max: usize) -> Result<Vec<Delivery>, Error> {
        let puller = self.register(queue);
        loop {
            // Taking and returning have no await between them, so a dropped pull loses nothing. A wake-up
            // that came before `notified()` is stored by `Notify`; one that a dropped pull had received is
            // passed on by its drop.
            let taken = self.lock().take(queue, max.max(1));
            if !taken.is_empty() {
                return Ok(taken);
            }
            puller.arrived.notified().await;
        }
    }

    async fn ack(&self, _token: u64) {}

    async fn notify(&self, _notice: Notice) {}

    async fn notices(&self) -> Result<Vec<Notice>, Error> {
        pending().await
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn is_connected(&self) -> bool {
        true
    }
}
