//! The tables of the in-memory store, and every question and change as a plain function of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, RangeInclusive};

use everstep_core::{
    Duration, Event, NodeId, Projection, QueueKey, RunId, RunRow, RunStatus, Seq, SessionId, Timer, TimerKey,
    TimerKind, Timestamp, Write,
};

use crate::{
    Append, ClaimedTimers, Error, Namespace, PageToken, RunAppend, RunFilter, RunRecord, RunTables,
    SessionRow, StartClaim, StartRecord, Verdict,
};

/// Most payload bytes in one page of events.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A new task is left to the normal dispatch for this long.
const TASK_GRACE: Duration = Duration::from_secs(1);
/// The longest pause between two looks at a task.
const TASK_PAUSE_SECS_MAX: u64 = 60;

pub(super) struct State {
    events: BTreeMap<RunId, Vec<Event>>,
    runs: BTreeMap<RunId, RunRow>,
    workflow_ids: BTreeMap<(String, String), RunId>,
    start_requests: BTreeMap<(String, String, String), (RunId, [u8; 32])>,
    timers: BTreeMap<(RunId, TimerKey), TimerRow>,
    tasks: BTreeMap<RunId, TaskRow>,
    wakes: BTreeMap<(RunId, Seq), Timestamp>,
    sessions: BTreeMap<SessionId, OpenedSession>,
    namespaces: BTreeMap<String, Namespace>,
}

struct TimerRow {
    fire_at: Timestamp,
    claimed_until: Option<Timestamp>,
}

struct TaskRow {
    queue: QueueKey,
    claims: u32,
    next_claim_at: Timestamp,
}

struct OpenedSession {
    node_id: NodeId,
    lease_until: Timestamp,
    closed: bool,
}

impl State {
    pub(super) fn new(now: Timestamp) -> Self {
        let mut state = Self {
            events: BTreeMap::new(),
            runs: BTreeMap::new(),
            workflow_ids: BTreeMap::new(),
            start_requests: BTreeMap::new(),
            timers: BTreeMap::new(),
            tasks: BTreeMap::new(),
            wakes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            namespaces: BTreeMap::new(),
        };
        state.create_namespace("default", "", now);
        state
    }

    // The log.

    pub(super) fn append(&mut self, batch: &[Append], now: Timestamp) -> Vec<Verdict> {
        let mut seen_runs = BTreeSet::new();
        let mut seen_ids = BTreeSet::new();
        let mut verdicts = Vec::with_capacity(batch.len());
        for append in batch {
            // A run or workflow id that an earlier append of the batch names is not decided twice.
            let mut fresh = true;
            for run in append.runs() {
                fresh &= seen_runs.insert(run.run_id);
                if let Some(start) = &run.start {
                    fresh &= seen_ids.insert((start.namespace.as_str(), start.workflow_id.as_str()));
                }
            }
            verdicts.push(if let Some(problem) = append.runs().find_map(malformed) {
                Verdict::Failed(Error::Refused(problem))
            } else if append.with.as_ref().is_some_and(|with| with.run_id == append.run.run_id) {
                Verdict::Failed(Error::Refused("a group names the same run twice".to_owned()))
            } else if fresh && append.runs().all(|run| self.admits(run)) {
                append.runs().for_each(|run| self.write(run, now));
                Verdict::Committed
            } else {
                Verdict::Conflict
            });
        }
        verdicts
    }

    fn admits(&self, run: &RunAppend) -> bool {
        let tail = self.tail(run.run_id);
        let in_place = run.events.first().is_some_and(|first| first.seq == tail + 1);
        in_place && run.start.as_ref().is_none_or(|start| self.admits_start(start))
    }

    fn admits_start(&self, start: &StartClaim) -> bool {
        let current = self.workflow_ids.get(&workflow_key(start)).copied();
        current == start.expected && !self.start_requests.contains_key(&request_key(start))
    }

    fn write(&mut self, run: &RunAppend, now: Timestamp) {
        if let Some(start) = &run.start {
            self.workflow_ids.insert(workflow_key(start), run.run_id);
            self.start_requests.insert(request_key(start), (run.run_id, start.body_hash));
        }
        self.events.entry(run.run_id).or_default().extend(run.events.iter().cloned());
        for write in &run.writes {
            self.project(run.run_id, write, now);
        }
    }

    fn project(&mut self, run: RunId, write: &Write, now: Timestamp) {
        match write {
            Write::Run(row) => {
                if self.runs.get(&run).is_none_or(|stored| stored.last_seq < row.last_seq) {
                    self.runs.insert(run, (**row).clone());
                }
            }
            Write::TimerSet(Timer { key, fire_at }) => {
                self.timers.insert((run, *key), TimerRow { fire_at: *fire_at, claimed_until: None });
            }
            Write::TimerDeleted(key) => {
                self.timers.remove(&(run, *key));
            }
            Write::TimersCleared => {
                let keys: Vec<_> = self.timers.range(timers_of(run)).map(|(key, _)| *key).collect();
                keys.iter().for_each(|key| drop(self.timers.remove(key)));
            }
            Write::TaskSet(queue) => {
                let row = TaskRow { queue: queue.clone(), claims: 0, next_claim_at: now.after(TASK_GRACE) };
                self.tasks.insert(run, row);
            }
            Write::TaskDeleted => {
                self.tasks.remove(&run);
            }
            Write::WakeSet { seq } => {
                self.wakes.entry((run, *seq)).or_insert(now);
            }
            Write::WakesDeleted { up_to } => self.delete_wakes(run, *up_to),
        }
    }

    fn tail(&self, run: RunId) -> Seq {
        self.events.get(&run).and_then(|events| events.last()).map_or(0, |event| event.seq)
    }

    pub(super) fn read_events(&self, run: RunId, after: Seq, limit: usize) -> Vec<Event> {
        let events = self.events.get(&run).map_or(&[][..], Vec::as_slice);
        let from = usize::try_from(after).unwrap_or(usize::MAX).min(events.len());
        let mut bytes = 0;
        let mut page = Vec::new();
        for event in events[from..].iter().take(limit) {
            bytes += event.body.payload().map_or(0, |payload| payload.data.len());
            if bytes > PAGE_BYTES_MAX && !page.is_empty() {
                break;
            }
            page.push(event.clone());
        }
        page
    }

    // Runs and namespaces.

    pub(super) fn get_run(&self, run: RunId) -> Option<RunRecord> {
        self.runs.get(&run).map(|row| RunRecord { row: row.clone(), tail_seq: self.tail(run) })
    }

    pub(super) fn find_start(
        &self,
        namespace: &str,
        workflow_id: &str,
        request_id: &str,
    ) -> Result<StartRecord, Error> {
        let (namespace, workflow_id) = (namespace.to_owned(), workflow_id.to_owned());
        let key = (namespace.clone(), workflow_id.clone(), request_id.to_owned());
        let current = match self.workflow_ids.get(&(namespace, workflow_id)) {
            None => None,
            Some(run) => match self.runs.get(run) {
                Some(row) => Some((*run, row.status)),
                None => return Err(Error::Corrupt(format!("run {run} holds a workflow id and has no row"))),
            },
        };
        Ok(StartRecord { current, request: self.start_requests.get(&key).copied() })
    }

    pub(super) fn list_runs(&self, filter: &RunFilter, page: Option<PageToken>, limit: usize) -> Vec<RunRow> {
        let end = page.map_or(Bound::Unbounded, |PageToken(run)| Bound::Excluded(run));
        let matches = |row: &&RunRow| {
            row.namespace == filter.namespace
                && filter.workflow_id.as_ref().is_none_or(|id| *id == row.workflow_id)
                && filter.workflow_type.as_ref().is_none_or(|name| *name == row.workflow_type)
                && (filter.statuses.is_empty() || filter.statuses.contains(&row.status))
        };
        let newest_first = self.runs.range((Bound::Unbounded, end)).rev().map(|(_, row)| row);
        newest_first.filter(matches).take(limit).cloned().collect()
    }

    pub(super) fn closed_among(&self, runs: &[RunId]) -> Vec<RunId> {
        let closed = |run: &RunId| self.runs.get(run).is_some_and(|row| row.status.is_closed());
        runs.iter().copied().filter(closed).collect()
    }

    pub(super) fn run_tables(&self, run: RunId) -> Option<RunTables> {
        let row = self.runs.get(&run)?.clone();
        let of_run = self.timers.range(timers_of(run));
        let timers = of_run.map(|((_, key), timer)| Timer { key: *key, fire_at: timer.fire_at }).collect();
        let task = self.tasks.get(&run).map(|task| task.queue.clone());
        let wakes = self.wakes.range((run, 0)..=(run, Seq::MAX)).map(|((_, seq), _)| *seq).collect();
        Some(RunTables { projection: Projection { row, timers, task }, wakes })
    }

    pub(super) fn create_namespace(&mut self, name: &str, description: &str, now: Timestamp) -> bool {
        if self.namespaces.contains_key(name) {
            return false;
        }
        let namespace =
            Namespace { name: name.to_owned(), description: description.to_owned(), created_at: now };
        self.namespaces.insert(name.to_owned(), namespace);
        true
    }

    pub(super) fn get_namespace(&self, name: &str) -> Option<Namespace> {
        self.namespaces.get(name).cloned()
    }

    pub(super) fn list_namespaces(&self, after: &str, limit: usize) -> Vec<Namespace> {
        let later = self.namespaces.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        later.take(limit).map(|(_, namespace)| namespace.clone()).collect()
    }

    // Sessions.

    pub(super) fn open_session(&mut self, session: &SessionRow, now: Timestamp) -> Option<Timestamp> {
        let lease_until = now.after(session.lease);
        let stored = self.sessions.entry(session.session_id).or_insert(OpenedSession {
            node_id: session.node_id,
            lease_until,
            closed: false,
        });
        if stored.closed {
            return None;
        }
        stored.node_id = session.node_id;
        stored.lease_until = lease_until;
        Some(lease_until)
    }

    pub(super) fn renew_session(
        &mut self,
        session: SessionId,
        lease: Duration,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let stored = self.sessions.get_mut(&session).filter(|s| !s.closed)?;
        stored.lease_until = now.after(lease);
        Some(stored.lease_until)
    }

    pub(super) fn close_session(&mut self, session: SessionId) -> bool {
        let open = self.sessions.get_mut(&session).filter(|s| !s.closed);
        open.map(|s| s.closed = true).is_some()
    }

    pub(super) fn close_expired_sessions(&mut self, limit: usize, now: Timestamp) -> Vec<SessionId> {
        let expired = self.sessions.iter_mut().filter(|(_, s)| !s.closed && s.lease_until < now);
        let close = |(id, s): (&SessionId, &mut OpenedSession)| {
            s.closed = true;
            *id
        };
        expired.take(limit).map(close).collect()
    }

    pub(super) fn owned_runs(&self, session: SessionId, after: Option<RunId>, limit: usize) -> Vec<RunId> {
        self.runs_after(after)
            .filter(|row| row.owner == Some(session) && !row.status.is_closed())
            .take(limit)
            .map(|row| row.run_id)
            .collect()
    }

    fn runs_after(&self, after: Option<RunId>) -> impl Iterator<Item = &RunRow> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.runs.range((start, Bound::Unbounded)).map(|(_, row)| row)
    }

    // The sweep.

    pub(super) fn claim_timers(&mut self, limit: usize, claim: Duration, now: Timestamp) -> ClaimedTimers {
        let free = |timer: &TimerRow| timer.claimed_until.is_none_or(|until| until < now);
        let mut due: Vec<_> = self
            .timers
            .iter()
            .filter(|(_, timer)| timer.fire_at <= now && free(timer))
            .map(|((run, key), timer)| (timer.fire_at, *run, *key))
            .collect();
        due.sort_unstable();
        due.truncate(limit);
        for (_, run, key) in &due {
            if let Some(timer) = self.timers.get_mut(&(*run, *key)) {
                timer.claimed_until = Some(now.after(claim));
            }
        }
        let next = self.timers.values().filter(|timer| free(timer)).map(|timer| timer.fire_at).min();
        ClaimedTimers { due: due.into_iter().map(|(_, run, key)| (run, key)).collect(), next, now }
    }

    pub(super) fn claim_tasks(
        &mut self,
        queues: Option<&[QueueKey]>,
        limit: usize,
        now: Timestamp,
    ) -> Vec<(RunId, QueueKey)> {
        let wanted = |task: &TaskRow| queues.is_none_or(|queues| queues.contains(&task.queue));
        let mut due: Vec<_> = self
            .tasks
            .iter_mut()
            .filter(|(_, task)| task.next_claim_at <= now && wanted(task))
            .map(|(run, task)| (task.next_claim_at, *run, task))
            .collect();
        due.sort_unstable_by_key(|(at, run, _)| (*at, *run));
        let claim = |(_, run, task): (Timestamp, RunId, &mut TaskRow)| {
            task.claims = task.claims.saturating_add(1);
            let pause = 1_u64.checked_shl(task.claims).unwrap_or(u64::MAX).min(TASK_PAUSE_SECS_MAX);
            task.next_claim_at = now.after(Duration::from_secs(pause));
            (run, task.queue.clone())
        };
        due.into_iter().take(limit).map(claim).collect()
    }

    pub(super) fn lost_runs(&self, limit: usize) -> Vec<(RunId, SessionId)> {
        let open = self.runs.values().filter(|row| !row.status.is_closed());
        let owned = open.filter_map(|row| row.owner.map(|owner| (row.run_id, owner)));
        owned.filter(|(_, owner)| self.sessions.get(owner).is_none_or(|s| s.closed)).take(limit).collect()
    }

    pub(super) fn stale_wakes(
        &self,
        node: NodeId,
        age: Duration,
        limit: usize,
        now: Timestamp,
    ) -> Vec<(RunId, Seq)> {
        // The last stale wake of each run; the map is in order of run and seq.
        let mut stale: BTreeMap<RunId, Seq> = BTreeMap::new();
        for ((run, seq), created_at) in &self.wakes {
            let owner = self.runs.get(run).and_then(|row| row.owner);
            let session = owner.and_then(|owner| self.sessions.get(&owner));
            let here = session.is_some_and(|s| !s.closed && s.node_id == node);
            if here && created_at.after(age) < now {
                stale.insert(*run, *seq);
            }
        }
        stale.into_iter().take(limit).collect()
    }

    pub(super) fn delete_wakes(&mut self, run: RunId, up_to: Seq) {
        let seen: Vec<_> = self.wakes.range((run, 0)..=(run, up_to)).map(|(key, _)| *key).collect();
        seen.iter().for_each(|key| drop(self.wakes.remove(key)));
    }

    pub(super) fn blocked_runs(
        &self,
        queue: &QueueKey,
        build_id: &str,
        after: Option<RunId>,
        limit: usize,
    ) -> Vec<RunId> {
        self.runs_after(after)
            .filter(|row| {
                row.status == RunStatus::Blocked
                    && row.namespace == queue.namespace
                    && row.task_queue == queue.task_queue
                    && row.build_id != build_id
            })
            .take(limit)
            .map(|row| row.run_id)
            .collect()
    }
}

/// What is wrong with the shape of an append, whatever the tables hold.
fn malformed(run: &RunAppend) -> Option<String> {
    let Some(first) = run.events.first() else {
        return Some("an append needs at least one event".to_owned());
    };
    if first.seq == 0 || run.events.windows(2).any(|pair| pair[0].seq.checked_add(1) != Some(pair[1].seq)) {
        return Some(format!("events of run {} are not in order of seq, from 1", run.run_id));
    }
    if run.start.is_some() && first.seq != 1 {
        return Some(format!("run {} claims a workflow id with an event that is not its first", run.run_id));
    }
    None
}

/// The keys that the timers of `run` can have.
fn timers_of(run: RunId) -> RangeInclusive<(RunId, TimerKey)> {
    let key = |kind, id| (run, TimerKey { kind, id });
    key(TimerKind::Timer, 0)..=key(TimerKind::RunTimeout, u32::MAX)
}

fn workflow_key(start: &StartClaim) -> (String, String) {
    (start.namespace.clone(), start.workflow_id.clone())
}

fn request_key(start: &StartClaim) -> (String, String, String) {
    (start.namespace.clone(), start.workflow_id.clone(), start.request_id.clone())
}
