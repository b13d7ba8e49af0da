//! Processes of the binary under test, in a folder and an environment of their own.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Output, Stdio};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A folder of a test, empty at first.
pub(crate) fn folder() -> anyhow::Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("everstep-cli-").tempdir()?)
}

/// The binary, with nothing of the environment of whoever runs the tests.
pub(crate) fn everstep<S: AsRef<OsStr>>(folder: &Path, arguments: &[S]) -> Command {
    build(Path::new(env!("CARGO_BIN_EXE_everstep")), folder, arguments)
}

/// Another build of the binary, likewise.
pub(crate) fn build<S: AsRef<OsStr>>(binary: &Path, folder: &Path, arguments: &[S]) -> Command {
    let mut command = Command::new(binary);
    command.current_dir(folder).args(arguments).env_clear().env("HOME", folder).env("TMPDIR", folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

/// Runs a command to its end.
pub(crate) async fn run<S: AsRef<OsStr>>(folder: &Path, arguments: &[S]) -> anyhow::Result<Ended> {
    Ok(everstep(folder, arguments).output().await?.into())
}

/// A server or worker process; killed with this value.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pub(crate) address: String,
}

impl Running {
    /// Starts a server command and waits until it says where it listens.
    pub(crate) async fn server(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command.spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("stderr")?).lines();
        let mut said = Vec::new();
        while let Some(line) = lines.next_line().await? {
            if let Some(address) = line.strip_prefix("Everstep listens on ") {
                let address = address.to_owned();
                // Whoever writes to a pipe that nobody reads stops at some time.
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                return Ok(Self { child, address });
            }
            said.push(line);
        }
        bail!("the server ended: {}", said.join("\n"))
    }

    /// Starts a worker of `address`.
    pub(crate) fn worker(mut command: Command, address: &str) -> anyhow::Result<Self> {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { child: command.spawn()?, address: address.to_owned() })
    }

    /// A client that has begun to print.
    pub(crate) async fn watching(mut child: Child) -> anyhow::Result<Self> {
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        lines.next_line().await?.context("it ended by itself")?;
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child, address: String::new() })
    }

    /// SIGKILL, and gone when this returns.
    pub(crate) async fn kill_9(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// SIGTERM, and the exit code.
    pub(crate) async fn terminate(mut self) -> anyhow::Result<Option<i32>> {
        self.signal("TERM").await?;
        Ok(self.child.wait().await?.code())
    }

    /// SIGINT, and the exit code.
    pub(crate) async fn interrupt(mut self) -> anyhow::Result<Option<i32>> {
        self.signal("INT").await?;
        Ok(self.child.wait().await?.code())
    }

    async fn signal(&self, name: &str) -> anyhow::Result<()> {
        let pid = self.child.id().context("it has ended by itself")?;
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().await?;
        if sent.success() { Ok(()) } else { bail!("no process {pid}") }
    }
}

/// The command line, in a folder, of a server.
pub(crate) struct Cli<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) address: &'a str,
}

impl Cli<'_> {
    /// Runs a command and checks how it ends: its code, and what is in which stream.
    #[track_caller]
    pub(crate) fn says<'a>(
        &'a self,
        code: i32,
        arguments: &'a [&'a str],
        (stdout, stderr): (&'a [&'a str], &'a [&'a str]),
    ) -> impl Future<Output = anyhow::Result<Ended>> + 'a {
        let place = std::panic::Location::caller();
        async move {
            let ended = run(self.folder, &[arguments, &["--address", self.address]].concat()).await?;
            let has = |stream: &str, parts: &[&str]| parts.iter().all(|part| stream.contains(part));
            let calm = !ended.stderr.contains("panicked") && (code == 0 || ended.stderr.lines().count() > 0);
            if ended.code == Some(code) && calm && has(&ended.stdout, stdout) && has(&ended.stderr, stderr) {
                return Ok(ended);
            }
            bail!("{place}: {arguments:?} was to end with {code}, {stdout:?}, {stderr:?}: {ended:?}")
        }
    }

    /// As [`says`](Self::says), when it is carried out.
    #[track_caller]
    pub(crate) fn does<'a>(
        &'a self,
        arguments: &'a [&'a str],
        stdout: &'a [&'a str],
    ) -> impl Future<Output = anyhow::Result<Ended>> + 'a {
        self.says(0, arguments, (stdout, &[]))
    }

    /// As [`says`](Self::says), when it is refused: nothing is on stdout.
    #[track_caller]
    pub(crate) fn refuses<'a>(
        &'a self,
        code: i32,
        arguments: &'a [&'a str],
        stderr: &'a [&'a str],
    ) -> impl Future<Output = anyhow::Result<()>> + 'a {
        let said = self.says(code, arguments, (&[], stderr));
        async move {
            let ended = said.await?;
            if ended.stdout.is_empty() { Ok(()) } else { bail!("data of a refused call: {ended:?}") }
        }
    }

    /// Asks again until a part is in the answer, which something that is under way leads to.
    pub(crate) async fn until(&self, arguments: &[&str], part: &str) -> anyhow::Result<Ended> {
        loop {
            let ended = run(self.folder, &[arguments, &["--address", self.address]].concat()).await?;
            if ended.stdout.contains(part) {
                return Ok(ended);
            }
        }
    }
}
