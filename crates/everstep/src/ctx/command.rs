//! Operations that the server carries out for the code: asked for with one command, ended by later events.
//!
//! What the code awaits is *requested*; whoever owns the run then *emits* its command once; the event that it becomes
//! makes it *recorded*; a later event, or that same one, *resolves* it.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::task::Poll;

use everstep_core::replay::OpKind;
use everstep_core::{CommitCommand, Failure, OpId, Payload};

use super::child::ChildNotes;
use super::{CtxState, OpState, Shared};

/// Such an operation as far as code and history have gone.
pub(crate) struct CommandOp {
    /// What asks for it; taken when it is emitted, and needless once it is recorded.
    pub(crate) command: Option<CommitCommand>,
    /// What the server is told when the code lets go of it; `None`: nothing.
    on_drop: Option<CommitCommand>,
    /// The activation in which the code first awaited it.
    requested: Option<u64>,
    /// This worker asked for it.
    emitted: bool,
    /// The history has it.
    recorded: bool,
    outcome: Option<Result<Payload, Failure>>,
    /// What events say of a child.
    pub(crate) child: ChildNotes,
    /// The code let go of it.
    dropped: bool,
    /// This worker, or the history, has said so.
    drop_emitted: bool,
}

impl fmt::Debug for CommandOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandOp")
            .field("recorded", &self.recorded)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

impl CommandOp {
    pub(super) fn new(command: CommitCommand, on_drop: Option<CommitCommand>) -> Self {
        Self {
            command: Some(command),
            on_drop,
            requested: None,
            emitted: false,
            recorded: false,
            outcome: None,
            child: ChildNotes::default(),
            dropped: false,
            drop_emitted: false,
        }
    }

    /// The code awaits it, or did.
    pub(crate) fn is_requested(&self) -> bool {
        self.requested.is_some()
    }

    /// The code awaits it, and it has no end.
    pub(crate) fn is_awaited(&self) -> bool {
        self.requested.is_some() && self.outcome.is_none() && !self.dropped
    }

    /// What the server has to be told now: once per owner, and never what is recorded already.
    pub(crate) fn next(&mut self) -> Option<CommitCommand> {
        self.requested?;
        let known = self.recorded || self.emitted;
        if self.outcome.is_some() {
            return None;
        }
        if self.dropped {
            if !known || std::mem::replace(&mut self.drop_emitted, true) {
                return None;
            }
            return self.on_drop.take();
        }
        if known {
            return None;
        }
        self.emitted = true;
        self.command.take()
    }
}

impl Shared {
    /// The code builds such an operation; `op` makes it, given its number.
    pub(super) fn build_command(
        self: &Arc<Self>,
        kind: OpKind,
        source: &'static Location<'static>,
        op: impl FnOnce(OpId) -> CommandOp,
    ) -> OpId {
        self.check_polled(source);
        let mut state = self.lock();
        let id = state.replay.build(kind, source);
        state.ops.push(OpState::Command(Box::new(op(id))));
        id
    }

    /// The code awaits it: the outcome, if there is one.
    pub(super) fn poll_command(&self, id: OpId) -> Poll<Result<Payload, Failure>> {
        let mut state = self.lock();
        if let Some(Some(outcome)) = state.command(id).map(|op| &op.outcome) {
            return Poll::Ready(outcome.clone());
        }
        state.request_command(id);
        Poll::Pending
    }

    /// The code lets go of it.
    pub(super) fn drop_command(&self, id: OpId) {
        let mut state = self.lock();
        let activation = state.activation;
        let Some(op) = state.command(id) else { return };
        op.dropped = true;
        if op.requested == Some(activation) && !op.emitted && !op.recorded {
            // Built and dropped between two events: nobody ever asked for it, here or in the original.
            op.requested = None;
        } else if op.requested.is_some() && op.outcome.is_none() {
            state.fresh.push(id);
        }
    }
}

impl CtxState {
    pub(crate) fn command(&mut self, id: OpId) -> Option<&mut CommandOp> {
        match self.ops.get_mut((id.0 as usize).checked_sub(1)?) {
            Some(OpState::Command(op)) => Some(op),
            _ => None,
        }
    }

    /// Asks for it when work is taken next.
    pub(super) fn request_command(&mut self, id: OpId) {
        let activation = self.activation;
        if let Some(op) = self.command(id)
            && op.requested.is_none()
        {
            op.requested = Some(activation);
            self.fresh.push(id);
        }
    }

    /// The history has it.
    pub(crate) fn command_recorded(&mut self, id: OpId) {
        if let Some(op) = self.command(id) {
            op.recorded = true;
            op.command = None;
            if op.outcome.is_none() {
                self.awaited.insert(id);
            }
        }
    }

    /// The history has its end.
    pub(crate) fn command_resolved(&mut self, id: OpId, outcome: Result<Payload, Failure>) {
        if let Some(op) = self.command(id) {
            op.recorded = true;
            op.command = None;
            op.on_drop = None;
            op.outcome = Some(outcome);
            self.awaited.remove(&id);
        }
    }

    /// The history says that the code let go of it.
    pub(crate) fn command_let_go(&mut self, id: OpId) {
        if let Some(op) = self.command(id) {
            op.drop_emitted = true;
        }
    }
}
