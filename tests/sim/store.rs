//! The simulated store: the in-memory store behind faults that a seed draws. With its faults off it passes
//! the conformance suite that the databases pass.

mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use everstep_core::{
    AttributeType, Duration, Event, NodeId, Notes, OpId, QueueKey, RunId, RunLink, RunRow, Seq, SessionId,
    TaskRow, TimerKey, Timestamp,
};
use everstep_store::{
    Admin, AdminRequest, Administered, AllowedBuild, Append, AppendReply, Backlog, Builds, Catalog, Census,
    Change, ClaimedTimers, DoubtFilter, DoubtRecord, Error, Head, Inspect, Log, MemoryStore, Namespace,
    Outbox, PageToken, QueueCensus, RunFilter, RunRecord, RunTables, RunWant, SessionRow, Sessions,
    StartRecord, Sweep, Verdict, WakePage, WakeRows, WakeTable,
};
use everstep_tests::program::Dice;

use crate::faults::Rates;

/// A store that can lose what it is told and what it answers.
#[derive(Debug)]
pub(crate) struct SimStore {
    inner: MemoryStore,
    faults: Mutex<Faults>,
}

#[derive(Debug)]
struct Faults {
    dice: Dice,
    rates: Rates,
    /// Runs that were written to since somebody asked.
    touched: BTreeSet<RunId>,
    fired: Fired,
}

/// How often each fault came true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fired {
    pub(crate) replies_lost: u64,
    pub(crate) requests_lost: u64,
    pub(crate) commits_late: u64,
    pub(crate) unavailable: u64,
}

/// What became of an append, as the node hears of it.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) reply: AppendReply,
    /// The append, when it is still under way: it is done later, and nobody hears of it.
    pub(crate) late: Option<Append>,
}

impl SimStore {
    /// A store without faults.
    pub(crate) fn new(clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self::with_faults(clock, 0, Rates::default())
    }

    pub(crate) fn with_faults(
        clock: impl Fn() -> Timestamp + Send + Sync + 'static,
        seed: u64,
        rates: Rates,
    ) -> Self {
        let faults =
            Faults { dice: Dice::new(seed), rates, touched: BTreeSet::new(), fired: Fired::default() };
        Self { inner: MemoryStore::new(clock), faults: Mutex::new(faults) }
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No fault comes true from now on.
    pub(crate) fn heal(&self) {
        self.faults().rates = Rates::default();
    }

    pub(crate) fn fired(&self) -> Fired {
        self.faults().fired
    }

    /// Runs that were written to since the last call.
    pub(crate) fn take_touched(&self) -> BTreeSet<RunId> {
        std::mem::take(&mut self.faults().touched)
    }

    /// One append, with whatever fault is drawn.
    pub(crate) fn submit(&self, append: Append) -> Settled {
        let unknown = || Verdict::Failed(Error::OutcomeUnknown("sim".into()));
        let none =
            |verdict, late| Settled { reply: AppendReply { now: None, verdicts: vec![verdict] }, late };
        let mut faults = self.faults();
        let rates = faults.rates;
        if faults.dice.chance(rates.request_lost) {
            faults.fired.requests_lost += 1;
            return none(unknown(), None);
        }
        if faults.dice.chance(rates.unavailable) {
            faults.fired.unavailable += 1;
            return none(Verdict::Failed(Error::Unavailable("sim".into())), None);
        }
        if faults.dice.chance(rates.commit_late) {
            faults.fired.commits_late += 1;
            return none(unknown(), Some(append));
        }
        let lost = faults.dice.chance(rates.reply_lost);
        faults.fired.replies_lost += u64::from(lost);
        drop(faults);
        let reply = self.commit(vec![append]);
        if lost { none(unknown(), None) } else { Settled { reply, late: None } }
    }

    /// Appends, whatever the faults.
    pub(crate) fn commit(&self, batch: Vec<Append>) -> AppendReply {
        self.faults().touched.extend(batch.iter().flat_map(Append::runs).map(|run| run.run_id));
        self.inner.append_sync(batch)
    }

    /// A question, which may come to nothing, or be answered without anybody hearing of it.
    pub(crate) fn ask<T>(&self, question: impl FnOnce(&MemoryStore) -> T) -> Result<T, Error> {
        let mut faults = self.faults();
        let rates = faults.rates;
        let before = faults.dice.chance(rates.unavailable);
        let after = faults.dice.chance(rates.answer_lost);
        faults.fired.unavailable += u64::from(before || after);
        drop(faults);
        if before {
            return Err(Error::Unavailable("sim".into()));
        }
        let answer = question(&self.inner);
        if after { Err(Error::Unavailable("sim".into())) } else { Ok(answer) }
    }

    /// The store as a checker sees it: without faults.
    pub(crate) fn truth(&self) -> &MemoryStore {
        &self.inner
    }
}

#[async_trait]
impl Log for SimStore {
    async fn append(&self, batch: Vec<Append>) -> AppendReply {
        // Each of a batch has a verdict of its own, but one that is under way when the caller is answered
        // would have to be done by somebody: that is the world's part.
        let quiet = { self.faults().rates == Rates::default() };
        if quiet {
            return self.commit(batch);
        }
        let mut reply = AppendReply { now: None, verdicts: Vec::new() };
        for append in batch {
            let settled = self.submit(append);
            reply.now = settled.reply.now.or(reply.now);
            reply.verdicts.extend(settled.reply.verdicts);
        }
        reply
    }

    async fn read_events(&self, run: RunId, after: Seq, limit: usize) -> Result<Vec<Event>, Error> {
        self.ask(|store| store.read_events_sync(run, after, limit))
    }

    async fn read_heads(&self, runs: &[(RunId, Seq)]) -> Vec<Result<Head, Error>> {
        match self.ask(|_| ()) {
            Ok(()) => self.inner.read_heads(runs).await,
            Err(error) => runs.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn now(&self) -> Result<Timestamp, Error> {
        self.inner.now().await
    }
}

#[async_trait]
impl Catalog for SimStore {
    async fn get_run(&self, run: RunId) -> Result<Option<RunRecord>, Error> {
        self.inner.get_run(run).await
    }

    async fn find_start(
        &self,
        namespace: &str,
        workflow_id: &str,
        request_id: &str,
    ) -> Result<StartRecord, Error> {
        self.ask(|store| store.find_start_sync(namespace, workflow_id, request_id))
    }

    async fn list_runs(
        &self,
        filter: &RunFilter,
        page: Option<PageToken>,
        limit: usize,
    ) -> Result<Vec<RunRow>, Error> {
        self.inner.list_runs(filter, page, limit).await
    }

    async fn closed_among(&self, runs: &[RunId]) -> Result<Vec<RunId>, Error> {
        self.inner.closed_among(runs).await
    }

    async fn run_notes(&self, run: RunId) -> Result<Notes, Error> {
        self.inner.run_notes(run).await
    }

    async fn run_tables(&self, run: RunId) -> Result<Option<RunTables>, Error> {
        self.ask(|store| store.run_tables_sync(run))
    }

    async fn list_doubts(
        &self,
        filter: &DoubtFilter,
        after: Option<(RunId, OpId)>,
        limit: usize,
    ) -> Result<Vec<DoubtRecord>, Error> {
        self.inner.list_doubts(filter, after, limit).await
    }

    async fn count_doubts(&self) -> Result<u64, Error> {
        self.inner.count_doubts().await
    }

    async fn create_namespace(&self, name: &str, description: &str) -> Result<bool, Error> {
        self.inner.create_namespace(name, description).await
    }

    async fn get_namespace(&self, name: &str) -> Result<Option<Namespace>, Error> {
        self.inner.get_namespace(name).await
    }

    async fn list_namespaces(&self, after: &str, limit: usize) -> Result<Vec<Namespace>, Error> {
        self.inner.list_namespaces(after, limit).await
    }
}

#[async_trait]
impl Admin for SimStore {
    async fn administer(
        &self,
        change: &Change,
        request: Option<&AdminRequest>,
    ) -> Result<Administered, Error> {
        self.inner.administer(change, request).await
    }

    async fn search_attributes(&self, namespace: &str) -> Result<BTreeMap<String, AttributeType>, Error> {
        self.inner.search_attributes(namespace).await
    }
}

#[async_trait]
impl Sessions for SimStore {
    async fn open_session(&self, session: &SessionRow) -> Result<Option<Timestamp>, Error> {
        self.ask(|store| store.open_session_sync(session))
    }

    async fn renew_session(&self, session: SessionId, lease: Duration) -> Result<Option<Timestamp>, Error> {
        self.ask(|store| store.renew_session_sync(session, lease))
    }

    async fn close_session(&self, session: SessionId) -> Result<bool, Error> {
        self.ask(|store| store.close_session_sync(session))
    }

    async fn close_expired_sessions(&self, limit: usize) -> Result<Vec<SessionId>, Error> {
        self.ask(|store| store.close_expired_sessions_sync(limit))
    }

    async fn owned_runs(
        &self,
        session: SessionId,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunId>, Error> {
        self.ask(|store| store.owned_runs_sync(session, after, limit))
    }
}

#[async_trait]
impl Sweep for SimStore {
    async fn claim_timers(&self, limit: usize, claim: Duration) -> Result<ClaimedTimers, Error> {
        self.ask(|store| store.claim_timers_sync(limit, claim))
    }

    async fn renew_timers(
        &self,
        timers: &[(RunId, TimerKey)],
        claim: Duration,
    ) -> Result<Vec<(RunId, TimerKey)>, Error> {
        self.ask(|store| store.renew_timers_sync(timers, claim))
    }

    async fn claim_tasks(
        &self,
        wants: Option<&[RunWant]>,
        limit: usize,
    ) -> Result<Vec<(RunId, TaskRow)>, Error> {
        self.ask(|store| store.claim_tasks_sync(wants, limit))
    }

    async fn lost_runs(&self, limit: usize) -> Result<Vec<(RunId, SessionId)>, Error> {
        self.ask(|store| store.lost_runs_sync(limit))
    }

    async fn stale_wakes(
        &self,
        node: NodeId,
        age: Duration,
        limit: usize,
    ) -> Result<Vec<(RunId, Seq)>, Error> {
        self.ask(|store| store.stale_wakes_sync(node, age, limit))
    }

    async fn delete_wakes(&self, seen: &[(RunId, Seq)]) -> Result<(), Error> {
        self.ask(|store| store.delete_wakes_sync(seen))
    }

    async fn blocked_runs(
        &self,
        queue: &QueueKey,
        build_id: &str,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunId>, Error> {
        self.ask(|store| store.blocked_runs_sync(queue, build_id, after, limit))
    }
}

#[async_trait]
impl Outbox for SimStore {
    async fn claim_outbox(&self, runs: usize, rows: usize) -> Result<Vec<(RunId, Vec<Seq>)>, Error> {
        self.ask(|store| store.claim_outbox_sync(runs, rows))
    }

    async fn hold_outbox(&self, held: &[(RunId, Seq)], hold: Duration) -> Result<(), Error> {
        self.ask(|store| store.hold_outbox_sync(held, hold))
    }

    async fn delete_outbox(&self, heard: &[(RunId, Seq)]) -> Result<(), Error> {
        self.ask(|store| store.delete_outbox_sync(heard))
    }

    async fn run_links(&self, runs: &[RunId]) -> Result<Vec<(RunId, RunLink)>, Error> {
        self.inner.run_links(runs).await
    }
}

#[async_trait]
impl Inspect for SimStore {
    async fn backlog(&self, limit: usize) -> Result<Backlog, Error> {
        self.ask(|store| store.backlog_sync(limit))
    }

    async fn wake_page(
        &self,
        table: WakeTable,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<WakePage, Error> {
        self.ask(|store| store.wake_page_sync(table, after, limit))
    }

    async fn wake_rows(&self, runs: &[RunId]) -> Result<Vec<WakeRows>, Error> {
        self.ask(|store| store.wake_rows_sync(runs))
    }
}

/// The conformance suite of the store's port.
mod conforms {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use everstep_core::Timestamp;
    use everstep_store::conformance::{self, Subject};

    use super::SimStore;

    /// A store on a clock that only the suite moves.
    fn subject() -> Subject {
        let clock = Arc::new(AtomicI64::new(1_700_000_000_000_000));
        let read = Arc::clone(&clock);
        let store = SimStore::new(move || Timestamp::from_micros(read.load(Ordering::Relaxed)));
        Subject::with_clock(Arc::new(store), move |by| {
            clock.fetch_add(i64::try_from(by.as_micros()).unwrap_or(0), Ordering::Relaxed);
        })
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_simulated_store_conforms_to_the_port() {
        conformance::run_all(|| async { subject() }).await;
    }

    #[tokio::test]
    async fn the_simulated_store_conforms_in_one_store() {
        let one = subject();
        conformance::run_all(|| async { one.clone() }).await;
    }

    #[tokio::test]
    async fn the_simulated_store_equals_itself_over_random_operations() {
        for seed in 0..20 {
            conformance::differential(&*subject().store, &*subject().store, seed).await;
        }
    }
}

#[async_trait]
impl Builds for SimStore {
    async fn census(&self, age: Duration, limit: usize) -> Result<Census, Error> {
        self.ask(|store| store.census_sync(age, limit))
    }

    async fn queue_census(&self, queue: &QueueKey, limit: usize) -> Result<QueueCensus, Error> {
        self.ask(|store| store.queue_census_sync(queue, limit))
    }

    async fn task_of(&self, run: RunId) -> Result<Option<TaskRow>, Error> {
        self.ask(|store| store.task_of_sync(run))
    }

    async fn allowed_builds(&self, limit: usize) -> Result<Vec<AllowedBuild>, Error> {
        self.ask(|store| store.allowed_builds_sync(limit))
    }
}
