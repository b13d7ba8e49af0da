//! Queued steps: what the code asks for, and any worker of a task queue runs.

use std::marker::PhantomData;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use everstep_core::replay::OpKind;
use everstep_core::{
    CommitCommand, DoubtPolicy, Failure, OpId, Payload, QueuedOptions, RetryPolicy, StepScheduled, limits,
    validate_name,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::command::CommandOp;
use super::{Ctx, Shared};
use crate::{StepFailed, payload};

/// A step that workers of a task queue run, by its name: the contract between the workflow that asks for it and the
/// worker that has it, which need not be the same program.
///
/// ```
/// use everstep::StepType;
///
/// struct Transcode;
///
/// impl StepType for Transcode {
///     const NAME: &'static str = "transcode";
///     type Input = String;
///     type Output = u64;
/// }
/// ```
pub trait StepType: 'static {
    /// What workers register it as.
    const NAME: &'static str;
    /// Its argument.
    type Input: Serialize + DeserializeOwned + Send + 'static;
    /// What it returns.
    type Output: Serialize + DeserializeOwned + Send + 'static;
}

/// What becomes of a queued step when a worker is lost in the middle of an attempt, or takes too long over one: nobody
/// knows then whether it had its effect. See [`Queued::in_doubt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueuedDoubt {
    /// The next attempt begins: the effect may happen twice.
    Retry,
    /// The step waits until a person says what became of it: `everstep step resolve`.
    AskHuman,
    /// The step fails for good, with kind `InDoubt`.
    Fail,
}

/// A queued step that was built and not awaited yet; await it to have it run.
///
/// Dropping one that was asked for asks its worker to stop: see [`StepCtx::canceled`](crate::StepCtx::canceled).
#[must_use = "a step does nothing until it is awaited"]
#[derive(Debug)]
pub struct Queued<S> {
    shared: Arc<Shared>,
    id: OpId,
    /// Why it can never be asked for. It depends on the code alone, so replay says the same.
    refused: Option<Failure>,
    step: PhantomData<fn() -> S>,
}

impl Ctx {
    /// A step that runs elsewhere: a worker that has registered it takes it from a task queue, which may be that of
    /// another program. The run costs nothing while it waits, and is free to move.
    ///
    /// The default retry policy is that of [`Ctx::step`]. Without [`Queued::heartbeat`] and [`Queued::start_to_close`]
    /// the loss of its worker is noticed when the worker's session ends, after 10 s by default.
    ///
    /// ```
    /// # use everstep::{Ctx, StepFailed, StepType};
    /// # use std::time::Duration;
    /// # struct Transcode;
    /// # impl StepType for Transcode {
    /// #     const NAME: &'static str = "transcode";
    /// #     type Input = String;
    /// #     type Output = u64;
    /// # }
    /// # async fn example(ctx: Ctx, url: String) -> Result<u64, StepFailed> {
    /// ctx.run::<Transcode>(url)
    ///     .task_queue("video")
    ///     .heartbeat(Duration::from_secs(10))
    ///     .start_to_close(Duration::from_secs(2 * 3600))
    ///     .await
    /// # }
    /// ```
    #[track_caller]
    pub fn run<S: StepType>(&self, input: S::Input) -> Queued<S> {
        let shared = Arc::clone(&self.shared);
        let (input, refused) = match payload::encode_checked(&input) {
            Ok(input) => (input, None),
            Err((kind, problem)) => (Payload::default(), Some(Failure::new(kind, problem).non_retryable())),
        };
        let retry = shared.step_retry.clone();
        let id = shared.build_command(OpKind::Queued(S::NAME.to_owned()), Location::caller(), |step| {
            let options = QueuedOptions { retry, ..QueuedOptions::default() };
            let scheduled = StepScheduled { step, name: S::NAME.to_owned(), input, options };
            CommandOp::new(
                CommitCommand::ScheduleStep(Box::new(scheduled)),
                Some(CommitCommand::CancelStep { step }),
            )
        });
        Queued { shared, id, refused, step: PhantomData }
    }
}

impl<S> Queued<S> {
    fn set(self, change: impl FnOnce(&mut QueuedOptions)) -> Self {
        if let Some(op) = self.shared.lock().command(self.id)
            && let Some(CommitCommand::ScheduleStep(scheduled)) = &mut op.command
        {
            change(&mut scheduled.options);
        }
        self
    }

    /// Takes it to the workers of this queue. Default: the run's own queue.
    pub fn task_queue(self, queue: impl Into<String>) -> Self {
        self.set(|options| options.task_queue = queue.into())
    }

    /// When and how often a failed attempt is followed by another.
    pub fn retry(self, policy: RetryPolicy) -> Self {
        self.set(|options| options.retry = policy)
    }

    /// One attempt only; that of a worker that is lost does not count.
    pub fn no_retry(self) -> Self {
        self.retry(RetryPolicy::none())
    }

    /// From 1, which is served first, to 5. Default 3. Among steps of one priority the oldest is first.
    pub fn priority(self, priority: u8) -> Self {
        self.set(|options| options.priority = priority)
    }

    /// Fails the step when no worker takes an attempt in time.
    pub fn schedule_to_start(self, limit: Duration) -> Self {
        self.set(|options| options.schedule_to_start = Some(limit.into()))
    }

    /// Ends an attempt that takes longer.
    pub fn start_to_close(self, limit: Duration) -> Self {
        self.set(|options| options.start_to_close = Some(limit.into()))
    }

    /// Fails the step when it takes longer in all, with its attempts and the waits between them.
    pub fn schedule_to_close(self, limit: Duration) -> Self {
        self.set(|options| options.schedule_to_close = Some(limit.into()))
    }

    /// Ends an attempt that does not say for so long how far it is: see
    /// [`StepCtx::heartbeat`](crate::StepCtx::heartbeat).
    pub fn heartbeat(self, limit: Duration) -> Self {
        self.set(|options| options.heartbeat = Some(limit.into()))
    }

    /// What becomes of the step when its worker is lost or takes too long. Default: the next attempt begins.
    pub fn in_doubt(self, policy: QueuedDoubt) -> Self {
        self.set(|options| {
            options.in_doubt = Some(match policy {
                QueuedDoubt::Retry => DoubtPolicy::Retry,
                QueuedDoubt::AskHuman => DoubtPolicy::AskHuman,
                QueuedDoubt::Fail => DoubtPolicy::Fail,
            });
        })
    }

    /// Why the server would refuse it.
    fn unfit(&self) -> Option<Failure> {
        if let Some(refused) = &self.refused {
            return Some(refused.clone());
        }
        let mut state = self.shared.lock();
        let Some(CommitCommand::ScheduleStep(scheduled)) = &state.command(self.id)?.command else {
            return None;
        };
        let problem = problem(scheduled)?;
        Some(Failure::new("InvalidStep", problem).non_retryable())
    }
}

fn problem(scheduled: &StepScheduled) -> Option<String> {
    let StepScheduled { name, options, .. } = scheduled;
    let QueuedOptions { task_queue, priority, retry, .. } = options;
    let named = || if task_queue.is_empty() { Ok(()) } else { validate_name("task queue", task_queue) };
    if let Err(refused) =
        validate_name("step name", name).and_then(|()| named()).and_then(|()| retry.validate())
    {
        return Some(refused.to_string());
    }
    if !(1..=QueuedOptions::PRIORITY_LAST).contains(priority) {
        return Some(format!("the priority {priority} is not from 1 to {}", QueuedOptions::PRIORITY_LAST));
    }
    let times = [
        ("schedule_to_start", options.schedule_to_start),
        ("start_to_close", options.start_to_close),
        ("schedule_to_close", options.schedule_to_close),
        ("heartbeat", options.heartbeat),
    ];
    times.into_iter().find_map(|(field, limit)| match limit? {
        everstep_core::Duration::ZERO => Some(format!("{field} is zero")),
        limit if limit > limits::DURATION_MAX => Some(format!("{field} is longer than 100 years")),
        _ => None,
    })
}

impl<S: StepType> Future for Queued<S> {
    type Output = Result<S::Output, StepFailed>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        let failed = |failure| Poll::Ready(Err(StepFailed { step: S::NAME.to_owned(), failure }));
        if let Some(failure) = self.unfit() {
            return failed(failure);
        }
        match self.shared.poll_command(self.id) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(failure)) => failed(failure),
            Poll::Ready(Ok(value)) => match payload::decode(&value) {
                Ok(value) => Poll::Ready(Ok(value)),
                Err(e) => {
                    failed(Failure::new("Payload", format!("the recorded result is not of this type: {e}")))
                }
            },
        }
    }
}

impl<S> Drop for Queued<S> {
    fn drop(&mut self) {
        self.shared.drop_command(self.id);
    }
}
