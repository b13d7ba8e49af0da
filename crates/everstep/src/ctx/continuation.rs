//! Going on in a new run: a workflow that never ends keeps its history short.

use std::time::Duration;

use everstep_core::{CommitCommand, Continuation, Failure, Payload, Seq, limits, validate_name};
use serde::Serialize;

use super::Ctx;
use crate::{WorkflowError, payload};

/// How a workflow goes on in a new run; made with [`ContinueAsNew::new`], returned as an error.
///
/// ```
/// # use everstep::{ContinueAsNew, Ctx, WorkflowError};
/// async fn poll(ctx: Ctx, page: u64) -> Result<(), WorkflowError> {
///     ctx.sleep(std::time::Duration::from_secs(60)).await;
///     Err(ContinueAsNew::new(&(page + 1)).task_queue("slow").into())
/// }
/// ```
#[must_use = "nothing goes on until the workflow returns it as its error"]
#[derive(Clone, Debug)]
pub struct ContinueAsNew {
    workflow_type: String,
    task_queue: String,
    input: Result<Payload, Failure>,
    run_timeout: Option<Duration>,
}

impl ContinueAsNew {
    /// The same workflow goes on with this input.
    pub fn new<I: Serialize + ?Sized>(input: &I) -> Self {
        let input = payload::encode_checked(input).map_err(|(kind, text)| Failure::new(kind, text));
        Self { workflow_type: String::new(), task_queue: String::new(), input, run_timeout: None }
    }

    /// Another workflow goes on.
    pub fn workflow_type(mut self, workflow_type: impl Into<String>) -> Self {
        self.workflow_type = workflow_type.into();
        self
    }

    /// Workers of another queue go on.
    pub fn task_queue(mut self, queue: impl Into<String>) -> Self {
        self.task_queue = queue.into();
        self
    }

    /// The new run's longest life. Without it, as long as that of this run.
    pub fn run_timeout(mut self, timeout: Duration) -> Self {
        self.run_timeout = Some(timeout);
        self
    }

    /// Why the server would refuse it. It depends on the code alone, so replay says the same.
    fn unfit(&self) -> Option<Failure> {
        if let Err(failure) = &self.input {
            return Some(failure.clone());
        }
        let names = [("workflow_type", &self.workflow_type), ("task_queue", &self.task_queue)];
        let refused = names.into_iter().filter(|(_, name)| !name.is_empty());
        let refused = refused.filter_map(|(field, name)| validate_name(field, name).err()).next();
        let limit = self.run_timeout.is_some_and(|t| {
            t < Duration::from_micros(1) || everstep_core::Duration::from(t) > limits::DURATION_MAX
        });
        let problem = match refused {
            Some(refused) => refused.to_string(),
            None if limit => "run_timeout must be more than zero and at most 100 years".to_owned(),
            None => return None,
        };
        Some(Failure::new("InvalidContinuation", problem).non_retryable())
    }
}

impl From<ContinueAsNew> for WorkflowError {
    /// What cannot be recorded fails the run and says why.
    fn from(next: ContinueAsNew) -> Self {
        match next.unfit() {
            Some(failure) => Self::Failed(failure),
            None => Self::Continued(Box::new(next)),
        }
    }
}

impl Ctx {
    /// Ends this run and goes on in a new one: the same workflow with the same workflow id, this input and an empty
    /// history. Signals that were not taken, and a request to stop, are there again. Return it as the error; see
    /// [`ContinueAsNew`] for more.
    ///
    /// ```
    /// # use everstep::{Ctx, StepError, WorkflowError};
    /// async fn remind(ctx: Ctx, mut sent: u64) -> Result<(), WorkflowError> {
    ///     loop {
    ///         ctx.sleep(std::time::Duration::from_secs(24 * 3600)).await;
    ///         ctx.step("remind", || async { Ok::<_, StepError>(()) }).await?;
    ///         sent += 1;
    ///         if ctx.should_continue_as_new() {
    ///             return Err(ctx.continue_as_new(&sent));
    ///         }
    ///     }
    /// }
    /// ```
    #[must_use = "nothing goes on until the workflow returns it as its error"]
    pub fn continue_as_new<I: Serialize + ?Sized>(&self, input: &I) -> WorkflowError {
        ContinueAsNew::new(input).into()
    }

    /// True once the history is so long that going on in a new run is cheaper: 10,000 events, or 10 MiB of values. The
    /// same under replay.
    pub fn should_continue_as_new(&self) -> bool {
        let state = self.shared.lock();
        state.activation >= limits::CONTINUE_EVENTS || state.history_bytes >= limits::CONTINUE_BYTES
    }
}

/// The command that ends a run.
pub(crate) fn end_of(outcome: Result<Payload, WorkflowError>, unconsumed: Vec<Seq>) -> CommitCommand {
    match outcome {
        Ok(result) => CommitCommand::CompleteRun { result, unconsumed },
        Err(WorkflowError::Failed(failure)) => CommitCommand::FailRun { failure, unconsumed },
        Err(WorkflowError::Canceled(details)) => CommitCommand::CancelRun { details },
        Err(WorkflowError::Continued(next)) => {
            let ContinueAsNew { workflow_type, task_queue, input, run_timeout } = *next;
            CommitCommand::ContinueAsNew(Box::new(Continuation {
                workflow_type,
                task_queue,
                // What does not encode has become a failure before.
                input: input.unwrap_or_default(),
                run_timeout: run_timeout.map(Into::into),
                unconsumed,
            }))
        }
    }
}
