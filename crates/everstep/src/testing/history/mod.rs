//! A run's events as a value: from an environment, from an export, or from a file.

mod export;
mod export_between;
mod file;

use std::fmt;

use everstep_core::{Event, EventBody, HistoryError, Resolution, Run, RunId, UpdateOutcome};

/// The history of one run. Its `Display` is one line for each event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    run_id: RunId,
    events: Vec<Event>,
    /// It comes from an export that leaves out the seed of `ctx.random`.
    seedless: bool,
}

/// Data is no history that this version can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Unreadable {
    problem: String,
}

impl Unreadable {
    fn new(problem: impl Into<String>) -> Self {
        Self { problem: problem.into() }
    }

    fn on_line(number: usize, problem: impl fmt::Display) -> Self {
        Self::new(format!("line {number}: {problem}"))
    }

    pub(super) fn of_file(error: &std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<HistoryError> for Unreadable {
    fn from(error: HistoryError) -> Self {
        Self::new(error.to_string())
    }
}

impl History {
    pub(super) fn new(run_id: RunId, events: Vec<Event>) -> Self {
        Self { run_id, events, seedless: false }
    }

    /// The history of a run that has these events, such as [`RunHandle::history`](crate::RunHandle::history) gives.
    ///
    /// # Errors
    /// [`Unreadable`] when that is no history, from its first event on, that Everstep writes.
    pub fn from_events(run_id: RunId, events: Vec<Event>) -> Result<Self, Unreadable> {
        match Run::fold(run_id, &events)? {
            Some(_) => Ok(Self::new(run_id, events)),
            None => Err(Unreadable::new(format!("run {run_id} has no events"))),
        }
    }

    /// Reads whatever form the data are in: the JSON lines of `everstep admin export`, which may hold many runs,
    /// or what [`to_bytes`](Self::to_bytes) gave.
    ///
    /// An export says nothing of the seed of `ctx.random` and `ctx.uuid` if it was made before that was part of
    /// it; the wire form is exact.
    ///
    /// # Errors
    /// [`Unreadable`] with the line or event.
    pub fn read_all(data: &[u8]) -> Result<Vec<Self>, Unreadable> {
        // A line of an export begins with a key; the wire form has a tag in that place.
        if data.trim_ascii_start().starts_with(b"{\"") || data.trim_ascii().is_empty() {
            let text = std::str::from_utf8(data).map_err(|e| Unreadable::new(e.to_string()))?;
            export::read(text)
        } else {
            Ok(vec![Self::from_bytes(data)?])
        }
    }

    /// Reads the wire form: a header, then the events, each as a protobuf message behind its length.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn from_bytes(data: &[u8]) -> Result<Self, Unreadable> {
        file::read(data)
    }

    /// The wire form, for a file whose name ends with `.history`.
    pub fn to_bytes(&self) -> Vec<u8> {
        file::write(self)
    }

    /// The run.
    pub fn run_id(&self) -> RunId {
        self.run_id
    }

    /// The events, from seq 1.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The workflow's name.
    pub fn workflow_type(&self) -> &str {
        match self.events.first().map(|event| &event.body) {
            Some(EventBody::RunStarted(start)) => &start.workflow_type,
            _ => "",
        }
    }

    /// The kinds of the events, in order: what a test compares when times and ids do not matter.
    pub fn kinds(&self) -> Vec<&str> {
        self.events.iter().map(|event| event.body.kind()).collect()
    }

    /// What may be behind a difference.
    pub(super) fn hint(&self) -> &'static str {
        if self.seedless {
            "the export has no seed: ctx.random and ctx.uuid give other values here"
        } else {
            ""
        }
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in &self.events {
            let at = super::effects::instant(event.at);
            writeln!(f, "{:>5}  {at}  {}{}", event.seq, event.body.kind(), detail(&event.body))?;
        }
        Ok(())
    }
}

/// What tells an event apart from others of its kind.
fn detail(body: &EventBody) -> String {
    let text = super::replayer::text;
    match body {
        EventBody::RunStarted(start) => format!("  '{}' with {}", start.workflow_type, text(&start.input)),
        EventBody::WorkerDetached { reason } => format!("  {reason:?}"),
        EventBody::StepStarted { step, name, attempt, .. }
        | EventBody::StepInDoubt { step, name, attempt } => format!("  '{name}' {step} attempt {attempt}"),
        EventBody::StepResolved(resolved) => {
            let word = match &resolved.resolution {
                Resolution::Completed(result) => format!("completed with {}", text(result)),
                Resolution::Failed(failure) => format!("failed: {}: {}", failure.kind, failure.message),
                Resolution::Retry => "to be tried again".to_owned(),
            };
            format!("  '{}' {} attempt {}: {word}", resolved.name, resolved.step, resolved.attempt)
        }
        EventBody::StepCompleted { step, name, attempt, result, .. } => {
            format!("  '{name}' {step} attempt {attempt}: {}", text(result))
        }
        EventBody::StepFailed { step, name, attempt, failure, .. } => {
            format!("  '{name}' {step} attempt {attempt}: {}: {}", failure.kind, failure.message)
        }
        EventBody::TimerStarted { timer, fire_at } => {
            format!("  {timer} until {}", super::effects::instant(*fire_at))
        }
        EventBody::TimerFired { timer } => format!("  {} #{}", timer.kind.as_str(), timer.id),
        EventBody::TimerCanceled { timer } => format!("  {timer}"),
        EventBody::SignalReceived { name, input, .. } => format!("  '{name}': {}", text(input)),
        EventBody::UpdateAccepted { name, input, .. } => format!("  '{name}': {}", text(input)),
        EventBody::UpdateCompleted { accepted, outcome, .. } => match outcome {
            UpdateOutcome::Completed(result) => format!("  of event {accepted}: {}", text(result)),
            UpdateOutcome::Failed(failure) => {
                format!("  of event {accepted}: {}: {}", failure.kind, failure.message)
            }
        },
        EventBody::VersionMarked { change_id, version } => format!("  '{change_id}' at {version}"),
        EventBody::ChildScheduled(scheduled) => {
            format!("  '{}' {}", scheduled.workflow_type, scheduled.child)
        }
        EventBody::ChildClosed(closed) => format!("  {} {}", closed.child, closed.outcome.as_str()),
        EventBody::ExternalResolved { op, failure, .. } => match failure {
            None => format!("  {op} delivered"),
            Some(failure) => format!("  {op}: {}: {}", failure.kind, failure.message),
        },
        EventBody::RunBlocked(blocked) => {
            format!("  expected {}, got {}", blocked.expected, blocked.produced)
        }
        EventBody::RunCompleted { result, .. } => format!("  {}", text(result)),
        EventBody::RunFailed { failure, .. } => format!("  {}: {}", failure.kind, failure.message),
        _ => String::new(),
    }
}
