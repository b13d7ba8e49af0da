//! `everstep replay …` and `everstep worker check`: whether the code of a build fits the histories that there are.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Subcommand;
use everstep::ClientError;
use everstep::client::{CheckStream, CheckVerdict, CheckedHistory, HistoryCheck};
use everstep::testing::History;
use serde_json::{Value, json};

use super::run::Target;
use crate::fail::Fail;
use crate::node;
use crate::out::{self, Format};

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 128 << 20;
/// How often a worker that is not there yet is looked for.
const LOOK: Duration = Duration::from_millis(200);

/// Whose code, and how long to wait for it.
#[derive(Debug, clap::Args)]
pub(crate) struct Candidate {
    /// The build to try; one of its workers has to be connected to the server at --address [default: any worker
    /// that was started with EVERSTEP_CHECK_ONLY=1]
    #[arg(long, default_value = "", hide_default_value = true)]
    build: String,
    /// How long to wait for such a worker
    #[arg(long, default_value = "30s", value_parser = node::parse_duration)]
    wait: Duration,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReplayArgs {
    /// Files of everstep run export, or of everstep admin export
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    candidate: Candidate,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkerCommand {
    /// Replay runs of this deployment through the code of a build; exit 1 if one does not fit, or none was checked
    Check {
        /// How many runs: open ones first, then closed ones, spread over the types of workflows
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        sample: u32,
        /// Only runs of this type; may be given again
        #[arg(long)]
        workflow_type: Vec<String>,
        /// Only open runs
        #[arg(long)]
        open: bool,
        #[command(flatten)]
        candidate: Candidate,
    },
}

/// See `everstep worker`.
pub(crate) async fn worker(command: WorkerCommand) -> Result<(), Fail> {
    let WorkerCommand::Check { sample, workflow_type, open, candidate } = command;
    let check = HistoryCheck::of_build(&candidate.build).sample(sample).open_only(open);
    let check = workflow_type.into_iter().fold(check, HistoryCheck::workflow_type);
    until_interrupted(check, &candidate).await
}

/// See `everstep replay`.
pub(crate) async fn replay(args: ReplayArgs) -> Result<(), Fail> {
    let mut check = HistoryCheck::of_build(&args.candidate.build);
    for file in &args.files {
        for (label, data) in read(file)? {
            check = check.file(label, data);
        }
    }
    until_interrupted(check, &args.candidate).await
}

/// The histories of a file, in the form that travels, and what to call them.
fn read(path: &Path) -> Result<Vec<(String, Vec<u8>)>, Fail> {
    let bad = |problem: String| Fail::refused(format!("{}: {problem}", path.display()));
    let kind = std::fs::metadata(path).map_err(|e| bad(e.to_string()))?;
    if !kind.is_file() {
        return Err(bad("is not a regular file".to_owned()));
    }
    if kind.len() > FILE_BYTES_MAX {
        return Err(bad(format!("has {} bytes; at most {FILE_BYTES_MAX} fit", kind.len())));
    }
    let data = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let label = path.display().to_string();
    if !data.trim_ascii_start().starts_with(b"{\"") {
        return Ok(vec![(label, data)]);
    }
    let histories = History::read_all(&data).map_err(|e| bad(e.to_string()))?;
    Ok(histories.iter().map(|history| (label.clone(), history.to_bytes())).collect())
}

async fn until_interrupted(check: HistoryCheck, candidate: &Candidate) -> Result<(), Fail> {
    let done = tokio::select! {
        result = carry_out(check, candidate) => result,
        _ = tokio::signal::ctrl_c() => Err(Fail::interrupted()),
    };
    done.map_err(|fail| fail.at(candidate.target.address()))
}

async fn carry_out(check: HistoryCheck, candidate: &Candidate) -> Result<(), Fail> {
    let mut checks = begin(check, candidate).await?;
    let (mut sums, mut all) = (Sums::default(), Vec::new());
    while let Some(checked) = checks.next().await? {
        sums.add(&checked.verdict);
        match candidate.target.output() {
            Format::Text => print(&checked)?,
            Format::Jsonl => out::line(&as_json(&checked).to_string())?,
            Format::Json => all.push(as_json(&checked)),
        }
    }
    if candidate.target.output() == Format::Json {
        out::json(&Value::Array(all))?;
    }
    sums.verdict(&candidate.build)
}

/// Asks until a worker of the build is there, or the patience is over.
async fn begin(check: HistoryCheck, candidate: &Candidate) -> Result<CheckStream, Fail> {
    let client = candidate.target.client()?;
    let until = Instant::now() + candidate.wait;
    loop {
        match client.check_histories(check.clone()).await {
            Err(ClientError::Refused { reason, .. }) if reason == "NO_WORKER" && Instant::now() < until => {
                tokio::time::sleep(LOOK).await;
            }
            other => return Ok(other?),
        }
    }
}

#[derive(Debug, Default)]
struct Sums {
    passed: usize,
    mismatched: usize,
    skipped: usize,
}

impl Sums {
    fn add(&mut self, verdict: &CheckVerdict) {
        match verdict {
            CheckVerdict::Passed => self.passed += 1,
            CheckVerdict::Mismatch { .. } => self.mismatched += 1,
            CheckVerdict::Skipped(_) => self.skipped += 1,
        }
    }

    /// The last word, and whether it is a good one: to have checked nothing proves nothing.
    fn verdict(&self, build: &str) -> Result<(), Fail> {
        let Self { passed, mismatched, skipped } = self;
        let checked = passed + mismatched;
        let build = if build.is_empty() { "the build".to_owned() } else { format!("build '{build}'") };
        let also = if *skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
        match (checked, mismatched) {
            (0, _) => Err(Fail::refused(format!(
                "nothing was checked{also}: no history is of a type that {build} has"
            ))),
            (_, 0) => {
                out::note(&format!("{checked} checked, all fit {build}{also}"));
                Ok(())
            }
            _ => Err(Fail::refused(format!("{mismatched} of {checked} histories do not fit {build}{also}"))),
        }
    }
}

fn print(checked: &CheckedHistory) -> Result<(), Fail> {
    let CheckedHistory { label, run_id, workflow_type, events, recorded_build_id, verdict } = checked;
    let place = if label.is_empty() { String::new() } else { format!("{label}: ") };
    let run = format!("{place}run {run_id} ({workflow_type}, {events} events)");
    match verdict {
        CheckVerdict::Passed => out::line(&format!("{run} fits")),
        CheckVerdict::Skipped(why) => {
            out::line(&format!("{place}run {run_id} ({workflow_type}) was skipped: {why}"))
        }
        CheckVerdict::Mismatch { blocked, event_kind } => {
            let kind = if event_kind.is_empty() { String::new() } else { format!(" ({event_kind})") };
            out::line(&format!("{run} differs at event {}{kind}:", blocked.at_seq))?;
            out::line(&format!("    the history has  {}", blocked.expected))?;
            out::line(&format!("    the code         {}", blocked.produced))?;
            if !blocked.source.is_empty() {
                out::line(&format!("    at               {}", blocked.source))?;
            }
            let recorded = if recorded_build_id.is_empty() { "none" } else { recorded_build_id };
            out::line(&format!(
                "    builds           recorded by {recorded}, checked with {}",
                blocked.build_id
            ))?;
            if blocked.hint.is_empty() {
                Ok(())
            } else {
                out::line(&format!("    hint             {}", blocked.hint))
            }
        }
    }
}

fn as_json(checked: &CheckedHistory) -> Value {
    let CheckedHistory { label, run_id, workflow_type, events, recorded_build_id, verdict } = checked;
    let mut value = json!({
        "file": label, "run_id": run_id.to_string(), "workflow_type": workflow_type, "events": events,
        "recorded_build_id": recorded_build_id,
    });
    let more = match verdict {
        CheckVerdict::Passed => json!({"verdict": "passed"}),
        CheckVerdict::Skipped(why) => json!({"verdict": "skipped", "why": why}),
        CheckVerdict::Mismatch { blocked, event_kind } => json!({
            "verdict": "mismatch", "seq": blocked.at_seq, "event_kind": event_kind, "expected": blocked.expected,
            "produced": blocked.produced, "source": blocked.source, "build_id": blocked.build_id,
            "hint": blocked.hint,
        }),
    };
    if let (Value::Object(fields), Value::Object(more)) = (&mut value, more) {
        fields.extend(more);
    }
    value
}
