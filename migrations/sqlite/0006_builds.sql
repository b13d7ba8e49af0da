-- Which code runs wait for, which code is there, and which builds may go on with the runs of others.

-- The code that the worker has to have; empty in rows of the release before, which stand for any.
ALTER TABLE tasks ADD COLUMN workflow_type TEXT NOT NULL DEFAULT '';
-- The build that the run belongs to; empty when code of any build may try.
ALTER TABLE tasks ADD COLUMN build_id TEXT NOT NULL DEFAULT '';
-- JSON: queues and types that the worker is there for, and builds that its code continues. As of its Hello.
ALTER TABLE sessions ADD COLUMN serves TEXT NOT NULL DEFAULT '{}';

-- Builds that may take over runs which belong to another one, as an operator said.
CREATE TABLE allowed_builds (
    namespace  TEXT NOT NULL,
    task_queue TEXT NOT NULL,
    build_id   TEXT NOT NULL,
    continues  TEXT NOT NULL, -- the build whose runs they are
    PRIMARY KEY (namespace, task_queue, build_id, continues)
) STRICT, WITHOUT ROWID;

-- Runs that have waited for a worker for 5 s at least, by what it has to have. Compare with sessions.serves.
CREATE VIEW waiting_for_build AS
    SELECT namespace, task_queue, workflow_type, build_id, count(*) AS runs
      FROM tasks
     WHERE claims > 0 OR next_claim_at < 1000000 * (unixepoch() - 4)
     GROUP BY namespace, task_queue, workflow_type, build_id;
