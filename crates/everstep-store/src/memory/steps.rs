//! Queued steps and the limits of their queues, in memory.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use everstep_core::{Duration, EventBody, OpId, Payload, QueueKey, RunId, SessionId, StepTask, Timestamp};

use super::{MemoryStore, Tables};
use crate::{
    AttemptKey, Beat, BeatAnswer, ClaimId, ClaimKey, ClaimRow, DueSteps, Error, QueueLimits, QueueRecord,
    QueueRoom, StepClaim, StepClaims, StepClock, StepFilter, StepRecord, StepState, StepWant, Steps,
};

#[derive(Debug, Default)]
pub(super) struct StepTables {
    rows: BTreeMap<(RunId, OpId), StepRow>,
    limits: BTreeMap<(String, String), Limited>,
}

#[derive(Debug)]
struct StepRow {
    task: StepTask,
    claimed: Option<Claimed>,
    details: Payload,
    due_at: Timestamp,
}

#[derive(Clone, Debug)]
struct Claimed {
    claim: ClaimId,
    /// `None` for one that is completed by its token.
    session: Option<SessionId>,
    at: Timestamp,
    beat_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Limited {
    limits: QueueLimits,
    tokens: f64,
    refilled_at: Timestamp,
}

impl StepRow {
    fn is_held(&self) -> bool {
        self.task.visible_at == StepTask::HELD
    }

    fn clock(&self) -> StepClock<'_> {
        let claimed = self.claimed.as_ref();
        StepClock {
            task: &self.task,
            claimed_at: claimed.map(|claimed| claimed.at),
            beat_at: claimed.and_then(|claimed| claimed.beat_at),
        }
    }

    fn may_be_claimed(&self, want: &StepWant, now: Timestamp) -> bool {
        let task = &self.task;
        let in_time = |at: Option<Timestamp>| at.is_none_or(|at| at > now);
        self.claimed.is_none()
            && task.queue == want.queue
            && task.visible_at <= now
            && !task.canceled
            && in_time(task.start_by)
            && in_time(task.close_by)
            && want.types.contains(&task.name)
    }

    fn beat(&mut self, details: Option<&Payload>, now: Timestamp) -> BeatAnswer {
        let Some(claimed) = &mut self.claimed else { return BeatAnswer::Gone };
        claimed.beat_at = Some(now);
        if let Some(details) = details {
            self.details = details.clone();
        }
        if self.task.canceled { BeatAnswer::Canceled } else { BeatAnswer::Going }
    }
}

impl StepTables {
    pub(super) fn set_limits(&mut self, queue: &QueueKey, limits: QueueLimits, now: Timestamp) {
        if limits.is_none() {
            self.limits.remove(&key_of(queue));
            return;
        }
        let burst = f64::from(limits.burst);
        let fresh = || Limited { limits, tokens: burst, refilled_at: now };
        let limited = self.limits.entry(key_of(queue)).or_insert_with(fresh);
        limited.limits = limits;
        limited.tokens = limited.tokens.min(burst);
    }

    pub(super) fn set(&mut self, run: RunId, task: &StepTask, now: Timestamp) {
        let (details, claimed) = match self.rows.remove(&(run, task.step)) {
            Some(old) => {
                let same = old.task.attempt == task.attempt && old.task.visible_at == task.visible_at;
                (old.details, old.claimed.filter(|_| same))
            }
            None => (Payload::default(), None),
        };
        let mut row = StepRow { task: task.clone(), claimed, details, due_at: now };
        row.due_at = row.clock().next_look(now);
        self.rows.insert((run, task.step), row);
    }

    pub(super) fn delete(&mut self, run: RunId, step: OpId) {
        self.rows.remove(&(run, step));
    }

    pub(super) fn clear(&mut self, run: RunId) {
        self.rows.retain(|(of, _), _| *of != run);
    }

    /// Names of the steps of a queue that a worker may take, and how many there are.
    pub(super) fn waiting_names(&self, queue: &QueueKey, now: Timestamp) -> BTreeMap<&str, u64> {
        let waits = |row: &&StepRow| {
            let task = &row.task;
            row.claimed.is_none() && task.queue == *queue && task.visible_at <= now && !task.canceled
        };
        let mut names: BTreeMap<&str, u64> = BTreeMap::new();
        for row in self.rows.values().filter(waits) {
            *names.entry(&row.task.name).or_default() += 1;
        }
        names
    }

    /// The run of each row, sorted.
    pub(super) fn runs(&self) -> Vec<RunId> {
        self.rows.keys().map(|(run, _)| *run).collect()
    }

    /// Those of one run, sorted.
    pub(super) fn of_run(&self, run: RunId) -> Vec<StepTask> {
        let rows = self.rows.range((run, OpId(0))..=(run, OpId(u32::MAX)));
        rows.map(|(_, row)| row.task.clone()).collect()
    }

    fn running(&self, queue: &QueueKey) -> usize {
        self.rows.values().filter(|row| row.claimed.is_some() && row.task.queue == *queue).count()
    }

    /// What the limits of a queue leave.
    fn room(&mut self, queue: &QueueKey, now: Timestamp) -> QueueRoom {
        let running = self.running(queue);
        let Some(limited) = self.limits.get_mut(&key_of(queue)) else { return QueueRoom::ENDLESS };
        if let Some(rate) = limited.limits.max_per_second {
            let grown = limited.tokens + now.since(limited.refilled_at).as_secs_f64() * rate;
            limited.tokens = grown.min(f64::from(limited.limits.burst));
            limited.refilled_at = now;
        }
        let room = QueueRoom::by_rate(&limited.limits, limited.tokens, now);
        limited.limits.max_running.map_or(room, |max| room.by_count(max, running, now))
    }

    fn current(&mut self, key: ClaimKey) -> Option<&mut StepRow> {
        let row = self.rows.get_mut(&(key.run, key.step))?;
        row.claimed.as_ref().is_some_and(|claimed| claimed.claim == key.claim).then_some(row)
    }
}

fn key_of(queue: &QueueKey) -> (String, String) {
    (queue.namespace.clone(), queue.task_queue.clone())
}

impl Tables {
    fn claim_steps(&mut self, want: &StepWant, limit: usize, now: Timestamp) -> StepClaims {
        let open = self.sessions.get(&want.session).is_some_and(|(_, _, closed)| !closed);
        let room = self.steps.room(&want.queue, now);
        let mut fitting: Vec<_> = self
            .steps
            .rows
            .iter()
            .filter(|(_, row)| open && row.may_be_claimed(want, now))
            .map(|(key, row)| (row.task.priority, row.task.visible_at, *key))
            .collect();
        fitting.sort_unstable();
        fitting.truncate(limit.min(room.free));
        let mut claims = Vec::new();
        for (_, _, (run, step)) in &fitting {
            let Some(row) = self.steps.rows.get_mut(&(*run, *step)) else { continue };
            let claimed = Claimed { claim: want.claim, session: Some(want.session), at: now, beat_at: None };
            row.claimed = Some(claimed);
            row.due_at = row.clock().next_look(now);
            let Some(events) = self.events.get(run) else { continue };
            let at = usize::try_from(row.task.scheduled).unwrap_or(0);
            let (Some(first), Some(event)) = (events.first(), events.get(at.wrapping_sub(1))) else {
                continue;
            };
            let EventBody::RunStarted(start) = &first.body else { continue };
            claims.push(StepClaim {
                run: *run,
                claim: want.claim,
                task: row.task.clone(),
                details: row.details.clone(),
                event: event.clone(),
                start: everstep_core::RunStarted { input: Payload::default(), ..(**start).clone() },
            });
        }
        if let Some(limited) = self.steps.limits.get_mut(&key_of(&want.queue)) {
            limited.tokens -= fitting.len() as f64;
        }
        StepClaims { claims, again: room.again_after(limit, fitting.len()) }
    }

    fn due_steps(&mut self, limit: usize, claim: Duration, now: Timestamp) -> DueSteps {
        let mut late: Vec<(Timestamp, RunId, OpId)> = self
            .steps
            .rows
            .iter()
            .filter(|(_, row)| row.due_at <= now)
            .map(|(k, r)| (r.due_at, k.0, k.1))
            .collect();
        late.sort_unstable();
        let mut due = Vec::new();
        for (_, run, step) in late.into_iter().take(limit) {
            let Some(row) = self.steps.rows.get_mut(&(run, step)) else { continue };
            let meaning = row.clock().due(now);
            row.due_at = row.clock().look_after(meaning.as_ref(), now, claim);
            let attempt = row.task.attempt;
            due.extend(meaning.map(|meaning| (AttemptKey { run, step, attempt }, meaning)));
        }
        let later = self.steps.rows.values().map(|row| row.due_at);
        let next = later.filter(|at| *at > now && *at < StepTask::HELD).min();
        DueSteps { due, next, now }
    }

    fn queue(&self, queue: &QueueKey, now: Timestamp) -> QueueRecord {
        let limits = self.steps.limits.get(&key_of(queue)).map(|limited| limited.limits).unwrap_or_default();
        let mut record =
            QueueRecord { task_queue: queue.task_queue.clone(), limits, ..QueueRecord::default() };
        for row in self.steps.rows.values().filter(|row| row.task.queue == *queue) {
            if row.claimed.is_some() {
                record.running += 1;
            } else if row.task.visible_at > now {
                record.later += 1;
            } else {
                record.waiting += 1;
                let at = row.task.visible_at;
                record.oldest_waiting = Some(record.oldest_waiting.map_or(at, |oldest| oldest.min(at)));
            }
        }
        record.runs_waiting = self.tasks.values().filter(|task| task.row.queue == *queue).count() as u64;
        record
    }

    fn queues(&self, namespace: &str, after: &str, limit: usize, now: Timestamp) -> Vec<QueueRecord> {
        let of_steps = self.steps.rows.values().map(|row| &row.task.queue);
        let of_runs = self.tasks.values().map(|task| &task.row.queue);
        let here = of_steps.chain(of_runs).filter(|queue| queue.namespace == namespace);
        let limited = self.steps.limits.keys().filter(|(of, _)| of == namespace).map(|(_, name)| name);
        let names: BTreeSet<&String> = here.map(|queue| &queue.task_queue).chain(limited).collect();
        let key = |name: &String| QueueKey { namespace: namespace.to_owned(), task_queue: name.clone() };
        let names = names.into_iter().filter(|name| name.as_str() > after).take(limit);
        names.map(|name| self.queue(&key(name), now)).collect()
    }

    fn list_steps(&self, filter: &StepFilter, after: Option<(RunId, OpId)>, limit: usize) -> Vec<StepRecord> {
        let record = |(&(run, step), row): (&(RunId, OpId), &StepRow)| {
            let state = if row.claimed.is_some() { StepState::Running } else { StepState::Queued };
            let wanted = row.task.queue.namespace == filter.namespace
                && filter.run.is_none_or(|only| only == run)
                && filter.task_queue.as_ref().is_none_or(|only| *only == row.task.queue.task_queue)
                && filter.state.is_none_or(|only| only == state)
                && after.is_none_or(|after| (run, step) > after)
                && !(row.is_held() && row.claimed.is_none());
            let workflow_id = self.runs.get(&run).filter(|_| wanted)?.workflow_id.clone();
            let claimed = row.claimed.as_ref();
            Some(StepRecord {
                run,
                workflow_id,
                task: row.task.clone(),
                state,
                session: claimed.and_then(|c| c.session),
                claimed_at: claimed.map(|c| c.at),
                beat_at: claimed.and_then(|c| c.beat_at),
            })
        };
        self.steps.rows.iter().filter_map(record).take(limit).collect()
    }
}

/// The port at once, for a simulation.
impl MemoryStore {
    /// [`Steps::claim_steps`], at once.
    pub fn claim_steps_sync(&self, want: &StepWant, limit: usize) -> StepClaims {
        let now = (self.clock)();
        self.lock().claim_steps(want, limit, now)
    }

    /// [`Steps::return_step`], at once.
    pub fn return_step_sync(&self, key: ClaimKey) -> bool {
        let now = (self.clock)();
        match self.lock().steps.current(key) {
            Some(row) => {
                row.claimed = None;
                row.due_at = now;
                true
            }
            None => false,
        }
    }

    /// [`Steps::defer_step`], at once.
    pub fn defer_step_sync(&self, key: ClaimKey) -> bool {
        match self.lock().steps.current(key).and_then(|row| row.claimed.as_mut()) {
            Some(claimed) => {
                claimed.session = None;
                true
            }
            None => false,
        }
    }

    /// [`Steps::beat_steps`], at once.
    pub fn beat_steps_sync(&self, beats: &[Beat]) -> Vec<BeatAnswer> {
        let now = (self.clock)();
        let mut tables = self.lock();
        let mut beat = |beat: &Beat| match tables.steps.current(beat.key) {
            Some(row) => row.beat(beat.details.as_ref(), now),
            None => BeatAnswer::Gone,
        };
        beats.iter().map(&mut beat).collect()
    }

    /// [`Steps::claims_of`], at once.
    pub fn claims_of_sync(&self, sessions: &[SessionId]) -> Vec<ClaimRow> {
        let tables = self.lock();
        let row = |(&(run, step), row): (&(RunId, OpId), &StepRow)| {
            let Claimed { claim, session, at, .. } = row.claimed.clone()?;
            let session = session.filter(|session| sessions.contains(session))?;
            let (attempt, canceled) = (row.task.attempt, row.task.canceled);
            Some(ClaimRow { session, key: ClaimKey { run, step, claim }, attempt, claimed_at: at, canceled })
        };
        tables.steps.rows.iter().filter_map(row).collect()
    }

    /// [`Steps::lost_steps`], at once.
    pub fn lost_steps_sync(&self, limit: usize) -> Vec<AttemptKey> {
        let tables = self.lock();
        let closed = |session: &SessionId| tables.sessions.get(session).is_none_or(|(_, _, closed)| *closed);
        let lost = |row: &StepRow| row.claimed.as_ref().and_then(|c| c.session).is_some_and(|s| closed(&s));
        let rows = tables.steps.rows.iter().filter(|(_, row)| lost(row));
        rows.map(|(&(run, step), row)| AttemptKey { run, step, attempt: row.task.attempt })
            .take(limit)
            .collect()
    }

    /// [`Steps::due_steps`], at once.
    pub fn due_steps_sync(&self, limit: usize, claim: Duration) -> DueSteps {
        let now = (self.clock)();
        self.lock().due_steps(limit, claim, now)
    }
}

#[async_trait]
impl Steps for MemoryStore {
    async fn claim_steps(&self, want: &StepWant, limit: usize) -> Result<StepClaims, Error> {
        Ok(self.claim_steps_sync(want, limit))
    }

    async fn return_step(&self, key: ClaimKey) -> Result<bool, Error> {
        Ok(self.return_step_sync(key))
    }

    async fn defer_step(&self, key: ClaimKey) -> Result<bool, Error> {
        Ok(self.defer_step_sync(key))
    }

    async fn beat_steps(&self, beats: &[Beat]) -> Result<Vec<BeatAnswer>, Error> {
        Ok(self.beat_steps_sync(beats))
    }

    async fn beat_by_token(
        &self,
        attempt: AttemptKey,
        details: Option<&Payload>,
    ) -> Result<BeatAnswer, Error> {
        let now = (self.clock)();
        let mut tables = self.lock();
        let row = tables.steps.rows.get_mut(&(attempt.run, attempt.step));
        Ok(match row.filter(|row| row.task.attempt == attempt.attempt) {
            Some(row) => row.beat(details, now),
            None => BeatAnswer::Gone,
        })
    }

    async fn claims_of(&self, sessions: &[SessionId]) -> Result<Vec<ClaimRow>, Error> {
        Ok(self.claims_of_sync(sessions))
    }

    async fn lost_steps(&self, limit: usize) -> Result<Vec<AttemptKey>, Error> {
        Ok(self.lost_steps_sync(limit))
    }

    async fn due_steps(&self, limit: usize, claim: Duration) -> Result<DueSteps, Error> {
        Ok(self.due_steps_sync(limit, claim))
    }

    async fn set_queue_limits(&self, queue: &QueueKey, limits: QueueLimits) -> Result<(), Error> {
        let now = (self.clock)();
        self.lock().steps.set_limits(queue, limits, now);
        Ok(())
    }

    async fn queue(&self, queue: &QueueKey) -> Result<QueueRecord, Error> {
        let now = (self.clock)();
        Ok(self.lock().queue(queue, now))
    }

    async fn queues(&self, namespace: &str, after: &str, limit: usize) -> Result<Vec<QueueRecord>, Error> {
        let now = (self.clock)();
        Ok(self.lock().queues(namespace, after, limit, now))
    }

    async fn list_steps(
        &self,
        filter: &StepFilter,
        after: Option<(RunId, OpId)>,
        limit: usize,
    ) -> Result<Vec<StepRecord>, Error> {
        Ok(self.lock().list_steps(filter, after, limit))
    }

    /// Always the same: nothing of this store outlives the process, and nobody else is served from it.
    async fn deployment_secret(&self) -> Result<[u8; 32], Error> {
        Ok([7; 32])
    }
}
