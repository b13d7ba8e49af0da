//! `cargo xtask tidy`: the rules of the house that no compiler knows. Each message says how to mend it.

mod crates;
mod migrations;
mod proof;
mod sources;
mod supply;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Context as _, bail};

/// Folders that hold nothing that people wrote for this repository.
const SKIPPED_FOLDERS: [&str; 6] = ["target", ".git", ".everstep", "node_modules", "__pycache__", ".venv"];

/// What a check has to say: one line per broken rule.
pub(super) type Problems = Vec<String>;

/// A text file of the repository, its path relative to the root and with `/` in it.
#[derive(Debug)]
struct File {
    path: String,
    text: String,
}

impl File {
    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// Runs every check.
///
/// # Errors
/// When a rule is broken, after all of them have been printed.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let files = read_tree(root)?;
    let mut problems = check_tree(&files);
    problems.extend(supply::check(root)?);
    for problem in &problems {
        eprintln!("tidy: {problem}");
    }
    if !problems.is_empty() {
        bail!("tidy found {} problem(s)", problems.len());
    }
    eprintln!("tidy: {} files are in order", files.len());
    Ok(())
}

/// Records the checksums of migrations that have none yet.
///
/// # Errors
/// When a recorded migration was edited or removed: that is never blessed.
pub(crate) fn bless(root: &Path) -> anyhow::Result<()> {
    let files = read_tree(root)?;
    let text = migrations::bless(&files)?;
    std::fs::write(root.join(migrations::CHECKSUMS), text).context("cannot write the checksums")?;
    eprintln!("tidy: {} is up to date", migrations::CHECKSUMS);
    Ok(())
}

/// All checks that need nothing but the files.
fn check_tree(files: &[File]) -> Problems {
    let mut problems = Problems::new();
    problems.extend(crates::check(files));
    problems.extend(sources::check(files));
    problems.extend(migrations::check(files));
    problems.extend(proof::check(files));
    problems
}

/// Reads every text file below the root, in a stable order.
fn read_tree(root: &Path) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            let name = entry.file_name();
            if kind.is_dir() && !SKIPPED_FOLDERS.iter().any(|skipped| name == *skipped) {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.extend(read_file(root, &entry.path())?);
            }
        }
    }
    files.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(files)
}

/// The file, unless it is no text.
fn read_file(root: &Path, path: &Path) -> anyhow::Result<Option<File>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let relative = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
    Ok(String::from_utf8(bytes).ok().map(|text| File { path: relative, text }))
}
