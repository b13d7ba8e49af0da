//! What stands in for a step.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use everstep_core::{Failure, Payload};
use serde::Serialize;

use crate::{StepError, StepInfo, payload};

type Answer = Arc<dyn Fn(&StepInfo) -> Result<Payload, Failure> + Send + Sync>;

/// How the steps of one name behave in a test.
///
/// A mock that stands in for a step with [`in_doubt`](crate::Step::in_doubt) stands in for its probe too, which then
/// says what really happened.
///
/// ```
/// use everstep::StepError;
/// use everstep::testing::Mock;
/// use std::time::Duration;
///
/// let flaky = Mock::returns(42).fails_first(2, StepError::new("Unavailable", "503"));
/// let slow = Mock::real().takes(Duration::from_secs(90));
/// let echo = Mock::with(|info| Ok(info.idempotency_key.clone()));
/// ```
#[derive(Clone)]
#[must_use = "a mock does nothing until an environment has it"]
pub struct Mock {
    /// `None` for the step's own closure.
    answer: Option<Answer>,
    fails_first: Option<(u32, Failure)>,
    silent_first: u32,
    takes: Duration,
}

impl fmt::Debug for Mock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mock")
            .field("real", &self.answer.is_none())
            .field("fails_first", &self.fails_first)
            .field("silent_first", &self.silent_first)
            .field("takes", &self.takes)
            .finish()
    }
}

impl Mock {
    /// Every attempt returns `value`. It must be of the step's type: a workflow that gets something else sees a
    /// failure of kind `Payload`.
    pub fn returns<T: Serialize>(value: T) -> Self {
        let answer = encoded(&value);
        Self::answering(move |_| answer.clone())
    }

    /// Every attempt fails with `error`.
    pub fn fails(error: StepError) -> Self {
        Self::answering(move |_| Err(error.0.clone()))
    }

    /// Each attempt calls `answer`.
    pub fn with<T, F>(answer: F) -> Self
    where
        T: Serialize,
        F: Fn(&StepInfo) -> Result<T, StepError> + Send + Sync + 'static,
    {
        Self::answering(move |info| encoded(&answer(info).map_err(|error| error.0)?))
    }

    /// The step's own closure runs: for what [`fails_first`](Self::fails_first) and [`takes`](Self::takes) add.
    pub fn real() -> Self {
        Self { answer: None, fails_first: None, silent_first: 0, takes: Duration::ZERO }
    }

    /// The first so many attempts of each step fail with `error`.
    pub fn fails_first(mut self, attempts: u32, error: StepError) -> Self {
        self.fails_first = Some((attempts, error.0));
        self
    }

    /// The first so many attempts of each queued step have their effect, and then neither beat nor end: their worker
    /// hangs. [`heartbeat`](crate::Queued::heartbeat) or [`start_to_close`](crate::Queued::start_to_close) of the step finds
    /// that, and the next attempt gets what the code last said. Nothing for an inline step.
    ///
    /// ```
    /// # use everstep::testing::Mock;
    /// let hangs_once = Mock::real().silent_first(1);
    /// ```
    pub fn silent_first(mut self, attempts: u32) -> Self {
        self.silent_first = attempts;
        self
    }

    /// How long each attempt takes, in virtual time. One that takes longer than the step's timeout has had its
    /// effect and ends as failed with kind `StepTimeout`. It beats meanwhile: see [`silent_first`](Self::silent_first) for
    /// one that does not.
    pub fn takes(mut self, time: Duration) -> Self {
        self.takes = time;
        self
    }

    fn answering(answer: impl Fn(&StepInfo) -> Result<Payload, Failure> + Send + Sync + 'static) -> Self {
        Self { answer: Some(Arc::new(answer)), ..Self::real() }
    }

    /// How an attempt ends; `None` when the step's own closure says.
    pub(super) fn answer(&self, info: &StepInfo) -> Option<Result<Payload, Failure>> {
        if let Some((attempts, failure)) = &self.fails_first
            && info.attempt <= *attempts
        {
            return Some(Err(failure.clone()));
        }
        self.answer.as_ref().map(|answer| answer(info))
    }

    /// Whether it stands in for the step, and so for its probe.
    pub(super) fn answers(&self) -> bool {
        self.answer.is_some()
    }

    /// Whether the attempt is not heard of again.
    pub(super) fn goes_silent(&self, info: &StepInfo) -> bool {
        info.attempt <= self.silent_first
    }

    pub(super) fn time(&self) -> Duration {
        self.takes
    }
}

fn encoded<T: Serialize>(value: &T) -> Result<Payload, Failure> {
    payload::encode_checked(value).map_err(|(kind, problem)| Failure::new(kind, problem).non_retryable())
}
