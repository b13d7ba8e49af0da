//! A private NATS server with JetStream: its own store folder and a random port on 127.0.0.1.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;

use super::guard::Guard;
use super::process::{Process, READY_WAIT};
use super::{HOW_TO_INSTALL, locate, ports, repository, server_folder};

const READY_LINE: &str = "Server is ready";
const RELOADED_LINE: &str = "Reloaded server configuration";
/// A configuration that changes nothing; NATS does not take an empty one.
const PLAIN: &str = "max_payload: 1MB\n";
const PORT_TAKEN_LINE: &str = "address already in use";
const PORT_ATTEMPTS_MAX: u32 = 10;

/// A running NATS server that belongs to this test process; dropped, it is gone with all its data.
///
/// The calls that start and end it block the calling thread until the server has done so.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    guard: Guard,
    binary: PathBuf,
    folder: TempDir,
    port: u16,
}

impl NatsServer {
    /// Starts a server with JetStream on and an empty store.
    ///
    /// # Errors
    /// When no NATS 2.10 or later is installed, or when it does not start; the error says what it logged.
    pub fn start() -> anyhow::Result<Self> {
        let binary = locate::find_nats(&repository())?
            .with_context(|| format!("found no NATS server 2.10 or later; {HOW_TO_INSTALL}"))?;
        let folder = server_folder("nats")?;
        let mut guard = Guard::start(folder.path())?;
        std::fs::write(config_file(&folder), PLAIN).context("cannot write the configuration of NATS")?;
        for _ in 0..PORT_ATTEMPTS_MAX {
            let port = ports::free_port()?;
            let process = launch(&binary, &folder, port)?;
            match process.wait_ready(0, READY_WAIT) {
                Ok(()) => {
                    guard.watch(process.pid())?;
                    return Ok(Self { process, guard, binary, folder, port });
                }
                Err(_) if process.log_contains(PORT_TAKEN_LINE) => {}
                Err(error) => return Err(error.context("NATS did not start")),
            }
        }
        bail!("NATS found its port taken {PORT_ATTEMPTS_MAX} times in a row")
    }

    /// The address for clients.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The TCP port on 127.0.0.1; it stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the server.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The last lines that the server logged.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// The folder that holds its data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Gives it another configuration, as its configuration file has it, and returns when that is in force; on a
    /// server that has ended, that is after its next start. Nothing in it is the default again.
    ///
    /// # Errors
    /// When NATS does not take it.
    pub fn configure(&mut self, text: &str) -> anyhow::Result<()> {
        let text = if text.is_empty() { PLAIN } else { text };
        std::fs::write(config_file(&self.folder), text).context("cannot write the configuration of NATS")?;
        if self.process.has_ended()? { Ok(()) } else { self.process.reload(RELOADED_LINE, READY_WAIT) }
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When the server does not end.
    pub fn kill_9(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.guard.forget()
    }

    /// Starts an ended server again, on the same port, with the streams that it had on disk.
    ///
    /// # Errors
    /// When it still runs, and when it does not come up again.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.has_ended()?, "this NATS server is running; kill it before starting it again");
        self.process = launch(&self.binary, &self.folder, self.port)?;
        self.guard.watch(self.process.pid())?;
        self.process.wait_ready(0, READY_WAIT)
    }

    /// Starts an ended server again, on the same port, with nothing of what it had stored.
    ///
    /// # Errors
    /// As [`NatsServer::start_again`].
    pub fn start_again_empty(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.has_ended()?, "this NATS server is running; kill it before wiping its data");
        let store = store_folder(&self.folder);
        if store.exists() {
            std::fs::remove_dir_all(&store).context("cannot remove the data of the NATS server")?;
        }
        self.start_again()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if let Err(error) = self.kill_9() {
            eprintln!("a test NATS server did not end cleanly: {error:#}");
        }
    }
}

fn store_folder(folder: &TempDir) -> PathBuf {
    folder.path().join("store")
}

fn config_file(folder: &TempDir) -> PathBuf {
    folder.path().join("nats.conf")
}

fn launch(binary: &Path, folder: &TempDir, port: u16) -> anyhow::Result<Process> {
    let mut command = Command::new(binary);
    command
        .args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream", "--store_dir"])
        .arg(store_folder(folder))
        .arg("--config")
        .arg(config_file(folder))
        .current_dir(folder.path());
    Process::spawn(&mut command, READY_LINE)
}
