-- Search attributes, what namespaces set, and the request ids of administrative calls.

-- JSON: step_retry, run_retry and run_timeout of runs that start from now on, where request and code are silent.
ALTER TABLE namespaces ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';

-- What the runs of a namespace may be found by. A type never changes.
CREATE TABLE search_attributes (
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    type      TEXT NOT NULL, -- keyword, keywords, int, float, bool or time
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;

-- Search attributes of runs, open and closed, whether declared or not. Can be computed from events.
CREATE TABLE run_attributes (
    run_id       BLOB    NOT NULL,
    name         TEXT    NOT NULL,
    n            INTEGER NOT NULL, -- place in a list of keywords; 0 for everything else
    namespace    TEXT    NOT NULL,
    type         TEXT    NOT NULL, -- as in search_attributes; a filter finds what has the declared type
    text_value   TEXT,             -- of a keyword; no value at all in an empty list
    int_value    INTEGER,          -- of a whole number; 0 or 1 of a boolean
    number_value REAL,
    time_value   INTEGER,
    PRIMARY KEY (run_id, name, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX run_attributes_text ON run_attributes (namespace, name, text_value, run_id) WHERE text_value IS NOT NULL;
CREATE INDEX run_attributes_int ON run_attributes (namespace, name, int_value, run_id) WHERE int_value IS NOT NULL;
CREATE INDEX run_attributes_number ON run_attributes (namespace, name, number_value, run_id)
    WHERE number_value IS NOT NULL;
CREATE INDEX run_attributes_time ON run_attributes (namespace, name, time_value, run_id) WHERE time_value IS NOT NULL;

-- Administrative calls of the last 24 hours that named a request id, so that a repeat is told from another request.
CREATE TABLE requests (
    namespace  TEXT    NOT NULL,
    kind       TEXT    NOT NULL,
    request_id TEXT    NOT NULL,
    body_hash  BLOB    NOT NULL, -- SHA-256 of what the call asked for
    at         INTEGER NOT NULL,
    PRIMARY KEY (namespace, kind, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_age ON requests (at);
