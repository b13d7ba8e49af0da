//! Hints that were delivered and not yet acknowledged.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

#[cfg(test)]
mod tests;

/// Maps the tokens of deliveries to what acknowledges them.
///
/// An entry is forgotten once its redelivery is due: a later acknowledgement would count for the
/// redelivery, which someone else may hold by then.
pub(crate) struct InFlight<T> {
    ack_wait: Duration,
    entries: Mutex<Entries<T>>,
}

struct Entries<T> {
    last_token: u64,
    /// Tokens grow with time, so the first entry is the oldest.
    by_token: BTreeMap<u64, (Instant, T)>,
}

impl<T> InFlight<T> {
    pub(crate) fn new(ack_wait: Duration) -> Self {
        Self { ack_wait, entries: Mutex::new(Entries { last_token: 0, by_token: BTreeMap::new() }) }
    }

    /// Remembers `acker` under a new token.
    pub(crate) fn insert(&self, acker: T) -> u64 {
        let now = Instant::now();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(oldest) = entries.by_token.first_entry()
            && now.duration_since(oldest.get().0) >= self.ack_wait
        {
            oldest.remove();
        }
        entries.last_token += 1;
        let token = entries.last_token;
        entries.by_token.insert(token, (now, acker));
        token
    }

    /// Takes what acknowledges `token`, unless it is unknown, used or too old.
    pub(crate) fn remove(&self, token: u64) -> Option<T> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (delivered_at, acker) = entries.by_token.remove(&token)?;
        (delivered_at.elapsed() < self.ack_wait).then_some(acker)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).by_token.len()
    }
}
