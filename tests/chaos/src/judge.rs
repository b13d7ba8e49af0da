//! The verdict on a case: the checker's, and what only the harness has seen.

use std::path::Path;
use std::process::Command;

use everstep_checker::{Check, Verdict, Word};

/// What a worker logs when a commit of its own was refused for good, and the refusal that says that the commit, and
/// not its time, was wrong.
const TAKEN: &str = "run taken away";
const INVALID: &str = "INVALID_COMMANDS";

/// Judges a case and writes the verdict beside it. `problems` are what the harness has seen: a process that ended
/// by itself, an answer that may never be given, a drain that took too long.
///
/// # Errors
/// When the files of the case cannot be read or written.
pub fn judge(case: &Path, problems: Vec<String>) -> anyhow::Result<Verdict> {
    let mut verdict = everstep_checker::judge(case)?;
    let ok = problems.is_empty();
    verdict.checks.push(Check { ok, checked: 1, problems, ..Check::new("harness", &["INV-24"]) });
    if !ok {
        verdict.verdict = Word::Fail;
    }
    everstep_checker::write(&verdict, case)?;
    Ok(verdict)
}

/// What workers were told that no worker of a case earns: they say what their code did, and that makes sense.
///
/// # Errors
/// When a log cannot be read.
pub fn unearned(case: &Path) -> anyhow::Result<Vec<String>> {
    let mut told = Vec::new();
    for entry in std::fs::read_dir(case)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with("worker-") || !name.ends_with(".log") {
            continue;
        }
        let log = std::fs::read(&path)?;
        let log = String::from_utf8_lossy(&log);
        let lines = log.lines().filter(|line| line.contains(TAKEN) && line.contains(INVALID));
        told.extend(lines.take(3).map(|line| format!("{name}: {line}")));
    }
    Ok(told)
}

/// The commit that was built, if the source is in a repository.
#[must_use]
pub fn git_hash() -> String {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty", "--abbrev=12"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let said = git.output().ok().filter(|said| said.status.success());
    said.map_or_else(|| "unknown".to_owned(), |said| String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// A verdict in a few lines.
#[must_use]
pub fn summary(verdict: &Verdict) -> String {
    let mut text = format!("{:?}\n", verdict.verdict).to_uppercase();
    for reason in &verdict.invalid {
        text.push_str(&format!("  does not count: {reason}\n"));
    }
    for check in verdict.checks.iter().filter(|check| !check.ok) {
        text.push_str(&format!("  {} {:?} failed:\n", check.name, check.inv));
        for problem in check.problems.iter().take(10) {
            text.push_str(&format!("    {problem}\n"));
        }
    }
    for (name, total) in &verdict.totals {
        text.push_str(&format!("  {name} {total}\n"));
    }
    text
}
