//! Runs that follow runs: started with the end of the one before, and meant by whoever speaks to that one.

use everstep_core::{Run, RunId, Successor, WriteBasis};

use super::{Engine, Slot};
use crate::testing::Error;

impl Engine {
    /// Starts the run that follows one that has just ended.
    pub(super) fn succeed(&mut self, old: RunId, next: &Successor) -> Result<(), Error> {
        let Some(history) = self.runs.get(&old).and_then(|slot| next.events(&slot.history)) else {
            return Ok(());
        };
        let Some(run) = Run::fold(next.run_id, &history)? else { return Ok(()) };
        let writes = WriteBasis::NEW.writes(&run, &history);
        let slot = Slot { run, history, held: None, stalled: None, cut_off: None };
        self.runs.insert(next.run_id, slot);
        self.follow(next.run_id, writes);
        Ok(())
    }

    /// The last run of the chain that a run is in.
    pub(in crate::testing) fn latest(&self, run: RunId) -> RunId {
        self.chain(run).last().unwrap_or(run)
    }

    /// A run and those that follow it.
    pub(in crate::testing) fn chain(&self, run: RunId) -> impl Iterator<Item = RunId> {
        std::iter::successors(Some(run), |run| self.runs.get(run)?.run.successor())
    }
}
