-- Questions that one node leaves for another.

-- Without a write-ahead log: a question costs no flush to disk, and none outlives a crash. Its asker leaves it again.
CREATE UNLOGGED TABLE asks (
    ask_id          uuid        PRIMARY KEY,
    run_id          uuid        NOT NULL,
    namespace       text        NOT NULL,
    task_queue      text        NOT NULL,
    workflow_type   text        NOT NULL,
    build_id        text        NOT NULL,
    at_least        bigint      NOT NULL,
    kind            text        NOT NULL,
    name            text        NOT NULL,
    encoding        text        NOT NULL,
    input           bytea       NOT NULL,
    put_at          timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL,
    claimed_until   timestamptz,
    seq             bigint,
    failure_kind    text,
    failure_message text,
    answer_encoding text,
    answer          bytea
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX asks_waiting ON asks (namespace, task_queue, put_at) WHERE seq IS NULL;
CREATE INDEX asks_late ON asks (expires_at);

COMMENT ON TABLE asks IS
    'Questions to the code of runs that no worker of the asking node can answer, and their answers. About the present only: may be emptied at any time.';
COMMENT ON COLUMN asks.build_id IS 'The build that had the run last: who runs it is asked first.';
COMMENT ON COLUMN asks.at_least IS 'An answer that knows less than this event is none.';
COMMENT ON COLUMN asks.kind IS 'What is asked: query.';
COMMENT ON COLUMN asks.expires_at IS 'Nobody waits any longer than this; the row goes when the next one comes.';
COMMENT ON COLUMN asks.claimed_until IS 'Until then the question is left to the node that took it.';
COMMENT ON COLUMN asks.seq IS 'The event after which the answer holds; null while there is none.';
COMMENT ON COLUMN asks.failure_kind IS 'Set when the code refused; the answer''s columns are null then.';
