-- Steps that the workers of a task queue run, and how fast they may.

CREATE TABLE step_tasks (
    run_id            uuid        NOT NULL,
    visible_at        timestamptz NOT NULL,
    start_by          timestamptz,
    close_by          timestamptz,
    due_at            timestamptz NOT NULL,
    scheduled_seq     bigint      NOT NULL,
    start_to_close_us bigint,
    heartbeat_us      bigint,
    step_id           bigint      NOT NULL,
    attempt           bigint      NOT NULL,
    priority          smallint    NOT NULL,
    canceled          boolean     NOT NULL,
    namespace         text        NOT NULL,
    task_queue        text        NOT NULL,
    name              text        NOT NULL,
    claim_id          uuid,
    session           uuid,
    claimed_at        timestamptz,
    beat_at           timestamptz,
    details_encoding  text,
    details           bytea,
    PRIMARY KEY (run_id, step_id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX step_tasks_waiting ON step_tasks (namespace, task_queue, priority, visible_at, run_id, step_id)
    WHERE claim_id IS NULL;
CREATE INDEX step_tasks_running ON step_tasks (namespace, task_queue) WHERE claim_id IS NOT NULL;
CREATE INDEX step_tasks_claimed ON step_tasks (session) WHERE session IS NOT NULL;
-- Not on beat_at: a heartbeat then changes no index.
CREATE INDEX step_tasks_due ON step_tasks (due_at);
COMMENT ON TABLE step_tasks IS
    'Queued steps that have not ended. Can be computed from events, but for who has an attempt (from claim_id on).';
COMMENT ON COLUMN step_tasks.attempt IS 'The attempt that waits or runs, from 1.';
COMMENT ON COLUMN step_tasks.visible_at IS
    'From when on a worker may take the attempt; the end of the year 9999 while the attempt is in doubt.';
COMMENT ON COLUMN step_tasks.start_by IS 'Until when a worker has to take the attempt.';
COMMENT ON COLUMN step_tasks.close_by IS 'Until when the step has to end.';
COMMENT ON COLUMN step_tasks.due_at IS 'Nobody has to look at the row before.';
COMMENT ON COLUMN step_tasks.scheduled_seq IS 'The event that scheduled the step: it holds the input.';
COMMENT ON COLUMN step_tasks.start_to_close_us IS 'How long an attempt may run, in microseconds.';
COMMENT ON COLUMN step_tasks.heartbeat_us IS 'How long a running attempt may be silent, in microseconds.';
COMMENT ON COLUMN step_tasks.priority IS '1 is served first, 5 last.';
COMMENT ON COLUMN step_tasks.canceled IS 'The workflow does not want the step any more.';
COMMENT ON COLUMN step_tasks.claim_id IS 'The claim that the attempt is under; null while nobody has it.';
COMMENT ON COLUMN step_tasks.session IS
    'The worker''s session that has the attempt; null, with a claim, when it will be completed by its token.';
COMMENT ON COLUMN step_tasks.beat_at IS 'When the attempt last gave a sign of life.';
COMMENT ON COLUMN step_tasks.details IS 'What an attempt last said of how far it was: the next one is given it.';

CREATE TABLE queue_limits (
    namespace      text             NOT NULL,
    task_queue     text             NOT NULL,
    max_per_second double precision,
    tokens         double precision NOT NULL,
    refilled_at    timestamptz      NOT NULL,
    max_running    bigint,
    burst          bigint           NOT NULL,
    PRIMARY KEY (namespace, task_queue)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE queue_limits IS 'How fast queued steps may be run. A queue without a row has no limit.';
COMMENT ON COLUMN queue_limits.max_running IS 'Attempts at one time, on all workers; null for no limit.';
COMMENT ON COLUMN queue_limits.max_per_second IS 'Attempts that begin in a second, on all workers; null for no limit.';
COMMENT ON COLUMN queue_limits.burst IS 'Attempts that may begin at once after a quiet time.';
COMMENT ON COLUMN queue_limits.tokens IS 'Attempts that could begin at once at refilled_at.';

CREATE TABLE deployment (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    secret bytea   NOT NULL
);
COMMENT ON TABLE deployment IS 'One row: what all nodes of this database share.';
COMMENT ON COLUMN deployment.secret IS 'What task tokens are signed with. Another value makes all tokens invalid that were given out.';
INSERT INTO deployment (secret)
VALUES (decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));

CREATE OR REPLACE VIEW steps AS
    SELECT run_id, step_id,
           max(step) AS name,
           max(attempt) AS attempts,
           CASE last_kind
               WHEN 'StepScheduled' THEN 'queued'
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
         WHERE kind IN ('StepScheduled', 'StepStarted', 'StepCompleted', 'StepFailed', 'StepInDoubt', 'StepResolved')
        WINDOW last AS (PARTITION BY run_id, step_id ORDER BY seq
                        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
      ) e
     GROUP BY run_id, step_id, last_kind, last_attrs;
COMMENT ON VIEW steps IS
    'One row per step of each run: completed, failed, retrying, in_doubt, queued or running (as far as recorded). Select by run_id.';

CREATE VIEW open_steps AS
    SELECT s.run_id, s.namespace, r.workflow_id, r.workflow_type, s.step_id, s.name, s.attempt, s.task_queue, s.priority,
           CASE WHEN s.claim_id IS NOT NULL THEN 'running'
                WHEN s.visible_at <= clock_timestamp() THEN 'queued'
                WHEN s.visible_at >= '9999-12-31T23:59:59.999999Z' THEN 'in_doubt'
                ELSE 'later' END AS state,
           s.canceled, s.visible_at, s.session, s.claimed_at, s.beat_at
      FROM step_tasks s
      JOIN runs r ON r.run_id = s.run_id;
COMMENT ON VIEW open_steps IS 'Queued steps that have not ended, and who has them, with the workflow each belongs to.';
