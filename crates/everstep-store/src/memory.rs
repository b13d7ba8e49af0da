//! The in-memory store: the semantics of the port, without a database. Nothing survives the process.

mod admin;
mod builds;
mod doubts;
mod inspect;
mod outbox;
mod relay;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use everstep_core::{
    Attribute, Doubt, Duration, Event, NodeId, Notes, OpId, Projection, QueueKey, RunId, RunRow, RunStatus,
    Seq, SessionId, TaskRow, Timer, TimerKey, Timestamp, Write,
};

use crate::{
    AllowedBuild, Append, AppendReply, Catalog, ClaimedTimers, DoubtFilter, DoubtRecord, Error, HEAD_MAX,
    Head, Log, Namespace, PAGE_BYTES_MAX, PageToken, Relay, RunAppend, RunFilter, RunRecord, RunTables,
    RunWant, SessionRow, Sessions, StartRecord, Sweep, Verdict,
};

/// The end of a timer's claim while nobody has claimed it.
const UNCLAIMED: Timestamp = Timestamp::from_micros(i64::MIN);

/// A store in memory. Its clock is the caller's, so that a simulation can move it.
pub struct MemoryStore {
    clock: Box<dyn Fn() -> Timestamp + Send + Sync>,
    tables: Mutex<Tables>,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Tables {
    events: BTreeMap<RunId, Vec<Event>>,
    runs: BTreeMap<RunId, RunRow>,
    workflow_ids: BTreeMap<(String, String), RunId>,
    start_requests: BTreeMap<(String, String, String), (RunId, [u8; 32])>,
    timers: BTreeMap<(RunId, TimerKey), (Timestamp, Timestamp)>,
    tasks: BTreeMap<RunId, Task>,
    wakes: BTreeMap<(RunId, Seq), Timestamp>,
    doubts: BTreeMap<(RunId, OpId), Doubt>,
    sessions: BTreeMap<SessionId, (SessionRow, Timestamp, bool)>,
    allowed: BTreeSet<AllowedBuild>,
    namespaces: BTreeMap<String, Namespace>,
    admin: admin::AdminTables,
    attributes: BTreeMap<RunId, BTreeMap<String, Attribute>>,
    asks: relay::Asks,
    steps: steps::StepTables,
    between: outbox::Between,
}

#[derive(Debug)]
struct Task {
    row: TaskRow,
    claims: u32,
    next_claim_at: Timestamp,
}

impl MemoryStore {
    /// An empty store with the namespace `default`, whose database time is what `clock` says.
    pub fn new(clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let mut tables = Tables::default();
        tables.create_namespace("default", "", clock());
        Self { clock: Box::new(clock), tables: Mutex::new(tables) }
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Log::append`], at once.
    pub fn append_sync(&self, batch: Vec<Append>) -> AppendReply {
        let now = (self.clock)();
        let mut tables = self.lock();
        AppendReply { now: Some(now), verdicts: tables.append(&batch, now) }
    }

    /// [`Log::read_events`], at once.
    pub fn read_events_sync(&self, run: RunId, after: Seq, limit: usize) -> Vec<Event> {
        let tables = self.lock();
        let Some(events) = tables.events.get(&run) else { return Vec::new() };
        let mut bytes = 0;
        let mut page = Vec::new();
        for event in events.iter().skip(usize::try_from(after).unwrap_or(usize::MAX)).take(limit) {
            bytes += event.body.data_bytes();
            if bytes > PAGE_BYTES_MAX && !page.is_empty() {
                break;
            }
            page.push(event.clone());
        }
        page
    }

    /// Every run there is, for a checker.
    pub fn run_ids_sync(&self) -> Vec<RunId> {
        self.lock().events.keys().copied().collect()
    }

    /// [`Catalog::find_start`], at once.
    pub fn find_start_sync(&self, namespace: &str, workflow_id: &str, request_id: &str) -> StartRecord {
        let tables = self.lock();
        let key = (namespace.to_owned(), workflow_id.to_owned());
        let current =
            tables.workflow_ids.get(&key).and_then(|run| Some((*run, tables.runs.get(run)?.status)));
        let request = tables.start_requests.get(&(key.0, key.1, request_id.to_owned())).copied();
        StartRecord { current, request }
    }

    /// [`Catalog::run_tables`], at once.
    pub fn run_tables_sync(&self, run: RunId) -> Option<RunTables> {
        let tables = self.lock();
        let row = tables.runs.get(&run)?.clone();
        let timers = tables
            .timers
            .range((run, TimerKey { kind: everstep_core::TimerKind::Timer, id: 0 })..)
            .take_while(|((r, _), _)| *r == run)
            .map(|((_, key), (fire_at, _))| Timer { key: *key, fire_at: *fire_at })
            .collect();
        let task = tables.tasks.get(&run).map(|t| t.row.clone());
        let wakes = tables.wakes.range((run, 0)..=(run, Seq::MAX)).map(|((_, seq), _)| *seq).collect();
        let (doubts, steps) = (tables.doubts_of(run), tables.steps.of_run(run));
        let link = tables.between.link_of(run);
        let attributes = tables.attributes.get(&run).cloned().unwrap_or_default();
        Some(RunTables {
            projection: Projection { row, timers, task, doubts, steps, link, attributes },
            wakes,
        })
    }

    /// [`Sessions::open_session`], at once.
    pub fn open_session_sync(&self, session: &SessionRow) -> Option<Timestamp> {
        let until = (self.clock)().after(session.lease);
        let mut tables = self.lock();
        let taken = |(row, _, closed): &(SessionRow, _, bool)| *closed || row.namespace != session.namespace;
        if tables.sessions.get(&session.session_id).is_some_and(taken) {
            return None;
        }
        tables.sessions.insert(session.session_id, (session.clone(), until, false));
        Some(until)
    }

    /// [`Sessions::renew_session`], at once.
    pub fn renew_session_sync(&self, session: SessionId, lease: Duration) -> Option<Timestamp> {
        let until = (self.clock)().after(lease);
        match self.lock().sessions.get_mut(&session) {
            Some((_, lease_until, false)) => {
                *lease_until = until;
                Some(until)
            }
            _ => None,
        }
    }

    /// [`Sessions::close_session`], at once.
    pub fn close_session_sync(&self, session: SessionId) -> bool {
        match self.lock().sessions.get_mut(&session) {
            Some((_, _, closed)) if !*closed => {
                *closed = true;
                true
            }
            _ => false,
        }
    }

    /// [`Sessions::close_expired_sessions`], at once.
    pub fn close_expired_sessions_sync(&self, limit: usize) -> Vec<SessionId> {
        let now = (self.clock)();
        let mut tables = self.lock();
        let expired =
            tables.sessions.iter_mut().filter(|(_, (_, until, closed))| !closed && *until < now).take(limit);
        expired
            .map(|(id, (_, _, closed))| {
                *closed = true;
                *id
            })
            .collect()
    }

    /// [`Sessions::owned_runs`], at once.
    pub fn owned_runs_sync(&self, session: SessionId, after: Option<RunId>, limit: usize) -> Vec<RunId> {
        let tables = self.lock();
        let open = tables.runs.values().filter(|r| !r.status.is_closed());
        let owned = open.filter(|r| r.owner == Some(session) && Some(r.run_id) > after);
        owned.map(|r| r.run_id).take(limit).collect()
    }

    /// [`Sweep::claim_timers`], at once.
    pub fn claim_timers_sync(&self, limit: usize, claim: Duration) -> ClaimedTimers {
        let now = (self.clock)();
        let mut tables = self.lock();
        let free = |claimed: &Timestamp| *claimed < now;
        let mut due: Vec<(Timestamp, RunId, TimerKey)> = tables
            .timers
            .iter()
            .filter(|(_, (fire_at, claimed))| *fire_at <= now && free(claimed))
            .map(|((run, key), (fire_at, _))| (*fire_at, *run, *key))
            .collect();
        due.sort_unstable();
        due.truncate(limit);
        for (_, run, key) in &due {
            if let Some((_, claimed)) = tables.timers.get_mut(&(*run, *key)) {
                *claimed = now.after(claim);
            }
        }
        let next =
            tables.timers.values().filter(|(at, claimed)| *at > now && free(claimed)).map(|t| t.0).min();
        let late = due.iter().map(|(fire_at, ..)| now.since(*fire_at)).collect();
        ClaimedTimers { due: due.into_iter().map(|(_, run, key)| (run, key)).collect(), late, next, now }
    }

    /// [`Sweep::renew_timers`], at once.
    pub fn renew_timers_sync(&self, timers: &[(RunId, TimerKey)], claim: Duration) -> Vec<(RunId, TimerKey)> {
        let now = (self.clock)();
        let mut tables = self.lock();
        let mut renew = |timer: &(RunId, TimerKey)| match tables.timers.get_mut(timer) {
            Some((_, claimed)) if *claimed != UNCLAIMED => {
                *claimed = now.after(claim);
                true
            }
            _ => false,
        };
        timers.iter().copied().filter(|timer| renew(timer)).collect()
    }

    /// [`Sweep::lost_runs`], at once.
    pub fn lost_runs_sync(&self, limit: usize) -> Vec<(RunId, SessionId)> {
        let tables = self.lock();
        let closed = |session: &SessionId| tables.sessions.get(session).is_none_or(|(_, _, closed)| *closed);
        let open = tables.runs.values().filter(|r| !r.status.is_closed());
        open.filter_map(|r| Some((r.run_id, r.owner.filter(closed)?))).take(limit).collect()
    }

    /// [`Sweep::stale_wakes`], at once.
    pub fn stale_wakes_sync(&self, node: NodeId, age: Duration, limit: usize) -> Vec<(RunId, Seq)> {
        let now = (self.clock)();
        let tables = self.lock();
        let here = |run: &RunId| {
            let owner = tables.runs.get(run).and_then(|r| r.owner);
            owner
                .and_then(|o| tables.sessions.get(&o))
                .is_some_and(|(s, _, closed)| s.node_id == node && !closed)
        };
        let stale = tables.wakes.iter().filter(|((run, _), at)| at.after(age) < now && here(run));
        // In order of seq, so that the last one of each run stays.
        let last: BTreeMap<RunId, Seq> = stale.map(|(key, _)| *key).collect();
        last.into_iter().take(limit).collect()
    }

    /// [`Sweep::delete_wakes`], at once.
    pub fn delete_wakes_sync(&self, seen: &[(RunId, Seq)]) {
        let mut tables = self.lock();
        for (run, up_to) in seen {
            tables.wakes.retain(|(r, seq), _| r != run || seq > up_to);
        }
    }

    /// [`Sweep::blocked_runs`], at once.
    pub fn blocked_runs_sync(
        &self,
        queue: &QueueKey,
        build_id: &str,
        after: Option<RunId>,
        limit: usize,
    ) -> Vec<RunId> {
        let tables = self.lock();
        let blocked = tables.runs.values().filter(|r| {
            r.status == RunStatus::Blocked
                && r.namespace == queue.namespace
                && r.task_queue == queue.task_queue
                && r.build_id != build_id
                && Some(r.run_id) > after
        });
        blocked.map(|r| r.run_id).take(limit).collect()
    }
}

impl Tables {
    fn append(&mut self, batch: &[Append], now: Timestamp) -> Vec<Verdict> {
        let (mut runs, mut ids) = (BTreeSet::new(), BTreeSet::new());
        let mut verdicts = Vec::with_capacity(batch.len());
        for append in batch {
            // A run or workflow id that an earlier append of the batch names is not decided twice.
            let mut fresh = true;
            for run in append.runs() {
                fresh &= runs.insert(run.run_id);
                if let Some(claim) = &run.start {
                    fresh &= ids.insert((claim.namespace.as_str(), claim.workflow_id.as_str()));
                }
            }
            verdicts.push(match append.malformed() {
                Some(problem) => Verdict::Failed(Error::Refused(problem)),
                // Both runs are checked before either is written: they stand or fall together.
                None if fresh && append.runs().all(|run| self.admits(run)) => {
                    append.runs().for_each(|run| self.write(run, now));
                    Verdict::Committed
                }
                None => Verdict::Conflict,
            });
        }
        verdicts
    }

    fn admits(&self, append: &RunAppend) -> bool {
        let free = append.start.as_ref().is_none_or(|claim| {
            let key = (claim.namespace.clone(), claim.workflow_id.clone());
            let expected = self.workflow_ids.get(&key).copied() == claim.expected;
            expected && !self.start_requests.contains_key(&(key.0, key.1, claim.request_id.clone()))
        });
        let tail = self.events.get(&append.run_id).map_or(0, Vec::len) as Seq;
        free && append.events.first().is_some_and(|first| first.seq == tail + 1)
    }

    fn write(&mut self, append: &RunAppend, now: Timestamp) {
        let run_id = append.run_id;
        if let Some(claim) = &append.start {
            let key = (claim.namespace.clone(), claim.workflow_id.clone());
            let request = (key.0.clone(), key.1.clone(), claim.request_id.clone());
            self.start_requests.insert(request, (run_id, claim.body_hash));
            self.workflow_ids.insert(key, run_id);
        }
        self.events.entry(run_id).or_default().extend(append.events.iter().cloned());
        for write in &append.writes {
            match write {
                Write::Run(row) => {
                    if self.runs.get(&run_id).is_none_or(|old| old.last_seq < row.last_seq) {
                        self.runs.insert(run_id, (**row).clone());
                    }
                }
                Write::TimerSet(timer) => {
                    self.timers.insert((run_id, timer.key), (timer.fire_at, UNCLAIMED));
                }
                Write::TimerDeleted(key) => {
                    self.timers.remove(&(run_id, *key));
                }
                Write::TimersCleared => self.timers.retain(|(run, _), _| *run != run_id),
                Write::TaskSet(task) => self.set_task(run_id, task, now.after(Duration::from_secs(1))),
                Write::TaskDeleted => {
                    self.tasks.remove(&run_id);
                }
                Write::DoubtSet(doubt) => {
                    self.doubts.insert((run_id, doubt.step), (**doubt).clone());
                }
                Write::DoubtDeleted(step) => {
                    self.doubts.remove(&(run_id, *step));
                }
                Write::DoubtsCleared => self.doubts.retain(|(run, _), _| *run != run_id),
                Write::AttributesSet(rows) => drop(self.attributes.insert(run_id, rows.attributes.clone())),
                Write::OutboxSet { seq } => self.between.set(run_id, *seq, now),
                Write::OutboxDeleted { seq } => self.between.delete(run_id, *seq),
                Write::LinkSet(link) => self.between.link(run_id, link),
                Write::StepTaskSet(task) => self.steps.set(run_id, task, now),
                Write::StepTaskDeleted(step) => self.steps.delete(run_id, *step),
                Write::StepTasksCleared => self.steps.clear(run_id),
                Write::WakeSet { seq } => {
                    self.wakes.entry((run_id, *seq)).or_insert(now);
                }
                Write::WakesDeleted { up_to } => {
                    self.wakes.retain(|(run, seq), _| *run != run_id || seq > up_to)
                }
            }
        }
    }
}

#[async_trait]
impl Log for MemoryStore {
    fn relay(&self) -> Option<&dyn Relay> {
        Some(self)
    }

    async fn append(&self, batch: Vec<Append>) -> AppendReply {
        self.append_sync(batch)
    }

    async fn read_events(&self, run: RunId, after: Seq, limit: usize) -> Result<Vec<Event>, Error> {
        Ok(self.read_events_sync(run, after, limit))
    }

    async fn read_heads(&self, runs: &[(RunId, Seq)]) -> Vec<Result<Head, Error>> {
        let head = |(run, after): &(RunId, Seq)| {
            let events = self.read_events_sync(*run, *after, HEAD_MAX);
            let last = events.last().map_or(*after, |event| event.seq);
            let more = !self.read_events_sync(*run, last, 1).is_empty();
            Ok(Head { events, more })
        };
        runs.iter().map(head).collect()
    }

    async fn now(&self) -> Result<Timestamp, Error> {
        Ok((self.clock)())
    }
}

#[async_trait]
impl Catalog for MemoryStore {
    async fn get_run(&self, run: RunId) -> Result<Option<RunRecord>, Error> {
        let tables = self.lock();
        let tail_seq = tables.events.get(&run).map_or(0, Vec::len) as Seq;
        Ok(tables.runs.get(&run).map(|row| RunRecord { row: row.clone(), tail_seq }))
    }

    async fn find_start(
        &self,
        namespace: &str,
        workflow_id: &str,
        request_id: &str,
    ) -> Result<StartRecord, Error> {
        Ok(self.find_start_sync(namespace, workflow_id, request_id))
    }

    async fn list_runs(
        &self,
        filter: &RunFilter,
        page: Option<PageToken>,
        limit: usize,
    ) -> Result<Vec<RunRow>, Error> {
        let tables = self.lock();
        let matches = |r: &&RunRow| {
            r.namespace == filter.namespace
                && filter.workflow_id.as_ref().is_none_or(|w| *w == r.workflow_id)
                && filter.workflow_type.as_ref().is_none_or(|t| *t == r.workflow_type)
                && filter.parent.is_none_or(|parent| tables.between.is_child_of(r.run_id, parent))
                && (filter.statuses.is_empty() || filter.statuses.contains(&r.status))
                && page.is_none_or(|p| r.run_id < p.0)
                && filter.waiting.as_ref().is_none_or(|waiting| {
                    tables.tasks.get(&r.run_id).is_some_and(|task| waiting.tasks.contains(&task.row))
                })
                && tables.attributes_match(r.run_id, &filter.attributes)
        };
        Ok(tables.runs.values().rev().filter(matches).take(limit).cloned().collect())
    }

    async fn closed_among(&self, runs: &[RunId]) -> Result<Vec<RunId>, Error> {
        let tables = self.lock();
        let closed = |run: &&RunId| tables.runs.get(*run).is_some_and(|r| r.status.is_closed());
        Ok(runs.iter().filter(closed).copied().collect::<BTreeSet<_>>().into_iter().collect())
    }

    async fn run_notes(&self, run: RunId) -> Result<Notes, Error> {
        Ok(Notes::told(self.lock().events.get(&run).into_iter().flatten()))
    }

    async fn run_tables(&self, run: RunId) -> Result<Option<RunTables>, Error> {
        Ok(self.run_tables_sync(run))
    }

    async fn list_doubts(
        &self,
        filter: &DoubtFilter,
        after: Option<(RunId, OpId)>,
        limit: usize,
    ) -> Result<Vec<DoubtRecord>, Error> {
        Ok(self.lock().list_doubts(filter, after, limit))
    }

    async fn count_doubts(&self) -> Result<u64, Error> {
        Ok(self.lock().doubts.len() as u64)
    }

    async fn create_namespace(&self, name: &str, description: &str) -> Result<bool, Error> {
        let created_at = (self.clock)();
        Ok(self.lock().create_namespace(name, description, created_at))
    }

    async fn get_namespace(&self, name: &str) -> Result<Option<Namespace>, Error> {
        Ok(self.lock().namespaces.get(name).cloned())
    }

    async fn list_namespaces(&self, after: &str, limit: usize) -> Result<Vec<Namespace>, Error> {
        let tables = self.lock();
        Ok(tables.namespaces.values().filter(|n| n.name.as_str() > after).take(limit).cloned().collect())
    }
}

#[async_trait]
impl Sessions for MemoryStore {
    async fn open_session(&self, session: &SessionRow) -> Result<Option<Timestamp>, Error> {
        Ok(self.open_session_sync(session))
    }

    async fn renew_session(&self, session: SessionId, lease: Duration) -> Result<Option<Timestamp>, Error> {
        Ok(self.renew_session_sync(session, lease))
    }

    async fn close_session(&self, session: SessionId) -> Result<bool, Error> {
        Ok(self.close_session_sync(session))
    }

    async fn close_expired_sessions(&self, limit: usize) -> Result<Vec<SessionId>, Error> {
        Ok(self.close_expired_sessions_sync(limit))
    }

    async fn owned_runs(
        &self,
        session: SessionId,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunId>, Error> {
        Ok(self.owned_runs_sync(session, after, limit))
    }
}

#[async_trait]
impl Sweep for MemoryStore {
    async fn claim_timers(&self, limit: usize, claim: Duration) -> Result<ClaimedTimers, Error> {
        Ok(self.claim_timers_sync(limit, claim))
    }

    async fn renew_timers(
        &self,
        timers: &[(RunId, TimerKey)],
        claim: Duration,
    ) -> Result<Vec<(RunId, TimerKey)>, Error> {
        Ok(self.renew_timers_sync(timers, claim))
    }

    async fn claim_tasks(
        &self,
        wants: Option<&[RunWant]>,
        limit: usize,
    ) -> Result<Vec<(RunId, TaskRow)>, Error> {
        Ok(self.claim_tasks_sync(wants, limit))
    }

    async fn lost_runs(&self, limit: usize) -> Result<Vec<(RunId, SessionId)>, Error> {
        Ok(self.lost_runs_sync(limit))
    }

    async fn stale_wakes(
        &self,
        node: NodeId,
        age: Duration,
        limit: usize,
    ) -> Result<Vec<(RunId, Seq)>, Error> {
        Ok(self.stale_wakes_sync(node, age, limit))
    }

    async fn delete_wakes(&self, seen: &[(RunId, Seq)]) -> Result<(), Error> {
        self.delete_wakes_sync(seen);
        Ok(())
    }

    async fn blocked_runs(
        &self,
        queue: &QueueKey,
        build_id: &str,
        after: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunId>, Error> {
        Ok(self.blocked_runs_sync(queue, build_id, after, limit))
    }
}
