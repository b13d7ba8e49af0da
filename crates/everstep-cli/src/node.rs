//! A server node of this process, and stores by their URL.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use everstep_core::NodeId;
use everstep_dispatch::{Dispatch, InProcess};
use everstep_dispatch_nats::{NatsDispatch, NatsOptions};
use everstep_engine::{Engine, EngineConfig};
use everstep_server::{RunSpans, Server, ServerOptions};
use everstep_store::Store;
use everstep_store_postgres::{PostgresOptions, PostgresStore};
use everstep_store_sqlite::SqliteStore;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use crate::fail::Fail;

/// Where a database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Database {
    /// A file.
    Sqlite(PathBuf),
    /// A server.
    Postgres(String),
}

impl std::str::FromStr for Database {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(Self::Postgres(text.to_owned()));
        }
        match text.strip_prefix("sqlite:") {
            Some(path) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            _ => Err("must be postgres://USER@HOST/NAME or sqlite:FILE".to_owned()),
        }
    }
}

impl Database {
    /// Opens it to write.
    pub(crate) async fn open(&self, allow_fsync_off: bool) -> Result<Arc<dyn Store>, Fail> {
        Ok(match self {
            Self::Sqlite(path) => Arc::new(SqliteStore::open(path).await?),
            Self::Postgres(url) => {
                let options = PostgresOptions { allow_fsync_off, ..PostgresOptions::default() };
                Arc::new(PostgresStore::connect(url, options).await?)
            }
        })
    }

    /// Looks whether a node would start on it.
    pub(crate) async fn check(&self) -> Result<(), Fail> {
        if let Self::Postgres(url) = self {
            everstep_store_postgres::check(url, &PostgresOptions::default()).await?;
        }
        Ok(())
    }

    /// Opens it to read, without a server.
    pub(crate) async fn open_read_only(&self) -> Result<Arc<dyn Store>, Fail> {
        Ok(match self {
            Self::Sqlite(path) => Arc::new(SqliteStore::open_existing_read_only(path).await?),
            Self::Postgres(url) => Arc::new(PostgresStore::connect_read_only(url).await?),
        })
    }
}

/// The folder of a database file, made if it is not there.
pub(crate) fn make_folder(file: &Path) -> Result<(), Fail> {
    match file.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(folder) => {
            std::fs::create_dir_all(folder).map_err(|e| Fail::refused(format!("{}: {e}", folder.display())))
        }
        None => Ok(()),
    }
}

/// What requests under way may take in memory, in MiB.
pub(crate) const REQUEST_MIB: u32 = 256;

/// How a node is started.
#[derive(Clone, Debug)]
pub(crate) struct NodeOptions {
    pub(crate) listen: SocketAddr,
    pub(crate) lease: Duration,
    pub(crate) allow_remote: bool,
    pub(crate) nats_url: Option<String>,
    pub(crate) request_mib: u32,
}

/// A node that listens, not serving yet.
pub(crate) struct Listening {
    store: Arc<dyn Store>,
    server: Server,
    engine: Engine,
    pub(crate) address: SocketAddr,
}

/// Opens everything a node needs and listens.
pub(crate) async fn listen(store: Arc<dyn Store>, options: &NodeOptions) -> Result<Listening, Fail> {
    everstep_server::raise_open_files();
    let node_id = NodeId::from_uuid(Uuid::new_v4());
    let mut server_options = ServerOptions::new(node_id);
    server_options.allow_remote = options.allow_remote;
    server_options.request_bytes = options.request_mib as usize * (1 << 20);
    let server = Server::bind(options.listen, server_options).await?;
    let dispatch: Arc<dyn Dispatch> = match &options.nats_url {
        Some(url) => Arc::new(
            NatsDispatch::connect(url, NatsOptions::default())
                .await
                .map_err(|e| Fail::unreachable(e.to_string()))?,
        ),
        None => Arc::new(InProcess::new()),
    };
    let mut config = EngineConfig::new(node_id);
    config.lease = options.lease.into();
    config.observer = Some(Arc::new(RunSpans));
    let engine = Engine::start(config, Arc::clone(&store), dispatch).await?;
    Ok(Listening { store, address: server.local_addr(), server, engine })
}

impl Listening {
    /// Serves until the first SIGTERM or Ctrl-C, then drains; a second one ends the process at once.
    pub(crate) async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), Fail> {
        let served = self.server.serve(self.engine, stop).await;
        self.store.close().await;
        Ok(served?)
    }
}

/// Ready at SIGTERM or Ctrl-C; a second one ends the process at once. Both are heard from this call on, not
/// from the first poll: who reads where the server listens may stop it right then.
pub(crate) fn stop_signal() -> Result<impl Future<Output = ()>, Fail> {
    let hear = |kind| signal(kind).map_err(|e| Fail::refused(format!("cannot hear signals: {e}")));
    let (mut terminate, mut interrupt) = (hear(SignalKind::terminate())?, hear(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(130);
        });
    })
}

/// A duration on the command line: `500ms`, `10s`, `5m`, `2h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| "must be like 500ms, 10s, 5m or 2h".to_owned())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3_600))),
        _ => Err("must be like 500ms, 10s, 5m or 2h".to_owned()),
    }
}

/// Shorter ones are lost by a worker that is only busy; while a longer one lasts, the runs of a dead worker wait.
const LEASES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3_600);

/// A lease: from a second to an hour.
pub(crate) fn parse_lease(text: &str) -> Result<Duration, String> {
    let lease = parse_duration(text)?;
    if LEASES.contains(&lease) { Ok(lease) } else { Err("must be 1s to 1h".to_owned()) }
}

/// How long a call may wait for a worker: at most as long as a server lets it.
pub(crate) fn parse_patience(text: &str) -> Result<Duration, String> {
    let wait = parse_duration(text)?;
    let most = Duration::from_secs(60);
    if wait.is_zero() || wait > most { Err("must be 1ms to 60s".to_owned()) } else { Ok(wait) }
}
