//! Pages for people: one for each run, with its events, executions and client ops by time, and an index. They
//! need nothing beside them, and show every text as text.
//!
//! The log has database time, the rest a monotonic clock; [`crate::clock`] says how they stand. The order of
//! events is the log's, whatever their times.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use everstep_core::{Actor, Event, EventBody, NotesChange, Payload, RunId, UpdateOutcome};

use crate::case::{Case, Op, Outcome, Tables};
use crate::clock::{self, Offset};
use crate::format::{JournalEntry, Phase};
use crate::verdict::{Verdict, Word};

/// Folder of the pages.
const FOLDER: &str = "timeline";
/// Characters of a value that a page shows.
const SHOWN_MAX: usize = 160;

const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem; background: Canvas; color: CanvasText; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .2rem .6rem; overflow-wrap: anywhere; }
th { position: sticky; top: 0; background: Canvas; border-bottom: 1px solid GrayText; }
td { border-bottom: 1px solid color-mix(in srgb, CanvasText 12%, transparent); }
td.t { font-variant-numeric: tabular-nums; white-space: nowrap; width: 7rem; }
.dim { color: color-mix(in srgb, CanvasText 60%, transparent); }
.bad { background: color-mix(in srgb, red 22%, transparent); }
.odd { background: color-mix(in srgb, orange 22%, transparent); }
.end { background: color-mix(in srgb, CanvasText 9%, transparent); }
li { margin: .15rem 0; }
";

/// Which column a row stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Log,
    Effects,
    Clients,
}

struct Row {
    at_us: i64,
    side: Side,
    class: &'static str,
    html: String,
}

/// Writes all pages into `folder`.
pub(crate) fn write(verdict: &Verdict, case: &Case, folder: &Path) -> anyhow::Result<()> {
    let pages = folder.join(FOLDER);
    std::fs::create_dir_all(&pages).with_context(|| format!("create {}", pages.display()))?;
    let put = |path: &Path, text: String| {
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
    };
    let names = names(case);
    let offset = clock::offset(case);
    let mut sides = Sides::of(case);
    for (id, tables) in &case.runs {
        let Some(name) = names.get(id) else { continue };
        let rows = sides.rows(*id, tables, offset.unwrap_or_else(|| guess(case, tables)));
        put(&pages.join(name), page(*id, tables, verdict, (rows, offset.is_some())))?;
    }
    put(&folder.join("index.html"), index(verdict, case, &names))
}

/// Without an offset: the clocks are taken to have begun together.
fn guess(case: &Case, tables: &Tables) -> Offset {
    let first = tables.events.first().map_or(0, |e| e.at.as_micros());
    let ops = case.ops.iter().flatten().map(|op| op.invoked);
    let mono = ops.chain(case.journal.iter().flatten().map(|e| e.mono_ns)).min().unwrap_or(0);
    let difference = first - i64::try_from(mono / 1_000).unwrap_or(0);
    Offset { least: difference, most: difference }
}

/// A file name for each run: the workflow id, and the run's id where that would not be the only one.
fn names(case: &Case) -> BTreeMap<RunId, String> {
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let mut names = BTreeMap::new();
    for (id, tables) in &case.runs {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
        let mut name: String = tables.workflow_id().chars().map(plain).take(100).collect();
        if name.is_empty() || !taken.insert(name.to_ascii_lowercase()) {
            name = format!("{name}.{id}");
        }
        names.insert(*id, format!("{name}.html"));
    }
    names
}

/// The journal and the clients' ops, by run.
struct Sides<'a> {
    journal: BTreeMap<&'a str, Vec<&'a JournalEntry>>,
    ops: BTreeMap<&'a str, Vec<&'a Op>>,
}

impl<'a> Sides<'a> {
    fn of(case: &'a Case) -> Self {
        let mut sides = Self { journal: BTreeMap::new(), ops: BTreeMap::new() };
        for entry in case.journal.iter().flatten() {
            sides.journal.entry(&entry.run_id).or_default().push(entry);
        }
        for op in case.ops.iter().flatten() {
            sides.ops.entry(&op.workflow_id).or_default().push(op);
        }
        sides
    }

    fn rows(&mut self, id: RunId, tables: &Tables, offset: Offset) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut last = i64::MIN;
        for event in &tables.events {
            last = last.max(event.at.as_micros());
            rows.push(event_row(event, last));
        }
        let time = |mono_ns| i64::midpoint(offset.earliest_us(mono_ns), offset.latest_us(mono_ns));
        for entry in self.journal.get(id.to_string().as_str()).into_iter().flatten() {
            rows.push(effect_row(entry, time(entry.mono_ns)));
        }
        let text = id.to_string();
        for op in self.ops.get(tables.workflow_id()).into_iter().flatten() {
            // Another run of the same workflow id has a page of its own.
            if op.run_id.as_ref().is_none_or(|run| *run == text) {
                rows.push(op_row(op, time(op.invoked)));
            }
        }
        rows.sort_by_key(|row| row.at_us);
        rows
    }
}

fn event_row(event: &Event, at_us: i64) -> Row {
    let actor = match &event.actor {
        Actor::Client(who) => format!("client {who}"),
        Actor::Worker(who) => format!("worker {who}"),
        Actor::System => "system".to_owned(),
        Actor::Run(run) => format!("run:{run}"),
    };
    let class = match &event.body {
        body if body.is_terminal() => "end",
        EventBody::StepFailed { .. } | EventBody::RunBlocked(_) => "odd",
        _ => "",
    };
    let html = format!(
        "<b>{}</b> {} <span class=dim>epoch {}, {}</span><br>{}",
        event.seq,
        escape(event.body.kind()),
        event.epoch,
        escape(&actor),
        escape(&detail(&event.body))
    );
    Row { at_us, side: Side::Log, class, html }
}

fn effect_row(entry: &JournalEntry, at_us: i64) -> Row {
    let phase = match entry.phase {
        Phase::Begin => "begins",
        Phase::End => "ends",
        Phase::Beat => "says how far it is",
        Phase::Denied => "will not begin",
    };
    let html = format!(
        "#{} {} attempt {} {phase} <span class=dim>epoch {}, {}, {}</span>",
        entry.step,
        escape(&entry.name),
        entry.attempt,
        entry.epoch,
        escape(&entry.worker),
        escape(&entry.nonce)
    );
    Row { at_us, side: Side::Effects, class: "", html }
}

fn op_row(op: &Op, at_us: i64) -> Row {
    let took = op.replied.map(|t| format!(" after {:.1} ms", t.saturating_sub(op.invoked) as f64 / 1e6));
    let (word, class) = match op.outcome {
        Outcome::Ok => ("ok", ""),
        Outcome::Fail => ("refused", "odd"),
        Outcome::Unknown => ("unknown", "odd"),
    };
    let value = op.value.as_ref().map(ToString::to_string).unwrap_or_default();
    let html = format!(
        "{}: {} {} → {word}{} <span class=dim>{} {}</span>",
        op.process,
        op.kind.as_str(),
        escape(op.request_id.as_deref().unwrap_or_default()),
        took.unwrap_or_default(),
        escape(&short(&op.error)),
        escape(&short(&value))
    );
    Row { at_us, side: Side::Clients, class, html }
}

fn payload(payload: &Payload) -> String {
    match std::str::from_utf8(&payload.data) {
        Ok(text) => short(text),
        Err(_) => format!("{} bytes, {}", payload.data.len(), payload.encoding),
    }
}

fn short(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

fn noted(notes: &NotesChange) -> Vec<&str> {
    notes.attributes.keys().chain(notes.memo.keys()).map(String::as_str).collect()
}

fn detail(body: &EventBody) -> String {
    match body {
        EventBody::RunStarted(start) => {
            format!("{} on {}, request {}", start.workflow_type, start.task_queue, start.request_id)
        }
        EventBody::WorkerAttached { session, worker, .. } => {
            format!("{}, build {}, session {session}", worker.identity, worker.build_id)
        }
        EventBody::WorkerDetached { reason } => short(&format!("{reason:?}")),
        EventBody::StepStarted { step, name, attempt, in_doubt: None } => {
            format!("{step} {name}, attempt {attempt}")
        }
        EventBody::StepStarted { step, name, attempt, in_doubt: Some(policy) } => {
            format!("{step} {name}, attempt {attempt}, guarded: {}", policy.as_str())
        }
        EventBody::StepScheduled(s) => {
            format!("{} {} on {}: {}", s.step, s.name, s.options.task_queue, payload(&s.input))
        }
        EventBody::StepCancelRequested { step } => step.to_string(),
        EventBody::StepInDoubt { step, name, attempt } => format!("{step} {name}, attempt {attempt}"),
        EventBody::StepResolved(r) => {
            short(&format!("{} {}, attempt {}: {:?}", r.step, r.name, r.attempt, r.resolution))
        }
        EventBody::StepCompleted { step, name, attempt, result, .. } => {
            format!("{step} {name}, attempt {attempt}: {}", payload(result))
        }
        EventBody::StepFailed { step, name, attempt, failure, retry_at, .. } => {
            let next = if retry_at.is_some() { "again later" } else { "for good" };
            short(&format!("{step} {name}, attempt {attempt}, {next}: {} {}", failure.kind, failure.message))
        }
        EventBody::TimerStarted { timer, fire_at } => format!("{timer} at {fire_at}"),
        EventBody::TimerFired { timer } => format!("{} {}", timer.kind.as_str(), timer.id),
        EventBody::TimerCanceled { timer } => timer.to_string(),
        EventBody::SignalReceived { name, signal_id, input } => {
            format!("{name} {signal_id}: {}", payload(input))
        }
        EventBody::CancelRequested { reason } | EventBody::RunTerminated { reason } => short(reason),
        EventBody::UpdateAccepted { update_id, name, input } => {
            format!("{name} {update_id}: {}", payload(input))
        }
        EventBody::UpdateCompleted { update_id, outcome, .. } => match outcome {
            UpdateOutcome::Completed(result) => format!("{update_id}: {}", payload(result)),
            UpdateOutcome::Failed(f) => short(&format!("{update_id}: {}: {}", f.kind, f.message)),
        },
        EventBody::VersionMarked { change_id, version } => format!("{change_id} is {version}"),
        EventBody::AttributesUpserted { op, notes } => short(&format!("{op} {}", noted(notes).join(", "))),
        EventBody::ChildScheduled(s) => {
            format!("{} {} as {}: {}", s.child, s.workflow_type, s.run_id, payload(&s.input))
        }
        EventBody::ChildStarted { child, .. } => child.to_string(),
        EventBody::ChildClosed(c) => {
            short(&format!("{} {}: {}", c.child, c.outcome.as_str(), payload(c.outcome.payload())))
        }
        EventBody::ExternalRequested(r) => short(&format!("{} {:?}: {:?}", r.op, r.target, r.action)),
        EventBody::ExternalResolved { op, failure, .. } => match failure {
            None => format!("{op} delivered"),
            Some(f) => short(&format!("{op}: {}: {}", f.kind, f.message)),
        },
        EventBody::RunBlocked(blocked) => {
            short(&format!("expected {}, got {}", blocked.expected, blocked.produced))
        }
        EventBody::RunUnblocked { build_id } => format!("build {build_id}"),
        EventBody::RunCompleted { result, .. } => payload(result),
        EventBody::RunFailed { failure, .. } => short(&format!("{}: {}", failure.kind, failure.message)),
        EventBody::RunCanceled { details } => short(details),
        EventBody::RunContinued { successor, .. } => format!("as {successor}"),
        EventBody::RunTimedOut { .. } | EventBody::Ignored { .. } => String::new(),
    }
}

fn page(id: RunId, tables: &Tables, verdict: &Verdict, (rows, aligned): (Vec<Row>, bool)) -> String {
    let workflow = tables.workflow_id();
    let status = tables.status().map_or("no row", |s| s.as_str());
    let mut html = head(workflow);
    let _ = write!(
        html,
        "<p><a href=\"../index.html\">all runs</a></p><h1>{}</h1><p>run {id}, {status}, {} events</p>",
        escape(workflow),
        tables.events.len()
    );
    if !aligned {
        html.push_str(
            "<p class=odd>No start tells how the clocks stand: the columns are aligned by guess.</p>",
        );
    }
    problems(&mut html, verdict, |text| text.contains(&id.to_string()));
    html.push_str("<table><tr><th>ms</th><th>Log</th><th>Effects</th><th>Clients</th></tr>\n");
    let first = rows.first().map_or(0, |row| row.at_us);
    for row in &rows {
        let cell = |side| {
            if row.side == side {
                format!("<td class=\"{}\">{}</td>", row.class, row.html)
            } else {
                "<td></td>".to_owned()
            }
        };
        let ms = (row.at_us - first) as f64 / 1_000.0;
        let (log, effects, clients) = (cell(Side::Log), cell(Side::Effects), cell(Side::Clients));
        let _ = writeln!(html, "<tr><td class=t>{ms:.3}</td>{log}{effects}{clients}</tr>");
    }
    html.push_str("</table></body></html>\n");
    html
}

fn problems(html: &mut String, verdict: &Verdict, concerns: impl Fn(&str) -> bool) {
    html.push_str("<ul>");
    for check in &verdict.checks {
        for problem in check.problems.iter().filter(|text| concerns(text)) {
            let _ = write!(html, "<li class=bad><b>{}</b> {}</li>", escape(&check.name), escape(problem));
        }
    }
    html.push_str("</ul>");
}

fn index(verdict: &Verdict, case: &Case, names: &BTreeMap<RunId, String>) -> String {
    let word = match verdict.verdict {
        Word::Pass => "PASS",
        Word::Fail => "FAIL",
        Word::Invalid => "INVALID",
    };
    let mut html = head(word);
    let _ = write!(html, "<h1>{word}</h1><ul>");
    for reason in &verdict.invalid {
        let _ = write!(html, "<li class=odd>does not count: {}</li>", escape(reason));
    }
    html.push_str("</ul>");
    problems(&mut html, verdict, |_| true);
    html.push_str(
        "<table><tr><th>Check</th><th>Invariants</th><th>Looked at</th><th>Problems</th><th></th></tr>\n",
    );
    for check in &verdict.checks {
        let class = if check.ok { "" } else { "bad" };
        let count = check.problems.len() as u64 + check.more_problems;
        let _ = writeln!(
            html,
            "<tr class=\"{class}\"><td>{}</td><td>{}</td><td>{}</td><td>{count}</td><td class=dim>{}</td></tr>",
            escape(&check.name),
            escape(&check.inv.join(", ")),
            check.checked,
            escape(&check.notes.join("; "))
        );
    }
    html.push_str(
        "</table><h2>Runs</h2><table><tr><th>Workflow id</th><th>Status</th><th>Events</th></tr>\n",
    );
    for (id, tables) in &case.runs {
        let name = names.get(id).map(String::as_str).unwrap_or_default();
        let _ = writeln!(
            html,
            "<tr><td><a href=\"{FOLDER}/{name}\">{}</a></td><td>{}</td><td>{}</td></tr>",
            escape(tables.workflow_id()),
            tables.status().map_or("no row", |s| s.as_str()),
            tables.events.len()
        );
    }
    html.push_str("</table><h2>Totals</h2><table>\n");
    for (name, total) in &verdict.totals {
        let _ = writeln!(html, "<tr><td>{}</td><td>{total}</td></tr>", escape(name));
    }
    html.push_str("</table></body></html>\n");
    html
}

fn head(title: &str) -> String {
    format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8>\
         <meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>{}</title><style>{STYLE}</style></head><body>\n",
        escape(title)
    )
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Nothing that moves the cursor or turns the direction of writing round.
            c if c.is_control()
                || ('\u{202a}'..='\u{202e}').contains(&c)
                || ('\u{2066}'..='\u{2069}').contains(&c) =>
            {
                escaped.push('\u{fffd}');
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{good, run_id};
    use crate::{Check, of};

    const EVIL: &str = "<script>alert('x')</script>\" onload=\"\u{202e}";

    fn pages(case: &Case) -> anyhow::Result<tempfile::TempDir> {
        let folder = tempfile::tempdir()?;
        write(&of(case, Check::default()), case, folder.path())?;
        Ok(folder)
    }

    #[test]
    fn a_page_shows_the_three_sides_in_order() -> anyhow::Result<()> {
        let folder = pages(&good())?;
        let page = std::fs::read_to_string(folder.path().join("timeline/wf-1.html"))?;
        let order = [
            "1: start start-wf-1",
            "RunStarted",
            "attempt 1 begins",
            "StepCompleted",
            "1: signal s1",
            "RunCompleted",
        ];
        let places: Vec<_> = order.iter().map(|text| page.find(text)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}");
        assert!(!page.contains("by guess"));
        let index = std::fs::read_to_string(folder.path().join("index.html"))?;
        for link in ["timeline/wf-1.html", "timeline/wf-2.html", "timeline/wf-3.html"] {
            assert!(index.contains(link), "{link}");
        }
        Ok(())
    }

    #[test]
    fn every_text_is_escaped() -> anyhow::Result<()> {
        let mut case = good();
        case.first().row.iter_mut().for_each(|r| EVIL.clone_into(&mut r.workflow_id));
        for event in &mut case.first().events {
            event.actor = Actor::Worker(EVIL.to_owned());
            event.body = match &event.body {
                EventBody::RunCompleted { .. } => EventBody::RunTerminated { reason: EVIL.to_owned() },
                EventBody::SignalReceived { input, .. } => EventBody::SignalReceived {
                    name: EVIL.to_owned(),
                    signal_id: EVIL.to_owned(),
                    input: input.clone(),
                },
                EventBody::StepCompleted { step, attempt, elapsed, .. } => EventBody::StepCompleted {
                    step: *step,
                    name: EVIL.to_owned(),
                    attempt: *attempt,
                    elapsed: *elapsed,
                    result: Payload::json(EVIL),
                },
                other => other.clone(),
            };
        }
        for entry in case.journal() {
            (entry.name, entry.nonce, entry.worker) = (EVIL.to_owned(), EVIL.to_owned(), EVIL.to_owned());
        }
        for op in case.ops() {
            EVIL.clone_into(&mut op.workflow_id);
            (op.request_id, op.error) = (Some(EVIL.to_owned()), EVIL.to_owned());
            op.value = Some(serde_json::json!({ EVIL: EVIL }));
        }
        let folder = pages(&case)?;
        let mut seen = 0;
        for entry in std::fs::read_dir(folder.path().join(FOLDER))?.chain(std::fs::read_dir(folder.path())?) {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "html") {
                continue;
            }
            let text = std::fs::read_to_string(&path)?;
            assert!(!text.contains("<script") && !text.contains("\" onload") && !text.contains('\u{202e}'));
            seen += text.matches("&lt;script&gt;").count();
        }
        assert!(seen > 30, "{seen}");
        Ok(())
    }

    #[test]
    fn names_of_pages_are_plain_and_their_own() {
        let mut case = good();
        let names_of = |case: &Case| names(case).into_values().collect::<Vec<_>>();
        case.first().row.iter_mut().for_each(|r| "../../etc/x:y".clone_into(&mut r.workflow_id));
        assert_eq!(names_of(&case)[0], "______etc_x_y.html");
        case.second().row.iter_mut().for_each(|r| "../../etc/x:y".clone_into(&mut r.workflow_id));
        assert_eq!(names_of(&case)[1], format!("______etc_x_y.{}.html", run_id(2)));
    }
}
