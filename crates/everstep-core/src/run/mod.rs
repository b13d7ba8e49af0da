//! The state of one run: a fold over its history.

mod annotate;
mod apply;
mod child;
mod commit;
mod decide;
mod doubt;
mod external;
mod id_set;
mod ops;
mod outbound;
mod pin;
mod queued;
mod repeat;
mod succession;
#[cfg(test)]
mod tests;
mod update;
mod version;

use std::collections::BTreeMap;

pub use child::ChildState;
pub use decide::{Decision, decide};
pub(crate) use decide::{check_payload, cut};
pub use doubt::Guard;
use id_set::IdSet;
pub use outbound::{ChildStart, Outbound, ToRun};
pub use succession::{HeardSignal, Successor};
use update::Updates;

use crate::{
    CommandId, Digest, Epoch, Event, Failure, Notes, OpId, Payload, Projection, QueueKey, RunId, RunRow,
    RunStarted, RunStatus, Seq, SessionId, Timer, TimerKey, Timestamp, WorkerInfo, limits,
};

/// The worker that owns a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its session.
    pub session: SessionId,
    /// Who it is.
    pub worker: WorkerInfo,
}

/// A step that has not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepState {
    /// Greatest attempt recorded, as started or failed.
    pub attempt: u32,
    /// Failures recorded.
    pub failures: u32,
    /// The recorded attempt has no recorded end.
    pub running: bool,
    /// Set while the recorded attempt is one of a guarded step.
    pub guard: Option<Box<Guard>>,
}

/// A run, as far as its history has been applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    id: RunId,
    start: RunStarted,
    started_at: Timestamp,
    status: RunStatus,
    closed_at: Option<Timestamp>,
    seq: Seq,
    /// When the last event was decided.
    at: Timestamp,
    row_seq: Seq,
    epoch: Epoch,
    owner: Option<Owner>,
    build_id: String,
    /// The build that it belongs to.
    pin: Option<String>,
    blocked: String,
    cancel_requested: bool,
    /// Attaches since an owner last recorded something.
    fruitless: u32,
    last_release: String,
    /// Greatest commit number recorded under the present epoch.
    committed: u32,
    needs_worker: bool,
    steps: BTreeMap<OpId, StepState>,
    steps_ended: IdSet,
    /// Queued steps that have not ended.
    queued: BTreeMap<OpId, Box<queued::QueuedState>>,
    /// Queued steps that have ended, and how.
    queued_ended: BTreeMap<OpId, queued::Ended>,
    timers: BTreeMap<TimerKey, Timestamp>,
    timers_ended: IdSet,
    /// Signals by id, with what each said.
    signals: BTreeMap<String, repeat::Heard>,
    /// The request that asked it to stop, and what it said.
    cancel: Option<repeat::CancelAsked>,
    /// What the termination said that ended it.
    termination: Option<Digest>,
    /// The run that follows it.
    successor: Option<RunId>,
    last_command: CommandId,
    bytes: u64,
    outcome: Outcome,
    /// Attempts in doubt.
    doubts: u32,
    /// When a person last said something about a step.
    resolved: BTreeMap<OpId, Seq>,
    /// The requests that did so, each with the attempt and what it said.
    resolutions: BTreeMap<CommandId, (u32, Digest)>,
    /// Versions that the workflow chose, by change.
    versions: BTreeMap<String, u32>,
    children: child::Children,
    externals: external::Externals,
    updates: Updates,
    /// What it says about itself; `None` for what it began with.
    notes: Option<Box<Notes>>,
    upserts: IdSet,
}

/// How a run ended, kept so that whoever waits need not read the log again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    result: Payload,
    failure: Option<Failure>,
}

impl Run {
    /// The run's id.
    pub fn id(&self) -> RunId {
        self.id
    }

    /// How it began.
    pub fn start(&self) -> &RunStarted {
        &self.start
    }

    /// How it stands.
    pub fn status(&self) -> RunStatus {
        self.status
    }

    /// Its last event.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Claims so far.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The worker that owns it, if one does.
    pub fn owner(&self) -> Option<&Owner> {
        self.owner.as_ref()
    }

    /// Greatest commit number recorded under the present epoch.
    pub fn committed(&self) -> u32 {
        self.committed
    }

    /// True when it is open and waits for a worker to take it.
    pub fn needs_worker(&self) -> bool {
        self.needs_worker
    }

    /// When a timer is due, if it is pending.
    pub fn timer(&self, key: TimerKey) -> Option<Timestamp> {
        self.timers.get(&key).copied()
    }

    /// True when any timer is pending.
    pub fn has_timers(&self) -> bool {
        !self.timers.is_empty()
    }

    /// A step that has begun and not ended.
    pub fn step(&self, step: OpId) -> Option<&StepState> {
        self.steps.get(&step)
    }

    /// The command of its last event.
    pub fn last_command(&self) -> CommandId {
        self.last_command
    }

    /// What it returned; empty unless it completed.
    pub fn result(&self) -> &Payload {
        &self.outcome.result
    }

    /// Why it did not complete; `None` while it is open or when it did.
    pub fn failure(&self) -> Option<&Failure> {
        self.outcome.failure.as_ref()
    }

    /// True when the history nears a limit.
    pub fn history_warning(&self) -> bool {
        self.seq >= limits::HISTORY_EVENTS_WARN || self.bytes >= limits::HISTORY_BYTES_WARN
    }

    /// Payload bytes in its history.
    pub fn history_bytes(&self) -> u64 {
        self.bytes
    }

    /// Where its worker is found.
    pub fn queue(&self) -> QueueKey {
        QueueKey { namespace: self.start.namespace.clone(), task_queue: self.start.task_queue.clone() }
    }

    /// Its row in lists.
    pub fn row(&self) -> RunRow {
        RunRow {
            run_id: self.id,
            namespace: self.start.namespace.clone(),
            workflow_id: self.start.workflow_id.clone(),
            workflow_type: self.start.workflow_type.clone(),
            task_queue: self.start.task_queue.clone(),
            status: self.status,
            owner: self.owner.as_ref().map(|o| o.session),
            epoch: self.epoch,
            build_id: self.build_id.clone(),
            blocked: self.blocked.clone(),
            cancel_requested: self.cancel_requested,
            started_at: self.started_at,
            closed_at: self.closed_at,
            last_seq: self.row_seq,
        }
    }

    /// What the tables beside the log should hold for it.
    pub fn projection(&self) -> Projection {
        Projection {
            row: self.row(),
            timers: self.timers.iter().map(|(&key, &fire_at)| Timer { key, fire_at }).collect(),
            task: self.needs_worker.then(|| self.task()),
            doubts: self.doubts(),
            steps: self.step_tasks(),
            link: self.link(),
            attributes: self.search_attributes(),
        }
    }

    /// Folds a whole history.
    ///
    /// # Errors
    /// [`HistoryError`](crate::HistoryError) when it is not one that Everstep writes.
    pub fn fold<'a>(
        id: RunId,
        events: impl IntoIterator<Item = &'a Event>,
    ) -> Result<Option<Self>, crate::HistoryError> {
        let mut run: Option<Self> = None;
        for event in events {
            match &mut run {
                None => run = Some(Self::begin(id, event)?),
                Some(run) => run.apply(event)?,
            }
        }
        Ok(run)
    }
}
