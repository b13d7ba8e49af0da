//! Judges a finished case from what it left behind: the export of its database, the effect journal, and what
//! its clients asked and heard.
//!
//! It trusts nothing else. What is *not* here: starting processes, striking them with faults, talking to a
//! server or a database. `README.md` beside this crate has the formats and what each check means.

mod case;
mod chains;
mod children;
mod clock;
mod decode;
mod doubts;
#[cfg(test)]
mod fixture;
pub mod format;
mod journal;
mod linear;
mod liveness;
mod order;
mod outcome;
mod queued;
mod search;
mod sets;
mod snapshots;
mod structure;
mod tables;
mod tail;
mod timeline;
mod timers;
mod updates;
mod validity;
mod verdict;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use case::{Case, Outcome};
pub use verdict::{Check, VERDICT, Verdict, Word};

/// Numbers by name.
type Totals = BTreeMap<String, u64>;

/// Judges the case in `folder`.
///
/// # Errors
/// When its files cannot be read, or a line of the harness's own files does not parse. What is wrong with the
/// product's export is no error but a failed check.
pub fn judge(folder: &Path) -> anyhow::Result<Verdict> {
    let case = Case::read(folder)?;
    Ok(of(&case, snapshots::check(folder)?))
}

/// Writes `verdict.json`, a page for each run under `timeline`, and `index.html`.
///
/// # Errors
/// When the case cannot be read again or the files not be written.
pub fn write(verdict: &Verdict, folder: &Path) -> anyhow::Result<()> {
    let path = folder.join(VERDICT);
    let mut text = serde_json::to_string_pretty(verdict)?;
    text.push('\n');
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    timeline::write(verdict, &Case::read(folder)?, folder)
}

fn of(case: &Case, snapshots: Check) -> Verdict {
    let mut totals = count(case);
    let mut checks = vec![
        structure::history(case),
        snapshots,
        tables::fold(case),
        structure::epochs(case),
        structure::commands(case),
        tables::leftovers(case),
        liveness::check(case),
        journal::after_end(case, &mut totals),
        journal::attempts(case, &mut totals),
        journal::recorded(case, &mut totals),
        doubts::check(case, &mut totals),
        queued::in_log(case),
        queued::executed(case, &mut totals),
        children::check(case),
        chains::check(case),
        updates::check(case, &mut totals),
    ];
    checks.extend(sets::checks(case, &mut totals));
    checks.extend([
        linear::check(case, &mut totals),
        order::check(case),
        timers::early(case),
        timers::late(case, &mut totals),
        tail::check(case),
        outcome::check(case, &mut totals),
        client_rules(case),
    ]);
    for check in checks.iter_mut().filter(|c| c.checked == 0 && c.notes.is_empty()) {
        check.note("nothing to check");
    }
    let invalid = validity::reasons(case, totals.get("keys_undecided").copied().unwrap_or(0));
    let verdict = if checks.iter().any(|c| !c.ok) {
        Word::Fail
    } else if invalid.is_empty() {
        Word::Pass
    } else {
        Word::Invalid
    };
    Verdict { verdict, invalid, checks, totals }
}

/// The client history keeps its own rules; if not, nothing that is judged from it means anything.
fn client_rules(case: &Case) -> Check {
    let mut check = Check::new("client history", &[]);
    check.checked = case.ops.as_ref().map_or(0, Vec::len) as u64;
    for problem in &case.ops_broken {
        check.problem(problem.clone());
    }
    check
}

fn count(case: &Case) -> Totals {
    let ops = case.ops.as_deref().unwrap_or_default();
    let ended = |outcome| ops.iter().filter(|op| op.outcome == outcome).count();
    let closed = case.runs.values().filter(|t| t.is_closed()).count();
    let events = case.runs.values().map(|t| t.events.len()).sum();
    [
        ("runs", case.runs.len()),
        ("runs_closed", closed),
        ("events", events),
        ("journal_lines", case.journal.as_ref().map_or(0, Vec::len)),
        ("ops", ops.len()),
        ("ops_ok", ended(Outcome::Ok)),
        ("ops_failed", ended(Outcome::Fail)),
        ("ops_unknown", ended(Outcome::Unknown)),
    ]
    .into_iter()
    .map(|(name, n)| (name.to_owned(), n as u64))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::good;

    fn judged(change: impl FnOnce(&mut Case)) -> Verdict {
        let mut case = good();
        change(&mut case);
        of(&case, Check::new("snapshots", &["INV-02"]))
    }

    #[test]
    fn a_good_case_passes() {
        let verdict = judged(|_| {});
        assert_eq!(verdict.verdict, Word::Pass, "{verdict:#?}");
        assert_eq!(verdict.totals["runs"], 3);
    }

    #[test]
    fn a_failed_check_fails_even_an_invalid_case() {
        let verdict = judged(|c| {
            c.meta = None;
            c.first().events.pop();
        });
        assert_eq!(verdict.verdict, Word::Fail);
        assert!(!verdict.invalid.is_empty());
    }

    #[test]
    fn a_case_that_proves_nothing_is_invalid_and_says_what_was_not_checked() {
        let verdict = judged(|c| c.journal = None);
        assert_eq!(verdict.verdict, Word::Invalid, "{verdict:#?}");
        let notes = verdict.check("attempts").map(|c| c.notes.clone()).unwrap_or_default();
        assert_eq!(notes, ["no journal"]);
    }

    #[test]
    fn a_broken_client_history_fails() {
        let verdict = judged(|c| c.ops_broken.push("client 1 op 1 is invoked twice".to_owned()));
        assert_eq!(verdict.verdict, Word::Fail);
    }
}
