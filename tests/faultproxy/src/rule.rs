//! What a rule says: which fault, on which traffic, when.

use anyhow::ensure;
use serde::{Deserialize, Serialize};

/// The protocol of a link. Decides what a unit of traffic is, and which faults there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Bytes; a unit is what one read brought.
    Plain,
    /// Postgres frames, without TLS.
    Postgres,
    /// NATS protocol lines with their payloads.
    Nats,
    /// HTTP/2 frames, without TLS. A client that speaks HTTP/1 is relayed as bytes.
    Grpc,
}

/// Which way traffic goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
    /// Each of the two.
    #[default]
    Both,
}

/// At which of the units that fit does a rule strike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// At each.
    #[default]
    Always,
    /// At each with this probability.
    Chance(f64),
    /// At the n-th since the rule was added, counted from 1; never again.
    Nth(u64),
    /// At the n-th of each connection since the rule was added.
    NthOfConnection(u64),
    /// At the first n.
    First(u64),
}

/// Which connections a rule concerns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All.
    #[default]
    All,
    /// Those that were open when the rule was added: a peer that is gone, and has a successor.
    Open,
    /// Those that are made later.
    Later,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Each unit comes later by this, and by up to `jitter_ms` more. Order is kept.
    Delay {
        /// Milliseconds.
        ms: u64,
        /// Milliseconds at most on top of it.
        #[serde(default)]
        jitter_ms: u64,
    },
    /// So many bytes a second per connection and direction.
    Throttle {
        /// Bytes.
        bytes_per_s: u64,
    },
    /// The connection is reset instead of passing a unit on.
    Reset,
    /// Nothing is read any more; the connection stays open, and goes on when the rule is removed.
    HalfOpen,
    /// Units vanish. A byte stream with a hole is nothing that TCP delivers, so that a connection that lost
    /// something is reset when the rule is removed.
    Drop,
    /// New connections are reset.
    Refuse,
    /// So many bytes of each connection and direction are passed on, then it is reset.
    CutAfter {
        /// Bytes.
        bytes: u64,
    },
    /// Postgres: a statement whose text contains `sql` is executed, its answer swallowed, and the connection
    /// reset. A statement that fails is answered: its outcome would not be unknown.
    LoseAnswer {
        /// A part of the text; empty for any statement.
        sql: String,
    },
    /// Postgres: the connection is reset instead of executing the statement.
    LoseRequest {
        /// As in [`Fault::LoseAnswer`].
        sql: String,
    },
    /// Postgres: the client is reset at once, and the statement executed later: a commit that overtakes the
    /// look whether it happened.
    LateRequest {
        /// As in [`Fault::LoseAnswer`].
        sql: String,
        /// How much later, in milliseconds.
        ms: u64,
    },
    /// Postgres: the statement is executed, and from then on nothing of its connection reaches the client any
    /// more, which stays open: a server that is silently gone. Goes on when the rule is removed.
    Silence {
        /// As in [`Fault::LoseAnswer`].
        sql: String,
    },
    /// NATS: something happens to a message.
    Nats {
        /// How its subject begins; empty for any.
        #[serde(default)]
        subject: String,
        /// What.
        fault: NatsFault,
    },
    /// gRPC: the connection is reset at this point of a response.
    Grpc {
        /// Where.
        at: GrpcPoint,
    },
}

/// What can happen to a NATS message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NatsFault {
    /// It is lost.
    Drop,
    /// It comes so many times more.
    Duplicate {
        /// How many.
        more: u32,
    },
    /// It comes behind the next one that fits.
    Swap,
    /// It comes late.
    Delay {
        /// Milliseconds.
        ms: u64,
    },
    /// It comes, and again later.
    Replay {
        /// Milliseconds.
        ms: u64,
    },
}

/// A point of a gRPC response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrpcPoint {
    /// Before its headers.
    Headers,
    /// Before one of its messages: a DATA frame that is not empty.
    Data,
    /// Before its trailers, if it has any that are apart from its headers.
    Trailers,
    /// Behind its end.
    End,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// For counts and messages.
    #[serde(default)]
    pub name: String,
    /// What goes wrong.
    pub fault: Fault,
    /// Which way. The faults of Postgres statements and gRPC responses have one by nature.
    #[serde(default)]
    pub direction: Direction,
    /// When.
    #[serde(default)]
    pub when: When,
    /// On which connections.
    #[serde(default)]
    pub scope: Scope,
}

impl From<Fault> for Rule {
    fn from(fault: Fault) -> Self {
        let (direction, when, scope) = (Direction::Both, When::Always, Scope::All);
        Self { name: String::new(), fault, direction, when, scope }
    }
}

impl Rule {
    /// The same, under a name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The same, one way.
    #[must_use]
    pub fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    /// The same, at other times.
    #[must_use]
    pub fn when(mut self, when: When) -> Self {
        self.when = when;
        self
    }

    /// The same, for other connections.
    #[must_use]
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Whether the rule can ever strike on such a link.
    pub(crate) fn check(&self, mode: Mode) -> anyhow::Result<()> {
        let (needs, by_nature) = match &self.fault {
            Fault::LoseAnswer { .. }
            | Fault::LoseRequest { .. }
            | Fault::LateRequest { .. }
            | Fault::Silence { .. } => (Some(Mode::Postgres), Some(Direction::Up)),
            Fault::Nats { .. } => (Some(Mode::Nats), None),
            Fault::Grpc { .. } => (Some(Mode::Grpc), Some(Direction::Down)),
            _ => (None, None),
        };
        ensure!(needs.is_none_or(|needs| needs == mode), "a link of mode {mode:?} knows no {:?}", self.fault);
        let fits =
            self.direction == Direction::Both || by_nature.is_none_or(|nature| nature == self.direction);
        ensure!(fits, "{:?} never happens on the way {:?}", self.fault, self.direction);
        let each = !matches!(self.fault, Fault::HalfOpen | Fault::CutAfter { .. } | Fault::Throttle { .. });
        ensure!(each || self.when == When::Always, "{:?} is no matter of single units", self.fault);
        match self.when {
            When::Chance(p) => ensure!((0.0..=1.0).contains(&p), "{p} is no probability"),
            When::Nth(n) | When::NthOfConnection(n) | When::First(n) => ensure!(n > 0, "units count from 1"),
            When::Always => {}
        }
        if let Fault::Throttle { bytes_per_s } = self.fault {
            ensure!(bytes_per_s > 0, "no bytes at all are a half-open connection");
        }
        Ok(())
    }
}
