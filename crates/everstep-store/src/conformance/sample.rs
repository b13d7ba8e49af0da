//! Runs, events and appends for the checks.

use std::sync::Arc;

use bytes::Bytes;
use everstep_core::{
    Actor, CommandId, Duration, Event, EventBody, NodeId, OpId, Payload, QueueKey, RunId, RunRow, RunStarted,
    RunStatus, Seq, SessionId, Timer, TimerKey, Timestamp, TraceContext, Write,
};
use uuid::Uuid;

use super::{Subject, ok};
use crate::{Append, RunAppend, RunTables, SessionRow, StartClaim, Store, Verdict};

/// More than any check makes: the questions without a filter answer for the whole database.
pub(super) const MANY: usize = 1_000_000;

/// A run that a check works on, with ids that nobody else uses.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) run: RunId,
    pub(super) queue: QueueKey,
    pub(super) workflow_id: String,
    pub(super) at: Timestamp,
}

pub(super) fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", Uuid::now_v7().simple())
}

pub(super) fn new_run() -> RunId {
    RunId::from_uuid(Uuid::now_v7())
}

pub(super) fn new_session() -> SessionId {
    SessionId::from_uuid(Uuid::now_v7())
}

pub(super) fn session_row(session_id: SessionId, lease: Duration) -> SessionRow {
    SessionRow {
        session_id,
        node_id: NodeId::from_uuid(Uuid::now_v7()),
        namespace: "default".to_owned(),
        identity: "worker-1".to_owned(),
        build_id: "build-1".to_owned(),
        serves: crate::Serves { task_queues: vec!["q".to_owned()], ..crate::Serves::default() },
        lease,
    }
}

pub(super) fn event(run: RunId, seq: Seq, at: Timestamp, body: EventBody) -> Event {
    let _ = run;
    Event {
        seq,
        at,
        epoch: 1,
        command_id: CommandId::from_uuid(Uuid::now_v7()),
        actor: Actor::Worker("worker-1".to_owned()),
        body,
    }
}

/// A step that completed with `data`.
pub(super) fn step(seq: Seq, data: impl Into<Bytes>) -> EventBody {
    EventBody::StepCompleted {
        step: OpId(u32::try_from(seq).unwrap_or(u32::MAX)),
        name: "charge".to_owned(),
        attempt: 1,
        elapsed: Duration::from_micros(17),
        result: Payload::json(data),
    }
}

impl Sample {
    /// A run of a namespace and a workflow id of its own.
    pub(super) async fn new(subject: &Subject) -> Self {
        Self::of(subject, &unique("ns"), &unique("order")).await
    }

    /// A run of a workflow id.
    pub(super) async fn of(subject: &Subject, namespace: &str, workflow_id: &str) -> Self {
        let queue = QueueKey { namespace: namespace.to_owned(), task_queue: "main".to_owned() };
        Self { run: new_run(), queue, workflow_id: workflow_id.to_owned(), at: subject.now().await }
    }

    /// The next run of the same workflow id.
    pub(super) fn next(&self) -> Self {
        Self { run: new_run(), ..self.clone() }
    }

    /// The run's row, open and without an owner.
    pub(super) fn row(&self, last_seq: Seq) -> RunRow {
        RunRow {
            run_id: self.run,
            namespace: self.queue.namespace.clone(),
            workflow_id: self.workflow_id.clone(),
            workflow_type: "order".to_owned(),
            task_queue: self.queue.task_queue.clone(),
            status: RunStatus::Running,
            owner: None,
            epoch: 0,
            build_id: String::new(),
            blocked: String::new(),
            cancel_requested: false,
            started_at: self.at,
            closed_at: None,
            last_seq,
        }
    }

    /// The row of the run closed as `status`.
    pub(super) fn closed(&self, last_seq: Seq, status: RunStatus) -> RunRow {
        RunRow { status, closed_at: Some(self.at), ..self.row(last_seq) }
    }

    /// The row of the run owned by `session`.
    pub(super) fn owned(&self, last_seq: Seq, session: SessionId) -> RunRow {
        RunRow { owner: Some(session), epoch: 1, build_id: "build-1".to_owned(), ..self.row(last_seq) }
    }

    pub(super) fn claim(&self, expected: Option<RunId>) -> StartClaim {
        StartClaim {
            namespace: self.queue.namespace.clone(),
            workflow_id: self.workflow_id.clone(),
            expected,
            request_id: format!("request-{}", self.run),
            body_hash: [7; 32],
        }
    }

    /// The first event, its claim and the run's row.
    pub(super) fn start(&self, expected: Option<RunId>) -> RunAppend {
        let started = EventBody::RunStarted(Box::new(RunStarted {
            namespace: self.queue.namespace.clone(),
            workflow_id: self.workflow_id.clone(),
            workflow_type: "order".to_owned(),
            task_queue: self.queue.task_queue.clone(),
            input: Payload::json("{\"amount\":1}"),
            request_id: format!("request-{}", self.run),
            run_timeout: None,
            seed: 1,
            trace: TraceContext::default(),
            ..RunStarted::default()
        }));
        RunAppend {
            run_id: self.run,
            start: Some(self.claim(expected)),
            events: Arc::new(vec![event(self.run, 1, self.at, started)]),
            writes: vec![Write::Run(Box::new(self.row(1)))],
        }
    }

    /// `count` steps from `seq` on.
    pub(super) fn steps(&self, seq: Seq, count: u64) -> RunAppend {
        let bodies = (seq..seq + count).map(|seq| step(seq, format!("\"{seq}\""))).collect();
        self.bodies(seq, bodies)
    }

    /// The given events from `seq` on.
    pub(super) fn bodies(&self, seq: Seq, bodies: Vec<EventBody>) -> RunAppend {
        let events = (seq..).zip(bodies).map(|(seq, body)| event(self.run, seq, self.at, body)).collect();
        RunAppend { run_id: self.run, start: None, events: Arc::new(events), writes: Vec::new() }
    }

    /// One step at `seq` that carries `writes`.
    pub(super) fn with(&self, seq: Seq, writes: Vec<Write>) -> RunAppend {
        RunAppend { writes, ..self.steps(seq, 1) }
    }
}

/// A started run.
pub(super) async fn started(subject: &Subject) -> Sample {
    let sample = Sample::new(subject).await;
    commit(&*subject.store, vec![sample.start(None)]).await;
    sample
}

/// The verdicts in words; of a failure, only which one.
pub(super) fn words(verdicts: &[Verdict]) -> Vec<String> {
    let word = |verdict: &Verdict| match verdict {
        Verdict::Committed => "committed".to_owned(),
        Verdict::Conflict => "conflict".to_owned(),
        Verdict::Failed(e) => format!("{e:?}").split('(').next().unwrap_or_default().to_lowercase(),
    };
    verdicts.iter().map(word).collect()
}

/// The verdicts of a batch in words.
pub(super) async fn append(store: &dyn Store, batch: Vec<Append>) -> Vec<String> {
    let count = batch.len();
    let reply = store.append(batch).await;
    assert_eq!(reply.verdicts.len(), count, "one verdict per append");
    for verdict in &reply.verdicts {
        if let Verdict::Failed(e) = verdict {
            // Said here, because the comparison below keeps only the kind.
            assert!(!e.to_string().is_empty(), "an error has a text");
        }
    }
    words(&reply.verdicts)
}

/// The verdict of one append in a word.
pub(super) async fn append_one(store: &dyn Store, run: RunAppend) -> String {
    append(store, vec![Append::of(run)]).await.swap_remove(0)
}

/// Appends that have to be committed.
#[track_caller]
pub(super) fn commit(store: &dyn Store, runs: Vec<RunAppend>) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let reply = store.append(runs.into_iter().map(Append::of).collect()).await;
        let all = reply.verdicts.iter().all(|verdict| matches!(verdict, Verdict::Committed));
        assert!(all, "{caller}: not all were committed: {:?}", reply.verdicts);
        assert!(reply.now.is_some(), "{caller}: a commit tells database time");
    }
}

/// The whole history.
pub(super) async fn history(store: &dyn Store, run: RunId) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let after = events.last().map_or(0, |e| e.seq);
        let page = ok(store.read_events(run, after, 1_000).await);
        if page.is_empty() {
            return events;
        }
        events.extend(page);
    }
}

/// The tables beside the log of a run that has a row.
pub(super) async fn tables(store: &dyn Store, run: RunId) -> RunTables {
    match ok(store.run_tables(run).await) {
        Some(tables) => tables,
        None => panic!("run {run} has no row"),
    }
}

pub(super) fn timer_set(id: u32, fire_at: Timestamp) -> Write {
    Write::TimerSet(Timer { key: TimerKey::timer(OpId(id)), fire_at })
}
