//! A scripted HTTP/1.1 server on the loopback address: it gives one answer of its script to each request, and
//! keeps what it was asked. It judges nothing; what a request must hold is the tests' business.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How an answer ends.
#[derive(Clone, Copy)]
enum Ending {
    Complete,
    /// The connection closes before all that was promised is sent.
    Truncated,
    /// The connection stays open and nothing more comes.
    Stalls,
}

/// One answer of a script.
pub(crate) struct Answer {
    /// `None` for an answer without a single byte.
    status: Option<u16>,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    ending: Ending,
}

impl Answer {
    /// A whole answer that calls itself JSON.
    pub(crate) fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::bare(status, body).header("content-type", "application/json")
    }

    /// A whole answer without a content type.
    pub(crate) fn bare(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status: Some(status), headers: Vec::new(), body: body.into(), ending: Ending::Complete }
    }

    /// No answer: the connection closes after the request, unless it [`stalls`](Self::stalls).
    pub(crate) fn none() -> Self {
        Self { status: None, headers: Vec::new(), body: Vec::new(), ending: Ending::Truncated }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub(crate) fn truncated(mut self) -> Self {
        self.ending = Ending::Truncated;
        self
    }

    pub(crate) fn stalls(mut self) -> Self {
        self.ending = Ending::Stalls;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let Some(status) = self.status else { return Vec::new() };
        let missing = if matches!(self.ending, Ending::Complete) { 0 } else { 1_000 };
        // A connection for each request, so that no attempt meets one that is about to close.
        let mut head = format!(
            "HTTP/1.1 {status} Scripted\r\nconnection: close\r\ncontent-length: {}\r\n",
            self.body.len() + missing
        );
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        [head.as_bytes(), &self.body].concat()
    }
}

/// What the server was asked.
#[derive(Debug)]
pub(crate) struct Request {
    /// Method, path and version.
    pub(crate) line: String,
    /// By name in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: serde_json::Value,
    /// When it came, on the clock of the test.
    pub(crate) at: Instant,
}

/// The server; it ends with the test.
pub(crate) struct FakeServer {
    base_url: String,
    requests: mpsc::UnboundedReceiver<Request>,
    stalled: Arc<Notify>,
    hung_up: Arc<Notify>,
    task: JoinHandle<io::Result<()>>,
}

impl FakeServer {
    /// Listens. Requests beyond the script are kept too, and get no answer.
    pub(crate) async fn start(script: impl IntoIterator<Item = Answer>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base_url = format!("http://{}/v1", listener.local_addr()?);
        let (recorded, requests) = mpsc::unbounded_channel();
        let (stalled, hung_up) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let server = ServerTask {
            script: script.into_iter().collect::<Vec<_>>().into_iter(),
            recorded,
            stalled: stalled.clone(),
            hung_up: hung_up.clone(),
        };
        let task = tokio::spawn(server.run(listener));
        Ok(Self { base_url, requests, stalled, hung_up, task })
    }

    /// Where the chat-completions shape begins.
    pub(crate) fn base_url(&self) -> String {
        self.base_url.clone()
    }

    /// The requests since the last call. A request is kept before it is answered, so whoever has the answer
    /// finds it here.
    pub(crate) fn requests(&mut self) -> Vec<Request> {
        std::iter::from_fn(|| self.requests.try_recv().ok()).collect()
    }

    /// Waits until an answer that [`stalls`](Answer::stalls) has sent all that it ever will.
    pub(crate) async fn stalled(&self) {
        self.stalled.notified().await;
    }

    /// Waits until a caller has left before its answer was complete.
    pub(crate) async fn hung_up(&self) {
        self.hung_up.notified().await;
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct ServerTask {
    script: std::vec::IntoIter<Answer>,
    recorded: mpsc::UnboundedSender<Request>,
    stalled: Arc<Notify>,
    hung_up: Arc<Notify>,
}

impl ServerTask {
    /// One connection after the other: the script has an order.
    async fn run(mut self, listener: TcpListener) -> io::Result<()> {
        loop {
            let mut stream = BufReader::new(listener.accept().await?.0);
            let request = read(&mut stream).await?;
            // The test may be over.
            let _ = self.recorded.send(request);
            if let Some(answer) = self.script.next() {
                // A caller that leaves in the middle is what some tests are about.
                if self.reply(&answer, &mut stream).await.is_err() || matches!(answer.ending, Ending::Stalls)
                {
                    self.hung_up.notify_one();
                }
            }
        }
    }

    async fn reply(&self, answer: &Answer, stream: &mut BufReader<TcpStream>) -> io::Result<()> {
        stream.write_all(&answer.bytes()).await?;
        stream.flush().await?;
        if matches!(answer.ending, Ending::Stalls) {
            self.stalled.notify_one();
            // Nothing more is asked on this connection, so this ends when the caller closes it.
            return stream.read(&mut [0]).await.map(drop);
        }
        stream.shutdown().await
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await?;
        let Some((name, value)) = header.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Ok(Request { line: line.trim_end().to_owned(), headers, body, at: Instant::now() })
}
