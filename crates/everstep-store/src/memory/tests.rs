//! The in-memory store against the conformance suite.

use everstep_core::Timestamp;

use super::MemoryStore;

#[test]
fn the_clock_is_the_callers() {
    let store = MemoryStore::new(|| Timestamp::from_micros(42));
    assert_eq!(store.append_sync(vec![]).now.unwrap(), Timestamp::from_micros(42));
    let reply = store.append_sync(vec![]);
    assert_eq!((reply.now, reply.verdicts.len()), (Some(Timestamp::from_micros(42)), 0));
}

#[cfg(feature = "conformance")]
mod conforms {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use everstep_core::Timestamp;

    use super::super::MemoryStore;
    use crate::conformance::{self, Subject};

    /// A store on a virtual clock.
    fn subject() -> Subject {
        let clock = Arc::new(AtomicI64::new(1_700_000_000_000_000));
        let read = Arc::clone(&clock);
        let store = MemoryStore::new(move || Timestamp::from_micros(read.load(Ordering::Relaxed)));
        Subject::with_clock(Arc::new(store), move |d| {
            clock.fetch_add(i64::try_from(d.as_micros()).unwrap(), Ordering::Relaxed);
        })
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn to_the_port() {
        conformance::run_all(|| async { subject() }).await;
    }

    #[tokio::test]
    async fn to_the_port_in_one_store() {
        let one = subject();
        conformance::run_all(|| async { one.clone() }).await;
    }

    #[tokio::test]
    async fn to_itself_over_random_operations() {
        for seed in 0..50 {
            conformance::differential(&*subject().store, &*subject().store, seed).await;
        }
    }
}
