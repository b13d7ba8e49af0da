//! What runs have to hear of each other: the port over the rows that say where it stands.

use async_trait::async_trait;
use everstep_core::{Duration, RunId, RunLink, Seq};

use crate::Error;

/// Events that other runs have to hear of, and which runs belong together.
///
/// A row of the outbox is written in the append of its event, and left for a second to the node that wrote it.
/// Whoever tells others tells them so that being told twice is being told once.
#[async_trait]
pub trait Outbox: Send + Sync + 'static {
    /// Claims what others have perhaps not heard of: of each run the first such events, in order. A run is due when
    /// the first of them is, so what follows it is claimed with it or after it. At most `runs` runs, those first that
    /// are due longest, and at most `rows` events of all of them together: what is left of the last run is due when
    /// what was claimed of it is deleted, or due again. What was claimed is not returned again before `2^tries`
    /// seconds (at most 60).
    ///
    /// # Errors
    /// [`Error::Unavailable`], as all methods of this trait.
    async fn claim_outbox(&self, runs: usize, rows: usize) -> Result<Vec<(RunId, Vec<Seq>)>, Error>;

    /// A node is telling others of these: nobody claims them for so long, nor what follows them.
    async fn hold_outbox(&self, held: &[(RunId, Seq)], hold: Duration) -> Result<(), Error>;

    /// Others have heard of these.
    async fn delete_outbox(&self, heard: &[(RunId, Seq)]) -> Result<(), Error>;

    /// Which runs these are linked to; nothing for a run without links.
    async fn run_links(&self, runs: &[RunId]) -> Result<Vec<(RunId, RunLink)>, Error>;
}
