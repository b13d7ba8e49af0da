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
    /// A timer.
    Timer,
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
        let (id, name) = match &event.body {
            EventBody::StepStarted { step, name, .. }
            | EventBody::StepCompleted { step, name, .. }
            | EventBody::StepInDoubt { step, name, .. }
            | EventBody::StepFailed { step, name, .. } => (*step, Some(name.as_str())),
            EventBody::StepResolved(resolved) => (resolved.step, Some(resolved.name.as_str())),
            EventBody::TimerStarted { timer, .. } | EventBody::TimerCanceled { timer } => (*timer, None),
            EventBody::TimerFired { timer } if timer.kind == TimerKind::Timer => (OpId(timer.id), None),
            _ => return Ok(()),
        };
        let built = (id.0 as usize).checked_sub(1).and_then(|i| self.ops.get(i));
        let fits = match (built.map(|op| &op.kind), name) {
            (Some(OpKind::Step(built)), Some(recorded)) => built == recorded,
            (Some(OpKind::Timer), None) => true,
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let mismatch = Mismatch {
            seq: event.seq,
            expected: describe(id, name),
            produced: built.map_or_else(
                || format!("only {} operations", self.ops.len()),
                |op| match &op.kind {
                    OpKind::Step(name) => describe(id, Some(name)),
                    OpKind::Timer => describe(id, None),
                },
            ),
            source: built.map(|op| op.source).or_else(|| self.last_source()),
        };
        self.broken = Some(mismatch.clone());
        Err(mismatch)
    }
}

fn describe(id: OpId, name: Option<&str>) -> String {
    match name {
        Some(name) => format!("step '{name}' {id}"),
        None => format!("timer {id}"),
    }
}
