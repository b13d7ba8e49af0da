//! Queued steps: who has which attempt. What is due is asked by `statement_timestamp()`: no index answers a
//! comparison with the volatile `clock_timestamp()`.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use everstep_core::{Duration, OpId, Payload, QueueKey, RunId, SessionId, StepTask, StepTimeout};
use everstep_store::{
    AttemptKey, Beat, BeatAnswer, ClaimId, ClaimKey, ClaimRow, Due, DueSteps, Error, QueueLimits,
    QueueRecord, StepClaim, StepClaims, StepFilter, StepRecord, StepWant, Steps, stored_beat, stored_number,
    stored_start,
};
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use crate::PostgresStore;
use crate::connect::InTime as _;
use crate::error::before;
use crate::queues;
use crate::rows::{event, from_db};
use crate::sessions::micros;

/// The columns of a step task, as [`task`] reads them.
macro_rules! task_columns {
    () => {
        "t.step_id, t.attempt, t.name, t.namespace, t.task_queue, t.priority, t.scheduled_seq, t.visible_at, \
         t.start_by, t.close_by, t.start_to_close_us, t.heartbeat_us, t.canceled"
    };
}
pub(crate) use task_columns;

pub(crate) fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// A step task, of the columns from `first` on.
pub(crate) fn task(row: &PgRow, first: usize) -> Result<StepTask, Error> {
    let read = || -> Result<_, sqlx::Error> {
        let at = |n: usize| row.try_get::<Option<DateTime<Utc>>, _>(first + n).map(|at| at.map(from_db));
        let length = |n: usize| {
            let micros = row.try_get::<Option<i64>, _>(first + n)?;
            Ok::<_, sqlx::Error>(micros.map(|us| Duration::from_micros(u64::try_from(us).unwrap_or(0))))
        };
        let numbers: (i64, i64) = (row.try_get(first)?, row.try_get(first + 1)?);
        let task = StepTask {
            step: OpId(0),
            name: row.try_get(first + 2)?,
            attempt: 0,
            queue: QueueKey { namespace: row.try_get(first + 3)?, task_queue: row.try_get(first + 4)? },
            priority: u8::try_from(row.try_get::<i16, _>(first + 5)?).unwrap_or(u8::MAX),
            scheduled: u64::try_from(row.try_get::<i64, _>(first + 6)?).unwrap_or(0),
            visible_at: from_db(row.try_get(first + 7)?),
            start_by: at(8)?,
            close_by: at(9)?,
            start_to_close: length(10)?,
            heartbeat: length(11)?,
            canceled: row.try_get(first + 12)?,
        };
        Ok((task, numbers))
    };
    let (task, (step, attempt)) = read().map_err(before)?;
    Ok(StepTask {
        step: OpId(stored_number("number", step)?),
        attempt: stored_number("attempt", attempt)?,
        ..task
    })
}

/// Those of one run, sorted.
pub(crate) async fn of_run(store: &PostgresStore, run: RunId) -> Result<Vec<StepTask>, Error> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        task_columns!(),
        " FROM step_tasks t WHERE t.run_id = $1 ORDER BY t.step_id"
    ))
    .bind(run.uuid())
    .fetch_all(&store.pool)
    .in_time(store.answer_limit)
    .await
    .map_err(before)?;
    rows.iter().map(|row| task(row, 0)).collect()
}

/// Priorities are gone through one by one, in order: within one, the index gives those first that wait longest, and
/// what is not visible yet is never met. `$7` is true where the limits of the queue have been seen to. The first 13
/// columns are those of the event.
const CLAIM: &str = concat!(
    "WITH picked AS MATERIALIZED (
         SELECT c.run_id, c.step_id
           FROM unnest('{1,2,3,4,5}'::smallint[]) AS p(priority)
          CROSS JOIN LATERAL (
                SELECT t.run_id, t.step_id FROM step_tasks t
                 WHERE t.namespace = $1 AND t.task_queue = $2 AND t.priority = p.priority AND t.claim_id IS NULL
                   AND t.visible_at <= statement_timestamp() AND NOT t.canceled AND t.name = ANY ($3::text[])
                   AND (t.start_by IS NULL OR t.start_by > statement_timestamp())
                   AND (t.close_by IS NULL OR t.close_by > statement_timestamp())
                 ORDER BY t.visible_at, t.run_id, t.step_id LIMIT $4 FOR UPDATE SKIP LOCKED) c
          WHERE (SELECT true FROM sessions s WHERE s.session_id = $5 AND s.closed_at IS NULL)
            AND ($7 OR (SELECT true FROM queue_limits l WHERE l.namespace = $1 AND l.task_queue = $2) IS NULL)
          LIMIT $4),
     claimed AS (
         UPDATE step_tasks t
            SET claim_id = $6, session = $5, claimed_at = statement_timestamp(), beat_at = NULL,
                due_at = least('9999-12-31T23:59:59.999999Z', t.close_by,
                               statement_timestamp() + t.start_to_close_us * interval '1 microsecond',
                               statement_timestamp() + t.heartbeat_us * interval '1 microsecond')
           FROM picked k WHERE t.run_id = k.run_id AND t.step_id = k.step_id
         RETURNING t.*)
     SELECT e.seq, e.at, e.epoch, e.step_id, e.attempt, e.command_id, e.kind, e.step, e.actor, e.attrs, e.encoding,
            coalesce(e.payload, p.data), e.payload_hash, ",
    task_columns!(),
    ", t.run_id, t.details_encoding, t.details, f.attrs
       FROM claimed t
       JOIN events e ON e.run_id = t.run_id AND e.seq = t.scheduled_seq
       JOIN events f ON f.run_id = t.run_id AND f.seq = 1
       LEFT JOIN payloads p ON p.run_id = e.run_id AND p.hash = e.payload_hash
      ORDER BY t.priority, t.visible_at, t.run_id, t.step_id"
);

pub(crate) async fn claim(
    connection: &mut PgConnection,
    want: &StepWant,
    limit: usize,
    limits_known: bool,
) -> Result<Vec<StepClaim>, Error> {
    let rows = sqlx::query(CLAIM)
        .bind(&want.queue.namespace)
        .bind(&want.queue.task_queue)
        .bind(&want.types)
        .bind(limit_of(limit))
        .bind(want.session.uuid())
        .bind(want.claim.uuid())
        .bind(limits_known)
        .fetch_all(connection)
        .await
        .map_err(before)?;
    rows.iter().map(|row| claimed(want.claim, row)).collect()
}

fn claimed(claim: ClaimId, row: &PgRow) -> Result<StepClaim, Error> {
    let run = RunId::from_uuid(row.try_get::<Uuid, _>(26).map_err(before)?);
    Ok(StepClaim {
        run,
        claim,
        task: task(row, 13)?,
        details: details(row, 27)?,
        event: event(run, row)?,
        start: stored_start(run, row.try_get(29).map_err(before)?)?,
    })
}

fn details(row: &PgRow, first: usize) -> Result<Payload, Error> {
    let (encoding, data): (Option<String>, Option<Vec<u8>>) =
        (row.try_get(first).map_err(before)?, row.try_get(first + 1).map_err(before)?);
    Ok(Payload { encoding: encoding.unwrap_or_default(), data: data.map(Bytes::from).unwrap_or_default() })
}

/// The beats with one for each attempt: the newest, with the newest details.
fn newest(beats: &[Beat]) -> Vec<(ClaimKey, Option<&Payload>)> {
    let mut one: BTreeMap<ClaimKey, Option<&Payload>> = BTreeMap::new();
    for beat in beats {
        let said = one.entry(beat.key).or_default();
        *said = beat.details.as_ref().or(*said);
    }
    one.into_iter().collect()
}

fn meaning(word: &str, queue: QueueKey) -> Option<Due> {
    Some(match word {
        "visible" => Due::Visible(queue),
        "canceled" => Due::Timeout(StepTimeout::Canceled),
        "schedule_to_start" => Due::Timeout(StepTimeout::ScheduleToStart),
        "start_to_close" => Due::Timeout(StepTimeout::StartToClose),
        "schedule_to_close" => Due::Timeout(StepTimeout::ScheduleToClose),
        "heartbeat" => Due::Timeout(StepTimeout::Heartbeat),
        _ => return None,
    })
}

const DUE: &str = "WITH late AS MATERIALIZED (
         SELECT run_id, step_id, due_at FROM step_tasks
          WHERE due_at <= statement_timestamp() ORDER BY due_at, run_id, step_id LIMIT $1 FOR UPDATE SKIP LOCKED),
     judged AS MATERIALIZED (
         SELECT t.run_id, t.step_id, l.due_at, CASE
                    WHEN t.close_by <= statement_timestamp() THEN 'schedule_to_close'
                    WHEN t.claim_id IS NOT NULL THEN CASE
                        WHEN t.claimed_at + t.start_to_close_us * interval '1 microsecond' <= statement_timestamp()
                            THEN 'start_to_close'
                        WHEN coalesce(t.beat_at, t.claimed_at) + t.heartbeat_us * interval '1 microsecond'
                             <= statement_timestamp() THEN 'heartbeat' END
                    WHEN t.visible_at >= '9999-12-31T23:59:59.999999Z' THEN NULL
                    WHEN t.canceled THEN 'canceled'
                    WHEN t.start_by <= statement_timestamp() THEN 'schedule_to_start'
                    WHEN t.visible_at <= statement_timestamp() THEN 'visible' END AS meaning
           FROM late l JOIN step_tasks t ON t.run_id = l.run_id AND t.step_id = l.step_id)
     UPDATE step_tasks t
        SET due_at = CASE
                WHEN j.meaning = 'visible' THEN
                    least(t.close_by, t.start_by, statement_timestamp()
                          + least(greatest(statement_timestamp() - t.visible_at, interval '1 second'),
                                  interval '60 seconds'))
                WHEN j.meaning IS NOT NULL THEN statement_timestamp() + $2 * interval '1 microsecond'
                WHEN t.claim_id IS NOT NULL THEN
                    least('9999-12-31T23:59:59.999999Z', t.close_by,
                          t.claimed_at + t.start_to_close_us * interval '1 microsecond',
                          coalesce(t.beat_at, t.claimed_at) + t.heartbeat_us * interval '1 microsecond')
                ELSE least(t.close_by, t.start_by, t.visible_at) END
       FROM judged j WHERE t.run_id = j.run_id AND t.step_id = j.step_id
     RETURNING j.due_at, t.run_id, t.step_id, t.attempt, j.meaning, t.namespace, t.task_queue";

#[async_trait]
impl Steps for PostgresStore {
    async fn claim_steps(&self, want: &StepWant, limit: usize) -> Result<StepClaims, Error> {
        let all = async {
            let mut connection = self.pool.acquire().await.map_err(before)?;
            let claims = claim(&mut connection, want, limit, false).await?;
            if !claims.is_empty() {
                return Ok(StepClaims { claims, again: None });
            }
            queues::within_limits(&mut connection, want, limit).await
        };
        within(self.answer_limit, all).await
    }

    async fn return_step(&self, key: ClaimKey) -> Result<bool, Error> {
        let done = sqlx::query(
            "UPDATE step_tasks SET claim_id = NULL, session = NULL, claimed_at = NULL, beat_at = NULL,
                    due_at = clock_timestamp()
              WHERE run_id = $1 AND step_id = $2 AND claim_id = $3",
        );
        self.on_claim(done, key).await
    }

    async fn defer_step(&self, key: ClaimKey) -> Result<bool, Error> {
        let done = sqlx::query(
            "UPDATE step_tasks SET session = NULL WHERE run_id = $1 AND step_id = $2 AND claim_id = $3",
        );
        self.on_claim(done, key).await
    }

    async fn beat_steps(&self, beats: &[Beat]) -> Result<Vec<BeatAnswer>, Error> {
        let newest = newest(beats);
        // A row that is locked is being written by an append, which must not wait for this; it lives all the same.
        let known: Vec<(Uuid, i64, Uuid, bool)> = sqlx::query_as(
            "WITH beats AS (
                 SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::bytea[])
                        AS b(run_id, step_id, claim_id, encoding, data)),
             held AS MATERIALIZED (
                 SELECT t.run_id, t.step_id, b.encoding, b.data
                   FROM beats b JOIN step_tasks t
                     ON t.run_id = b.run_id AND t.step_id = b.step_id AND t.claim_id = b.claim_id
                    FOR UPDATE OF t SKIP LOCKED),
             beaten AS (
                 UPDATE step_tasks t
                    SET beat_at = clock_timestamp(), details = CASE WHEN h.data IS NULL THEN t.details ELSE h.data END,
                        details_encoding = CASE WHEN h.data IS NULL THEN t.details_encoding ELSE h.encoding END
                   FROM held h WHERE t.run_id = h.run_id AND t.step_id = h.step_id)
             SELECT t.run_id, t.step_id, t.claim_id, t.canceled
               FROM beats b JOIN step_tasks t
                 ON t.run_id = b.run_id AND t.step_id = b.step_id AND t.claim_id = b.claim_id",
        )
        .bind(newest.iter().map(|(key, _)| key.run.uuid()).collect::<Vec<_>>())
        .bind(newest.iter().map(|(key, _)| i64::from(key.step.0)).collect::<Vec<_>>())
        .bind(newest.iter().map(|(key, _)| key.claim.uuid()).collect::<Vec<_>>())
        .bind(newest.iter().map(|(_, said)| said.map(|p| p.encoding.clone())).collect::<Vec<_>>())
        .bind(newest.iter().map(|(_, said)| said.map(|p| p.data.to_vec())).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        let known: BTreeMap<_, _> =
            known.into_iter().map(|(run, step, claim, no)| ((run, step, claim), no)).collect();
        let answer = |beat: &Beat| {
            let key = (beat.key.run.uuid(), i64::from(beat.key.step.0), beat.key.claim.uuid());
            stored_beat(known.get(&key).copied())
        };
        Ok(beats.iter().map(answer).collect())
    }

    async fn beat_by_token(
        &self,
        attempt: AttemptKey,
        details: Option<&Payload>,
    ) -> Result<BeatAnswer, Error> {
        let canceled: Option<bool> = sqlx::query_scalar(
            "UPDATE step_tasks
                SET beat_at = clock_timestamp(), details = CASE WHEN $5::bytea IS NULL THEN details ELSE $5 END,
                    details_encoding = CASE WHEN $5 IS NULL THEN details_encoding ELSE $4 END
              WHERE run_id = $1 AND step_id = $2 AND attempt = $3 AND claim_id IS NOT NULL
             RETURNING canceled",
        )
        .bind(attempt.run.uuid())
        .bind(i64::from(attempt.step.0))
        .bind(i64::from(attempt.attempt))
        .bind(details.map(|p| p.encoding.clone()))
        .bind(details.map(|p| p.data.to_vec()))
        .fetch_optional(&self.pool)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(stored_beat(canceled))
    }

    async fn claims_of(&self, sessions: &[SessionId]) -> Result<Vec<ClaimRow>, Error> {
        let sessions: Vec<Uuid> = sessions.iter().map(|session| session.uuid()).collect();
        let rows: Vec<(Uuid, Uuid, i64, Uuid, i64, DateTime<Utc>, bool)> = sqlx::query_as(
            "SELECT session, run_id, step_id, claim_id, attempt, claimed_at, canceled FROM step_tasks
              WHERE session = ANY ($1) ORDER BY run_id, step_id",
        )
        .bind(sessions)
        .fetch_all(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        let row = |(session, run, step, claim, attempt, claimed_at, canceled)| {
            let step = OpId(stored_number("number", step)?);
            Ok(ClaimRow {
                session: SessionId::from_uuid(session),
                key: ClaimKey { run: RunId::from_uuid(run), step, claim: ClaimId::from_uuid(claim) },
                attempt: stored_number("attempt", attempt)?,
                claimed_at: from_db(claimed_at),
                canceled,
            })
        };
        rows.into_iter().map(row).collect()
    }

    async fn lost_steps(&self, limit: usize) -> Result<Vec<AttemptKey>, Error> {
        // From one session to the next in the index, as for lost runs.
        let lost: Vec<(Uuid, i64, i64)> = sqlx::query_as(
            "WITH RECURSIVE holders(session) AS (
                 SELECT (SELECT session FROM step_tasks WHERE session IS NOT NULL ORDER BY session LIMIT 1)
                 UNION ALL
                 SELECT (SELECT t.session FROM step_tasks t WHERE t.session > h.session ORDER BY t.session LIMIT 1)
                   FROM holders h WHERE h.session IS NOT NULL),
             gone AS MATERIALIZED (
                 SELECT h.session FROM holders h
                  WHERE h.session IS NOT NULL
                    AND (SELECT true FROM sessions s WHERE s.session_id = h.session AND s.closed_at IS NULL) IS NULL)
             SELECT t.run_id, t.step_id, t.attempt
               FROM gone g
              CROSS JOIN LATERAL (
                    SELECT o.run_id, o.step_id, o.attempt FROM step_tasks o WHERE o.session = g.session
                     ORDER BY o.run_id, o.step_id LIMIT $1) t
              ORDER BY t.run_id, t.step_id LIMIT $1",
        )
        .bind(limit_of(limit))
        .fetch_all(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        lost.into_iter().map(|(run, step, attempt)| key(run, step, attempt)).collect()
    }

    async fn due_steps(&self, limit: usize, claim: Duration) -> Result<DueSteps, Error> {
        type Late = (DateTime<Utc>, Uuid, i64, i64, Option<String>, String, String);
        let mut late: Vec<Late> = sqlx::query_as(DUE)
            .bind(limit_of(limit))
            .bind(micros(claim))
            .fetch_all(&self.upkeep)
            .in_time(self.answer_limit)
            .await
            .map_err(before)?;
        // What is returned is in the order in which the join met it.
        late.sort_unstable();
        let (now, next): (DateTime<Utc>, Option<DateTime<Utc>>) = sqlx::query_as(
            "SELECT clock_timestamp(), (SELECT due_at FROM step_tasks
               WHERE due_at > statement_timestamp() AND due_at < '9999-12-31T23:59:59.999999Z' ORDER BY due_at LIMIT 1)",
        )
        .fetch_one(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        let mut due = Vec::new();
        for (_, run, step, attempt, word, namespace, task_queue) in late {
            let queue = QueueKey { namespace, task_queue };
            if let Some(meaning) = word.and_then(|word| meaning(&word, queue)) {
                due.push((key(run, step, attempt)?, meaning));
            }
        }
        Ok(DueSteps { due, next: next.map(from_db), now: from_db(now) })
    }

    async fn set_queue_limits(&self, queue: &QueueKey, limits: QueueLimits) -> Result<(), Error> {
        let mut connection = self.pool.acquire().in_time(self.answer_limit).await.map_err(before)?;
        queues::set_limits(&mut connection, queue, limits).in_time(self.answer_limit).await.map_err(before)
    }

    async fn queue(&self, queue: &QueueKey) -> Result<QueueRecord, Error> {
        let found = queues::records(self, &queue.namespace, std::slice::from_ref(&queue.task_queue)).await?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    async fn queues(&self, namespace: &str, after: &str, limit: usize) -> Result<Vec<QueueRecord>, Error> {
        let names = queues::names(self, namespace, after, limit_of(limit)).await?;
        queues::records(self, namespace, &names).await
    }

    async fn list_steps(
        &self,
        filter: &StepFilter,
        after: Option<(RunId, OpId)>,
        limit: usize,
    ) -> Result<Vec<StepRecord>, Error> {
        queues::list(self, filter, after, limit_of(limit)).await
    }

    async fn deployment_secret(&self) -> Result<[u8; 32], Error> {
        let secret: Vec<u8> = sqlx::query_scalar("SELECT secret FROM deployment")
            .fetch_one(&self.pool)
            .in_time(self.answer_limit)
            .await
            .map_err(before)?;
        secret
            .try_into()
            .map_err(|_| Error::Corrupt("the deployment's secret is not 32 bytes long".to_owned()))
    }
}

impl PostgresStore {
    /// One statement on one claim; false when the claim is over.
    async fn on_claim(
        &self,
        statement: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
        key: ClaimKey,
    ) -> Result<bool, Error> {
        let done = statement
            .bind(key.run.uuid())
            .bind(i64::from(key.step.0))
            .bind(key.claim.uuid())
            .execute(&self.pool)
            .in_time(self.answer_limit)
            .await
            .map_err(before)?;
        Ok(done.rows_affected() > 0)
    }
}

fn key(run: Uuid, step: i64, attempt: i64) -> Result<AttemptKey, Error> {
    let (step, attempt) = (OpId(stored_number("number", step)?), stored_number("attempt", attempt)?);
    Ok(AttemptKey { run: RunId::from_uuid(run), step, attempt })
}

/// As [`InTime`](crate::connect::InTime), for several statements together.
async fn within<T>(
    limit: std::time::Duration,
    all: impl Future<Output = Result<T, Error>> + Send,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, all).await {
        Ok(done) => done,
        Err(_) => Err(Error::Unavailable(format!("no answer within {limit:?}"))),
    }
}
