//! What became of broken messages: what always has to hold of a refusal, and the table of all of them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use everstep_server::{DOMAIN, REASONS};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::breaks::Break;

/// What comes back is for a person to read: no more of it than this.
const MESSAGE_BYTES_MAX: usize = 4_096;

/// The answers to broken messages, by field.
#[derive(Default)]
pub(super) struct Answers {
    by_field: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

/// The words of an answer: "ok", or a reason and the fields that it blames.
pub(super) fn words(status: &Status) -> String {
    if status.code() == Code::Ok {
        return "ok".to_owned();
    }
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    let mut fields = fields(status);
    fields.dedup();
    fields.truncate(3);
    if fields.is_empty() { reason } else { format!("{reason} ({})", fields.join(", ")) }
}

fn fields(status: &Status) -> Vec<String> {
    let listed = status.get_details_bad_request().map(|b| b.field_violations).unwrap_or_default();
    // A name that is far too long is cut in the answer.
    listed.into_iter().map(|v| v.field.chars().take(60).collect()).collect()
}

/// A refusal is the caller's to understand: its reason is one of ours, and it blames the field that was broken.
pub(super) fn check(call: &str, broken: &Break, status: &Status) -> Result<(), String> {
    let Break { path, how, .. } = broken;
    let problem = |what: &str| Err(format!("{call} {path} {how}: {what}: {status:?}"));
    if status.code() == Code::Ok {
        return Ok(());
    }
    if matches!(status.code(), Code::Internal | Code::Unknown | Code::DataLoss | Code::Unimplemented) {
        return problem("an error of ours");
    }
    let Some(info) = status.get_details_error_info() else { return problem("no reason") };
    let known = REASONS.iter().find(|reason| reason.word == info.reason);
    if info.domain != DOMAIN || known.is_none_or(|reason| reason.code != status.code()) {
        return problem("not a reason of ours");
    }
    if status.message().is_empty() || status.message().len() > MESSAGE_BYTES_MAX {
        return problem("a text that says nothing, or too much");
    }
    let blamed = fields(status);
    // Where a oneof says nothing, the oneof is blamed, which stands beside its members.
    let oneof = |field: &String| how == "unset" && outer(field) == outer(path);
    let one =
        |field: &String| path.starts_with(field.as_str()) || field.starts_with(&place(path)) || oneof(field);
    if !blamed.is_empty() && !blamed.iter().any(one) {
        return problem("another field is blamed");
    }
    Ok(())
}

/// The field, without what the test calls the key of a map.
fn place(path: &str) -> String {
    path.split("[]").next().unwrap_or_default().to_owned()
}

/// The message that the field stands in.
fn outer(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(outer, _)| outer)
}

impl Answers {
    pub(super) fn add(&mut self, call: &str, broken: &Break, words: String) {
        let field = self.by_field.entry(format!("{call} {}", broken.path)).or_default();
        field.entry(words).or_default().push(broken.how.clone());
    }

    /// What was said of the same thing before.
    pub(super) fn of(&self, call: &str, broken: &Break) -> Option<&str> {
        let field = self.by_field.get(&format!("{call} {}", broken.path))?;
        field.iter().find(|(_, how)| how.contains(&broken.how)).map(|(words, _)| words.as_str())
    }

    /// One line for each field and answer.
    fn table(&self) -> String {
        let mut table = String::new();
        for (field, answers) in &self.by_field {
            for (words, how) in answers {
                let _ = writeln!(table, "{field} | {} | {words}", how.join(", "));
            }
        }
        table
    }

    /// Holds the answers against those that stand in a file of this folder.
    pub(super) fn compare(&self, file: &str) -> anyhow::Result<()> {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("it/bad_inputs").join(file);
        let found = self.table();
        if std::env::var_os("EVERSTEP_WRITE_EXPECTED").is_some() {
            std::fs::write(&path, &found)?;
            return Ok(());
        }
        let expected = std::fs::read_to_string(&path)?;
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let (found, expected) = (lines(&found), lines(&expected));
        let new: Vec<_> = found.iter().filter(|line| !expected.contains(line)).collect();
        let gone: Vec<_> = expected.iter().filter(|line| !found.contains(line)).collect();
        anyhow::ensure!(new.is_empty() && gone.is_empty(), "{file}: new {new:#?}\ngone {gone:#?}");
        Ok(())
    }
}
