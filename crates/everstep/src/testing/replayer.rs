//! Stored histories against the code of today.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use everstep_core::{Event, EventBody, OpId, Payload, RunId, Seq, TimerKind};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::History;
use super::history::Unreadable;
use crate::ctx::{Known, OpState};
use crate::machine::{Machine, Obstacle, Work, WorkflowFactory};
use crate::worker::workflow_factory;
use crate::{Ctx, WorkflowError};

/// The first place where a history and the code do not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The run.
    pub run_id: RunId,
    /// Which workflow.
    pub workflow_type: String,
    /// The event that the code disagrees with.
    pub seq: Seq,
    /// Its kind.
    pub kind: String,
    /// What the history says.
    pub expected: String,
    /// What the code does.
    pub produced: String,
    /// `file:line` of the workflow call concerned; may be empty.
    pub source: String,
    /// What else there is to know; may be empty.
    pub hint: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run_id, workflow_type, seq, kind, expected, produced, source, hint } = self;
        write!(
            f,
            "workflow '{workflow_type}', run {run_id}: event {seq} ({kind}) differs: the history has {expected}, \
             the code {produced}"
        )?;
        if !source.is_empty() {
            write!(f, ", at {source}")?;
        }
        if !hint.is_empty() {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Difference {}

/// A stored history cannot be replayed, or does not fit.
#[derive(Clone, thiserror::Error)]
pub enum ReplayError {
    /// Code and history do not fit.
    #[error(transparent)]
    Differs(#[from] Box<Difference>),
    /// The workflow is not registered.
    #[error("run {run_id} is of workflow '{name}', which is not registered")]
    UnknownWorkflow {
        /// The run.
        run_id: RunId,
        /// Its workflow.
        name: String,
    },
    /// The file is no history.
    #[error("{}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Unreadable,
    },
    /// There is nothing to check, which is no proof of anything.
    #[error("{}: no history in it", .0.display())]
    Empty(PathBuf),
}

impl fmt::Debug for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)?;
        match self {
            Self::Unreadable { source, .. } => write!(f, ": {source}"),
            _ => Ok(()),
        }
    }
}

/// Replays histories through workflow code: no step runs, nothing is recorded.
///
/// ```
/// use everstep::testing::{Replayer, TestEnv};
/// use everstep::{Ctx, StepError, WorkflowError};
///
/// async fn double(ctx: Ctx, n: u32) -> Result<u32, WorkflowError> {
///     Ok(ctx.step("double", move || async move { Ok::<_, StepError>(2 * n) }).await?)
/// }
///
/// async fn renamed(ctx: Ctx, n: u32) -> Result<u32, WorkflowError> {
///     Ok(ctx.step("twice", move || async move { Ok::<_, StepError>(2 * n) }).await?)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut env = TestEnv::new().register("double", double);
/// let run = env.start("double", &21).await?;
/// let history = env.history(run)?;
///
/// Replayer::new().register("double", double).check(&history)?;
/// let differs = Replayer::new().register("double", renamed).check(&history).unwrap_err();
/// assert!(differs.to_string().contains("the history has step 'double' #1, the code step 'twice' #1"));
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
#[must_use = "nothing is replayed until a history is checked"]
pub struct Replayer {
    workflows: BTreeMap<String, WorkflowFactory>,
}

impl fmt::Debug for Replayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replayer").field("workflows", &self.workflows.keys()).finish()
    }
}

impl Replayer {
    /// A replayer without workflows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes up a workflow under a name, as [`WorkerBuilder::register`](crate::WorkerBuilder::register) does.
    pub fn register<I, O, F, Fut>(mut self, name: impl Into<String>, workflow: F) -> Self
    where
        I: DeserializeOwned,
        O: Serialize,
        F: Fn(Ctx, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, WorkflowError>> + Send + 'static,
    {
        self.workflows.insert(name.into(), workflow_factory(workflow));
        self
    }

    /// Replays one history. An open run's is checked as far as it goes.
    ///
    /// # Errors
    /// [`ReplayError::Differs`] with the first event that differs, [`ReplayError::UnknownWorkflow`].
    pub fn check(&self, history: &History) -> Result<(), ReplayError> {
        let name = history.workflow_type();
        match self.workflows.get(name) {
            Some(workflow) => Ok(check(history, workflow)?),
            None => Err(ReplayError::UnknownWorkflow { run_id: history.run_id(), name: name.to_owned() }),
        }
    }

    /// Replays the histories of a file: the JSON lines of `everstep admin export`, or what
    /// [`History::to_bytes`] gave. Gives how many there were.
    ///
    /// # Errors
    /// As [`check`](Self::check), [`ReplayError::Unreadable`], and [`ReplayError::Empty`] when there was none.
    pub fn check_file(&self, path: impl AsRef<Path>) -> Result<usize, ReplayError> {
        let path = path.as_ref();
        let unreadable = |source| ReplayError::Unreadable { path: path.to_owned(), source };
        let data = std::fs::read(path).map_err(|e| unreadable(Unreadable::of_file(&e)))?;
        let histories = History::read_all(&data).map_err(unreadable)?;
        if histories.is_empty() {
            return Err(ReplayError::Empty(path.to_owned()));
        }
        histories.iter().try_for_each(|history| self.check(history))?;
        Ok(histories.len())
    }

    /// Replays the histories of every file in a folder whose name ends with `.history` or `.jsonl`. Gives how
    /// many histories there were.
    ///
    /// # Errors
    /// As [`check_file`](Self::check_file).
    pub fn check_dir(&self, folder: impl AsRef<Path>) -> Result<usize, ReplayError> {
        let folder = folder.as_ref();
        let unreadable = |e: std::io::Error| ReplayError::Unreadable {
            path: folder.to_owned(),
            source: Unreadable::of_file(&e),
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.extension().is_some_and(|ending| ending == "history" || ending == "jsonl") {
                files.push(path);
            }
        }
        files.sort();
        if files.is_empty() {
            return Err(ReplayError::Empty(folder.to_owned()));
        }
        files.iter().try_fold(0, |sum, file| Ok(sum + self.check_file(file)?))
    }
}

/// Replays `history` through `workflow`, more strictly than a worker does: what the history says was done has to
/// have been asked for, and the run has to end as it did.
pub(crate) fn check(history: &History, workflow: &WorkflowFactory) -> Result<(), Box<Difference>> {
    let events = history.events();
    let Some((first, EventBody::RunStarted(start))) = events.first().map(|e| (e, &e.body)) else {
        return Ok(());
    };
    let mut machine = Machine::new(history.run_id(), start, first.at, workflow, Known::of(events));
    for event in events {
        let met = if event.body.is_terminal() {
            ends_alike(&mut machine, event)
        } else {
            was_asked_for(&machine, event).and_then(|()| follow(&mut machine, event))
        };
        met.map_err(|Unlike { expected, produced, source }| {
            Box::new(Difference {
                run_id: history.run_id(),
                workflow_type: start.workflow_type.clone(),
                seq: event.seq,
                kind: event.body.kind().to_owned(),
                expected,
                produced,
                source,
                hint: history.hint().to_owned(),
            })
        })?;
    }
    Ok(())
}

/// Both sides of a difference.
struct Unlike {
    expected: String,
    produced: String,
    source: String,
}

impl Unlike {
    fn new(expected: impl Into<String>, produced: impl Into<String>) -> Self {
        Self { expected: expected.into(), produced: produced.into(), source: String::new() }
    }
}

fn follow(machine: &mut Machine, event: &Event) -> Result<(), Unlike> {
    let ended = !machine.is_waiting();
    machine.apply(event).map_err(|obstacle| match obstacle {
        Obstacle::Blocked(blocked) => {
            let ended = ended && blocked.produced.starts_with("only ");
            let produced = if ended { "has ended".to_owned() } else { blocked.produced.clone() };
            Unlike { expected: blocked.expected.clone(), produced, source: blocked.source.clone() }
        }
        Obstacle::Panicked(message) => Unlike::new("a workflow that goes on", message),
    })
}

/// A step or timer that the history speaks of was awaited by then, not only built.
fn was_asked_for(machine: &Machine, event: &Event) -> Result<(), Unlike> {
    let (id, what) = match &event.body {
        EventBody::StepStarted { step, name, .. }
        | EventBody::StepInDoubt { step, name, .. }
        | EventBody::StepCompleted { step, name, .. }
        | EventBody::StepFailed { step, name, .. } => (*step, format!("step '{name}' {step}")),
        EventBody::TimerStarted { timer, .. } | EventBody::TimerCanceled { timer } => {
            (*timer, format!("timer {timer}"))
        }
        EventBody::TimerFired { timer } if timer.kind == TimerKind::Timer => {
            (OpId(timer.id), format!("timer #{}", timer.id))
        }
        _ => return Ok(()),
    };
    let state = machine.shared.lock();
    let asked = match state.ops.get((id.0 as usize).wrapping_sub(1)) {
        Some(OpState::Step(step)) => step.requested,
        Some(OpState::Timer(timer)) => timer.requested.is_some(),
        Some(OpState::Command(op)) => op.is_requested(),
        // It is not even built, which the replay says better.
        None => true,
    };
    if asked { Ok(()) } else { Err(Unlike::new(what, "builds it and does not await it")) }
}

/// The code has ended as the run did; where something else ended the run, there is nothing to compare.
fn ends_alike(machine: &mut Machine, event: &Event) -> Result<(), Unlike> {
    let expected = match &event.body {
        EventBody::RunCompleted { result, .. } => format!("the result {}", text(result)),
        EventBody::RunFailed { failure, .. } if failure.kind == "HistoryTooLarge" => return Ok(()),
        EventBody::RunFailed { failure, .. } => format!("a failure of kind '{}'", failure.kind),
        EventBody::RunCanceled { .. } => "a cancel".to_owned(),
        EventBody::RunContinued { .. } => "a new run".to_owned(),
        _ => return Ok(()),
    };
    let (mut pending, mut end) = (None, None);
    for work in machine.take_work() {
        match work {
            Work::Finish { outcome, .. } => end = Some(outcome),
            Work::Attempt { id, name, .. } => pending = Some(format!("still wants step '{name}' {id}")),
            Work::StartTimer { id, .. } => pending = Some(format!("still wants timer {id}")),
            Work::Probe { id, name, .. } | Work::GiveUp { id, name, .. } => {
                pending = Some(format!("still has a doubt about step '{name}' {id}"));
            }
            Work::Command(command) => pending = Some(format!("still wants {command:?}")),
            Work::CancelTimer { .. } | Work::MarkVersion { .. } => {}
        }
    }
    let produced = match (&event.body, end) {
        (_, None) => pending.unwrap_or_else(|| "still waits".to_owned()),
        (EventBody::RunCompleted { result, .. }, Some(Ok(value))) if same(result, &value) => return Ok(()),
        (EventBody::RunFailed { failure, .. }, Some(Err(WorkflowError::Failed(f))))
            if f.kind == failure.kind =>
        {
            return Ok(());
        }
        (EventBody::RunCanceled { .. }, Some(Err(WorkflowError::Canceled(_))))
        | (EventBody::RunContinued { .. }, Some(Err(WorkflowError::Continued(_)))) => return Ok(()),
        (_, Some(Ok(value))) => format!("returns {}", text(&value)),
        (_, Some(Err(WorkflowError::Failed(f)))) => format!("fails with '{}': {}", f.kind, f.message),
        (_, Some(Err(WorkflowError::Canceled(_)))) => "ends as canceled".to_owned(),
        (_, Some(Err(WorkflowError::Continued(_)))) => "goes on in a new run".to_owned(),
    };
    Err(Unlike::new(expected, produced))
}

/// The same value; how a JSON text is laid out says nothing.
pub(super) fn same(a: &Payload, b: &Payload) -> bool {
    let value = |p: &Payload| match p.is_none() {
        true => Some(serde_json::Value::Null),
        false if p.encoding == Payload::JSON => serde_json::from_slice(&p.data).ok(),
        false => None,
    };
    a == b || value(a).zip(value(b)).is_some_and(|(a, b)| same_value(&a, &b))
}

/// A number that went through text and back may differ in its last bit.
fn same_value(a: &serde_json::Value, b: &serde_json::Value) -> bool {
    use serde_json::Value::{Array, Number, Object};
    match (a, b) {
        (Number(x), Number(y)) if x.is_f64() && y.is_f64() => {
            let (x, y) = (x.as_f64().unwrap_or(0.0), y.as_f64().unwrap_or(0.0));
            (x - y).abs() <= x.abs() * 4.0 * f64::EPSILON
        }
        (Array(x), Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same_value(x, y)),
        (Object(x), Object(y)) => {
            x.len() == y.len() && x.iter().all(|(k, x)| y.get(k).is_some_and(|y| same_value(x, y)))
        }
        _ => a == b,
    }
}

/// A payload for people.
pub(super) fn text(payload: &Payload) -> String {
    let text = String::from_utf8_lossy(&payload.data);
    let short: String = text.chars().take(120).collect();
    if short.is_empty() {
        "nothing".to_owned()
    } else if short.len() < text.len() {
        format!("{short}…")
    } else {
        short
    }
}
