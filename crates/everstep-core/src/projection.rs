//! What the tables beside the log hold: everything here can be computed from the events.

use std::collections::BTreeMap;
use std::fmt;

use everstep_fault::{Bug, planted};
use serde::{Deserialize, Serialize};

use crate::{
    Attribute, ChildOutcome, DoubtPolicy, Epoch, Event, EventBody, OpId, Run, RunId, Seq, SessionId,
    StepTask, TimerKey, TimerKind, Timestamp,
};

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Open: a worker has it, it waits for one, or it waits for a timer or signal.
    Running,
    /// Open, and waiting for a worker with other code.
    Blocked,
    /// Closed with a result.
    Completed,
    /// Closed with a failure.
    Failed,
    /// Closed by its workflow after a cancel request.
    Canceled,
    /// Closed by force.
    Terminated,
    /// Closed by its run timeout.
    TimedOut,
    /// Closed by its workflow, which goes on in a new run.
    Continued,
}

impl RunStatus {
    /// Every status, in order.
    pub const ALL: [Self; 8] = [
        Self::Running,
        Self::Blocked,
        Self::Completed,
        Self::Failed,
        Self::Canceled,
        Self::Terminated,
        Self::TimedOut,
        Self::Continued,
    ];

    /// True once the run has ended.
    pub const fn is_closed(self) -> bool {
        !matches!(self, Self::Running | Self::Blocked)
    }

    /// The stable snake_case word used in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Blocked => "blocked",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Terminated => "terminated",
            Self::TimedOut => "timed_out",
            Self::Continued => "continued",
        }
    }

    /// The status whose word is `text`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The row of a run in lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRow {
    /// The run.
    pub run_id: RunId,
    /// Isolation boundary.
    pub namespace: String,
    /// The caller's business key.
    pub workflow_id: String,
    /// Which workflow.
    pub workflow_type: String,
    /// Queue whose workers run it.
    pub task_queue: String,
    /// How it stands.
    pub status: RunStatus,
    /// The session that owns it, if one does.
    pub owner: Option<SessionId>,
    /// Claims so far.
    pub epoch: Epoch,
    /// Build of the last owner; empty before the first.
    pub build_id: String,
    /// Why it is blocked; empty when it is not.
    pub blocked: String,
    /// Somebody asked it to stop.
    pub cancel_requested: bool,
    /// When it was started (database time).
    pub started_at: Timestamp,
    /// When it ended.
    pub closed_at: Option<Timestamp>,
    /// The event that this row was last written with. The history may be longer.
    pub last_seq: Seq,
}

/// A pending timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timer {
    /// Which.
    pub key: TimerKey,
    /// When it is due.
    pub fire_at: Timestamp,
}

/// An attempt of a guarded step of which nobody can say whether it had its effect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Doubt {
    /// The step.
    pub step: OpId,
    /// Its name.
    pub name: String,
    /// The attempt.
    pub attempt: u32,
    /// What the code of the step does about it.
    pub policy: DoubtPolicy,
    /// Since when.
    pub since: Timestamp,
}

/// A task queue of a namespace: where a run's worker is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QueueKey {
    /// Isolation boundary.
    pub namespace: String,
    /// The queue.
    pub task_queue: String,
}

/// The task of a run that needs a worker: which queue it is in, and what the worker has to have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TaskRow {
    /// The queue.
    #[serde(flatten)]
    pub queue: QueueKey,
    /// The code; empty in rows of releases that did not say, which stand for any.
    #[serde(default)]
    pub workflow_type: String,
    /// The build that the run belongs to; empty for any.
    #[serde(default)]
    pub build_id: String,
}

/// One change of a projection table, in the transaction of the events it follows from. Values are
/// absolute, so writing one twice changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Insert or overwrite the run's row, if the stored one is older (`last_seq`).
    Run(Box<RunRow>),
    /// Insert or overwrite a timer.
    TimerSet(Timer),
    /// Delete a timer, if it is there.
    TimerDeleted(TimerKey),
    /// Delete all timers of the run.
    TimersCleared,
    /// Insert the run's task: it needs such a worker.
    TaskSet(TaskRow),
    /// Delete the run's task, if it is there.
    TaskDeleted,
    /// Insert or overwrite an attempt in doubt.
    DoubtSet(Box<Doubt>),
    /// Delete the attempt in doubt of a step, if it is there.
    DoubtDeleted(OpId),
    /// Delete all attempts in doubt of the run.
    DoubtsCleared,
    /// Insert or overwrite a queued step. Who has the attempt stays, while attempt and `visible_at` do; what it
    /// last said stays.
    StepTaskSet(Box<StepTask>),
    /// Delete a queued step, if it is there.
    StepTaskDeleted(OpId),
    /// Delete all queued steps of the run.
    StepTasksCleared,
    /// Replace the run's search attributes.
    AttributesSet(Box<AttributeRows>),
    /// Note that other runs have to hear of the event with this seq.
    OutboxSet {
        /// The event.
        seq: Seq,
    },
    /// Others have heard of it.
    OutboxDeleted {
        /// The event.
        seq: Seq,
    },
    /// Insert or overwrite which runs this one is linked to.
    LinkSet(Box<RunLink>),
    /// Note that the owner has to be told of events up to `seq`: it is connected elsewhere.
    WakeSet {
        /// Last event that it has to see.
        seq: Seq,
    },
    /// The owner has seen all up to `up_to`.
    WakesDeleted {
        /// Last event that it has seen.
        up_to: Seq,
    },
}

/// Which runs a run comes from, and which one follows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLink {
    /// The run whose workflow started it, and the operation that did.
    pub parent: Option<(RunId, OpId)>,
    /// The run that it follows.
    pub previous: Option<RunId>,
    /// The first run of that chain, unless this is it.
    pub first: Option<RunId>,
    /// The run that follows it.
    pub successor: Option<RunId>,
    /// Which attempt it is, from 1.
    pub attempt: u32,
}

/// What the projection tables should hold for one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Projection {
    /// Its row. `last_seq` is that of the last event that changes what the row shows.
    pub row: RunRow,
    /// Its pending timers, sorted.
    pub timers: Vec<Timer>,
    /// Its task, if it needs a worker.
    pub task: Option<TaskRow>,
    /// Its attempts in doubt, sorted.
    #[serde(default)]
    pub doubts: Vec<Doubt>,
    /// Its queued steps that have not ended, sorted.
    #[serde(default)]
    pub steps: Vec<StepTask>,
    /// Its search attributes, by name.
    #[serde(default)]
    pub attributes: BTreeMap<String, Attribute>,
    /// Which runs it is linked to.
    #[serde(default)]
    pub link: Option<RunLink>,
}

/// The search attributes of a run, all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributeRows {
    /// Isolation boundary.
    pub namespace: String,
    /// By name.
    pub attributes: BTreeMap<String, Attribute>,
}

/// What the tables hold about a run before an append; taken before the events are applied.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteBasis {
    has_task: bool,
    has_timers: bool,
    has_doubts: bool,
    has_queued: bool,
}

impl WriteBasis {
    /// The basis of a run that does not exist yet.
    pub const NEW: Self = Self { has_task: false, has_timers: false, has_doubts: false, has_queued: false };

    /// The basis of `run` as it stands now.
    pub fn of(run: &Run) -> Self {
        Self {
            has_task: run.needs_worker(),
            has_timers: run.has_timers(),
            has_doubts: run.has_doubts(),
            has_queued: run.has_queued_steps(),
        }
    }

    /// The writes that bring the tables from this basis to `run`, which has applied `events` since.
    ///
    /// Decisions that are appended together are projected together: a task that one of them set and
    /// the next one took away is never written.
    pub fn writes(self, run: &Run, events: &[Event]) -> Vec<Write> {
        let mut writes = Vec::new();
        if run.status().is_closed() {
            if self.has_timers {
                writes.push(Write::TimersCleared);
            }
        } else {
            let mut touched: Vec<TimerKey> = events.iter().flat_map(|e| timers_touched(&e.body)).collect();
            if run.start().start_at.is_some() && events.first().is_some_and(|e| e.seq == 1) {
                touched.push(TimerKey::START);
            }
            touched.sort_unstable();
            touched.dedup();
            if self.has_queued {
                // The next attempt of a queued step is not the run's to start.
                touched.retain(|key| key.kind != TimerKind::Retry || !run.is_queued(OpId(key.id)));
            }
            if planted(Bug::ForgetTimerRow) {
                touched.retain(|key| key.kind != TimerKind::Retry);
            }
            writes.extend(touched.into_iter().map(|key| match run.timer(key) {
                Some(fire_at) => Write::TimerSet(Timer { key, fire_at }),
                None => Write::TimerDeleted(key),
            }));
        }
        between(run, events, &mut writes);
        self.doubts(run, events, &mut writes);
        self.queued(run, events, &mut writes);
        match (self.has_task, run.needs_worker()) {
            (false, true) => writes.push(Write::TaskSet(run.task())),
            (true, false) => writes.push(Write::TaskDeleted),
            _ => {}
        }
        attributes(run, events, &mut writes);
        if events.iter().any(|e| changes_row(&e.body)) {
            writes.push(Write::Run(Box::new(run.row())));
        }
        writes
    }

    fn queued(self, run: &Run, events: &[Event], writes: &mut Vec<Write>) {
        let scheduled = |e: &Event| matches!(e.body, EventBody::StepScheduled(_));
        if run.status().is_closed() {
            if self.has_queued {
                writes.push(Write::StepTasksCleared);
            }
        } else if self.has_queued || events.iter().any(scheduled) {
            let mut touched: Vec<OpId> = events.iter().filter_map(|e| e.body.op()).collect();
            touched.sort_unstable();
            touched.dedup();
            writes.extend(touched.into_iter().filter_map(|step| match run.step_task(step) {
                Some(task) => Some(Write::StepTaskSet(Box::new(task))),
                None => run.ended_as_queued(step).then_some(Write::StepTaskDeleted(step)),
            }));
        }
    }

    fn doubts(self, run: &Run, events: &[Event], writes: &mut Vec<Write>) {
        let doubted = |e: &Event| matches!(e.body, EventBody::StepInDoubt { .. });
        if run.status().is_closed() {
            if self.has_doubts {
                writes.push(Write::DoubtsCleared);
            }
        } else if self.has_doubts || events.iter().any(doubted) {
            let mut touched: Vec<OpId> = events.iter().filter_map(|e| e.body.op()).collect();
            touched.sort_unstable();
            touched.dedup();
            writes.extend(touched.into_iter().map(|step| match run.doubt(step) {
                Some(doubt) => Write::DoubtSet(Box::new(doubt)),
                None => Write::DoubtDeleted(step),
            }));
        }
    }
}

/// A run is found by its attributes when it is closed, too.
fn attributes(run: &Run, events: &[Event], writes: &mut Vec<Write>) {
    let sets = |e: &Event| match &e.body {
        EventBody::RunStarted(started) => !started.notes.attributes.is_empty(),
        EventBody::AttributesUpserted { notes, .. } => !notes.attributes.is_empty(),
        _ => false,
    };
    if events.iter().any(sets) {
        let (namespace, attributes) = (run.queue().namespace, run.search_attributes());
        writes.push(Write::AttributesSet(Box::new(AttributeRows { namespace, attributes })));
    }
}

/// What others have to hear, and whom the run is linked to.
fn between(run: &Run, events: &[Event], writes: &mut Vec<Write>) {
    for event in events {
        match &event.body {
            EventBody::ChildStarted { scheduled: seq, .. }
            | EventBody::ExternalResolved { requested: seq, .. } => {
                writes.push(Write::OutboxDeleted { seq: *seq });
            }
            EventBody::ChildClosed(closed) if matches!(closed.outcome, ChildOutcome::NotStarted(_)) => {
                writes.push(Write::OutboxDeleted { seq: closed.scheduled });
            }
            _ if run.has_outbound(event) => writes.push(Write::OutboxSet { seq: event.seq }),
            _ => {}
        }
        let linked = matches!(event.body, EventBody::RunStarted(_)) || event.body.is_terminal();
        if linked
            && let Some(link) = run.link()
            && (event.seq == 1 || link.successor.is_some())
        {
            writes.push(Write::LinkSet(Box::new(link)));
        }
    }
}

/// True for events that change what the run's row shows.
pub(crate) fn changes_row(body: &EventBody) -> bool {
    match body {
        EventBody::RunStarted(_)
        | EventBody::WorkerAttached { .. }
        | EventBody::WorkerDetached { .. }
        | EventBody::CancelRequested { .. }
        | EventBody::RunBlocked(_)
        | EventBody::RunUnblocked { .. } => true,
        EventBody::StepStarted { .. }
        | EventBody::StepInDoubt { .. }
        | EventBody::StepResolved(_)
        | EventBody::StepScheduled(_)
        | EventBody::StepCancelRequested { .. }
        | EventBody::StepCompleted { .. }
        | EventBody::StepFailed { .. }
        | EventBody::TimerStarted { .. }
        | EventBody::TimerFired { .. }
        | EventBody::TimerCanceled { .. }
        | EventBody::SignalReceived { .. }
        | EventBody::UpdateAccepted { .. }
        | EventBody::UpdateCompleted { .. }
        | EventBody::ChildScheduled(_)
        | EventBody::ChildStarted { .. }
        | EventBody::ChildClosed(_)
        | EventBody::ExternalRequested(_)
        | EventBody::ExternalResolved { .. }
        | EventBody::VersionMarked { .. }
        | EventBody::AttributesUpserted { .. }
        | EventBody::Ignored { .. } => false,
        EventBody::RunCompleted { .. }
        | EventBody::RunFailed { .. }
        | EventBody::RunCanceled { .. }
        | EventBody::RunTerminated { .. }
        | EventBody::RunContinued { .. }
        | EventBody::RunTimedOut { .. } => true,
    }
}

fn timers_touched(body: &EventBody) -> Option<TimerKey> {
    match body {
        EventBody::RunStarted(s) => s.run_timeout.map(|_| TimerKey::RUN_TIMEOUT),
        EventBody::TimerStarted { timer, .. } | EventBody::TimerCanceled { timer } => {
            Some(TimerKey::timer(*timer))
        }
        EventBody::TimerFired { timer } => Some(*timer),
        EventBody::StepFailed { step, .. } => Some(TimerKey::retry(*step)),
        // Only a later attempt can have a retry timer to clear.
        EventBody::StepStarted { step, attempt, .. } | EventBody::StepCompleted { step, attempt, .. } => {
            (*attempt > 1).then_some(TimerKey::retry(*step))
        }
        _ => None,
    }
}

impl TimerKind {
    /// The stable word used in SQL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Timer => "timer",
            Self::Retry => "retry",
            Self::RunTimeout => "run_timeout",
            Self::Start => "start",
        }
    }

    /// The kind whose word is `text`.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Timer, Self::Retry, Self::RunTimeout, Self::Start].into_iter().find(|k| k.as_str() == text)
    }
}
