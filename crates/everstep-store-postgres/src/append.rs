//! Appending.

use std::collections::BTreeSet;
use std::time::Duration;

use everstep_core::Timestamp;
use everstep_store::{Append, AppendReply, Error, RunAppend, StartClaim, Verdict};
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use crate::PostgresStore;
use crate::error::{after, before};
use crate::statement::{self, Appended};

/// Bytes of payload in one statement at most, unless a single append holds more.
const STATEMENT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Tries of a statement that met another transaction.
const CONTENTION_TRIES: u32 = 3;

type Done = (Option<Timestamp>, Vec<(usize, Verdict)>);

impl PostgresStore {
    /// Appends a batch. Runs to its end in a task of its own, whoever stops waiting.
    pub(crate) async fn append_batch(&self, batch: Vec<Append>) -> AppendReply {
        let (store, count) = (self.clone(), batch.len());
        match tokio::spawn(async move { store.append_all(batch).await }).await {
            Ok(reply) => reply,
            Err(error) => {
                let failed =
                    || Verdict::Failed(Error::OutcomeUnknown(format!("the append's task ended: {error}")));
                AppendReply { now: None, verdicts: (0..count).map(|_| failed()).collect() }
            }
        }
    }

    async fn append_all(&self, batch: Vec<Append>) -> AppendReply {
        let mut verdicts: Vec<Option<Verdict>> = batch.iter().map(|_| None).collect();
        let (mut runs, mut ids) = (BTreeSet::new(), BTreeSet::new());
        let (mut part, mut groups) = (Vec::new(), Vec::new());
        for (index, append) in batch.iter().enumerate() {
            // A run or workflow id that an earlier append of the batch names is not decided twice.
            let mut fresh = true;
            for run in append.runs() {
                fresh &= runs.insert(run.run_id);
                if let Some(StartClaim { namespace, workflow_id, .. }) = &run.start {
                    fresh &= ids.insert((namespace.as_str(), workflow_id.as_str()));
                }
            }
            if !fresh {
                verdicts[index] = Some(Verdict::Conflict);
            } else if let Some(problem) = append.malformed() {
                verdicts[index] = Some(Verdict::Failed(Error::Refused(problem)));
            } else if append.with.is_some() {
                groups.push((index, append));
            } else {
                part.push((index, &append.run));
            }
        }
        let mut now = None;
        let mut note = |done: Done, verdicts: &mut Vec<Option<Verdict>>| {
            now = now.max(done.0);
            for (index, verdict) in done.1 {
                verdicts[index] = Some(verdict);
            }
        };
        part.sort_by_key(|(_, run)| run.run_id);
        for chunk in by_size(&part) {
            note(self.statement(chunk).await, &mut verdicts);
        }
        for (index, group) in groups {
            note(self.group(index, group).await, &mut verdicts);
        }
        let missing = || Verdict::Failed(Error::Unavailable("not reached".to_owned()));
        AppendReply { now, verdicts: verdicts.into_iter().map(|v| v.unwrap_or_else(missing)).collect() }
    }

    /// One statement, halved until what is wrong stands alone.
    async fn statement(&self, part: &[(usize, &RunAppend)]) -> Done {
        let runs: Vec<&RunAppend> = part.iter().map(|(_, run)| *run).collect();
        match self.execute(&runs).await {
            Ok((now, winners)) => {
                let verdict = |(index, run): &(usize, &RunAppend)| {
                    let won = winners.contains(&run.run_id.uuid());
                    (*index, if won { Verdict::Committed } else { Verdict::Conflict })
                };
                (now, part.iter().map(verdict).collect())
            }
            // What fails for reasons of the connection would fail for every half.
            Err(error @ (Error::Unavailable(_) | Error::OutcomeUnknown(_) | Error::Exhausted(_))) => {
                (None, part.iter().map(|(i, _)| (*i, Verdict::Failed(error.clone()))).collect())
            }
            Err(error) if part.len() == 1 => (None, vec![(part[0].0, Verdict::Failed(error))]),
            Err(_) => {
                let (left, right) = part.split_at(part.len() / 2);
                let (left, right) =
                    (Box::pin(self.statement(left)).await, Box::pin(self.statement(right)).await);
                (left.0.max(right.0), left.1.into_iter().chain(right.1).collect())
            }
        }
    }

    async fn execute(&self, runs: &[&RunAppend]) -> Result<Appended, Error> {
        let (mut tries, mut careful) = (0, false);
        loop {
            let mut appender = self.appenders.take().await?;
            match in_time(self.answer_limit, statement::append(&mut appender.connection, runs, careful)).await
            {
                Ok(done) => {
                    self.appenders.give_back(appender);
                    match done {
                        Some(done) => return Ok(done),
                        None => careful = true,
                    }
                }
                Err(error) => {
                    self.appenders.discard(appender, &error).await;
                    if !matches!(error, Error::Contention(_)) || tries == CONTENTION_TRIES {
                        return Err(error);
                    }
                    tries += 1;
                }
            }
        }
    }

    /// Two runs with one verdict.
    async fn group(&self, index: usize, group: &Append) -> Done {
        match self.try_group(group).await {
            Ok(Some(now)) => (Some(now), vec![(index, Verdict::Committed)]),
            Ok(None) => (None, vec![(index, Verdict::Conflict)]),
            Err(error) => (None, vec![(index, Verdict::Failed(error))]),
        }
    }

    async fn try_group(&self, group: &Append) -> Result<Option<Timestamp>, Error> {
        let mut appender = self.appenders.take().await?;
        match in_time(self.answer_limit, group_on(&mut appender.connection, group)).await {
            Ok(done) => {
                self.appenders.give_back(appender);
                Ok(done)
            }
            Err(error) => {
                self.appenders.discard(appender, &error).await;
                Err(error)
            }
        }
    }
}

/// Nothing else notices a server that is silently gone before the kernel gives up, which takes a quarter of an
/// hour; and all runs of the lane would wait for it.
async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let silent = || Error::OutcomeUnknown(format!("Postgres did not answer an append within {limit:?}"));
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(silent()))
}

async fn group_on(connection: &mut PgConnection, group: &Append) -> Result<Option<Timestamp>, Error> {
    let mut transaction = connection.begin().await.map_err(before)?;
    let mut runs: Vec<&RunAppend> = group.runs().collect();
    runs.sort_by_key(|r| r.run_id);
    let mut last = Timestamp::default();
    for run in runs {
        // Nothing is committed before the end, so a failure here leaves nothing behind.
        let done = statement::append(&mut transaction, &[run], true).await.map_err(|e| match e {
            Error::OutcomeUnknown(text) => Error::Unavailable(text),
            other => other,
        });
        let (now, winners) = done?.unwrap_or_default();
        if winners.is_empty() {
            transaction.rollback().await.map_err(before)?;
            return Ok(None);
        }
        last = last.max(now.unwrap_or_default());
    }
    transaction.commit().await.map_err(after)?;
    Ok(Some(last))
}

fn by_size<'a, 'b>(part: &'a [(usize, &'b RunAppend)]) -> Vec<&'a [(usize, &'b RunAppend)]> {
    let (mut chunks, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, (_, run)) in part.iter().enumerate() {
        let size = run.payload_bytes();
        if i > start && bytes + size > STATEMENT_BYTES_MAX {
            chunks.push(&part[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += size;
    }
    if start < part.len() {
        chunks.push(&part[start..]);
    }
    chunks
}
