-- The event log, and the tables that follow from it.
--
-- `events` (with `payloads`, `workflow_ids` and `start_requests`) is the truth. `runs`, `timers` and
-- `tasks` can be computed from it; `wakes` and `sessions` are about the present only.

-- The smallest run id made at an instant: a UUIDv7 begins with its milliseconds since 1970.
CREATE FUNCTION everstep_run_id_at(instant timestamptz) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
        SELECT (lpad(to_hex(floor(extract(epoch FROM instant) * 1000)::bigint), 12, '0')
            || '00000000000000000000')::uuid
    $$;
COMMENT ON FUNCTION everstep_run_id_at IS
    'The smallest run id made at this instant: the bound of a partition, and a way to select runs by start time.';

CREATE TABLE events (
    run_id       uuid        NOT NULL,
    seq          bigint      NOT NULL,
    at           timestamptz NOT NULL,
    epoch        int         NOT NULL,
    step_id      int,
    attempt      int,
    command_id   uuid        NOT NULL,
    kind         text        NOT NULL,
    step         text,
    actor        text        NOT NULL,
    attrs        text,
    encoding     text,
    payload      bytea,
    payload_hash bytea,
    PRIMARY KEY (run_id, seq)
) PARTITION BY RANGE (run_id);

COMMENT ON TABLE events IS
    'The histories: one immutable fact per row. Only appended to; the primary key decides who appends. Partitioned by the day on which the run was started.';
COMMENT ON COLUMN events.run_id IS 'A UUIDv7: its first 48 bits are the start of the run in milliseconds since 1970.';
COMMENT ON COLUMN events.seq IS 'Position in the history: 1, 2, 3 without a gap.';
COMMENT ON COLUMN events.at IS 'Database time of the decision. For people and for the workflow; it decides nothing.';
COMMENT ON COLUMN events.epoch IS 'Claims of the run so far. Never falls along a history.';
COMMENT ON COLUMN events.step_id IS 'Number of the step or timer, in the order of the workflow''s calls.';
COMMENT ON COLUMN events.attempt IS 'Which attempt of the step, from 1.';
COMMENT ON COLUMN events.command_id IS 'The request that caused the event; settles a commit whose reply was lost.';
COMMENT ON COLUMN events.kind IS 'RunStarted, StepCompleted and so on.';
COMMENT ON COLUMN events.step IS 'Name of the step or signal.';
COMMENT ON COLUMN events.actor IS 'Who caused it.';
COMMENT ON COLUMN events.attrs IS 'A small JSON object: what else this kind needs. Text and not json, so that an append does not parse it.';
COMMENT ON COLUMN events.encoding IS 'Encoding of the user''s bytes, such as json.';
COMMENT ON COLUMN events.payload IS 'The user''s bytes, opaque. NULL when there are none, or when they are in payloads.';
COMMENT ON COLUMN events.payload_hash IS 'SHA-256 of the user''s bytes when they are in payloads (over 32 KiB).';

CREATE TABLE payloads (
    run_id uuid  NOT NULL,
    hash   bytea NOT NULL,
    data   bytea NOT NULL,
    PRIMARY KEY (run_id, hash)
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE payloads IS
    'User''s bytes over 32 KiB, once per run and content. Partitioned like events.';
COMMENT ON COLUMN payloads.hash IS 'SHA-256 of data.';

CREATE FUNCTION everstep_refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
        BEGIN
            IF TG_OP <> 'UPDATE' AND current_setting('everstep.retention', true) = 'on' THEN
                RETURN OLD;
            END IF;
            RAISE EXCEPTION '% of % refused: history is only appended to', TG_OP, TG_TABLE_NAME
                USING ERRCODE = 'restrict_violation',
                      HINT = 'Retention deletes closed runs after SET everstep.retention = ''on''.';
        END
    $$;
COMMENT ON FUNCTION everstep_refuse_change IS
    'Keeps history append-only: no UPDATE ever, DELETE and TRUNCATE only with everstep.retention = on.';

-- Row triggers, because those hold for statements that name a partition, too.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON events
    FOR EACH ROW EXECUTE FUNCTION everstep_refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON payloads
    FOR EACH ROW EXECUTE FUNCTION everstep_refuse_change();
CREATE TRIGGER append_only_all BEFORE TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION everstep_refuse_change();
CREATE TRIGGER append_only_all BEFORE TRUNCATE ON payloads
    FOR EACH STATEMENT EXECUTE FUNCTION everstep_refuse_change();

CREATE FUNCTION everstep_ensure_partitions(days_back int, days_ahead int) RETURNS int
    LANGUAGE plpgsql
    AS $$
        DECLARE
            today   date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
            day     date;
            parent  text;
            child   text;
            locked  boolean := false;
            created int := 0;
        BEGIN
            FOR ago IN -days_back .. days_ahead LOOP
                day := today + ago;
                FOREACH parent IN ARRAY ARRAY['events', 'payloads'] LOOP
                    child := parent || '_' || to_char(day, 'YYYYMMDD');
                    CONTINUE WHEN to_regclass(child) IS NOT NULL;
                    IF NOT locked THEN
                        -- Excludes a second call, but neither readers nor appends.
                        LOCK TABLE events, payloads IN SHARE UPDATE EXCLUSIVE MODE;
                        locked := true;
                        CONTINUE WHEN to_regclass(child) IS NOT NULL;
                    END IF;
                    -- Made apart and then attached: PARTITION OF would lock out the appends.
                    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING STORAGE)', child, parent);
                    EXECUTE format('CREATE TRIGGER append_only_all BEFORE TRUNCATE ON %I '
                        'FOR EACH STATEMENT EXECUTE FUNCTION everstep_refuse_change()', child);
                    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child,
                        everstep_run_id_at(day::timestamp AT TIME ZONE 'UTC'),
                        everstep_run_id_at((day + 1)::timestamp AT TIME ZONE 'UTC'));
                    created := created + 1;
                END LOOP;
            END LOOP;
            RETURN created;
        END
    $$;
COMMENT ON FUNCTION everstep_ensure_partitions IS
    'Makes the missing daily partitions of events and payloads, from days_back before today (UTC) to days_ahead after. Safe at any time, also twice at once. Returns how many it made.';

CREATE TABLE runs (
    run_id           uuid        PRIMARY KEY,
    last_seq         bigint      NOT NULL,
    started_at       timestamptz NOT NULL,
    closed_at        timestamptz,
    owner            uuid,
    epoch            int         NOT NULL,
    cancel_requested boolean     NOT NULL,
    namespace        text        NOT NULL,
    workflow_id      text        NOT NULL,
    workflow_type    text        NOT NULL,
    task_queue       text        NOT NULL,
    status           text        NOT NULL,
    build_id         text        NOT NULL,
    blocked          text        NOT NULL
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX runs_by_namespace ON runs (namespace, run_id);
CREATE INDEX runs_owned ON runs (owner, run_id) WHERE owner IS NOT NULL;
CREATE INDEX runs_blocked ON runs (namespace, task_queue, run_id) WHERE status = 'blocked';
COMMENT ON TABLE runs IS 'How each run stands, for lists. Can be computed from events.';
COMMENT ON COLUMN runs.last_seq IS 'The event that this row was last written with: an older one never overwrites it. The history may be longer.';
COMMENT ON COLUMN runs.owner IS 'The session whose worker has the run.';
COMMENT ON COLUMN runs.epoch IS 'Claims so far.';
COMMENT ON COLUMN runs.status IS 'running, blocked, completed, failed, canceled, terminated or timed_out.';
COMMENT ON COLUMN runs.build_id IS 'Build of the last owner; empty before the first.';
COMMENT ON COLUMN runs.blocked IS 'Why the run is blocked; empty when it is not.';

CREATE TABLE workflow_ids (
    run_id      uuid NOT NULL,
    expected    uuid,
    namespace   text NOT NULL,
    workflow_id text NOT NULL,
    PRIMARY KEY (namespace, workflow_id)
) WITH (fillfactor = 80);
COMMENT ON TABLE workflow_ids IS 'The latest run of each workflow id: the compare-and-set that admits a start.';
COMMENT ON COLUMN workflow_ids.expected IS 'The run that held the id before this one: what the compare-and-set compared with.';

CREATE TABLE start_requests (
    run_id      uuid  NOT NULL,
    namespace   text  NOT NULL,
    workflow_id text  NOT NULL,
    request_id  text  NOT NULL,
    body_hash   bytea NOT NULL,
    PRIMARY KEY (namespace, workflow_id, request_id)
);
COMMENT ON TABLE start_requests IS 'What each start request began, kept as long as the run. Also finds the runs of a workflow id.';
COMMENT ON COLUMN start_requests.body_hash IS 'SHA-256 of the request''s body: tells a repeat from a misuse of the request id.';

CREATE TABLE timers (
    run_id        uuid        NOT NULL,
    fire_at       timestamptz NOT NULL,
    claimed_until timestamptz,
    id            bigint      NOT NULL,
    kind          text        NOT NULL,
    PRIMARY KEY (run_id, kind, id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX timers_by_time ON timers (fire_at);
COMMENT ON TABLE timers IS 'Instants that open runs wait for. Can be computed from events.';
COMMENT ON COLUMN timers.kind IS 'timer, retry or run_timeout.';
COMMENT ON COLUMN timers.id IS 'The timer''s or step''s number; 0 for the run timeout.';
COMMENT ON COLUMN timers.claimed_until IS 'Until then a node sees to it, and others leave it alone.';

CREATE TABLE tasks (
    run_id        uuid        PRIMARY KEY,
    next_claim_at timestamptz NOT NULL,
    claims        int         NOT NULL DEFAULT 0,
    namespace     text        NOT NULL,
    task_queue    text        NOT NULL
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX tasks_by_time ON tasks (next_claim_at);
COMMENT ON TABLE tasks IS 'Runs that need a worker. Can be computed from events, but for the claims.';
COMMENT ON COLUMN tasks.claims IS 'How often the sweep has taken it up; each time it waits longer.';
COMMENT ON COLUMN tasks.next_claim_at IS 'When the sweep looks at it next.';

CREATE TABLE wakes (
    run_id     uuid        NOT NULL,
    seq        bigint      NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (run_id, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE wakes IS 'Owners that have to be told of events up to seq, which somebody else appended.';

CREATE TABLE sessions (
    session_id  uuid        PRIMARY KEY,
    node_id     uuid        NOT NULL,
    opened_at   timestamptz NOT NULL,
    lease_until timestamptz NOT NULL,
    closed_at   timestamptz,
    namespace   text        NOT NULL,
    identity    text        NOT NULL,
    build_id    text        NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
-- Not on lease_until: a heartbeat then changes no index.
CREATE INDEX sessions_open ON sessions (session_id) WHERE closed_at IS NULL;
COMMENT ON TABLE sessions IS 'Workers'' connections and their leases, by the database''s clock. A closed session never opens again.';
COMMENT ON COLUMN sessions.node_id IS 'The server process that the worker is connected to.';

CREATE TABLE namespaces (
    name        text        PRIMARY KEY,
    description text        NOT NULL,
    created_at  timestamptz NOT NULL
);
COMMENT ON TABLE namespaces IS 'Isolation boundaries.';
INSERT INTO namespaces (name, description, created_at) VALUES ('default', '', clock_timestamp());

-- Views for operators.

CREATE FUNCTION everstep_text(data bytea) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
        BEGIN
            RETURN convert_from(data, 'UTF8');
        EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
            RETURN NULL;
        END
    $$;
COMMENT ON FUNCTION everstep_text IS 'Bytes as text, or NULL when they are not text that Postgres can hold.';

CREATE VIEW history AS
    SELECT e.run_id, e.seq, e.at, e.kind, e.step_id, e.step, e.attempt, e.epoch, e.actor, e.attrs, e.encoding,
           octet_length(coalesce(e.payload, p.data)) AS payload_bytes,
           CASE WHEN e.encoding = 'json' THEN everstep_text(coalesce(e.payload, p.data)) END AS payload,
           e.command_id
      FROM events e
      LEFT JOIN payloads p ON p.run_id = e.run_id AND p.hash = e.payload_hash;
COMMENT ON VIEW history IS
    'Events as a person reads them: JSON payloads as text (NULL for other encodings), large ones included. Select by run_id, order by seq.';

CREATE VIEW steps AS
    SELECT run_id, step_id,
           max(step) AS name,
           max(attempt) AS attempts,
           CASE last_kind
               WHEN 'StepCompleted' THEN 'completed'
               WHEN 'StepStarted' THEN 'running'
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
         WHERE kind IN ('StepStarted', 'StepCompleted', 'StepFailed')
        WINDOW last AS (PARTITION BY run_id, step_id ORDER BY seq
                        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
      ) e
     GROUP BY run_id, step_id, last_kind, last_attrs;
COMMENT ON VIEW steps IS
    'One row per step of each run: completed, failed, retrying or running (as far as recorded). Select by run_id.';

CREATE VIEW open_timers AS
    SELECT t.run_id, r.namespace, r.workflow_id, r.workflow_type, t.kind, t.id, t.fire_at, t.claimed_until,
           t.fire_at <= clock_timestamp() AS due
      FROM timers t
      JOIN runs r ON r.run_id = t.run_id;
COMMENT ON VIEW open_timers IS 'What open runs wait for on the clock, with the workflow each belongs to.';
