//! Looks whether every waiting run has the wake rows that its state calls for, and every wake row a waiting run
//! (INV-25). It reads what the tables hold and no history, a bounded part of them each time, and mends nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use everstep_core::RunId;
use everstep_store::{self as store, Store, WakeTable};
use tokio::time::MissedTickBehavior;

use super::Shared;

/// Rows of a table of wake rows that one pass looks at.
const ROWS_MAX: usize = 1_000;
/// Rows of the table of runs: nearly all of them are closed, and cost next to nothing.
const RUNS_MAX: usize = 5_000;
/// Runs that one statement looks at.
const LOOK_MAX: usize = 1_000;
/// Suspects that are kept; what is wrong beyond them is found when these are mended.
const SUSPECTS_MAX: usize = 1_000;

/// Where the scan stands.
#[derive(Debug, Default)]
struct Scan {
    /// The last run of each table that was looked at; from the start when there is none.
    after: BTreeMap<WakeTable, RunId>,
    suspects: BTreeMap<RunId, Suspect>,
}

/// A run that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suspect {
    misfit: &'static str,
    /// It did not fit the last time either. Once alone proves nothing.
    confirmed: bool,
}

impl Scan {
    /// Looks at the suspects again, and at the next part of each table. Returns how many violations there are.
    async fn pass(&mut self, store: &dyn Store) -> Result<usize, store::Error> {
        self.look_again(store).await?;
        for table in WakeTable::ALL {
            let limit = if table == WakeTable::Runs { RUNS_MAX } else { ROWS_MAX };
            let page = store.wake_page(table, self.after.get(&table).copied(), limit).await?;
            // Before the rows are looked at: a page that cannot be read does not hold up the others.
            match page.last {
                Some(last) => self.after.insert(table, last),
                None => self.after.remove(&table),
            };
            for runs in page.runs.chunks(LOOK_MAX) {
                self.look(store, runs).await?;
            }
        }
        Ok(self.suspects.values().filter(|suspect| suspect.confirmed).count())
    }

    async fn look_again(&mut self, store: &dyn Store) -> Result<(), store::Error> {
        let runs: Vec<RunId> = self.suspects.keys().copied().collect();
        if runs.is_empty() {
            return Ok(());
        }
        for rows in store.wake_rows(&runs).await? {
            let Some(before) = self.suspects.remove(&rows.run) else { continue };
            let Some(misfit) = rows.misfit() else { continue };
            let confirmed = misfit == before.misfit;
            if confirmed && !before.confirmed {
                tracing::warn!(run_id = %rows.run, misfit, "INV-25 violated");
            }
            self.suspects.insert(rows.run, Suspect { misfit, confirmed });
        }
        Ok(())
    }

    async fn look(&mut self, store: &dyn Store, runs: &[RunId]) -> Result<(), store::Error> {
        for rows in store.wake_rows(runs).await? {
            if let Some(misfit) = rows.misfit()
                && self.suspects.len() < SUSPECTS_MAX
            {
                self.suspects.entry(rows.run).or_insert(Suspect { misfit, confirmed: false });
            }
        }
        Ok(())
    }
}

/// Scans for as long as the node lives.
pub(super) async fn scans(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(shared.config.scan_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut scan = Scan::default();
    loop {
        ticks.tick().await;
        match scan.pass(&*shared.store).await {
            Ok(violations) => shared.figures.violations(violations),
            Err(error) if error.is_retryable() => tracing::debug!(%error, "wake rows not scanned"),
            Err(error) => tracing::warn!(%error, "wake rows not scanned"),
        }
    }
}

#[cfg(test)]
mod tests;
