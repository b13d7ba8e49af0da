//! `cargo xtask drill upgrade`: builds the previous release beside this tree, and lets the two replace each other under
//! load. The drill itself is the test `upgrade` of the binary's crate.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::{locate, servers, shell};

/// Which commit the previous release is of.
const PREVIOUS: &str = "tests/upgrade/previous.txt";
/// Where the previous release's sources and build, both binaries and the report go.
const FOLDER: &str = "target/upgrade";
const TEST: &str = "upgrade::releases_replace_each_other_under_load";

/// What was asked for on the command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The commit to come from, instead of the previous release's.
    from: Option<String>,
}

impl Options {
    pub(crate) fn parse(arguments: &[String]) -> anyhow::Result<Self> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["upgrade"] => Ok(Self { from: None }),
            ["upgrade", "--from", rev] if !rev.starts_with('-') => Ok(Self { from: Some((*rev).to_owned()) }),
            _ => bail!("say `drill upgrade`, or `drill upgrade --from REV`"),
        }
    }
}

/// Builds both releases and runs the drill; fails when it fails, and when it did not run.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let from = match &options.from {
        Some(rev) => rev.clone(),
        None => fs::read_to_string(root.join(PREVIOUS)).context(PREVIOUS)?.trim().to_owned(),
    };
    let (postgres, nats) = (servers::postgres(root, true)?, servers::nats(root, true)?);
    let commit = commit(root, &from)?;
    let tree = check_out(root, &commit)?;
    let folder = root.join(FOLDER);
    let previous = build(&tree, &folder.join("build"), &folder.join("everstep-previous"))?;
    let present = build(root, &root.join("target"), &folder.join("everstep-present"))?;
    let report = root.join(FOLDER).join("report.txt");
    if report.exists() {
        fs::remove_file(&report)?;
    }
    let mut test = shell::cargo(root);
    test.args([
        "test",
        "--locked",
        "-p",
        "everstep-cli",
        "--test",
        "cli",
        "--",
        "--exact",
        TEST,
        "--nocapture",
    ]);
    test.env("EVERSTEP_DRILL_PREVIOUS", previous).env("EVERSTEP_DRILL_PRESENT", present);
    test.env("EVERSTEP_DRILL_REPORT", &report).env("EVERSTEP_REQUIRE", "pg,nats");
    shell::run(test.env(locate::PG_VARIABLE, postgres).env(locate::NATS_VARIABLE, nats))?;
    let report = fs::read_to_string(&report).with_context(|| format!("the test {TEST} was not run"))?;
    eprintln!("Upgrade drill from {commit}:\n{report}PASS");
    Ok(())
}

/// The full name of a commit.
fn commit(root: &Path, rev: &str) -> anyhow::Result<String> {
    let name = format!("{rev}^{{commit}}");
    let found = shell::output(Command::new("git").current_dir(root).args(["rev-parse", "--verify", &name]));
    let found = found.with_context(|| format!("no commit {rev} here; in a shallow clone, fetch it first"))?;
    Ok(found.trim().to_owned())
}

/// The sources of a commit, in a work tree of their own.
fn check_out(root: &Path, commit: &str) -> anyhow::Result<PathBuf> {
    let tree = root.join(FOLDER).join("tree");
    let mut git = Command::new("git");
    if tree.join(".git").exists() {
        git.current_dir(&tree).args(["checkout", "--quiet", "--detach", commit]);
    } else {
        git.current_dir(root).args(["worktree", "add", "--force", "--detach"]).arg(&tree).arg(commit);
    }
    shell::run(&mut git)?;
    Ok(tree)
}

/// The binary of a work tree. Each has a folder of its own: in one, what was built of the other would be taken for its own,
/// since only the time of a file tells whether it has changed.
fn build(tree: &Path, folder: &Path, binary: &Path) -> anyhow::Result<PathBuf> {
    let mut cargo = shell::cargo(tree);
    cargo.args(["build", "--locked", "-p", "everstep-cli", "--bin", "everstep", "--target-dir"]);
    shell::run(cargo.arg(folder))?;
    let built = folder.join("debug/everstep");
    fs::copy(&built, binary).with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(binary.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Option<Options> {
        Options::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()).ok()
    }

    #[test]
    fn a_drill_is_named_in_full() {
        assert_eq!(parse(&["upgrade"]), Some(Options { from: None }));
        let from = Some("abc".to_owned());
        assert_eq!(parse(&["upgrade", "--from", "abc"]), Some(Options { from }));
        for bad in [
            &[][..],
            &["updrade"],
            &["upgrade", "--from"],
            &["upgrade", "--from", "--x"],
            &["upgrade", "abc"],
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
