//! The effect sink: the only process of a case that is trusted, and that no fault strikes.
//!
//! One line of JSON from a worker is one entry of the effect journal. It is stamped, written and synced
//! before the worker hears `ok`. Many lines may share one sync.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::Context as _;
use everstep_checker::format::{JournalEntry, LineWriter};

use crate::clock::mono_ns;

/// Most entries that one sync is for.
const BATCH_MAX: usize = 64;

type Line = (JournalEntry, Sender<()>);

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
    while let Ok(first) = lines.recv() {
        let mut acks = Vec::new();
        for (mut entry, ack) in std::iter::once(first).chain(lines.try_iter().take(BATCH_MAX)) {
            entry.mono_ns = mono_ns();
            writer.write(&entry)?;
            acks.push(ack);
        }
        writer.sync()?;
        for ack in acks {
            let _ = ack.send(());
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
        acked.recv()?;
        (&mut &*stream).write_all(b"ok\n")?;
    }
    Ok(())
}

/// The worker's side.
pub mod client {
    use std::sync::{Mutex, PoisonError};

    use anyhow::{Context as _, ensure};
    use everstep_checker::format::JournalEntry;
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
        /// When the sink is not there.
        pub async fn report(&self, entry: &JournalEntry) -> anyhow::Result<()> {
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
            ensure!(answer == "ok\n", "the sink broke off");
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
            Ok(())
        }
    }
}
