-- Which code runs wait for, which code is there, and which builds may go on with the runs of others.

ALTER TABLE tasks ADD COLUMN workflow_type text NOT NULL DEFAULT '', ADD COLUMN build_id text NOT NULL DEFAULT '';
COMMENT ON COLUMN tasks.workflow_type IS
    'The code that the worker has to have; empty in rows of the release before, which stand for any.';
COMMENT ON COLUMN tasks.build_id IS 'The build that the run belongs to; empty when code of any build may try.';

ALTER TABLE sessions ADD COLUMN serves text NOT NULL DEFAULT '{}';
COMMENT ON COLUMN sessions.serves IS
    'JSON: queues and types that the worker is there for, and builds that its code continues. As of its Hello.';

CREATE TABLE allowed_builds (
    namespace  text NOT NULL,
    task_queue text NOT NULL,
    build_id   text NOT NULL,
    continues  text NOT NULL,
    PRIMARY KEY (namespace, task_queue, build_id, continues)
);
COMMENT ON TABLE allowed_builds IS 'Builds that may take over runs which belong to another one, as an operator said.';
COMMENT ON COLUMN allowed_builds.continues IS 'The build whose runs they are.';

CREATE VIEW waiting_for_build AS
    SELECT namespace, task_queue, workflow_type, build_id, count(*) AS runs
      FROM tasks
     WHERE claims > 0 OR next_claim_at < clock_timestamp() - interval '4 seconds'
     GROUP BY namespace, task_queue, workflow_type, build_id;
COMMENT ON VIEW waiting_for_build IS
    'Runs that have waited for a worker for 5 s at least, by what it has to have. Compare with sessions.serves.';
