//! What the server nodes count about themselves, over all their lives.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The last figures of each life of a server, by its process id.
#[derive(Debug, Default)]
pub struct Figures(Mutex<BTreeMap<i32, BTreeMap<String, u64>>>);

impl Figures {
    /// Asks the server with this process id, which listens on `port`. One that does not answer keeps its
    /// last figures.
    pub async fn ask(&self, pid: i32, port: u16) {
        let asked = tokio::time::timeout(Duration::from_secs(1), get(port, "/metrics"));
        if let Ok(Ok(text)) = asked.await {
            let figures = text.lines().filter(|line| line.starts_with("everstep_")).filter_map(|line| {
                let (name, value) = line.split_once(' ')?;
                Some((name.to_owned(), value.parse::<f64>().ok()? as u64))
            });
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(pid, figures.collect());
        }
    }

    /// All of it, to keep.
    #[must_use]
    pub fn all(&self) -> BTreeMap<i32, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The sum of a counter over all lives of all servers. What a life counted after it was last asked is
    /// not in it.
    #[must_use]
    pub fn sum(&self, name: &str) -> u64 {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().filter_map(|life| life.get(name)).sum()
    }
}

/// The body of a plain HTTP answer from a port of 127.0.0.1.
///
/// # Errors
/// When nobody answers there.
pub async fn get(port: u16, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    Ok(body.to_owned())
}
