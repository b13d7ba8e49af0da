//! The effect sink: the only process of a case that is trusted, and that no fault strikes.
//!
//! One line of JSON from a worker is one entry of the effect journal. It is stamped, written and synced
//! before the worker hears `ok`. Many lines may share one sync.
//!
//! It keeps books as well: asked whether an attempt has begun, it says so, or sees to it that the attempt never does.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::Context as _;
use everstep_checker::format::{JournalEntry, LineWriter, Phase};

use crate::clock::mono_ns;

/// Most entries that one sync is for.
const BATCH_MAX: usize = 64;

type Line = (JournalEntry, Sender<Answer>);

/// What a worker hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It is in the journal.
    Written,
    /// The attempt that was asked about had begun.
    Begun,
    /// The attempt must not begin: somebody was told that it had not.
    Refused,
}

impl Answer {
    const fn line(self) -> &'static [u8] {
        match self {
            Self::Written => b"ok\n",
            Self::Begun => b"begun\n",
            Self::Refused => b"refused\n",
        }
    }
}

/// Attempts that have begun, and those that will not.
#[derive(Default)]
struct Books {
    begun: BTreeSet<(String, u32, u32)>,
    denied: BTreeSet<(String, u32, u32)>,
}

impl Books {
    /// What to say to an entry; what is `Written` is to be written.
    fn entered(&mut self, entry: &JournalEntry) -> Answer {
        let key = (entry.run_id.clone(), entry.step, entry.attempt);
        match entry.phase {
            Phase::Begin if self.denied.contains(&key) => return Answer::Refused,
            Phase::Begin => drop(self.begun.insert(key)),
            Phase::Denied if self.begun.contains(&key) => return Answer::Begun,
            Phase::Denied => drop(self.denied.insert(key)),
            Phase::End | Phase::Beat => {}
        }
        Answer::Written
    }
}

/// Serves on a port of 127.0.0.1 until the process ends.
///
/// # Errors
/// When the port or the journal cannot be had, or the journal not be written.
pub fn serve(port: u16, journal: &Path) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("port {port}"))?;
    let writer = LineWriter::append(journal)?;
    let (to_writer, lines) = channel();
    std::thread::Builder::new().name("journal".to_owned()).spawn(move || {
        if let Err(error) = write(writer, &lines) {
            eprintln!("the journal cannot be written: {error:#}");
            std::process::exit(1);
        }
    })?;
    for stream in listener.incoming() {
        let (stream, to_writer) = (stream?, to_writer.clone());
        std::thread::Builder::new().name("worker".to_owned()).spawn(move || {
            // A worker that is killed breaks its connection off.
            let _ = hear(&stream, &to_writer);
        })?;
    }
    Ok(())
}

fn write(mut writer: LineWriter<JournalEntry>, lines: &Receiver<Line>) -> anyhow::Result<()> {
    let mut books = Books::default();
    while let Ok(first) = lines.recv() {
        let mut acks = Vec::new();
        for (mut entry, ack) in std::iter::once(first).chain(lines.try_iter().take(BATCH_MAX)) {
            let answer = books.entered(&entry);
            if answer == Answer::Written {
                entry.mono_ns = mono_ns();
                writer.write(&entry)?;
            }
            acks.push((ack, answer));
        }
        writer.sync()?;
        for (ack, answer) in acks {
            let _ = ack.send(answer);
        }
    }
    Ok(())
}

fn hear(stream: &TcpStream, to_writer: &Sender<Line>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let (ack, acked) = channel();
    for line in BufReader::new(stream).lines() {
        let entry: JournalEntry = serde_json::from_str(&line?)?;
        to_writer.send((entry, ack.clone()))?;
        (&mut &*stream).write_all(acked.recv()?.line())?;
    }
    Ok(())
}

/// The worker's side.
pub mod client {
    use std::sync::{Mutex, PoisonError};

    use anyhow::{Context as _, ensure};
    use everstep_checker::format::{JournalEntry, Phase};
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream};
    use tokio::net::TcpStream;

    /// Connections to the sink. One is used by one report at a time; a report that is cut off takes its
    /// connection with it.
    #[derive(Debug)]
    pub struct Sink {
        address: String,
        idle: Mutex<Vec<BufStream<TcpStream>>>,
    }

    impl Sink {
        /// A sink at `address`. Does not wait for it.
        #[must_use]
        pub fn new(address: String) -> Self {
            Self { address, idle: Mutex::default() }
        }

        /// Ready when the entry is on the sink's disk.
        ///
        /// # Errors
        /// When the sink is not there, or does not let the attempt begin.
        pub async fn report(&self, entry: &JournalEntry) -> anyhow::Result<()> {
            let answer = self.send(entry).await?;
            ensure!(answer == "ok\n", "the sink says {answer:?}");
            Ok(())
        }

        /// Whether the attempt of this entry has begun. When not, it will not begin any more.
        ///
        /// # Errors
        /// When the sink is not there.
        pub async fn has_begun(&self, entry: JournalEntry) -> anyhow::Result<bool> {
            let answer = self.send(&JournalEntry { phase: Phase::Denied, ..entry }).await?;
            ensure!(answer == "ok\n" || answer == "begun\n", "the sink says {answer:?}");
            Ok(answer == "begun\n")
        }

        async fn send(&self, entry: &JournalEntry) -> anyhow::Result<String> {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut stream = match idle {
                Some(stream) => stream,
                None => {
                    let stream = TcpStream::connect(&self.address).await.context("the sink is away")?;
                    stream.set_nodelay(true)?;
                    BufStream::new(stream)
                }
            };
            let mut line = serde_json::to_vec(entry)?;
            line.push(b'\n');
            stream.write_all(&line).await?;
            stream.flush().await?;
            let mut answer = String::new();
            stream.read_line(&mut answer).await?;
            ensure!(answer.ends_with('\n'), "the sink broke off");
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
            Ok(answer)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_is_said_not_to_have_begun_never_begins() {
        let mut books = Books::default();
        let entry = |attempt, phase| JournalEntry { attempt, phase, ..JournalEntry::default() };
        assert_eq!(books.entered(&entry(1, Phase::Begin)), Answer::Written);
        assert_eq!(books.entered(&entry(1, Phase::Denied)), Answer::Begun);
        assert_eq!(books.entered(&entry(2, Phase::Denied)), Answer::Written);
        assert_eq!(books.entered(&entry(2, Phase::Begin)), Answer::Refused);
        assert_eq!(books.entered(&entry(1, Phase::Begin)), Answer::Written, "another owner's");
    }
}
