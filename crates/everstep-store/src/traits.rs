//! The small ports that make a store; the one for operators is beside, in `inspect`.

use async_trait::async_trait;
use everstep_core::{
    Duration, Event, NodeId, Notes, OpId, QueueKey, RunId, Seq, SessionId, TaskRow, TimerKey, Timestamp,
};

use crate::{
    Admin, Append, AppendReply, Builds, ClaimedTimers, DoubtFilter, DoubtRecord, Error, Inspect, Namespace,
    Outbox, PageToken, Relay, RunFilter, RunRecord, RunTables, RunWant, SessionRow, StartRecord, Steps,
};

/// A complete store.
pub trait Store: Log + Catalog + Sessions + Sweep + Steps + Outbox + Inspect + Admin + Builds {}

impl<T: Log + Catalog + Sessions + Sweep + Steps + Outbox + Inspect + Admin + Builds> Store for T {}

/// Most payload bytes in one page of events, unless it is a single event: what a reader holds at one time.
pub const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Most events that [`Log::read_heads`] gives of one run.
pub const HEAD_MAX: usize = 64;

/// The first events of a run after some event.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// In order, without a gap.
    pub events: Vec<Event>,
    /// False when these are all; true when there may be more.
    pub more: bool,
}

/// The event log.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Whether nodes in other processes may append to the same log.
    fn is_shared(&self) -> bool {
        false
    }

    /// Where questions wait for other nodes; `None` when there is no other node, ever.
    fn relay(&self) -> Option<&dyn Relay> {
        None
    }

    /// Lets go of the database in order, once nobody calls any more; a file is then complete by itself.
    async fn close(&self) {}

    /// Appends a batch, each append with a verdict of its own; the batch is one transaction where the
    /// database allows, and an error in one append does not harm the others.
    ///
    /// Takes ownership, and finishes even if the returned future is dropped: adapters run the
    /// transaction in a task of its own.
    async fn append(&self, batch: Vec<Append>) -> AppendReply;

    /// Events of `run` after `after`, in order: at most `limit`, and at most [`PAGE_BYTES_MAX`] of payload
    /// (but at least one). Empty means that there are no more.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Corrupt`].
    async fn read_events(&self, run: RunId, after: Seq, limit: usize) -> Result<Vec<Event>, Error>;

    /// The first events of each of these runs after one of them, at most [`HEAD_MAX`] of a run, in the order of
    /// `runs`: one question for many short histories. Where a run's first events are large there may be none, and more.
    ///
    /// # Errors
    /// Of a run, as [`read_events`](Self::read_events).
    async fn read_heads(&self, runs: &[(RunId, Seq)]) -> Vec<Result<Head, Error>> {
        let mut heads = Vec::with_capacity(runs.len());
        for (run, after) in runs {
            let events = self.read_events(*run, *after, HEAD_MAX).await;
            heads.push(events.map(|events| Head { more: !events.is_empty(), events }));
        }
        heads
    }

    /// Database time.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn now(&self) -> Result<Timestamp, Error>;
}

/// Questions about runs and namespaces.
#[async_trait]
pub trait Catalog: Send + Sync + 'static {
    /// One run, or `None`.
    ///
    /// # Errors
    /// [`Error::Unavailable`], as all methods of this trait.
    async fn get_run(&self, run: RunId) -> Result<Option<RunRecord>, Error>;

    /// The latest run of a workflow id and what a request id started.
    async fn find_start(
        &self,
        namespace: &str,
        workflow_id: &str,
        request_id: &str,
    ) -> Result<StartRecord, Error>;

    /// Runs that match, newest first, at most `limit`, after `page`.
    async fn list_runs(
        &self,
        filter: &RunFilter,
        page: Option<PageToken>,
        limit: usize,
    ) -> Result<Vec<everstep_core::RunRow>, Error>;

    /// Those of `runs` that are closed.
    async fn closed_among(&self, runs: &[RunId]) -> Result<Vec<RunId>, Error>;

    /// What a run says about itself, read from its events.
    async fn run_notes(&self, run: RunId) -> Result<Notes, Error>;

    /// What the tables beside the log hold for a run.
    async fn run_tables(&self, run: RunId) -> Result<Option<RunTables>, Error>;

    /// Attempts in doubt that match, by run and step, at most `limit`, strictly after `after`.
    async fn list_doubts(
        &self,
        filter: &DoubtFilter,
        after: Option<(RunId, OpId)>,
        limit: usize,
    ) -> Result<Vec<DoubtRecord>, Error>;

    /// How many attempts are in doubt, in all namespaces.
    async fn count_doubts(&self) -> Result<u64, Error>;

    /// Makes a namespace; `false` when it exists already (nothing is changed then).
    async fn create_namespace(&self, name: &str, description: &str) -> Result<bool, Error>;

    /// One namespace, or `None`.
    async fn get_namespace(&self, name: &str) -> Result<Option<Namespace>, Error>;

    /// Namespaces by name, at most `limit`, strictly after `after`.
    async fn list_namespaces(&self, after: &str, limit: usize) -> Result<Vec<Namespace>, Error>;
}

/// Leases. Every change is a compare-and-set on one row; the lease is counted by the database's clock.
#[async_trait]
pub trait Sessions: Send + Sync + 'static {
    /// Opens a session, or moves an open one to another node and renews it. `None` when that session is
    /// closed already or of another namespace, else the new end of its lease.
    ///
    /// # Errors
    /// [`Error::Unavailable`], as all methods of this trait.
    async fn open_session(&self, session: &SessionRow) -> Result<Option<Timestamp>, Error>;

    /// Extends the lease of a session that is not closed; `None` when it is closed or unknown.
    async fn renew_session(&self, session: SessionId, lease: Duration) -> Result<Option<Timestamp>, Error>;

    /// Closes a session; `false` when it was closed or unknown.
    async fn close_session(&self, session: SessionId) -> Result<bool, Error>;

    /// Closes up to `limit` sessions whose lease has ended, and names them.
    async fn close_expired_sessions(&self, limit: usize) -> Result<Vec<SessionId>, Error>;

    /// Open runs owned by a session, in order of id, at most `limit`, strictly after `after`.
    async fn owned_runs(
        &self,
        session: SessionId,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunId>, Error>;
}

/// What the sweep looks for. Nothing here decides: each answer is a reason to look at a run's log.
#[async_trait]
pub trait Sweep: Send + Sync + 'static {
    /// Claims up to `limit` due timers for `claim`: until then no other call returns them.
    ///
    /// # Errors
    /// [`Error::Unavailable`], as all methods of this trait.
    async fn claim_timers(&self, limit: usize, claim: Duration) -> Result<ClaimedTimers, Error>;

    /// Claims timers once more, for `claim` from now, whose claimer is not done with them. Gives those that there
    /// are; one that was deleted or set again since is nobody's any more, and one that somebody is about to write
    /// may be left out.
    async fn renew_timers(
        &self,
        timers: &[(RunId, TimerKey)],
        claim: Duration,
    ) -> Result<Vec<(RunId, TimerKey)>, Error>;

    /// Claims up to `limit` tasks whose next look is due, oldest first: only those that one of `wants` fits, or all
    /// when `None`. A claimed task is not returned again before `2^claims` seconds (at most 60), but to a want that
    /// is impatient.
    async fn claim_tasks(
        &self,
        wants: Option<&[RunWant]>,
        limit: usize,
    ) -> Result<Vec<(RunId, TaskRow)>, Error>;

    /// Up to `limit` open runs whose owner session is closed, with that session.
    async fn lost_runs(&self, limit: usize) -> Result<Vec<(RunId, SessionId)>, Error>;

    /// Up to `limit` runs with a wake older than `age` whose owner is connected to `node`.
    async fn stale_wakes(
        &self,
        node: NodeId,
        age: Duration,
        limit: usize,
    ) -> Result<Vec<(RunId, Seq)>, Error>;

    /// Deletes the wakes of each run up to the given seq: its owner has seen them.
    async fn delete_wakes(&self, seen: &[(RunId, Seq)]) -> Result<(), Error>;

    /// Up to `limit` blocked runs of a queue whose last owner ran another build than `build_id`, with
    /// an id greater than `after`, in order of id.
    async fn blocked_runs(
        &self,
        queue: &QueueKey,
        build_id: &str,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunId>, Error>;
}
