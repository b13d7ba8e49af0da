//! The rules of a proxy through a unix socket: one JSON value a line, one answer a line.

use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::{Count, Handle, Rule};

/// What can be asked of a proxy, such as `{"add":{"fault":{"delay":{"ms":10}},"direction":"up"}}` or `"heal"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// As [`Handle::add`]; answered by [`Reply::Added`].
    Add(Rule),
    /// As [`Handle::remove`]; answered by [`Reply::Done`].
    Remove(u64),
    /// As [`Handle::heal`]; answered by [`Reply::Done`].
    Heal,
    /// As [`Handle::reset`]; answered by [`Reply::Done`].
    Reset,
    /// As [`Handle::counts`]; answered by [`Reply::Counts`].
    Counts,
    /// As [`Handle::wait_fired`]; answered by [`Reply::Done`] when it is so.
    WaitFired {
        /// The rule.
        id: u64,
        /// How often it has to strike.
        times: u64,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The id of the new rule.
    Added(u64),
    /// It is done.
    Done,
    /// How often each rule has struck.
    Counts(Vec<Count>),
    /// It cannot be done, and why.
    Refused(String),
}

/// A proxy of another process.
#[derive(Debug)]
pub struct Remote {
    stream: BufReader<UnixStream>,
}

impl Remote {
    /// Connects to the socket that [`Proxy::listen`](crate::Proxy::listen) made.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path).await;
        let stream = stream.with_context(|| format!("no proxy listens at {}", path.display()))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// When the proxy is gone, or refuses.
    pub async fn ask(&mut self, command: &Command) -> anyhow::Result<Reply> {
        let line = serde_json::to_string(command)? + "\n";
        self.stream.write_all(line.as_bytes()).await.context("the proxy is gone")?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer).await.context("the proxy is gone")?;
        match serde_json::from_str(&answer).context("the proxy is gone, or says what cannot be read")? {
            Reply::Refused(problem) => anyhow::bail!("the proxy refuses: {problem}"),
            reply => Ok(reply),
        }
    }
}

pub(crate) fn listen(handle: Handle, path: &Path) -> anyhow::Result<JoinHandle<()>> {
    let listener = UnixListener::bind(path);
    let listener = listener.with_context(|| format!("cannot listen at {}", path.display()))?;
    Ok(tokio::spawn(async move {
        // Ends with the proxy, and its conversations with it.
        let mut conversations = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            conversations.spawn(converse(handle.clone(), stream));
            while conversations.try_join_next().is_some() {}
        }
    }))
}

async fn converse(handle: Handle, stream: UnixStream) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while let Ok(1..) = stream.read_line(&mut line).await {
        let reply = match serde_json::from_str(&line) {
            Ok(command) => answer(&handle, command).await,
            Err(error) => Reply::Refused(format!("not a command: {error}")),
        };
        line.clear();
        let Ok(text) = serde_json::to_string(&reply) else { return };
        if stream.write_all((text + "\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn answer(handle: &Handle, command: Command) -> Reply {
    match command {
        Command::Add(rule) => match handle.add(rule) {
            Ok(id) => Reply::Added(id),
            Err(error) => Reply::Refused(format!("{error:#}")),
        },
        Command::Remove(id) => match handle.remove(id) {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Refused(format!("{error:#}")),
        },
        Command::Heal => {
            handle.heal();
            Reply::Done
        }
        Command::Reset => {
            handle.reset();
            Reply::Done
        }
        Command::Counts => Reply::Counts(handle.counts()),
        Command::WaitFired { id, times } => {
            handle.wait_fired(id, times).await;
            Reply::Done
        }
    }
}
