//! One server process: its start, the lines that it logs, signals to it, and its certain end.
//!
//! Readiness is learned from the log and not by polling: a thread reads the server's stderr, which
//! also tells when the last process of the server is gone, for that is when the stream ends.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

const LOG_LINES_MAX: usize = 200;
const END_WAIT: Duration = Duration::from_secs(10);
/// Generous, because a loaded two-core machine can take long over a start; only a failure waits so long.
pub(super) const READY_WAIT: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
struct LogState {
    lines: VecDeque<String>,
    ready_count: u64,
    ended: bool,
}

#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_from(&self, stream: impl Read, ready_line: &str) {
        let mut reader = BufReader::new(stream);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            let mut state = self.lock();
            if line.contains(ready_line) {
                state.ready_count += 1;
            }
            if state.lines.len() == LOG_LINES_MAX {
                state.lines.pop_front();
            }
            state.lines.push_back(line);
            self.changed.notify_all();
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits until the condition holds; `false` when the time is over.
    fn wait(&self, wait: Duration, mut holds: impl FnMut(&LogState) -> bool) -> bool {
        let deadline = Instant::now() + wait;
        let mut state = self.lock();
        while !holds(&state) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// A running (or just ended) server process.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    log: Arc<Log>,
}

impl Process {
    /// Starts the command; `ready_line` is a part of the line that it logs when it serves.
    pub(super) fn spawn(command: &mut Command, ready_line: &'static str) -> anyhow::Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let log = Arc::new(Log::default());
        let Some(stderr) = child.stderr.take() else { bail!("{program} was started without a stderr pipe") };
        let reader = Arc::clone(&log);
        std::thread::Builder::new()
            .name("server-log".to_owned())
            .spawn(move || reader.read_from(stderr, ready_line))
            .context("cannot start the thread that reads a server's log")?;
        Ok(Self { child, log })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last lines that the server logged.
    pub(super) fn log_tail(&self) -> String {
        self.log.lock().lines.iter().map(|line| format!("  {line}\n")).collect()
    }

    pub(super) fn log_contains(&self, text: &str) -> bool {
        self.log.lock().lines.iter().any(|line| line.contains(text))
    }

    /// How often the server has said that it is ready.
    pub(super) fn ready_count(&self) -> u64 {
        self.log.lock().ready_count
    }

    /// Waits until the server has said more than `seen` times that it is ready.
    pub(super) fn wait_ready(&self, seen: u64, wait: Duration) -> anyhow::Result<()> {
        let settled = self.log.wait(wait, |state| state.ready_count > seen || state.ended);
        if self.ready_count() > seen {
            return Ok(());
        }
        let what = if settled { "ended" } else { "was not ready in time" };
        bail!("the server with pid {} {what}; its last lines:\n{}", self.pid(), self.log_tail())
    }

    /// SIGHUP, and the wait until the server has logged once more that it has its new configuration.
    pub(super) fn reload(&self, line: &str, wait: Duration) -> anyhow::Result<()> {
        let count = |state: &LogState| state.lines.iter().filter(|logged| logged.contains(line)).count();
        let seen = count(&self.log.lock());
        signal("HUP", &[self.pid()])?;
        if self.log.wait(wait, |state| state.ended || count(state) > seen) && count(&self.log.lock()) > seen {
            return Ok(());
        }
        bail!("the server with pid {} does not take it; its last lines:\n{}", self.pid(), self.log_tail())
    }

    /// Asks by signal (QUIT, INT, TERM), waits for the end, and uses force when it does not come.
    pub(super) fn end(&mut self, name: &str) -> anyhow::Result<()> {
        if !self.has_ended()? {
            // Failure to send means that it has just ended; the wait below finds that out.
            let _ = signal(name, &[self.pid()]);
            self.log.wait(END_WAIT, |state| state.ended);
        }
        self.kill()
    }

    /// SIGKILL to the process and to the children that it has, and the wait until none is left.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        let children = if self.has_ended()? { Vec::new() } else { self.children() };
        self.child.kill().context("cannot kill a test server")?;
        self.child.wait().context("cannot wait for a killed test server")?;
        // The children may end by themselves first, so that a failure says nothing.
        let _ = signal("KILL", &children);
        if !self.log.wait(END_WAIT, |state| state.ended) {
            bail!("processes of the killed server with pid {} are still running", self.pid());
        }
        Ok(())
    }

    /// Waits for an end that somebody else brings about.
    #[cfg(test)]
    pub(super) fn wait_end(&mut self) -> anyhow::Result<()> {
        self.child.wait().context("cannot wait for a test server")?;
        Ok(())
    }

    pub(super) fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait().context("cannot ask for the state of a test server")?.is_some())
    }

    /// The pids of its direct children; empty where the system has no `/proc`.
    pub(super) fn children(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| parent_of(*pid) == Some(self.pid())).collect()
    }
}

/// The parent, from `/proc/<pid>/stat`: `pid (name, which may hold anything) state parent ...`.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_whitespace().nth(1)?.parse().ok()
}

/// Sends a signal by its name to processes that the caller started.
pub(super) fn signal(name: &str, pids: &[u32]) -> anyhow::Result<()> {
    if pids.is_empty() {
        return Ok(());
    }
    let status = Command::new("sh")
        .args(["-c", r#"kill -s "$@""#, "kill", name])
        .args(pids.iter().map(u32::to_string))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot run `sh` to send a signal")?;
    if !status.success() {
        bail!("cannot send SIG{name} to {pids:?}: a process of these has ended");
    }
    Ok(())
}
