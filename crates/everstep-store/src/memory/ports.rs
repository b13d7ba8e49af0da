//! The async port over the synchronous methods: each answer is ready at once.

use async_trait::async_trait;
use everstep_core::{Duration, Event, NodeId, QueueKey, RunId, RunRow, Seq, SessionId, Timestamp};

use super::MemoryStore;
use crate::{
    Append, AppendReply, Catalog, ClaimedTimers, Error, Log, Namespace, PageToken, RunFilter, RunRecord,
    RunTables, SessionRow, Sessions, StartRecord, Sweep,
};

#[async_trait]
impl Log for MemoryStore {
    async fn append(&self, batch: Vec<Append>) -> AppendReply {
        self.append_sync(batch)
    }

    async fn read_events(&self, run: RunId, after: Seq, limit: usize) -> Result<Vec<Event>, Error> {
        self.read_events_sync(run, after, limit)
    }

    async fn now(&self) -> Result<Timestamp, Error> {
        self.now_sync()
    }
}

#[async_trait]
impl Catalog for MemoryStore {
    async fn get_run(&self, run: RunId) -> Result<Option<RunRecord>, Error> {
        self.get_run_sync(run)
    }

    async fn find_start(
        &self,
        namespace: &str,
        workflow_id: &str,
        request_id: &str,
    ) -> Result<StartRecord, Error> {
        self.find_start_sync(namespace, workflow_id, request_id)
    }

    async fn list_runs(
        &self,
        filter: &RunFilter,
        page: Option<PageToken>,
        limit: usize,
    ) -> Result<Vec<RunRow>, Error> {
        self.list_runs_sync(filter, page, limit)
    }

    async fn closed_among(&self, runs: &[RunId]) -> Result<Vec<RunId>, Error> {
        self.closed_among_sync(runs)
    }

    async fn run_tables(&self, run: RunId) -> Result<Option<RunTables>, Error> {
        self.run_tables_sync(run)
    }

    async fn create_namespace(&self, name: &str, description: &str) -> Result<bool, Error> {
        self.create_namespace_sync(name, description)
    }

    async fn get_namespace(&self, name: &str) -> Result<Option<Namespace>, Error> {
        self.get_namespace_sync(name)
    }

    async fn list_namespaces(&self, after: &str, limit: usize) -> Result<Vec<Namespace>, Error> {
        self.list_namespaces_sync(after, limit)
    }
}

#[async_trait]
impl Sessions for MemoryStore {
    async fn open_session(&self, session: &SessionRow) -> Result<Option<Timestamp>, Error> {
        self.open_session_sync(session)
    }

    async fn renew_session(&self, session: SessionId, lease: Duration) -> Result<Option<Timestamp>, Error> {
        self.renew_session_sync(session, lease)
    }

    async fn close_session(&self, session: SessionId) -> Result<bool, Error> {
        self.close_session_sync(session)
    }

    async fn close_expired_sessions(&self, limit: usize) -> Result<Vec<SessionId>, Error> {
        self.close_expired_sessions_sync(limit)
    }

    async fn owned_runs(
        &self,
        session: SessionId,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunId>, Error> {
        self.owned_runs_sync(session, after, limit)
    }
}

#[async_trait]
impl Sweep for MemoryStore {
    async fn claim_timers(&self, limit: usize, claim: Duration) -> Result<ClaimedTimers, Error> {
        self.claim_timers_sync(limit, claim)
    }

    async fn claim_tasks(
        &self,
        queues: Option<&[QueueKey]>,
        limit: usize,
    ) -> Result<Vec<(RunId, QueueKey)>, Error> {
        self.claim_tasks_sync(queues, limit)
    }

    async fn lost_runs(&self, limit: usize) -> Result<Vec<(RunId, SessionId)>, Error> {
        self.lost_runs_sync(limit)
    }

    async fn stale_wakes(
        &self,
        node: NodeId,
        age: Duration,
        limit: usize,
    ) -> Result<Vec<(RunId, Seq)>, Error> {
        self.stale_wakes_sync(node, age, limit)
    }

    async fn delete_wakes(&self, seen: &[(RunId, Seq)]) -> Result<(), Error> {
        self.delete_wakes_sync(seen)
    }

    async fn blocked_runs(
        &self,
        queue: &QueueKey,
        build_id: &str,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunId>, Error> {
        self.blocked_runs_sync(queue, build_id, after, limit)
    }
}
