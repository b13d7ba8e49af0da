//! The in-memory store: the whole port over one mutex and ordered maps.
//!
//! It is the model that the SQL adapters are held against, and what a simulation runs on: its clock is the
//! caller's, every answer follows from the calls before it, and each method has a `_sync` twin that needs
//! no runtime. Nothing of it survives the process.

mod ports;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use everstep_core::{Duration, Event, NodeId, QueueKey, RunId, RunRow, Seq, SessionId, Timestamp};

use crate::{
    Append, AppendReply, ClaimedTimers, Error, Namespace, PageToken, RunFilter, RunRecord, RunTables,
    SessionRow, StartRecord,
};
use state::State;

/// A store that lives as long as its value.
pub struct MemoryStore {
    clock: Box<dyn Fn() -> Timestamp + Send + Sync>,
    state: Mutex<State>,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

impl MemoryStore {
    /// An empty store with the namespace `default`, whose "database time" is what `clock` says.
    pub fn new(clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let state = Mutex::new(State::new(clock()));
        Self { clock: Box::new(clock), state }
    }

    /// The state, and the time of this call.
    fn at(&self) -> (MutexGuard<'_, State>, Timestamp) {
        // Every change of the state is complete once it begins, so a panic elsewhere leaves it whole.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = (self.clock)();
        (state, now)
    }

    /// [`Log::append`](crate::Log::append).
    pub fn append_sync(&self, batch: Vec<Append>) -> AppendReply {
        let (mut state, now) = self.at();
        AppendReply { verdicts: state.append(&batch, now), now: Some(now) }
    }

    /// [`Log::read_events`](crate::Log::read_events).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn read_events_sync(&self, run: RunId, after: Seq, limit: usize) -> Result<Vec<Event>, Error> {
        Ok(self.at().0.read_events(run, after, limit))
    }

    /// [`Log::now`](crate::Log::now).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn now_sync(&self) -> Result<Timestamp, Error> {
        Ok(self.at().1)
    }

    /// [`Catalog::get_run`](crate::Catalog::get_run).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn get_run_sync(&self, run: RunId) -> Result<Option<RunRecord>, Error> {
        Ok(self.at().0.get_run(run))
    }

    /// [`Catalog::find_start`](crate::Catalog::find_start).
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the workflow id's run has no row.
    pub fn find_start_sync(
        &self,
        namespace: &str,
        workflow_id: &str,
        request_id: &str,
    ) -> Result<StartRecord, Error> {
        self.at().0.find_start(namespace, workflow_id, request_id)
    }

    /// [`Catalog::list_runs`](crate::Catalog::list_runs).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn list_runs_sync(
        &self,
        filter: &RunFilter,
        page: Option<PageToken>,
        limit: usize,
    ) -> Result<Vec<RunRow>, Error> {
        Ok(self.at().0.list_runs(filter, page, limit))
    }

    /// [`Catalog::closed_among`](crate::Catalog::closed_among).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn closed_among_sync(&self, runs: &[RunId]) -> Result<Vec<RunId>, Error> {
        Ok(self.at().0.closed_among(runs))
    }

    /// [`Catalog::run_tables`](crate::Catalog::run_tables).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn run_tables_sync(&self, run: RunId) -> Result<Option<RunTables>, Error> {
        Ok(self.at().0.run_tables(run))
    }

    /// [`Catalog::create_namespace`](crate::Catalog::create_namespace).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn create_namespace_sync(&self, name: &str, description: &str) -> Result<bool, Error> {
        let (mut state, now) = self.at();
        Ok(state.create_namespace(name, description, now))
    }

    /// [`Catalog::get_namespace`](crate::Catalog::get_namespace).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn get_namespace_sync(&self, name: &str) -> Result<Option<Namespace>, Error> {
        Ok(self.at().0.get_namespace(name))
    }

    /// [`Catalog::list_namespaces`](crate::Catalog::list_namespaces).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn list_namespaces_sync(&self, after: &str, limit: usize) -> Result<Vec<Namespace>, Error> {
        Ok(self.at().0.list_namespaces(after, limit))
    }

    /// [`Sessions::open_session`](crate::Sessions::open_session).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn open_session_sync(&self, session: &SessionRow) -> Result<Option<Timestamp>, Error> {
        let (mut state, now) = self.at();
        Ok(state.open_session(session, now))
    }

    /// [`Sessions::renew_session`](crate::Sessions::renew_session).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn renew_session_sync(
        &self,
        session: SessionId,
        lease: Duration,
    ) -> Result<Option<Timestamp>, Error> {
        let (mut state, now) = self.at();
        Ok(state.renew_session(session, lease, now))
    }

    /// [`Sessions::close_session`](crate::Sessions::close_session).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn close_session_sync(&self, session: SessionId) -> Result<bool, Error> {
        let (mut state, now) = self.at();
        Ok(state.close_session(session, now))
    }

    /// [`Sessions::close_expired_sessions`](crate::Sessions::close_expired_sessions).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn close_expired_sessions_sync(&self, limit: usize) -> Result<Vec<SessionId>, Error> {
        let (mut state, now) = self.at();
        Ok(state.close_expired_sessions(limit, now))
    }

    /// [`Sessions::owned_runs`](crate::Sessions::owned_runs).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn owned_runs_sync(
        &self,
        session: SessionId,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunId>, Error> {
        Ok(self.at().0.owned_runs(session, after, limit))
    }

    /// [`Sweep::claim_timers`](crate::Sweep::claim_timers).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn claim_timers_sync(&self, limit: usize, claim: Duration) -> Result<ClaimedTimers, Error> {
        let (mut state, now) = self.at();
        Ok(state.claim_timers(limit, claim, now))
    }

    /// [`Sweep::claim_tasks`](crate::Sweep::claim_tasks).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn claim_tasks_sync(
        &self,
        queues: Option<&[QueueKey]>,
        limit: usize,
    ) -> Result<Vec<(RunId, QueueKey)>, Error> {
        let (mut state, now) = self.at();
        Ok(state.claim_tasks(queues, limit, now))
    }

    /// [`Sweep::lost_runs`](crate::Sweep::lost_runs).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn lost_runs_sync(&self, limit: usize) -> Result<Vec<(RunId, SessionId)>, Error> {
        Ok(self.at().0.lost_runs(limit))
    }

    /// [`Sweep::stale_wakes`](crate::Sweep::stale_wakes).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn stale_wakes_sync(
        &self,
        node: NodeId,
        age: Duration,
        limit: usize,
    ) -> Result<Vec<(RunId, Seq)>, Error> {
        let (state, now) = self.at();
        Ok(state.stale_wakes(node, age, limit, now))
    }

    /// [`Sweep::delete_wakes`](crate::Sweep::delete_wakes).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn delete_wakes_sync(&self, seen: &[(RunId, Seq)]) -> Result<(), Error> {
        let (mut state, _) = self.at();
        for (run, up_to) in seen {
            state.delete_wakes(*run, *up_to);
        }
        Ok(())
    }

    /// [`Sweep::blocked_runs`](crate::Sweep::blocked_runs).
    ///
    /// # Errors
    /// None; the signature is the port's.
    pub fn blocked_runs_sync(
        &self,
        queue: &QueueKey,
        build_id: &str,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunId>, Error> {
        Ok(self.at().0.blocked_runs(queue, build_id, after, limit))
    }
}
