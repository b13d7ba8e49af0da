-- Search attributes, what namespaces set, and the request ids of administrative calls.

ALTER TABLE namespaces ADD COLUMN settings text NOT NULL DEFAULT '{}';
COMMENT ON COLUMN namespaces.settings IS
    'JSON: step_retry, run_retry and run_timeout of runs that start from now on, where request and code are silent.';

CREATE TABLE search_attributes (
    namespace text NOT NULL,
    name      text NOT NULL,
    type      text NOT NULL,
    PRIMARY KEY (namespace, name)
);
COMMENT ON TABLE search_attributes IS 'What the runs of a namespace may be found by. A type never changes.';
COMMENT ON COLUMN search_attributes.type IS 'keyword, keywords, int, float, bool or time.';

CREATE TABLE run_attributes (
    run_id       uuid             NOT NULL,
    name         text             NOT NULL,
    n            int              NOT NULL,
    namespace    text             NOT NULL,
    type         text             NOT NULL,
    text_value   text COLLATE "C",
    int_value    bigint,
    number_value double precision,
    time_value   timestamptz,
    PRIMARY KEY (run_id, name, n)
);
CREATE INDEX run_attributes_text ON run_attributes (namespace, name, text_value, run_id) WHERE text_value IS NOT NULL;
CREATE INDEX run_attributes_int ON run_attributes (namespace, name, int_value, run_id) WHERE int_value IS NOT NULL;
CREATE INDEX run_attributes_number ON run_attributes (namespace, name, number_value, run_id)
    WHERE number_value IS NOT NULL;
CREATE INDEX run_attributes_time ON run_attributes (namespace, name, time_value, run_id) WHERE time_value IS NOT NULL;
COMMENT ON TABLE run_attributes IS
    'Search attributes of runs, open and closed, whether declared or not. Can be computed from events.';
COMMENT ON COLUMN run_attributes.n IS 'Place in a list of keywords; 0 for everything else.';
COMMENT ON COLUMN run_attributes.type IS 'As in search_attributes; a filter finds what has the declared type.';
COMMENT ON COLUMN run_attributes.text_value IS 'Of a keyword; no value at all in an empty list.';
COMMENT ON COLUMN run_attributes.int_value IS 'Of a whole number; 0 or 1 of a boolean.';

CREATE TABLE requests (
    namespace  text        NOT NULL,
    kind       text        NOT NULL,
    request_id text        NOT NULL,
    body_hash  bytea       NOT NULL,
    at         timestamptz NOT NULL,
    PRIMARY KEY (namespace, kind, request_id)
);
CREATE INDEX requests_age ON requests (at);
COMMENT ON TABLE requests IS
    'Administrative calls of the last 24 hours that named a request id, so that a repeat is told from another request.';
COMMENT ON COLUMN requests.body_hash IS 'SHA-256 of what the call asked for.';
