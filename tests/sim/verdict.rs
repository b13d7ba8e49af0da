//! What a world is held against, while it plays and at its end.

use everstep_core::RunId;

use crate::check;
use crate::client::Ask;
use crate::world::World;

/// What a seed, or many, went through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) events: u64,
    pub(crate) runs: u64,
    pub(crate) replies_lost: u64,
    pub(crate) commits_late: u64,
    pub(crate) nodes_died: u64,
    pub(crate) workers_died: u64,
    pub(crate) workers_stalled: u64,
    pub(crate) links_cut: u64,
    pub(crate) hints_lost: u64,
    pub(crate) conflicts: u64,
    pub(crate) fenced: u64,
    pub(crate) re_executed: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        let pairs = self.fields_mut().into_iter().zip(other.clone().fields_mut().map(|n| *n));
        pairs.for_each(|(a, b)| *a += b);
    }

    fn fields_mut(&mut self) -> [&mut u64; 12] {
        [
            &mut self.events,
            &mut self.runs,
            &mut self.replies_lost,
            &mut self.commits_late,
            &mut self.nodes_died,
            &mut self.workers_died,
            &mut self.workers_stalled,
            &mut self.links_cut,
            &mut self.hints_lost,
            &mut self.conflicts,
            &mut self.fenced,
            &mut self.re_executed,
        ]
    }

    pub(crate) fn faults(&self) -> [(&'static str, u64); 10] {
        [
            ("a lost commit reply", self.replies_lost),
            ("a late commit", self.commits_late),
            ("a dead node", self.nodes_died),
            ("a dead worker", self.workers_died),
            ("a stalled worker", self.workers_stalled),
            ("a cut stream", self.links_cut),
            ("a lost hint", self.hints_lost),
            ("a lost race", self.conflicts),
            ("a fenced commit", self.fenced),
            ("a re-executed step", self.re_executed),
        ]
    }
}

impl World {
    /// Every event, as soon as it is there.
    pub(crate) fn check_new_events(&mut self) {
        for run in self.store.run_ids_sync() {
            let known = self.checked.get(&run).copied().unwrap_or(0);
            let tail = self.store.read_events_sync(run, known as u64, usize::MAX);
            if tail.is_empty() {
                continue;
            }
            let history = self.store.read_events_sync(run, 0, usize::MAX);
            let tables = self.store.run_tables_sync(run);
            if let Err(problem) = check::history(run, &history, tables.as_ref(), self.db()) {
                panic!("seed {}: {run}: {problem}", self.seed);
            }
            self.totals.events += tail.len() as u64;
            self.checked.insert(run, history.len());
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        let answered = self.clients.iter().all(|c| matches!(c.ask(), Ask::Nothing));
        answered && self.stuck().is_empty()
    }

    pub(crate) fn stuck(&self) -> Vec<String> {
        let open =
            |run: &RunId| self.store.run_tables_sync(*run).filter(|t| !t.projection.row.status.is_closed());
        let runs = self.store.run_ids_sync();
        runs.iter()
            .filter_map(|run| {
                let tables = open(run)?;
                let kinds: Vec<String> = self
                    .store
                    .read_events_sync(*run, 0, usize::MAX)
                    .iter()
                    .map(|e| format!("{}@{}", e.body.kind(), e.epoch))
                    .collect();
                Some(format!("{run} {kinds:?} {tables:?}"))
            })
            .collect()
    }

    pub(crate) fn check_end(&mut self) {
        for client in &self.clients {
            let Some(run) = client.run else { panic!("seed {}: a start was never answered", self.seed) };
            let history = self.store.read_events_sync(run, 0, usize::MAX);
            if let Err(problem) = check::outcome(client, &history) {
                panic!("seed {}: {run}: {problem}", self.seed);
            }
            self.totals.runs += 1;
        }
        assert_eq!(self.store.run_ids_sync().len(), self.clients.len(), "seed {}: phantom runs", self.seed);
    }
}
