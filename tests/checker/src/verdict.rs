//! What the checker says about a case.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// The file that [`crate::write`] makes.
pub const VERDICT: &str = "verdict.json";

/// Problems of one check that are written down; the rest is counted.
const PROBLEMS_MAX: usize = 50;

/// The word at the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Word {
    /// No check failed, and the case put the product to the test.
    Pass,
    /// A check failed.
    Fail,
    /// No check failed, but the case does not count: the faults did not happen, or too little succeeded.
    Invalid,
}

/// What came of one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The word.
    pub verdict: Word,
    /// Why the case does not count. Listed also beside a FAIL.
    pub invalid: Vec<String>,
    /// Each check.
    pub checks: Vec<Check>,
    /// Numbers worth comparing between cases.
    pub totals: BTreeMap<String, u64>,
}

/// One check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// The invariants that it stands for.
    pub inv: Vec<String>,
    /// It found no problem.
    pub ok: bool,
    /// Things that it looked at.
    pub checked: u64,
    /// What it found, at most a page of it.
    pub problems: Vec<String>,
    /// Problems beyond those listed.
    #[serde(default)]
    pub more_problems: u64,
    /// What it could not look at, such as a file that is not there.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Check {
    /// A check that has found nothing so far.
    pub fn new(name: &str, inv: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            inv: inv.iter().map(|i| (*i).to_owned()).collect(),
            ok: true,
            ..Self::default()
        }
    }

    /// One thing was looked at.
    pub(crate) fn looked(&mut self) {
        self.checked += 1;
    }

    /// Something is wrong.
    pub(crate) fn problem(&mut self, text: impl Into<String>) {
        self.ok = false;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(text.into());
        } else {
            self.more_problems += 1;
        }
    }

    /// Something could not be looked at.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}

impl Verdict {
    /// The check of that name.
    pub fn check(&self, name: &str) -> Option<&Check> {
        self.checks.iter().find(|c| c.name == name)
    }

    /// Reads `verdict.json` of a case.
    ///
    /// # Errors
    /// When it is not there or does not parse.
    pub fn read(case: &Path) -> anyhow::Result<Self> {
        let path = case.join(VERDICT);
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
    }
}
