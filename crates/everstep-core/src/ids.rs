//! Typed ids. Ids of runs, sessions and commands are UUIDs made at the edge; ids inside a run are numbers
//! that follow from the order of the workflow's own calls.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Rejection;

/// Position of an event in its run's history: 1, 2, 3 … without a gap.
pub type Seq = u64;

/// Number of a claim: each worker that attaches to a run gets the next one. 0 before the first.
pub type Epoch = u32;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that was made or parsed elsewhere.
            pub const fn from_uuid(id: Uuid) -> Self {
                Self(id)
            }

            /// The UUID inside.
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// The id's 16 bytes, in network order.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(text).map(Self)
            }
        }
    };
}

uuid_id!(
    /// One execution of a workflow. A UUIDv7: its first 48 bits are the start time in milliseconds, which
    /// is what the log is partitioned by.
    RunId
);
uuid_id!(
    /// A worker's connection as the lease sees it; it outlives the stream.
    SessionId
);
uuid_id!(
    /// The request that caused an event. A resent request carries the same id and is recognised by it.
    CommandId
);
uuid_id!(
    /// A server process.
    NodeId
);
uuid_id!(
    /// A question to the code of a run, while it waits for its answer.
    AskId
);

impl CommandId {
    /// The id of a worker's commit number `number` (1, 2, …) under `epoch` on `run`.
    ///
    /// It is a UUIDv8 that can be read back with [`CommandId::worker_commit`], so that an owner's resent
    /// commit is recognised from the history alone.
    pub fn of_worker(run: RunId, epoch: Epoch, number: u32) -> Self {
        let mut bytes = [0u8; 16];
        bytes[0..4].copy_from_slice(&epoch.to_be_bytes());
        bytes[4..6].copy_from_slice(&run.as_bytes()[14..16]);
        bytes[6] = 0x80;
        bytes[8] = 0x80;
        bytes[9..12].copy_from_slice(&run.as_bytes()[11..14]);
        bytes[12..16].copy_from_slice(&number.to_be_bytes());
        Self(Uuid::from_bytes(bytes))
    }

    /// The epoch and number inside an id made by [`CommandId::of_worker`] for the same run, else `None`.
    pub fn worker_commit(self, run: RunId) -> Option<(Epoch, u32)> {
        let b = self.as_bytes();
        let epoch = u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
        let number = u32::from_be_bytes([b[12], b[13], b[14], b[15]]);
        (Self::of_worker(run, epoch, number) == self).then_some((epoch, number))
    }
}

/// Number of a step, timer or wait within its run, in the order in which the workflow's code built them:
/// 1, 2, 3 …
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OpId(pub u32);

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Checks a caller-given name or id: `field` is named in the refusal.
///
/// Allowed are 1 to 255 ASCII letters, digits, spaces inside, and `. _ : @ / + = ~ # , $ ( ) -`, without
/// `..`. Names are compared byte by byte.
///
/// # Errors
/// [`Rejection::InvalidId`] with the rule that was broken.
pub fn validate_name(field: &'static str, text: &str) -> Result<(), Rejection> {
    let problem = if text.is_empty() {
        "must not be empty"
    } else if text.len() > crate::limits::NAME_BYTES_MAX {
        "must not be longer than 255 bytes"
    } else if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b" ._:@/+=~#,$()-".contains(&b)) {
        "may hold only ASCII letters, digits, spaces and . _ : @ / + = ~ # , $ ( ) -"
    } else if text.starts_with(' ') || text.ends_with(' ') {
        "must not begin or end with a space"
    } else if text.contains("..") {
        "must not contain '..'"
    } else {
        return Ok(());
    };
    Err(Rejection::InvalidId { field, problem })
}
