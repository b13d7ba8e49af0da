-- Steps that the workers of a task queue run, and how fast they may.

-- Queued steps that have not ended. Can be computed from events, but for who has an attempt (from claim_id on).
CREATE TABLE step_tasks (
    run_id            BLOB    NOT NULL,
    step_id           INTEGER NOT NULL,
    attempt           INTEGER NOT NULL, -- the attempt that waits or runs, from 1
    name              TEXT    NOT NULL,
    namespace         TEXT    NOT NULL,
    task_queue        TEXT    NOT NULL,
    priority          INTEGER NOT NULL, -- 1 is served first, 5 last
    scheduled_seq     INTEGER NOT NULL, -- the event that scheduled the step: it holds the input
    visible_at        INTEGER NOT NULL, -- from when on a worker may take the attempt; the end of 9999 while in doubt
    start_by          INTEGER,          -- until when a worker has to take the attempt
    close_by          INTEGER,          -- until when the step has to end
    start_to_close_us INTEGER,          -- how long an attempt may run, in microseconds
    heartbeat_us      INTEGER,          -- how long a running attempt may be silent, in microseconds
    canceled          INTEGER NOT NULL, -- 1 when the workflow does not want the step any more
    due_at            INTEGER NOT NULL, -- nobody has to look at the row before
    claim_id          BLOB,             -- the claim that the attempt is under; null while nobody has it
    session           BLOB,             -- the session that has it; null, with a claim, for completion by token
    claimed_at        INTEGER,
    beat_at           INTEGER,          -- when the attempt last gave a sign of life
    details_encoding  TEXT,
    details           BLOB,             -- what an attempt last said of how far it was: the next one is given it
    PRIMARY KEY (run_id, step_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX step_tasks_waiting ON step_tasks (namespace, task_queue, priority, visible_at, run_id, step_id)
    WHERE claim_id IS NULL;
CREATE INDEX step_tasks_running ON step_tasks (namespace, task_queue) WHERE claim_id IS NOT NULL;
CREATE INDEX step_tasks_claimed ON step_tasks (session) WHERE session IS NOT NULL;
-- Not on beat_at: a heartbeat then changes no index.
CREATE INDEX step_tasks_due ON step_tasks (due_at);

-- How fast queued steps may be run. A queue without a row has no limit.
CREATE TABLE queue_limits (
    namespace      TEXT    NOT NULL,
    task_queue     TEXT    NOT NULL,
    max_running    INTEGER,          -- attempts at one time, on all workers; null for no limit
    max_per_second REAL,             -- attempts that begin in a second, on all workers; null for no limit
    burst          INTEGER NOT NULL, -- attempts that may begin at once after a quiet time
    tokens         REAL    NOT NULL, -- attempts that could begin at once at refilled_at
    refilled_at    INTEGER NOT NULL,
    PRIMARY KEY (namespace, task_queue)
) STRICT, WITHOUT ROWID;

-- One row: what belongs to this database as a whole.
CREATE TABLE deployment (
    one    INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    secret BLOB    NOT NULL -- what task tokens are signed with
) STRICT;
INSERT INTO deployment (one, secret) VALUES (1, randomblob(32));

-- One row per step of each run: completed, failed, retrying, in_doubt, queued or running (as far as recorded).
DROP VIEW steps;
CREATE VIEW steps AS
    SELECT substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-' || substr(h, 13, 4) || '-' || substr(h, 17, 4)
               || '-' || substr(h, 21) AS run_id,
           step_id, step AS name, attempt AS attempts,
           CASE kind
               WHEN 'StepScheduled' THEN 'queued'
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
             WHERE kind IN ('StepScheduled', 'StepStarted', 'StepCompleted', 'StepFailed', 'StepInDoubt', 'StepResolved')
             GROUP BY run_id, step_id);

-- Queued steps that have not ended, and who has them, with the workflow each belongs to.
CREATE VIEW open_steps AS
    SELECT substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-' || substr(h, 13, 4) || '-' || substr(h, 17, 4)
               || '-' || substr(h, 21) AS run_id,
           namespace, workflow_id, workflow_type, step_id, name, attempt, task_queue, priority,
           CASE WHEN claim_id IS NOT NULL THEN 'running'
                WHEN visible_at <= CAST(unixepoch('subsec') * 1000000 AS INTEGER) THEN 'queued'
                WHEN visible_at = 253402300799999999 THEN 'in_doubt'
                ELSE 'later' END AS state,
           canceled,
           strftime('%Y-%m-%dT%H:%M:%S', visible_at / 1000000, 'unixepoch')
               || printf('.%06dZ', visible_at % 1000000) AS visible_at,
           lower(hex(session)) AS session,
           strftime('%Y-%m-%dT%H:%M:%S', claimed_at / 1000000, 'unixepoch')
               || printf('.%06dZ', claimed_at % 1000000) AS claimed_at,
           strftime('%Y-%m-%dT%H:%M:%S', beat_at / 1000000, 'unixepoch')
               || printf('.%06dZ', beat_at % 1000000) AS beat_at
      FROM (SELECT lower(hex(s.run_id)) AS h, r.workflow_id, r.workflow_type, s.*
              FROM step_tasks s
              JOIN runs r ON r.run_id = s.run_id);
