//! INV-02: exports of one database, one after the other. What was in an earlier one is in the later, byte
//! for byte.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::case::{Prints, prints};
use crate::format::{EXPORT, SNAPSHOTS};
use crate::verdict::Check;

/// Compares each export of `folder` with the next.
pub(crate) fn check(folder: &Path) -> anyhow::Result<Check> {
    let mut check = Check::new("snapshots", &["INV-02"]);
    let names = names(&folder.join(SNAPSHOTS))?;
    if names.is_empty() {
        check.note("no snapshots");
        return Ok(check);
    }
    let mut earlier: Option<(String, Prints)> = None;
    for path in names.into_iter().chain([folder.join(EXPORT)]) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let later = prints(&path)?;
        if let Some((earlier_name, earlier)) = &earlier {
            compare(&format!("{earlier_name}, {name}"), earlier, &later, &mut check);
        }
        earlier = Some((name, later));
    }
    Ok(check)
}

fn names(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", folder.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "ndjson") {
            names.push(path);
        }
    }
    names.sort();
    Ok(names)
}

fn compare(pair: &str, earlier: &Prints, later: &Prints, check: &mut Check) {
    for (run, before) in earlier {
        check.looked();
        let Some(after) = later.get(run) else {
            check.problem(format!("{pair}: run {run} is gone"));
            continue;
        };
        if after.len() < before.len() {
            let (before, after) = (before.len(), after.len());
            check.problem(format!("{pair}: run {run} had {before} events and has {after}"));
        } else if let Some(at) = before.iter().zip(after).position(|(a, b)| a != b) {
            check.problem(format!("{pair}: run {run}: event {} was changed", at + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(exports: &[&[(&str, u64)]]) -> anyhow::Result<tempfile::TempDir> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join(SNAPSHOTS))?;
        for (number, events) in exports.iter().enumerate() {
            let lines = events.iter().map(|(run, at)| {
                format!(r#"{{"table":"events","run_id":"{run}","row":{{"at":{at}}}}}{}"#, "\n")
            });
            let name = format!("{SNAPSHOTS}/{number:04}.ndjson");
            let name = if number + 1 == exports.len() { EXPORT.to_owned() } else { name };
            std::fs::write(folder.path().join(name), lines.collect::<String>())?;
        }
        Ok(folder)
    }

    fn problems(exports: &[&[(&str, u64)]]) -> anyhow::Result<Vec<String>> {
        let folder = case(exports)?;
        let check = check(folder.path())?;
        assert_eq!(check.ok, check.problems.is_empty());
        assert!(check.checked > 0);
        Ok(check.problems)
    }

    #[test]
    fn a_growing_log_passes() -> anyhow::Result<()> {
        let found = problems(&[&[("a", 1)], &[("a", 1), ("b", 5)], &[("a", 1), ("a", 2), ("b", 5)]])?;
        assert_eq!(found, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn a_rewritten_a_shortened_and_a_lost_history_are_found() -> anyhow::Result<()> {
        let found = problems(&[&[("a", 1), ("a", 2)], &[("a", 1), ("a", 3)]])?;
        assert!(found.len() == 1 && found[0].contains("event 2 was changed"), "{found:?}");
        let found = problems(&[&[("a", 1), ("a", 2)], &[("a", 1)]])?;
        assert!(found.len() == 1 && found[0].contains("had 2 events and has 1"), "{found:?}");
        let found = problems(&[&[("a", 1)], &[("b", 1)]])?;
        assert!(found.len() == 1 && found[0].contains("run a is gone"), "{found:?}");
        Ok(())
    }
}
