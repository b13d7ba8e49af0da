//! What runs have to hear of each other: the port over the rows that say where it stands.

use async_trait::async_trait;
use everstep_core::{RunId, RunLink, Seq};

use crate::Error;

/// Events that other runs have to hear of, and which runs belong together.
///
/// A row of the outbox is written in the append of its event, and left for a second to the node that wrote it.
/// Whoever tells others tells them so that being told twice is being told once.
#[async_trait]
pub trait Outbox: Send + Sync + 'static {
    /// Claims whole runs, at most `limit` of them, of which an event is due: all their events that others have
    /// perhaps not heard of, each in order. A claimed run is not returned again before `2^tries` seconds (at most
    /// 60).
    ///
    /// # Errors
    /// [`Error::Unavailable`], as all methods of this trait.
    async fn claim_outbox(&self, limit: usize) -> Result<Vec<(RunId, Vec<Seq>)>, Error>;

    /// Others have heard of these.
    async fn delete_outbox(&self, heard: &[(RunId, Seq)]) -> Result<(), Error>;

    /// How many events others have perhaps not heard of, of all runs.
    async fn count_outbox(&self) -> Result<u64, Error>;

    /// Which runs these are linked to; nothing for a run without links.
    async fn run_links(&self, runs: &[RunId]) -> Result<Vec<(RunId, RunLink)>, Error>;
}
