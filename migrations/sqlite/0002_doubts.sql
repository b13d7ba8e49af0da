-- Attempts of guarded steps of which nobody can say whether they had their effect.

-- Attempts whose worker was lost before their end was recorded. Can be computed from events.
CREATE TABLE doubts (
    run_id  BLOB    NOT NULL,
    step_id INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    name    TEXT    NOT NULL,
    policy  TEXT    NOT NULL, -- what the code of the step does about it: retry, verify, ask_human or fail
    since   INTEGER NOT NULL, -- when the worker was given up
    PRIMARY KEY (run_id, step_id)
) STRICT, WITHOUT ROWID;

-- One row per step of each run: completed, failed, retrying, in_doubt or running (as far as recorded).
DROP VIEW steps;
CREATE VIEW steps AS
    SELECT substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-' || substr(h, 13, 4) || '-' || substr(h, 17, 4)
               || '-' || substr(h, 21) AS run_id,
           step_id, step AS name, attempt AS attempts,
           CASE kind
               WHEN 'StepCompleted' THEN 'completed'
               WHEN 'StepStarted' THEN 'running'
               WHEN 'StepInDoubt' THEN 'in_doubt'
               WHEN 'StepResolved' THEN CASE attrs ->> 'resolution'
                   WHEN 'retry' THEN 'retrying' ELSE attrs ->> 'resolution' END
               ELSE CASE WHEN attrs ->> 'retry_at_us' IS NULL THEN 'failed' ELSE 'retrying' END
           END AS status,
           strftime('%Y-%m-%dT%H:%M:%S', at / 1000000, 'unixepoch') || printf('.%06dZ', at % 1000000)
               AS last_seen_at,
           last_seq
      FROM (SELECT lower(hex(run_id)) AS h, step_id, step, attempt, kind, attrs, at, max(seq) AS last_seq
              FROM events
             WHERE kind IN ('StepStarted', 'StepCompleted', 'StepFailed', 'StepInDoubt', 'StepResolved')
             GROUP BY run_id, step_id);

-- Steps in doubt, with the workflow each belongs to. `everstep step resolve` says what became of one.
CREATE VIEW open_doubts AS
    SELECT substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-' || substr(h, 13, 4) || '-' || substr(h, 17, 4)
               || '-' || substr(h, 21) AS run_id,
           namespace, workflow_id, workflow_type, step_id, name, attempt, policy,
           strftime('%Y-%m-%dT%H:%M:%S', since / 1000000, 'unixepoch') || printf('.%06dZ', since % 1000000)
               AS since
      FROM (SELECT lower(hex(d.run_id)) AS h, r.namespace, r.workflow_id, r.workflow_type, d.*
              FROM doubts d
              JOIN runs r ON r.run_id = d.run_id);
