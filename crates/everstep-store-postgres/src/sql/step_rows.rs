//! The parts of an append that are about queued steps. An attempt whose number and instant stay keeps who has it.

pub(super) const SET: &str = ", steps_set AS (
    INSERT INTO step_tasks AS t (run_id, step_id, attempt, name, namespace, task_queue, priority, scheduled_seq,
                                 visible_at, start_by, close_by, start_to_close_us, heartbeat_us, canceled, due_at)
    SELECT s.*, least(s.close_by, s.start_by, CASE
               WHEN s.visible_at >= '9999-12-31T23:59:59.999999Z' THEN s.visible_at
               WHEN s.canceled THEN clock_timestamp()
               WHEN s.visible_at > clock_timestamp() THEN s.visible_at
               ELSE clock_timestamp() + interval '1 second' END)
      FROM unnest(?::uuid[], ?::bigint[], ?::bigint[], ?::text[], ?::text[], ?::text[], ?::smallint[], ?::bigint[],
                  ?::timestamptz[], ?::timestamptz[], ?::timestamptz[], ?::bigint[], ?::bigint[], ?::bool[])
           AS s(run_id, step_id, attempt, name, namespace, task_queue, priority, scheduled_seq, visible_at, start_by,
                close_by, start_to_close_us, heartbeat_us, canceled)
     WHERE s.run_id = {won}
    ON CONFLICT (run_id, step_id) DO UPDATE
       SET attempt = excluded.attempt, name = excluded.name, namespace = excluded.namespace,
           task_queue = excluded.task_queue, priority = excluded.priority, scheduled_seq = excluded.scheduled_seq,
           visible_at = excluded.visible_at, start_by = excluded.start_by, close_by = excluded.close_by,
           start_to_close_us = excluded.start_to_close_us, heartbeat_us = excluded.heartbeat_us,
           canceled = excluded.canceled,
           due_at = CASE WHEN t.claim_id IS NOT NULL AND t.attempt = excluded.attempt
                              AND t.visible_at = excluded.visible_at
                         THEN t.due_at ELSE excluded.due_at END,
           claim_id = CASE WHEN t.attempt = excluded.attempt AND t.visible_at = excluded.visible_at THEN t.claim_id END,
           session = CASE WHEN t.attempt = excluded.attempt AND t.visible_at = excluded.visible_at THEN t.session END,
           claimed_at = CASE WHEN t.attempt = excluded.attempt AND t.visible_at = excluded.visible_at
                             THEN t.claimed_at END,
           beat_at = CASE WHEN t.attempt = excluded.attempt AND t.visible_at = excluded.visible_at THEN t.beat_at END
)";

/// The last two are the steps that the same statement sets: those stay.
pub(super) const DELETED: &str = ", steps_deleted AS (
    DELETE FROM step_tasks t
     USING unnest(?::uuid[], ?::bigint[]) AS d(run_id, step_id)
     WHERE t.run_id = d.run_id AND (d.step_id IS NULL OR t.step_id = d.step_id) AND d.run_id = {won}
       AND (SELECT true FROM unnest(?::uuid[], ?::bigint[]) AS s(run_id, step_id)
             WHERE s.run_id = t.run_id AND s.step_id = t.step_id) IS NULL
)";
