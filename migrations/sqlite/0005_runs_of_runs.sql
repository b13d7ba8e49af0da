-- What runs have to hear of each other, and which runs belong together.

-- Events that other runs have to hear of and have perhaps not heard of yet. What they have to hear follows from the
-- history.
CREATE TABLE outbox (
    run_id  BLOB    NOT NULL,
    seq     INTEGER NOT NULL,
    tries   INTEGER NOT NULL DEFAULT 0, -- how often somebody has looked at the row
    next_at INTEGER NOT NULL,           -- the node that wrote the event tells of it at once; nobody looks before
    PRIMARY KEY (run_id, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX outbox_by_time ON outbox (next_at);

-- Which runs a run comes from and which one follows it. Can be computed from events.
CREATE TABLE run_links (
    run_id           BLOB NOT NULL PRIMARY KEY,
    parent_run_id    BLOB,    -- the run whose workflow started this one
    parent_op        INTEGER, -- the operation of the parent's code
    previous_run_id  BLOB,    -- the run that this one follows: it continued as new, or failed and is tried again
    first_run_id     BLOB,    -- the first run of that chain; null for the first one itself
    successor_run_id BLOB,
    attempt          INTEGER NOT NULL -- which attempt this is of those that follow failures, from 1
) STRICT, WITHOUT ROWID;
CREATE INDEX run_links_parent ON run_links (parent_run_id, run_id) WHERE parent_run_id IS NOT NULL;

-- Runs that another run's workflow started. Select by parent_run_id.
CREATE VIEW children AS
    SELECT substr(p, 1, 8) || '-' || substr(p, 9, 4) || '-' || substr(p, 13, 4) || '-' || substr(p, 17, 4)
               || '-' || substr(p, 21) AS parent_run_id,
           child_id,
           substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-' || substr(h, 13, 4) || '-' || substr(h, 17, 4)
               || '-' || substr(h, 21) AS run_id,
           namespace, workflow_id, workflow_type, status,
           strftime('%Y-%m-%dT%H:%M:%S', started_at / 1000000, 'unixepoch')
               || printf('.%06dZ', started_at % 1000000) AS started_at,
           strftime('%Y-%m-%dT%H:%M:%S', closed_at / 1000000, 'unixepoch')
               || printf('.%06dZ', closed_at % 1000000) AS closed_at
      FROM (SELECT lower(hex(l.parent_run_id)) AS p, lower(hex(l.run_id)) AS h, l.parent_op AS child_id,
                   r.namespace, r.workflow_id, r.workflow_type, r.status, r.started_at, r.closed_at
              FROM run_links l
              JOIN runs r ON r.run_id = l.run_id
             WHERE l.parent_run_id IS NOT NULL);
