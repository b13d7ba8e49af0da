//! A run and what happens to it from outside.

use std::time::Duration;

use everstep_core::{Payload, RetryPolicy};
use serde::Serialize;

use crate::payload;

/// A start of a workflow, and what its callers do then.
///
/// ```
/// use everstep::testing::Scenario;
/// use std::time::Duration;
///
/// let scenario = Scenario::new("order", &"order-17")
///     .signal_after(Duration::from_secs(5), "approve", &true)
///     .cancel_after(Duration::from_secs(3600), "too late");
/// ```
#[derive(Clone, Debug)]
#[must_use = "a scenario does nothing until it is played"]
pub struct Scenario {
    pub(super) workflow_type: String,
    pub(super) input: Result<Payload, String>,
    pub(super) workflow_id: Option<String>,
    pub(super) request_id: Option<String>,
    pub(super) run_timeout: Option<Duration>,
    pub(super) start_delay: Option<Duration>,
    pub(super) retry: Option<RetryPolicy>,
    pub(super) acts: Vec<(Duration, Act)>,
}

/// What a caller does.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Signal { name: String, input: Result<Payload, String> },
    Cancel { reason: String },
}

impl Scenario {
    /// Starts the workflow that is registered under this name.
    pub fn new<I: Serialize + ?Sized>(workflow: impl Into<String>, input: &I) -> Self {
        Self {
            workflow_type: workflow.into(),
            input: encoded(input),
            workflow_id: None,
            request_id: None,
            run_timeout: None,
            start_delay: None,
            retry: None,
            acts: Vec::new(),
        }
    }

    /// The run's business key. Default: one that nobody else has.
    pub fn workflow_id(mut self, id: impl Into<String>) -> Self {
        self.workflow_id = Some(id.into());
        self
    }

    /// The caller's id of the start: the same id starts one run of the workflow id only. Default: one that nobody
    /// else has.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = Some(id.into());
        self
    }

    /// The run's longest life.
    pub fn run_timeout(mut self, timeout: Duration) -> Self {
        self.run_timeout = Some(timeout);
        self
    }

    /// The run has no worker before this time is over.
    pub fn start_delay(mut self, delay: Duration) -> Self {
        self.start_delay = Some(delay);
        self
    }

    /// Tries again in a new run when one fails or outlives its run timeout.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// Sends a signal so long after the start.
    ///
    /// A caller waits for the answer to one signal before it sends the next, so under [`simulate`](super::simulate)
    /// signals may be late but keep their order; signals of the same instant come from several callers, and do not.
    pub fn signal_after<T: Serialize + ?Sized>(
        mut self,
        delay: Duration,
        name: impl Into<String>,
        value: &T,
    ) -> Self {
        self.acts.push((delay, Act::Signal { name: name.into(), input: encoded(value) }));
        self
    }

    /// Asks the run to stop so long after the start.
    pub fn cancel_after(mut self, delay: Duration, reason: impl Into<String>) -> Self {
        self.acts.push((delay, Act::Cancel { reason: reason.into() }));
        self
    }
}

pub(super) fn encoded<T: Serialize + ?Sized>(value: &T) -> Result<Payload, String> {
    payload::encode_checked(value).map_err(|(_, problem)| problem)
}
