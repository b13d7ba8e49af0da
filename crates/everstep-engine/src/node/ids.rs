//! Where a node's ids come from: a seeded generator, so that a simulation can repeat them.

use everstep_core::{CommandId, RunId, SessionId, Timestamp};
use everstep_store::ClaimId;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use uuid::{Builder, Uuid};

#[derive(Debug)]
pub(super) struct IdSource(ChaCha8Rng);

impl IdSource {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A UUIDv7 of database time, as the log's partitions want it.
    pub(super) fn run_id(&mut self, now: Timestamp) -> RunId {
        let mut random = [0; 10];
        self.0.fill_bytes(&mut random);
        let millis = u64::try_from(now.as_micros() / 1_000).unwrap_or(0);
        RunId::from_uuid(Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    pub(super) fn session_id(&mut self) -> SessionId {
        SessionId::from_uuid(self.random())
    }

    pub(super) fn command_id(&mut self) -> CommandId {
        CommandId::from_uuid(self.random())
    }

    pub(super) fn claim_id(&mut self) -> ClaimId {
        ClaimId::from_uuid(self.random())
    }

    pub(super) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn random(&mut self) -> Uuid {
        let mut bytes = [0; 16];
        self.0.fill_bytes(&mut bytes);
        Builder::from_random_bytes(bytes).into_uuid()
    }
}
