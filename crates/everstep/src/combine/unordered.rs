//! Many futures whose values come as they end: a set that grows, a bounded number at one time, a limit in time.
//!
//! Each look polls all that run, in the order in which they were pushed, and gives the earliest pushed of those
//! that have ended. So what comes when follows from the events alone.

use std::future::poll_fn;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::Slot;
use crate::{Ctx, Sleep};

/// Futures whose values come in the order in which they end.
///
/// ```
/// # use everstep::{Ctx, StepError, StepFailed, Unordered};
/// # async fn example(ctx: Ctx) -> Result<u32, StepFailed> {
/// let mut quotes = Unordered::new();
/// for shop in ["a", "b", "c"] {
///     quotes.push(ctx.step(format!("ask {shop}"), || async { Ok::<_, StepError>(1u32) }));
/// }
/// let mut sum = 0;
/// while let Some(quote) = quotes.next().await {
///     sum += quote?;
/// }
/// # Ok(sum)
/// # }
/// ```
pub struct Unordered<F: Future> {
    slots: Vec<Slot<F>>,
}

impl<F: Future> std::fmt::Debug for Unordered<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unordered").field("len", &self.slots.len()).finish()
    }
}

impl<F: Future> Default for Unordered<F> {
    fn default() -> Self {
        Self { slots: Vec::new() }
    }
}

impl<F: Future> Unordered<F> {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one. It begins when [`next`](Self::next) is awaited.
    pub fn push(&mut self, future: impl IntoFuture<IntoFuture = F>) {
        self.slots.push(Slot::Waiting(Box::pin(future.into_future())));
    }

    /// How many have not been given yet.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True when all have been given.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The value of the next one that ends; `None` when all have been given.
    pub async fn next(&mut self) -> Option<F::Output> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<F::Output>> {
        for slot in &mut self.slots {
            if let Slot::Waiting(future) = slot
                && let Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *slot = Slot::Ready(value);
            }
        }
        match self.slots.iter().position(|slot| matches!(slot, Slot::Ready(_))) {
            Some(first) => match self.slots.remove(first) {
                Slot::Ready(value) => Poll::Ready(Some(value)),
                Slot::Waiting(_) => Poll::Pending,
            },
            None if self.slots.is_empty() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

/// The futures of an iterator, at most `most` of them at one time; made by [`buffered`].
#[derive(Debug)]
pub struct Buffered<I: Iterator<Item: IntoFuture>> {
    rest: std::iter::Fuse<I>,
    most: usize,
    running: Unordered<<I::Item as IntoFuture>::IntoFuture>,
}

/// Runs the futures of an iterator, at most `most` of them at one time (0 counts as 1). The iterator is advanced
/// when a place is free, so what it builds is built then.
///
/// ```
/// # use everstep::{Ctx, StepError, StepFailed};
/// # async fn example(ctx: Ctx) -> Result<u32, StepFailed> {
/// let mut pages = everstep::buffered(
///     (0..1_000u32).map(|n| ctx.step("page", move || async move { Ok::<_, StepError>(n) })),
///     20,
/// );
/// let mut sum = 0;
/// while let Some(page) = pages.next().await {
///     sum += page?;
/// }
/// # Ok(sum)
/// # }
/// ```
pub fn buffered<I>(futures: I, most: usize) -> Buffered<I::IntoIter>
where
    I: IntoIterator,
    I::Item: IntoFuture,
{
    Buffered { rest: futures.into_iter().fuse(), most: most.max(1), running: Unordered::new() }
}

impl<I: Iterator<Item: IntoFuture>> Buffered<I> {
    /// The value of the next one that ends; `None` when all have been given.
    pub async fn next(&mut self) -> Option<<I::Item as IntoFuture>::Output> {
        while self.running.len() < self.most
            && let Some(future) = self.rest.next()
        {
            self.running.push(future);
        }
        self.running.next().await
    }
}

/// What `make` gives for each item, at most `most` at one time; values in the order of the items.
pub async fn map_buffered<T, U: IntoFuture>(
    items: impl IntoIterator<Item = T>,
    most: usize,
    make: impl Fn(T) -> U,
) -> Vec<U::Output> {
    let numbered = items.into_iter().enumerate().map(|(index, item)| {
        let made = make(item).into_future();
        async move { (index, made.await) }
    });
    let mut running = buffered(numbered, most);
    let mut values = Vec::new();
    while let Some(value) = running.next().await {
        values.push(value);
    }
    values.sort_by_key(|(index, _)| *index);
    values.into_iter().map(|(_, value)| value).collect()
}

/// The time was over before the future ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not done within {after:?}")]
pub struct TimedOut {
    /// How long it had.
    pub after: Duration,
}

/// A future with a limit in time; made by [`timeout`].
#[must_use = "nothing happens until it is awaited"]
#[derive(Debug)]
pub struct Timeout<F> {
    future: Pin<Box<F>>,
    sleep: Sleep,
    after: Duration,
}

/// Waits for a future, but not longer than `after`. It is dropped then: a step that runs is left to end, and a
/// timer is canceled.
///
/// ```
/// # use everstep::Ctx;
/// # use std::time::Duration;
/// # async fn example(ctx: Ctx) -> bool {
/// let decision = ctx.signal::<bool>("decision");
/// match everstep::timeout(&ctx, Duration::from_secs(3600), decision).await {
///     Ok(decision) => decision.unwrap_or(false),
///     Err(everstep::TimedOut { .. }) => false,
/// }
/// # }
/// ```
#[track_caller]
pub fn timeout<F: IntoFuture>(ctx: &Ctx, after: Duration, future: F) -> Timeout<F::IntoFuture> {
    let future = Box::pin(future.into_future());
    Timeout { future, sleep: ctx.sleep_from(after, Location::caller()), after }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, TimedOut>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(value) = self.future.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        let after = self.after;
        Pin::new(&mut self.sleep).poll(cx).map(|()| Err(TimedOut { after }))
    }
}
