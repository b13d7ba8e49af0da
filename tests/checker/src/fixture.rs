//! A small case in which everything is right, for tests to break.

pub(crate) mod features;

use everstep_core::{
    Actor, CommandId, DetachReason, Duration, Event, EventBody, Failure, OpId, Payload, Run, RunId,
    RunStarted, SessionId, TimerKey, Timestamp, TraceContext, WorkerInfo,
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::case::{Case, Op, Outcome, Tables};
use crate::format::{
    Expected, ExpectedOutcome, ExpectedStep, ExpectedTimer, JournalEntry, Meta, OpKind, Phase,
};
use crate::verdict::Check;

/// Database time of the first event.
pub(crate) const BASE_US: i64 = 1_700_000_000_000_000;
/// Positions in the first run's history.
pub(crate) const ATTACH: usize = 1;
pub(crate) const DONE_A: usize = 2;
pub(crate) const FAIL_B: usize = 3;
pub(crate) const DONE_B: usize = 6;
pub(crate) const TIMER: usize = 7;
pub(crate) const FIRED: usize = 9;
pub(crate) const SIGNAL_1: usize = 11;
pub(crate) const SIGNAL_2: usize = 12;
pub(crate) const END: usize = 13;

/// Monotonic nanoseconds of the microsecond `us` after the first event.
pub(crate) const fn mono(us: u64) -> u64 {
    5_000_000_000 + us * 1_000
}

pub(crate) fn run_id(number: u128) -> RunId {
    RunId::from_uuid(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + number))
}

/// SHA-256 of a text, in hex.
pub(crate) fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

struct Script {
    run: RunId,
    events: Vec<Event>,
    epoch: u32,
    commits: u32,
}

impl Script {
    fn new(number: u128, workflow_id: &str) -> Self {
        let mut script = Self { run: run_id(number), events: Vec::new(), epoch: 0, commits: 0 };
        let start = RunStarted {
            namespace: "default".to_owned(),
            workflow_id: workflow_id.to_owned(),
            workflow_type: "program".to_owned(),
            task_queue: "q".to_owned(),
            input: Payload::json("1"),
            request_id: format!("start-{workflow_id}"),
            run_timeout: None,
            seed: 0,
            trace: TraceContext::default(),
            ..RunStarted::default()
        };
        let id = CommandId::from_uuid(script.run.uuid());
        script.push(id, Actor::Client("tester".to_owned()), EventBody::RunStarted(Box::new(start)));
        script
    }

    fn push(&mut self, command_id: CommandId, actor: Actor, body: EventBody) {
        let seq = self.events.len() as u64 + 1;
        let at = Timestamp::from_micros(BASE_US + 1_000 * (seq as i64 - 1));
        self.events.push(Event { seq, at, epoch: self.epoch, command_id, actor, body });
    }

    fn other(&mut self, body: EventBody) {
        let id = Uuid::from_u128(self.run.uuid().as_u128() ^ (self.events.len() as u128 + 1) << 64);
        self.push(CommandId::from_uuid(id), Actor::System, body);
    }

    fn attach(&mut self) {
        (self.epoch, self.commits) = (self.epoch + 1, 0);
        let worker = WorkerInfo { identity: "w".to_owned(), build_id: "b".to_owned() };
        let session = SessionId::from_uuid(Uuid::from_u128(u128::from(self.epoch)));
        self.other(EventBody::WorkerAttached { session, worker, pinned: false });
    }

    fn commit(&mut self, body: EventBody) {
        self.commits += 1;
        let id = CommandId::of_worker(self.run, self.epoch, self.commits);
        self.push(id, Actor::Worker("w".to_owned()), body);
    }

    fn done(&mut self, step: u32, name: &str, attempt: u32, nonce: &str) {
        self.commit(EventBody::StepCompleted {
            step: OpId(step),
            name: name.to_owned(),
            attempt,
            elapsed: Duration::from_millis(1),
            result: Payload::json(format!("\"{nonce}\"")),
        });
    }

    fn signal(&mut self, id: &str) {
        self.other(EventBody::SignalReceived {
            name: "go".to_owned(),
            signal_id: id.to_owned(),
            input: Payload::json("1"),
        });
    }

    fn tables(self) -> (RunId, Tables) {
        let projection = Run::fold(self.run, &self.events).ok().flatten().map(|r| r.projection());
        let mut tables = Tables { events: self.events, ..Tables::default() };
        if let Some(p) = projection {
            (tables.row, tables.timers, tables.tasks) =
                (Some(p.row), p.timers, p.task.into_iter().map(|task| task.queue).collect());
        }
        (self.run, tables)
    }
}

/// Runs two steps, one of them twice, a timer, two signals and three owners.
fn completed() -> (RunId, Tables) {
    let mut s = Script::new(1, "wf-1");
    s.attach();
    s.done(1, "a", 1, "n-a");
    s.commit(EventBody::StepFailed {
        step: OpId(2),
        name: "b".to_owned(),
        attempt: 1,
        elapsed: Duration::from_millis(1),
        failure: Failure::new("Flaky", "again"),
        retry_at: Some(Timestamp::from_micros(BASE_US + 3_500)),
    });
    s.other(EventBody::WorkerDetached { reason: DetachReason::Lost });
    s.attach();
    s.done(2, "b", 2, "n-b");
    let fire_at = Timestamp::from_micros(BASE_US + 8_500);
    s.commit(EventBody::TimerStarted { timer: OpId(3), fire_at });
    s.commit(EventBody::WorkerDetached { reason: DetachReason::Parked });
    s.other(EventBody::TimerFired { timer: TimerKey::timer(OpId(3)) });
    s.attach();
    s.signal("s1");
    s.signal("s2");
    s.commit(EventBody::RunCompleted { result: Payload::json("\"done\""), unconsumed: Vec::new() });
    s.tables()
}

/// Waits for a timer in an hour.
fn waiting() -> (RunId, Tables) {
    let mut s = Script::new(2, "wf-2");
    s.attach();
    let fire_at = Timestamp::from_micros(BASE_US + 3_600_000_000);
    s.commit(EventBody::TimerStarted { timer: OpId(1), fire_at });
    s.commit(EventBody::WorkerDetached { reason: DetachReason::Parked });
    s.tables()
}

fn terminated() -> (RunId, Tables) {
    let mut s = Script::new(3, "wf-3");
    s.attach();
    s.other(EventBody::CancelRequested { reason: String::new() });
    s.other(EventBody::RunTerminated { reason: String::new() });
    s.tables()
}

/// Both lines of one execution in the first run.
fn execution(step: u32, attempt: u32, epoch: u32, us: u64) -> [JournalEntry; 2] {
    let name = if step == 1 { "a" } else { "b" };
    let begin = JournalEntry {
        run_id: run_id(1).to_string(),
        workflow_id: "wf-1".to_owned(),
        step,
        name: name.to_owned(),
        attempt,
        epoch,
        nonce: format!("n-{name}"),
        phase: Phase::Begin,
        worker: "w".to_owned(),
        mono_ns: mono(us),
        ..JournalEntry::default()
    };
    let sha = sha256(&format!("\"n-{name}\""));
    let end = JournalEntry {
        phase: Phase::End,
        mono_ns: mono(us) + 100,
        result_sha256: Some(sha),
        ..begin.clone()
    };
    [begin, end]
}

/// An op that was answered ok, between `us` and `us + 900` microseconds after the first event.
pub(crate) fn op(process: u32, kind: OpKind, workflow: u128, request: &str, us: u64) -> Op {
    Op {
        process,
        kind,
        workflow_id: format!("wf-{workflow}"),
        run_id: Some(run_id(workflow).to_string()),
        request_id: (!request.is_empty()).then(|| request.to_owned()),
        invoked: mono(us),
        outcome: Outcome::Ok,
        replied: Some(mono(us) + 900_000),
        error: String::new(),
        value: None,
    }
}

fn ops() -> Vec<Op> {
    let at = |status: &str, op: Op| Op { value: Some(serde_json::json!({"status": status})), ..op };
    // The first two events of each run lie between -500 and 400 microseconds, and so on.
    let early = |op: Op| Op { invoked: op.invoked - 500_000, replied: op.replied.map(|t| t - 500_000), ..op };
    vec![
        early(op(1, OpKind::Start, 1, "start-wf-1", 0)),
        op(1, OpKind::Signal, 1, "s1", 10_200),
        op(1, OpKind::Signal, 1, "s2", 11_200),
        at("completed", op(1, OpKind::Describe, 1, "", 13_500)),
        op(1, OpKind::Result, 1, "", 14_500),
        early(op(2, OpKind::Start, 2, "start-wf-2", 0)),
        early(op(3, OpKind::Start, 3, "start-wf-3", 0)),
        early(op(3, OpKind::Cancel, 3, "c3", 2_000)),
        early(op(3, OpKind::Terminate, 3, "t3", 3_000)),
        at("running", op(2, OpKind::Describe, 2, "", 4_000)),
        at("terminated", op(2, OpKind::Describe, 3, "", 5_000)),
        at("running", op(2, OpKind::Describe, 2, "", 6_000)),
        at("running", op(2, OpKind::Describe, 2, "", 7_000)),
    ]
}

fn expected() -> Vec<Expected> {
    let of = |workflow_id: &str, outcome| Expected {
        workflow_id: workflow_id.to_owned(),
        program_seed: 0,
        outcome,
        steps: Vec::new(),
        signals: Vec::new(),
        timers: Vec::new(),
    };
    let step = |nonce: &str, attempts_min| ExpectedStep { nonce: nonce.to_owned(), attempts_min };
    vec![
        Expected {
            steps: vec![step("n-a", 1), step("n-b", 2)],
            signals: vec!["s1".to_owned(), "s2".to_owned()],
            timers: vec![ExpectedTimer { nonce: "t".to_owned(), delay_us: 1_500 }],
            ..of("wf-1", ExpectedOutcome::Completed { output_sha256: sha256("\"done\"") })
        },
        of("wf-3", ExpectedOutcome::Any { of: vec![ExpectedOutcome::Canceled, ExpectedOutcome::Terminated] }),
    ]
}

/// Everything right.
pub(crate) fn good() -> Case {
    Case {
        meta: Some(Meta::default()),
        runs: [completed(), waiting(), terminated()].into_iter().collect(),
        undecoded: Vec::new(),
        // Attempt 2 of b ran twice: its first owner died before it could record it.
        journal: Some(
            [execution(1, 1, 1, 1_500), execution(2, 1, 1, 2_500), execution(2, 2, 1, 3_600)]
                .into_iter()
                .chain([execution(2, 2, 2, 5_500)])
                .flatten()
                .collect(),
        ),
        ops: Some(ops()),
        ops_broken: Vec::new(),
        expected: Some(expected()),
    }
}

impl Case {
    pub(crate) fn first_id(&self) -> RunId {
        run_id(1)
    }

    pub(crate) fn first(&mut self) -> &mut Tables {
        self.runs.entry(run_id(1)).or_default()
    }

    pub(crate) fn second(&mut self) -> &mut Tables {
        self.runs.entry(run_id(2)).or_default()
    }

    pub(crate) fn meta(&mut self) -> &mut Meta {
        self.meta.get_or_insert_default()
    }

    pub(crate) fn journal(&mut self) -> &mut Vec<JournalEntry> {
        self.journal.get_or_insert_default()
    }

    pub(crate) fn ops(&mut self) -> &mut Vec<Op> {
        self.ops.get_or_insert_default()
    }
}

/// Breaks a good case, and asserts that the check says so with a problem that holds `part`.
pub(crate) fn broken(check: impl Fn(&Case) -> Check, part: &str, change: impl FnOnce(&mut Case)) {
    broken_in(good, check, part, change);
}

/// The same of another case in which everything is right.
pub(crate) fn broken_in(
    good: impl Fn() -> Case,
    check: impl Fn(&Case) -> Check,
    part: &str,
    change: impl FnOnce(&mut Case),
) {
    let before = check(&good());
    assert!(before.ok, "the good case fails: {before:?}");
    let mut case = good();
    change(&mut case);
    let after = check(&case);
    let found = !after.ok && after.problems.iter().any(|p| p.contains(part));
    assert!(found, "no problem with '{part}': {after:?}");
}
