//! The parts of an append that are about other runs. A row of the outbox that is there keeps when it is looked at.

pub(super) const OUTBOX_SET: &str = ", outbox_set AS (
    INSERT INTO outbox (run_id, seq, next_at)
    SELECT s.run_id, s.seq, clock_timestamp() + interval '1 second'
      FROM unnest(?::uuid[], ?::bigint[]) AS s(run_id, seq)
     WHERE s.run_id = {won}
    ON CONFLICT DO NOTHING
)";

pub(super) const OUTBOX_DELETED: &str = ", outbox_deleted AS (
    DELETE FROM outbox o USING unnest(?::uuid[], ?::bigint[]) AS d(run_id, seq)
     WHERE o.run_id = d.run_id AND o.seq = d.seq AND d.run_id = {won}
)";

pub(super) const LINKS: &str = ", linked AS (
    INSERT INTO run_links (run_id, parent_run_id, parent_op, previous_run_id, first_run_id, successor_run_id, attempt)
    SELECT s.*
      FROM unnest(?::uuid[], ?::uuid[], ?::bigint[], ?::uuid[], ?::uuid[], ?::uuid[], ?::bigint[])
           AS s(run_id, parent_run_id, parent_op, previous_run_id, first_run_id, successor_run_id, attempt)
     WHERE s.run_id = {won}
    ON CONFLICT (run_id) DO UPDATE
       SET parent_run_id = excluded.parent_run_id, parent_op = excluded.parent_op,
           previous_run_id = excluded.previous_run_id, first_run_id = excluded.first_run_id,
           successor_run_id = excluded.successor_run_id, attempt = excluded.attempt
)";
