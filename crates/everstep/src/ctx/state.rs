//! What a workflow's futures share with the machine that polls them.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use everstep_core::replay::Replay;
use everstep_core::{Failure, OpId, Payload, RetryPolicy, Seq, Timestamp, validate_name};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::RunInfo;
use super::command::CommandOp;
use super::doubt::Guard;
use super::query::Queries;
use super::update::UpdateHandlers;
use super::version::{Known, Versions};

pub(crate) use crate::machine::AttemptFn as Attempt;

thread_local! {
    /// The run whose code this thread runs at the moment; 0 for none.
    static POLLED: Cell<usize> = const { Cell::new(0) };
}

/// See [`Shared::enter`].
pub(crate) struct Polled(usize);

impl Drop for Polled {
    fn drop(&mut self) {
        POLLED.set(self.0);
    }
}

/// The ctx was used outside the workflow's own code: what a panic there carries.
#[derive(Debug)]
pub(crate) struct CtxMisuse(&'static Location<'static>);

impl fmt::Display for CtxMisuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ctx was used at {} inside a step, a query's handler or another task: only the workflow's own code may use it",
            self.0
        )
    }
}

/// One run's state and what never changes about it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) info: RunInfo,
    /// The policy of steps whose code sets none.
    pub(crate) step_retry: RetryPolicy,
    state: Mutex<State>,
}

impl Shared {
    pub(crate) fn new(
        info: RunInfo,
        step_retry: RetryPolicy,
        seed: u64,
        at: Timestamp,
        known: Known,
    ) -> Self {
        Self {
            info,
            step_retry,
            state: Mutex::new(State {
                replay: Replay::default(),
                ops: Vec::new(),
                fresh: Vec::new(),
                awaited: BTreeSet::new(),
                signals: BTreeMap::new(),
                signal_waits: Vec::new(),
                queries: Queries::default(),
                update_handlers: UpdateHandlers::default(),
                updates_running: 0,
                waits: Vec::new(),
                changes: 0,
                cancel_requested: false,
                replaying: true,
                activation: 0,
                history_bytes: 0,
                at,
                rng: ChaCha8Rng::seed_from_u64(seed),
                versions: Versions::new(known),
            }),
        }
    }

    /// Marks this run's code as the one that the calling thread runs, until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Polled {
        Polled(POLLED.replace(Arc::as_ptr(self) as usize))
    }

    /// What a step's closure or a spawned task builds would be numbered at random.
    pub(crate) fn check_polled(self: &Arc<Self>, source: &'static Location<'static>) {
        Self::check_polled_at(Arc::as_ptr(self), source);
    }

    /// As [`check_polled`](Self::check_polled), for what does not keep the run's state alive.
    pub(crate) fn check_polled_at(this: *const Self, source: &'static Location<'static>) {
        if POLLED.get() != this as usize {
            std::panic::panic_any(CtxMisuse(source));
        }
    }

    /// Held for moments only, never across a poll of user code.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the history and the code have said so far.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) replay: Replay,
    pub(crate) ops: Vec<OpState>,
    /// Operations to look at when work is taken next.
    pub(crate) fresh: Vec<OpId>,
    /// Operations that others carry out and that have no end yet.
    pub(crate) awaited: BTreeSet<OpId>,
    /// Signals that the workflow has not taken, by name.
    pub(crate) signals: BTreeMap<String, VecDeque<(Seq, Payload)>>,
    /// Signals that the code waits for, and where it does.
    pub(crate) signal_waits: Vec<(String, &'static Location<'static>)>,
    /// What others may ask.
    pub(crate) queries: Queries,
    /// What others may have done.
    pub(crate) update_handlers: UpdateHandlers,
    /// Handlers of updates that have not ended.
    pub(crate) updates_running: usize,
    /// Where the code waits for conditions.
    pub(crate) waits: Vec<&'static Location<'static>>,
    /// Counts what the code has changed of its own that other code of the run may wait for.
    pub(crate) changes: u64,
    pub(crate) cancel_requested: bool,
    pub(crate) replaying: bool,
    /// Events applied so far: one event, one activation.
    pub(crate) activation: u64,
    /// Bytes of users' values in those events.
    pub(crate) history_bytes: u64,
    pub(crate) at: Timestamp,
    rng: ChaCha8Rng,
    pub(crate) versions: Versions,
}

/// An operation that the code has built.
#[derive(Debug)]
pub(crate) enum OpState {
    Step(Box<StepOp>),
    Timer(TimerOp),
    Command(Box<CommandOp>),
}

/// A step as far as code and history have gone.
pub(crate) struct StepOp {
    pub(crate) name: String,
    pub(crate) attempt: Attempt,
    pub(crate) policy: RetryPolicy,
    pub(crate) timeout: Option<Duration>,
    /// The code awaits it, or did.
    pub(crate) requested: bool,
    /// The code let go of it.
    pub(crate) dropped: bool,
    /// Greatest attempt recorded.
    pub(crate) recorded: u32,
    pub(crate) retry_at: Option<Timestamp>,
    pub(crate) outcome: Option<Result<Payload, Failure>>,
    /// This worker runs an attempt, or waits for the record of its end.
    pub(crate) in_flight: bool,
    /// Set for a guarded step: what its code does about a doubt.
    pub(crate) guard: Option<Guard>,
    /// A guarded attempt is recorded as begun, and its end is not.
    pub(crate) begun: bool,
    /// The attempt of which nobody knows whether it had its effect.
    pub(crate) doubt: Option<u32>,
}

impl fmt::Debug for StepOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepOp")
            .field("name", &self.name)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

impl StepOp {
    /// Why the server would refuse this step. It depends on the code alone, so replay says the same.
    pub(crate) fn unfit(&self) -> Option<Failure> {
        let refused = validate_name("step name", &self.name).and_then(|()| self.policy.validate()).err()?;
        Some(Failure::new("InvalidStep", refused.to_string()).non_retryable())
    }
}

/// A timer as far as code and history have gone.
#[derive(Debug, Default)]
pub(crate) struct TimerOp {
    pub(crate) delay: Duration,
    /// The activation in which the code first awaited it.
    pub(crate) requested: Option<u64>,
    /// The code let go of it.
    pub(crate) canceled: bool,
    /// This worker asked for it.
    pub(crate) emitted: bool,
    pub(crate) started: bool,
    pub(crate) fired: bool,
    /// This worker, or the history, has canceled it.
    pub(crate) cancel_emitted: bool,
}

impl State {
    pub(crate) fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.at.as_micros()).unwrap_or_default()
    }

    pub(crate) fn random(&mut self) -> u64 {
        self.rng.next_u64()
    }

    pub(crate) fn step(&mut self, id: OpId) -> Option<&mut StepOp> {
        match self.ops.get_mut((id.0 as usize).checked_sub(1)?) {
            Some(OpState::Step(step)) => Some(step),
            _ => None,
        }
    }

    pub(crate) fn timer(&mut self, id: OpId) -> Option<&mut TimerOp> {
        match self.ops.get_mut((id.0 as usize).checked_sub(1)?) {
            Some(OpState::Timer(timer)) => Some(timer),
            _ => None,
        }
    }
}
