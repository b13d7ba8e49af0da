//! Fills a log with many runs: each is decided by the core as a real one is, and goes whole into one append of
//! the store, which writes all that belongs to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::Utc;
use everstep_core::{
    Actor, Attach, Command, CommandBody, CommandId, CommitCommand, ConflictPolicy, Duration, Failure, OpId,
    Payload, ReusePolicy, Run, RunId, SessionId, StartDecision, StartRun, Timestamp, TraceContext,
    WorkerCommit, WorkerInfo, WriteBasis, decide, decide_start, start_body_hash,
};
use everstep_store::{Append, RunAppend, StartClaim, Store, Verdict};
use tokio::task::JoinSet;
use uuid::{Builder, Uuid};

use super::workloads::result;
use crate::fail::Fail;
use crate::out;

/// Events of a closed run: its start, the claim, the steps and its end.
pub(super) const EVENTS_OF_CLOSED: u64 = 25;
const STEPS_OF_CLOSED: u32 = 22;
/// Events in one append, about.
const EVENTS_OF_BATCH: u64 = 2_500;
/// Appends at one time.
const LANES: usize = 2;
/// One closed run in so many failed.
const ONE_FAILED_IN: u64 = 50;
/// One run in so many is of the rare workflow type.
const ONE_RARE_IN: u64 = 1_000;
pub(super) const TYPE: &str = "growth";
pub(super) const RARE_TYPE: &str = "growth-rare";
/// How far away the timer of a sleeping run is.
const SLEEP: Duration = Duration::from_secs(365 * 24 * 3_600);
/// Runs that are remembered, to be asked for.
const SAMPLE: u64 = 1_000;

/// How a run stands in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// It completed, or failed.
    Closed,
    /// It waits for a timer that is far away.
    Sleeping,
    /// No worker has taken it yet.
    Waiting,
    /// A worker took it and is gone.
    Lost,
}

impl Shape {
    /// How many events it has, about.
    fn events(self) -> u64 {
        match self {
            Self::Closed => EVENTS_OF_CLOSED,
            Self::Sleeping => 5,
            Self::Waiting => 1,
            Self::Lost => 3,
        }
    }
}

/// A run of the log.
#[derive(Clone, Debug)]
pub(super) struct Filled {
    pub(super) run_id: RunId,
    pub(super) workflow_id: String,
}

/// Appends so many runs; gives some of them.
pub(super) async fn fill(store: &Arc<dyn Store>, shape: Shape, runs: u64) -> Result<Vec<Filled>, Fail> {
    let job = Arc::new(Job {
        store: Arc::clone(store),
        shape,
        runs,
        next: AtomicU64::new(0),
        // Workflow ids are new however often a database is filled.
        prefix: Uuid::new_v4().simple().to_string()[..8].to_owned(),
    });
    let mut lanes = JoinSet::new();
    for _ in 0..LANES {
        lanes.spawn(Arc::clone(&job).lane());
    }
    let mut sample = Vec::new();
    while let Some(done) = lanes.join_next().await {
        sample.extend(done.map_err(|e| Fail::refused(e.to_string()))??);
    }
    Ok(sample)
}

struct Job {
    store: Arc<dyn Store>,
    shape: Shape,
    runs: u64,
    next: AtomicU64,
    prefix: String,
}

impl Job {
    async fn lane(self: Arc<Self>) -> Result<Vec<Filled>, Fail> {
        let size = (EVENTS_OF_BATCH / self.shape.events()).max(1);
        let (mut sample, every) = (Vec::new(), (self.runs / SAMPLE).max(1));
        loop {
            let first = self.next.fetch_add(size, Ordering::Relaxed);
            if first >= self.runs {
                return Ok(sample);
            }
            let numbers = first..(first + size).min(self.runs);
            let mut batch = Vec::new();
            for number in numbers.clone() {
                let run = history(self.shape, number, &self.prefix)?;
                if number.is_multiple_of(every) {
                    let workflow_id = workflow_id(&self.prefix, number);
                    sample.push(Filled { run_id: run.run_id, workflow_id });
                }
                batch.push(Append::of(run));
            }
            for verdict in self.store.append(batch).await.verdicts {
                match verdict {
                    Verdict::Committed => {}
                    Verdict::Conflict => return Err(Fail::refused("a run of the bench is there already")),
                    Verdict::Failed(error) => return Err(error.into()),
                }
            }
            self.tell(numbers);
        }
    }

    /// Says how far it is, at each tenth.
    fn tell(&self, numbers: std::ops::Range<u64>) {
        let tenth = |number: u64| number * 10 / self.runs;
        if tenth(numbers.start) != tenth(numbers.end) {
            out::note(&format!("{:?}: {} of {} runs", self.shape, numbers.end, self.runs));
        }
    }
}

fn workflow_id(prefix: &str, number: u64) -> String {
    format!("{prefix}/{number}")
}

fn refused(error: impl std::fmt::Display) -> Fail {
    Fail::refused(format!("a history of the bench: {error}"))
}

/// A run that is written, one decision after the other.
struct Draft {
    run: Run,
    events: Vec<everstep_core::Event>,
    now: Timestamp,
    commits: u32,
}

/// The run with this number, from its first event to its last.
fn history(shape: Shape, number: u64, prefix: &str) -> Result<RunAppend, Fail> {
    let (mut draft, start) = Draft::start(number, prefix)?;
    match shape {
        Shape::Waiting => {}
        Shape::Lost => {
            draft.attach()?;
            draft.commit(complete_step(1))?;
        }
        Shape::Sleeping => {
            draft.attach()?;
            draft.commit(complete_step(1))?;
            draft.commit(CommitCommand::StartTimer { timer: OpId(2), delay: SLEEP })?;
            draft.commit(CommitCommand::Park)?;
        }
        Shape::Closed => {
            draft.attach()?;
            (1..=STEPS_OF_CLOSED).try_for_each(|step| draft.commit(complete_step(step)))?;
            draft.commit(if number.is_multiple_of(ONE_FAILED_IN) {
                CommitCommand::FailRun { failure: Failure::new("Declined", "no"), unconsumed: Vec::new() }
            } else {
                CommitCommand::CompleteRun { result: Payload::json("true"), unconsumed: Vec::new() }
            })?;
        }
    }
    let writes = WriteBasis::NEW.writes(&draft.run, &draft.events);
    Ok(RunAppend { run_id: draft.run.id(), start: Some(start), events: Arc::new(draft.events), writes })
}

fn complete_step(number: u32) -> CommitCommand {
    CommitCommand::CompleteStep {
        step: OpId(number),
        name: "step".to_owned(),
        attempt: 1,
        elapsed: Duration::from_micros(500),
        result: Payload::json(format!("\"{}\"", result(number))),
    }
}

impl Draft {
    fn start(number: u64, prefix: &str) -> Result<(Self, StartClaim), Fail> {
        let now = Utc::now();
        let random = Uuid::new_v4();
        let mut tail = [0; 10];
        tail.copy_from_slice(&random.as_bytes()[..10]);
        let millis = u64::try_from(now.timestamp_millis()).unwrap_or_default();
        let run_id = RunId::from_uuid(Builder::from_unix_timestamp_millis(millis, &tail).into_uuid());
        let request = request(number, prefix, random);
        let now = Timestamp::from_micros(now.timestamp_micros());
        let decision = decide_start(&request, (run_id, number), None, None, now).map_err(refused)?;
        let StartDecision::Start { event, expected, .. } = decision else {
            return Err(refused("a start without a predecessor did not start"));
        };
        let claim = StartClaim {
            body_hash: start_body_hash(&request),
            namespace: request.namespace,
            workflow_id: request.workflow_id,
            expected,
            request_id: request.request_id,
        };
        let run = Run::begin(run_id, &event).map_err(refused)?;
        Ok((Self { run, events: vec![*event], now, commits: 0 }, claim))
    }

    fn attach(&mut self) -> Result<(), Fail> {
        // Nobody's session: whoever is its owner in the end is gone.
        let session = SessionId::from_uuid(Uuid::from_u128(1));
        let worker = WorkerInfo { identity: "1@bench".to_owned(), build_id: "bench".to_owned() };
        let id = CommandId::from_uuid(Uuid::new_v4());
        self.take(id, CommandBody::Attach(Attach::by(session, worker)))
    }

    fn commit(&mut self, command: CommitCommand) -> Result<(), Fail> {
        self.commits += 1;
        let epoch = self.run.epoch();
        let commit = WorkerCommit {
            epoch,
            number: self.commits,
            seen: self.run.seq(),
            commands: vec![command],
            ahead: None,
        };
        let id = CommandId::of_worker(self.run.id(), epoch, self.commits);
        self.take(id, CommandBody::Commit(commit))
    }

    fn take(&mut self, id: CommandId, body: CommandBody) -> Result<(), Fail> {
        let command = Command { id, actor: Actor::Worker("1@bench".to_owned()), body };
        for event in decide(&self.run, &command, self.now).map_err(refused)?.events {
            self.run.apply(&event).map_err(refused)?;
            self.events.push(event);
        }
        Ok(())
    }
}

fn request(number: u64, prefix: &str, random: Uuid) -> StartRun {
    StartRun {
        namespace: "default".to_owned(),
        workflow_id: workflow_id(prefix, number),
        workflow_type: if number.is_multiple_of(ONE_RARE_IN) { RARE_TYPE } else { TYPE }.to_owned(),
        // No worker of the bench serves it, so that runs stay as they are.
        task_queue: "growth".to_owned(),
        input: Payload::json(number.to_string()),
        request_id: random.to_string(),
        run_timeout: None,
        reuse: ReusePolicy::Allow,
        conflict: ConflictPolicy::Fail,
        trace: TraceContext::default(),
        identity: "1@bench".to_owned(),
        ..StartRun::default()
    }
}

#[cfg(test)]
mod tests;
