//! The files of a case: what the test harness writes and the checker reads. One JSON document a line,
//! except `meta.json` and `verdict.json`.
//!
//! Fields are added, never renamed, so that a better checker can judge old cases again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What the case was: [`Meta`].
pub const META: &str = "meta.json";
/// Output of `everstep admin export` after the run.
pub const EXPORT: &str = "export.ndjson";
/// Folder of exports taken while the case ran, in the order of their names.
pub const SNAPSHOTS: &str = "snapshots";
/// The effect journal: [`JournalEntry`].
pub const JOURNAL: &str = "journal.ndjson";
/// What clients asked and heard: [`HistoryEntry`].
pub const HISTORY: &str = "history.ndjson";
/// How each workflow has to end: [`Expected`].
pub const EXPECTED: &str = "expected.ndjson";

/// How a case was set up and what the harness counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// What everything random was drawn from.
    pub seed: u64,
    /// Commit of the product.
    pub git: String,
    /// `sqlite` or `postgres`.
    pub store: String,
    /// Server processes.
    pub nodes: u32,
    /// Worker processes.
    pub workers: u32,
    /// When the case began, on the monotonic clock.
    pub started_mono_ns: u64,
    /// When the last fault was healed, on the monotonic clock; `None` when nothing was ever healed.
    pub healed_mono_ns: Option<u64>,
    /// The same instant by the database's clock, in microseconds since 1970. Only with it can lateness
    /// after the heal be judged.
    pub healed_at_us: Option<i64>,
    /// When the export was taken, by the database's clock, in microseconds since 1970.
    pub exported_at_us: Option<i64>,
    /// Lease of a worker's session.
    pub lease_ms: u64,
    /// Faults by name.
    pub faults: BTreeMap<String, FaultCount>,
    /// Writes that were refused because their sender no longer owned the run.
    pub refused_fenced: u64,
    /// Commits whose reply was lost and whose outcome was then found out.
    pub unknown_resolved: u64,
    /// Hints or requests that arrived more than once.
    pub redelivered: u64,
    /// What must have happened at least once for the case to count.
    pub demands: Vec<Demand>,
    /// The bug that was built in on purpose, if any.
    pub planted_bug: Option<String>,
    /// Longest time that a timer may be late after the heal; [`DEFAULT_LATE_BOUND_MS`] when absent.
    pub late_bound_ms: Option<u64>,
    /// Same for the whole case, judged as the 99th percentile; not judged when absent.
    pub late_p99_bound_ms: Option<u64>,
}

/// INV-33: lateness after the heal.
pub const DEFAULT_LATE_BOUND_MS: u64 = 30_000;

/// How often a fault was drawn and how often it really happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultCount {
    /// Drawn by the schedule.
    pub drawn: u64,
    /// Seen to happen.
    pub fired: u64,
}

/// What a case can be asked to have met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Demand {
    /// A write was refused because of its epoch.
    Fenced,
    /// A commit's outcome was unknown and was settled.
    Unknown,
    /// Something was delivered twice.
    Redelivered,
}

/// One line of the effect journal. The sink writes it, with fsync, before it acknowledges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// The run.
    pub run_id: String,
    /// Its workflow id.
    pub workflow_id: String,
    /// The step's number within the run.
    pub step: u32,
    /// The step's name.
    pub name: String,
    /// Attempt, from 1.
    pub attempt: u32,
    /// Epoch under which the worker ran it.
    pub epoch: u32,
    /// What the effect carries. The same for `begin` and `end` of one execution.
    pub nonce: String,
    /// Before the effect, or after it.
    pub phase: Phase,
    /// Which worker process.
    pub worker: String,
    /// Monotonic clock when the sink wrote the line.
    pub mono_ns: u64,
    /// With `end`: SHA-256, in hex, of the JSON text that the step returns. Absent for a failing attempt
    /// and for a sink that does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_sha256: Option<String>,
    /// Set for an attempt of a queued step, whose epoch is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<Progress>,
}

/// What an attempt of a queued step knows about how far the step is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// With `begin`: what it was told of the attempts before it. With `beat`: what it is about to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<u64>,
}

/// The name of queued steps that tell the sink of their effects.
pub const TELLS: &str = "work";

/// Which side of an effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Acknowledged before the effect counts as done.
    #[default]
    Begin,
    /// Acknowledged after it.
    End,
    /// Acknowledged before the attempt says how far it is.
    Beat,
    /// Somebody asked whether the attempt had begun, and was told no: it will not begin any more.
    Denied,
}

/// One line of a client's history. Each process is sequential: an invoke is followed by exactly one reply
/// of the same index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The client.
    pub process: u32,
    /// Number of the op within its process.
    pub index: u64,
    /// Invoke, or which reply.
    #[serde(rename = "type")]
    pub kind: EntryKind,
    /// What was asked.
    pub op: OpKind,
    /// Of which workflow.
    pub workflow_id: String,
    /// The run, once known.
    pub run_id: Option<String>,
    /// The request id that was sent.
    pub request_id: Option<String>,
    /// The signal's name.
    pub signal: Option<String>,
    /// What the op carries.
    pub nonce: Option<String>,
    /// Monotonic clock when the line was written: before sending, after the reply.
    pub mono_ns: u64,
    /// `CODE: text` of a refusal.
    pub error: Option<String>,
    /// What the reply said.
    pub value: Option<serde_json::Value>,
}

/// Kinds of lines in a client's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// About to send.
    #[default]
    Invoke,
    /// It was done.
    Ok,
    /// It certainly had no effect: refused before sending, or a typed refusal.
    Fail,
    /// Everything else without a reply.
    Unknown,
}

/// What clients ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpKind {
    /// Start a run.
    #[default]
    Start,
    /// Send it a signal; `request_id` is the signal's id.
    Signal,
    /// Ask it to stop.
    Cancel,
    /// Stop it.
    Terminate,
    /// Wait for its result. `ok` once the run is closed, `value` being its output or its status.
    Result,
    /// Ask for its status; `value` is a string, or an object with `status`.
    Describe,
    /// Ask its code for an update; `request_id` is the update's id. `value` has `update`: `{"result": …}` or
    /// `{"failure": KIND}`, absent while it is only accepted.
    Update,
    /// Start a run with a signal, both with the same `request_id`.
    SignalWithStart,
    /// Start a run and ask it for an update, both with the same `request_id`.
    UpdateWithStart,
    /// Say what became of a step in doubt.
    Resolve,
}

impl OpKind {
    /// The word in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Signal => "signal",
            Self::Cancel => "cancel",
            Self::Terminate => "terminate",
            Self::Result => "result",
            Self::Describe => "describe",
            Self::Update => "update",
            Self::SignalWithStart => "signal_with_start",
            Self::UpdateWithStart => "update_with_start",
            Self::Resolve => "resolve",
        }
    }

    /// Whether it starts a run.
    pub const fn starts(self) -> bool {
        matches!(self, Self::Start | Self::SignalWithStart | Self::UpdateWithStart)
    }

    /// Whether it sends a signal.
    pub const fn signals(self) -> bool {
        matches!(self, Self::Signal | Self::SignalWithStart)
    }

    /// Whether it asks for an update.
    pub const fn updates(self) -> bool {
        matches!(self, Self::Update | Self::UpdateWithStart)
    }

    /// Whether it only looks.
    pub const fn reads(self) -> bool {
        matches!(self, Self::Result | Self::Describe)
    }
}

/// How one workflow has to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// Which.
    pub workflow_id: String,
    /// What its program was generated from.
    #[serde(default)]
    pub program_seed: u64,
    /// How its run ends.
    pub outcome: ExpectedOutcome,
    /// Steps of a run that ends as its program wants. `Failed` ones are listed as well.
    #[serde(default)]
    pub steps: Vec<ExpectedStep>,
    /// Ids of the signals that clients may send it.
    #[serde(default)]
    pub signals: Vec<String>,
    /// Its timers.
    #[serde(default)]
    pub timers: Vec<ExpectedTimer>,
}

/// How a run ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ExpectedOutcome {
    /// With this output.
    Completed {
        /// SHA-256, in hex, of the output's JSON text.
        output_sha256: String,
    },
    /// With a failure of this kind.
    Failed {
        /// The failure's `kind`.
        failure_kind: String,
    },
    /// After a cancel request.
    Canceled,
    /// By force.
    Terminated,
    /// One of several ways, by what reached it first.
    Any {
        /// The ways.
        of: Vec<ExpectedOutcome>,
    },
}

/// A step that a run has to record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectedStep {
    /// What its executions report.
    pub nonce: String,
    /// Attempts that it needs at least.
    pub attempts_min: u32,
}

/// A timer that a run has to wait for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectedTimer {
    /// Its name in the program.
    pub nonce: String,
    /// How long.
    pub delay_us: u64,
}

/// Appends lines to one of the files. Each line reaches the file in one write.
#[derive(Debug)]
pub struct LineWriter<T> {
    path: PathBuf,
    file: File,
    lines: PhantomData<fn(T)>,
}

impl<T: Serialize> LineWriter<T> {
    /// Opens `path` to append to it.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn append(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("open {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, lines: PhantomData })
    }

    /// Appends one line.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, line: &T) -> anyhow::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).with_context(|| format!("write {}", self.path.display()))
    }

    /// Waits until the disk has all lines.
    ///
    /// # Errors
    /// When it does not take them.
    pub fn sync(&mut self) -> anyhow::Result<()> {
        self.file.sync_data().with_context(|| format!("sync {}", self.path.display()))
    }
}

/// Calls `each` for every line of `path`, with its number from 1. A file that is not there has no lines,
/// and the answer is then `false`. A last line without its line feed is skipped when it does not parse:
/// its writer was killed in the middle of it.
///
/// # Errors
/// When the file cannot be read, a line does not parse, or `each` fails.
pub fn read_lines<T: DeserializeOwned>(
    path: &Path,
    mut each: impl FnMut(usize, T) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let (mut text, mut number) = (Vec::new(), 0);
    loop {
        text.clear();
        let read = reader.read_until(b'\n', &mut text).with_context(|| format!("read {}", path.display()))?;
        if read == 0 {
            return Ok(true);
        }
        number += 1;
        let whole = text.ends_with(b"\n");
        if text.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice(&text) {
            Ok(line) => each(number, line)?,
            Err(_) if !whole => return Ok(true),
            Err(error) => return Err(error).with_context(|| format!("{} line {number}", path.display())),
        }
    }
}

/// All lines of `path`, or `None` when there is no such file.
///
/// # Errors
/// When the file cannot be read or a line does not parse.
pub fn read_all<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<Vec<T>>> {
    let mut lines = Vec::new();
    let found = read_lines(path, |_, line| {
        lines.push(line);
        Ok(())
    })?;
    Ok(found.then_some(lines))
}

impl Meta {
    /// Reads `meta.json` of a case; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read or does not parse.
    pub fn read(case: &Path) -> anyhow::Result<Option<Self>> {
        let path = case.join(META);
        match std::fs::read(&path) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Writes `meta.json` of a case.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, case: &Path) -> anyhow::Result<()> {
        let path = case.join(META);
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }
}
