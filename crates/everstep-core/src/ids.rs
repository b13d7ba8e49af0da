//! Typed ids. Ids of runs, sessions and commands are UUIDs made at the edge; ids inside a run are numbers
//! that follow from the order of the workflow's own calls.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::{Builder, Uuid};

use crate::{Rejection, Timestamp};

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

/// The SHA-256 of parts with their lengths.
fn hash_of(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

impl RunId {
    /// The id of a run that follows from something recorded: the same `now` and parts give the same id, so a start
    /// that is repeated is the same start. A UUIDv7 of `now`, as the log's partitions want it.
    pub fn derived(now: Timestamp, parts: &[&[u8]]) -> Self {
        let millis = u64::try_from(now.as_micros() / 1_000).unwrap_or(0);
        let mut random = [0; 10];
        random.copy_from_slice(&hash_of(parts)[..10]);
        Self(Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }
}

impl CommandId {
    /// The id of a request that follows from something recorded: the same parts give the same id. Never taken for a
    /// worker's commit.
    pub fn derived(parts: &[&[u8]]) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash_of(parts)[..16]);
        Self(Builder::from_random_bytes(bytes).into_uuid())
    }

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn derived_ids_are_of_their_instant_and_differ_with_their_parts() {
        let now = Timestamp::from_micros(1_763_740_800_123_456);
        let id = |n: u64| RunId::derived(now, &[b"child", &n.to_be_bytes()]);
        let all: BTreeSet<RunId> = (0..100_000).map(id).collect();
        assert_eq!(all.len(), 100_000);
        for run in all.iter().take(100) {
            assert_eq!(run.uuid().get_version_num(), 7);
            assert_eq!(run.as_bytes()[..6], 1_763_740_800_123_u64.to_be_bytes()[2..]);
        }
        assert_eq!(id(7), id(7));
        assert_ne!(RunId::derived(now, &[b"ab", b"c"]), RunId::derived(now, &[b"a", b"bc"]));
    }

    #[test]
    fn a_derived_command_is_no_worker_commit() {
        let run = RunId::derived(Timestamp::default(), &[b"run"]);
        for n in 0..1_000_u32 {
            let id = CommandId::derived(&[b"close", &n.to_be_bytes()]);
            assert_eq!(id, CommandId::derived(&[b"close", &n.to_be_bytes()]));
            assert_eq!(id.worker_commit(run), None);
        }
    }
}
