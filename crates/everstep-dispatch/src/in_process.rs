//! The implementation for a single node.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use everstep_core::QueueKey;
use tokio::sync::Notify;

use crate::{Delivery, Dispatch, Error, Notice, TaskHint};

/// Hints kept for one queue at most; beyond it the oldest is dropped, and the sweep finds its task.
const HINTS_MAX: usize = 100_000;

/// Hints in memory, for the one node that there is.
#[derive(Debug, Default)]
pub struct InProcess {
    queues: Mutex<BTreeMap<QueueKey, Arc<Queue>>>,
}

#[derive(Debug, Default)]
struct Queue {
    hints: Mutex<VecDeque<TaskHint>>,
    added: Notify,
}

impl InProcess {
    /// Nothing waiting.
    pub fn new() -> Self {
        Self::default()
    }

    fn queue(&self, key: &QueueKey) -> Arc<Queue> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(key) {
            return Arc::clone(queue);
        }
        Arc::clone(queues.entry(key.clone()).or_default())
    }
}

impl Queue {
    fn take(&self, max: usize) -> Vec<Delivery> {
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        let n = hints.len().min(max);
        hints.drain(..n).map(|hint| Delivery { hint, token: 0, attempt: 1 }).collect()
    }
}

#[async_trait]
impl Dispatch for InProcess {
    async fn publish(&self, hint: TaskHint) -> Result<(), Error> {
        let queue = self.queue(&hint.queue);
        {
            let mut hints = queue.hints.lock().unwrap_or_else(PoisonError::into_inner);
            if hints.len() >= HINTS_MAX {
                hints.pop_front();
            }
            hints.push_back(hint);
        }
        queue.added.notify_one();
        Ok(())
    }

    async fn pull(&self, queue: &QueueKey, max: usize) -> Result<Vec<Delivery>, Error> {
        let queue = self.queue(queue);
        loop {
            let taken = queue.take(max.max(1));
            if !taken.is_empty() {
                // Another puller may sleep beside what is left.
                queue.added.notify_one();
                return Ok(taken);
            }
            queue.added.notified().await;
        }
    }

    async fn ack(&self, _token: u64) {}

    async fn notify(&self, _notice: Notice) {}

    async fn notices(&self) -> Result<Vec<Notice>, Error> {
        std::future::pending().await
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn is_connected(&self) -> bool {
        true
    }
}
