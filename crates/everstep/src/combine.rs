//! Waiting for several things at once, in an order that replay repeats: children are always polled from
//! first to last, and none of these keeps the waker.

mod unordered;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

pub use unordered::{Buffered, TimedOut, Timeout, Unordered, buffered, map_buffered, timeout};

/// The one of two futures that was ready first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Either<A, B> {
    /// The first.
    Left(A),
    /// The second.
    Right(B),
}

/// Waits for whichever is ready first; if both are, for `a`. The other is dropped.
pub async fn select2<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| {
        if let Poll::Ready(value) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::Left(value));
        }
        b.as_mut().poll(cx).map(Either::Right)
    })
    .await
}

/// Waits for all; results in the order of the futures.
pub async fn join_all<I>(futures: I) -> Vec<<I::Item as Future>::Output>
where
    I: IntoIterator,
    I::Item: Future,
{
    let mut slots: Vec<Slot<I::Item>> = futures.into_iter().map(|f| Slot::Waiting(Box::pin(f))).collect();
    poll_fn(|cx| {
        let mut pending = false;
        for slot in &mut slots {
            if let Slot::Waiting(future) = slot {
                match future.as_mut().poll(cx) {
                    Poll::Ready(value) => *slot = Slot::Ready(value),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    slots
        .into_iter()
        .filter_map(|slot| match slot {
            Slot::Ready(value) => Some(value),
            Slot::Waiting(_) => None,
        })
        .collect()
}

/// Waits for whichever is ready first, the earliest in the list if several are; gives its index too. The
/// others are dropped. Never returns for an empty list.
pub async fn race<I>(futures: I) -> (usize, <I::Item as Future>::Output)
where
    I: IntoIterator,
    I::Item: Future,
{
    let mut all: Vec<Pin<Box<I::Item>>> = futures.into_iter().map(Box::pin).collect();
    poll_fn(|cx| {
        for (index, future) in all.iter_mut().enumerate() {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready((index, value));
            }
        }
        Poll::Pending
    })
    .await
}

enum Slot<F: Future> {
    Waiting(Pin<Box<F>>),
    Ready(F::Output),
}

/// Polls `future` once and keeps its value; what [`join!`](crate::join) expands to.
#[doc(hidden)]
pub fn poll_ready<F: Future>(
    future: Pin<&mut F>,
    value: &mut Option<F::Output>,
    cx: &mut Context<'_>,
) -> bool {
    if value.is_none()
        && let Poll::Ready(ready) = future.poll(cx)
    {
        *value = Some(ready);
    }
    value.is_some()
}

/// Polls `future` once; what [`select!`](crate::select) expands to.
#[doc(hidden)]
pub fn poll_biased<F: Future>(future: Pin<&mut F>, cx: &mut Context<'_>) -> Option<F::Output> {
    match future.poll(cx) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Waits for all of a fixed number of futures; gives a tuple.
///
/// ```
/// # use everstep::{Ctx, StepError, StepFailed};
/// # async fn example(ctx: Ctx) -> Result<(), StepFailed> {
/// let a = ctx.step("a", || async { Ok::<_, StepError>(1) });
/// let b = ctx.step("b", || async { Ok::<_, StepError>(2) });
/// let (a, b) = everstep::join!(a, b);
/// assert_eq!(a? + b?, 3);
/// # Ok(())
/// # }
/// ```
#[macro_export]
macro_rules! join {
    ($($future:expr),+ $(,)?) => {
        $crate::__join!(@ [] $($future,)+)
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __join {
    (@ [$(($fut:ident $val:ident))*]) => {{
        ::std::future::poll_fn(|cx| {
            let mut all = true;
            $(all &= $crate::poll_ready($fut.as_mut(), &mut $val, cx);)*
            if all { ::std::task::Poll::Ready(()) } else { ::std::task::Poll::Pending }
        })
        .await;
        ($(match $val { Some(value) => value, None => ::std::unreachable!("all are ready") },)*)
    }};
    (@ [$($done:tt)*] $future:expr, $($rest:tt)*) => {{
        let mut fut = ::std::pin::pin!(::std::future::IntoFuture::into_future($future));
        let mut val = None;
        $crate::__join!(@ [$($done)* (fut val)] $($rest)*)
    }};
}

/// Waits for whichever of several futures is ready first, the first in the list if several are, and runs
/// its arm. The others are dropped.
///
/// ```
/// # use everstep::Ctx;
/// # use std::time::Duration;
/// # async fn example(ctx: Ctx) {
/// let approved = everstep::select! {
///     decision = ctx.signal::<bool>("decision") => decision.unwrap_or(false),
///     _ = ctx.sleep(Duration::from_secs(3600)) => false,
/// };
/// # let _ = approved;
/// # }
/// ```
#[macro_export]
macro_rules! select {
    ($($pattern:pat = $future:expr => $arm:expr),+ $(,)?) => {
        $crate::__select!(@arms $crate::__select!(@future $($future),+).await; [] [] $(($pattern, $arm))+)
    };
    ($($arms:tt)+) => { $crate::__select_arms!([] $($arms)+) };
}

/// Adds the commas that nobody writes behind an arm in braces.
#[doc(hidden)]
#[macro_export]
macro_rules! __select_arms {
    ([$($done:tt)+]) => { $crate::select!($($done)+) };
    ([$($done:tt)*] $pattern:pat = $future:expr => $arm:block, $($rest:tt)*) => {
        $crate::__select_arms!([$($done)* $pattern = $future => $arm,] $($rest)*)
    };
    ([$($done:tt)*] $pattern:pat = $future:expr => $arm:block $($rest:tt)*) => {
        $crate::__select_arms!([$($done)* $pattern = $future => $arm,] $($rest)*)
    };
    ([$($done:tt)*] $pattern:pat = $future:expr => $arm:expr $(, $($rest:tt)*)?) => {
        $crate::__select_arms!([$($done)* $pattern = $future => $arm,] $($($rest)*)?)
    };
}

/// Nests any number of arms: Either by Either, so that each keeps its own type.
#[doc(hidden)]
#[macro_export]
macro_rules! __select {
    (@future $future:expr) => { ::std::future::IntoFuture::into_future($future) };
    (@future $future:expr, $($rest:expr),+) => {
        $crate::select2(::std::future::IntoFuture::into_future($future), $crate::__select!(@future $($rest),+))
    };
    // An arm's pattern is within a Right for each arm before it, and a Left unless it is the last.
    (@arms $value:expr; [$($done:tt)*] [$($right:tt)*] ($pattern:pat, $arm:expr)) => {
        match $value { $($done)* $crate::__either!([$($right)*] last $pattern) => $arm }
    };
    (@arms $value:expr; [$($done:tt)*] [$($right:tt)*] ($pattern:pat, $arm:expr) $($rest:tt)+) => {
        $crate::__select!(@arms $value;
            [$($done)* $crate::__either!([$($right)*] left $pattern) => $arm,] [$($right)* right] $($rest)+)
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __either {
    ([] last $pattern:pat) => { $pattern };
    ([] left $pattern:pat) => { $crate::Either::Left($pattern) };
    ([right $($right:tt)*] $($rest:tt)+) => { $crate::Either::Right($crate::__either!([$($right)*] $($rest)+)) };
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    async fn when(it: bool) -> u32 {
        if it { ready(7).await } else { pending().await }
    }

    #[tokio::test]
    async fn an_arm_in_braces_needs_no_comma() {
        for wanted in 0..3 {
            let won = crate::select! {
                seven = when(wanted == 0) => { seven }
                seven = when(wanted == 1) => seven + 1,
                _ = when(wanted == 2) => { 9 }
            };
            assert_eq!(won, 7 + wanted);
        }
    }

    #[tokio::test]
    async fn the_first_that_is_ready_wins_among_any_number() {
        for wanted in 0..5 {
            let won = crate::select! {
                seven = when(wanted == 0) => (0, seven),
                seven = when(wanted == 1) => (1, seven),
                seven = when(wanted == 2) => (2, seven),
                seven = when(wanted == 3) => (3, seven),
                seven = when(wanted == 4) => (4, seven),
            };
            assert_eq!(won, (wanted, 7));
        }
        let first = crate::select! { a = ready(1) => a, b = ready(2) => b, _ = pending::<()>() => 3 };
        assert_eq!(first, 1, "the first in the list if several are");
        assert_eq!(crate::select! { only = ready(1) => only }, 1);
    }
}
