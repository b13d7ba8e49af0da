-- The event log, and the tables that follow from it.
--
-- `events` (with `payloads`, `workflow_ids` and `start_requests`) is the truth. `runs`, `timers` and
-- `tasks` can be computed from it; `wakes` and `sessions` are about the present only.
--
-- Instants are integers: microseconds since 1970-01-01T00:00:00Z. Ids are UUIDs as 16 bytes; the views at
-- the end show both as text. `events` has a rowid, so that the events which one commit takes from many
-- runs lie side by side; every other table is small rows looked up by key, and has none.

-- The histories: one immutable fact per row. Only appended to; the primary key decides who appends.
CREATE TABLE events (
    run_id       BLOB    NOT NULL, -- a UUIDv7: its first 48 bits are the start of the run in milliseconds since 1970
    seq          INTEGER NOT NULL, -- position in the history: 1, 2, 3 without a gap
    at           INTEGER NOT NULL, -- time of the decision; for people and for the workflow, it decides nothing
    epoch        INTEGER NOT NULL, -- claims of the run so far; never falls along a history
    step_id      INTEGER,          -- number of the step or timer, in the order of the workflow's calls
    attempt      INTEGER,          -- which attempt of the step, from 1
    command_id   BLOB    NOT NULL, -- the request that caused the event; settles a commit whose reply was lost
    kind         TEXT    NOT NULL, -- RunStarted, StepCompleted and so on
    step         TEXT,             -- name of the step or signal
    actor        TEXT    NOT NULL, -- who caused it: client:NAME, worker:NAME or system
    attrs        TEXT,             -- a small JSON object: what else this kind needs
    encoding     TEXT,             -- encoding of the user's bytes, such as json
    payload      BLOB,             -- the user's bytes, opaque; NULL when there are none, or when they are in payloads
    payload_hash BLOB,             -- SHA-256 of the user's bytes when they are in payloads (over 32 KiB)
    PRIMARY KEY (run_id, seq)
) STRICT;

-- User's bytes over 32 KiB, once per run and content.
CREATE TABLE payloads (
    run_id BLOB NOT NULL,
    hash   BLOB NOT NULL, -- SHA-256 of data
    data   BLOB NOT NULL,
    PRIMARY KEY (run_id, hash)
) STRICT;

CREATE TRIGGER events_are_not_changed BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'UPDATE of events refused: history is only appended to'); END;
CREATE TRIGGER events_are_not_deleted BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'DELETE of events refused: history is only appended to'); END;
CREATE TRIGGER payloads_are_not_changed BEFORE UPDATE ON payloads
    BEGIN SELECT RAISE(ABORT, 'UPDATE of payloads refused: history is only appended to'); END;
CREATE TRIGGER payloads_are_not_deleted BEFORE DELETE ON payloads
    BEGIN SELECT RAISE(ABORT, 'DELETE of payloads refused: history is only appended to'); END;

-- How each run stands, for lists. Can be computed from events.
CREATE TABLE runs (
    run_id           BLOB    NOT NULL PRIMARY KEY,
    last_seq         INTEGER NOT NULL, -- the event this row was last written with: an older one never overwrites it
    started_at       INTEGER NOT NULL,
    closed_at        INTEGER,
    owner            BLOB,             -- the session whose worker has the run
    epoch            INTEGER NOT NULL, -- claims so far
    cancel_requested INTEGER NOT NULL, -- 0 or 1
    namespace        TEXT    NOT NULL,
    workflow_id      TEXT    NOT NULL,
    workflow_type    TEXT    NOT NULL,
    task_queue       TEXT    NOT NULL,
    status           TEXT    NOT NULL, -- running, blocked, completed, failed, canceled, terminated or timed_out
    build_id         TEXT    NOT NULL, -- build of the last owner; empty before the first
    blocked          TEXT    NOT NULL  -- why the run is blocked; empty when it is not
) STRICT, WITHOUT ROWID;
CREATE INDEX runs_by_namespace ON runs (namespace, run_id);
CREATE INDEX runs_owned ON runs (owner, run_id) WHERE owner IS NOT NULL;
CREATE INDEX runs_blocked ON runs (namespace, task_queue, run_id) WHERE status = 'blocked';

-- The latest run of each workflow id: the compare-and-set that admits a start.
CREATE TABLE workflow_ids (
    namespace   TEXT NOT NULL,
    workflow_id TEXT NOT NULL,
    run_id      BLOB NOT NULL,
    PRIMARY KEY (namespace, workflow_id)
) STRICT, WITHOUT ROWID;

-- What each start request began, kept as long as the run. Also finds the runs of a workflow id.
CREATE TABLE start_requests (
    namespace   TEXT NOT NULL,
    workflow_id TEXT NOT NULL,
    request_id  TEXT NOT NULL,
    run_id      BLOB NOT NULL,
    body_hash   BLOB NOT NULL, -- SHA-256 of the request's body: tells a repeat from a misuse of the request id
    PRIMARY KEY (namespace, workflow_id, request_id)
) STRICT, WITHOUT ROWID;

-- Instants that open runs wait for. Can be computed from events.
CREATE TABLE timers (
    run_id        BLOB    NOT NULL,
    kind          TEXT    NOT NULL, -- timer, retry or run_timeout
    id            INTEGER NOT NULL, -- the timer's or step's number; 0 for the run timeout
    fire_at       INTEGER NOT NULL,
    claimed_until INTEGER,          -- until then somebody sees to it
    PRIMARY KEY (run_id, kind, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX timers_by_time ON timers (fire_at);

-- Runs that need a worker. Can be computed from events, but for the claims.
CREATE TABLE tasks (
    run_id        BLOB    NOT NULL PRIMARY KEY,
    namespace     TEXT    NOT NULL,
    task_queue    TEXT    NOT NULL,
    claims        INTEGER NOT NULL, -- how often the sweep has taken it up; each time it waits longer
    next_claim_at INTEGER NOT NULL  -- when the sweep looks at it next
) STRICT, WITHOUT ROWID;
CREATE INDEX tasks_by_time ON tasks (next_claim_at);

-- Owners that have to be told of events up to seq, which somebody else appended.
CREATE TABLE wakes (
    run_id     BLOB    NOT NULL,
    seq        INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (run_id, seq)
) STRICT, WITHOUT ROWID;

-- Workers' connections and their leases. A closed session never opens again.
CREATE TABLE sessions (
    session_id  BLOB    NOT NULL PRIMARY KEY,
    node_id     BLOB    NOT NULL, -- the server process that the worker is connected to
    namespace   TEXT    NOT NULL,
    identity    TEXT    NOT NULL,
    build_id    TEXT    NOT NULL,
    lease_until INTEGER NOT NULL,
    opened_at   INTEGER NOT NULL,
    closed_at   INTEGER
) STRICT, WITHOUT ROWID;
-- Not on lease_until: a heartbeat then changes no index.
CREATE INDEX sessions_open ON sessions (session_id) WHERE closed_at IS NULL;

-- Isolation boundaries.
CREATE TABLE namespaces (
    name        TEXT    NOT NULL PRIMARY KEY,
    description TEXT    NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO namespaces (name, description, created_at)
VALUES ('default', '', CAST(unixepoch('subsec') * 1000000 AS INTEGER));

-- Views for people. `h` in each is an id in hexadecimal, cut into the groups of a UUID.

-- Events as a person reads them: JSON payloads as text (NULL for other encodings), large ones included.
-- Select by run_id (lower case, with hyphens), order by seq.
CREATE VIEW events_readable AS
    SELECT substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-' || substr(h, 13, 4) || '-' || substr(h, 17, 4)
               || '-' || substr(h, 21) AS run_id,
           seq,
           strftime('%Y-%m-%dT%H:%M:%S', at / 1000000, 'unixepoch') || printf('.%06dZ', at % 1000000) AS at,
           kind, step_id, step, attempt, epoch, actor, attrs, encoding,
           length(data) AS payload_bytes,
           CASE WHEN encoding = 'json' THEN CAST(data AS TEXT) END AS payload,
           substr(c, 1, 8) || '-' || substr(c, 9, 4) || '-' || substr(c, 13, 4) || '-' || substr(c, 17, 4)
               || '-' || substr(c, 21) AS command_id
      FROM (SELECT lower(hex(e.run_id)) AS h, lower(hex(e.command_id)) AS c, e.*,
                   coalesce(e.payload, p.data) AS data
              FROM events e
              LEFT JOIN payloads p ON p.run_id = e.run_id AND p.hash = e.payload_hash);

-- Runs as a person reads them, newest first when ordered by run_id descending.
CREATE VIEW runs_readable AS
    SELECT substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-' || substr(h, 13, 4) || '-' || substr(h, 17, 4)
               || '-' || substr(h, 21) AS run_id,
           namespace, workflow_id, workflow_type, task_queue, status, blocked, epoch, build_id, cancel_requested,
           strftime('%Y-%m-%dT%H:%M:%S', started_at / 1000000, 'unixepoch')
               || printf('.%06dZ', started_at % 1000000) AS started_at,
           strftime('%Y-%m-%dT%H:%M:%S', closed_at / 1000000, 'unixepoch')
               || printf('.%06dZ', closed_at % 1000000) AS closed_at,
           lower(hex(owner)) AS owner, last_seq
      FROM (SELECT lower(hex(run_id)) AS h, * FROM runs);

-- One row per step of each run, as its last event tells: completed, failed, retrying or running (as far as
-- recorded). In SQLite the plain columns beside a single max() are those of the row that has the maximum.
CREATE VIEW steps AS
    SELECT substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-' || substr(h, 13, 4) || '-' || substr(h, 17, 4)
               || '-' || substr(h, 21) AS run_id,
           step_id, step AS name, attempt AS attempts,
           CASE kind
               WHEN 'StepCompleted' THEN 'completed'
               WHEN 'StepStarted' THEN 'running'
               ELSE CASE WHEN attrs ->> 'retry_at_us' IS NULL THEN 'failed' ELSE 'retrying' END
           END AS status,
           strftime('%Y-%m-%dT%H:%M:%S', at / 1000000, 'unixepoch') || printf('.%06dZ', at % 1000000)
               AS last_seen_at,
           last_seq
      FROM (SELECT lower(hex(run_id)) AS h, step_id, step, attempt, kind, attrs, at, max(seq) AS last_seq
              FROM events
             WHERE kind IN ('StepStarted', 'StepCompleted', 'StepFailed')
             GROUP BY run_id, step_id);
