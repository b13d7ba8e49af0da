//! The append, as SQL: one statement for many runs, made of the parts that a batch needs.
//!
//! Each run's first event is inserted where its predecessor stands and nothing stands in its place; everything
//! else is for the runs that won. Those are compared as an array, and predecessors are looked up by scalar
//! subqueries, which the planner leaves as they are: as joins both become nested loops over whole lists, whose
//! cost grows with the square of the batch. Rows are inserted in the order of the arrays, which are sorted by
//! run, so that two nodes meet in the same order. `{events}` is the table or its one partition that matters;
//! each `?` is the next parameter.

pub(crate) const COLUMNS: &str = "run_id, seq, at, epoch, step_id, attempt, command_id, kind, step, actor, attrs, \
                                  encoding, payload, payload_hash";

/// One event.
pub(crate) const INPUT_ONE: &str = "WITH input AS (
    SELECT ?::uuid AS run_id, ?::bigint AS seq, ?::timestamptz AS at, ?::int AS epoch, ?::int AS step_id,
           ?::int AS attempt, ?::uuid AS command_id, ?::text AS kind, ?::text AS step, ?::text AS actor,
           ?::text AS attrs, ?::text AS encoding, ?::bytea AS payload, ?::bytea AS payload_hash
)";

/// One event of each run.
pub(crate) const INPUT_FIRST: &str = "WITH input AS (
    SELECT * FROM unnest(?::uuid[], ?::bigint[], ?::timestamptz[], ?::int[], ?::int[], ?::int[], ?::uuid[], ?::text[],
                         ?::text[], ?::text[], ?::text[], ?::text[], ?::bytea[], ?::bytea[])
           AS t(run_id, seq, at, epoch, step_id, attempt, command_id, kind, step, actor, attrs, encoding, payload,
                payload_hash)
)";

/// Events of which some are not the first of their run.
pub(crate) const INPUT: &str = "WITH input AS (
    SELECT * FROM unnest(?::uuid[], ?::bigint[], ?::timestamptz[], ?::int[], ?::int[], ?::int[], ?::uuid[], ?::text[],
                         ?::text[], ?::text[], ?::text[], ?::text[], ?::bytea[], ?::bytea[], ?::bool[])
           AS t(run_id, seq, at, epoch, step_id, attempt, command_id, kind, step, actor, attrs, encoding, payload,
                payload_hash, first)
)";

/// The claims of workflow ids.
pub(crate) const CLAIMED: &str = ", claims AS (
    SELECT * FROM unnest(?::uuid[], ?::text[], ?::text[], ?::uuid[], ?::text[], ?::bytea[])
           AS c(run_id, namespace, workflow_id, expected, request_id, body_hash)
), claimed AS (
    INSERT INTO workflow_ids AS w (run_id, expected, namespace, workflow_id)
    SELECT c.run_id, c.expected, c.namespace, c.workflow_id
      FROM claims c
     WHERE (SELECT true FROM start_requests s
             WHERE s.namespace = c.namespace AND s.workflow_id = c.workflow_id AND s.request_id = c.request_id) IS NULL
       AND (SELECT true FROM {events} e WHERE e.run_id = c.run_id AND e.seq = 1) IS NULL
       AND (c.expected IS NULL
            OR (SELECT true FROM workflow_ids x
                 WHERE x.namespace = c.namespace AND x.workflow_id = c.workflow_id AND x.run_id = c.expected))
     ORDER BY c.namespace, c.workflow_id
    ON CONFLICT (namespace, workflow_id)
    DO UPDATE SET run_id = excluded.run_id, expected = excluded.expected WHERE w.run_id = excluded.expected
    RETURNING w.run_id
)";

const PREDECESSOR: &str = "(SELECT true FROM {events} p WHERE p.run_id = i.run_id AND p.seq = i.seq - 1)";

/// The events; `later` when some are not the first of their run, `claims` when some are the first of all.
pub(crate) fn inserted(later: bool, claims: bool) -> String {
    let first = if later { "i.first AND " } else { "" };
    let admitted = if claims {
        format!(
            "CASE WHEN i.seq = 1 THEN i.run_id = ANY (ARRAY(SELECT run_id FROM claimed)) ELSE {PREDECESSOR} END"
        )
    } else {
        PREDECESSOR.to_owned()
    };
    let rest = if later {
        format!(
            ", rest AS (
    INSERT INTO {{events}} ({COLUMNS})
    SELECT {COLUMNS} FROM input i WHERE NOT i.first AND i.run_id = {WON}
)"
        )
    } else {
        String::new()
    };
    format!(
        ", first AS (
    INSERT INTO {{events}} ({COLUMNS})
    SELECT {COLUMNS} FROM input i WHERE {first}{admitted}
    ON CONFLICT DO NOTHING
    RETURNING run_id
){rest}"
    )
}

/// The runs whose first event was inserted.
const WON: &str = "ANY (ARRAY(SELECT run_id FROM first))";

/// The parts beside the events, each for the runs that won: `{won}` is those.
pub(crate) mod beside {
    pub(crate) const REQUESTS: &str = ", requested AS (
    INSERT INTO start_requests (run_id, namespace, workflow_id, request_id, body_hash)
    SELECT c.run_id, c.namespace, c.workflow_id, c.request_id, c.body_hash FROM claims c WHERE c.run_id = {won}
)";

    pub(crate) const PAYLOADS: &str = ", stored AS (
    INSERT INTO payloads (run_id, hash, data)
    SELECT p.run_id, p.hash, p.data FROM unnest(?::uuid[], ?::bytea[], ?::bytea[]) AS p(run_id, hash, data)
     WHERE p.run_id = {won}
    ON CONFLICT DO NOTHING
)";

    pub(crate) const RUNS: &str = ", shown AS (
    INSERT INTO runs AS r (run_id, namespace, workflow_id, workflow_type, task_queue, status, owner, epoch,
                           build_id, blocked, cancel_requested, started_at, closed_at, last_seq)
    SELECT n.* FROM unnest(?::uuid[], ?::text[], ?::text[], ?::text[], ?::text[], ?::text[], ?::uuid[], ?::int[],
                           ?::text[], ?::text[], ?::bool[], ?::timestamptz[], ?::timestamptz[], ?::bigint[])
           AS n(run_id, namespace, workflow_id, workflow_type, task_queue, status, owner, epoch, build_id, blocked,
                cancel_requested, started_at, closed_at, last_seq)
     WHERE n.run_id = {won}
    ON CONFLICT (run_id) DO UPDATE
       SET namespace = excluded.namespace, workflow_id = excluded.workflow_id,
           workflow_type = excluded.workflow_type, task_queue = excluded.task_queue,
           started_at = excluded.started_at, status = excluded.status, owner = excluded.owner,
           epoch = excluded.epoch, build_id = excluded.build_id, blocked = excluded.blocked,
           cancel_requested = excluded.cancel_requested, closed_at = excluded.closed_at,
           last_seq = excluded.last_seq
     WHERE r.last_seq < excluded.last_seq
)";

    pub(crate) const TIMERS_SET: &str = ", timers_set AS (
    INSERT INTO timers (run_id, kind, id, fire_at)
    SELECT s.run_id, s.kind, s.id, s.fire_at
      FROM unnest(?::uuid[], ?::text[], ?::bigint[], ?::timestamptz[]) AS s(run_id, kind, id, fire_at)
     WHERE s.run_id = {won}
    ON CONFLICT (run_id, kind, id) DO UPDATE SET fire_at = excluded.fire_at, claimed_until = NULL
)";

    /// The last three are the timers that the same statement sets: those stay.
    pub(crate) const TIMERS_DELETED: &str = ", timers_deleted AS (
    DELETE FROM timers t
     USING unnest(?::uuid[], ?::text[], ?::bigint[]) AS d(run_id, kind, id)
     WHERE t.run_id = d.run_id AND (d.kind IS NULL OR (t.kind = d.kind AND t.id = d.id)) AND d.run_id = {won}
       AND (SELECT true FROM unnest(?::uuid[], ?::text[], ?::bigint[]) AS s(run_id, kind, id)
             WHERE s.run_id = t.run_id AND s.kind = t.kind AND s.id = t.id) IS NULL
)";

    pub(crate) const TASKS_SET: &str = ", tasks_set AS (
    INSERT INTO tasks (run_id, namespace, task_queue, claims, next_claim_at)
    SELECT s.run_id, s.namespace, s.task_queue, 0, clock_timestamp() + interval '1 second'
      FROM unnest(?::uuid[], ?::text[], ?::text[]) AS s(run_id, namespace, task_queue)
     WHERE s.run_id = {won}
    ON CONFLICT (run_id) DO UPDATE
       SET namespace = excluded.namespace, task_queue = excluded.task_queue, claims = 0,
           next_claim_at = excluded.next_claim_at
)";

    pub(crate) const TASKS_DELETED: &str = ", tasks_deleted AS (
    DELETE FROM tasks t USING unnest(?::uuid[]) AS d(run_id) WHERE t.run_id = d.run_id AND d.run_id = {won}
)";

    pub(crate) const WAKES_SET: &str = ", wakes_set AS (
    INSERT INTO wakes (run_id, seq, created_at)
    SELECT s.run_id, s.seq, clock_timestamp()
      FROM unnest(?::uuid[], ?::bigint[]) AS s(run_id, seq)
     WHERE s.run_id = {won}
    ON CONFLICT DO NOTHING
)";

    /// The last two are the wakes that the same statement sets: those stay.
    pub(crate) const WAKES_DELETED: &str = ", wakes_deleted AS (
    DELETE FROM wakes w USING unnest(?::uuid[], ?::bigint[]) AS d(run_id, seq)
     WHERE w.run_id = d.run_id AND w.seq <= d.seq AND d.run_id = {won}
       AND (SELECT true FROM unnest(?::uuid[], ?::bigint[]) AS s(run_id, seq)
             WHERE s.run_id = w.run_id AND s.seq = w.seq) IS NULL
)";
}

/// The answer: database time and the winners.
pub(crate) const ANSWER: &str =
    "\nSELECT clock_timestamp() AS now, ARRAY(SELECT run_id FROM first) AS winners";

/// Fills in the tables, and numbers the parameters.
pub(crate) fn finish(parts: &str, events: &str) -> String {
    let (mut text, mut number) = (String::with_capacity(parts.len() + 256), 0);
    let mut rest = parts;
    while let Some(at) = rest.find(['?', '{']) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{events}") {
            text.push_str(events);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("{won}") {
            text.push_str(WON);
            rest = after;
        } else {
            number += 1;
            text.push_str(&format!("${number}"));
            rest = &rest[1..];
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_in_order() {
        let parts = format!("{INPUT_ONE}{}{ANSWER}", inserted(false, false));
        let text = finish(&parts, "events_20261121");
        assert!(
            text.contains("$1::uuid AS run_id, $2::bigint AS seq") && text.contains("$14::bytea"),
            "{text}"
        );
        assert!(text.contains("INSERT INTO events_20261121 (run_id"), "{text}");
        assert!(!text.contains(['?', '{', '}']), "{text}");
    }
}
