//! Thousands of connections in a process of their own, where memory and files can be counted.

use std::error::Error;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use everstep_core::{NodeId, Timestamp};
use everstep_dispatch::InProcess;
use everstep_engine::{Engine, EngineConfig};
use everstep_server::{Server, ServerOptions, raise_open_files};
use everstep_store::MemoryStore;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

type Outcome<T> = Result<T, Box<dyn Error>>;

const HANGS: Duration = Duration::from_secs(60);
const IDLE: usize = 2_000;
const WAVE: usize = 500;
/// What half sent requests may have in all, and what each sends.
const BUDGET: usize = 64 * MIB;
const HALF: usize = MIB - 32 * KIB;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// The preface, empty SETTINGS and the ACK of the server's, and a call of health's Check with an empty message.
fn greeting() -> Vec<u8> {
    [
        &opening(b"/grpc.health.v1.Health/Check")[..],
        b"\x00\x00\x05\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00",
    ]
    .concat()
}

/// The same, the call's message still to come.
fn opening(path: &[u8]) -> Vec<u8> {
    let kind = b"application/grpc";
    let lengths = [path.len(), kind.len()].map(|n| u8::try_from(n).unwrap_or_default());
    let block = [
        &[0x83, 0x86, 0x04, lengths[0]][..],
        path,
        &[0x01, 1, b'x', 0x0f, 0x10, lengths[1]],
        kind,
        b"\x00\x02te\x08trailers",
    ]
    .concat();
    let length = u8::try_from(block.len()).unwrap_or_default();
    [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x04\x01\x00\x00\x00\x00",
        &[0, 0, length, 1, 4, 0, 0, 0, 1],
        &block,
    ]
    .concat()
}

/// Connects, makes a call and has its whole answer.
async fn connect(addr: SocketAddr) -> Outcome<TcpStream> {
    let talk = async {
        let mut stream = TcpStream::connect(addr).await?;
        stream.write_all(&greeting()).await?;
        // The last of its headers end the call.
        while frame_of(&mut stream, 1).await? & 1 == 0 {}
        Ok::<_, std::io::Error>(stream)
    };
    Ok(timeout(HANGS, talk).await??)
}

async fn connect_many(addr: SocketAddr, count: usize) -> Outcome<Vec<TcpStream>> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        held.push(connect(addr).await?);
    }
    Ok(held)
}

/// The server's open connections, without this question.
async fn connections(addr: SocketAddr) -> Outcome<usize> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    timeout(HANGS, stream.read_to_string(&mut answer)).await??;
    let line = answer.lines().find_map(|line| line.strip_prefix("everstep_connections "));
    Ok(line.ok_or("there is no such figure")?.parse::<usize>()? - 1)
}

async fn settles_at_none(addr: SocketAddr) -> Outcome<()> {
    let settled = async {
        while connections(addr).await? > 0 {
            tokio::task::yield_now().await;
        }
        Outcome::<()>::Ok(())
    };
    timeout(HANGS, settled).await?
}

/// Bytes of this process in memory: the server's and the clients'.
fn resident() -> Outcome<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let figure = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(figure.trim().trim_end_matches(" kB").parse::<usize>()? * KIB)
}

struct Running {
    addr: SocketAddr,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<Result<(), everstep_server::Error>>,
}

async fn start() -> Outcome<Running> {
    start_with(|_| {}).await
}

async fn start_with(change: impl FnOnce(&mut ServerOptions)) -> Outcome<Running> {
    let clock = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or_default())
    };
    let node_id = NodeId::from_uuid(Uuid::new_v4());
    let store = Arc::new(MemoryStore::new(clock));
    let engine = Engine::start(EngineConfig::new(node_id), store, Arc::new(InProcess::new())).await?;
    let mut options = ServerOptions::new(node_id);
    change(&mut options);
    let server = Server::bind("127.0.0.1:0".parse()?, options).await?;
    let (addr, shutdown) = (server.local_addr(), CancellationToken::new());
    let serving = tokio::spawn(server.serve(engine, shutdown.clone().cancelled_owned()));
    Ok(Running { addr, shutdown, serving })
}

impl Running {
    async fn stop(self) -> Outcome<()> {
        self.shutdown.cancel();
        Ok(timeout(HANGS, self.serving).await???)
    }
}

/// One test, because its parts share the process's memory and limits.
#[tokio::test]
async fn connections_come_and_go_and_leave_nothing_behind() -> Outcome<()> {
    raise_open_files();
    let files = getrlimit(Resource::Nofile);
    let enough = files.current.is_none_or(|n| n >= 2 * IDLE as u64 + 200);
    assert!(enough, "this test needs more open files than {files:?} allows");
    idle_ones_are_cheap().await?;
    reconnecting_ones_leave_nothing().await?;
    half_sent_requests_take_their_share_and_no_more().await?;
    a_process_without_files_left_recovers(files).await
}

async fn idle_ones_are_cheap() -> Outcome<()> {
    let server = start().await?;
    drop(connect_many(server.addr, 100).await?);
    settles_at_none(server.addr).await?;
    let before = resident()?;
    let held = connect_many(server.addr, IDLE).await?;
    assert_eq!(connections(server.addr).await?, IDLE);
    let full = resident()?;
    drop(connect(server.addr).await?);
    drop(held);
    settles_at_none(server.addr).await?;
    let each = full.saturating_sub(before) / IDLE;
    assert!(each <= 64 * KIB, "{each} bytes for each idle connection");
    // What was freed stays with the allocator, in pieces at first, and serves the next ones.
    let mut after = Vec::new();
    for _ in 0..5 {
        drop(connect_many(server.addr, IDLE).await?);
        settles_at_none(server.addr).await?;
        after.push(resident()?);
    }
    assert!(after[4] <= after[2] + 4 * MIB, "resident after each {IDLE} connections: {after:?}");
    server.stop().await
}

async fn reconnecting_ones_leave_nothing() -> Outcome<()> {
    let server = start().await?;
    let mut after = Vec::new();
    for _ in 0..8 {
        drop(connect_many(server.addr, WAVE).await?);
        settles_at_none(server.addr).await?;
        after.push(resident()?);
    }
    assert!(after[7] <= after[1] + 4 * MIB, "resident after each wave of {WAVE}: {after:?}");
    server.stop().await
}

/// Begins a request of 4 MiB, sends what the first window allows, and waits for an answer all the same.
async fn half_sent(addr: SocketAddr) -> Outcome<TcpStream> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(&opening(b"/everstep.api.v1.RunService/StartRun")).await?;
    // The window of the connection is opened first.
    frame_of(&mut stream, 8).await?;
    stream.write_all(b"\x00\x00\x05\x00\x00\x00\x00\x00\x01\x00\x00\x40\x00\x00").await?;
    let piece = [&b"\x00\x40\x00\x00\x00\x00\x00\x00\x01"[..], &[0; 16 * KIB]].concat();
    for _ in 0..HALF / (16 * KIB) {
        stream.write_all(&piece).await?;
    }
    frame_of(&mut stream, 1).await?;
    Ok(stream)
}

/// Reads until a frame of one kind comes; gives its flags.
async fn frame_of(stream: &mut TcpStream, kind: u8) -> std::io::Result<u8> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).await?;
        if head[3] == kind {
            return Ok(head[4]);
        }
    }
}

async fn half_sent_requests_take_their_share_and_no_more() -> Outcome<()> {
    let server = start_with(|options| options.request_bytes = BUDGET).await?;
    drop(connect_many(server.addr, WAVE).await?);
    settles_at_none(server.addr).await?;
    let before = resident()?;
    let mut senders: FuturesUnordered<_> = (0..WAVE).map(|_| half_sent(server.addr)).collect();
    let fit = BUDGET / (HALF - 16 * KIB);
    let mut refused = Vec::new();
    while refused.len() < WAVE - fit {
        refused.push(timeout(HANGS, senders.next()).await?.ok_or("nobody was refused")??);
    }
    let more = resident()?.saturating_sub(before);
    assert!(more <= 2 * BUDGET + WAVE * 64 * KIB, "{more} bytes for requests that may have {BUDGET}");
    drop(connect(server.addr).await?);
    drop((senders, refused));
    settles_at_none(server.addr).await?;
    server.stop().await
}

/// The clients take what files there are; the server cannot accept, and can again once they are gone.
async fn a_process_without_files_left_recovers(files: Rlimit) -> Outcome<()> {
    let server = start().await?;
    drop(connect(server.addr).await?);
    settles_at_none(server.addr).await?;
    let open = std::fs::read_dir("/proc/self/fd")?.count() as u64;
    setrlimit(Resource::Nofile, Rlimit { current: Some(open + 21), maximum: files.maximum })?;
    let mut clients = Vec::new();
    let full = loop {
        match TcpStream::connect(server.addr).await {
            Ok(stream) => clients.push(stream),
            Err(error) => break error,
        }
    };
    let refused = full.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error());
    assert!(refused || full.kind() == ErrorKind::ConnectionRefused, "{full}");
    // The server has met the limit too: what waits in its queue is not accepted.
    drop(clients);
    drop(connect(server.addr).await?);
    settles_at_none(server.addr).await?;
    setrlimit(Resource::Nofile, files)?;
    server.stop().await
}
