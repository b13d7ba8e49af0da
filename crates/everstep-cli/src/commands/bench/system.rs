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
        let mut worker = own_binary()?;
        worker.args(["bench", "--worker-of", &address]);
        let spawn = |mut c: Command| c.spawn().map_err(|e| Fail::refused(format!("own binary: {e}")));
        Ok(Self { began: Instant::now(), server: spawn(server)?, worker: spawn(worker)?, address, port })
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

    pub(super) async fn stop(mut self) {
        let _ = self.worker.kill().await;
        let _ = self.server.kill().await;
    }
}

/// Whether `/readyz` answers 200.
async fn says_ready(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    tokio::time::timeout(READY_MAX, ask)
        .await
        .is_ok_and(|answer| answer.is_ok_and(|answer| answer.split_whitespace().nth(1) == Some("200")))
}

fn own_binary() -> Result<Command, Fail> {
    let path = std::env::current_exe().map_err(|e| Fail::refused(format!("own binary: {e}")))?;
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    Ok(command)
}
