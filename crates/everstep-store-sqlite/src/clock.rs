//! "Database time" of a file: the host's clock, kept from stepping back while the process lives.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use everstep_core::Timestamp;

#[derive(Debug, Default)]
pub(crate) struct Clock {
    last: AtomicI64,
}

impl Clock {
    /// Now, in whole microseconds; never less than it said before.
    pub(crate) fn now(&self) -> Timestamp {
        let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = i64::try_from(host.as_micros()).unwrap_or(i64::MAX);
        Timestamp::from_micros(self.last.fetch_max(micros, Ordering::Relaxed).max(micros))
    }
}
