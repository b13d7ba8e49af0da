//! A case in memory: the files of its folder, read once, line by line.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, bail};
use everstep_core::{Doubt, Event, QueueKey, RunId, RunRow, RunStatus, StepTask, Timer, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use crate::decode;
use crate::format::{
    self, EXPECTED, EXPORT, EntryKind, Expected, HISTORY, HistoryEntry, JOURNAL, JournalEntry, Meta, OpKind,
};

/// Everything that a case left behind. `None` stands for a file that is not there.
#[derive(Debug, Default)]
pub(crate) struct Case {
    pub(crate) meta: Option<Meta>,
    pub(crate) runs: BTreeMap<RunId, Tables>,
    /// Lines of the export that no type of the core fits.
    pub(crate) undecoded: Vec<String>,
    pub(crate) journal: Option<Vec<JournalEntry>>,
    pub(crate) ops: Option<Vec<Op>>,
    /// Lines of the client history that break its own rules.
    pub(crate) ops_broken: Vec<String>,
    pub(crate) expected: Option<Vec<Expected>>,
}

/// What the export says about one run.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) row: Option<RunRow>,
    pub(crate) events: Vec<Event>,
    pub(crate) timers: Vec<Timer>,
    pub(crate) tasks: Vec<QueueKey>,
    pub(crate) doubts: Vec<Doubt>,
    pub(crate) steps: Vec<StepTask>,
    pub(crate) wakes: Vec<u64>,
}

/// Hash of each event's line, by run and in order: what INV-02 compares.
pub(crate) type Prints = HashMap<String, Vec<u64>>;

/// One op of a client: its invoke and its reply.
#[derive(Clone, Debug, Default)]
pub(crate) struct Op {
    pub(crate) process: u32,
    pub(crate) kind: OpKind,
    pub(crate) workflow_id: String,
    pub(crate) run_id: Option<String>,
    /// What tells this start, signal, cancel or terminate apart.
    pub(crate) request_id: Option<String>,
    pub(crate) invoked: u64,
    pub(crate) outcome: Outcome,
    /// When the reply came; `None` while the outcome is unknown.
    pub(crate) replied: Option<u64>,
    pub(crate) error: String,
    pub(crate) value: Option<Value>,
}

/// How an op ended for its client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    Fail,
    #[default]
    Unknown,
}

impl Op {
    /// The id of the update that it asks for.
    pub(crate) fn update_id(&self) -> &str {
        self.request_id.as_deref().unwrap_or_default()
    }

    /// The refusal's reason word.
    pub(crate) fn code(&self) -> &str {
        self.error.split([':', ' ']).next().unwrap_or_default()
    }
}

impl Tables {
    pub(crate) fn workflow_id(&self) -> &str {
        if let Some(row) = &self.row {
            return &row.workflow_id;
        }
        match self.events.first().map(|e| &e.body) {
            Some(everstep_core::EventBody::RunStarted(start)) => &start.workflow_id,
            _ => "",
        }
    }

    /// Closed, by its row or by its events: whichever says so.
    pub(crate) fn is_closed(&self) -> bool {
        self.row.as_ref().is_some_and(|r| r.status.is_closed())
            || self.events.iter().any(|e| e.body.is_terminal())
    }

    pub(crate) fn status(&self) -> Option<RunStatus> {
        self.row.as_ref().map(|r| r.status)
    }
}

impl Case {
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let mut case = Self {
            meta: Meta::read(folder)?,
            journal: format::read_all(&folder.join(JOURNAL))?,
            expected: format::read_all(&folder.join(EXPECTED))?,
            ..Self::default()
        };
        export_lines(&folder.join(EXPORT), |number, line, _| {
            if let Err(error) = case.add(&line) {
                case.undecoded.push(format!("{EXPORT} line {number}: {error:#}"));
            }
            Ok(())
        })?;
        for tables in case.runs.values_mut() {
            tables.timers.sort_unstable();
        }
        if let Some(entries) = format::read_all::<HistoryEntry>(&folder.join(HISTORY))? {
            case.pair(entries);
        }
        Ok(case)
    }

    fn add(&mut self, line: &ExportLine) -> anyhow::Result<()> {
        let id = match (&line.run_id, line.row.get("run_id").and_then(Value::as_str)) {
            (Some(id), _) => id.as_str(),
            (None, Some(id)) => id,
            (None, None) => bail!("no run_id"),
        };
        let tables = self.runs.entry(id.parse().context("run_id")?).or_default();
        match line.table.as_str() {
            "runs" if tables.row.is_some() => bail!("a second row of run {id}"),
            "runs" => tables.row = Some(decode::run_row(&line.row)?),
            "events" => tables.events.push(decode::event(&line.row)?),
            "timers" => tables.timers.push(decode::timer(&line.row)?),
            "tasks" => tables.tasks.push(decode::task(&line.row)?),
            "doubts" => tables.doubts.push(decode::doubt(&line.row)?),
            "step_tasks" => tables.steps.push(decode::step_task(&line.row)?),
            "wakes" => tables.wakes.push(decode::wake(&line.row)?),
            // A table of a later version.
            _ => {}
        }
        Ok(())
    }

    /// Puts invokes and replies together. An invoke without a reply is unknown: its client was killed.
    fn pair(&mut self, entries: Vec<HistoryEntry>) {
        let mut ops: Vec<Op> = Vec::new();
        let mut open: HashMap<(u32, u64), usize> = HashMap::new();
        let mut busy: HashMap<u32, u64> = HashMap::new();
        for entry in entries {
            let key = (entry.process, entry.index);
            let at = format!("client {} op {}", entry.process, entry.index);
            if entry.kind == EntryKind::Invoke {
                if let Some(other) = busy.insert(entry.process, entry.index) {
                    self.ops_broken.push(format!("{at} begins while op {other} has no reply"));
                }
                if open.insert(key, ops.len()).is_some() {
                    self.ops_broken.push(format!("{at} is invoked twice"));
                }
                ops.push(invoked(entry));
                continue;
            }
            busy.remove(&entry.process);
            match open.remove(&key) {
                Some(index) => replied(&mut ops[index], entry),
                None => self.ops_broken.push(format!("{at} has a reply and no invoke")),
            }
        }
        self.ops = Some(ops);
    }

    /// Runs of each workflow id, oldest first.
    pub(crate) fn by_workflow(&self) -> BTreeMap<&str, Vec<(RunId, &Tables)>> {
        let mut runs: BTreeMap<&str, Vec<(RunId, &Tables)>> = BTreeMap::new();
        for (id, tables) in &self.runs {
            runs.entry(tables.workflow_id()).or_default().push((*id, tables));
        }
        runs
    }

    /// The latest instant of the database's clock that the case is known to have reached.
    pub(crate) fn now(&self) -> Timestamp {
        let last = self.runs.values().flat_map(|t| t.events.iter().map(|e| e.at)).max();
        let exported = self.meta.as_ref().and_then(|m| m.exported_at_us).map(Timestamp::from_micros);
        last.max(exported).unwrap_or_default()
    }
}

fn invoked(entry: HistoryEntry) -> Op {
    Op {
        process: entry.process,
        kind: entry.op,
        workflow_id: entry.workflow_id,
        run_id: entry.run_id,
        request_id: entry.request_id.or(entry.nonce),
        invoked: entry.mono_ns,
        ..Op::default()
    }
}

fn replied(op: &mut Op, entry: HistoryEntry) {
    op.run_id = entry.run_id.or_else(|| op.run_id.take());
    op.error = entry.error.unwrap_or_default();
    op.value = entry.value;
    (op.outcome, op.replied) = match entry.kind {
        EntryKind::Ok => (Outcome::Ok, Some(entry.mono_ns)),
        EntryKind::Fail => (Outcome::Fail, Some(entry.mono_ns)),
        EntryKind::Unknown | EntryKind::Invoke => (Outcome::Unknown, None),
    };
}

/// One line of an export.
#[derive(Debug, Deserialize)]
pub(crate) struct ExportLine {
    pub(crate) table: String,
    pub(crate) run_id: Option<String>,
    pub(crate) row: Value,
}

/// Calls `each` with the number, content and hash of every line of an export.
pub(crate) fn export_lines(
    path: &Path,
    mut each: impl FnMut(usize, ExportLine, u64) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        if reader.read_until(b'\n', &mut text).with_context(|| format!("read {}", path.display()))? == 0 {
            break;
        }
        let bytes = text.trim_ascii();
        if bytes.is_empty() {
            continue;
        }
        let line =
            serde_json::from_slice(bytes).with_context(|| format!("{} line {number}", path.display()))?;
        let mut hash = DefaultHasher::new();
        bytes.hash(&mut hash);
        each(number, line, hash.finish())?;
    }
    Ok(())
}

/// The events of an export, as hashes of their lines.
pub(crate) fn prints(path: &Path) -> anyhow::Result<Prints> {
    let mut prints = Prints::new();
    export_lines(path, |_, line, hash| {
        if line.table == "events" {
            prints.entry(line.run_id.unwrap_or_default()).or_default().push(hash);
        }
        Ok(())
    })?;
    Ok(prints)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: EntryKind, index: u64) -> HistoryEntry {
        HistoryEntry { kind, index, mono_ns: index, ..HistoryEntry::default() }
    }

    fn paired(entries: Vec<HistoryEntry>) -> Case {
        let mut case = Case::default();
        case.pair(entries);
        case
    }

    #[test]
    fn an_invoke_without_a_reply_is_unknown() {
        let case = paired(vec![entry(EntryKind::Invoke, 1)]);
        let outcomes: Vec<_> = case.ops.iter().flatten().map(|op| (op.outcome, op.replied)).collect();
        assert_eq!(outcomes, [(Outcome::Unknown, None)]);
    }

    #[test]
    fn a_history_that_breaks_its_own_rules_is_told() {
        let twice = paired(vec![entry(EntryKind::Invoke, 1), entry(EntryKind::Invoke, 2)]);
        assert!(twice.ops_broken.iter().any(|p| p.contains("has no reply")), "{:?}", twice.ops_broken);
        let lone = paired(vec![entry(EntryKind::Ok, 1)]);
        assert!(lone.ops_broken.iter().any(|p| p.contains("no invoke")), "{:?}", lone.ops_broken);
    }

    #[test]
    fn the_reason_of_a_refusal_is_its_first_word() {
        let op = Op { error: "RUN_CLOSED: the run is closed".to_owned(), ..Op::default() };
        assert_eq!(op.code(), "RUN_CLOSED");
    }
}
