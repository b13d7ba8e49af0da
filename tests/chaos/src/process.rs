//! Processes of a case, kept alive: one that ends is started again, unless a fault wants it down.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock::mono_ns;
use crate::pace;

/// A child with this variable ends with the thread that started it.
pub const LEASHED: &str = "EVERSTEP_CHAOS_LEASHED";
/// Pause before a process that ended by itself is started again.
const PAUSE: Duration = Duration::from_millis(300);

/// How a process is started.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name in the case, such as `server-1`.
    pub name: String,
    /// The executable.
    pub binary: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// What it finds in its environment, besides a `PATH`.
    pub environment: Vec<(String, String)>,
    /// Where `<name>.log` is, and its working folder.
    pub folder: PathBuf,
}

impl Program {
    /// The command, with stdout and stderr appended to the log.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn command(&self) -> anyhow::Result<Command> {
        let log = self.log();
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("open {}", log.display()))?;
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments).current_dir(&self.folder).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", &self.folder);
        command.env(LEASHED, "1").envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).kill_on_drop(true);
        Ok(command)
    }

    /// What it has printed so far, over all its lives.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }
}

/// One life of a process.
#[derive(Clone, Debug)]
pub struct Life {
    /// Which process.
    pub name: String,
    /// Its process id.
    pub pid: i32,
    /// When it ended.
    pub ended_mono_ns: u64,
    /// How, as the system puts it.
    pub status: ExitStatus,
    /// Somebody here wanted it to.
    pub wanted: bool,
}

#[derive(Debug, Default)]
struct State {
    pid: Option<i32>,
    starts: u32,
    /// A signal was sent that may end it.
    asked_to_end: bool,
    lives: Vec<Life>,
}

/// A process that is started again when it ends.
#[derive(Debug)]
pub struct Supervised {
    /// How it is started.
    pub program: Program,
    state: Arc<Mutex<State>>,
    wanted: watch::Sender<bool>,
    changed: watch::Sender<u64>,
    supervisor: JoinHandle<()>,
}

impl Supervised {
    /// Starts it. To be called on a thread of the runtime, whose life bounds the process's.
    #[must_use]
    pub fn start(program: Program) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let (wanted, wants) = watch::channel(true);
        let (changed, _) = watch::channel(0);
        let supervisor = tokio::spawn(supervise(program.clone(), Arc::clone(&state), wants, changed.clone()));
        Self { program, state, wanted, changed, supervisor }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The process id of the present life.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.lock().pid
    }

    /// Its ended lives.
    #[must_use]
    pub fn lives(&self) -> Vec<Life> {
        self.lock().lives.clone()
    }

    /// How often it was started.
    #[must_use]
    pub fn starts(&self) -> u32 {
        self.lock().starts
    }

    /// SIGKILL, SIGTERM, SIGSTOP or SIGCONT to the present life. False when there is none.
    pub fn signal(&self, signal: Signal) -> bool {
        let mut state = self.lock();
        let Some(pid) = state.pid.and_then(Pid::from_raw) else { return false };
        let sent = kill_process(pid, signal).is_ok();
        state.asked_to_end |= sent && (signal == Signal::KILL || signal == Signal::TERM);
        sent
    }

    /// From now on it stays down once it has ended.
    pub fn keep_down(&self) {
        self.wanted.send_replace(false);
    }

    /// Starts it again, if it is down.
    pub fn want_up(&self) {
        self.wanted.send_replace(true);
    }

    /// Ends it with SIGKILL and keeps it down; gone when this returns.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill_9(&self) -> anyhow::Result<()> {
        self.keep_down();
        self.signal(Signal::KILL);
        self.wait_down(Duration::from_secs(20)).await
    }

    /// Waits until it is not running.
    ///
    /// # Errors
    /// When it still runs at the end of `limit`.
    pub async fn wait_down(&self, limit: Duration) -> anyhow::Result<()> {
        self.wait(limit, |state| state.pid.is_none())
            .await
            .with_context(|| format!("{} runs on", self.program.name))
    }

    /// Waits until it has been started more than `starts` times, and runs.
    ///
    /// # Errors
    /// When that does not happen within `limit`.
    pub async fn wait_started(&self, starts: u32, limit: Duration) -> anyhow::Result<()> {
        let up = self.wait(limit, |state| state.pid.is_some() && state.starts > starts).await;
        up.with_context(|| format!("{} does not start", self.program.name))
    }

    async fn wait(&self, limit: Duration, mut holds: impl FnMut(&State) -> bool) -> anyhow::Result<()> {
        let mut changed = self.changed.subscribe();
        let waiting = changed.wait_for(|_| holds(&self.lock()));
        match tokio::time::timeout(limit, waiting).await {
            Ok(_) => Ok(()),
            Err(_) => bail!("not within {limit:?}"),
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // The child goes with the task that holds it.
        self.supervisor.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn supervise(
    program: Program,
    state: Arc<Mutex<State>>,
    mut wanted: watch::Receiver<bool>,
    changed: watch::Sender<u64>,
) {
    while wanted.wait_for(|wanted| *wanted).await.is_ok() {
        let mut child = match program.command().and_then(|mut command| Ok(command.spawn()?)) {
            Ok(child) => child,
            Err(error) => {
                tracing::error!(name = program.name, error = format!("{error:#}"), "cannot be started");
                pace::hold(PAUSE).await;
                continue;
            }
        };
        begin(&state, &child);
        changed.send_modify(|number| *number += 1);
        let status = child.wait().await;
        let wanted_end = end(&state, &program.name, status);
        changed.send_modify(|number| *number += 1);
        if !wanted_end {
            pace::hold(PAUSE).await;
        }
    }
}

fn begin(state: &Mutex<State>, child: &Child) {
    let mut state = lock(state);
    state.pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    state.asked_to_end = false;
    state.starts += 1;
}

fn end(state: &Mutex<State>, name: &str, status: std::io::Result<ExitStatus>) -> bool {
    let mut state = lock(state);
    let (pid, wanted) = (state.pid.take().unwrap_or(0), state.asked_to_end);
    if let Ok(status) = status {
        let life = Life { name: name.to_owned(), pid, ended_mono_ns: mono_ns(), status, wanted };
        tracing::debug!(?life, "ended");
        state.lives.push(life);
    }
    wanted
}

/// Ends this process with the thread that started it, where that is wanted.
pub fn obey_leash() {
    if std::env::var_os(LEASHED).is_some() {
        let set = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        if let Err(error) = set {
            eprintln!("cannot be leashed: {error}");
        }
    }
}

/// The last lines of a file, as far as it can be read.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
