-- Attempts of guarded steps of which nobody can say whether they had their effect.

CREATE TABLE doubts (
    run_id  uuid        NOT NULL,
    since   timestamptz NOT NULL,
    step_id bigint      NOT NULL,
    attempt bigint      NOT NULL,
    name    text        NOT NULL,
    policy  text        NOT NULL,
    PRIMARY KEY (run_id, step_id)
);
COMMENT ON TABLE doubts IS
    'Attempts of guarded steps whose worker was lost before their end was recorded. Can be computed from events.';
COMMENT ON COLUMN doubts.since IS 'When the worker was given up.';
COMMENT ON COLUMN doubts.policy IS
    'What the code of the step does about it: retry, verify, ask_human or fail. The code that meets the doubt decides.';

CREATE OR REPLACE VIEW steps AS
    SELECT run_id, step_id,
           max(step) AS name,
           max(attempt) AS attempts,
           CASE last_kind
               WHEN 'StepCompleted' THEN 'completed'
               WHEN 'StepStarted' THEN 'running'
               WHEN 'StepInDoubt' THEN 'in_doubt'
               WHEN 'StepResolved' THEN CASE last_attrs::json ->> 'resolution'
                   WHEN 'retry' THEN 'retrying' ELSE last_attrs::json ->> 'resolution' END
               ELSE CASE WHEN last_attrs::json ->> 'retry_at_us' IS NULL THEN 'failed' ELSE 'retrying' END
           END AS status,
           min(at) AS first_seen_at,
           max(at) AS last_seen_at,
           max(seq) AS last_seq
      FROM (
        SELECT run_id, seq, at, step_id, step, attempt,
               last_value(kind) OVER last AS last_kind,
               last_value(attrs) OVER last AS last_attrs
          FROM events
         WHERE kind IN ('StepStarted', 'StepCompleted', 'StepFailed', 'StepInDoubt', 'StepResolved')
        WINDOW last AS (PARTITION BY run_id, step_id ORDER BY seq
                        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
      ) e
     GROUP BY run_id, step_id, last_kind, last_attrs;
COMMENT ON VIEW steps IS
    'One row per step of each run: completed, failed, retrying, in_doubt or running (as far as recorded). Select by run_id.';

CREATE VIEW open_doubts AS
    SELECT d.run_id, r.namespace, r.workflow_id, r.workflow_type, d.step_id, d.name, d.attempt, d.policy, d.since
      FROM doubts d
      JOIN runs r ON r.run_id = d.run_id;
COMMENT ON VIEW open_doubts IS 'Steps in doubt, with the workflow each belongs to. `everstep step resolve` says what became of one.';
