//! Children: other workflows that a workflow starts, and waits for if it likes.

use std::future::IntoFuture;
use std::marker::PhantomData;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use everstep_core::replay::OpKind;
use everstep_core::{
    ChildOutcome, ChildScheduled, CommitCommand, ExternalTarget, Failure, OpId, ParentClose, Payload,
    RetryPolicy, ReusePolicy, RunId, limits, validate_name,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::command::CommandOp;
use super::external::ExternalOp;
use super::{Ctx, Shared};
use crate::{ChildError, IntoAttribute, payload};

/// What a child's events have said.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChildNotes {
    /// The run that it begins as, once it is recorded.
    run_id: Option<RunId>,
    started: bool,
    closed: Option<ChildOutcome>,
}

/// A child that was built and not awaited yet. Await it for its result, or [`Child::start`] it and go on.
///
/// Dropping one that was asked for does nothing to the child.
#[must_use = "a child does nothing until it is awaited or started"]
#[derive(Debug)]
pub struct Child<R> {
    op: Op,
    result: PhantomData<fn() -> R>,
}

/// A child that has begun. Dropping it does nothing to the child.
#[derive(Debug)]
pub struct ChildHandle<R> {
    op: Op,
    run_id: RunId,
    result: PhantomData<fn() -> R>,
}

/// Waits for a child's result: what awaiting a [`Child`] becomes.
#[must_use = "futures do nothing until they are awaited"]
#[derive(Debug)]
pub struct ChildFuture<R> {
    op: Op,
    result: PhantomData<fn() -> R>,
}

/// Waits until a child has begun.
struct Starting<'a>(&'a Op);

/// The operation behind all of these.
#[derive(Debug)]
struct Op {
    shared: Arc<Shared>,
    id: OpId,
    workflow_type: String,
    /// Why it can never be asked for. It depends on the code alone, so replay says the same.
    refused: Option<Failure>,
}

impl Ctx {
    /// Another workflow, run as a child of this one: a run of its own, with its own history, retries and worker,
    /// which may be in another program. Its result is an `R`.
    ///
    /// A child is started once, whatever crashes. When this workflow ends before it, the child is stopped; see
    /// [`Child::on_parent_close`]. To continue as new is such an end.
    ///
    /// ```
    /// # use everstep::{ChildError, Ctx};
    /// # async fn example(ctx: Ctx) -> Result<u64, ChildError> {
    /// let total: u64 = ctx.child("count", 10).await?;
    /// # Ok(total)
    /// # }
    /// ```
    ///
    /// A thousand of them, twenty at a time:
    ///
    /// ```
    /// # use everstep::{ChildError, Ctx};
    /// # async fn example(ctx: Ctx) -> Result<u64, ChildError> {
    /// let children = (0..1_000u32).map(|n| ctx.child::<u64>("count", n).into_future());
    /// let mut done = everstep::buffered(children, 20);
    /// let mut sum = 0;
    /// while let Some(counted) = done.next().await {
    ///     sum += counted?;
    /// }
    /// # Ok(sum)
    /// # }
    /// # use std::future::IntoFuture;
    /// ```
    #[track_caller]
    pub fn child<R: DeserializeOwned>(
        &self,
        workflow_type: impl Into<String>,
        input: impl Serialize,
    ) -> Child<R> {
        let (shared, workflow_type) = (Arc::clone(&self.shared), workflow_type.into());
        let (input, refused) = match payload::encode_checked(&input) {
            Ok(input) => (input, None),
            Err((kind, problem)) => (Payload::default(), Some(Failure::new(kind, problem).non_retryable())),
        };
        let kind = OpKind::Child(workflow_type.clone());
        let id = shared.build_command(kind, Location::caller(), |child| {
            let scheduled = ChildScheduled {
                child,
                run_id: RunId::from_uuid(Uuid::nil()),
                workflow_type: workflow_type.clone(),
                workflow_id: String::new(),
                task_queue: String::new(),
                input,
                run_timeout: None,
                retry: None,
                reuse: ReusePolicy::default(),
                on_parent_close: ParentClose::default(),
                report_start: false,
                notes: everstep_core::Notes::default(),
            };
            CommandOp::new(CommitCommand::StartChild(Box::new(scheduled)), None)
        });
        Child { op: Op { shared, id, workflow_type, refused }, result: PhantomData }
    }
}

impl<R> Child<R> {
    fn set(self, change: impl FnOnce(&mut ChildScheduled)) -> Self {
        self.op.change(change);
        self
    }

    /// Its business key. Default: one made of this run's id.
    pub fn workflow_id(self, id: impl Into<String>) -> Self {
        self.set(|child| child.workflow_id = id.into())
    }

    /// What to do when a run that has ended holds the workflow id. Default: the child begins. A run that is open and
    /// holds it keeps it: the child does not begin.
    pub fn reuse(self, policy: ReusePolicy) -> Self {
        self.set(|child| child.reuse = policy)
    }

    /// Queue whose workers run it. Default: this run's own.
    pub fn task_queue(self, queue: impl Into<String>) -> Self {
        self.set(|child| child.task_queue = queue.into())
    }

    /// Longest life of each of its runs.
    pub fn run_timeout(self, limit: Duration) -> Self {
        self.set(|child| child.run_timeout = Some(limit.into()))
    }

    /// Starts the child over when it fails, as a new run. This workflow hears of the last one only.
    pub fn retry(self, policy: RetryPolicy) -> Self {
        self.set(|child| child.retry = Some(policy))
    }

    /// Sets a search attribute of the child, which lists find it by from its start; no value sets nothing. One that the
    /// namespace has not declared, or with another type, is shown but not found.
    ///
    /// ```
    /// # use everstep::{ChildError, Ctx};
    /// # async fn example(ctx: Ctx) -> Result<u64, ChildError> {
    /// let parcel = ctx.child::<u64>("ship", 10).attribute("customer", "acme").memo("note", &"fragile");
    /// parcel.await
    /// # }
    /// ```
    pub fn attribute(self, name: impl Into<String>, value: impl IntoAttribute) -> Self {
        match value.into_attribute() {
            Some(value) => self.set(|child| drop(child.notes.attributes.insert(name.into(), value))),
            None => self,
        }
    }

    /// Says something about the child that is shown with it.
    pub fn memo<T: Serialize + ?Sized>(mut self, name: impl Into<String>, value: &T) -> Self {
        match payload::encode_checked(value) {
            Ok(value) => self.set(|child| drop(child.notes.memo.insert(name.into(), value))),
            Err((kind, problem)) => {
                self.op.refused.get_or_insert_with(|| Failure::new(kind, problem).non_retryable());
                self
            }
        }
    }

    /// What becomes of the child when this workflow ends first. Default: it is stopped by force.
    pub fn on_parent_close(self, policy: ParentClose) -> Self {
        self.set(|child| child.on_parent_close = policy)
    }

    /// Starts it, and waits until it has begun.
    ///
    /// ```
    /// # use everstep::{ChildError, Ctx};
    /// # async fn example(ctx: Ctx) -> Result<u64, ChildError> {
    /// let counter = ctx.child::<u64>("count", 10).workflow_id("counter").start().await?;
    /// let sent = counter.signal("more", &5).await;
    /// counter.result().await
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ChildError::NotStarted`], for example because its workflow id is taken.
    pub async fn start(self) -> Result<ChildHandle<R>, ChildError> {
        self.op.change(|child| child.report_start = true);
        let run_id = Starting(&self.op).await?;
        Ok(ChildHandle { op: self.op, run_id, result: PhantomData })
    }
}

impl<R: DeserializeOwned> IntoFuture for Child<R> {
    type Output = Result<R, ChildError>;
    type IntoFuture = ChildFuture<R>;

    fn into_future(self) -> ChildFuture<R> {
        ChildFuture { op: self.op, result: PhantomData }
    }
}

impl<R> ChildHandle<R> {
    /// The run that it began as.
    pub fn run_id(&self) -> RunId {
        self.run_id
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal<T: Serialize + ?Sized>(&self, name: impl Into<String>, value: &T) -> ExternalOp {
        ExternalOp::signal(&self.op.shared, self.target(), name.into(), value, Location::caller())
    }

    /// Asks it to stop in its own time.
    #[track_caller]
    pub fn cancel(&self, reason: impl Into<String>) -> ExternalOp {
        ExternalOp::cancel(&self.op.shared, self.target(), reason.into(), Location::caller())
    }

    fn target(&self) -> ExternalTarget {
        ExternalTarget::Run(self.run_id)
    }
}

impl<R: DeserializeOwned> ChildHandle<R> {
    /// Waits for its result.
    ///
    /// # Errors
    /// [`ChildError`] when it ends without one.
    pub async fn result(self) -> Result<R, ChildError> {
        ChildFuture { op: self.op, result: PhantomData }.await
    }
}

impl<R: DeserializeOwned> Future for ChildFuture<R> {
    type Output = Result<R, ChildError>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        let notes = match self.op.poll() {
            Ok(notes) => notes,
            Err(failure) => return Poll::Ready(Err(ChildError::NotStarted(failure))),
        };
        match notes.closed {
            None => Poll::Pending,
            Some(ChildOutcome::Completed(result)) => {
                let decoded = payload::decode(&result).map_err(|e| ChildError::Payload(e.to_string()));
                Poll::Ready(decoded)
            }
            Some(ChildOutcome::Ended { status, failure }) => {
                let workflow_type = self.op.workflow_type.clone();
                Poll::Ready(Err(ChildError::Ended { workflow_type, status, failure }))
            }
            Some(ChildOutcome::NotStarted(failure)) => Poll::Ready(Err(ChildError::NotStarted(failure))),
        }
    }
}

impl Future for Starting<'_> {
    type Output = Result<RunId, ChildError>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ChildNotes { run_id, started, closed } = match self.0.poll() {
            Ok(notes) => notes,
            Err(failure) => return Poll::Ready(Err(ChildError::NotStarted(failure))),
        };
        match (closed, run_id) {
            (Some(ChildOutcome::NotStarted(failure)), _) => Poll::Ready(Err(ChildError::NotStarted(failure))),
            // Its end may be heard of before its start.
            (closed, Some(run_id)) if started || closed.is_some() => Poll::Ready(Ok(run_id)),
            _ => Poll::Pending,
        }
    }
}

impl Op {
    fn change(&self, change: impl FnOnce(&mut ChildScheduled)) {
        if let Some(op) = self.shared.lock().command(self.id)
            && let Some(CommitCommand::StartChild(scheduled)) = &mut op.command
        {
            change(scheduled);
        }
    }

    /// Asks for it, unless the server would refuse it, and says what is known of it.
    fn poll(&self) -> Result<ChildNotes, Failure> {
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        let mut state = self.shared.lock();
        let Some(op) = state.command(self.id) else { return Ok(ChildNotes::default()) };
        if let Some(CommitCommand::StartChild(scheduled)) = &op.command
            && let Some(problem) = problem(scheduled)
        {
            return Err(Failure::new("InvalidArgument", problem).non_retryable());
        }
        let notes = op.child.clone();
        if notes.closed.is_none() {
            state.request_command(self.id);
        }
        Ok(notes)
    }
}

/// Why the server would refuse the child.
fn problem(child: &ChildScheduled) -> Option<String> {
    let named = |field, name: &str| if name.is_empty() { Ok(()) } else { validate_name(field, name) };
    let names = validate_name("workflow_type", &child.workflow_type)
        .and_then(|()| named("workflow_id", &child.workflow_id))
        .and_then(|()| named("task_queue", &child.task_queue))
        .and_then(|()| child.retry.as_ref().map_or(Ok(()), RetryPolicy::validate))
        .and_then(|()| child.notes.check());
    if let Err(refused) = names {
        return Some(refused.to_string());
    }
    match child.run_timeout? {
        everstep_core::Duration::ZERO => Some("run_timeout is zero".to_owned()),
        limit if limit > limits::DURATION_MAX => Some("run_timeout is longer than 100 years".to_owned()),
        _ => None,
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        self.shared.drop_command(self.id);
    }
}

impl ChildNotes {
    pub(crate) fn scheduled(&mut self, run_id: RunId) {
        self.run_id = Some(run_id);
    }

    pub(crate) fn started(&mut self) {
        self.started = true;
    }

    pub(crate) fn closed(&mut self, outcome: ChildOutcome) {
        self.closed = Some(outcome);
    }
}
