//! What other runs have to hear of a run's events. It follows from the run and the event alone, so the store keeps
//! no more of it than where it stands, and telling it twice is telling it once.

use super::Run;
use crate::retry::splitmix64;
use crate::{
    Actor, ChildClosed, ChildOutcome, ChildScheduled, Command, CommandBody, CommandId, Event, EventBody,
    ExternalAction, ExternalRequested, ExternalTarget, Failure, OpId, Origin, ParentClose, ParentLink,
    Rejection, RunId, RunLink, RunStatus, Seq, StartDefaults, StartRun,
};

/// Something that another run has to hear.
#[derive(Clone, Debug, PartialEq)]
pub enum Outbound {
    /// A child is to begin.
    Start(Box<ChildStart>),
    /// A request to another run.
    ToRun(Box<ToRun>),
}

/// A child that is to begin.
#[derive(Clone, Debug, PartialEq)]
pub struct ChildStart {
    /// The operation of the parent's code.
    pub child: OpId,
    /// The event that scheduled it.
    pub scheduled: Seq,
    /// The request.
    pub start: StartRun,
    /// Its run.
    pub run_id: RunId,
    /// The run's seed.
    pub seed: u64,
    /// The parent's code asked to be told.
    pub report: bool,
}

/// A request to another run.
#[derive(Clone, Debug, PartialEq)]
pub struct ToRun {
    /// Which.
    pub target: ExternalTarget,
    /// What.
    pub command: Command,
    /// The operation that waits for what becomes of it, and the event that asked for it.
    pub reply: Option<(OpId, Seq)>,
    /// The target may not have begun yet.
    pub early: bool,
}

impl Run {
    /// Which runs it is linked to, if any.
    pub fn link(&self) -> Option<RunLink> {
        // Destructured, so that a new field cannot be forgotten here.
        let Origin { parent, previous, first, attempt: _, heard: _ } = &self.start.origin;
        let parent = parent.as_ref().map(|parent| (parent.run_id, parent.child));
        let (previous, first, successor) = (*previous, *first, self.successor);
        let linked = parent.is_some() || previous.is_some() || first.is_some() || successor.is_some();
        linked.then(|| RunLink { parent, previous, first, successor, attempt: self.attempt() })
    }

    /// Whether anybody else has to hear of `event`, which this run has applied.
    pub fn has_outbound(&self, event: &Event) -> bool {
        match &event.body {
            EventBody::ChildScheduled(scheduled) => self.is_to_begin(scheduled.child),
            EventBody::ExternalRequested(requested) => self.externals.is_pending(requested.op),
            body if body.is_terminal() => {
                self.told_parent().is_some() || self.told_children().next().is_some()
            }
            _ => false,
        }
    }

    /// What others have to hear of `event`, which this run has applied; it may have applied more since.
    pub fn outbound(&self, event: &Event) -> Vec<Outbound> {
        match &event.body {
            EventBody::ChildScheduled(scheduled) if self.is_to_begin(scheduled.child) => {
                vec![Outbound::Start(Box::new(self.child_start(event.seq, scheduled)))]
            }
            EventBody::ExternalRequested(requested) if self.externals.is_pending(requested.op) => {
                vec![Outbound::ToRun(Box::new(self.external(event.seq, requested)))]
            }
            body if body.is_terminal() => {
                let parent = self.told_parent().map(|parent| self.child_closed(parent));
                let children = self.told_children().map(|(run, policy)| self.parent_closed(run, policy));
                parent.into_iter().chain(children).map(|to| Outbound::ToRun(Box::new(to))).collect()
            }
            _ => Vec::new(),
        }
    }

    fn is_to_begin(&self, child: OpId) -> bool {
        self.child(child).is_some_and(|state| !state.closed)
    }

    /// The parent, which hears of the end of the child's last run only.
    fn told_parent(&self) -> Option<&ParentLink> {
        self.start.origin.parent.as_ref().filter(|_| self.successor.is_none())
    }

    fn told_children(&self) -> impl Iterator<Item = (RunId, ParentClose)> {
        self.children
            .open()
            .map(|(_, state)| (state.run_id, state.on_parent_close))
            .filter(|(_, policy)| *policy != ParentClose::Abandon)
    }

    fn child_start(&self, seq: Seq, scheduled: &ChildScheduled) -> ChildStart {
        let ChildScheduled { child, run_id, report_start: report, .. } = *scheduled;
        let above = self.start.origin.parent.as_ref().map_or(0, |parent| parent.above.saturating_add(1));
        let parent = ParentLink { run_id: self.id, child, scheduled: seq, report_start: report, above };
        let start = StartRun {
            namespace: self.start.namespace.clone(),
            workflow_id: scheduled.workflow_id.clone(),
            workflow_type: scheduled.workflow_type.clone(),
            task_queue: scheduled.task_queue.clone(),
            input: scheduled.input.clone(),
            request_id: format!("child:{}:{}", self.id, child.0),
            run_timeout: scheduled.run_timeout,
            retry: scheduled.retry.clone(),
            reuse: scheduled.reuse,
            trace: self.start.trace.of_run(self.id),
            origin: Origin { parent: Some(parent), ..Origin::default() },
            // What the namespace said when the parent began: nothing else is known here.
            defaults: StartDefaults { step_retry: self.start.step_retry.clone(), ..StartDefaults::default() },
            notes: scheduled.notes.clone(),
            ..StartRun::default()
        };
        ChildStart { child, scheduled: seq, start, run_id, seed: seed_of(run_id), report }
    }

    fn external(&self, seq: Seq, requested: &ExternalRequested) -> ToRun {
        let ExternalRequested { op, target, action } = requested;
        let body = match action {
            ExternalAction::Signal { name, input } => CommandBody::Signal {
                name: name.clone(),
                signal_id: format!("{}/{}", self.id, op.0),
                input: input.clone(),
            },
            ExternalAction::Cancel { reason } => CommandBody::Cancel { reason: reason.clone() },
        };
        let child = |run: &RunId| self.children.open().any(|(_, state)| state.run_id == *run);
        let early = matches!(target, ExternalTarget::Run(run) if child(run));
        let command = self.command(&[b"external", &op.0.to_be_bytes()], body);
        ToRun { target: target.clone(), command, reply: Some((*op, seq)), early }
    }

    fn child_closed(&self, parent: &ParentLink) -> ToRun {
        let outcome = match self.status {
            RunStatus::Completed => ChildOutcome::Completed(self.outcome.result.clone()),
            status => {
                let failure = self.outcome.failure.clone();
                let failure = failure.unwrap_or_else(|| Failure::new("Ended", status.as_str()));
                ChildOutcome::Ended { status, failure }
            }
        };
        let ParentLink { run_id, child, scheduled, report_start: _, above: _ } = *parent;
        let closed = ChildClosed { child, scheduled, run_id: self.id, outcome };
        let command = self.command(&[b"closed"], CommandBody::ChildClosed(Box::new(closed)));
        ToRun { target: ExternalTarget::Run(run_id), command, reply: None, early: false }
    }

    fn parent_closed(&self, child: RunId, policy: ParentClose) -> ToRun {
        let reason = format!("its parent, run {}, has ended ({})", self.id, self.status);
        let body = match policy {
            ParentClose::RequestCancel => CommandBody::Cancel { reason },
            ParentClose::Terminate | ParentClose::Abandon => CommandBody::Terminate { reason },
        };
        let command = self.command(&[b"parent closed", child.as_bytes()], body);
        ToRun { target: ExternalTarget::Run(child), command, reply: None, early: true }
    }

    fn command(&self, parts: &[&[u8]], body: CommandBody) -> Command {
        let all: Vec<&[u8]> =
            std::iter::once(self.id.as_bytes().as_slice()).chain(parts.iter().copied()).collect();
        Command { id: CommandId::derived(&all), actor: Actor::Run(self.id), body }
    }
}

impl Rejection {
    /// Why a run did not take what another one sent it, or a child did not begin, as the other one is told.
    pub fn to_failure(&self) -> Failure {
        let kind = match self {
            Self::RunClosed { .. } => "RunClosed",
            Self::AlreadyStarted { .. } => "AlreadyStarted",
            Self::IdempotencyMismatch { .. } => "IdempotencyMismatch",
            Self::LimitExceeded { .. } => "LimitExceeded",
            Self::InvalidId { .. } | Self::InvalidArgument { .. } => "InvalidArgument",
            _ => "Refused",
        };
        Failure::new(kind, self.to_string()).non_retryable()
    }
}

/// The seed of a run whose id is derived.
fn seed_of(run: RunId) -> u64 {
    let [.., a, b, c, d, e, f, g, h] = *run.as_bytes();
    splitmix64(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}
