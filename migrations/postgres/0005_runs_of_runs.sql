-- What runs have to hear of each other, and which runs belong together.

CREATE TABLE outbox (
    run_id  uuid        NOT NULL,
    next_at timestamptz NOT NULL,
    seq     bigint      NOT NULL,
    tries   int         NOT NULL DEFAULT 0,
    PRIMARY KEY (run_id, seq)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX outbox_by_time ON outbox (next_at);
COMMENT ON TABLE outbox IS
    'Events that other runs have to hear of and have perhaps not heard of yet. What they have to hear follows from the history.';
COMMENT ON COLUMN outbox.next_at IS 'The node that wrote the event tells of it at once; nobody else looks at the row before.';
COMMENT ON COLUMN outbox.tries IS 'How often somebody has looked at the row.';

CREATE TABLE run_links (
    run_id           uuid   PRIMARY KEY,
    parent_run_id    uuid,
    previous_run_id  uuid,
    first_run_id     uuid,
    successor_run_id uuid,
    parent_op        bigint,
    attempt          bigint NOT NULL
);
CREATE INDEX run_links_parent ON run_links (parent_run_id, run_id) WHERE parent_run_id IS NOT NULL;
COMMENT ON TABLE run_links IS 'Which runs a run comes from and which one follows it. Can be computed from events.';
COMMENT ON COLUMN run_links.parent_run_id IS 'The run whose workflow started this one.';
COMMENT ON COLUMN run_links.parent_op IS 'The operation of the parent''s code.';
COMMENT ON COLUMN run_links.previous_run_id IS 'The run that this one follows: it continued as new, or failed and is tried again.';
COMMENT ON COLUMN run_links.first_run_id IS 'The first run of that chain; null for the first one itself.';
COMMENT ON COLUMN run_links.attempt IS 'Which attempt this is of those that follow failures, from 1.';

CREATE VIEW children AS
    SELECT l.parent_run_id, l.parent_op AS child_id, r.run_id, r.namespace, r.workflow_id, r.workflow_type, r.status,
           r.started_at, r.closed_at
      FROM run_links l
      JOIN runs r ON r.run_id = l.run_id
     WHERE l.parent_run_id IS NOT NULL;
COMMENT ON VIEW children IS 'Runs that another run''s workflow started. Select by parent_run_id.';
