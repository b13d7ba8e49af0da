//! Signals and cancels that a workflow sends to other runs.

use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use everstep_core::replay::OpKind;
use everstep_core::{
    CommitCommand, ExternalAction, ExternalRequested, ExternalTarget, Failure, OpId, Payload, RunId,
    validate_name,
};
use serde::Serialize;

use super::command::CommandOp;
use super::{Ctx, Shared};
use crate::{ExternalFailed, payload};

/// Another run of the same namespace: see [`Ctx::external`].
#[derive(Debug)]
pub struct External {
    shared: Arc<Shared>,
    target: ExternalTarget,
}

/// A request to another run. Await it: it is delivered once, whatever crashes, and this gives what became of it.
#[must_use = "nothing is sent until it is awaited"]
#[derive(Debug)]
pub struct ExternalOp {
    shared: Arc<Shared>,
    id: OpId,
    /// Why it can never be asked for. It depends on the code alone, so replay says the same.
    refused: Option<Failure>,
}

impl Ctx {
    /// Whichever run holds a workflow id when a request to it arrives.
    ///
    /// ```
    /// # use everstep::{Ctx, ExternalFailed};
    /// # async fn example(ctx: Ctx) -> Result<(), ExternalFailed> {
    /// ctx.external("cart/7").signal("add", &"book").await
    /// # }
    /// ```
    pub fn external(&self, workflow_id: impl Into<String>) -> External {
        let target = ExternalTarget::Workflow(workflow_id.into());
        External { shared: Arc::clone(&self.shared), target }
    }

    /// One run; what is sent to one that continued as new, or is tried again, goes to the run that follows it.
    pub fn external_run(&self, run: RunId) -> External {
        External { shared: Arc::clone(&self.shared), target: ExternalTarget::Run(run) }
    }
}

impl External {
    /// Sends it a signal.
    #[track_caller]
    pub fn signal<T: Serialize + ?Sized>(&self, name: impl Into<String>, value: &T) -> ExternalOp {
        ExternalOp::signal(&self.shared, self.target.clone(), name.into(), value, Location::caller())
    }

    /// Asks it to stop in its own time.
    #[track_caller]
    pub fn cancel(&self, reason: impl Into<String>) -> ExternalOp {
        ExternalOp::cancel(&self.shared, self.target.clone(), reason.into(), Location::caller())
    }
}

impl ExternalOp {
    pub(super) fn signal<T: Serialize + ?Sized>(
        shared: &Arc<Shared>,
        target: ExternalTarget,
        name: String,
        value: &T,
        source: &'static Location<'static>,
    ) -> Self {
        let (input, refused) = match payload::encode_checked(value) {
            Ok(input) => (input, None),
            Err((kind, problem)) => (Payload::default(), Some(Failure::new(kind, problem).non_retryable())),
        };
        Self::build(shared, target, ExternalAction::Signal { name, input }, refused, source)
    }

    pub(super) fn cancel(
        shared: &Arc<Shared>,
        target: ExternalTarget,
        reason: String,
        source: &'static Location<'static>,
    ) -> Self {
        Self::build(shared, target, ExternalAction::Cancel { reason }, None, source)
    }

    fn build(
        shared: &Arc<Shared>,
        target: ExternalTarget,
        action: ExternalAction,
        refused: Option<Failure>,
        source: &'static Location<'static>,
    ) -> Self {
        let named = match &target {
            ExternalTarget::Workflow(id) => validate_name("workflow_id", id),
            ExternalTarget::Run(_) => Ok(()),
        };
        let named = named.and_then(|()| match &action {
            ExternalAction::Signal { name, .. } => validate_name("signal name", name),
            ExternalAction::Cancel { .. } => Ok(()),
        });
        let unfit = named.err().map(|e| Failure::new("InvalidArgument", e.to_string()).non_retryable());
        let shared = Arc::clone(shared);
        let id = shared.build_command(OpKind::External, source, |op| {
            let requested = ExternalRequested { op, target, action };
            CommandOp::new(CommitCommand::RequestExternal(Box::new(requested)), None)
        });
        Self { shared, id, refused: refused.or(unfit) }
    }
}

impl Future for ExternalOp {
    type Output = Result<(), ExternalFailed>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(failure) = self.refused.clone() {
            return Poll::Ready(Err(ExternalFailed { failure }));
        }
        let sent = self.shared.poll_command(self.id);
        sent.map(|sent| sent.map(drop).map_err(|failure| ExternalFailed { failure }))
    }
}

impl Drop for ExternalOp {
    fn drop(&mut self) {
        self.shared.drop_command(self.id);
    }
}
