//! The append, as SQL. One statement for many runs: each run's first event is inserted where its predecessor
//! stands and nothing stands in its place; everything else joins on the runs that won.

/// Events without anything beside them: the hot path. `$16` and `$17` are the least and greatest run id, so
/// that only their partitions are looked at.
pub(crate) const APPEND_EVENTS: &str = "WITH input AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::timestamptz[], $4::int[], $5::int[], $6::int[], $7::uuid[], $8::text[],
                     $9::text[], $10::text[], $11::text[], $12::text[], $13::bytea[], $14::bytea[], $15::bool[])
           AS t(run_id, seq, at, epoch, step_id, attempt, command_id, kind, step, actor, attrs, encoding, payload, payload_hash, first)
), first AS (
    INSERT INTO events (run_id, seq, at, epoch, step_id, attempt, command_id, kind, step, actor, attrs, encoding, payload, payload_hash)
    SELECT i.run_id, i.seq, i.at, i.epoch, i.step_id, i.attempt, i.command_id, i.kind, i.step, i.actor, i.attrs, i.encoding, i.payload, i.payload_hash
      FROM input i
     WHERE i.first AND EXISTS (SELECT 1 FROM events p
                            WHERE p.run_id = i.run_id AND p.seq = i.seq - 1 AND p.run_id BETWEEN $16 AND $17)
     ORDER BY i.run_id
    ON CONFLICT DO NOTHING
    RETURNING run_id
), rest AS (
    INSERT INTO events (run_id, seq, at, epoch, step_id, attempt, command_id, kind, step, actor, attrs, encoding, payload, payload_hash)
    SELECT i.run_id, i.seq, i.at, i.epoch, i.step_id, i.attempt, i.command_id, i.kind, i.step, i.actor, i.attrs, i.encoding, i.payload, i.payload_hash
      FROM input i JOIN first f USING (run_id)
     WHERE NOT i.first
     ORDER BY i.run_id, i.seq
)
SELECT clock_timestamp() AS now, ARRAY(SELECT run_id FROM first) AS winners";

/// Events with the claims, projections and large payloads that go with them.
pub(crate) const APPEND: &str = "WITH input AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::timestamptz[], $4::int[], $5::int[], $6::int[], $7::uuid[], $8::text[],
                     $9::text[], $10::text[], $11::text[], $12::text[], $13::bytea[], $14::bytea[], $15::bool[])
           AS t(run_id, seq, at, epoch, step_id, attempt, command_id, kind, step, actor, attrs, encoding, payload, payload_hash, first)
), claims AS (
    SELECT * FROM unnest($18::uuid[], $19::text[], $20::text[], $21::uuid[], $22::text[], $23::bytea[])
           AS c(run_id, namespace, workflow_id, expected, request_id, body_hash)
), claimed AS (
    INSERT INTO workflow_ids AS w (run_id, expected, namespace, workflow_id)
    SELECT c.run_id, c.expected, c.namespace, c.workflow_id
      FROM claims c
     WHERE NOT EXISTS (SELECT 1 FROM start_requests s
                        WHERE s.namespace = c.namespace AND s.workflow_id = c.workflow_id
                          AND s.request_id = c.request_id)
       AND NOT EXISTS (SELECT 1 FROM events e
                        WHERE e.run_id = c.run_id AND e.seq = 1 AND e.run_id BETWEEN $16 AND $17)
       AND (c.expected IS NULL
            OR EXISTS (SELECT 1 FROM workflow_ids x
                        WHERE x.namespace = c.namespace AND x.workflow_id = c.workflow_id
                          AND x.run_id = c.expected))
     ORDER BY c.namespace, c.workflow_id
    ON CONFLICT (namespace, workflow_id)
    DO UPDATE SET run_id = excluded.run_id, expected = excluded.expected WHERE w.run_id = excluded.expected
    RETURNING w.run_id
), first AS (
    INSERT INTO events (run_id, seq, at, epoch, step_id, attempt, command_id, kind, step, actor, attrs, encoding, payload, payload_hash)
    SELECT i.run_id, i.seq, i.at, i.epoch, i.step_id, i.attempt, i.command_id, i.kind, i.step, i.actor, i.attrs, i.encoding, i.payload, i.payload_hash
      FROM input i
     WHERE i.first AND CASE WHEN i.seq = 1 THEN EXISTS (SELECT 1 FROM claimed c WHERE c.run_id = i.run_id)
                ELSE EXISTS (SELECT 1 FROM events p
                            WHERE p.run_id = i.run_id AND p.seq = i.seq - 1 AND p.run_id BETWEEN $16 AND $17) END
     ORDER BY i.run_id
    ON CONFLICT DO NOTHING
    RETURNING run_id
), rest AS (
    INSERT INTO events (run_id, seq, at, epoch, step_id, attempt, command_id, kind, step, actor, attrs, encoding, payload, payload_hash)
    SELECT i.run_id, i.seq, i.at, i.epoch, i.step_id, i.attempt, i.command_id, i.kind, i.step, i.actor, i.attrs, i.encoding, i.payload, i.payload_hash
      FROM input i JOIN first f USING (run_id)
     WHERE NOT i.first
     ORDER BY i.run_id, i.seq
), requested AS (
    INSERT INTO start_requests (run_id, namespace, workflow_id, request_id, body_hash)
    SELECT c.run_id, c.namespace, c.workflow_id, c.request_id, c.body_hash FROM claims c JOIN first f USING (run_id)
), stored AS (
    INSERT INTO payloads (run_id, hash, data)
    SELECT p.run_id, p.hash, p.data
      FROM unnest($24::uuid[], $25::bytea[], $26::bytea[]) AS p(run_id, hash, data) JOIN first f USING (run_id)
    ON CONFLICT DO NOTHING
), shown AS (
    INSERT INTO runs AS r (run_id, namespace, workflow_id, workflow_type, task_queue, status, owner, epoch,
                           build_id, blocked, cancel_requested, started_at, closed_at, last_seq)
    SELECT n.* FROM unnest($27::uuid[], $28::text[], $29::text[], $30::text[], $31::text[], $32::text[],
                           $33::uuid[], $34::int[], $35::text[], $36::text[], $37::bool[], $38::timestamptz[],
                           $39::timestamptz[], $40::bigint[])
           AS n(run_id, namespace, workflow_id, workflow_type, task_queue, status, owner, epoch, build_id, blocked,
                cancel_requested, started_at, closed_at, last_seq)
      JOIN first f ON f.run_id = n.run_id
     ORDER BY n.run_id
    ON CONFLICT (run_id) DO UPDATE
       SET namespace = excluded.namespace, workflow_id = excluded.workflow_id,
           workflow_type = excluded.workflow_type, task_queue = excluded.task_queue,
           started_at = excluded.started_at, status = excluded.status, owner = excluded.owner, epoch = excluded.epoch, build_id = excluded.build_id,
           blocked = excluded.blocked, cancel_requested = excluded.cancel_requested,
           closed_at = excluded.closed_at, last_seq = excluded.last_seq
     WHERE r.last_seq < excluded.last_seq
), timers_set AS (
    INSERT INTO timers (run_id, kind, id, fire_at)
    SELECT s.run_id, s.kind, s.id, s.fire_at
      FROM unnest($41::uuid[], $42::text[], $43::bigint[], $44::timestamptz[]) AS s(run_id, kind, id, fire_at)
      JOIN first f USING (run_id)
     ORDER BY s.run_id, s.kind, s.id
    ON CONFLICT (run_id, kind, id) DO UPDATE SET fire_at = excluded.fire_at, claimed_until = NULL
), timers_deleted AS (
    DELETE FROM timers t
     USING unnest($45::uuid[], $46::text[], $47::bigint[]) AS d(run_id, kind, id), first f
     WHERE t.run_id = d.run_id AND (d.kind IS NULL OR (t.kind = d.kind AND t.id = d.id)) AND f.run_id = d.run_id
       AND NOT EXISTS (SELECT 1 FROM unnest($41::uuid[], $42::text[], $43::bigint[]) AS s(run_id, kind, id)
                        WHERE s.run_id = t.run_id AND s.kind = t.kind AND s.id = t.id)
), tasks_set AS (
    INSERT INTO tasks (run_id, namespace, task_queue, claims, next_claim_at)
    SELECT s.run_id, s.namespace, s.task_queue, 0, clock_timestamp() + interval '1 second'
      FROM unnest($48::uuid[], $49::text[], $50::text[]) AS s(run_id, namespace, task_queue) JOIN first f USING (run_id)
     ORDER BY s.run_id
    ON CONFLICT (run_id) DO UPDATE
       SET namespace = excluded.namespace, task_queue = excluded.task_queue, claims = 0,
           next_claim_at = excluded.next_claim_at
), tasks_deleted AS (
    DELETE FROM tasks t USING unnest($51::uuid[]) AS d(run_id), first f
     WHERE t.run_id = d.run_id AND f.run_id = d.run_id
), wakes_set AS (
    INSERT INTO wakes (run_id, seq, created_at)
    SELECT s.run_id, s.seq, clock_timestamp()
      FROM unnest($52::uuid[], $53::bigint[]) AS s(run_id, seq) JOIN first f USING (run_id)
    ON CONFLICT DO NOTHING
), wakes_deleted AS (
    DELETE FROM wakes w USING unnest($54::uuid[], $55::bigint[]) AS d(run_id, seq), first f
     WHERE w.run_id = d.run_id AND w.seq <= d.seq AND f.run_id = d.run_id
       AND NOT EXISTS (SELECT 1 FROM unnest($52::uuid[], $53::bigint[]) AS s(run_id, seq)
                        WHERE s.run_id = w.run_id AND s.seq = w.seq)
)
SELECT clock_timestamp() AS now, ARRAY(SELECT run_id FROM first) AS winners";
