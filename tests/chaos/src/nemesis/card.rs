//! The faults that there are: whom each can strike, and for how long.

use serde::Serialize;

use super::Field;
use crate::topology::StoreKind;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Card {
    /// SIGKILL to a server.
    KillServer,
    /// SIGSTOP to a server, past the leases of its workers, then SIGCONT.
    StopServer,
    /// SIGSTOP to a worker's server, and a moment later to the worker, past its lease; then SIGCONT to the server and
    /// a moment later to the worker. What the worker had said by then is a stale owner's.
    StopOwner,
    /// SIGTERM to a server, which has to end in order.
    TermServer,
    /// SIGKILL to a worker.
    KillWorker,
    /// SIGSTOP to a worker, past its lease, then SIGCONT.
    StopWorker,
    /// SIGTERM to a worker.
    TermWorker,
    /// SIGKILL to the postmaster and all its processes.
    KillPostgres,
    /// SIGKILL to one connection's process, which makes Postgres recover.
    KillBackend,
    /// SIGSTOP to one connection's process.
    StopBackend,
    /// SIGKILL to NATS.
    KillNats,
    /// SIGKILL to NATS, and its data are lost.
    WipeNats,
    /// SIGKILL to NATS and to a worker, past the lease: what becomes of its runs, only the sweep can find out.
    Deafen,
    /// Nothing passes between a server and Postgres.
    PartPostgres,
    /// All connections of a server to Postgres are reset.
    CutPostgres,
    /// Postgres is far away.
    DelayPostgres,
    /// Commits whose answers are lost.
    LoseAnswer,
    /// Commits that arrive after the client has given up on them.
    LateCommit,
    /// Nothing passes between a server and NATS.
    PartNats,
    /// Messages of NATS are lost.
    DropNats,
    /// Messages of NATS come several times.
    DoubleNats,
    /// Messages of NATS come in another order, and again later.
    MixNats,
    /// Nothing passes between a worker and its server.
    PartWorker,
    /// What a worker says is held back, and what the server says is not.
    MuteWorker,
    /// A worker's connection is reset.
    CutWorker,
    /// A worker is far away.
    DelayWorker,
    /// Clients lose answers to calls that were carried out.
    LoseReply,
    /// Connections of clients are reset.
    CutClients,
    /// A server's wall clock is an hour off.
    SetClock,
}

/// What a fault has to itself while it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Postgres, and all links to it.
    Postgres,
    /// NATS, and all links to it.
    Nats,
    /// A server.
    Server(usize),
    /// What clients have to do with a server.
    Clients(usize),
    /// A worker.
    Worker(usize),
}

impl Card {
    const OF_ALL: [Self; 10] = [
        Self::KillServer,
        Self::StopServer,
        Self::TermServer,
        Self::KillWorker,
        Self::StopWorker,
        Self::TermWorker,
        Self::PartWorker,
        Self::MuteWorker,
        Self::CutWorker,
        Self::DelayWorker,
    ];
    const OF_CLIENTS: [Self; 2] = [Self::LoseReply, Self::CutClients];
    const OF_POSTGRES: [Self; 16] = [
        Self::StopOwner,
        Self::KillPostgres,
        Self::KillBackend,
        Self::StopBackend,
        Self::KillNats,
        Self::WipeNats,
        Self::Deafen,
        Self::PartPostgres,
        Self::CutPostgres,
        Self::DelayPostgres,
        Self::LoseAnswer,
        Self::LateCommit,
        Self::PartNats,
        Self::DropNats,
        Self::DoubleNats,
        Self::MixNats,
    ];

    /// All that can happen there.
    #[must_use]
    pub fn all(field: &Field) -> Vec<Self> {
        let mut all = [Self::OF_ALL.as_slice(), Self::OF_CLIENTS.as_slice()].concat();
        if field.store == StoreKind::Postgres {
            all.extend(Self::OF_POSTGRES);
            if field.clocks {
                all.push(Self::SetClock);
            }
        }
        all
    }

    /// What makes a case worth judging: a refused owner, an unknown outcome, a lost worker, hints that are lost.
    #[must_use]
    pub fn musts(field: &Field) -> Vec<Self> {
        match field.store {
            StoreKind::Postgres => {
                vec![Self::StopOwner, Self::LoseAnswer, Self::Deafen, Self::KillServer]
            }
            StoreKind::Sqlite => vec![Self::KillServer, Self::KillWorker, Self::StopWorker],
        }
    }

    /// Its name in `meta.json`.
    #[must_use]
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|v| v.as_str().map(ToOwned::to_owned)).unwrap_or_default()
    }

    /// How many victims there are to choose from.
    #[must_use]
    pub const fn victims(self, field: &Field) -> usize {
        match self {
            Self::KillWorker
            | Self::StopWorker
            | Self::StopOwner
            | Self::Deafen
            | Self::TermWorker
            | Self::PartWorker
            | Self::MuteWorker
            | Self::CutWorker
            | Self::DelayWorker => field.workers,
            Self::KillPostgres | Self::KillBackend | Self::StopBackend | Self::KillNats | Self::WipeNats => 1,
            _ => field.nodes,
        }
    }

    /// What it needs for itself.
    #[must_use]
    pub fn keys(self, victim: usize, field: &Field) -> Vec<Key> {
        match self {
            // Workers and clients of a server that is down meet no further fault of their own links.
            Self::KillServer | Self::StopServer | Self::TermServer | Self::SetClock => {
                let mut keys = vec![Key::Server(victim), Key::Clients(victim)];
                if field.nodes == 1 {
                    keys.extend((0..field.workers).map(Key::Worker));
                }
                keys
            }
            Self::KillWorker
            | Self::StopWorker
            | Self::TermWorker
            | Self::PartWorker
            | Self::MuteWorker
            | Self::CutWorker
            | Self::DelayWorker => vec![Key::Worker(victim)],
            Self::StopOwner => {
                let servers = (0..field.nodes).map(Key::Server);
                // Another owner takes over, so the database has to be there.
                servers.chain([Key::Worker(victim), Key::Postgres]).collect()
            }
            Self::KillPostgres | Self::KillBackend | Self::StopBackend => vec![Key::Postgres],
            Self::KillNats | Self::WipeNats => vec![Key::Nats],
            Self::Deafen => vec![Key::Nats, Key::Worker(victim)],
            Self::PartPostgres
            | Self::CutPostgres
            | Self::DelayPostgres
            | Self::LoseAnswer
            | Self::LateCommit => vec![Key::Postgres, Key::Server(victim)],
            Self::PartNats | Self::DropNats | Self::DoubleNats | Self::MixNats => {
                vec![Key::Nats, Key::Server(victim)]
            }
            Self::LoseReply | Self::CutClients => vec![Key::Clients(victim)],
        }
    }

    /// How long it lasts, at least and at most, in milliseconds.
    #[must_use]
    pub const fn hold(self, lease_ms: u64) -> (u64, u64) {
        match self {
            Self::StopServer | Self::StopWorker | Self::StopOwner => (lease_ms + 1_000, lease_ms + 2_500),
            Self::Deafen => (lease_ms + 2_500, lease_ms + 4_500),
            Self::MuteWorker => (lease_ms / 2, lease_ms * 2),
            Self::KillServer | Self::KillWorker | Self::TermServer | Self::TermWorker => (0, 2_000),
            Self::KillPostgres => (0, 3_000),
            // Longer than the leases of its workers: what it holds back is a stale owner's when it goes on.
            Self::PartPostgres => (lease_ms + 500, lease_ms + 3_000),
            Self::StopBackend => (500, 4_000),
            Self::KillBackend => (0, 0),
            Self::KillNats | Self::WipeNats => (0, 2_000),
            Self::PartNats | Self::PartWorker => (500, 4_000),
            Self::CutPostgres | Self::CutWorker | Self::CutClients => (200, 2_000),
            Self::DelayPostgres | Self::DelayWorker => (1_000, 4_000),
            Self::LoseAnswer | Self::LateCommit | Self::LoseReply => (1_500, 4_000),
            Self::DropNats | Self::DoubleNats | Self::MixNats => (1_500, 5_000),
            Self::SetClock => (1_000, 4_000),
        }
    }
}
