//! Queued steps: who has which attempt.

use async_trait::async_trait;
use bytes::Bytes;
use everstep_core::{Duration, OpId, Payload, QueueKey, RunId, SessionId, StepTask, Timestamp};
use everstep_store::{
    AttemptKey, Beat, BeatAnswer, ClaimId, ClaimKey, ClaimRow, DueSteps, Error, QueueLimits, QueueRecord,
    StepClaim, StepClaims, StepClock, StepFilter, StepRecord, StepWant, Steps, stored_beat, stored_number,
    stored_start,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use crate::error::before_commit;
use crate::rows::{event, event_columns, get, instant, limit as sql_limit, run_id, session_id};
use crate::{SqliteStore, queues};

/// The columns of a step task, as [`task`] reads them.
macro_rules! task_columns {
    () => {
        "t.step_id, t.attempt, t.name, t.namespace, t.task_queue, t.priority, t.scheduled_seq, t.visible_at, \
         t.start_by, t.close_by, t.start_to_close_us, t.heartbeat_us, t.canceled"
    };
}
pub(crate) use task_columns;

fn number(row: &SqliteRow, column: usize) -> Result<u32, Error> {
    stored_number("number", get(row, column)?)
}

/// An instant that may not be there.
pub(crate) fn maybe(row: &SqliteRow, column: usize) -> Result<Option<Timestamp>, Error> {
    Ok(get::<Option<i64>>(row, column)?.map(Timestamp::from_micros))
}

/// A step task, of the columns from `first` on.
pub(crate) fn task(row: &SqliteRow, first: usize) -> Result<StepTask, Error> {
    let length = |column: usize| -> Result<Option<Duration>, Error> {
        let micros: Option<i64> = get(row, first + column)?;
        Ok(micros.map(|us| Duration::from_micros(us.cast_unsigned())))
    };
    Ok(StepTask {
        step: OpId(number(row, first)?),
        attempt: number(row, first + 1)?,
        name: get(row, first + 2)?,
        queue: QueueKey { namespace: get(row, first + 3)?, task_queue: get(row, first + 4)? },
        priority: u8::try_from(get::<i64>(row, first + 5)?).unwrap_or(u8::MAX),
        scheduled: get::<i64>(row, first + 6)?.cast_unsigned(),
        visible_at: instant(row, first + 7)?,
        start_by: maybe(row, first + 8)?,
        close_by: maybe(row, first + 9)?,
        start_to_close: length(10)?,
        heartbeat: length(11)?,
        canceled: get(row, first + 12)?,
    })
}

/// Run and step of each row, as a JSON array for `json_each`.
fn keys<'r>(rows: impl Iterator<Item = &'r (Uuid, i64)>) -> String {
    serde_json::json!(rows.map(|(run, step)| (run.simple().to_string(), *step)).collect::<Vec<_>>())
        .to_string()
}

/// The claimed rows, and when it is worth to ask for more.
async fn claim_steps(
    c: &mut SqliteConnection,
    now: Timestamp,
    want: StepWant,
    limit: usize,
) -> Result<(Vec<SqliteRow>, Option<Timestamp>), sqlx::Error> {
    let open = sqlx::query("SELECT 1 FROM sessions WHERE session_id = ? AND closed_at IS NULL")
        .bind(want.session.uuid())
        .fetch_optional(&mut *c)
        .await?;
    if open.is_none() {
        return Ok((Vec::new(), None));
    }
    let (room, tokens) = queues::room(c, &want.queue, now).await?;
    let picked = pick(c, now, &want, limit.min(room.free)).await?;
    if let Some(tokens) = tokens {
        queues::take(c, &want.queue, tokens - picked.len() as f64, now).await?;
    }
    let again = room.again_after(limit, picked.len());
    if picked.is_empty() {
        return Ok((Vec::new(), again));
    }
    let keys = keys(picked.iter());
    sqlx::query(
        "UPDATE step_tasks AS t
            SET claim_id = ?1, session = ?2, claimed_at = ?3, beat_at = NULL,
                due_at = min(coalesce(close_by, ?5), coalesce(?3 + start_to_close_us, ?5), coalesce(?3 + heartbeat_us, ?5))
          WHERE (run_id, step_id) IN (SELECT unhex(value ->> 0), value ->> 1 FROM json_each(?4))",
    )
    .bind(want.claim.uuid())
    .bind(want.session.uuid())
    .bind(now.as_micros())
    .bind(&keys)
    .bind(StepTask::HELD.as_micros())
    .execute(&mut *c)
    .await?;
    let rows = sqlx::query(concat!(
        "SELECT ",
        event_columns!(),
        ", ",
        task_columns!(),
        ", t.run_id, t.details_encoding, t.details, f.attrs
           FROM step_tasks t
           JOIN events e ON e.run_id = t.run_id AND e.seq = t.scheduled_seq
           JOIN events f ON f.run_id = t.run_id AND f.seq = 1
           LEFT JOIN payloads p ON p.run_id = e.run_id AND p.hash = e.payload_hash
          WHERE (t.run_id, t.step_id) IN (SELECT unhex(value ->> 0), value ->> 1 FROM json_each(?))
          ORDER BY t.priority, t.visible_at, t.run_id, t.step_id"
    ))
    .bind(keys)
    .fetch_all(c)
    .await?;
    Ok((rows, again))
}

/// Priority by priority: within one, the index gives those first that wait longest, and what is not visible yet is
/// never met.
async fn pick(
    c: &mut SqliteConnection,
    now: Timestamp,
    want: &StepWant,
    limit: usize,
) -> Result<Vec<(Uuid, i64)>, sqlx::Error> {
    let types = serde_json::json!(want.types).to_string();
    let mut picked = Vec::new();
    for priority in 1..=i64::from(everstep_core::QueuedOptions::PRIORITY_LAST) {
        if picked.len() >= limit {
            break;
        }
        let rows: Vec<(Uuid, i64)> = sqlx::query_as(
            "SELECT run_id, step_id FROM step_tasks
              WHERE namespace = ?1 AND task_queue = ?2 AND priority = ?3 AND claim_id IS NULL AND visible_at <= ?4
                AND NOT canceled AND (start_by IS NULL OR start_by > ?4) AND (close_by IS NULL OR close_by > ?4)
                AND name IN (SELECT value FROM json_each(?5))
              ORDER BY visible_at, run_id, step_id LIMIT ?6",
        )
        .bind(&want.queue.namespace)
        .bind(&want.queue.task_queue)
        .bind(priority)
        .bind(now.as_micros())
        .bind(&types)
        .bind(sql_limit(limit - picked.len()))
        .fetch_all(&mut *c)
        .await?;
        picked.extend(rows);
    }
    Ok(picked)
}

fn claimed(claim: ClaimId, row: &SqliteRow) -> Result<StepClaim, Error> {
    let run = run_id(row, 26)?;
    let (encoding, data): (Option<String>, Option<Vec<u8>>) = (get(row, 27)?, get(row, 28)?);
    Ok(StepClaim {
        run,
        claim,
        task: task(row, 13)?,
        details: Payload {
            encoding: encoding.unwrap_or_default(),
            data: data.map(Bytes::from).unwrap_or_default(),
        },
        event: event(run, row)?,
        start: stored_start(run, get(row, 29)?)?,
    })
}

/// The rows whose instant has come, each looked at and put off.
async fn due_steps(
    c: &mut SqliteConnection,
    now: Timestamp,
    limit: usize,
    claim: Duration,
) -> Result<(Vec<Result<(AttemptKey, Option<everstep_store::Due>), Error>>, Option<i64>), sqlx::Error> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        task_columns!(),
        ", t.run_id, t.claimed_at, t.beat_at FROM step_tasks t
          WHERE t.due_at <= ?1 ORDER BY t.due_at, t.run_id, t.step_id LIMIT ?2"
    ))
    .bind(now.as_micros())
    .bind(sql_limit(limit))
    .fetch_all(&mut *c)
    .await?;
    let mut due = Vec::with_capacity(rows.len());
    for row in &rows {
        let (run, step): (Uuid, i64) = (row.try_get(13)?, row.try_get(0)?);
        let look = look(row, now, claim);
        let next = look.as_ref().map_or(now.after(claim), |(_, _, next)| *next);
        sqlx::query("UPDATE step_tasks SET due_at = ? WHERE run_id = ? AND step_id = ?")
            .bind(next.as_micros())
            .bind(run)
            .bind(step)
            .execute(&mut *c)
            .await?;
        due.push(look.map(|(key, due, _)| (key, due)));
    }
    let next = sqlx::query_scalar(
        "SELECT due_at FROM step_tasks WHERE due_at > ?1 AND due_at < ?2 ORDER BY due_at LIMIT 1",
    )
    .bind(now.as_micros())
    .bind(StepTask::HELD.as_micros())
    .fetch_optional(c)
    .await?;
    Ok((due, next))
}

type Look = (AttemptKey, Option<everstep_store::Due>, Timestamp);

fn look(row: &SqliteRow, now: Timestamp, claim: Duration) -> Result<Look, Error> {
    let task = task(row, 0)?;
    let clock = StepClock { task: &task, claimed_at: maybe(row, 14)?, beat_at: maybe(row, 15)? };
    let due = clock.due(now);
    let next = clock.look_after(due.as_ref(), now, claim);
    Ok((AttemptKey { run: run_id(row, 13)?, step: task.step, attempt: task.attempt }, due, next))
}

/// What a beat finds; the newest beat counts, so they are written in order.
async fn beat(
    c: &mut SqliteConnection,
    now: Timestamp,
    key: ClaimKey,
    details: Option<Payload>,
) -> Result<BeatAnswer, sqlx::Error> {
    let canceled: Option<bool> = sqlx::query_scalar(
        "UPDATE step_tasks
            SET beat_at = ?1, details = iif(?2 IS NULL, details, ?2), details_encoding = iif(?2 IS NULL, details_encoding, ?3)
          WHERE run_id = ?4 AND step_id = ?5 AND claim_id = ?6 RETURNING canceled",
    )
    .bind(now.as_micros())
    .bind(details.as_ref().map(|p| p.data.to_vec()))
    .bind(details.map(|p| p.encoding))
    .bind(key.run.uuid())
    .bind(i64::from(key.step.0))
    .bind(key.claim.uuid())
    .fetch_optional(c)
    .await?;
    Ok(stored_beat(canceled))
}

impl SqliteStore {
    /// One statement on one claim, whose last three values are the claim's; false when the claim is over.
    async fn on_claim(&self, sql: &'static str, key: ClaimKey, at: Option<i64>) -> Result<bool, Error> {
        self.writer()?
            .transact(move |c| {
                Box::pin(async move {
                    let query = sqlx::query(sql)
                        .bind(key.run.uuid())
                        .bind(i64::from(key.step.0))
                        .bind(key.claim.uuid());
                    let query = match at {
                        Some(at) => query.bind(at),
                        None => query,
                    };
                    Ok(query.execute(c).await?.rows_affected() > 0)
                })
            })
            .await
    }
}

#[async_trait]
impl Steps for SqliteStore {
    async fn claim_steps(&self, want: &StepWant, limit: usize) -> Result<StepClaims, Error> {
        let (claim, want, now) = (want.claim, want.clone(), self.inner.clock.now());
        let (rows, again) =
            self.writer()?.transact(move |c| Box::pin(claim_steps(c, now, want, limit))).await?;
        let claims = rows.iter().map(|row| claimed(claim, row)).collect::<Result<_, _>>()?;
        Ok(StepClaims { claims, again })
    }

    async fn return_step(&self, key: ClaimKey) -> Result<bool, Error> {
        let sql = "UPDATE step_tasks
                      SET claim_id = NULL, session = NULL, claimed_at = NULL, beat_at = NULL, due_at = ?4
                    WHERE run_id = ?1 AND step_id = ?2 AND claim_id = ?3";
        self.on_claim(sql, key, Some(self.inner.clock.now().as_micros())).await
    }

    async fn defer_step(&self, key: ClaimKey) -> Result<bool, Error> {
        let sql = "UPDATE step_tasks SET session = NULL WHERE run_id = ?1 AND step_id = ?2 AND claim_id = ?3";
        self.on_claim(sql, key, None).await
    }

    async fn beat_steps(&self, beats: &[Beat]) -> Result<Vec<BeatAnswer>, Error> {
        let (beats, now) = (beats.to_vec(), self.inner.clock.now());
        self.writer()?
            .transact(move |c| {
                Box::pin(async move {
                    let mut answers = Vec::with_capacity(beats.len());
                    for Beat { key, details } in beats {
                        answers.push(beat(c, now, key, details).await?);
                    }
                    Ok(answers)
                })
            })
            .await
    }

    async fn beat_by_token(
        &self,
        attempt: AttemptKey,
        details: Option<&Payload>,
    ) -> Result<BeatAnswer, Error> {
        let (details, now) = (details.cloned(), self.inner.clock.now());
        self.writer()?
            .transact(move |c| {
                Box::pin(async move {
                    let claim: Option<Uuid> = sqlx::query_scalar(
                        "SELECT claim_id FROM step_tasks
                          WHERE run_id = ? AND step_id = ? AND attempt = ? AND claim_id IS NOT NULL",
                    )
                    .bind(attempt.run.uuid())
                    .bind(i64::from(attempt.step.0))
                    .bind(i64::from(attempt.attempt))
                    .fetch_optional(&mut *c)
                    .await?;
                    let Some(claim) = claim else { return Ok(BeatAnswer::Gone) };
                    let claim = ClaimId::from_uuid(claim);
                    beat(c, now, ClaimKey { run: attempt.run, step: attempt.step, claim }, details).await
                })
            })
            .await
    }

    async fn claims_of(&self, sessions: &[SessionId]) -> Result<Vec<ClaimRow>, Error> {
        let rows = sqlx::query(
            "SELECT session, run_id, step_id, claim_id, attempt, claimed_at, canceled FROM step_tasks
              WHERE session IN (SELECT unhex(value) FROM json_each(?)) ORDER BY run_id, step_id",
        )
        .bind(crate::rows::id_list(sessions.iter().map(|session| session.uuid())))
        .fetch_all(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        let row = |row: &SqliteRow| {
            let (run, step) = (run_id(row, 1)?, OpId(number(row, 2)?));
            Ok(ClaimRow {
                session: session_id(row, 0)?,
                key: ClaimKey { run, step, claim: ClaimId::from_uuid(get(row, 3)?) },
                attempt: number(row, 4)?,
                claimed_at: instant(row, 5)?,
                canceled: get(row, 6)?,
            })
        };
        rows.iter().map(row).collect()
    }

    async fn lost_steps(&self, limit: usize) -> Result<Vec<AttemptKey>, Error> {
        // From one session to the next in the index, as for lost runs.
        let rows = sqlx::query(
            "WITH RECURSIVE holders(session) AS (
                 SELECT (SELECT session FROM step_tasks WHERE session IS NOT NULL ORDER BY session LIMIT 1)
                 UNION ALL
                 SELECT (SELECT t.session FROM step_tasks t WHERE t.session > h.session ORDER BY t.session LIMIT 1)
                   FROM holders h WHERE h.session IS NOT NULL)
             SELECT t.run_id, t.step_id, t.attempt
               FROM holders h
               JOIN step_tasks t ON t.session = h.session
              WHERE NOT EXISTS (SELECT 1 FROM sessions s WHERE s.session_id = h.session AND s.closed_at IS NULL)
              ORDER BY t.run_id, t.step_id LIMIT ?",
        )
        .bind(sql_limit(limit))
        .fetch_all(self.readers())
        .await
        .map_err(|e| before_commit(&e))?;
        let key = |row: &SqliteRow| {
            let (step, attempt) = (OpId(number(row, 1)?), number(row, 2)?);
            Ok(AttemptKey { run: run_id(row, 0)?, step, attempt })
        };
        rows.iter().map(key).collect()
    }

    async fn due_steps(&self, limit: usize, claim: Duration) -> Result<DueSteps, Error> {
        let now = self.inner.clock.now();
        let (looks, next) =
            self.writer()?.transact(move |c| Box::pin(due_steps(c, now, limit, claim))).await?;
        let mut due = Vec::new();
        for look in looks {
            let (key, meaning) = look?;
            due.extend(meaning.map(|meaning| (key, meaning)));
        }
        Ok(DueSteps { due, next: next.map(Timestamp::from_micros), now })
    }

    async fn set_queue_limits(&self, queue: &QueueKey, limits: QueueLimits) -> Result<(), Error> {
        let (queue, now) = (queue.clone(), self.inner.clock.now());
        self.writer()?.transact(move |c| Box::pin(queues::set_limits(c, queue, limits, now))).await
    }

    async fn queue(&self, queue: &QueueKey) -> Result<QueueRecord, Error> {
        queues::record(self.readers(), queue, self.inner.clock.now()).await
    }

    async fn queues(&self, namespace: &str, after: &str, limit: usize) -> Result<Vec<QueueRecord>, Error> {
        let mut records = Vec::new();
        for task_queue in queues::names(self.readers(), namespace, after, sql_limit(limit)).await? {
            let queue = QueueKey { namespace: namespace.to_owned(), task_queue };
            records.push(self.queue(&queue).await?);
        }
        Ok(records)
    }

    async fn list_steps(
        &self,
        filter: &StepFilter,
        after: Option<(RunId, OpId)>,
        limit: usize,
    ) -> Result<Vec<StepRecord>, Error> {
        queues::list(self.readers(), filter, after, sql_limit(limit)).await
    }

    async fn deployment_secret(&self) -> Result<[u8; 32], Error> {
        let secret: Vec<u8> = sqlx::query_scalar("SELECT secret FROM deployment")
            .fetch_one(self.readers())
            .await
            .map_err(|e| before_commit(&e))?;
        secret
            .try_into()
            .map_err(|_| Error::Corrupt("the deployment's secret is not 32 bytes long".to_owned()))
    }
}
