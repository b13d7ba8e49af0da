//! Attempts in doubt, in memory.

use everstep_core::{Doubt, OpId, RunId};

use super::Tables;
use crate::{DoubtFilter, DoubtRecord};

impl Tables {
    /// Those of one run, sorted.
    pub(super) fn doubts_of(&self, run: RunId) -> Vec<Doubt> {
        let all = self.doubts.range((run, OpId(0))..=(run, OpId(u32::MAX)));
        all.map(|(_, doubt)| doubt.clone()).collect()
    }

    pub(super) fn list_doubts(
        &self,
        filter: &DoubtFilter,
        after: Option<(RunId, OpId)>,
        limit: usize,
    ) -> Vec<DoubtRecord> {
        let record = |(&(run_id, _), doubt): (&(RunId, OpId), &Doubt)| {
            let row = self.runs.get(&run_id).filter(|row| row.namespace == filter.namespace)?;
            let (workflow_id, task_queue) = (row.workflow_id.clone(), row.task_queue.clone());
            Some(DoubtRecord { run_id, workflow_id, task_queue, doubt: doubt.clone() })
        };
        let wanted = self.doubts.iter().filter(|(key, _)| after.is_none_or(|after| **key > after));
        let wanted = wanted.filter(|((run, _), _)| filter.run.is_none_or(|only| only == *run));
        wanted.filter_map(record).take(limit).collect()
    }
}
