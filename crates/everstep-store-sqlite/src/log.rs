//! The event log.

use std::sync::Arc;

use async_trait::async_trait;
use everstep_core::{Event, RunId, Seq, Timestamp};
use everstep_store::{Append, AppendReply, Error, HEAD_MAX, Head, Log, PAGE_BYTES_MAX, Verdict};
use futures::TryStreamExt;

use crate::SqliteStore;
use crate::append::append;
use crate::error::before_commit;
use crate::rows::{event, event_columns, limit as sql_limit};

#[async_trait]
impl Log for SqliteStore {
    async fn close(&self) {
        self.close_connections().await;
    }

    async fn append(&self, batch: Vec<Append>) -> AppendReply {
        let appends = batch.len();
        let failed = |e: Error| AppendReply {
            now: None,
            verdicts: (0..appends).map(|_| Verdict::Failed(e.clone())).collect(),
        };
        let writer = match self.writer() {
            Ok(writer) => Arc::clone(writer),
            Err(e) => return failed(e),
        };
        let task = tokio::spawn(append(writer, Arc::clone(&self.inner), batch));
        task.await
            .unwrap_or_else(|e| failed(Error::OutcomeUnknown(format!("the writing task ended early: {e}"))))
    }

    async fn read_events(&self, run: RunId, after: Seq, limit: usize) -> Result<Vec<Event>, Error> {
        self.page(run, after, limit).await.map(|head| head.events)
    }

    async fn read_heads(&self, runs: &[(RunId, Seq)]) -> Vec<Result<Head, Error>> {
        let mut heads = Vec::with_capacity(runs.len());
        for (run, after) in runs {
            heads.push(self.page(*run, *after, HEAD_MAX).await);
        }
        heads
    }

    async fn now(&self) -> Result<Timestamp, Error> {
        Ok(self.inner.clock.now())
    }
}

impl SqliteStore {
    /// A page of a run's events, and whether more follow.
    async fn page(&self, run: RunId, after: Seq, limit: usize) -> Result<Head, Error> {
        let mut rows = sqlx::query(concat!(
            "SELECT ",
            event_columns!(),
            " FROM events e
              LEFT JOIN payloads p ON p.run_id = e.run_id AND p.hash = e.payload_hash
             WHERE e.run_id = ? AND e.seq > ?
             ORDER BY e.seq
             LIMIT ?"
        ))
        .bind(run.uuid())
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(sql_limit(limit.saturating_add(1)))
        .fetch(self.readers());
        let mut events: Vec<Event> = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.try_next().await.map_err(|e| before_commit(&e))? {
            if events.len() == limit {
                return Ok(Head { events, more: true });
            }
            let event = event(run, &row)?;
            let expected = events.last().map_or(after, |e| e.seq).saturating_add(1);
            if event.seq != expected {
                let text = format!("run {run}: event {} stands where {expected} is missing", event.seq);
                return Err(Error::Corrupt(text));
            }
            bytes += event.body.data_bytes();
            if bytes > PAGE_BYTES_MAX && !events.is_empty() {
                return Ok(Head { events, more: true });
            }
            events.push(event);
        }
        Ok(Head { events, more: false })
    }
}
