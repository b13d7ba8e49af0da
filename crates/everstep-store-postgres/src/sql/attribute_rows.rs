//! The parts of an append that are about search attributes: all of a run's are replaced.

pub(super) const SET: &str = ", attributes_set AS (
    INSERT INTO run_attributes (run_id, name, n, namespace, type, text_value, int_value, number_value, time_value)
    SELECT s.*
      FROM unnest(?::uuid[], ?::text[], ?::int[], ?::text[], ?::text[], ?::text[], ?::bigint[], ?::float8[],
                  ?::timestamptz[])
           AS s(run_id, name, n, namespace, type, text_value, int_value, number_value, time_value)
     WHERE s.run_id = {won}
    ON CONFLICT (run_id, name, n) DO UPDATE
       SET namespace = excluded.namespace, type = excluded.type, text_value = excluded.text_value,
           int_value = excluded.int_value, number_value = excluded.number_value, time_value = excluded.time_value
)";

/// The last three are the rows that the same statement sets: those stay.
pub(super) const DELETED: &str = ", attributes_deleted AS (
    DELETE FROM run_attributes a
     USING unnest(?::uuid[]) AS d(run_id)
     WHERE a.run_id = d.run_id AND d.run_id = {won}
       AND (SELECT true FROM unnest(?::uuid[], ?::text[], ?::int[]) AS s(run_id, name, n)
             WHERE s.run_id = a.run_id AND s.name = a.name AND s.n = a.n) IS NULL
)";
