//! What the sweep looks for. Claims are taken row by row, so that two nodes share the work. What is due is
//! asked by `statement_timestamp()`: no index answers a comparison with the volatile `clock_timestamp()`.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use everstep_core::{Duration, NodeId, QueueKey, RunId, Seq, SessionId, TaskRow, TimerKey, TimerKind};
use everstep_store::{ClaimedTimers, Error, RunWant, Sweep};
use sqlx::Row;
use uuid::Uuid;

use crate::PostgresStore;
use crate::builds::wants_json;
use crate::connect::InTime as _;
use crate::error::before;
use crate::rows::from_db;
use crate::sessions::micros;

fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn seq(n: i64) -> Seq {
    u64::try_from(n).unwrap_or(0)
}

#[async_trait]
impl Sweep for PostgresStore {
    async fn claim_timers(&self, limit: usize, claim: Duration) -> Result<ClaimedTimers, Error> {
        let mut due: Vec<(DateTime<Utc>, Uuid, String, i64)> = sqlx::query_as(
            "WITH due AS (
                 SELECT run_id, kind, id FROM timers
                  WHERE fire_at <= statement_timestamp()
                    AND (claimed_until IS NULL OR claimed_until < statement_timestamp())
                  ORDER BY fire_at LIMIT $1 FOR UPDATE SKIP LOCKED)
             UPDATE timers t SET claimed_until = clock_timestamp() + $2 * interval '1 microsecond'
               FROM due d WHERE t.run_id = d.run_id AND t.kind = d.kind AND t.id = d.id
             RETURNING t.fire_at, t.run_id, t.kind, t.id",
        )
        .bind(limit_of(limit))
        .bind(micros(claim))
        .fetch_all(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        // What is returned is in the order in which the join met it.
        due.sort_unstable();
        let row = sqlx::query(
            "SELECT clock_timestamp(), (SELECT fire_at FROM timers
               WHERE fire_at > statement_timestamp()
                 AND (claimed_until IS NULL OR claimed_until < statement_timestamp())
               ORDER BY fire_at LIMIT 1)",
        )
        .fetch_one(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        let (now, next): (DateTime<Utc>, Option<DateTime<Utc>>) =
            (row.try_get(0).map_err(before)?, row.try_get(1).map_err(before)?);
        let now = from_db(now);
        let (due, late) = due
            .into_iter()
            .filter_map(|(fire_at, run, kind, id)| {
                let key = TimerKey { kind: TimerKind::parse(&kind)?, id: u32::try_from(id).ok()? };
                Some(((RunId::from_uuid(run), key), now.since(from_db(fire_at))))
            })
            .unzip();
        Ok(ClaimedTimers { due, late, next: next.map(from_db), now })
    }

    async fn renew_timers(
        &self,
        timers: &[(RunId, TimerKey)],
        claim: Duration,
    ) -> Result<Vec<(RunId, TimerKey)>, Error> {
        let runs: Vec<Uuid> = timers.iter().map(|(run, _)| run.uuid()).collect();
        let kinds: Vec<&str> = timers.iter().map(|(_, key)| key.kind.as_str()).collect();
        let ids: Vec<i64> = timers.iter().map(|(_, key)| key.id.into()).collect();
        // A row that is locked is being written by an append, which must not wait for this.
        let renewed: Vec<(Uuid, String, i64)> = sqlx::query_as(
            "WITH held AS (
                 SELECT t.run_id, t.kind, t.id
                   FROM unnest($1::uuid[], $2::text[], $3::bigint[]) AS k(run_id, kind, id)
                   JOIN timers t ON t.run_id = k.run_id AND t.kind = k.kind AND t.id = k.id
                  WHERE t.claimed_until IS NOT NULL
                    FOR UPDATE OF t SKIP LOCKED)
             UPDATE timers t SET claimed_until = clock_timestamp() + $4 * interval '1 microsecond'
               FROM held h WHERE t.run_id = h.run_id AND t.kind = h.kind AND t.id = h.id
             RETURNING t.run_id, t.kind, t.id",
        )
        .bind(runs)
        .bind(kinds)
        .bind(ids)
        .bind(micros(claim))
        .fetch_all(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        let key =
            |kind: &str, id| Some(TimerKey { kind: TimerKind::parse(kind)?, id: u32::try_from(id).ok()? });
        let timers = renewed.into_iter();
        Ok(timers.filter_map(|(run, kind, id)| Some((RunId::from_uuid(run), key(&kind, id)?))).collect())
    }

    async fn claim_tasks(
        &self,
        wants: Option<&[RunWant]>,
        limit: usize,
    ) -> Result<Vec<(RunId, TaskRow)>, Error> {
        // A want that is impatient costs a look at every task that waits, once for each worker that comes.
        let impatient = wants.is_some_and(|wants| wants.iter().any(|want| want.impatient));
        let tasks: Vec<(Uuid, String, String, String, String)> = sqlx::query_as(
            "WITH due AS (
                 SELECT run_id FROM tasks t
                  WHERE (next_claim_at <= statement_timestamp() OR ($4 AND claims > 0))
                    AND ($1 OR EXISTS (
                        SELECT FROM jsonb_to_recordset($2)
                                 AS w(namespace text, task_queue text, types jsonb, builds jsonb, impatient boolean)
                         WHERE w.namespace = t.namespace AND w.task_queue = t.task_queue
                           AND (w.types IS NULL OR t.workflow_type = '' OR w.types ? t.workflow_type)
                           AND (t.build_id = '' OR w.builds ? t.build_id)
                           AND (w.impatient OR t.next_claim_at <= statement_timestamp())))
                  ORDER BY next_claim_at LIMIT $3 FOR UPDATE SKIP LOCKED)
             UPDATE tasks t
                SET claims = t.claims + 1,
                    next_claim_at = clock_timestamp() + least(2 ^ least(t.claims + 1, 6), 60) * interval '1 second'
              WHERE t.run_id = ANY (ARRAY(SELECT run_id FROM due))
             RETURNING t.run_id, t.namespace, t.task_queue, t.workflow_type, t.build_id",
        )
        .bind(wants.is_none())
        .bind(wants_json(wants.unwrap_or_default()))
        .bind(limit_of(limit))
        .bind(impatient)
        .fetch_all(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        let task = |(run, namespace, task_queue, workflow_type, build_id)| {
            let queue = QueueKey { namespace, task_queue };
            (RunId::from_uuid(run), TaskRow { queue, workflow_type, build_id })
        };
        Ok(tasks.into_iter().map(task).collect())
    }

    async fn lost_runs(&self, limit: usize) -> Result<Vec<(RunId, SessionId)>, Error> {
        // From one owner to the next in the index: there are few, however many runs there are. The runs of one are
        // asked for by themselves, because a join is planned as a walk over all runs that there are.
        let lost: Vec<(Uuid, Uuid)> = sqlx::query_as(
            "WITH RECURSIVE owners(owner) AS (
                 SELECT (SELECT owner FROM runs WHERE owner IS NOT NULL ORDER BY owner LIMIT 1)
                 UNION ALL
                 SELECT (SELECT r.owner FROM runs r WHERE r.owner > o.owner ORDER BY r.owner LIMIT 1)
                   FROM owners o WHERE o.owner IS NOT NULL),
             gone AS MATERIALIZED (
                 SELECT o.owner FROM owners o
                  WHERE o.owner IS NOT NULL
                    AND (SELECT true FROM sessions s WHERE s.session_id = o.owner AND s.closed_at IS NULL) IS NULL)
             SELECT r.run_id, g.owner
               FROM gone g
              CROSS JOIN LATERAL (
                    SELECT o.run_id FROM runs o
                     WHERE o.owner = g.owner AND o.closed_at IS NULL ORDER BY o.run_id LIMIT $1) r
              ORDER BY r.run_id LIMIT $1",
        )
        .bind(limit_of(limit))
        .fetch_all(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(lost
            .into_iter()
            .map(|(run, owner)| (RunId::from_uuid(run), SessionId::from_uuid(owner)))
            .collect())
    }

    async fn stale_wakes(
        &self,
        node: NodeId,
        age: Duration,
        limit: usize,
    ) -> Result<Vec<(RunId, Seq)>, Error> {
        let wakes: Vec<(Uuid, i64)> = sqlx::query_as(
            "SELECT w.run_id, max(w.seq) FROM wakes w
               JOIN runs r ON r.run_id = w.run_id
               JOIN sessions s ON s.session_id = r.owner
              WHERE s.node_id = $1 AND s.closed_at IS NULL
                AND w.created_at < statement_timestamp() - $2 * interval '1 microsecond'
              GROUP BY w.run_id ORDER BY w.run_id LIMIT $3",
        )
        .bind(node.uuid())
        .bind(micros(age))
        .bind(limit_of(limit))
        .fetch_all(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(wakes.into_iter().map(|(run, s)| (RunId::from_uuid(run), seq(s))).collect())
    }

    async fn delete_wakes(&self, seen: &[(RunId, Seq)]) -> Result<(), Error> {
        let (runs, seqs): (Vec<Uuid>, Vec<i64>) =
            seen.iter().map(|(run, s)| (run.uuid(), i64::try_from(*s).unwrap_or(i64::MAX))).unzip();
        sqlx::query(
            "DELETE FROM wakes w USING unnest($1::uuid[], $2::bigint[]) AS d(run_id, seq)
              WHERE w.run_id = d.run_id AND w.seq <= d.seq",
        )
        .bind(runs)
        .bind(seqs)
        .execute(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(())
    }

    async fn blocked_runs(
        &self,
        queue: &QueueKey,
        build_id: &str,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunId>, Error> {
        let runs: Vec<Uuid> = sqlx::query_scalar(
            "SELECT run_id FROM runs
              WHERE status = 'blocked' AND namespace = $1 AND task_queue = $2 AND build_id <> $3
                AND ($4::uuid IS NULL OR run_id > $4)
              ORDER BY run_id LIMIT $5",
        )
        .bind(&queue.namespace)
        .bind(&queue.task_queue)
        .bind(build_id)
        .bind(after.map(|r| r.uuid()))
        .bind(limit_of(limit))
        .fetch_all(&self.upkeep)
        .in_time(self.answer_limit)
        .await
        .map_err(before)?;
        Ok(runs.into_iter().map(RunId::from_uuid).collect())
    }
}
