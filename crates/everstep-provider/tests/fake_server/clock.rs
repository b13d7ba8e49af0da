//! A paused clock beside real sockets: waits take no time, and their length is exact.
//!
//! tokio moves a paused clock to the next timer whenever no task can run, and a task that waits for a socket
//! cannot run: without help, each request would time out at once. The clock keeps still while a blocking task
//! is under way, so one of those is held for as long as bytes are.

use std::future::Future;
use std::sync::mpsc;

use async_trait::async_trait;
use everstep_provider::{Completion, CompletionRequest, Provider, ProviderError};

/// Runs `work` with the clock standing still.
pub(crate) async fn with_frozen_clock<T>(work: impl Future<Output = T>) -> T {
    // The channel ends with this future, however that ends, and the blocking task with it.
    let (release, released) = mpsc::channel::<()>();
    let held = tokio::task::spawn_blocking(move || released.recv().is_err());
    let result = work.await;
    drop(release);
    // Only a panic makes this an error, and that task has none.
    let _ = held.await;
    result
}

/// A provider whose attempts take no time, so that what passes on the clock are the waits between them.
#[derive(Debug)]
pub(crate) struct FrozenClock<P>(pub(crate) P);

#[async_trait]
impl<P: Provider> Provider for FrozenClock<P> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn model(&self) -> &str {
        self.0.model()
    }

    fn address(&self) -> &str {
        self.0.address()
    }

    async fn complete(&self, request: &CompletionRequest) -> Result<Completion, ProviderError> {
        with_frozen_clock(self.0.complete(request)).await
    }
}
