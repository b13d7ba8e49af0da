//! What runs have to hear of each other, in memory.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use everstep_core::{Duration, RunId, RunLink, Seq, Timestamp};

use super::MemoryStore;
use crate::{Error, Outbox};

/// The node that wrote an event has this long to tell of it.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Between {
    outbox: BTreeMap<(RunId, Seq), Row>,
    links: BTreeMap<RunId, RunLink>,
}

#[derive(Debug)]
struct Row {
    tries: u32,
    next_at: Timestamp,
}

impl Between {
    pub(super) fn set(&mut self, run: RunId, seq: Seq, now: Timestamp) {
        self.outbox.entry((run, seq)).or_insert(Row { tries: 0, next_at: now.after(GRACE) });
    }

    pub(super) fn delete(&mut self, run: RunId, seq: Seq) {
        self.outbox.remove(&(run, seq));
    }

    /// When each row is due for the next look, and how many it has had.
    pub(super) fn untold(&self) -> impl Iterator<Item = (Timestamp, u32)> {
        self.outbox.values().map(|row| (row.next_at, row.tries))
    }

    pub(super) fn link(&mut self, run: RunId, link: &RunLink) {
        self.links.insert(run, link.clone());
    }

    pub(super) fn link_of(&self, run: RunId) -> Option<RunLink> {
        self.links.get(&run).cloned()
    }

    pub(super) fn is_child_of(&self, run: RunId, parent: RunId) -> bool {
        self.links.get(&run).and_then(|link| link.parent).is_some_and(|(of, _)| of == parent)
    }
}

impl MemoryStore {
    /// [`Outbox::claim_outbox`], at once.
    pub fn claim_outbox_sync(&self, runs: usize, rows: usize) -> Vec<(RunId, Vec<Seq>)> {
        let now = (self.clock)();
        let mut tables = self.lock();
        let outbox = &mut tables.between.outbox;
        let mut due = Vec::new();
        let mut last = None;
        for ((run, _), first) in outbox.iter() {
            // The first row of a run stands for it.
            if last.replace(*run) != Some(*run) && first.next_at <= now {
                due.push((first.next_at, *run));
            }
        }
        due.sort_unstable();
        let mut left = rows;
        let mut claimed = Vec::new();
        for (_, run) in due.into_iter().take(runs) {
            let rows = outbox.range_mut((run, 0)..=(run, Seq::MAX)).take(left);
            let seqs: Vec<Seq> = rows
                .map(|((_, seq), row)| {
                    row.tries += 1;
                    row.next_at = now.after(Duration::from_secs(60.min(1 << row.tries.min(6))));
                    *seq
                })
                .collect();
            left -= seqs.len();
            if !seqs.is_empty() {
                claimed.push((run, seqs));
            }
        }
        claimed.sort_unstable();
        claimed
    }

    /// [`Outbox::hold_outbox`], at once.
    pub fn hold_outbox_sync(&self, held: &[(RunId, Seq)], hold: Duration) {
        let until = (self.clock)().after(hold);
        let mut tables = self.lock();
        for key in held {
            if let Some(row) = tables.between.outbox.get_mut(key) {
                row.next_at = row.next_at.max(until);
            }
        }
    }

    /// [`Outbox::delete_outbox`], at once.
    pub fn delete_outbox_sync(&self, heard: &[(RunId, Seq)]) {
        let mut tables = self.lock();
        for (run, seq) in heard {
            tables.between.delete(*run, *seq);
        }
    }

    /// Events that others have perhaps not heard of, for a checker.
    pub fn outbox_sync(&self) -> Vec<(RunId, Seq)> {
        self.lock().between.outbox.keys().copied().collect()
    }
}

#[async_trait]
impl Outbox for MemoryStore {
    async fn claim_outbox(&self, runs: usize, rows: usize) -> Result<Vec<(RunId, Vec<Seq>)>, Error> {
        Ok(self.claim_outbox_sync(runs, rows))
    }

    async fn hold_outbox(&self, held: &[(RunId, Seq)], hold: Duration) -> Result<(), Error> {
        self.hold_outbox_sync(held, hold);
        Ok(())
    }

    async fn delete_outbox(&self, heard: &[(RunId, Seq)]) -> Result<(), Error> {
        self.delete_outbox_sync(heard);
        Ok(())
    }

    async fn run_links(&self, runs: &[RunId]) -> Result<Vec<(RunId, RunLink)>, Error> {
        let tables = self.lock();
        let wanted: BTreeSet<RunId> = runs.iter().copied().collect();
        Ok(wanted.into_iter().filter_map(|run| Some((run, tables.between.link_of(run)?))).collect())
    }
}
