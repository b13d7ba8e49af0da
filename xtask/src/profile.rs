//! `cargo xtask profile`: where the server and the worker of a benchmark spend their time.
//!
//! Runs `everstep bench` and lets `perf` sample its server and worker, not its clients. The stacks are written
//! folded, a line each, which is what flame graphs are drawn from; `inferno-flamegraph` draws one if it is there.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::shell;

/// Samples a second: no multiple of anything that the server does at an interval.
const FREQUENCY: &str = "199";
/// Bytes of each stack that are kept to be unwound.
const CALL_GRAPH: &str = "dwarf,16384";
/// Longest wait for the server and the worker, which come after the baseline.
const PROCESSES_WAIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
const FOLDER: &str = "target/profile";
/// Lines of perf's own report when no picture can be drawn.
const REPORT_LINES: usize = 60;

/// What was asked for on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    workload: String,
    store: Option<String>,
    nats: Option<String>,
    concurrency: u32,
    seconds: u64,
}

impl Options {
    pub(crate) fn parse(arguments: &[String]) -> anyhow::Result<Self> {
        let mut options =
            Self { workload: String::new(), store: None, nats: None, concurrency: 0, seconds: 10 };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--store" => options.store = Some(value()?.clone()).filter(|store| store != "sqlite"),
                "--nats" => options.nats = Some(value()?.clone()),
                "--concurrency" => options.concurrency = value()?.parse().context("--concurrency")?,
                "--seconds" => options.seconds = value()?.parse().context("--seconds")?,
                workload if options.workload.is_empty() && !workload.starts_with('-') => {
                    workload.clone_into(&mut options.workload);
                }
                other => bail!("unexpected argument {other:?}"),
            }
        }
        let usual = match options.workload.as_str() {
            "w1" => 64,
            "w2" => 1,
            "fan-out" => 8,
            _ => bail!("name a workload: w1, w2 or fan-out"),
        };
        if options.concurrency == 0 {
            options.concurrency = usual;
        }
        ensure!(options.workload != "w2" || options.concurrency == 1, "w2 has one client");
        Ok(options)
    }
}

pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    ensure!(shell::succeeds(Command::new("perf").arg("--version")), "perf is not installed");
    shell::run(shell::cargo(root).args(["build", "--locked", "--release", "-p", "everstep-cli"]))?;
    let folder = root.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {FOLDER}"))?;
    let data = folder.join("perf.data");
    let roles = record(root, options, &data)?;
    let mut script = Command::new("perf");
    script.args(["script", "--no-inline", "-F", "comm,pid,ip,sym", "-i"]).arg(&data);
    let stacks = fold(&shell::output(&mut script)?, &roles);
    ensure!(!stacks.is_empty(), "perf has no sample of the server or the worker");
    let name = format!("{}-{}", options.workload, options.concurrency);
    let folded = folder.join(format!("{name}.folded"));
    let lines: String = stacks.iter().map(|(stack, samples)| format!("{stack} {samples}\n")).collect();
    fs::write(&folded, lines).with_context(|| format!("cannot write {}", folded.display()))?;
    let shown = |path: &Path| path.strip_prefix(root).unwrap_or(path).display().to_string();
    eprintln!("profile: {} samples in {}", stacks.values().sum::<u64>(), shown(&folded));
    let picture = folder.join(format!("{name}.svg"));
    if draw(root, &folded, &picture)? {
        eprintln!("profile: {}", shown(&picture));
        return Ok(());
    }
    eprintln!(
        "inferno-flamegraph is not installed (cargo install inferno --root target/tools): perf's report"
    );
    report(&data)
}

/// Runs the benchmark under `perf`; the processes that were sampled, by pid.
fn record(root: &Path, options: &Options, data: &Path) -> anyhow::Result<BTreeMap<u32, &'static str>> {
    let mut bench = Command::new(root.join("target/release/everstep"));
    bench.args(["bench", "--repeat", "1", "--workload", &options.workload]);
    bench.args(["--concurrency", &options.concurrency.to_string()]);
    bench.args(["--seconds", &options.seconds.to_string()]);
    if let Some(store) = &options.store {
        bench.args(["--database-url", store]);
    }
    if let Some(nats) = &options.nats {
        bench.args(["--nats-url", nats]);
    }
    let mut bench = bench.stdin(Stdio::null()).spawn().context("cannot run the benchmark")?;
    let recorded = processes(&mut bench).and_then(|roles| {
        let pids: Vec<String> = roles.keys().map(u32::to_string).collect();
        let mut perf = Command::new("perf");
        perf.args(["record", "-q", "-F", FREQUENCY, "--call-graph", CALL_GRAPH, "-o"]).arg(data);
        // The warm-up is not left out: it is the same work.
        perf.args(["-p", &pids.join(","), "--", "sleep", &options.seconds.to_string()]);
        shell::run(&mut perf)?;
        Ok(roles)
    });
    if recorded.is_err() {
        // It would go on by itself; one that has ended already is as good.
        let _ = bench.kill();
    }
    let status = bench.wait().context("cannot wait for the benchmark")?;
    let roles = recorded?;
    ensure!(status.success(), "the benchmark failed ({status})");
    Ok(roles)
}

/// The server and the worker of the benchmark, once both are there.
fn processes(bench: &mut Child) -> anyhow::Result<BTreeMap<u32, &'static str>> {
    let began = Instant::now();
    while began.elapsed() < PROCESSES_WAIT {
        if let Some(status) = bench.try_wait()? {
            bail!("the benchmark ended before its server was there ({status})");
        }
        let roles = children(bench.id());
        if roles.len() == 2 {
            return Ok(roles);
        }
        thread::sleep(LOOK);
    }
    bail!("the benchmark has started no server within {PROCESSES_WAIT:?}")
}

fn children(parent: u32) -> BTreeMap<u32, &'static str> {
    let read = |pid: u32, what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).ok();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            // The name of the program stands in parentheses and may hold anything.
            let stat = read(pid, "stat")?;
            let (_, rest) = stat.rsplit_once(')')?;
            let of_bench = rest.split_whitespace().nth(1)?.parse() == Ok(parent);
            Some((pid, role(&read(pid, "cmdline").filter(|_| of_bench)?)?))
        })
        .collect()
}

/// What a process is for, by its command line.
fn role(command_line: &str) -> Option<&'static str> {
    let words: Vec<&str> = command_line.split('\0').collect();
    match *words.get(1)? {
        "server" => Some("server"),
        "bench" if words.contains(&"--worker-of") => Some("worker"),
        _ => None,
    }
}

/// Stacks from the outermost frame to the innermost, under the role of their process, with their samples.
fn fold(script: &str, roles: &BTreeMap<u32, &'static str>) -> BTreeMap<String, u64> {
    let mut stacks = BTreeMap::new();
    // Samples are apart by an empty line: a line with the thread's name and pid, then a line a frame.
    for sample in script.split("\n\n") {
        let mut lines = sample.lines().filter(|line| !line.trim().is_empty());
        let Some((name, pid)) = lines.next().and_then(|head| head.trim().rsplit_once(char::is_whitespace))
        else {
            continue;
        };
        let Some(role) = pid.parse().ok().and_then(|pid: u32| roles.get(&pid)) else { continue };
        let mut frames: Vec<String> = lines.map(frame).collect();
        frames.push(name.trim().replace([' ', ';'], "_"));
        frames.push((*role).to_owned());
        frames.reverse();
        *stacks.entry(frames.join(";")).or_default() += 1;
    }
    stacks
}

/// The name in a line of a stack, without its address and without the compiler's hash.
fn frame(line: &str) -> String {
    let symbol = line.trim().split_once(' ').map_or("[unknown]", |(_, symbol)| symbol);
    let is_hash = |tail: &str| tail.len() == 16 && tail.bytes().all(|b| b.is_ascii_hexdigit());
    let symbol = match symbol.rsplit_once("::h") {
        Some((name, tail)) if is_hash(tail) => name,
        _ => symbol,
    };
    symbol.replace(';', ":")
}

/// Draws the picture; `false` when the program for it is not installed.
fn draw(root: &Path, folded: &Path, picture: &Path) -> anyhow::Result<bool> {
    let own = root.join("target/tools/bin/inferno-flamegraph");
    for program in [own.as_path(), Path::new("inferno-flamegraph")] {
        if shell::succeeds(Command::new(program).arg("--help")) {
            let drawn = shell::output(Command::new(program).arg(folded))?;
            fs::write(picture, drawn).with_context(|| format!("cannot write {}", picture.display()))?;
            return Ok(true);
        }
    }
    Ok(false)
}

fn report(data: &Path) -> anyhow::Result<()> {
    let mut perf = Command::new("perf");
    perf.args(["report", "--stdio", "--no-children", "-g", "none", "--percent-limit", "0.5", "-i"]).arg(data);
    let text = shell::output(&mut perf)?;
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .take(REPORT_LINES)
        .for_each(|line| eprintln!("{line}"));
    Ok(())
}
