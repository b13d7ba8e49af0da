//! Every fault, against small peers.

mod control;
mod generic;
mod grpc;
mod nats;
mod postgres;

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::{Mode, Proxy};

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

/// A proxy, and what stands behind it.
struct Link {
    proxy: Proxy,
    upstream: TcpListener,
}

impl Link {
    async fn new(mode: Mode) -> anyhow::Result<Self> {
        let upstream = TcpListener::bind("127.0.0.1:0").await?;
        let proxy = Proxy::start(upstream.local_addr()?.to_string(), mode, 7).await?;
        Ok(Self { proxy, upstream })
    }

    /// A connection through the proxy: the client's end and the server's.
    async fn connect(&self) -> anyhow::Result<(TcpStream, TcpStream)> {
        let client = TcpStream::connect(self.proxy.address()).await?;
        let server = in_time("the proxy connects", self.upstream.accept()).await??.0;
        Ok((client, server))
    }
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::time::timeout(LIMIT, work).await.with_context(|| format!("{what}: not within {LIMIT:?}"))
}

/// Sends, and sees exactly this arrive.
async fn passes(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) -> anyhow::Result<()> {
    from.write_all(bytes).await?;
    arrives(to, bytes).await
}

async fn arrives(at: &mut TcpStream, bytes: &[u8]) -> anyhow::Result<()> {
    let mut read = vec![0; bytes.len()];
    in_time("bytes arrive", at.read_exact(&mut read)).await??;
    ensure!(read == bytes, "{:?} came instead of {:?}", read.escape_ascii().to_string(), bytes);
    Ok(())
}

/// Sees what is left to read, and then a reset.
async fn is_reset(at: &mut TcpStream, rest: &[u8]) -> anyhow::Result<()> {
    let mut read = Vec::new();
    match in_time("a reset", at.read_to_end(&mut read)).await? {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => bail!("{other:?} instead of a reset, after {}", read.escape_ascii()),
    }
    ensure!(read == rest, "{} came before the reset", read.escape_ascii());
    Ok(())
}

/// Sees the end of the stream, and nothing before it.
async fn is_closed(at: &mut TcpStream) -> anyhow::Result<()> {
    let mut read = Vec::new();
    in_time("an end", at.read_to_end(&mut read)).await??;
    ensure!(read.is_empty(), "{} came before the end", read.escape_ascii());
    Ok(())
}

/// True when there is nothing to read now.
fn silent(at: &TcpStream) -> bool {
    matches!(at.try_read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}
