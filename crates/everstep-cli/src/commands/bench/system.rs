//! Server and worker as processes of their own.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::place::Place;
use crate::commands::crash;
use crate::fail::Fail;

/// Longest time until a server is ready.
const READY_MAX: Duration = Duration::from_secs(120);
const READY_LOOK: Duration = Duration::from_millis(5);

pub(super) struct System {
    server: Child,
    worker: Child,
    pub(super) address: String,
    port: u16,
    began: Instant,
}

impl System {
    pub(super) fn start(place: &Place, nats_url: Option<&str>) -> Result<Self, Fail> {
        let port = crash::free_port()?;
        let address = format!("http://127.0.0.1:{port}");
        let mut server = own_binary()?;
        server.args(["server", "--listen", &format!("127.0.0.1:{port}"), "--database-url", &place.url()]);
        if let Some(nats) = nats_url {
            server.args(["--nats-url", nats]);
        }
        let worker = spawn(worker_of(&address)?)?;
        Ok(Self { began: Instant::now(), server: spawn(server)?, worker, address, port })
    }

    pub(super) fn server_pid(&self) -> u32 {
        self.server.id().unwrap_or_default()
    }

    pub(super) fn worker_pid(&self) -> u32 {
        self.worker.id().unwrap_or_default()
    }

    /// Waits until the server says that it is ready; how long it took from its start.
    pub(super) async fn ready(&mut self) -> Result<Duration, Fail> {
        while !says_ready(self.port).await {
            if let Ok(Some(status)) = self.server.try_wait() {
                return Err(Fail::refused(format!("the server of the bench ended: {status}")));
            }
            if self.began.elapsed() > READY_MAX {
                return Err(Fail::refused(format!("the server was not ready within {READY_MAX:?}")));
            }
            tokio::time::sleep(READY_LOOK).await;
        }
        Ok(self.began.elapsed())
    }

    /// Another worker instead of the one there was, which does not come to say goodbye.
    pub(super) async fn restart_worker(&mut self) -> Result<(), Fail> {
        let _ = self.worker.kill().await;
        self.worker = spawn(worker_of(&self.address)?)?;
        Ok(())
    }

    /// What `/metrics` says of a figure without labels.
    pub(super) async fn metric(&self, name: &str) -> Result<f64, Fail> {
        let absent = || Fail::refused(format!("the server of the bench has no figure {name}"));
        let page = ask(self.port, "/metrics").await.ok_or_else(absent)?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.ok_or_else(absent)
    }

    pub(super) async fn stop(mut self) {
        let _ = self.worker.kill().await;
        let _ = self.server.kill().await;
    }
}

/// Whether `/readyz` answers 200.
async fn says_ready(port: u16) -> bool {
    ask(port, "/readyz").await.is_some_and(|answer| answer.split_whitespace().nth(1) == Some("200"))
}

/// What the server answers over HTTP, head and body; `None` when it does not.
async fn ask(port: u16, path: &str) -> Option<String> {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    tokio::time::timeout(READY_MAX, ask).await.ok()?.ok()
}

fn worker_of(address: &str) -> Result<Command, Fail> {
    let mut worker = own_binary()?;
    worker.args(["bench", "--worker-of", address]);
    Ok(worker)
}

fn spawn(mut command: Command) -> Result<Child, Fail> {
    command.spawn().map_err(|e| Fail::refused(format!("own binary: {e}")))
}

fn own_binary() -> Result<Command, Fail> {
    let path = std::env::current_exe().map_err(|e| Fail::refused(format!("own binary: {e}")))?;
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    Ok(command)
}
