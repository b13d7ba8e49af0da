//! Sleeps, signals, and the wish to stop. None of them touches the waker: the machine polls again after
//! every event.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use everstep_core::replay::OpKind;
use everstep_core::{OpId, limits};
use serde::de::DeserializeOwned;

use super::{OpState, Shared, TimerOp};
use crate::payload;

/// A durable sleep. Dropping it before its end cancels its timer.
#[must_use = "a sleep does nothing until it is awaited"]
#[derive(Debug)]
pub struct Sleep {
    shared: Arc<Shared>,
    id: OpId,
}

impl Sleep {
    pub(super) fn build(shared: Arc<Shared>, delay: Duration, source: &'static Location<'static>) -> Self {
        shared.check_polled(source);
        let delay = delay.min(limits::DURATION_MAX.to_std());
        let id = {
            let mut state = shared.lock();
            let id = state.replay.build(OpKind::Timer, source);
            state.ops.push(OpState::Timer(TimerOp { delay, ..TimerOp::default() }));
            id
        };
        Self { shared, id }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<()> {
        let id = self.id;
        let mut state = self.shared.lock();
        let activation = state.activation;
        let Some(timer) = state.timer(id) else { return Poll::Pending };
        if timer.fired {
            return Poll::Ready(());
        }
        if timer.requested.is_none() {
            timer.requested = Some(activation);
            state.fresh.push(id);
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let id = self.id;
        let mut state = self.shared.lock();
        let activation = state.activation;
        if let Some(timer) = state.timer(id)
            && !timer.fired
            && let Some(requested) = timer.requested
        {
            timer.canceled = true;
            if requested == activation {
                // Built and dropped between two events: nobody ever asked for it, here or in the original.
                timer.requested = None;
            } else {
                state.fresh.push(id);
            }
        }
    }
}

/// The next signal of a name.
#[must_use = "a signal is not taken until it is awaited"]
#[derive(Debug)]
pub struct Signal<T> {
    shared: Arc<Shared>,
    name: String,
    source: &'static Location<'static>,
    /// It is listed among what the code waits for.
    listed: bool,
    value: PhantomData<fn() -> T>,
}

impl<T> Signal<T> {
    pub(super) fn build(shared: Arc<Shared>, name: String, source: &'static Location<'static>) -> Self {
        Self { shared, name, source, listed: false, value: PhantomData }
    }
}

impl<T: DeserializeOwned> Future for Signal<T> {
    type Output = Result<T, serde_json::Error>;

    fn poll(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Whoever polls takes the signal: nobody but the workflow may.
        self.shared.check_polled(self.source);
        let this = &mut *self;
        let mut state = this.shared.lock();
        if let Some((_, value)) = state.signals.get_mut(&this.name).and_then(VecDeque::pop_front) {
            state.changes += 1;
            return Poll::Ready(payload::decode(&value));
        }
        if !std::mem::replace(&mut this.listed, true) {
            state.signal_waits.push((this.name.clone(), this.source));
        }
        Poll::Pending
    }
}

impl<T> Drop for Signal<T> {
    fn drop(&mut self) {
        if !self.listed {
            return;
        }
        let waits = &mut self.shared.lock().signal_waits;
        if let Some(i) = waits.iter().position(|(name, source)| (name, *source) == (&self.name, self.source))
        {
            waits.remove(i);
        }
    }
}

/// Ready once somebody has asked the run to stop.
#[must_use = "waits only when it is awaited"]
#[derive(Debug)]
pub struct Canceled {
    shared: Arc<Shared>,
}

impl Canceled {
    pub(super) fn build(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Future for Canceled {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.lock().cancel_requested { Poll::Ready(()) } else { Poll::Pending }
    }
}
