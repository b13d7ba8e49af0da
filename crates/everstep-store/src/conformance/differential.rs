//! Two stores, one random sequence of operations, the same answers.

mod steps;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use everstep_core::{
    Actor, AttributeRows, CommandId, Doubt, DoubtPolicy, Duration, Event, EventBody, Failure, OpId, Payload,
    QueueKey, RunId, RunLink, RunRow, RunStarted, RunStatus, Seq, SessionId, TaskRow, Timer, TimerKey,
    TimerKind, Timestamp, TraceContext, Write,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use uuid::Uuid;

use super::sample::{MANY, new_run, new_session, session_row, unique, words};
use super::{attributes, ok};
use crate::{Append, ClaimKey, PageToken, RunAppend, RunFilter, StartClaim, Store};

const WORKFLOW_IDS: [&str; 3] = ["a", "b", "c"];
const QUEUES: [&str; 2] = ["main", "other"];
const BUILDS: [&str; 3] = ["", "b1", "b2"];
const LEASE: Duration = Duration::from_secs(100 * 366 * 24 * 3_600);

/// Goal: whatever is done to both stores, their verdicts and what can be read of them are equal.
///
/// Nothing in it depends on a clock: timers and tasks are compared as stored, not as claimed, and leases
/// are long. The same seed gives the same operations, with other ids.
///
/// # Panics
/// At the first difference, naming the seed and the operation.
pub async fn differential(a: &dyn Store, b: &dyn Store, seed: u64) {
    let mut world = World::new(seed);
    for session in &world.sessions.clone() {
        let row = session_row(*session, LEASE);
        assert!(ok(a.open_session(&row).await).is_some() && ok(b.open_session(&row).await).is_some());
    }
    for operation in 0..80 {
        let at = format!("seed {seed}, operation {operation}");
        world.step(a, b, &at).await;
        if operation % 6 == 5 {
            world.compare(a, b, &at).await;
        }
    }
    // Operations that all end alike would compare nothing.
    for word in ["committed", "conflict"] {
        assert!(world.verdicts.contains(word), "seed {seed}: no append was {word}");
    }
}

/// What the operations are about.
struct World {
    random: ChaCha8Rng,
    namespace: String,
    /// Run and workflow id of everything that was ever tried to be started.
    runs: Vec<(RunId, &'static str)>,
    sessions: Vec<SessionId>,
    namespaces: Vec<String>,
    last_batch: Vec<Append>,
    /// Every attempt that was claimed.
    claims: Vec<ClaimKey>,
    /// Every verdict that occurred.
    verdicts: BTreeSet<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            namespace: unique("ns"),
            runs: Vec::new(),
            sessions: (0..3).map(|_| new_session()).collect(),
            namespaces: (0..3).map(|_| unique("ns")).collect(),
            last_batch: Vec::new(),
            claims: Vec::new(),
            verdicts: BTreeSet::new(),
        }
    }

    fn below(&mut self, end: usize) -> usize {
        (self.random.next_u64() % end as u64) as usize
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    async fn step(&mut self, a: &dyn Store, b: &dyn Store, at: &str) {
        match self.below(26) {
            0 => {
                let name = self.pick(&self.namespaces.clone());
                let (x, y) = (a.create_namespace(&name, "").await, b.create_namespace(&name, "").await);
                assert_eq!(ok(x), ok(y), "{at}: create_namespace");
            }
            1 => {
                let session = session_row(self.pick(&self.sessions.clone()), LEASE);
                let (x, y) = (a.open_session(&session).await, b.open_session(&session).await);
                assert_eq!(ok(x).is_some(), ok(y).is_some(), "{at}: open_session");
            }
            2 => {
                let session = self.pick(&self.sessions.clone());
                let (x, y) = (a.renew_session(session, LEASE).await, b.renew_session(session, LEASE).await);
                assert_eq!(ok(x).is_some(), ok(y).is_some(), "{at}: renew_session");
            }
            3 if self.chance(3) => {
                let session = self.pick(&self.sessions.clone());
                let (x, y) = (a.close_session(session).await, b.close_session(session).await);
                assert_eq!(ok(x), ok(y), "{at}: close_session");
            }
            4 if !self.runs.is_empty() => {
                let seen = [(self.pick(&self.runs.clone()).0, self.below(8) as Seq)];
                ok(a.delete_wakes(&seen).await);
                ok(b.delete_wakes(&seen).await);
            }
            6..12 => self.step_call(a, b, at).await,
            5 => {
                let again = self.last_batch.clone();
                self.append(a, b, again, at).await;
            }
            _ => {
                let mut batch = Vec::new();
                for _ in 0..=self.below(5) {
                    batch.push(self.random_append(a).await);
                }
                self.append(a, b, batch, at).await;
            }
        }
    }

    async fn append(&mut self, a: &dyn Store, b: &dyn Store, batch: Vec<Append>, at: &str) {
        let (x, y) = (a.append(batch.clone()).await, b.append(batch.clone()).await);
        assert_eq!(words(&x.verdicts), words(&y.verdicts), "{at}: verdicts of {batch:#?}");
        self.verdicts.extend(words(&x.verdicts));
        self.last_batch = batch;
    }

    async fn random_append(&mut self, store: &dyn Store) -> Append {
        let run = self.random_run(store).await;
        let with = if self.chance(6) { Some(Box::new(self.random_run(store).await)) } else { None };
        Append { with: with.filter(|with| with.run_id != run.run_id), run }
    }

    async fn random_run(&mut self, store: &dyn Store) -> RunAppend {
        if self.runs.len() < 3 || self.chance(5) {
            return self.random_start(store).await;
        }
        let (run, workflow_id) = self.pick(&self.runs.clone());
        let tail = ok(store.read_events(run, 0, MANY).await).len() as Seq;
        let first = if self.chance(5) { 1 + self.below(6) as Seq } else { tail + 1 };
        let count = 1 + self.below(3) as Seq;
        let events = (first.max(2)..).take(count as usize).map(|seq| self.event(seq)).collect();
        let writes = (0..self.below(5)).map(|_| self.random_write(run, workflow_id)).collect();
        RunAppend { run_id: run, start: None, events: Arc::new(events), writes }
    }

    async fn random_start(&mut self, store: &dyn Store) -> RunAppend {
        // A run has one workflow id for its life, also when its first start was lost.
        let known = !self.runs.is_empty() && self.chance(6);
        let (run, workflow_id) =
            if known { self.pick(&self.runs.clone()) } else { (new_run(), self.pick(&WORKFLOW_IDS)) };
        if !known {
            self.runs.push((run, workflow_id));
        }
        let found = ok(store.find_start(&self.namespace, workflow_id, "none").await);
        let current = found.current.map(|(run, _)| run);
        let expected = match self.below(6) {
            0 => None,
            1 => Some(run),
            _ => current,
        };
        let request_id = format!("request-{}", self.below(12));
        let body_hash = [u8::try_from(self.below(256)).unwrap_or(0); 32];
        let started = EventBody::RunStarted(Box::new(RunStarted {
            namespace: self.namespace.clone(),
            workflow_id: workflow_id.to_owned(),
            workflow_type: "order".to_owned(),
            task_queue: "main".to_owned(),
            input: self.payload(),
            request_id: request_id.clone(),
            run_timeout: None,
            seed: self.random.next_u64(),
            trace: TraceContext::default(),
            ..RunStarted::default()
        }));
        let mut writes = vec![Write::Run(Box::new(self.row(run, workflow_id, 1)))];
        if self.chance(2) {
            writes.push(self.random_write(run, workflow_id));
        }
        RunAppend {
            run_id: run,
            start: Some(StartClaim {
                namespace: self.namespace.clone(),
                workflow_id: workflow_id.to_owned(),
                expected,
                request_id,
                body_hash,
            }),
            events: Arc::new(vec![Event { body: started, ..self.event(1) }]),
            writes,
        }
    }

    fn event(&mut self, seq: Seq) -> Event {
        let step = OpId(u32::try_from(self.below(9)).unwrap_or(0));
        let body = match self.below(5) {
            0 => EventBody::TimerFired { timer: self.timer_key() },
            1 => EventBody::SignalReceived {
                name: "go".to_owned(),
                signal_id: seq.to_string(),
                input: self.payload(),
            },
            2 => EventBody::StepFailed {
                step,
                name: "charge".to_owned(),
                attempt: 1,
                elapsed: Duration::from_micros(5),
                failure: Failure { details: self.payload(), ..Failure::new("Io", "reset") },
                retry_at: self.chance(2).then_some(Timestamp::MAX),
            },
            _ => EventBody::StepCompleted {
                step,
                name: "charge".to_owned(),
                attempt: 2,
                elapsed: Duration::from_micros(self.random.next_u64() >> 20),
                result: self.payload(),
            },
        };
        Event {
            seq,
            at: Timestamp::from_micros((self.random.next_u64() >> 14).cast_signed()),
            epoch: 1,
            command_id: CommandId::from_uuid(Uuid::from_u128(self.random.next_u64().into())),
            actor: Actor::Client("differential".to_owned()),
            body,
        }
    }

    fn payload(&mut self) -> Payload {
        let len = match self.below(12) {
            0..3 => return Payload::default(),
            3 => 40 * 1024,
            4 => 32 * 1024 + self.below(2),
            _ => self.below(40),
        };
        // Few contents, so that large ones occur twice in a run.
        let byte = u8::try_from(self.below(3)).unwrap_or(0);
        Payload { encoding: self.pick(&["", "json", "raw"]).to_owned(), data: Bytes::from(vec![byte; len]) }
    }

    fn timer_key(&mut self) -> TimerKey {
        let kind = self.pick(&[TimerKind::Timer, TimerKind::Retry, TimerKind::RunTimeout, TimerKind::Start]);
        // A run has one start.
        let ids: &[u32] = if kind == TimerKind::Start { &[0] } else { &[0, 1, 2, u32::MAX] };
        TimerKey { kind, id: self.pick(ids) }
    }

    fn random_write(&mut self, run: RunId, workflow_id: &str) -> Write {
        if self.chance(6) {
            let (namespace, attributes) =
                (self.namespace.clone(), attributes::random(&mut |end| self.below(end)));
            return Write::AttributesSet(Box::new(AttributeRows { namespace, attributes }));
        }
        if self.chance(4) {
            return self.step_write();
        }
        match self.below(11) {
            0..2 => {
                let last_seq = 1 + self.below(12) as Seq;
                Write::Run(Box::new(self.row(run, workflow_id, last_seq)))
            }
            2..4 => {
                let fire_at =
                    Timestamp::from_micros(Timestamp::MAX.as_micros() - self.below(9).cast_signed() as i64);
                Write::TimerSet(Timer { key: self.timer_key(), fire_at })
            }
            4 => Write::TimerDeleted(self.timer_key()),
            5 if self.chance(3) => Write::TimersCleared,
            5 | 6 => Write::TaskSet(TaskRow {
                queue: self.queue(),
                workflow_type: self.pick(&["", "order", "ping"]).to_owned(),
                build_id: self.pick(&["", "b1"]).to_owned(),
            }),
            7 if self.chance(2) => Write::TaskDeleted,
            7 => Write::WakesDeleted { up_to: self.below(8) as Seq },
            9 => self.doubt(),
            10 if self.chance(3) => Write::DoubtsCleared,
            10 if self.chance(3) => self.between(),
            10 => Write::DoubtDeleted(OpId(self.pick(&[1, 2, u32::MAX]))),
            _ => Write::WakeSet { seq: 1 + self.below(8) as Seq },
        }
    }

    /// What other runs have to hear, or who they are.
    fn between(&mut self) -> Write {
        let seq = 1 + self.below(8) as Seq;
        match self.below(3) {
            0 => Write::OutboxSet { seq },
            1 => Write::OutboxDeleted { seq },
            _ => {
                let run = self.pick(&self.runs.clone()).0;
                let link =
                    RunLink { parent: Some((run, OpId(3))), successor: Some(run), ..RunLink::default() };
                Write::LinkSet(Box::new(RunLink { attempt: self.pick(&[1, u32::MAX]), ..link }))
            }
        }
    }

    fn doubt(&mut self) -> Write {
        Write::DoubtSet(Box::new(Doubt {
            step: OpId(self.pick(&[1, 2, u32::MAX])),
            name: self.pick(&["charge", "ship"]).to_owned(),
            attempt: self.pick(&[1, 2, u32::MAX]),
            policy: self.pick(&DoubtPolicy::ALL),
            since: Timestamp::from_micros(self.below(9).cast_signed() as i64),
        }))
    }

    fn queue(&mut self) -> QueueKey {
        QueueKey { namespace: self.namespace.clone(), task_queue: self.pick(&QUEUES).to_owned() }
    }

    fn row(&mut self, run_id: RunId, workflow_id: &str, last_seq: Seq) -> RunRow {
        let status = self.pick(&RunStatus::ALL);
        let sessions = self.sessions.clone();
        RunRow {
            run_id,
            namespace: self.namespace.clone(),
            workflow_id: workflow_id.to_owned(),
            workflow_type: self.pick(&["order", "refund"]).to_owned(),
            task_queue: self.pick(&QUEUES).to_owned(),
            status,
            owner: self.chance(2).then(|| self.pick(&sessions)),
            epoch: 1,
            build_id: self.pick(&BUILDS).to_owned(),
            blocked: String::new(),
            cancel_requested: self.chance(2),
            started_at: Timestamp::from_micros(1),
            closed_at: status.is_closed().then_some(Timestamp::MAX),
            last_seq,
        }
    }

    async fn compare(&mut self, a: &dyn Store, b: &dyn Store, at: &str) {
        for (run, _) in &self.runs {
            let (x, y) = (a.read_events(*run, 0, MANY).await, b.read_events(*run, 0, MANY).await);
            assert_eq!(ok(x), ok(y), "{at}: events of {run}");
            assert_eq!(ok(a.get_run(*run).await), ok(b.get_run(*run).await), "{at}: run {run}");
            assert_eq!(ok(a.run_tables(*run).await), ok(b.run_tables(*run).await), "{at}: tables of {run}");
        }
        for workflow_id in WORKFLOW_IDS {
            for request in 0..12 {
                let request = format!("request-{request}");
                let x = a.find_start(&self.namespace, workflow_id, &request).await;
                let y = b.find_start(&self.namespace, workflow_id, &request).await;
                assert_eq!(ok(x), ok(y), "{at}: start of {workflow_id} by {request}");
            }
        }
        self.compare_lists(a, b, at).await;
        self.compare_sweep(a, b, at).await;
        self.compare_steps(a, b, at).await;
    }

    async fn compare_lists(&mut self, a: &dyn Store, b: &dyn Store, at: &str) {
        for _ in 0..4 {
            let filter = RunFilter {
                namespace: self.namespace.clone(),
                workflow_id: self.chance(3).then(|| self.pick(&WORKFLOW_IDS).to_owned()),
                workflow_type: self.chance(3).then(|| "order".to_owned()),
                statuses: (0..self.below(4)).map(|_| self.pick(&RunStatus::ALL)).collect(),
                attributes: (0..self.below(3))
                    .map(|_| attributes::random_filter(&mut |end| self.below(end)))
                    .collect(),
                ..RunFilter::default()
            };
            let page =
                (!self.runs.is_empty() && self.chance(2)).then(|| PageToken(self.pick(&self.runs.clone()).0));
            let limit = self.pick(&[0, 1, 3, MANY]);
            let (x, y) = (a.list_runs(&filter, page, limit).await, b.list_runs(&filter, page, limit).await);
            assert_eq!(ok(x), ok(y), "{at}: {filter:?} after {page:?}");
        }
        let runs: Vec<RunId> = self.runs.iter().map(|(run, _)| *run).collect();
        let (mut x, mut y) = (ok(a.closed_among(&runs).await), ok(b.closed_among(&runs).await));
        x.sort();
        y.sort();
        assert_eq!(x, y, "{at}: closed_among");
        let (x, y) = (ok(a.wake_rows(&runs).await), ok(b.wake_rows(&runs).await));
        assert_eq!(x, y, "{at}: wake_rows");
        for name in &self.namespaces {
            let (x, y) = (ok(a.get_namespace(name).await), ok(b.get_namespace(name).await));
            assert_eq!(x.map(|n| n.name), y.map(|n| n.name), "{at}: namespace {name}");
        }
    }

    async fn compare_sweep(&mut self, a: &dyn Store, b: &dyn Store, at: &str) {
        for session in self.sessions.clone() {
            let after = (!self.runs.is_empty() && self.chance(2)).then(|| self.pick(&self.runs.clone()).0);
            let limit = self.pick(&[1, MANY]);
            let (x, y) =
                (a.owned_runs(session, after, limit).await, b.owned_runs(session, after, limit).await);
            assert_eq!(ok(x), ok(y), "{at}: runs owned by {session}");
        }
        let own = |(run, _): &(RunId, SessionId)| self.runs.iter().any(|(known, _)| known == run);
        let (mut x, mut y) = (ok(a.lost_runs(MANY).await), ok(b.lost_runs(MANY).await));
        x.retain(own);
        y.retain(own);
        x.sort();
        y.sort();
        assert_eq!(x, y, "{at}: lost_runs");
        for build in BUILDS {
            let queue = self.queue();
            let x = a.blocked_runs(&queue, build, None, MANY).await;
            let y = b.blocked_runs(&queue, build, None, MANY).await;
            assert_eq!(ok(x), ok(y), "{at}: blocked_runs of {queue:?} without {build:?}");
        }
    }
}
