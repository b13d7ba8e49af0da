//! A proxy: its listener, its connections, and the handle to its rules.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::table::{Plan, Table, Way};
use crate::unit::Unit;
use crate::{Count, Mode, Rule, connection, control};

/// What the tasks of a proxy share.
#[derive(Debug)]
pub(crate) struct Core {
    mode: Mode,
    seed: u64,
    upstream: Mutex<String>,
    state: Mutex<State>,
    /// Counts changes of the rules.
    rules: watch::Sender<u64>,
    /// Counts units that were judged.
    judged: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    table: Table,
    links: BTreeMap<u64, Link>,
    /// Connections that there ever were.
    made: u64,
}

#[derive(Debug)]
struct Link {
    reset: Arc<Notify>,
    hole: bool,
}

/// A proxy in front of one server. Dropped, it resets its connections and takes no more.
#[derive(Debug)]
pub struct Proxy {
    handle: Handle,
    address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
}

/// The rules of a running proxy. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    core: Arc<Core>,
}

impl Proxy {
    /// Starts a proxy on a port of its own of 127.0.0.1, in front of `upstream` (host and port).
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(upstream: impl Into<String>, mode: Mode, seed: u64) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen on 127.0.0.1")?;
        let address = listener.local_addr()?;
        let core = Arc::new(Core {
            mode,
            seed,
            upstream: Mutex::new(upstream.into()),
            state: Mutex::default(),
            rules: watch::Sender::default(),
            judged: watch::Sender::default(),
        });
        let tasks = vec![tokio::spawn(accept(Arc::clone(&core), listener))];
        Ok(Self { handle: Handle { core }, address, tasks })
    }

    /// Starts a proxy in front of the server of `url`, and gives the same URL through the proxy. The scheme
    /// decides the mode: `postgres`, `nats`, `http` (gRPC), all others plain.
    ///
    /// # Errors
    /// When `url` names no host and port, or no port can be had.
    pub async fn before(url: &str, seed: u64) -> anyhow::Result<(Self, String)> {
        let (scheme, rest) = url.split_once("://").context("a URL begins with a scheme")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (login, server) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        anyhow::ensure!(server.contains(':'), "the URL names no port");
        let mode = match scheme {
            "postgres" | "postgresql" => Mode::Postgres,
            "nats" => Mode::Nats,
            "http" => Mode::Grpc,
            _ => Mode::Plain,
        };
        let proxy = Self::start(server, mode, seed).await?;
        let through = format!("{scheme}://{login}{}{path}", proxy.address);
        Ok((proxy, through))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its rules.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Takes commands on a unix socket at `path`, one JSON value a line; see [`Command`](crate::Command).
    ///
    /// # Errors
    /// When there can be no socket.
    pub fn listen(&mut self, path: &Path) -> anyhow::Result<()> {
        self.tasks.push(control::listen(self.handle(), path)?);
        Ok(())
    }
}

impl std::ops::Deref for Proxy {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.handle.reset();
    }
}

async fn accept(core: Arc<Core>, listener: TcpListener) {
    while let Ok((client, _)) = listener.accept().await {
        match core.admit() {
            Some((number, reset)) => {
                tokio::spawn(connection::serve(Arc::clone(&core), client, number, reset));
            }
            None => refuse(client),
        }
    }
}

fn refuse(client: TcpStream) {
    let _ = client.set_zero_linger();
}

impl Handle {
    /// Puts a rule in force, behind those that are, and gives its id.
    ///
    /// # Errors
    /// When it could never strike on this link.
    pub fn add(&self, rule: impl Into<Rule>) -> anyhow::Result<u64> {
        let mut state = self.core.lock();
        let newest = state.made;
        let id = state.table.add(rule.into(), self.core.mode, newest)?;
        drop(state);
        self.core.rules_changed();
        Ok(id)
    }

    /// Takes a rule out of force. What it held back goes on; connections that lost bytes are reset.
    ///
    /// # Errors
    /// When it is not in force.
    pub fn remove(&self, id: u64) -> anyhow::Result<()> {
        let mut state = self.core.lock();
        state.table.remove(id)?;
        state.reset(|link| link.hole);
        drop(state);
        self.core.rules_changed();
        Ok(())
    }

    /// Takes all rules out of force, as [`Handle::remove`] does.
    pub fn heal(&self) {
        let mut state = self.core.lock();
        state.table.clear();
        state.reset(|link| link.hole);
        drop(state);
        self.core.rules_changed();
    }

    /// Resets all connections that are open now.
    pub fn reset(&self) {
        self.core.lock().reset(|_| true);
    }

    /// New connections go to `upstream` (host and port) from now on; open ones stay where they are.
    pub fn point_at(&self, upstream: impl Into<String>) {
        *self.core.upstream.lock().unwrap_or_else(PoisonError::into_inner) = upstream.into();
    }

    /// How often each rule has struck, those out of force included.
    pub fn counts(&self) -> Vec<Count> {
        self.core.lock().table.counts()
    }

    /// How often one rule has struck.
    pub fn fired(&self, id: u64) -> u64 {
        self.core.lock().table.fired(id)
    }

    /// Waits until a rule has struck `times` times. The caller sets the limit.
    pub async fn wait_fired(&self, id: u64, times: u64) {
        let mut judged = self.core.judged.subscribe();
        loop {
            judged.borrow_and_update();
            // The sender lives in the core, which this handle holds.
            if self.fired(id) >= times || judged.changed().await.is_err() {
                return;
            }
        }
    }

    /// Connections that are open.
    pub fn open_connections(&self) -> usize {
        self.core.lock().links.len()
    }
}

impl State {
    fn reset(&self, which: impl Fn(&Link) -> bool) {
        self.links.values().filter(|link| which(link)).for_each(|link| link.reset.notify_one());
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rules_changed(&self) {
        self.rules.send_modify(|n| *n += 1);
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    pub(crate) fn upstream(&self) -> String {
        self.upstream.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn rules(&self) -> watch::Receiver<u64> {
        self.rules.subscribe()
    }

    /// Each way of each connection draws from a sequence of its own, so that they do not disturb each other.
    pub(crate) fn random(&self, way: Way) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(way.connection * 2 + u64::from(way.up));
        random
    }

    /// A connection and what resets it, unless it is refused.
    fn admit(&self) -> Option<(u64, Arc<Notify>)> {
        let mut state = self.lock();
        state.made += 1;
        let number = state.made;
        // Apart from the sequences of its ways.
        let mut random = ChaCha8Rng::seed_from_u64(self.seed ^ u64::MAX);
        random.set_stream(number);
        let refused = state.table.refuses(number, &mut random);
        let reset = Arc::new(Notify::new());
        if !refused {
            state.links.insert(number, Link { reset: Arc::clone(&reset), hole: false });
        }
        drop(state);
        self.judged.send_modify(|n| *n += 1);
        (!refused).then_some((number, reset))
    }

    pub(crate) fn forget(&self, connection: u64) {
        self.lock().links.remove(&connection);
    }

    pub(crate) fn has_hole(&self, connection: u64) {
        if let Some(link) = self.lock().links.get_mut(&connection) {
            link.hole = true;
        }
    }

    pub(crate) fn held(&self, way: Way) -> Option<u64> {
        self.lock().table.held(way)
    }

    /// A rule that holds has something to hold.
    pub(crate) fn held_back(&self, rule: u64) {
        self.lock().table.held_back(rule);
        self.judged.send_modify(|n| *n += 1);
    }

    pub(crate) fn note(&self, rule: u64) {
        self.lock().table.note(rule);
        self.judged.send_modify(|n| *n += 1);
    }

    pub(crate) fn judge(&self, way: Way, unit: &Unit, random: &mut ChaCha8Rng) -> Plan {
        let plan = self.lock().table.judge(way, unit, random);
        self.judged.send_modify(|n| *n += 1);
        plan
    }
}
