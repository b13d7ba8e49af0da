//! `cargo xtask gate`: instructions of the paths that every step takes, held against a baseline.
//!
//! Valgrind counts them, so that the figure is the same however busy the machine is. It still depends on the
//! compiler and on the C library: after a new one of either, the baseline is blessed anew.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::shell;

const BASELINE: &str = "tests/benches/baseline.txt";
const HEADER: &str = "\
# Instructions of each path over a run of 1,000 steps, and by how many thousandths they may grow.
# `cargo xtask gate` compares; `cargo xtask gate --bless` writes this file, whose change then says what got dearer.
";
/// What a path that is new in the baseline may grow by.
const TOLERANCE_PER_MILLE: u64 = 30;

type Counts = BTreeMap<String, u64>;

/// A line of the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Allowed {
    instructions: u64,
    per_mille: u64,
}

type Baseline = BTreeMap<String, Allowed>;

/// Counts and compares, or with `bless` writes the counts down.
pub(crate) fn run(root: &Path, bless: bool) -> anyhow::Result<()> {
    let counter = counter(root)?;
    let counts = count(root, &counter)?;
    let path = root.join(BASELINE);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {BASELINE}"))?;
    let baseline = parse(&text)?;
    if bless {
        fs::write(&path, blessed(&baseline, &counts)).with_context(|| format!("cannot write {BASELINE}"))?;
        eprintln!("gate: {BASELINE} has the counts of now");
        return Ok(());
    }
    for (name, count) in &counts {
        let change =
            baseline.get(name).map_or(0.0, |a| (*count as f64 / a.instructions as f64 - 1.0) * 100.0);
        eprintln!("gate: {name:<20} {count:>12} instructions  {change:>+7.2} %");
    }
    let problems = compare(&baseline, &counts);
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// As [`run`], where what it needs is installed.
pub(crate) fn run_if_installed(root: &Path) -> anyhow::Result<()> {
    match counter(root) {
        Ok(_) => run(root, false),
        Err(error) => {
            eprintln!("{error:#}: the gate of instruction counts was skipped");
            Ok(())
        }
    }
}

/// The program that runs the benchmarks under valgrind.
fn counter(root: &Path) -> anyhow::Result<PathBuf> {
    ensure!(
        shell::succeeds(Command::new("valgrind").arg("--version")),
        "valgrind is not installed (apt-get install valgrind)"
    );
    let version = library_version(root)?;
    let own = root.join("target/tools/bin/gungraun-runner");
    let wanted = format!("gungraun-runner {version}");
    for runner in [own, PathBuf::from("gungraun-runner")] {
        let mut probe = Command::new(&runner);
        probe.arg("--version").stderr(std::process::Stdio::null());
        // The library speaks to a runner of its own version only.
        if probe.output().is_ok_and(|o| String::from_utf8_lossy(&o.stdout).trim() == wanted) {
            return Ok(runner);
        }
    }
    bail!(
        "gungraun-runner {version} is not installed \
         (cargo install --locked --version ={version} gungraun-runner --root target/tools)"
    )
}

/// The version of gungraun in the lock file.
fn library_version(root: &Path) -> anyhow::Result<String> {
    let lock: toml::Table = toml::from_str(&fs::read_to_string(root.join("Cargo.lock"))?)?;
    let packages = lock.get("package").and_then(toml::Value::as_array);
    let gungraun = packages
        .into_iter()
        .flatten()
        .find(|package| package.get("name").and_then(toml::Value::as_str) == Some("gungraun"));
    let version = gungraun.and_then(|package| package.get("version")).and_then(toml::Value::as_str);
    Ok(version.context("gungraun is not in Cargo.lock")?.to_owned())
}

fn count(root: &Path, counter: &Path) -> anyhow::Result<Counts> {
    let mut bench = shell::cargo(root);
    bench.args(["bench", "--locked", "-p", "everstep-benches", "--bench", "instructions", "--"]);
    bench.arg("--output-format=json").env("GUNGRAUN_RUNNER", counter);
    counts_of(&shell::output(&mut bench)?)
}

/// The counts in the runner's output: a JSON document a line.
fn counts_of(output: &str) -> anyhow::Result<Counts> {
    let mut counts = Counts::new();
    for line in output.lines().filter(|line| !line.trim().is_empty()) {
        let summary: Value = serde_json::from_str(line).context("the runner wrote a line that is no JSON")?;
        let name = summary["function_name"].as_str().context("a summary without a name")?;
        let parts = summary["profiles"][0]["data"]["parts"].as_array().map_or(&[][..], Vec::as_slice);
        let [part] = parts else { bail!("{name} has {} counts in place of one", parts.len()) };
        let count = part["metrics"]["Ir"]["values"]["new"].as_u64();
        counts.insert(name.to_owned(), count.with_context(|| format!("{name} has no count"))?);
    }
    ensure!(!counts.is_empty(), "the runner counted nothing");
    Ok(counts)
}

fn parse(text: &str) -> anyhow::Result<Baseline> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, instructions, per_mille] = words[..] else {
                bail!("{BASELINE}: `{line}` is not a name and two numbers");
            };
            let number = |text: &str| text.parse().with_context(|| format!("{BASELINE}: `{text}`"));
            let allowed = Allowed { instructions: number(instructions)?, per_mille: number(per_mille)? };
            Ok((name.to_owned(), allowed))
        })
        .collect()
}

/// The file with these counts; tolerances stay.
fn blessed(baseline: &Baseline, counts: &Counts) -> String {
    let line = |(name, count): (&String, &u64)| {
        let per_mille = baseline.get(name).map_or(TOLERANCE_PER_MILLE, |a| a.per_mille);
        format!("{name} {count} {per_mille}\n")
    };
    format!("{HEADER}{}", counts.iter().map(line).collect::<String>())
}

fn compare(baseline: &Baseline, counts: &Counts) -> Vec<String> {
    const BLESS: &str = "if that is the price of something, run `cargo xtask gate --bless` and say of what";
    let mut problems = Vec::new();
    for (name, &count) in counts {
        let Some(&Allowed { instructions, per_mille }) = baseline.get(name) else {
            problems.push(format!("{name} is not in {BASELINE}: run `cargo xtask gate --bless`"));
            continue;
        };
        if u128::from(count) * 1_000 > u128::from(instructions) * u128::from(1_000 + per_mille) {
            problems.push(format!(
                "{name} takes {count} instructions, and took {instructions}: more than {per_mille} thousandths \
                 more; {BLESS}"
            ));
        }
    }
    let gone = baseline.keys().filter(|name| !counts.contains_key(*name));
    problems
        .extend(gone.map(|name| format!("{name} is in {BASELINE} and was not counted: run with --bless")));
    problems
}
