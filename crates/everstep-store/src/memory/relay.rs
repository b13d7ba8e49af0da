//! Questions between nodes, in memory.

use std::collections::BTreeMap;

use async_trait::async_trait;
use everstep_core::{AskId, Duration, Timestamp};

use super::MemoryStore;
use crate::{AskAnswer, AskRow, AskState, AskWant, Error, Relay};

/// The questions that wait.
pub(super) type Asks = BTreeMap<AskId, Asked>;

#[derive(Debug)]
pub(super) struct Asked {
    row: AskRow,
    put_at: Timestamp,
    claimed_until: Option<Timestamp>,
    answer: Option<AskAnswer>,
}

impl Asked {
    fn expires_at(&self) -> Timestamp {
        self.put_at.after(self.row.wait)
    }

    fn fits(&self, want: &AskWant) -> bool {
        self.row.queue.namespace == want.namespace
            && want.task_queues.contains(&self.row.queue.task_queue)
            && want.workflow_types.contains(&self.row.workflow_type)
    }
}

#[async_trait]
impl Relay for MemoryStore {
    async fn put_ask(&self, ask: &AskRow) -> Result<(), Error> {
        let now = (self.clock)();
        let mut tables = self.lock();
        tables.asks.retain(|_, asked| asked.expires_at() > now);
        let asked = || Asked { row: ask.clone(), put_at: now, claimed_until: None, answer: None };
        tables.asks.entry(ask.ask).or_insert_with(asked);
        Ok(())
    }

    async fn claim_asks(&self, want: &AskWant, claim: Duration, limit: usize) -> Result<Vec<AskRow>, Error> {
        let now = (self.clock)();
        let mut tables = self.lock();
        let free =
            |asked: &Asked| asked.answer.is_none() && asked.claimed_until.is_none_or(|until| until < now);
        let mut open: Vec<&mut Asked> = tables
            .asks
            .values_mut()
            .filter(|asked| asked.fits(want) && free(asked) && asked.expires_at() > now)
            .collect();
        open.sort_by_key(|asked| (asked.put_at, asked.row.ask));
        let claimed = open.into_iter().take(limit).map(|asked| {
            asked.claimed_until = Some(now.after(claim));
            AskRow { wait: asked.expires_at().since(now), ..asked.row.clone() }
        });
        Ok(claimed.collect())
    }

    async fn answer_ask(&self, ask: AskId, answer: &AskAnswer) -> Result<bool, Error> {
        let mut tables = self.lock();
        let Some(asked) = tables.asks.get_mut(&ask).filter(|asked| asked.answer.is_none()) else {
            return Ok(false);
        };
        asked.answer = Some(answer.clone());
        Ok(true)
    }

    async fn look_at_ask(&self, ask: AskId) -> Result<AskState, Error> {
        Ok(match self.lock().asks.get(&ask) {
            None => AskState::Absent,
            Some(Asked { answer: None, .. }) => AskState::Open,
            Some(Asked { answer: Some(answer), .. }) => AskState::Answered(answer.clone()),
        })
    }

    async fn delete_ask(&self, ask: AskId) -> Result<(), Error> {
        self.lock().asks.remove(&ask);
        Ok(())
    }
}
