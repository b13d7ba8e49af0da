//! Holding a workflow's code against its history.
//!
//! Workflow code builds *operations* (steps and timers), numbered in source order. A recorded event that
//! concerns an operation names its number, and for a step its name. When such an event is applied, the
//! code must have built that operation by then: it had seen the same events when the original was
//! recorded. Operations that no event speaks of yet are new; they stay in the order in which they were built.

#[cfg(test)]
mod tests;

use std::panic::Location;

use crate::{Event, EventBody, OpId, Seq, TimerKind};

/// What kind of operation the code built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// A step with this name.
    Step(String),
    /// A queued step with this name.
    Queued(String),
    /// A timer.
    Timer,
    /// A child of this workflow type.
    Child(String),
    /// A request to another run.
    External,
    /// Something that the workflow says about itself.
    Upsert,
}

#[derive(Clone, Debug)]
struct Op {
    kind: OpKind,
    source: &'static Location<'static>,
}

/// The operations that the code has built so far, and whether the history agrees.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    ops: Vec<Op>,
    broken: Option<Mismatch>,
}

/// The code and the history do not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The event that the code disagrees with.
    pub seq: Seq,
    /// What the history says.
    pub expected: String,
    /// What the code did.
    pub produced: String,
    /// Where the code did it: the operation with that number, or the last one built.
    pub source: Option<&'static Location<'static>>,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "event {}: the history has {}, the code built {}", self.seq, self.expected, self.produced)
    }
}

impl std::error::Error for Mismatch {}

impl Replay {
    /// The code built an operation; this is its number.
    pub fn build(&mut self, kind: OpKind, source: &'static Location<'static>) -> OpId {
        self.ops.push(Op { kind, source });
        OpId(u32::try_from(self.ops.len()).unwrap_or(u32::MAX))
    }

    /// Operations built so far.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// True when the code has built nothing yet.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Where the code last built an operation.
    pub fn last_source(&self) -> Option<&'static Location<'static>> {
        self.ops.last().map(|op| op.source)
    }

    /// What the code built under this number.
    pub fn kind(&self, id: OpId) -> Option<&OpKind> {
        (id.0 as usize).checked_sub(1).and_then(|i| self.ops.get(i)).map(|op| &op.kind)
    }

    /// Where the code built an operation.
    pub fn source(&self, id: OpId) -> Option<&'static Location<'static>> {
        (id.0 as usize).checked_sub(1).and_then(|i| self.ops.get(i)).map(|op| op.source)
    }

    /// Checks the next recorded event against what the code has built. Call it before the event is applied.
    ///
    /// # Errors
    /// [`Mismatch`]; and the same one again for every later event.
    pub fn check(&mut self, event: &Event) -> Result<(), Mismatch> {
        if let Some(mismatch) = &self.broken {
            return Err(mismatch.clone());
        }
        let Some((id, recorded)) = Recorded::of(&event.body) else { return Ok(()) };
        let built = (id.0 as usize).checked_sub(1).and_then(|i| self.ops.get(i));
        if built.is_some_and(|op| recorded.fits(&op.kind)) {
            return Ok(());
        }
        let mismatch = Mismatch {
            seq: event.seq,
            expected: recorded.describe(id),
            produced: built
                .map_or_else(|| format!("only {} operations", self.ops.len()), |op| describe(&op.kind, id)),
            source: built.map(|op| op.source).or_else(|| self.last_source()),
        };
        self.broken = Some(mismatch.clone());
        Err(mismatch)
    }
}

/// What an event says of the operation that it is about.
enum Recorded<'a> {
    Step(&'a str),
    /// The end of a step reads alike, wherever it ran.
    AnyStep(&'a str),
    /// The name is not recorded everywhere.
    Queued(Option<&'a str>),
    Timer,
    /// The type is not recorded everywhere.
    Child(Option<&'a str>),
    External,
    Upsert,
}

impl<'a> Recorded<'a> {
    fn of(body: &'a EventBody) -> Option<(OpId, Self)> {
        Some(match body {
            EventBody::StepStarted { step, name, .. } => (*step, Self::Step(name)),
            EventBody::StepCompleted { step, name, .. }
            | EventBody::StepInDoubt { step, name, .. }
            | EventBody::StepFailed { step, name, .. } => (*step, Self::AnyStep(name)),
            EventBody::StepResolved(resolved) => (resolved.step, Self::AnyStep(&resolved.name)),
            EventBody::StepScheduled(scheduled) => (scheduled.step, Self::Queued(Some(&scheduled.name))),
            EventBody::StepCancelRequested { step } => (*step, Self::Queued(None)),
            EventBody::AttributesUpserted { op, .. } => (*op, Self::Upsert),
            EventBody::TimerStarted { timer, .. } | EventBody::TimerCanceled { timer } => {
                (*timer, Self::Timer)
            }
            EventBody::ChildScheduled(scheduled) => {
                (scheduled.child, Self::Child(Some(&scheduled.workflow_type)))
            }
            EventBody::ChildStarted { child, .. } => (*child, Self::Child(None)),
            EventBody::ChildClosed(closed) => (closed.child, Self::Child(None)),
            EventBody::ExternalRequested(requested) => (requested.op, Self::External),
            EventBody::ExternalResolved { op, .. } => (*op, Self::External),
            EventBody::TimerFired { timer } if timer.kind == TimerKind::Timer => {
                (OpId(timer.id), Self::Timer)
            }
            _ => return None,
        })
    }

    fn fits(&self, built: &OpKind) -> bool {
        match (self, built) {
            (Self::Step(name) | Self::AnyStep(name), OpKind::Step(built))
            | (Self::AnyStep(name) | Self::Queued(Some(name)), OpKind::Queued(built)) => name == built,
            (Self::Child(Some(workflow_type)), OpKind::Child(built)) => workflow_type == built,
            (Self::Queued(None), OpKind::Queued(_))
            | (Self::Timer, OpKind::Timer)
            | (Self::Upsert, OpKind::Upsert)
            | (Self::Child(None), OpKind::Child(_))
            | (Self::External, OpKind::External) => true,
            _ => false,
        }
    }

    fn describe(&self, id: OpId) -> String {
        match self {
            Self::Step(name) | Self::AnyStep(name) => format!("step '{name}' {id}"),
            Self::Queued(Some(name)) => format!("queued step '{name}' {id}"),
            Self::Queued(None) => format!("a queued step {id}"),
            Self::Timer => format!("timer {id}"),
            Self::Upsert => format!("upsert {id}"),
            Self::Child(Some(workflow_type)) => format!("child '{workflow_type}' {id}"),
            Self::Child(None) => format!("a child {id}"),
            Self::External => format!("a request to another run {id}"),
        }
    }
}

fn describe(built: &OpKind, id: OpId) -> String {
    match built {
        OpKind::Step(name) => format!("step '{name}' {id}"),
        OpKind::Queued(name) => format!("queued step '{name}' {id}"),
        OpKind::Timer => format!("timer {id}"),
        OpKind::Upsert => format!("upsert {id}"),
        OpKind::Child(workflow_type) => format!("child '{workflow_type}' {id}"),
        OpKind::External => format!("a request to another run {id}"),
    }
}
